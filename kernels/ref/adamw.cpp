// One step of AdamW (Loshchilov, Hutter 2017) on n parameters with f32 moments, in place:
//   g' = g grad_scale;  p *= 1 - lr wd;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'²
//   p -= step_size m / (sqrt(v) v_correction + eps)
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void adamw(const AdamwArgs& a) noexcept {
  const float keep = 1.0f - a.lr * a.weight_decay;
  for (int64_t i = 0; i < a.n; ++i) {
    const float g = a.g[i] * a.grad_scale;
    a.m[i] = a.beta1 * a.m[i] + (1.0f - a.beta1) * g;
    a.v[i] = a.beta2 * a.v[i] + (1.0f - a.beta2) * g * g;
    const float denominator = std::sqrt(a.v[i]) * a.v_correction + a.eps;
    a.p[i] = a.p[i] * keep - a.step_size * a.m[i] / denominator;
  }
}

}  // namespace

void init_adamw(KernelTable& t) { t.adamw = adamw; }

}  // namespace thimble::ref
