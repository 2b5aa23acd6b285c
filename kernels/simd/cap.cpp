// Values held within bounds: softcap y = cap tanh(x / cap) (Gemma 2) and clip y = min(max(x, -cap), cap) (OLMo), and their
// gradients. softcap's is taken from y, so that it can work in place; clip's from x, and passes at the bounds themselves.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Softcap {
  static vf f(vf x, vf cap) { return cap * vtanh(x / cap); }
  static vf df(vf y, vf dy, vf cap) {
    const vf t = y / cap;
    return (set1(1.0f) - t * t) * dy;
  }
};

struct Clip {
  static vf f(vf x, vf cap) { return vmin(cap, vmax(set1(0.0f) - cap, x)); }
  static vf df(vf x, vf dy, vf cap) { return select_less(cap, vabs(x), set1(0.0f), dy); }
};

template <class F>
void forward(const CapArgs& a) noexcept {
  const vf cap = set1(a.cap);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, F::f(load(a.x + i), cap));
  if (i < a.n) store_head(a.y + i, F::f(load_head(a.x + i, a.n - i), cap), a.n - i);
}

template <class F>
void backward(const CapBwdArgs& a) noexcept {
  const vf cap = set1(a.cap);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) {
    const vf dx = F::df(load(a.v + i), load(a.dy + i), cap);
    store(a.dx + i, a.accumulate ? load(a.dx + i) + dx : dx);
  }
  if (i == a.n) return;
  const int64_t n = a.n - i;
  const vf dx = F::df(load_head(a.v + i, n), load_head(a.dy + i, n), cap);
  store_head(a.dx + i, a.accumulate ? load_head(a.dx + i, n) + dx : dx, n);
}

}  // namespace

void init_cap(KernelTable& t) {
  t.softcap = forward<Softcap>;
  t.softcap_bwd = backward<Softcap>;
  t.clip = forward<Clip>;
  t.clip_bwd = backward<Clip>;
}

}  // namespace thimble::THIMBLE_ISA
