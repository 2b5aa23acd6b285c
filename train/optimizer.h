// AdamW over a list of parameters, with global-norm clipping. The moments lie in one flat buffer, in the list's order, as
// f32 or as 8-bit codes with a scale per 256 entries of a tensor (AdamwQ8Args; after Dettmers et al., arXiv 2110.02861).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/adapter.h"
#include "models/model.h"
#include "tensor/context.h"

namespace thimble {

// A trainable tensor: f32 rows with a gradient.
struct Parameter {
  std::string name;
  Weight* weight = nullptr;
  bool vector = false;  // a norm or a bias
};
// Every weight of a model that has a gradient, in the order of for_each_weight; every tensor of an adapter.
std::vector<Parameter> model_parameters(Model& model);
std::vector<Parameter> adapter_parameters(Adapter& adapter);

struct AdamwOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double clip_norm = 0;         // 0: no clipping
  bool decay_vectors = true;    // false: no decay on norms and biases
};

// What is kept per parameter: nothing (plain SGD only), two floats, or two bytes.
enum class Moments : uint8_t { none, f32, q8 };
// Bytes for a tensor of n parameters: 8 n, or 2 n + 8 ceil(n / 256).
int64_t moment_bytes(Moments moments, int64_t n);

class Adamw {
 public:
  Adamw(std::vector<Parameter> parameters, MemoryBudget* budget, Moments moments = Moments::f32);

  // Global 2-norm of the gradients, summed in double. Gradients that nothing wrote count as zero.
  double gradient_norm(Context& ctx) const;

  // One AdamW step with learning rate lr, given gradient_norm(). Gradients count as unwritten afterwards.
  void step(Context& ctx, const AdamwOptions& options, double lr, double norm);
  // p = p (1 - lr wd) - lr clipped(g)
  void step_sgd(Context& ctx, const AdamwOptions& options, double lr, double norm);
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  Moments moments() const { return kind_; }
  // First and second moments of all parameters one after the other: [count()].
  float* m() const { return moments_.f32(); }
  float* v() const { return moments_.f32() + total_; }
  int64_t count() const { return total_; }
  // q8: scales [blocks()], the blocks of a tensor after those of the one before it; codes [count()].
  float* m_scale() const { return moments_.f32(); }
  float* v_scale() const { return moments_.f32() + blocks_; }
  int8_t* m_codes() const { return reinterpret_cast<int8_t*>(moments_.f32() + 2 * blocks_); }
  uint8_t* v_codes() const { return reinterpret_cast<uint8_t*>(m_codes() + total_); }
  int64_t blocks() const { return blocks_; }

 private:
  std::vector<Parameter> parameters_;
  int64_t steps_ = 0;
  Moments kind_;
  Buffer moments_;  // f32: m then v
  int64_t total_ = 0, blocks_ = 0;
};

}  // namespace thimble
