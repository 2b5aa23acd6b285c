// The training loop: micro-batches, accumulation, clipping, AdamW or SGD, schedules, evaluation, early stopping, budgets in
// steps or seconds, and checkpoints from which a killed run continues bit for bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/adapter.h"
#include "models/transformer.h"
#include "train/dataset.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace thimble {

struct TrainOptions {
  int64_t steps = 0;       // optimizer steps; 0: decided by epochs or seconds
  double epochs = 0;       // passes over the examples
  double seconds = 0;      // wall clock, a budget that does not repeat bit for bit
  int64_t batch = 1, accum = 1;
  double lr = 1e-3;
  Schedule schedule;       // total is filled in by the trainer
  AdamwOptions adamw;
  Moments moments = Moments::f32;  // none: plain SGD
  uint64_t seed = 0;
  int64_t eval_every = 0, save_every = 0, log_every = 1;
  int64_t patience = 0;    // stop after this many evaluations without improvement, keep the best; 0: never
  int64_t eval_limit = 0;  // evaluate at most this many items; 0: all
  // Schedule wsd: asked before the decay begins; while it says no, the decay and the end of the run move gate_every steps
  // away, to max_steps at most. A function of the weights only, so a resumed run asks and hears the same.
  std::function<bool(int64_t step)> gate;
  int64_t gate_every = 0, max_steps = 0;
  Recompute recompute = Recompute::none;
  std::string out;         // log.jsonl and state/; empty: neither
  std::string fingerprint; // of model, data and options: a checkpoint of another run is refused
};

struct StepReport {
  int64_t step = 0, total = 0, tokens = 0;  // tokens: learned and not, since the start of the run
  double loss = 0, lr = 0, grad_norm = 0, seconds = 0;
  double eval_loss = -1;  // < 0: not evaluated
};

struct TrainResult {
  int64_t steps = 0, tokens = 0;
  double first_loss = 0, last_loss = 0, eval_loss_before = -1, eval_loss = -1, best_eval = -1, seconds = 0;
  bool early_stopped = false;
};

// Set by a signal handler: the running train() finishes its step, writes a checkpoint and throws Error(interrupted).
void request_stop();
void install_stop_handlers();  // SIGINT and SIGTERM call request_stop()

// Mean loss in nats per learned token over the first `limit` items (0: all), `batch` at a time, in the precision of the context.
// adapter: null, or whose virtual tokens and weights take part.
double mean_loss(Context& ctx, Transformer& transformer, Adapter* adapter, const Dataset& data, int64_t batch, int64_t limit = 0);

class Trainer {
 public:
  // adapter null: all weights of the transformer's model train (it has gradients); else the adapter's do.
  // eval may be null. Everything outlives the trainer.
  Trainer(Context& ctx, Transformer& transformer, Adapter* adapter, const Dataset& data, const Dataset* eval,
          const TrainOptions& options);

  // Continues from OUT/state/checkpoint.safetensors; false when there is none. Throws input when it is damaged (checksum) or
  // belongs to another run.
  bool resume();
  // Runs to the end of the budget. Throws input when loss or gradient stop being finite (after saving the state before
  // that step), interrupted after request_stop().
  TrainResult run(const std::function<void(const StepReport&)>& on_step = {});

  // One optimizer step; after the first few it allocates nothing on the heap.
  StepReport step();
  double evaluate(const Dataset& data) { return mean_loss(ctx_, transformer_, adapter_, data, options_.batch, options_.eval_limit); }
  void save_checkpoint();
  int64_t step_count() const { return optimizer_.steps(); }
  int64_t total_steps() const { return total_; }

 private:
  struct StatePiece;
  std::vector<StatePiece> state_pieces() const;
  void log(const StepReport& report);
  void snapshot_best();
  void restore_best();

  Context& ctx_;
  Transformer& transformer_;
  Adapter* adapter_;
  const Dataset& data_;
  const Dataset* eval_;
  TrainOptions options_;
  Adamw optimizer_;
  Tape tape_;
  std::vector<MicroBatch> group_;
  std::vector<double> row_loss_;
  Buffer best_;
  int64_t total_ = 0, tokens_ = 0, stale_ = 0;  // total_ moves with options_.schedule while a gate says no
  double best_eval_ = -1, elapsed_before_ = 0, started_ = 0, first_loss_ = -1, eval_before_ = -1;
};

}  // namespace thimble
