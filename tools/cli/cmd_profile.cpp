// thimble profile: where the time of a prefill, of decoding or of a training step goes, zone by zone, against the peaks
// that this machine shows in the same run; and the machine code of a kernel.
#include <fmt/format.h>

#include <algorithm>

#include "models/quantize.h"
#include "models/random_model.h"
#include "tensor/error.h"
#include "tensor/trace.h"
#include "tools/cli/cli.h"
#include "tools/cli/counters.h"
#include "tools/cli/disassemble.h"
#include "tools/cli/machine.h"
#include "tools/cli/profile_report.h"
#include "train/workload.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ProfileOptions {
  CommonOptions common;
  std::string what, model, shape, format, method = "lora", trace, kernel;
  std::string recompute = "none", optimizer = "adamw";
  int64_t prompt_tokens = 256, tokens = 32, steps = 3, batch = 1;
  AdapterOptions adapter;
  bool assembly = false;
};

std::string shape_list() {
  std::string list;
  for (const ModelShape& s : model_shapes()) list += (list.empty() ? "" : ", ") + std::string(s.name);
  return list;
}

WorkKind kind_of(const std::string& what) {
  return what == "prefill" ? WorkKind::prefill : what == "decode" ? WorkKind::decode : WorkKind::train;
}

void check_options(const ProfileOptions& o) {
  if (!o.kernel.empty()) {
    if (!o.what.empty() || !o.model.empty() || !o.shape.empty())
      throw Error(ErrorCode::usage, "--kernel shows one kernel: no model is run",
                  "leave out --model, --shape and the kind of work");
    if (!o.assembly)
      throw Error(ErrorCode::usage, "--kernel " + o.kernel + ": say what to show",
                  "add --asm; thimble_bench --filter times a kernel");
    return;
  }
  if (o.assembly)
    throw Error(ErrorCode::usage, "--asm needs a kernel", "for example: thimble profile --kernel gemv_q4 --asm");
  if (o.what.empty()) throw Error(ErrorCode::usage, "what to profile is not given", "give prefill, decode or train");
  if (o.model.empty() == o.shape.empty())
    throw Error(ErrorCode::usage, o.model.empty() ? "no model is given" : "--model and --shape exclude one another",
                "give --model PATH, or --shape NAME for random weights of: " + shape_list());
  if (o.steps < 1 || o.tokens < 1 || o.prompt_tokens < 1 || o.batch < 1)
    throw Error(ErrorCode::usage, "--steps, --tokens, --prompt-tokens and --batch must be at least 1", "");
}

// Random weights, or those of --model, in --format; trainable in f32 when all of them are to learn.
Model open_model(const ProfileOptions& o, Session& session, bool full) {
  const StoredFormat format = parse_stored_format(o.format.empty() ? "f32" : o.format);
  if (full && !o.format.empty() && format.format != WeightFormat::f32)
    throw Error(ErrorCode::usage, "--format " + o.format + ": --method full trains f32 weights",
                "use --format f32, or --method lora");
  if (!o.shape.empty()) {
    const ShapeConfig shape = shape_config(o.shape);
    // Gradients and two moments besides the weights.
    const int64_t bytes = random_model_bytes(shape.config, format) * (full ? 4 : 1);
    const int64_t there =
        session.budget().limit() > 0 ? session.budget().limit() : describe_machine().memory_available_bytes;
    if (there > 0 && bytes > there)
      throw Error(ErrorCode::budget,
                  fmt::format("{} in {} needs {:.1f} GB of memory, more than the {:.1f} GB {}", o.shape,
                              stored_format_name(format), double(bytes) / 1e9, double(there) / 1e9,
                              session.budget().limit() > 0 ? "of --ram" : "that are free"),
                  full ? "use --method lora, or a smaller shape"
                       : "use a smaller --format such as q4_g128, or a smaller shape");
    return random_model(o.shape, shape, format, o.common.seed + 1, &session.budget());
  }
  if (!o.format.empty() && !is_tiled(format.format) && !full)
    throw Error(ErrorCode::usage, "--format " + o.format + ": a loaded model can be packed into q8, q4 or q2 only",
                "leave --format out to run it as it is stored");
  LoadOptions load;
  load.budget = &session.budget();
  load.trainable = full;
  Model model = load_model(o.model, session.kernels(), load);
  if (!o.common.quiet)
    for (const std::string& w : model.warnings) warn(w);
  if (is_tiled(format.format))
    quantize_model(model, session.kernels(), {static_cast<int>(format_bits(format.format)), format.group, format.kind},
                   &session.budget(), session.threads());
  return model;
}

Json counters_json(const CounterReading& reading) {
  Json hardware = nullptr, software = Json::object();
  if (!reading.hardware.empty()) {
    hardware = Json::object();
    for (const Counter& c : reading.hardware) hardware[c.name] = c.value;
  }
  for (const Counter& c : reading.software) software[c.name] = c.value;
  Json json = {{"hardware", hardware}, {"software", software}};
  if (!reading.missing.empty()) json["missing"] = reading.missing;
  return json;
}

Json peaks_json(const Roofline& r) {
  return {{"threads", r.threads},     {"f32_gflops", r.f32_gflops}, {"bf16_gflops", r.bf16_gflops},
          {"int8_gops", r.int8_gops}, {"read_gbs", r.read_gbs},     {"copy_gbs", r.copy_gbs}};
}

int run_profile(const ProfileOptions& o) {
  const WorkKind kind = kind_of(o.what);
  const bool full = kind == WorkKind::train && o.method == "full";
  Session session(o.common);
  Model model = open_model(o, session, full);
  const auto ctx = session.make_context();
  WorkOptions work;
  work.kind = kind;
  work.prompt_tokens = o.prompt_tokens;
  work.tokens = o.tokens + 1;  // the first one warms up
  work.full = full;
  work.adapter = o.adapter;
  work.batch = o.batch;
  work.recompute = o.recompute == "cheap"   ? Recompute::cheap
                   : o.recompute == "block" ? Recompute::block
                                            : Recompute::none;
  work.moments = o.optimizer == "adamw8bit" ? Moments::q8 : Moments::f32;
  work.seed = work.adapter.seed = o.common.seed;
  Workload load(model, *ctx, work);

  const int64_t runs = kind == WorkKind::decode ? o.tokens : o.steps;
  load.prepare();
  load.run();
  Trace trace(o.trace.empty() ? 0 : kMaxTraceEvents);
  const std::unique_ptr<CounterSource> counters = std::make_unique<ProcessCounters>();
  counters->start();
  trace.start();
  for (int64_t i = 0; i < runs; ++i) {
    load.prepare();
    load.run();
  }
  trace.stop();
  const CounterReading reading = counters->stop();
  const int64_t peak_rss = peak_rss_bytes();  // before the memory of the probes
  const Roofline peaks = measure_roofline(session.kernels(), session.threads());

  const std::vector<ProfileRow> rows = profile_rows(trace, peaks);
  const double seconds = double(trace.nanoseconds()) * 1e-9;
  const double tokens_s = double(runs * load.tokens_per_run()) / std::max(1e-12, seconds);
  const double flops = total_work(trace).first;
  int64_t trace_bytes = 0;
  if (!o.trace.empty()) {
    trace_bytes = write_trace_file(o.trace, {{o.what, &trace}});
    if (trace.dropped() > 0)
      warn(fmt::format("{}: holds the last {} events; {} earlier ones were dropped to stay below 100 MB", o.trace,
                       kMaxTraceEvents, trace.dropped()));
  }
  // Roof fractions of a run that had to share the machine say nothing about the kernels.
  const double busy = reading.software.empty() ? 0 : reading.software[0].value / std::max(1e-12, seconds);
  if (!o.common.quiet && seconds > 0.05 && busy < 0.5 * session.threads())
    warn(fmt::format(
        "the run had {:.2f} CPUs for {} threads: other processes use this machine, so compare shares, not speeds", busy,
        session.threads()));
  const std::string format =
      o.format.empty() ? (o.shape.empty() ? "stored" : "f32") : stored_format_name(parse_stored_format(o.format));
  if (o.common.json) {
    const Machine machine = describe_machine();
    Json json = {{"schema", "thimble.profile/1"},
                 {"what", o.what},
                 {"model",
                  {{"name", model.path},
                   {"parameters", model.parameters()},
                   {"stored_bytes", model.stored_bytes()},
                   {"format", format}}},
                 {"precision", o.common.precision},
                 {"isa", tier_name(session.kernels().tier)},
                 {"threads", session.threads()},
                 {"prompt_tokens", o.prompt_tokens}};
    if (kind == WorkKind::decode)
      json["tokens"] = o.tokens;
    else
      json["steps"] = o.steps;
    if (kind == WorkKind::train) {
      json["method"] = o.method;
      json["batch"] = o.batch;
      json["recompute"] = o.recompute;
      json["optimizer"] = o.optimizer;
    }
    json["seconds"] = seconds;
    json["tokens_s"] = tokens_s;
    json["flops"] = flops;
    json["gflops"] = flops / std::max(1e-12, seconds) / 1e9;
    json["peak_rss_bytes"] = peak_rss;
    json["roofline"] = peaks_json(peaks);
    json["zones"] = profile_json(rows);
    json["counters"] = counters_json(reading);
    if (!o.trace.empty())
      json["trace"] = {
          {"path", o.trace}, {"bytes", trace_bytes}, {"events", trace.events().size()}, {"dropped", trace.dropped()}};
    json["machine"] = {{"cpu", machine.cpu},
                       {"os", machine.os},
                       {"compiler", machine.compiler},
                       {"build", machine.build_type},
                       {"commit", machine.commit}};
    print_json(json);
    return 0;
  }
  std::string text = fmt::format(
      "{}{} of {}: {:.1f}M weights, {}, precision {}, tier {}, {} thread{}\n", o.what,
      kind == WorkKind::train ? " (" + o.method + ")" : "", model.path, double(model.parameters()) / 1e6, format,
      o.common.precision, tier_name(session.kernels().tier), session.threads(), session.threads() > 1 ? "s" : "");
  text += fmt::format("{} in {:.3f} s: {:.1f} tokens/s, {:.1f} GFLOP/s, peak RSS {:.0f} MB\n\n",
                      kind == WorkKind::decode    ? fmt::format("{} tokens behind {}", runs, o.prompt_tokens)
                      : kind == WorkKind::prefill ? fmt::format("{} x {} tokens", runs, o.prompt_tokens)
                                                  : fmt::format("{} steps of {} tokens", runs, load.tokens_per_run()),
                      seconds, tokens_s, flops / std::max(1e-12, seconds) / 1e9, double(peak_rss) / 1e6);
  text += profile_text(rows);
  text += fmt::format(
      "\nroof: {:.0f} GFLOP/s f32, {:.0f} bf16, {:.0f} int8, {:.1f} GB/s read, measured after the run on {} thread{}; "
      "above 100 %: "
      "its data were in a cache\n{}\n{}\n",
      peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops, peaks.read_gbs, peaks.threads, peaks.threads > 1 ? "s" : "",
      hardware_text(reading), software_text(reading, seconds));
  if (!o.trace.empty())
    text += fmt::format("trace: {} ({:.1f} MB), for ui.perfetto.dev or chrome://tracing\n", o.trace,
                        double(trace_bytes) / 1e6);
  write_stdout(text);
  return 0;
}

const void* slot_function(const KernelTable& table, SlotId slot) {
  switch (slot) {
#define SLOT(field, type, name, kind) \
  case SlotId::field:                 \
    return reinterpret_cast<const void*>(table.field);
#include "kernels/kernel_slots.def"
#undef SLOT
    case SlotId::count:
      break;
  }
  return nullptr;
}

int show_kernel(const ProfileOptions& o) {
  const Session session(o.common);
  SlotId slot;
  if (!slot_from_name(o.kernel.c_str(), &slot)) {
    std::string slots;
    for (int s = 0; s < kSlotCount; ++s) slots += (s ? ", " : "") + std::string(slot_name(static_cast<SlotId>(s)));
    throw Error(ErrorCode::usage, "--kernel: unknown slot \"" + o.kernel + "\"", "valid slots: " + slots);
  }
  const Tier origin = session.kernels().origin[static_cast<size_t>(slot)];
  // The kernel, then the functions of its own tier that it calls and that were not inlined.
  std::vector<CodeRange> functions = {find_code(slot_function(session.kernels(), slot))};
  const std::string own = fmt::format("thimble::{}::", tier_name(origin));
  std::string text;
  Json list = Json::array();
  constexpr size_t kMaxFunctions = 32;
  for (size_t i = 0; i < functions.size(); ++i) {
    const CodeRange code = functions[i];
    const std::string assembly = disassemble(code);
    for (const CodeRange& callee : called_code(assembly, code)) {
      const bool known = std::any_of(functions.begin(), functions.end(),
                                     [&](const CodeRange& f) { return f.address == callee.address; });
      if (!known && functions.size() < kMaxFunctions && callee.symbol.find(own) != std::string::npos)
        functions.push_back(callee);
    }
    text += assembly + (assembly.empty() || assembly.back() != '\n' ? "\n" : "");
    list.push_back({{"symbol", code.symbol}, {"address", code.address}, {"bytes", code.bytes}, {"asm", assembly}});
  }
  if (o.common.json) {
    print_json({{"schema", "thimble.profile/1"},
                {"what", "kernel"},
                {"kernel", o.kernel},
                {"isa", tier_name(session.kernels().tier)},
                {"origin", tier_name(origin)},
                {"functions", list}});
    return 0;
  }
  write_stdout(fmt::format("{} from tier {}: {} function{}\n\n", o.kernel, tier_name(origin), functions.size(),
                           functions.size() > 1 ? "s" : "") +
               text);
  return 0;
}

}  // namespace

void add_profile(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("profile", "where the time goes, zone by zone, against this machine's peaks");
  command->footer(
      "Examples:\n"
      "  thimble profile prefill --shape tinyllama-1.1b --format q4_g128 --precision int8_act\n"
      "  thimble profile decode --model DIR --tokens 64 --trace decode.json\n"
      "  thimble profile train --shape llama-134m --method full --precision bf16 --steps 2\n"
      "  thimble profile --kernel gemv_q4 --isa avx2 --asm\n"
      "Shapes (random weights, no file needed): " +
      shape_list());
  auto o = std::make_shared<ProfileOptions>();
  command->add_option("WHAT", o->what, "prefill, decode or train")
      ->check(CLI::IsMember({"prefill", "decode", "train"}));
  command->add_option("--model", o->model, "model directory or llama2.c .bin file");
  command->add_option("--shape", o->shape, "a known shape with random weights instead");
  command->add_option(
      "--format", o->format,
      "of the weights: f32, f16, bf16, q8_g128, q4_g128, q4_g32, q2_row, q4_g32_sym, q4_g32_min, ...; default f32, or as stored");
  command->add_option("--prompt-tokens", o->prompt_tokens,
                      "of a prefill, in front of decoding, of a training sequence; default 256");
  command->add_option("--tokens", o->tokens, "decode: how many; default 32");
  command->add_option("--steps", o->steps, "prefill: passes; train: optimizer steps; default 3");
  command->add_option("--method", o->method, "train: lora (default) or full")->check(CLI::IsMember({"lora", "full"}));
  command->add_option("--rank", o->adapter.rank, "of LoRA; default 8");
  command->add_option("--targets", o->adapter.targets,
                      "LoRA: modules to adapt, a regular expression or all-linear; default: PEFT's");
  command->add_option("--batch", o->batch, "train: sequences per step; default 1");
  command->add_option("--recompute", o->recompute, "train: what backward makes again: none (default), cheap or block")
      ->check(CLI::IsMember({"none", "cheap", "block"}));
  command->add_option("--optimizer", o->optimizer, "train: adamw (default) or adamw8bit")
      ->check(CLI::IsMember({"adamw", "adamw8bit"}));
  command->add_option("--trace", o->trace, "write the timeline to this file, for Perfetto");
  command->add_option("--kernel", o->kernel, "a slot of the kernel table (see thimble doctor), with --asm");
  command->add_flag("--asm", o->assembly, "print the kernel's machine code on the tier of --isa; needs objdump");
  add_common_options(*command, o->common);
  command->callback([o, run] {
    *run = [o] {
      check_options(*o);
      return o->kernel.empty() ? run_profile(*o) : show_kernel(*o);
    };
  });
}

}  // namespace thimble::cli
