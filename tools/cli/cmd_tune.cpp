// thimble tune: teaches a model from rows of text, by an adapter over the frozen base or in all weights.
#include <fmt/format.h>

#include <optional>

#include "models/adapter.h"
#include "models/quantize.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/cli.h"
#include "tools/cli/model_output.h"
#include "tools/cli/tokenizer_path.h"
#include "tools/cli/train_options.h"

namespace thimble::cli {
namespace {

struct TuneOptions {
  CommonOptions common;
  TrainFlags train;
  std::string model, tokenizer, load_as, data, eval_data, method, overlong = "error", init = "default", bias = "none";
  AdapterOptions adapter;
};

constexpr const char* kMethods = "lora, dora, full, prompt, prefix, ia3";

bool is_full(const TuneOptions& o) { return o.method == "full"; }

void read_method(TuneOptions& o) {
  if (o.method == "dora") {
    o.adapter.kind = AdapterKind::lora;
    o.adapter.dora = true;
    return;
  }
  for (AdapterKind kind : {AdapterKind::lora, AdapterKind::ia3, AdapterKind::prompt, AdapterKind::prefix})
    if (o.method == adapter_kind_name(kind)) {
      o.adapter.kind = kind;
      return;
    }
  if (!is_full(o))
    throw Error(ErrorCode::usage, fmt::format("--method {}: unknown method", o.method),
                std::string("valid methods: ") + kMethods);
}

double default_lr(const TuneOptions& o) {
  if (is_full(o)) return 1e-4;
  switch (o.adapter.kind) {
    case AdapterKind::lora:
      return 1e-3;
    case AdapterKind::ia3:
      return 5e-3;
    case AdapterKind::prompt:
      return 3e-2;
    case AdapterKind::prefix:
      return 1e-2;
  }
  return 1e-3;
}

// What decides the result besides the options of the loop.
std::string identity(const TuneOptions& o, const Model& model) {
  const AdapterOptions& a = o.adapter;
  std::string text = fmt::format("model={},{},{} data={} overlong={}", model.file_bytes, model.parameters(),
                                 base_config(model).dump(), sha256_file(o.data), o.overlong);
  if (!o.eval_data.empty()) text += " eval=" + sha256_file(o.eval_data);
  if (!o.load_as.empty()) text += " load_as=" + o.load_as;
  if (!is_full(o))
    text += fmt::format(" rank={} alpha={:a} dropout={:a} rslora={} targets={} virtual={}", a.rank, a.alpha, a.dropout,
                        a.rslora, a.targets, a.n_virtual);
  if (!is_full(o)) {
    if (a.dora) text += " dora";
    if (a.bias != AdapterBias::none) text += std::string(" bias=") + adapter_bias_name(a.bias);
    for (const std::string& m : a.modules_to_save) text += " save=" + m;
  }
  return text;
}

void check_adapter_flags(TuneOptions& o) {
  const bool lora = !is_full(o) && o.adapter.kind == AdapterKind::lora, linear = !is_full(o) && (lora || o.adapter.kind == AdapterKind::ia3);
  if (o.adapter.dora && !lora) throw Error(ErrorCode::usage, "--dora: is for --method lora", "use --method dora");
  if (o.bias != "none" && !lora) throw Error(ErrorCode::usage, "--bias " + o.bias + ": is for --method lora and dora", "leave it out");
  if (!o.adapter.modules_to_save.empty() && !linear)
    throw Error(ErrorCode::usage, "--modules-to-save: is for --method lora, dora and ia3", "leave it out");
  o.adapter.bias = o.bias == "all" ? AdapterBias::all : o.bias == "lora_only" ? AdapterBias::lora_only : AdapterBias::none;
}

int run_tune(TuneOptions& o) {
  install_stop_handlers();
  read_method(o);
  check_adapter_flags(o);
  const bool full = is_full(o);
  prepare_train_flags(o.train, o.common, default_lr(o));
  if (!o.train.dry_run && same_path(o.model, o.train.out))
    throw Error(ErrorCode::usage, "--out " + o.train.out + ": is the model itself", "choose another directory");
  for (const std::string& path : {o.data, o.eval_data})
    if (!path.empty() && !file_exists(path))
      throw Error(ErrorCode::input, path + ": no such file", "give a file of JSON lines");
  Session session(o.common);

  LoadOptions load;
  load.budget = &session.budget();
  Model model = load_model(o.model, session.kernels(), load);
  const LoadFormat format = parse_load_format(o.load_as);
  if (full && format.bits > 0)
    throw Error(ErrorCode::usage, "--load-as " + o.load_as + ": --method full needs plain weights", "train an adapter: --method lora");
  quantize_model(model, session.kernels(), format, &session.budget(), session.threads());
  if (full) {
    if (!model.quantization.empty())
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: is quantized ({}): --method full needs plain weights", o.model, model.quantization),
                  "train an adapter over it: --method lora");
    check_full_training(session, o.train, double(model.parameters()));
    load.trainable = true;
    model = load_model(o.model, session.kernels(), load);
  }
  if (!o.common.quiet)
    for (const std::string& w : model.warnings) warn(w);
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer);
  o.adapter.seed = o.common.seed;
  std::unique_ptr<Adapter> adapter;
  if (!full) adapter = std::make_unique<Adapter>(model, session.kernels(), o.adapter, &session.budget());

  const int64_t positions = model.config.max_positions - (adapter ? adapter->n_virtual() : 0);
  if (positions < 2)
    throw Error(ErrorCode::usage,
                fmt::format("--virtual-tokens {}: {} has positions for {} tokens", o.adapter.n_virtual, o.model,
                            model.config.max_positions),
                "use fewer virtual tokens");
  if (o.train.ctx > positions)
    throw Error(ErrorCode::usage,
                fmt::format("--ctx {}: {} has positions for {} tokens", o.train.ctx, o.model, positions),
                fmt::format("use --ctx {} or less", positions));
  if (o.train.ctx == 0) o.train.ctx = positions;
  const Overlong overlong = o.overlong == "skip"       ? Overlong::skip
                            : o.overlong == "truncate" ? Overlong::truncate
                                                       : Overlong::error;
  const auto read = [&](const std::string& path) {
    Dataset d = Dataset::from_jsonl(path, tokenizer, o.train.ctx, overlong);
    check_vocabulary(d, model.config, path);
    const DatasetStats& s = d.stats();
    if (s.skipped + s.truncated > 0)
      say(o.common, fmt::format("{}: {} of {} rows skipped, {} truncated to {} tokens", path, s.skipped, s.rows,
                                s.truncated, o.train.ctx));
    return d;
  };
  const Dataset data = read(o.data);
  std::optional<Dataset> eval;
  if (!o.eval_data.empty()) eval.emplace(read(o.eval_data));

  TrainJob job;
  job.verb = "tune";
  job.method = o.method;
  job.model = &model;
  job.adapter = adapter.get();
  job.data = &data;
  job.eval = eval ? &*eval : nullptr;
  job.identity = identity(o, model);
  job.save = [&] {
    if (adapter) {
      adapter->save(o.train.out, o.model);
      return;
    }
    tokenizer.save(o.train.out);
    write_model(o.train.out, model, session.kernels(), base_config(model));
  };
  return run_training(o.common, session, o.train, job);
}

}  // namespace

void add_tune(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("tune", "train an adapter, or all weights, on rows of text");
  command->footer(
      "Examples:\n"
      "  thimble tune --model DIR --data rows.jsonl --method lora --rank 8 --steps 200 --batch 4 --out adapter\n"
      "  thimble tune --model DIR --data rows.jsonl --method full --epochs 2 --eval-data dev.jsonl --eval-every 50 "
      "--patience 3 --out tuned\n"
      "  thimble tune --model DIR --data rows.jsonl --method lora --batch 8 --dry-run --json\n"
      "Rows: {\"prompt\", \"completion\"} (the completion is learned) or {\"text\"} (everything is).\n"
      "An interrupted or killed run continues with the same command and --resume, to the same bytes.");
  auto o = std::make_shared<TuneOptions>();
  command->add_option("--model", o->model, "base model: directory or llama2.c .bin file")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--load-as", o->load_as,
                      "pack the base while loading: q8, q4, q2; with a group q4-g32, q4-g64, q4-row; and a kind q4-g32-sym, q4-g32-min; default: as stored");
  command->add_option("--data", o->data, "JSON lines to learn from")->required();
  command->add_option("--eval-data", o->eval_data, "JSON lines to evaluate on");
  command->add_option("--overlong", o->overlong, "rows beyond --ctx: error (default), truncate or skip")
      ->check(CLI::IsMember({"error", "truncate", "skip"}));
  command->add_option("--method", o->method, kMethods)->required();
  command->add_option("--rank", o->adapter.rank, "of LoRA; default 8");
  command->add_option("--alpha", o->adapter.alpha, "of LoRA: the scale is alpha / rank; default 8");
  command->add_flag("--rslora", o->adapter.rslora, "the scale of LoRA is alpha / sqrt(rank)");
  command->add_flag("--dora", o->adapter.dora, "LoRA with a magnitude of its own per output; the same as --method dora");
  command->add_option("--dropout", o->adapter.dropout, "of LoRA; default 0");
  command->add_option("--bias", o->bias, "LoRA: biases of the base that learn too: none (default), lora_only, all")
      ->check(CLI::IsMember({"none", "lora_only", "all"}));
  command->add_option("--modules-to-save", o->adapter.modules_to_save,
                      "LoRA, IA3: modules of the base that learn as a whole, for example lm_head")
      ->delimiter(',');
  command->add_option("--targets", o->adapter.targets,
                      "LoRA, IA3: modules to adapt, a regular expression or all-linear; default: PEFT's");
  command
      ->add_option("--init", o->init,
                   "initial values; only default: adapters that change nothing, prompts from embeddings")
      ->check(CLI::IsMember({"default"}));
  command->add_option("--virtual-tokens", o->adapter.n_virtual, "prompt, prefix: default 8");
  add_train_options(*command, o->train, "by method: full 1e-4, lora and dora 1e-3, ia3 5e-3, prefix 1e-2, prompt 3e-2");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_tune(*o); }; });
}

}  // namespace thimble::cli
