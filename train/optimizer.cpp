#include "train/optimizer.h"

#include <cmath>
#include <cstring>

#include "tensor/error.h"
#include "tensor/ops_internal.h"
#include "tensor/trace.h"

namespace thimble {

std::vector<Parameter> model_parameters(Model& model) {
  std::vector<Parameter> list;
  for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
    if (!w.grad) return;
    list.push_back({layer < 0 ? role_name(role) : "layers." + std::to_string(layer) + "." + role_name(role), &w,
                    role_shape(model.config, role).vector});
  });
  return list;
}

std::vector<Parameter> adapter_parameters(Adapter& adapter) {
  std::vector<Parameter> list;
  adapter.for_each_parameter([&](const std::string& name, Weight& w) {
    if (w.grad) list.push_back({name, &w, w.rows == 1});
  });
  return list;
}

Adamw::Adamw(std::vector<Parameter> parameters, MemoryBudget* budget) : parameters_(std::move(parameters)) {
  for (const Parameter& p : parameters_) total_ += p.weight->numel();
  moments_ = Buffer(size_t(total_) * 2 * sizeof(float), budget, "optimizer moments");
}

double Adamw::step(Context& ctx, const AdamwOptions& o, double lr) {
  THIMBLE_ZONE(optimizer);
  double sum = 0;
  const ArenaScope scope(ctx.scratch);
  for (const Parameter& parameter : parameters_) {
    const Weight& w = *parameter.weight;
    if (!w.grad_written) continue;  // no row of this step reached it

    // Partial sums per chunk, added in order: the norm does not depend on the threads.
    const ArenaScope inner(ctx.scratch);
    const int64_t chunks = (w.numel() + kElementChunk - 1) / kElementChunk;
    auto* partial = static_cast<double*>(ctx.scratch.allocate(size_t(chunks) * sizeof(double), "gradient norm"));
    for_elements(ctx, w.numel(), [&](int64_t i, int64_t n) {
      ctx.kernels.sum_squares({n, w.grad + i, partial + i / kElementChunk});
    });
    for (int64_t c = 0; c < chunks; ++c) sum += partial[c];
  }
  const double norm = std::sqrt(sum);
  ++steps_;
  const double clip = o.clip_norm > 0 ? std::min(1.0, o.clip_norm / (norm + 1e-6)) : 1.0;
  AdamwArgs args{};
  args.grad_scale = static_cast<float>(clip);
  args.lr = static_cast<float>(lr);
  args.beta1 = static_cast<float>(o.beta1);
  args.beta2 = static_cast<float>(o.beta2);
  args.eps = static_cast<float>(o.eps);
  args.step_size = static_cast<float>(lr / (1 - std::pow(o.beta1, double(steps_))));
  args.v_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, double(steps_))));
  int64_t offset = 0;
  for (const Parameter& parameter : parameters_) {
    Weight& w = *parameter.weight;
    if (!w.grad_written) std::memset(w.grad, 0, size_t(w.numel()) * sizeof(float));
    const bool decay = o.decay_vectors || !parameter.vector;
    float* p = const_cast<float*>(w.f32());
    float *m = moments_.f32() + offset, *v = moments_.f32() + total_ + offset;
    for_elements(ctx, w.numel(), [&](int64_t i, int64_t n) {
      AdamwArgs a = args;
      a.weight_decay = decay ? static_cast<float>(o.weight_decay) : 0;
      a.n = n;
      a.p = p + i;
      a.g = w.grad + i;
      a.m = m + i;
      a.v = v + i;
      ctx.kernels.adamw(a);
    });
    offset += w.numel();
    w.grad_written = false;
  }
  return norm;
}

}  // namespace thimble
