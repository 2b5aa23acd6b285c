// Activations, n elements each, forward and backward, plain and gated:
//   gelu_erf(x)  = x Phi(x)                                             (Hendrycks, Gimpel 2016)
//   gelu_tanh(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
//   relu(x)      = max(x, 0), derivative 0 at 0
//   silu(x)      = x / (1 + exp(-x))
// Backward recomputes f' from x; nothing is saved. Written with the logistic function instead of 1 + tanh, which would
// cancel for negative x.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Logistic {
  vf value, rest;  // 1 / (1 + exp(-x)) and 1 minus that, both with a small relative error
};

inline Logistic logistic(vf x) {
  const vf e = vexp(set1(0.0f) - x), s = set1(1.0f) / (e + set1(1.0f));
  return {s, vmin(set1(1e37f), e) * s};
}

// x times a factor that has gone to zero: 0 also for x = -inf.
inline vf times(vf x, vf factor) { return select_less(x, set1(-3e38f), set1(0.0f) * factor, x * factor); }

struct GeluErf {
  static vf f(vf x) { return times(x, normal(x).cdf); }
  static void both(vf x, vf* f, vf* df) {
    const Normal n = normal(x);
    const vf bounded = vmin(set1(1e4f), vmax(set1(-1e4f), x));
    *f = times(x, n.cdf);
    *df = madd(bounded, n.density, n.cdf);
  }
};

struct GeluTanh {
  // Beyond |x| = 20 the logistic is 0 or 1, and x³ cannot overflow.
  static vf bound(vf x) { return vmin(set1(20.0f), vmax(set1(-20.0f), x)); }
  static vf inner2(vf x) {  // 2 u
    const vf x2 = x * x;
    return x * madd(x2, set1(0.0713548162726f), set1(1.59576912161f));
  }
  static vf f(vf x) { return times(x, logistic(inner2(bound(x))).value); }
  static void both(vf x, vf* f, vf* df) {
    const vf b = bound(x);
    const Logistic s = logistic(inner2(b));
    const vf slope = madd(b * b, set1(0.214064448818f), set1(1.59576912161f));  // d(2 u)/dx
    *f = times(x, s.value);
    *df = s.value * madd(b * slope, s.rest, set1(1.0f));
  }
};

struct Relu {
  static vf f(vf x) { return vmax(set1(0.0f), x); }
  static void both(vf x, vf* f, vf* df) {
    *f = Relu::f(x);
    *df = select_less(set1(0.0f), x, set1(1.0f), set1(0.0f));
  }
};

struct Silu {
  static vf f(vf x) { return times(x, logistic(x).value); }
  static void both(vf x, vf* f, vf* df) {
    const Logistic s = logistic(x);
    const vf bounded = vmin(set1(200.0f), vmax(set1(-200.0f), x));
    *f = times(x, s.value);
    *df = s.value * madd(bounded, s.rest, set1(1.0f));
  }
};

template <class F>
void unary(const UnaryArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, F::f(load(a.x + i)));
  if (i < a.n) store_head(a.y + i, F::f(load_head(a.x + i, a.n - i)), a.n - i);
}

template <class F>
void unary_bwd(const UnaryBwdArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) {
    vf f, df;
    F::both(load(a.x + i), &f, &df);
    const vf dy = load(a.dy + i);
    store(a.dx + i, a.accumulate ? madd(df, dy, load(a.dx + i)) : df * dy);
  }
  if (i == a.n) return;
  const int64_t n = a.n - i;
  vf f, df;
  F::both(load_head(a.x + i, n), &f, &df);
  const vf dy = load_head(a.dy + i, n);
  store_head(a.dx + i, a.accumulate ? madd(df, dy, load_head(a.dx + i, n)) : df * dy, n);
}

template <class F>
void gated(const GatedArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, F::f(load(a.gate + i)) * load(a.up + i));
  if (i == a.n) return;
  const int64_t n = a.n - i;
  store_head(a.y + i, F::f(load_head(a.gate + i, n)) * load_head(a.up + i, n), n);
}

template <class F>
void gated_bwd(const GatedBwdArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) {
    vf f, df;
    F::both(load(a.gate + i), &f, &df);
    const vf up = load(a.up + i), dy = load(a.dy + i);
    store(a.d_gate + i, df * up * dy);
    store(a.d_up + i, f * dy);
  }
  if (i == a.n) return;
  const int64_t n = a.n - i;
  vf f, df;
  F::both(load_head(a.gate + i, n), &f, &df);
  const vf up = load_head(a.up + i, n), dy = load_head(a.dy + i, n);
  store_head(a.d_gate + i, df * up * dy, n);
  store_head(a.d_up + i, f * dy, n);
}

}  // namespace

void init_activation(KernelTable& t) {
  t.gelu_erf = unary<GeluErf>;
  t.gelu_tanh = unary<GeluTanh>;
  t.relu = unary<Relu>;
  t.silu = unary<Silu>;
  t.gelu_erf_bwd = unary_bwd<GeluErf>;
  t.gelu_tanh_bwd = unary_bwd<GeluTanh>;
  t.relu_bwd = unary_bwd<Relu>;
  t.silu_bwd = unary_bwd<Silu>;
  t.gelu_erf_gated = gated<GeluErf>;
  t.gelu_tanh_gated = gated<GeluTanh>;
  t.relu_gated = gated<Relu>;
  t.silu_gated = gated<Silu>;
  t.gelu_erf_gated_bwd = gated_bwd<GeluErf>;
  t.gelu_tanh_gated_bwd = gated_bwd<GeluTanh>;
  t.relu_gated_bwd = gated_bwd<Relu>;
  t.silu_gated_bwd = gated_bwd<Silu>;
}

}  // namespace thimble::THIMBLE_ISA
