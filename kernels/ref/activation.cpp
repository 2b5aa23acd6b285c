// Activations, n elements each, forward and backward, plain and gated:
//   gelu_erf(x)  = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2        (Hendrycks, Gimpel 2016)
//   gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
//   relu(x)      = max(x, 0), derivative 0 at 0
//   silu(x)      = x / (1 + exp(-x))
// Backward recomputes f' from x; nothing is saved. Evaluated in double and rounded once.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

struct Value {
  double f, df;
};

Value gelu_erf(double x) {
  const double phi = 0.5 * std::erfc(-x * 0.70710678118654752440);
  const double density = 0.39894228040143267794 * std::exp(-0.5 * x * x);
  if (std::isinf(x)) return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
  return {x * phi, phi + x * density};
}

Value gelu_tanh(double x) {
  if (std::isinf(x)) return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
  constexpr double a = 0.79788456080286535588, b = 0.044715;
  const double u = a * (x + b * x * x * x);
  const double p = 1 / (1 + std::exp(-2 * u)), q = 1 / (1 + std::exp(2 * u));  // (1 + tanh u) / 2 and (1 - tanh u) / 2
  return {x * p, p + 2 * x * p * q * a * (1 + 3 * b * x * x)};
}

Value relu(double x) { return {x > 0 || std::isnan(x) ? x : 0, x > 0 ? 1.0 : 0.0}; }

Value silu(double x) {
  if (std::isinf(x)) return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
  const double s = 1 / (1 + std::exp(-x));
  return {x * s, s * (1 + x * (1 - s))};
}

using Function = Value (*)(double);

template <Function F>
void unary(const UnaryArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = static_cast<float>(F(a.x[i]).f);
}

template <Function F>
void unary_bwd(const UnaryBwdArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) {
    const double dx = F(a.x[i]).df * a.dy[i];
    a.dx[i] = static_cast<float>(a.accumulate ? a.dx[i] + dx : dx);
  }
}

template <Function F>
void gated(const GatedArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = static_cast<float>(F(a.gate[i]).f * a.up[i]);
}

template <Function F>
void gated_bwd(const GatedBwdArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) {
    const Value value = F(a.gate[i]);
    const double up = a.up[i], dy = a.dy[i];
    a.d_gate[i] = static_cast<float>(value.df * up * dy);
    a.d_up[i] = static_cast<float>(value.f * dy);
  }
}

}  // namespace

void init_activation(KernelTable& t) {
  t.gelu_erf = unary<gelu_erf>;
  t.gelu_tanh = unary<gelu_tanh>;
  t.relu = unary<relu>;
  t.silu = unary<silu>;
  t.gelu_erf_bwd = unary_bwd<gelu_erf>;
  t.gelu_tanh_bwd = unary_bwd<gelu_tanh>;
  t.relu_bwd = unary_bwd<relu>;
  t.silu_bwd = unary_bwd<silu>;
  t.gelu_erf_gated = gated<gelu_erf>;
  t.gelu_tanh_gated = gated<gelu_tanh>;
  t.relu_gated = gated<relu>;
  t.silu_gated = gated<silu>;
  t.gelu_erf_gated_bwd = gated_bwd<gelu_erf>;
  t.gelu_tanh_gated_bwd = gated_bwd<gelu_tanh>;
  t.relu_gated_bwd = gated_bwd<relu>;
  t.silu_gated_bwd = gated_bwd<silu>;
}

}  // namespace thimble::ref
