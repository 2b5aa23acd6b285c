// Values held within bounds: softcap y = cap tanh(x / cap) (Gemma 2) and clip y = min(max(x, -cap), cap) (OLMo), and their
// gradients. softcap's is taken from y, so that it can work in place; clip's from x, and passes at the bounds themselves.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void softcap(const CapArgs& a) noexcept {
  const double cap = a.cap;
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = static_cast<float>(cap * std::tanh(a.x[i] / cap));
}

void softcap_bwd(const CapBwdArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) {
    const double t = static_cast<double>(a.v[i]) / a.cap, dx = (1 - t * t) * a.dy[i];
    a.dx[i] = static_cast<float>(a.accumulate ? a.dx[i] + dx : dx);
  }
}

void clip(const CapArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = a.x[i] > a.cap ? a.cap : a.x[i] < -a.cap ? -a.cap : a.x[i];
}

void clip_bwd(const CapBwdArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) {
    const float dx = std::fabs(a.v[i]) <= a.cap ? a.dy[i] : 0.0f;
    a.dx[i] = a.accumulate ? a.dx[i] + dx : dx;
  }
}

}  // namespace

void init_cap(KernelTable& t) {
  t.softcap = softcap;
  t.softcap_bwd = softcap_bwd;
  t.clip = clip;
  t.clip_bwd = clip_bwd;
}

}  // namespace thimble::ref
