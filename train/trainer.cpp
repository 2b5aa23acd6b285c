#include "train/trainer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "models/io/safetensors.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "train/memory_plan.h"

namespace thimble {
namespace {

std::atomic<bool> g_stop{false};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Exact through text: a double as a hexadecimal literal.
std::string exact(double x) { return fmt::format("{:a}", x); }

std::string checkpoint_path(const std::string& out) { return join_path(join_path(out, "state"), "checkpoint.safetensors"); }

}  // namespace

void request_stop() { g_stop.store(true); }

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = [](int) { request_stop(); };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

Trainer::Trainer(Context& ctx, Transformer& transformer, Adapter* adapter, const Dataset& data, const Dataset* eval,
                 const TrainOptions& options)
    : ctx_(ctx),
      transformer_(transformer),
      adapter_(adapter),
      data_(data),
      eval_(eval),
      options_(options),
      optimizer_(adapter ? adapter_parameters(*adapter) : model_parameters(transformer.model()), ctx.budget, options.moments) {
  const int64_t group = options_.batch * options_.accum;
  if (options_.steps > 0)
    total_ = options_.steps;
  else if (options_.epochs > 0)
    total_ = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(double(data_.size()) * options_.epochs / double(group))));
  else if (options_.seconds > 0)
    total_ = std::numeric_limits<int64_t>::max();
  else
    throw Error(ErrorCode::usage, "no budget is given", "give --steps, --epochs or --seconds");
  options_.schedule.total = total_;
  if (options_.schedule.kind == ScheduleKind::wsd && options_.seconds == 0 && options_.schedule.decay_from < 0)
    options_.schedule.decay_from = total_ - total_ * 2 / 5;
  THIMBLE_CHECK(!options_.gate || (options_.schedule.kind == ScheduleKind::wsd && options_.gate_every > 0));
  group_.resize(static_cast<size_t>(options_.accum));
  if (options_.patience > 0) best_ = Buffer(size_t(optimizer_.count()) * sizeof(float), ctx.budget, "best parameters");
  started_ = now();
  if (!options_.out.empty()) make_directories(join_path(options_.out, "state"));
}

StepReport Trainer::step() {
  const int64_t step = optimizer_.steps();
  const int64_t virtuals = adapter_ && adapter_->kind() == AdapterKind::prompt ? adapter_->n_virtual() : 0;
  int64_t learned = 0, rows = 0;
  double weight = 0;
  for (int64_t m = 0; m < options_.accum; ++m) {
    MicroBatch& batch = group_[size_t(m)];
    batch.clear();
    for (int64_t b = 0; b < options_.batch; ++b)
      batch.append(data_.draw(options_.seed, (step * options_.accum + m) * options_.batch + b), virtuals);
    learned += batch.learned;
    weight += batch.weight;
    rows += static_cast<int64_t>(batch.ids.size());
  }
  if (learned == 0) throw Error(ErrorCode::input, fmt::format("step {}: none of its rows has anything to learn", step + 1), "check the completions of the data");

  StepReport report;
  report.step = step + 1;
  report.total = total_;
  ctx_.training = true;
  ctx_.seed = options_.seed;
  for (int64_t m = 0; m < options_.accum; ++m) {
    MicroBatch& rows_of = group_[size_t(m)];
    if (rows_of.learned == 0) continue;
    const ArenaScope scope(ctx_.saved);
    ctx_.step = static_cast<uint64_t>(step * options_.accum + m);
    ctx_.tape = &tape_;
    const Batch batch = rows_of.batch(adapter_);
    const Var hidden = transformer_.forward(ctx_, batch, options_.recompute);
    for (float& w : rows_of.weights) w = static_cast<float>(double(w) / weight);
    report.loss += transformer_.loss(ctx_, hidden, rows_of.labels.data(), weight, nullptr,
                                     rows_of.weights.empty() ? nullptr : rows_of.weights.data());
    backward(ctx_);
    ctx_.tape = nullptr;
  }
  ctx_.training = false;
  report.grad_norm = optimizer_.gradient_norm(ctx_);
  if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm)) {
    for (const Parameter& p : optimizer_.parameters()) p.weight->grad_written = false;
    throw Error(ErrorCode::input,
                fmt::format("training diverged at step {}: loss {}, gradient norm {}", step + 1, report.loss, report.grad_norm),
                "lower --lr, raise --warmup or lower --clip; the last checkpoint holds the state before this step");
  }
  const double elapsed = elapsed_before_ + now() - started_;
  const double progress = options_.steps == 0 && options_.epochs == 0 ? elapsed / options_.seconds : -1;
  report.lr = options_.lr * options_.schedule.factor(step, progress);
  if (options_.moments == Moments::none)
    optimizer_.step_sgd(ctx_, options_.adamw, report.lr, report.grad_norm);
  else
    optimizer_.step(ctx_, options_.adamw, report.lr, report.grad_norm);
  tokens_ += rows;
  report.tokens = tokens_;
  report.seconds = elapsed_before_ + now() - started_;
  if (first_loss_ < 0) first_loss_ = report.loss;
  return report;
}

double mean_loss(Context& ctx, Transformer& transformer, Adapter* adapter, const Dataset& data, int64_t batch, int64_t limit) {
  const int64_t virtuals = adapter && adapter->kind() == AdapterKind::prompt ? adapter->n_virtual() : 0;
  const int64_t items = limit > 0 ? std::min(limit, data.size()) : data.size();
  double sum = 0, weight = 0;
  MicroBatch rows;
  for (int64_t i = 0; i < items; i += batch) {
    rows.clear();
    for (int64_t j = i; j < std::min(i + batch, items); ++j) rows.append(data.item(j), virtuals);
    if (rows.learned == 0) continue;
    const ArenaScope scope(ctx.saved);
    const Var hidden = transformer.forward(ctx, rows.batch(adapter));
    sum += transformer.loss(ctx, hidden, rows.labels.data(), 1.0, nullptr, rows.weights.empty() ? nullptr : rows.weights.data());
    weight += rows.weight;
  }
  return weight > 0 ? sum / weight : 0;
}

void Trainer::snapshot_best() {
  if (!best_.data()) return;
  float* at = best_.f32();
  for (const Parameter& p : optimizer_.parameters()) {
    std::memcpy(at, p.weight->data, size_t(p.weight->numel()) * sizeof(float));
    at += p.weight->numel();
  }
}

void Trainer::restore_best() {
  const float* at = best_.f32();
  for (const Parameter& p : optimizer_.parameters()) {
    std::memcpy(const_cast<void*>(p.weight->data), at, size_t(p.weight->numel()) * sizeof(float));
    at += p.weight->numel();
  }
}

TrainResult Trainer::run(const std::function<void(const StepReport&)>& on_step) {
  TrainResult result;
  started_ = now();
  if (eval_ && eval_before_ < 0) eval_before_ = evaluate(*eval_);
  bool saved = false;
  while (optimizer_.steps() < total_) {
    if (options_.seconds > 0 && elapsed_before_ + now() - started_ >= options_.seconds) break;
    Schedule& schedule = options_.schedule;
    if (options_.gate && optimizer_.steps() == schedule.decay_from && total_ + options_.gate_every <= options_.max_steps &&
        !options_.gate(optimizer_.steps())) {
      schedule.decay_from += options_.gate_every;
      schedule.total = total_ += options_.gate_every;
    }
    StepReport report;
    try {
      report = step();
    } catch (const Error&) {
      // A diverging run leaves the last good checkpoint alone; without one, the state before this step is better than none.
      if (!options_.out.empty() && !file_exists(checkpoint_path(options_.out))) save_checkpoint();
      throw;
    }
    result.last_loss = report.loss;
    const bool last = optimizer_.steps() == total_;
    if (eval_ && ((options_.eval_every > 0 && report.step % options_.eval_every == 0) || last)) {
      report.eval_loss = evaluate(*eval_);
      result.eval_loss = report.eval_loss;
      if (best_eval_ < 0 || report.eval_loss < best_eval_) {
        best_eval_ = report.eval_loss;
        stale_ = 0;
        snapshot_best();
      } else {
        ++stale_;
      }
    }
    if (report.eval_loss >= 0 || last || report.step % std::max<int64_t>(1, options_.log_every) == 0) log(report);
    if (on_step) on_step(report);
    saved = false;
    if (options_.patience > 0 && stale_ >= options_.patience) {
      result.early_stopped = true;
      break;
    }
    if (options_.save_every > 0 && report.step % options_.save_every == 0) {
      save_checkpoint();
      saved = true;
    }
    if (g_stop.load()) {
      if (!saved) save_checkpoint();
      throw Error(ErrorCode::interrupted, fmt::format("interrupted after step {} of {}; a checkpoint was written", report.step, total_),
                  "run the same command with --resume to continue");
    }
  }
  if (!saved) save_checkpoint();
  if (eval_ && result.eval_loss < 0) result.eval_loss = evaluate(*eval_);
  if (best_.data() && best_eval_ >= 0) {
    restore_best();
    result.eval_loss = best_eval_;
  }
  result.steps = optimizer_.steps();
  result.tokens = tokens_;
  result.first_loss = first_loss_;
  result.eval_loss_before = eval_before_;
  result.best_eval = best_eval_;
  result.seconds = elapsed_before_ + now() - started_;
  return result;
}

void Trainer::log(const StepReport& r) {
  if (options_.out.empty()) return;
  const std::string path = join_path(options_.out, "log.jsonl");
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) throw Error(ErrorCode::input, path + ": cannot open: " + std::strerror(errno), "check the permissions of the folder");
  const std::string line = fmt::format(
      "{{\"step\": {}, \"tokens\": {}, \"loss\": {:.9g}, \"lr\": {:.9g}, \"grad_norm\": {:.9g}, \"eval_loss\": {}, \"seconds\": {:.3f}, \"rss\": {}}}\n",
      r.step, r.tokens, r.loss, r.lr, r.grad_norm, r.eval_loss >= 0 ? fmt::format("{:.9g}", r.eval_loss) : "null", r.seconds, resident_bytes());
  try {
    write_fully(fd, line.data(), line.size(), path);
  } catch (...) {
    ::close(fd);
    throw;
  }
  ::close(fd);
}

// A tensor of the checkpoint and where it lives.
struct Trainer::StatePiece {
  std::string name;
  void* data;
  int64_t n;
  SafetensorsDtype dtype = SafetensorsDtype::f32;
  size_t bytes() const { return size_t(n) * size_t(safetensors_dtype_bits(dtype)) / 8; }
};

// Everything that step n + 1 depends on. The data cursor and the random numbers are functions of (seed, n).
std::vector<Trainer::StatePiece> Trainer::state_pieces() const {
  std::vector<StatePiece> pieces;
  for (const Parameter& p : optimizer_.parameters())
    pieces.push_back({"p." + p.name, const_cast<void*>(p.weight->data), p.weight->numel()});
  if (optimizer_.moments() == Moments::f32) {
    pieces.push_back({"m", optimizer_.m(), optimizer_.count()});
    pieces.push_back({"v", optimizer_.v(), optimizer_.count()});
  }
  if (optimizer_.moments() == Moments::q8) {
    pieces.push_back({"m", optimizer_.m_codes(), optimizer_.count(), SafetensorsDtype::i8});
    pieces.push_back({"v", optimizer_.v_codes(), optimizer_.count(), SafetensorsDtype::u8});
    pieces.push_back({"m_scale", optimizer_.m_scale(), optimizer_.blocks()});
    pieces.push_back({"v_scale", optimizer_.v_scale(), optimizer_.blocks()});
  }
  if (best_.data()) pieces.push_back({"best", best_.f32(), optimizer_.count()});
  return pieces;
}

void Trainer::save_checkpoint() {
  if (options_.out.empty()) return;
  const std::vector<StatePiece> pieces = state_pieces();
  Sha256 sum;
  for (const StatePiece& p : pieces) {
    sum.update(p.name);
    sum.update(p.data, p.bytes());
  }
  SafetensorsWriter writer(checkpoint_path(options_.out));
  writer.set_metadata("format", "thimble.train_state/1");
  writer.set_metadata("fingerprint", options_.fingerprint);
  writer.set_metadata("sha256", sum.hex());
  writer.set_metadata("step", std::to_string(optimizer_.steps()));
  writer.set_metadata("tokens", std::to_string(tokens_));
  writer.set_metadata("total", std::to_string(total_));
  writer.set_metadata("decay_from", std::to_string(options_.schedule.decay_from));
  writer.set_metadata("stale", std::to_string(stale_));
  writer.set_metadata("best_eval", exact(best_eval_));
  writer.set_metadata("first_loss", exact(first_loss_));
  writer.set_metadata("eval_before", exact(eval_before_));
  writer.set_metadata("seconds", exact(elapsed_before_ + now() - started_));
  for (const StatePiece& p : pieces) writer.declare(p.name, p.dtype, {p.n});
  for (const StatePiece& p : pieces) writer.write(p.name, p.data, p.bytes());
  writer.finish();
}

bool Trainer::resume() {
  const std::string path = checkpoint_path(options_.out);
  if (!file_exists(path)) return false;
  const SafetensorsFile file(path);
  const auto field = [&](const std::string& key) {
    const auto it = file.metadata().find(key);
    if (it == file.metadata().end())
      throw Error(ErrorCode::input, path + ": field \"" + key + "\" is missing: expected a checkpoint of thimble", "delete the state folder to start again");
    return it->second;
  };
  if (field("format") != "thimble.train_state/1") throw Error(ErrorCode::input, path + ": field \"format\": is not a checkpoint of this version", "delete the state folder to start again");
  if (field("fingerprint") != options_.fingerprint)
    throw Error(ErrorCode::input, path + ": field \"fingerprint\": the checkpoint belongs to a run with another model, data or options",
                "resume with the command that started the run, or choose another --out");
  Sha256 sum;
  for (const StatePiece& p : state_pieces()) {
    const TensorInfo* info = file.find(p.name);
    if (!info || info->elements() != p.n || info->dtype != p.dtype)
      throw Error(ErrorCode::input, path + ": tensor " + p.name + " is missing or has the wrong size", "delete the state folder to start again");
    std::memcpy(p.data, file.data(p.name), p.bytes());
    sum.update(p.name);
    sum.update(p.data, p.bytes());
  }
  if (sum.hex() != field("sha256")) throw Error(ErrorCode::input, path + ": field \"sha256\": the checkpoint is damaged", "delete the state folder to start again");
  try {
    optimizer_.set_steps(std::stoll(field("step")));
    tokens_ = std::stoll(field("tokens"));
    stale_ = std::stoll(field("stale"));
    if (options_.gate) {
      options_.schedule.total = total_ = std::stoll(field("total"));
      options_.schedule.decay_from = std::stoll(field("decay_from"));
    }
    best_eval_ = std::stod(field("best_eval"));
    first_loss_ = std::stod(field("first_loss"));
    eval_before_ = std::stod(field("eval_before"));
    elapsed_before_ = std::stod(field("seconds"));
  } catch (const std::logic_error&) {
    throw Error(ErrorCode::input, path + ": a number of the metadata is damaged", "delete the state folder to start again");
  }
  started_ = now();
  // Lines of the log that lie behind the checkpoint will be made again; a killed run may have left half a line.
  const std::string log_path = join_path(options_.out, "log.jsonl");
  if (file_exists(log_path)) {
    const std::string text = read_file(log_path);
    std::string kept;
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      if (end == std::string::npos) break;
      const std::string line = text.substr(at, end + 1 - at);
      at = end + 1;
      const size_t colon = line.find("\"step\": ");
      if (colon != std::string::npos && std::strtoll(line.c_str() + colon + 8, nullptr, 10) <= optimizer_.steps()) kept += line;
    }
    write_file(log_path, kept);
  }
  return true;
}

}  // namespace thimble
