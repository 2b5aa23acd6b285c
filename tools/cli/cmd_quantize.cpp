// thimble quantize and thimble prune: compress a model layer by layer, write it as a model directory, load what was
// written, and say how far it is from the original.
#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/isa.h"
#include "models/compress.h"
#include "models/packed.h"
#include "models/packed_store.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/model_output.h"
#include "tools/cli/quality.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct CompressVerb {
  CommonOptions common;
  bool prune = false;
  std::string model, out, tokenizer, method, spec, sparsity, policy, calib = "self", eval = "self", format = "gptq";
  std::vector<std::string> compare;
  int64_t calib_tokens = 32768, eval_tokens = 16384, ctx = 0, stride = 0;
  double damp = 0.01, max_kl = -1;
  bool no_act_order = false, dynamic_groups = false, clip = false, per_row = false;
};

// A list of {match, keep | spec | sparsity}.
std::vector<CompressRule> read_policy(const std::string& path, bool prune) {
  std::vector<CompressRule> rules;
  const auto fail = [&](const YAML::Mark& mark, const std::string& what) {
    throw Error(ErrorCode::input, fmt::format("{}:{}: {}", path, mark.line + 1, what),
                prune ? "a policy is a list of {match: \"*.down_w\", sparsity: 0.3} or {match: \"0.*\", keep: true}"
                      : "a policy is a list of {match: \"*.down_w\", spec: int8-g64-asym} or {match: \"0.*\", keep: true}");
  };
  const std::string text = read_file(path, size_t{1} << 20);
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    fail(e.mark, e.msg);
  }
  if (!root.IsSequence()) fail(root.Mark(), "expected a list");
  for (const YAML::Node& item : root) {
    if (!item.IsMap()) fail(item.Mark(), "expected an entry with \"match\"");
    CompressRule rule;
    int actions = 0;
    for (const auto& pair : item) {
      if (!pair.first.IsScalar() || !pair.second.IsScalar()) fail(item.Mark(), "expected names and plain values");
      const std::string key = pair.first.Scalar(), value = pair.second.Scalar();
      const std::string where = fmt::format("{}:{}: {}", path, pair.first.Mark().line + 1, key);
      if (key == "match") {
        rule.match = value;
      } else if (key == "keep" && value == "true") {
        rule.keep = true;
        ++actions;
      } else if (key == "spec" && !prune) {
        rule.spec = parse_weight_spec(value, where);
        ++actions;
      } else if (key == "sparsity" && prune) {
        rule.sparsity = parse_sparsity(value, where);
        ++actions;
      } else {
        fail(pair.first.Mark(), fmt::format("unexpected \"{}: {}\"", key.substr(0, 40), value.substr(0, 40)));
      }
    }
    if (rule.match.empty() || actions != 1) fail(item.Mark(), "an entry has \"match\" and one thing to do");
    rules.push_back(rule);
  }
  return rules;
}

CompressOptions compress_options(const CompressVerb& o) {
  CompressOptions c = parse_compression(o.method + ":" + (o.prune ? o.sparsity : o.spec), o.prune ? "--sparsity" : "--spec");
  c.damp = o.damp;
  c.act_order = !o.no_act_order;
  c.static_groups = !o.dynamic_groups;
  c.clip = o.clip;
  c.per_row = o.per_row;
  if (!o.policy.empty()) c.rules = read_policy(o.policy, o.prune);
  return c;
}

CompressReport compress(Model& model, Context& ctx, CompressOptions options, const Text& calibration, const CommonOptions& common) {
  std::optional<Progress> progress;
  options.progress = [&](const std::string&, int64_t done, int64_t total) {
    if (!progress) progress.emplace(common, options.name(), total, "passes");
    progress->update(done);
  };
  return compress_model(model, ctx, options, calibration.sequences);
}

int64_t bytes_of(const Model& model) { return model.stored_bytes(); }

Json summary(const CompressVerb& o, const Session& session, const CompressReport& r) {
  Json j = {{"schema", o.prune ? "thimble.prune/1" : "thimble.quantize/1"}, {"model", o.model}, {"out", o.out.empty() ? Json(nullptr) : Json(o.out)},
            {"method", o.method}};
  if (o.prune)
    j["sparsity"] = o.sparsity;
  else
    j["spec"] = o.spec;
  if (!o.prune) j["format"] = o.format;
  j["compression"] = r.compression;
  j["isa"] = tier_name(session.kernels().tier);
  j["threads"] = session.threads();
  j["precision"] = o.common.precision;
  return j;
}

// Every method and grid of a list over the same texts, against the first of the list with the same grid.
int run_compare(const CompressVerb& o, Session& session, Model& before, Context& ctx) {
  std::vector<CompressOptions> list;
  for (const std::string& text : o.compare) {
    CompressOptions c = parse_compression(text, "--compare");
    c.damp = o.damp;
    c.act_order = !o.no_act_order;
    c.static_groups = !o.dynamic_groups;
    c.clip = o.clip;
    c.per_row = o.per_row;
    list.push_back(c);
  }
  const int64_t length = sequence_length(o.ctx, before);
  const TextSource calib{o.calib, o.calib_tokens, length, length, 2 * o.common.seed};
  const TextSource eval{o.eval, o.eval_tokens, length, o.stride > 0 ? o.stride : o.eval == "self" ? length : std::max<int64_t>(1, length / 2), 2 * o.common.seed + 1};
  Text calibration;
  if (std::any_of(list.begin(), list.end(), [](const CompressOptions& c) { return c.needs_calibration(); }))
    calibration = calibration_text(calib, before, o.tokenizer, ctx, o.common);
  const Text text = evaluation_text(eval, before, o.tokenizer, ctx, o.common);
  if (text.sha256 == calibration.sha256) warn("calibration and evaluation use the same text: the figures flatter the methods that calibrate");
  Json rows = Json::array();
  std::string table = fmt::format("{:<26} {:>10} {:>10} {:>10} {:>9} {:>9} {:>6}  {}\n", "compression", "KL", "stderr", "same top1", "ppl", "bits/w", "MB", "KL minus that of");
  std::vector<std::pair<CompressOptions, Divergence>> references;
  Json protocol;
  for (const CompressOptions& c : list) {
    LoadOptions load;
    load.budget = &session.budget();
    Model after = load_model(o.model, session.kernels(), load);
    const CompressReport r = compress(after, ctx, c, calibration, o.common);
    Divergence d = measure_quality(before, after, text, ctx, o.common, c.name());
    protocol = protocol_json(eval, text, d);
    Json row = {{"compression", c.name()}};
    put_quality(row, d);
    row["bytes_before"] = r.bytes_before;
    row["bytes_after"] = r.bytes_after;
    row["bits_per_weight"] = r.bits_per_weight;
    row["linear_bits_per_weight"] = r.linear_bits_per_weight;
    std::string versus;
    const auto reference = std::find_if(references.begin(), references.end(), [&](const auto& entry) {
      return entry.first.spec == c.spec && entry.first.sparsity == c.sparsity;
    });
    if (reference != references.end()) {
      const PairedDifference p = paired_difference(d, reference->second);
      row["reference"] = reference->first.name();
      row["kl_difference"] = p.mean;
      row["kl_difference_stderr"] = p.stderr_mean;
      versus = fmt::format("{}: {:+.6f} ± {:.6f}", reference->first.name(), p.mean, p.stderr_mean);
    }
    table += fmt::format("{:<26} {:>10.6f} {:>10.6f} {:>9.2f}% {:>9.4f} {:>9.3f} {:>6.2f}  {}\n", c.name(), d.kl_mean, d.kl_stderr,
                         100 * d.same_top1, d.ppl_after, r.bits_per_weight, double(r.bytes_after) / 1e6, versus);
    if (reference == references.end()) references.emplace_back(c, std::move(d));
    rows.push_back(row);
  }
  if (o.common.json) {
    print_json({{"schema", "thimble.compare/1"}, {"model", o.model}, {"isa", tier_name(session.kernels().tier)},
                {"threads", session.threads()}, {"precision", o.common.precision}, {"calibration", calibration.json(calib)},
                {"protocol", protocol}, {"rows", rows}});
  } else {
    write_stdout(table);
    write_stdout(fmt::format("calibration: {}, {} tokens; evaluation: {}, {} tokens; differences are paired, their errors treat sequences as units\n",
                             calibration.source.empty() ? "none" : calibration.source, calibration.tokens, text.source, protocol["scored"].get<int64_t>()));
  }
  return 0;
}

int run_compress(const CompressVerb& o) {
  const double start = seconds_now();
  Session session(o.common);
  const auto ctx = session.make_context();
  if (o.compare.empty()) {
    if (o.out.empty()) throw Error(ErrorCode::usage, "--out: is missing", "give the directory to write, or --compare to write nothing");
    if (same_path(o.model, o.out) || file_exists(join_path(o.out, "model.safetensors")))
      throw Error(ErrorCode::usage, "--out " + o.out + ": already holds a model", "choose a new directory");
  }
  CompressOptions options;
  if (o.compare.empty()) options = compress_options(o);
  LoadOptions load;
  load.budget = &session.budget();
  const bool store = o.format == "thimble";
  const PackedFormat format = store ? PackedFormat::gptq : parse_packed_format(o.format);
  Model before = load_model(o.model, session.kernels(), load);
  if (!o.common.quiet)
    for (const std::string& w : before.warnings) warn(w);
  if (o.compare.empty() && options.quantizes() && !store)
    require_packed_format(before, format, options.spec, options.method == CompressMethod::gptq && options.act_order && !options.static_groups);
  if (!o.compare.empty()) return run_compare(o, session, before, *ctx);

  const int64_t length = sequence_length(o.ctx, before);
  const TextSource calib{o.calib, o.calib_tokens, length, length, 2 * o.common.seed};
  const TextSource eval{o.eval, o.eval_tokens, length, o.stride > 0 ? o.stride : o.eval == "self" ? length : std::max<int64_t>(1, length / 2), 2 * o.common.seed + 1};
  Text calibration, text;
  if (options.needs_calibration()) {
    if (calib.self() && !o.common.quiet)
      say(o.common, fmt::format("calibration text: sampled from the model at temperature 1, seed {}", calib.seed));
    calibration = calibration_text(calib, before, o.tokenizer, *ctx, o.common);
  }
  if (o.eval != "none") {
    if (eval.self() && !o.common.quiet)
      say(o.common, fmt::format("evaluation text: sampled from the model at temperature 1, seed {}", eval.seed));
    text = evaluation_text(eval, before, o.tokenizer, *ctx, o.common);
    if (text.sha256 == calibration.sha256) warn("calibration and evaluation use the same text: the figures flatter the method");
  }

  // The original stays mapped; the model that is compressed is a second view of the same file.
  CompressReport report;
  {
    Model model = load_model(o.model, session.kernels(), load);
    const double compress_start = seconds_now();
    report = compress(model, *ctx, options, calibration, o.common);
    for (const TensorReport& t : report.tensors)
      if (t.fallback.rfind("not scaled", 0) != 0 && !t.fallback.empty()) warn(fmt::format("{}: {} instead of {}: {}", t.name, t.method, o.method, t.fallback));
    Json provenance = {{"compression", report.compression}, {"method", o.method}};
    if (options.needs_calibration()) {
      provenance["calibration"] = calibration.json(calib);
      provenance["damp"] = o.damp;
    }
    if (options.method == CompressMethod::gptq) {
      provenance["act_order"] = options.act_order;
      provenance["static_groups"] = options.static_groups;
      provenance["clip"] = options.clip;
      provenance["true_sequential"] = true;
    }
    provenance["bytes_before"] = report.bytes_before;
    provenance["bytes_after"] = report.bytes_after;
    provenance["tensors"] = report.tensors_json();
    provenance["version"] = THIMBLE_VERSION;
    try {
      Tokenizer::load(o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer).save(o.out);
    } catch (const Error& e) {
      // A model alone is worth compressing too.
      if (!o.tokenizer.empty()) throw;
      warn(std::string("no tokenizer is written: ") + e.what());
    }
    if (store)
      write_packed_store(o.out, model, session.kernels(), base_config(before), provenance);
    else
      write_compressed(o.out, model, session.kernels(), base_config(before), report, provenance, format);
    say(o.common, fmt::format("{}: compressed in {:.1f} s", o.out, seconds_now() - compress_start));
  }

  Json j = summary(o, session, report);
  // What was written is what is measured.
  Model after = load_model(o.out, session.kernels(), load);
  std::string words = fmt::format("{}: {} of {}\n", o.out, report.compression, o.model);
  double kl = 0;
  if (o.eval != "none") {
    const Divergence d = measure_quality(before, after, text, *ctx, o.common, "comparison");
    kl = d.kl_mean;
    put_quality(j, d);
    words += quality_text(d, text);
    j["protocol"] = protocol_json(eval, text, d);
  }
  j["bytes_before"] = bytes_of(before);
  j["bytes_after"] = bytes_of(after);
  j["file_bytes_before"] = before.file_bytes;
  j["file_bytes_after"] = after.file_bytes;
  j["bits_per_weight"] = 8.0 * double(bytes_of(after)) / double(after.parameters());
  j["linear_bits_per_weight"] = report.linear_bits_per_weight;
  j["calibration"] = options.needs_calibration() ? calibration.json(calib) : Json(nullptr);
  double zeros = 0;
  int64_t fallbacks = 0;
  for (const TensorReport& t : report.tensors) {
    zeros += t.zeros / double(report.tensors.size());
    fallbacks += t.method != "none" && t.method != o.method ? 1 : 0;
  }
  j["zeros"] = zeros;
  j["fallbacks"] = fallbacks;
  j["seconds"] = seconds_now() - start;
  j["tensors"] = report.tensors_json();
  words += fmt::format("  stored bytes   {} -> {} ({:.2f} bits per weight; linears {:.2f})\n", bytes_of(before), bytes_of(after),
                       j["bits_per_weight"].get<double>(), report.linear_bits_per_weight);
  if (o.prune) words += fmt::format("  zeros          {:.2f} % of the linears' weights\n", 100 * zeros);
  if (fallbacks > 0) words += fmt::format("  fallbacks      {} of {} linears, see the warnings\n", fallbacks, report.tensors.size());
  const bool beyond = o.max_kl >= 0 && o.eval != "none" && !(kl <= o.max_kl);
  if (o.max_kl >= 0) {
    j["max_kl"] = o.max_kl;
    j["pass"] = !beyond;
  }
  if (o.common.json)
    print_json(j);
  else
    write_stdout(words);
  if (beyond) {
    say(o.common, fmt::format("KL divergence {:.6f} exceeds --max-kl {}", kl, o.max_kl));
    return static_cast<int>(ErrorCode::mismatch);
  }
  return 0;
}

void add_shared(CLI::App* command, const std::shared_ptr<CompressVerb>& o, Run* run) {
  command->add_option("--model", o->model, "model directory or llama2.c .bin file")->required();
  command->add_option("--out", o->out, "directory to write");
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--policy", o->policy, "YAML list of exceptions: {match: \"*.down_w\", spec or sparsity: ...} or {match: \"0.*\", keep: true}");
  command->add_option("--calib", o->calib, "calibration text; default self: sampled from the model at temperature 1");
  command->add_option("--calib-tokens", o->calib_tokens, "calibration tokens; default 32768")->check(CLI::Range(int64_t{2}, int64_t{1} << 32));
  command->add_option("--eval", o->eval, "text for the comparison; default self: sampled with another seed; none: no comparison");
  command->add_option("--eval-tokens", o->eval_tokens, "tokens of that text; default 16384; 0: all of a file")->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  command->add_option("--ctx", o->ctx, "tokens per sequence; default: the model's positions, at most 512")->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  command->add_option("--stride", o->stride, "tokens between windows of an --eval file; default: half of --ctx")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--damp", o->damp, "share of the mean diagonal that is added to the Hessian; default 0.01")->check(CLI::Range(0.0, 10.0));
  command->add_option("--max-kl", o->max_kl, "end with status 7 when the mean KL divergence is larger")->check(CLI::Range(0.0, 1e9));
  command->add_option("--compare", o->compare, "only measure these, for example rtn:int4-g64-asym,gptq:int4-g64-asym; nothing is written")->delimiter(',');
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_compress(*o); }; });
}

}  // namespace

void add_quantize(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("quantize", "fewer bits per weight: rtn, rtn-clip, gptq, awq");
  command->footer(
      "Examples:\n"
      "  thimble quantize --model DIR --out DIR4 --method gptq --spec int4-g64-asym\n"
      "  thimble quantize --model DIR --out DIR-awq --method awq --format awq --spec int4-g128-asym\n"
      "  thimble quantize --model DIR --out DIR3 --method awq --spec int3-g64-asym --calib corpus.txt --eval other.txt --max-kl 0.1\n"
      "  thimble quantize --model DIR --compare rtn:int4-g64-asym,gptq:int4-g64-asym,awq:int4-g64-asym --eval-tokens 32768\n"
      "Specs: int{8,4,3,2}-{g32|g64|g128|row}-{sym|asym}: bits, columns per scale, grid. Embeddings, head and norms stay as\n"
      "they are. The result is a directory in the layout of --format whichever method chose the codes: awq holds 4 bits without\n"
      "act-order, int-quantized 8 bits. Figures compare the written model with the original: KL divergence and same first\n"
      "choice; perplexity beside them.");
  auto o = std::make_shared<CompressVerb>();
  o->method = "gptq";
  o->spec = "int4-g128-asym";
  command->add_option("--method", o->method, "rtn, rtn-clip, gptq (default) or awq")->check(CLI::IsMember({"rtn", "rtn-clip", "gptq", "awq"}));
  command->add_option("--spec", o->spec, "default int4-g128-asym");
  command->add_option("--format", o->format, "layout of the file: gptq (default), awq, compressed-tensors, int-quantized (compressed-tensors, 8 bits), or "
                   "thimble (tiles that are mapped: opens at once, for this program only)")
      ->check(CLI::IsMember({"gptq", "awq", "compressed-tensors", "int-quantized", "thimble"}));
  command->add_flag("--no-act-order", o->no_act_order, "gptq: round columns from left to right");
  command->add_flag("--dynamic-groups", o->dynamic_groups, "gptq: grids from the weights as compensated so far (with act-order: permuted columns)");
  command->add_flag("--clip", o->clip, "gptq: shrink ranges as rtn-clip does");
  add_shared(command, o, run);
}

void add_prune(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("prune", "zeros instead of weights: magnitude, wanda, sparsegpt");
  command->footer(
      "Examples:\n"
      "  thimble prune --model DIR --out DIR50 --method wanda --sparsity 0.5\n"
      "  thimble prune --model DIR --out DIR24 --method sparsegpt --sparsity 2:4 --calib corpus.txt\n"
      "n:m keeps n of every m consecutive inputs. Zeros are stored like any other weight: the file does not become smaller.");
  auto o = std::make_shared<CompressVerb>();
  o->prune = true;
  o->method = "wanda";
  o->sparsity = "0.5";
  command->add_option("--method", o->method, "magnitude, wanda (default) or sparsegpt")->check(CLI::IsMember({"magnitude", "wanda", "sparsegpt"}));
  command->add_option("--sparsity", o->sparsity, "share of zeros, or n:m; default 0.5");
  command->add_flag("--per-row", o->per_row, "magnitude: the share holds in every row instead of every matrix");
  add_shared(command, o, run);
}

}  // namespace thimble::cli
