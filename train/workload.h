// What bench and profile time: prefill, decode or training steps of a loaded model over random tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/adapter.h"
#include "models/generator.h"
#include "models/transformer.h"
#include "train/trainer.h"

namespace thimble {

enum class WorkKind : uint8_t { prefill, decode, train };

struct WorkOptions {
  WorkKind kind = WorkKind::prefill;
  int64_t prompt_tokens = 256;  // of prefill, in front of decode, and of a training sequence
  int64_t tokens = 32;          // decode: steps behind one prompt
  bool full = false;            // train: all weights, which are f32 with gradients; else `adapter`
  AdapterOptions adapter;
  int64_t batch = 1;            // train: sequences per step
  Recompute recompute = Recompute::none;
  Moments moments = Moments::f32;
  uint64_t seed = 0;
};

class Workload {
 public:
  // Throws usage when the model has no room for the tokens, and what the transformer, adapter and trainer throw.
  Workload(Model& model, Context& ctx, const WorkOptions& options);

  // What precedes a run and is not part of it: an empty cache; for decode the cached prompt alone whenever the steps
  // behind it are used up. Costs something the first time only.
  void prepare();
  // Prefill of the prompt, one decoded token, or one optimizer step.
  void run();
  int64_t tokens_per_run() const { 
    if (options_.kind == WorkKind::decode) return 1;
    return options_.prompt_tokens * (options_.kind == WorkKind::train ? options_.batch : 1);
  }

 private:
  Context& ctx_;
  WorkOptions options_;
  Transformer transformer_;
  std::vector<int32_t> ids_;
  std::unique_ptr<Generator> generator_;
  int64_t at_ = 0;  // tokens fed
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<Trainer> trainer_;
};

}  // namespace thimble
