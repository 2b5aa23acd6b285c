// What a run will need, before anything of it is allocated. The activation, gradient and scratch arenas are not estimated
// but rehearsed: the real step runs once over unbacked address space with kernels that do nothing, so the plan and the run
// cannot drift apart.
#pragma once

#include <cstdint>

#include "models/adapter.h"
#include "models/transformer.h"
#include "tensor/context.h"
#include "train/optimizer.h"

namespace thimble {

struct MemoryPlan {
  int64_t weights = 0, adapters = 0, grads = 0, optimizer = 0, activations = 0, kv = 0, base = 0;  // bytes
  int64_t total() const { return weights + adapters + grads + optimizer + activations + kv + base; }
};

struct TrainShape {
  int64_t sequences = 1;  // per micro-batch
  int64_t length = 1;     // rows of the longest, virtual tokens included
  int64_t rows = 0;       // rows of the heaviest micro-batch; 0: sequences * length
  bool full = false;      // all weights train; otherwise the adapter does
  Moments moments = Moments::f32;  // what the optimizer keeps
  int snapshots = 0;      // copies of the parameters kept for early stopping
};

// Resident memory of this process now.
int64_t resident_bytes();
// A table whose slots do nothing, with the block sizes of `like`.
KernelTable rehearsal_table(const KernelTable& like);
// model and adapter are used as they are loaded and left unchanged. `base` of the result is what is resident now, apart
// from the model's own copies of weights; mapped weights count in full.
MemoryPlan plan_memory(Model& model, Adapter* adapter, const KernelTable& kernels, int threads, Precision precision,
                       const TrainShape& shape, Recompute recompute);
// Floating-point operations of one optimizer step over `tokens` rows of sequences of `length`.
double step_flops(const ModelConfig& config, const TrainShape& shape, Recompute recompute, int64_t tokens);

}  // namespace thimble
