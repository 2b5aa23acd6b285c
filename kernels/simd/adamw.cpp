// One step of AdamW (Loshchilov, Hutter 2017) on n parameters with f32 moments, in place and in one pass:
//   g' = g grad_scale;  p *= 1 - lr wd;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'²
//   p -= step_size m / (sqrt(v) v_correction + eps)
// Same roundings as the reference, bit for bit: bound by memory, so fusing products would gain nothing.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Moments {
  vf p, m, v;
};

inline Moments step(const AdamwArgs& a, Moments s, vf g) {
  g = g * set1(a.grad_scale);
  s.m = set1(a.beta1) * s.m + set1(1.0f - a.beta1) * g;
  s.v = set1(a.beta2) * s.v + set1(1.0f - a.beta2) * g * g;
  const vf denominator = vsqrt(s.v) * set1(a.v_correction) + set1(a.eps);
  s.p = s.p * set1(1.0f - a.lr * a.weight_decay) - set1(a.step_size) * s.m / denominator;
  return s;
}

void adamw(const AdamwArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) {
    const Moments s = step(a, {load(a.p + i), load(a.m + i), load(a.v + i)}, load(a.g + i));
    store(a.p + i, s.p);
    store(a.m + i, s.m);
    store(a.v + i, s.v);
  }
  if (i == a.n) return;
  const int64_t n = a.n - i;
  const Moments s =
      step(a, {load_head(a.p + i, n), load_head(a.m + i, n), load_head(a.v + i, n)}, load_head(a.g + i, n));
  store_head(a.p + i, s.p, n);
  store_head(a.m + i, s.m, n);
  store_head(a.v + i, s.v, n);
}

}  // namespace

void init_adamw(KernelTable& t) { t.adamw = adamw; }

}  // namespace thimble::THIMBLE_ISA
