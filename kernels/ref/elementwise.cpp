// y = a + b, y = a b, y = fma(alpha, x, y), y = alpha x on n elements; x[r, c] += bias[c]; out[c] (+)= sum over r of
// x[r, c]; sum of x². Every output here is bit-equal on all tiers: each is one rounding, or a sum in a stated order.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void add(const BinaryArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = a.a[i] + a.b[i];
}

void mul(const BinaryArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = a.a[i] * a.b[i];
}

void axpy(const AxpyArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = std::fma(a.alpha, a.x[i], a.y[i]);
}

void scale(const ScaleArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = a.alpha * a.x[i];
}

void bias_add(const BiasArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) a.x[r * a.ld + c] += a.bias[c];
  }
}

void col_sum(const ColSumArgs& a) noexcept {
  for (int64_t c = 0; c < a.cols; ++c) {
    float sum = a.accumulate ? a.out[c] : 0.0f;
    for (int64_t r = 0; r < a.rows; ++r) sum += a.x[r * a.ld + c];
    a.out[c] = sum;
  }
}

// Chain i takes the elements i, i + 8, ...; a product of two floats is exact in double.
void sum_squares(const SumSquaresArgs& a) noexcept {
  double chain[8] = {};
  for (int64_t i = 0; i < a.n; ++i) chain[i % 8] += static_cast<double>(a.x[i]) * static_cast<double>(a.x[i]);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) chain[i] += chain[i + half];
  }
  *a.out = chain[0];
}

}  // namespace

void init_elementwise(KernelTable& t) {
  t.add = add;
  t.mul = mul;
  t.axpy = axpy;
  t.scale = scale;
  t.bias_add = bias_add;
  t.col_sum = col_sum;
  t.sum_squares = sum_squares;
}

}  // namespace thimble::ref
