#include "tools/cli/cli.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "tensor/env.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/parallel.h"

namespace thimble::cli {
namespace {

std::string tier_list() {
  std::string list;
  for (int t = 0; t < kTierCount; ++t) {
    const auto tier = static_cast<Tier>(t);
    list += fmt::format("{}{}{}", t ? ", " : "", tier_name(tier), tier_supported(tier) ? "" : " (not on this machine)");
  }
  return list;
}

Tier parse_tier(const std::string& name, const std::string& where) {
  Tier tier;
  if (!tier_from_name(name.c_str(), &tier))
    throw Error(ErrorCode::usage, fmt::format("{}: unknown tier \"{}\"", where, name), "valid tiers: " + tier_list());
  if (!tier_supported(tier))
    throw Error(ErrorCode::usage, fmt::format("{}: this machine does not support tier {}", where, name), "tiers: " + tier_list());
  return tier;
}

nlohmann::ordered_json finite(const nlohmann::ordered_json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) return nullptr;
  if (value.is_structured()) {
    nlohmann::ordered_json copy = value;
    for (auto& item : copy) item = finite(item);
    return copy;
  }
  return value;
}

}  // namespace

KernelTable kernel_table_from(const std::string& isa, const std::string& pins) {
  const Tier cap = isa.empty() ? best_tier() : parse_tier(isa, "--isa / THIMBLE_ISA");
  std::vector<KernelPin> list;
  size_t at = 0;
  while (at < pins.size()) {
    const size_t end = std::min(pins.find(',', at), pins.size());
    const std::string pin = pins.substr(at, end - at);
    at = end + 1;
    const size_t colon = pin.find(':');
    if (colon == std::string::npos)
      throw Error(ErrorCode::usage, fmt::format("THIMBLE_KERNEL: \"{}\" is not a pin: expected SLOT:TIER", pin),
                  "for example THIMBLE_KERNEL=softmax:ref,gemm_f32:avx2");
    KernelPin p;
    if (!slot_from_name(pin.substr(0, colon).c_str(), &p.slot)) {
      std::string slots;
      for (int s = 0; s < kSlotCount; ++s) slots += (s ? ", " : "") + std::string(slot_name(static_cast<SlotId>(s)));
      throw Error(ErrorCode::usage, fmt::format("THIMBLE_KERNEL: unknown slot \"{}\"", pin.substr(0, colon)), "valid slots: " + slots);
    }
    p.tier = parse_tier(pin.substr(colon + 1), "THIMBLE_KERNEL");
    list.push_back(p);
  }
  return build_kernel_table(cap, list.data(), static_cast<int>(list.size()));
}

int64_t parse_bytes(const std::string& text, const std::string& option) {
  const auto fail = [&]() {
    throw Error(ErrorCode::usage, fmt::format("{}: \"{}\" is not an amount of memory", option, text),
                "give bytes, or a number with K, M, G or T: 512M, 4G");
  };
  double value = 0;
  size_t used = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    fail();
  }
  std::string unit = text.substr(used);
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (unit.size() > 1 && unit.substr(unit.size() - 2) == "IB") unit.resize(unit.size() - 2);
  else if (!unit.empty() && unit.back() == 'B') unit.pop_back();
  static const std::string kUnits = "KMGT";
  double factor = 1;
  if (!unit.empty()) {
    const size_t i = kUnits.find(unit[0]);
    if (unit.size() != 1 || i == std::string::npos) fail();
    factor = std::pow(1024.0, double(i + 1));
  }
  if (!(value > 0) || value * factor > 9e18) fail();
  return static_cast<int64_t>(value * factor);
}

void add_common_options(CLI::App& command, CommonOptions& o) {
  command.add_option("--isa", o.isa, "highest instruction-set tier to use (see thimble doctor)")->group("Common");
  command.add_option("--threads", o.threads, "threads; default: all that this process may use")
      ->check(CLI::Range(1, 4096))->group("Common");
  command.add_option("--precision", o.precision, "f32 (exact), bf16, or int8_act (int8 activations on quantized weights)")
      ->check(CLI::IsMember({"f32", "bf16", "int8_act"}))->group("Common");
  command.add_option("--seed", o.seed, "seed of everything random; default 0")->group("Common");
  command.add_option("--ram", o.ram, "memory budget, for example 4G; going over it ends with status 4")->group("Common");
  command.add_flag("--json", o.json, "one JSON object on stdout instead of text")->group("Common");
  command.add_flag("--quiet", o.quiet, "no words on stderr")->group("Common");
  command.add_flag("-v,--verbose", o.verbose, "more words on stderr")->group("Common");
}

Session::Session(const CommonOptions& options)
    : options_(options),
      kernels_(kernel_table_from(options.isa, env_get("KERNEL").value_or(""))),
      threads_(options.threads > 0 ? options.threads : available_threads()),
      precision_(precision_of(options.precision)),
      budget_(options.ram.empty() ? 0 : parse_bytes(options.ram, "--ram")) {}

std::unique_ptr<Context> Session::make_context() {
  auto ctx = std::make_unique<Context>(kernels_, threads_, &budget_);
  ctx->precision = precision_;
  return ctx;
}

void write_stdout(std::string_view text) { write_fully(1, text.data(), text.size(), "standard output"); }

void print_json(const nlohmann::ordered_json& value) {
  write_stdout(finite(value).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

namespace {

// Words for people are best effort: a full disk or a closed terminal behind stderr must not change how a run ends.
void write_stderr(std::string_view text) {
  try {
    write_fully(2, text.data(), text.size(), "standard error");
  } catch (const Error&) {
  }
}

}  // namespace

void say(const CommonOptions& options, const std::string& line) {
  if (!options.quiet) write_stderr(line + "\n");
}
void warn(const std::string& line) { write_stderr("warning: " + line + "\n"); }

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t peak_rss_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

Progress::Progress(const CommonOptions& options, std::string what, int64_t total, std::string unit)
    : active_(!options.quiet && ::isatty(2) == 1), what_(std::move(what)), unit_(std::move(unit)), total_(total), start_(seconds_now()) {}

Progress::~Progress() {
  if (active_ && last_ > 0) write_stderr("\r\033[K");
}

void Progress::update(int64_t done, const std::string& note) {
  if (!active_) return;
  const double now = seconds_now();
  if (now - last_ < 0.2 && done < total_) return;
  last_ = now;
  const double rate = double(done) / std::max(1e-9, now - start_);
  const double eta = rate > 0 ? double(total_ - done) / rate : 0;
  write_stderr(fmt::format("\r\033[K{} {}/{} {} ({:.0f} %), {:.1f} {}/s, {:.0f} s left{}{}", what_, done, total_, unit_,
                           total_ > 0 ? 100.0 * double(done) / double(total_) : 100.0, rate, unit_, eta,
                           note.empty() ? "" : ", ", note));
}

namespace {

// Every option can also come from the environment: --max-tokens is THIMBLE_MAX_TOKENS.
void mirror_in_environment(CLI::App& app, std::vector<std::string>* names) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    std::string name = option->get_lnames()[0];
    if (name == "help" || name == "version") continue;
    if (name == "kernel") continue;  // THIMBLE_KERNEL pins slots, whichever verb runs
    for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    option->envname("THIMBLE_" + name);
    names->push_back(name);
  }
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) mirror_in_environment(*sub, names);
}

int report(const Error& e) {
  write_stderr(fmt::format("error: {}\n", e.what()));
  if (!e.hint().empty()) write_stderr("hint: " + e.hint() + "\n");
  return static_cast<int>(e.code());
}

}  // namespace

int main_entry(int argc, char** argv) {
  install_sigbus_handler();
  // A closed pipe or a file-size limit must reach us as a failed write, not as a death by signal.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  CLI::App app{
      "thimble tailors small language models to one person, on the machine that person owns.\n"
      "Start with: thimble doctor; thimble model info DIR; thimble generate --model DIR --prompt 'Once upon a time'"};
  app.name("thimble");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("thimble ") + THIMBLE_VERSION);
  app.footer("Exit status: 0 done, 1 bug, 2 usage, 3 bad input, 4 budget, 5 unsupported, 6 interrupted, 7 comparison\n"
             "beyond tolerance, 8 some cells failed. Every option --some-name can also be set as THIMBLE_SOME_NAME.");
  Run run;
  add_doctor(app, &run);
  add_model(app, &run);
  add_tokenize(app, &run);
  add_generate(app, &run);
  add_chat(app, &run);
  add_eval(app, &run);
  add_tune(app, &run);
  add_pretrain(app, &run);
  add_quantize(app, &run);
  add_prune(app, &run);
  add_convert(app, &run);
  add_parity(app, &run);
  add_data(app, &run);
  add_lab(app, &run);
  add_embed(app, &run);
  add_rag(app, &run);
  add_profile(app, &run);
  add_bench(app, &run);
  add_dashboard(app, &run);
  add_completion(app, &run);
  std::vector<std::string> mirrored;
  mirror_in_environment(app, &mirrored);
  try {
    for (const std::string& name : env_unknown(mirrored)) warn("unknown environment variable " + name + " is ignored");
    app.parse(argc, argv);
    return run ? run() : 0;
  } catch (const CLI::CallForHelp&) {
    try {
      write_stdout(app.help());
    } catch (const Error& e) {
      return report(e);
    }
    return 0;
  } catch (const CLI::CallForVersion& e) {
    try {
      write_stdout(std::string(e.what()) + "\n");
    } catch (const Error& error) {
      return report(error);
    }
    return 0;
  } catch (const CLI::ParseError& e) {
    write_stderr(fmt::format("error: {}\nhint: run with --help to see the valid options\n", e.what()));
    return static_cast<int>(ErrorCode::usage);
  } catch (const Error& e) {
    return report(e);
  } catch (const std::bad_alloc&) {
    write_stderr("error: out of memory\nhint: use a smaller model, context or batch\n");
    return static_cast<int>(ErrorCode::budget);
  } catch (const std::exception& e) {
    write_stderr(fmt::format("error: internal error: {}\nhint: this is a bug in thimble; please report it\n", e.what()));
    return static_cast<int>(ErrorCode::internal);
  }
}

}  // namespace thimble::cli
