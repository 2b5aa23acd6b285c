#include "train/optimizer.h"

#include <cmath>
#include <cstring>

#include "tensor/error.h"
#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {

std::vector<Parameter> model_parameters(Model& model) {
  std::vector<Parameter> list;
  for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
    if (!w.grad) return;
    list.push_back({layer < 0 ? role_name(role) : "layers." + weight_name(role, layer), &w,
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

namespace {

int64_t blocks_of(int64_t n) { return (n + kAdamwBlock - 1) / kAdamwBlock; }

}  // namespace

int64_t moment_bytes(Moments moments, int64_t n) {
  if (moments == Moments::none) return 0;
  return moments == Moments::f32 ? 2 * n * int64_t{sizeof(float)} : 2 * n + 2 * blocks_of(n) * int64_t{sizeof(float)};
}

Adamw::Adamw(std::vector<Parameter> parameters, MemoryBudget* budget, Moments moments)
    : parameters_(std::move(parameters)), kind_(moments) {
  int64_t bytes = 0;
  for (const Parameter& p : parameters_) {
    total_ += p.weight->numel();
    blocks_ += blocks_of(p.weight->numel());
    bytes += moment_bytes(moments, p.weight->numel());
  }
  if (bytes > 0) moments_ = Buffer(size_t(bytes), budget, "optimizer moments");
}

double Adamw::gradient_norm(Context& ctx) const {
  THIMBLE_ZONE(optimizer);
  double sum = 0;
  for (const Parameter& parameter : parameters_) {
    const Weight& w = *parameter.weight;
    if (!w.grad_written) continue;
    // Partial sums per chunk, added in order: the norm does not depend on the threads.
    const ArenaScope scope(ctx.scratch);
    count_elements(w.numel(), 2, 4);
    const int64_t chunks = (w.numel() + kElementChunk - 1) / kElementChunk;
    auto* partial = static_cast<double*>(ctx.scratch.allocate(size_t(chunks) * sizeof(double), "gradient norm"));
    for_elements(ctx, w.numel(), [&](int64_t i, int64_t n) {
      ctx.kernels.sum_squares({n, w.grad + i, partial + i / kElementChunk});
    });
    for (int64_t c = 0; c < chunks; ++c) sum += partial[c];
  }
  return std::sqrt(sum);
}

namespace {

float clip_factor(const AdamwOptions& o, double norm) {
  return static_cast<float>(o.clip_norm > 0 ? std::min(1.0, o.clip_norm / (norm + 1e-6)) : 1.0);
}

float* values_of(Weight& w) { return const_cast<float*>(w.f32()); }

void finish_gradient(Weight& w) {
  if (!w.grad_written) std::memset(w.grad, 0, size_t(w.numel()) * sizeof(float));
  w.grad_written = false;
}

}  // namespace

void Adamw::step(Context& ctx, const AdamwOptions& o, double lr, double norm) {
  THIMBLE_ZONE(optimizer);
  THIMBLE_CHECK(kind_ != Moments::none);
  static_assert(kElementChunk % kAdamwBlock == 0);
  count_elements(total_, 12, kind_ == Moments::q8 ? 16 : 28);
  ++steps_;
  AdamwArgs args{};
  args.grad_scale = clip_factor(o, norm);
  args.lr = static_cast<float>(lr);
  args.beta1 = static_cast<float>(o.beta1);
  args.beta2 = static_cast<float>(o.beta2);
  args.eps = static_cast<float>(o.eps);
  args.step_size = static_cast<float>(lr / (1 - std::pow(o.beta1, double(steps_))));
  args.v_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, double(steps_))));
  // Rounding draws from a hash of step and parameter: the same for any threads, and after a resume.
  const auto seed = static_cast<uint32_t>(uint64_t(steps_) * 0x9E3779B97F4A7C15u >> 32);
  int64_t offset = 0, block = 0;
  for (const Parameter& parameter : parameters_) {
    Weight& w = *parameter.weight;
    finish_gradient(w);
    const float decay = o.decay_vectors || !parameter.vector ? static_cast<float>(o.weight_decay) : 0;
    for_elements(ctx, w.numel(), [&](int64_t i, int64_t n) {
      float* p = values_of(w) + i;
      const float* g = w.grad + i;
      const int64_t at = offset + i, b = block + i / kAdamwBlock;
      if (kind_ == Moments::q8)
        ctx.kernels.adamw_q8({n, p, g, m_codes() + at, v_codes() + at, m_scale() + b, v_scale() + b, seed + static_cast<uint32_t>(at),
                              args.grad_scale, args.lr, args.beta1, args.beta2, args.eps, decay, args.step_size, args.v_correction});
      else
        ctx.kernels.adamw({n, p, g, m() + at, v() + at, args.grad_scale, args.lr, args.beta1, args.beta2, args.eps, decay,
                           args.step_size, args.v_correction});
    });
    offset += w.numel();
    block += blocks_of(w.numel());
  }
}

void Adamw::step_sgd(Context& ctx, const AdamwOptions& o, double lr, double norm) {
  THIMBLE_ZONE(optimizer);
  count_elements(total_, 2, 12);
  ++steps_;
  const float rate = static_cast<float>(-lr) * clip_factor(o, norm);
  for (const Parameter& parameter : parameters_) {
    Weight& w = *parameter.weight;
    finish_gradient(w);
    const float keep = o.decay_vectors || !parameter.vector ? static_cast<float>(1 - lr * o.weight_decay) : 1.0f;
    for_elements(ctx, w.numel(), [&](int64_t i, int64_t n) {
      float* p = values_of(w) + i;
      if (keep != 1.0f) ctx.kernels.scale({n, keep, p, p});
      ctx.kernels.axpy({n, rate, w.grad + i, p});
    });
  }
}

}  // namespace thimble
