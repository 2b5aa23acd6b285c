#include "tools/cli/train_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "models/transformer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/gemm.h"
#include "tensor/sha256.h"
#include "tensor/weight.h"
#include "tools/cli/machine.h"
#include "tensor/rng.h"
#include "train/memory_plan.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

const char* recompute_name(Recompute r) {
  return r == Recompute::block ? "block" : r == Recompute::cheap ? "cheap" : "none";
}

std::vector<std::pair<const char*, int64_t>> plan_rows(const MemoryPlan& p) {
  return {{"weights", p.weights},
          {"adapters", p.adapters},
          {"grads", p.grads},
          {"optimizer", p.optimizer},
          {"activations", p.activations},
          {"kv", p.kv},
          {"base", p.base},
          {"total", p.total()}};
}

Json plan_json(const MemoryPlan& p) {
  Json j = Json::object();
  for (const auto& [name, bytes] : plan_rows(p)) j[name] = bytes;
  return j;
}

std::string plan_table(const MemoryPlan& p) {
  std::string text;
  for (const auto& [name, bytes] : plan_rows(p))
    text += fmt::format("  {:<12} {:>12.2f} MiB\n", name, double(bytes) / (1 << 20));
  return text;
}

// What the run may take: --ram, or all that the machine has.
int64_t memory_limit(Session& session) {
  return session.budget().limit() > 0 ? session.budget().limit() : describe_machine().memory_bytes;
}

[[noreturn]] void over_limit(Session& session, const MemoryPlan& plan) {
  std::string table = plan_table(plan);
  table.pop_back();
  const bool given = session.budget().limit() > 0;
  throw Error(
      ErrorCode::budget,
      fmt::format("the run needs {:.2f} MiB, more than the {:.2f} MiB of {}:\n{}", double(plan.total()) / (1 << 20),
                  double(memory_limit(session)) / (1 << 20), given ? "--ram" : "this machine", table),
      fmt::format("{}lower --batch or --ctx; --recompute block and --method lora need less",
                  given ? "raise --ram, or " : ""));
}

struct Plan {
  TrainShape shape;
  MemoryPlan memory;
  Recompute recompute = Recompute::none;
};

// Rows of the heaviest micro-batch that the run will draw; 0 (unknown) when the run is too long to look ahead.
int64_t heaviest_rows(const TrainFlags& flags, const TrainJob& job, int64_t virtuals) {
  const TrainOptions& o = flags.loop;
  const int64_t group = o.batch * o.accum;
  int64_t steps = o.steps;
  if (steps == 0 && o.epochs > 0) steps = static_cast<int64_t>(double(job.data->size()) * o.epochs / double(group)) + 1;
  constexpr int64_t kLookAhead = 2'000'000;
  if (job.data->is_stream() || steps == 0 || steps > kLookAhead / group) return 0;
  int64_t heaviest = 0;
  for (int64_t m = 0; m < steps * o.accum; ++m) {
    int64_t rows = 0;
    for (int64_t b = 0; b < o.batch; ++b) rows += job.data->draw(o.seed, m * o.batch + b).n - 1 + virtuals;
    heaviest = std::max(heaviest, rows);
  }
  return heaviest;
}

// The first policy whose plan fits. Throws budget, with the table of the most frugal one, when none does.
Plan choose_plan(Session& session, const TrainFlags& flags, const TrainJob& job, bool enforce) {
  Plan plan;
  const int64_t virtuals = job.adapter && job.adapter->kind() == AdapterKind::prompt ? job.adapter->n_virtual() : 0;
  int64_t longest = job.data->stats().longest;
  if (job.eval) longest = std::max(longest, job.eval->stats().longest);
  plan.shape.sequences = flags.loop.batch;
  plan.shape.length = longest - 1 + virtuals;
  plan.shape.rows = heaviest_rows(flags, job, virtuals);
  plan.shape.full = job.adapter == nullptr;
  plan.shape.moments = flags.loop.moments;
  plan.shape.snapshots = flags.loop.patience > 0 ? 1 : 0;
  std::vector<Recompute> policies;
  const bool any = flags.recompute == "auto";
  if (any || flags.recompute == "none") policies.push_back(Recompute::none);
  if (any || flags.recompute == "cheap") policies.push_back(Recompute::cheap);
  if (any || flags.recompute == "block") policies.push_back(Recompute::block);
  const int64_t limit = memory_limit(session);
  for (Recompute policy : policies) {
    plan.recompute = policy;
    plan.memory = plan_memory(*job.model, job.adapter, session.kernels(), session.threads(), session.precision(),
                              plan.shape, policy);
    if (plan.memory.total() <= limit) return plan;
  }
  if (enforce) over_limit(session, plan.memory);
  return plan;
}

// Operations per second of an f32 product of moderate size, over some 50 ms.
double measure_gemm(Session& session) {
  constexpr int64_t kRows = 256, kCols = 512, kDepth = 512;
  const Buffer x(kRows * kDepth * sizeof(float)), w(kCols * kDepth * sizeof(float)), y(kRows * kCols * sizeof(float));
  Weight weight;
  weight.rows = kCols;
  weight.cols = kDepth;
  weight.data = w.data();
  const WeightView view = weight.view();
  Philox rng(1, 1);  // never time on zeros
  for (int64_t i = 0; i < kRows * kDepth; ++i) x.f32()[i] = static_cast<float>(rng.uniform() - 0.5);
  for (int64_t i = 0; i < kCols * kDepth; ++i) w.f32()[i] = static_cast<float>(rng.uniform() - 0.5);
  const Buffer scratch(
      std::max<size_t>(1, gemm_nt_scratch_bytes(session.kernels(), session.threads(), kRows, WeightFormat::f32, view)));
  const GemmExec exec{&session.kernels(), session.threads(), scratch.data(), scratch.bytes()};
  const auto run = [&] { gemm_nt(exec, kRows, x.f32(), kDepth, WeightFormat::f32, view, y.f32(), kCols, false); };
  run();
  const double start = seconds_now();
  double spent = 0;
  int64_t runs = 0;
  while (spent < 0.05) {
    run();
    ++runs;
    spent = seconds_now() - start;
  }
  return 2.0 * double(kRows * kCols * kDepth) * double(runs) / spent;
}

// Rows of an average step.
int64_t rows_per_step(const TrainFlags& flags, const TrainJob& job) {
  const DatasetStats& s = job.data->stats();
  const double each = job.data->is_stream() ? double(job.data->ctx()) : double(s.tokens) / double(job.data->size()) - 1;
  const int64_t virtuals = job.adapter && job.adapter->kind() == AdapterKind::prompt ? job.adapter->n_virtual() : 0;
  return std::max<int64_t>(
      1, static_cast<int64_t>(std::llround((each + double(virtuals)) * double(flags.loop.batch * flags.loop.accum))));
}

Json data_json(const Dataset& d) {
  const DatasetStats& s = d.stats();
  return {
      {"rows", s.rows},       {"used", d.size()},         {"tokens", s.tokens},  {"learned_tokens", s.learned_tokens},
      {"skipped", s.skipped}, {"truncated", s.truncated}, {"longest", s.longest}};
}

int dry_run(const CommonOptions& common, Session& session, const TrainFlags& flags, const TrainJob& job,
            const Plan& plan, int64_t trainable) {
  const double flops = step_flops(job.model->config, plan.shape, plan.recompute, rows_per_step(flags, job));
  const double step_s = flops / measure_gemm(session);
  if (common.json) {
    print_json({{"schema", "thimble." + job.verb + "/1"},
                {"dry_run", true},
                {"method", job.method},
                {"trainable", trainable},
                {"parameters", job.model->parameters()},
                {"data", data_json(*job.data)},
                {"memory", plan_json(plan.memory)},
                {"step_s", step_s},
                {"step_flops", flops},
                {"recompute", recompute_name(plan.recompute)}});
    return 0;
  }
  write_stdout(fmt::format(
      "{} {}: {} of {} parameters train\n{}  recompute    {:>12}\n  step         {:>12.4f} s (estimated)\n", job.verb,
      job.method, trainable, job.model->parameters(), plan_table(plan.memory), recompute_name(plan.recompute), step_s));
  return 0;
}

// What must be equal for a checkpoint to continue to the same result. Threads, paths and recomputation change nothing;
// rate, warm-up and clipping may be lowered after a divergence.
std::string fingerprint(const CommonOptions& common, const TrainFlags& flags, const TrainJob& job) {
  const TrainOptions& o = flags.loop;
  return sha256_hex(fmt::format(
      "{} {} {} steps={} epochs={:a} seconds={:a} batch={} accum={} schedule={} min={:a} optimizer={} "
      "betas={:a},{:a} eps={:a} decay={:a},{} seed={} eval={},{} patience={} ctx={} precision={}",
      job.verb, job.method, job.identity, o.steps, o.epochs, o.seconds, o.batch, o.accum, flags.schedule,
      o.schedule.min_ratio, flags.optimizer, o.adamw.beta1, o.adamw.beta2, o.adamw.eps, o.adamw.weight_decay,
      o.adamw.decay_vectors, o.seed, o.eval_every, o.eval_limit, o.patience, flags.ctx, common.precision));
}

bool holds_finished_run(const std::string& out) {
  return file_exists(join_path(out, "model.safetensors")) || file_exists(join_path(out, "adapter_config.json"));
}

Json loss_json(double x) { return x < 0 ? Json(nullptr) : Json(x); }

}  // namespace

void add_train_options(CLI::App& c, TrainFlags& f, const std::string& default_lr) {
  const CLI::Range count(int64_t{1}, int64_t{1} << 40), count0(int64_t{0}, int64_t{1} << 40);
  c.add_option("--out", f.out, "directory for the result, log.jsonl and state/");
  c.add_option("--steps", f.loop.steps, "optimizer steps")->check(count);
  c.add_option("--epochs", f.loop.epochs, "passes over the data instead of --steps")->check(CLI::PositiveNumber);
  c.add_option("--seconds", f.loop.seconds, "wall-clock time instead of --steps")->check(CLI::PositiveNumber);
  c.add_option("--batch", f.loop.batch, "sequences per forward pass; default 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  c.add_option("--accum", f.loop.accum, "forward passes per optimizer step; default 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  c.add_option("--ctx", f.ctx, "tokens of a sequence at most")->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  c.add_option("--lr", f.loop.lr, "peak learning rate; default " + default_lr)->check(CLI::NonNegativeNumber);
  c.add_option("--schedule", f.schedule, "constant, linear or cosine (default)");
  c.add_option("--warmup", f.loop.schedule.warmup, "steps over which the rate rises from 0")->check(count0);
  c.add_option("--min-lr-ratio", f.loop.schedule.min_ratio, "where the schedule ends, as a share of --lr; default 0")
      ->check(CLI::Range(0.0, 1.0));
  c.add_option("--optimizer", f.optimizer, "adamw (default), adamw8bit (moments of 8 bits: a quarter of their memory) or sgd")
      ->check(CLI::IsMember({"adamw", "adamw8bit", "sgd"}));
  c.add_option("--beta1", f.loop.adamw.beta1, "of AdamW; default 0.9")->check(CLI::Range(0.0, 0.9999999));
  c.add_option("--beta2", f.loop.adamw.beta2, "of AdamW; default 0.999")->check(CLI::Range(0.0, 0.9999999));
  c.add_option("--eps", f.loop.adamw.eps, "of AdamW; default 1e-8")->check(CLI::PositiveNumber);
  c.add_option("--weight-decay", f.loop.adamw.weight_decay, "decoupled weight decay; default 0")
      ->check(CLI::NonNegativeNumber);
  c.add_flag("--no-decay-norms", f.no_decay_norms, "no weight decay on norms and biases");
  c.add_option("--clip", f.loop.adamw.clip_norm, "largest global gradient norm, 0 for none; default 1")
      ->check(CLI::NonNegativeNumber);
  c.add_option("--eval-every", f.loop.eval_every, "steps between evaluations; default: at the start and the end only")
      ->check(count0);
  c.add_option("--eval-limit", f.loop.eval_limit, "evaluate at most this many rows or windows")->check(count0);
  c.add_option("--patience", f.loop.patience, "stop after this many evaluations without improvement and keep the best")
      ->check(count0);
  c.add_option("--save-every", f.loop.save_every, "steps between checkpoints; default: at the end and when interrupted")
      ->check(count0);
  c.add_option("--log-every", f.loop.log_every, "steps between lines of log.jsonl; default 1")->check(count);
  c.add_option("--recompute", f.recompute,
               "none, cheap (norms and activations are made again), block (least memory, a third more work), or auto "
               "(default): the first that fits --ram")
      ->check(CLI::IsMember({"none", "cheap", "block", "auto"}));
  c.add_flag("--resume", f.resume, "continue from OUT/state; the result is that of an uninterrupted run");
  c.add_flag("--dry-run", f.dry_run, "predict memory and time of a step; nothing is trained or written");
  f.loop.adamw.clip_norm = 1;
  f.loop.lr = -1;  // not given
}

void prepare_train_flags(TrainFlags& f, const CommonOptions& common, double default_lr) {
  TrainOptions& o = f.loop;
  if (o.lr < 0) o.lr = default_lr;
  o.schedule.kind = schedule_from_name(f.schedule);
  o.moments = f.optimizer == "sgd" ? Moments::none : f.optimizer == "adamw8bit" ? Moments::q8 : Moments::f32;
  o.adamw.decay_vectors = !f.no_decay_norms;
  o.adamw.lr = o.lr;
  o.seed = common.seed;
  o.out = f.out;
  const int budgets = int(o.steps > 0) + int(o.epochs > 0) + int(o.seconds > 0);
  if (budgets > 1 || (budgets == 0 && !f.dry_run))
    throw Error(ErrorCode::usage,
                fmt::format("{} of --steps, --epochs and --seconds given: expected exactly one", budgets),
                "for example --steps 200");
  if (f.dry_run) return;
  if (f.out.empty())
    throw Error(ErrorCode::usage, "--out is missing: expected a directory for the result", "for example --out tuned");
  if (file_exists(f.out) && !is_directory(f.out))
    throw Error(ErrorCode::usage, "--out " + f.out + ": is a file: expected a directory", "choose another name");
  if (holds_finished_run(f.out) && !f.resume)
    throw Error(ErrorCode::usage, "--out " + f.out + ": already holds a finished run or a model",
                "choose another directory, or continue that run with --resume");
}

void check_full_training(Session& session, const TrainFlags& flags, double parameters) {
  const auto bytes = static_cast<int64_t>(std::min(parameters, 1e16) * sizeof(float));
  const int64_t limit = memory_limit(session);
  MemoryPlan least;
  least.weights = bytes;
  least.base = resident_bytes();
  if (!flags.dry_run) {
    least.grads = bytes;
    least.optimizer = moment_bytes(flags.loop.moments, static_cast<int64_t>(std::min(parameters, 1e16)));
  }
  // A plan is allowed to exceed --ram, but its weights must fit into the machine.
  if (least.total() > (flags.dry_run ? describe_machine().memory_bytes : limit)) over_limit(session, least);
}

void check_vocabulary(const Dataset& data, const ModelConfig& config, const std::string& path) {
  for (int64_t i = 0; i < data.size(); ++i) {
    const Dataset::Item item = data.item(i);
    const int32_t largest = *std::max_element(item.ids, item.ids + item.n);
    if (largest >= config.vocab_size)
      throw Error(ErrorCode::input,
                  fmt::format("{}: the tokenizer gives id {}: the model's vocabulary has {} entries", path, largest,
                              config.vocab_size),
                  "tokenizer and model do not belong together: name the right one with --tokenizer");
  }
}

int run_training(const CommonOptions& common, Session& session, TrainFlags& flags, const TrainJob& job) {
  TrainOptions& o = flags.loop;
  if (!job.eval && (o.patience > 0 || o.eval_every > 0))
    throw Error(ErrorCode::usage,
                o.patience > 0 ? "--patience: there is no data to evaluate on"
                               : "--eval-every: there is no data to evaluate on",
                job.verb == "tune" ? "add --eval-data F" : "add --eval-text F or --eval-fraction 0.1");
  if (o.patience > 0 && o.eval_every == 0)
    throw Error(ErrorCode::usage, "--patience: needs --eval-every", "for example --eval-every 50");
  const Plan plan = choose_plan(session, flags, job, !flags.dry_run);
  const int64_t trainable = job.adapter ? job.adapter->parameters() : job.model->parameters();
  if (flags.dry_run) return dry_run(common, session, flags, job, plan, trainable);
  o.recompute = plan.recompute;
  o.fingerprint = fingerprint(common, flags, job);

  if (job.adapter)
    job.adapter->enable_gradients();
  else
    enable_gradients(*job.model);
  auto ctx = session.make_context();
  Transformer transformer(*job.model, plan.shape.length + (job.adapter ? job.adapter->n_virtual() : 0));
  auto trainer_memory = std::make_unique<Trainer>(*ctx, transformer, job.adapter, *job.data, job.eval, o);
  Trainer& trainer = *trainer_memory;
  bool resumed = false;
  if (flags.resume) {
    resumed = trainer.resume();
    say(common,
        resumed ? fmt::format("continuing after step {}", trainer.step_count())
                : fmt::format("{} holds no checkpoint: starting from the beginning", join_path(flags.out, "state")));
  }
  if (!resumed)  // what an earlier run left would be mistaken for this one's
    for (const char* stale : {"log.jsonl", "state/checkpoint.safetensors"})
      std::remove(join_path(flags.out, stale).c_str());

  Progress progress(common, job.verb, o.seconds > 0 ? static_cast<int64_t>(o.seconds) : trainer.total_steps(),
                    o.seconds > 0 ? "s" : "steps");
  const TrainResult r = trainer.run([&](const StepReport& s) {
    progress.update(o.seconds > 0 ? static_cast<int64_t>(s.seconds) : s.step,
                    fmt::format("loss {:.4f}, {:.0f} tokens/s", s.loss, double(s.tokens) / std::max(1e-9, s.seconds)));
    if (common.verbose && (s.step % std::max<int64_t>(1, o.log_every) == 0 || s.eval_loss >= 0))
      say(common, fmt::format("step {}: loss {:.5f}, lr {:.3g}, gradient norm {:.4f}{}", s.step, s.loss, s.lr,
                              s.grad_norm, s.eval_loss >= 0 ? fmt::format(", eval loss {:.5f}", s.eval_loss) : ""));
  });
  // The result is written from copies of whole tensors: what the steps needed makes room for them first.
  trainer_memory.reset();
  ctx.reset();
  job.save();

  const double rate = double(r.tokens) / std::max(1e-9, r.seconds);
  if (common.json) {
    print_json({{"schema", "thimble." + job.verb + "/1"},
                {"method", job.method},
                {"steps", r.steps},
                {"tokens", r.tokens},
                {"first_loss", loss_json(r.first_loss)},
                {"last_loss", r.last_loss > 0 ? Json(r.last_loss) : Json(nullptr)},
                {"eval_loss_before", loss_json(r.eval_loss_before)},
                {"eval_loss", loss_json(r.eval_loss)},
                {"best_eval", loss_json(r.best_eval)},
                {"early_stopped", r.early_stopped},
                {"trainable", trainable},
                {"parameters", job.model->parameters()},
                {"data", data_json(*job.data)},
                {"recompute", recompute_name(plan.recompute)},
                {"resumed", resumed},
                {"seconds", r.seconds},
                {"tokens_s", rate},
                {"peak_rss_bytes", peak_rss_bytes()},
                {"memory", plan_json(plan.memory)},
                {"out", flags.out}});
    return 0;
  }
  std::string text =
      fmt::format("{} {}: {} steps, {} tokens in {:.1f} s ({:.0f} tokens/s); {} of {} parameters trained\n", job.verb,
                  job.method, r.steps, r.tokens, r.seconds, rate, trainable, job.model->parameters());
  text += fmt::format("loss {:.4f} -> {:.4f}", r.first_loss, r.last_loss);
  if (r.eval_loss >= 0)
    text += fmt::format("; eval loss {:.4f} -> {:.4f}{}", r.eval_loss_before, r.eval_loss,
                        r.early_stopped ? " (stopped early, best kept)" : "");
  text += fmt::format("\npeak memory {:.1f} MiB, predicted {:.1f} MiB\nwritten to {}\n",
                      double(peak_rss_bytes()) / (1 << 20), double(plan.memory.total()) / (1 << 20), flags.out);
  write_stdout(text);
  return 0;
}

}  // namespace thimble::cli
