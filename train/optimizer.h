// AdamW over the trainable weights of a model, with global-norm clipping. The moments lie in one flat buffer, in the
// order of for_each_weight.
#pragma once

#include <cstdint>

#include "models/model.h"
#include "tensor/context.h"

namespace thimble {

struct AdamwOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double clip_norm = 0;         // 0: no clipping
  bool decay_vectors = true;    // false: no decay on norms and biases
};

class Adamw {
 public:
  // The model's weights must be trainable with gradients (load option trainable, enable_gradients).
  Adamw(Model& model, MemoryBudget* budget);

  // One step with learning rate lr. Returns the global 2-norm of the gradients before clipping, summed in double.
  // Gradients count as unwritten afterwards.
  double step(Context& ctx, const AdamwOptions& options, double lr);
  int64_t steps() const { return steps_; }

 private:
  Model& model_;
  int64_t steps_ = 0;
  Buffer moments_;  // m then v
  int64_t total_ = 0;
};

}  // namespace thimble
