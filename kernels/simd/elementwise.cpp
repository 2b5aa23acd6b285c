// y = a + b, y = a b, y = fma(alpha, x, y), y = alpha x on n elements; x[r, c] += bias[c]; out[c] (+)= sum over r of
// x[r, c]; sum of x². Bit-equal to the reference: single roundings, or sums in the stated order.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Add {
  static vf f(vf a, vf b) { return a + b; }
};
struct Mul {
  static vf f(vf a, vf b) { return a * b; }
};

template <class F>
void binary(const BinaryArgs& a) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, F::f(load(a.a + i), load(a.b + i)));
  if (i < a.n) store_head(a.y + i, F::f(load_head(a.a + i, a.n - i), load_head(a.b + i, a.n - i)), a.n - i);
}

void axpy(const AxpyArgs& a) noexcept {
  const vf alpha = set1(a.alpha);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, madd(alpha, load(a.x + i), load(a.y + i)));
  if (i < a.n) store_head(a.y + i, madd(alpha, load_head(a.x + i, a.n - i), load_head(a.y + i, a.n - i)), a.n - i);
}

void scale(const ScaleArgs& a) noexcept {
  const vf alpha = set1(a.alpha);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(a.y + i, alpha * load(a.x + i));
  if (i < a.n) store_head(a.y + i, alpha * load_head(a.x + i, a.n - i), a.n - i);
}

void bias_add(const BiasArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    float* x = a.x + r * a.ld;
    int64_t c = 0;
    for (; c + kLanes <= a.cols; c += kLanes) store(x + c, load(x + c) + load(a.bias + c));
    if (c < a.cols) store_head(x + c, load_head(x + c, a.cols - c) + load_head(a.bias + c, a.cols - c), a.cols - c);
  }
}

// Strips of columns over a few rows at a time: memory is read along the rows, and the sums wait in `out`.
void col_sum(const ColSumArgs& a) noexcept {
  constexpr int kStrip = 4;
  constexpr int64_t kRows = 8;
  if (!a.accumulate) {
    for (int64_t c = 0; c < a.cols; c += kLanes) {
      if (a.cols - c >= kLanes) {
        store(a.out + c, set1(0.0f));
      } else {
        store_head(a.out + c, set1(0.0f), a.cols - c);
      }
    }
  }
  for (int64_t r = 0; r < a.rows; r += kRows) {
    const float* x = a.x + r * a.ld;
    const int64_t rows = a.rows - r < kRows ? a.rows - r : kRows;
    int64_t c = 0;
    for (; c + kStrip * kLanes <= a.cols; c += kStrip * kLanes) {
      vf sum[kStrip];
      unroll<kStrip>([&](auto v) __attribute__((always_inline)) {
        sum[decltype(v)::value] = load(a.out + c + decltype(v)::value * kLanes);
      });
      for (int64_t i = 0; i < rows; ++i) {
        const float* row = x + i * a.ld + c;
        unroll<kStrip>([&](auto v) __attribute__((always_inline)) {
          sum[decltype(v)::value] = sum[decltype(v)::value] + load(row + decltype(v)::value * kLanes);
        });
      }
      unroll<kStrip>([&](auto v) __attribute__((always_inline)) {
        store(a.out + c + decltype(v)::value * kLanes, sum[decltype(v)::value]);
      });
    }
    for (; c + kLanes <= a.cols; c += kLanes) {
      vf sum = load(a.out + c);
      for (int64_t i = 0; i < rows; ++i) sum = sum + load(x + i * a.ld + c);
      store(a.out + c, sum);
    }
    if (c == a.cols) continue;
    vf sum = load_head(a.out + c, a.cols - c);
    for (int64_t i = 0; i < rows; ++i) sum = sum + load_head(x + i * a.ld + c, a.cols - c);
    store_head(a.out + c, sum, a.cols - c);
  }
}

// Eight chains of doubles: one 512-bit register or two of 256 bits. The square of a float is exact in double, so product
// and sum apart have the bits of an fma, and the chain waits for the addition alone.
void sum_squares(const SumSquaresArgs& a) noexcept {
  alignas(64) double chain[8];
  int64_t i = 0;
#if defined(__AVX512F__)
  __m512d sum = _mm512_setzero_pd();
  for (; i + 8 <= a.n; i += 8) {
    const __m512d x = _mm512_cvtps_pd(_mm256_loadu_ps(a.x + i));
    sum = _mm512_add_pd(sum, _mm512_mul_pd(x, x));
  }
  _mm512_store_pd(chain, sum);
#else
  __m256d low = _mm256_setzero_pd(), high = low;
  for (; i + 8 <= a.n; i += 8) {
    const __m256d x = _mm256_cvtps_pd(_mm_loadu_ps(a.x + i)), y = _mm256_cvtps_pd(_mm_loadu_ps(a.x + i + 4));
    low = _mm256_add_pd(low, _mm256_mul_pd(x, x));
    high = _mm256_add_pd(high, _mm256_mul_pd(y, y));
  }
  _mm256_store_pd(chain, low);
  _mm256_store_pd(chain + 4, high);
#endif
  for (; i < a.n; ++i) chain[i % 8] += static_cast<double>(a.x[i]) * static_cast<double>(a.x[i]);
  for (int half = 4; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) chain[j] += chain[j + half];
  }
  *a.out = chain[0];
}

}  // namespace

void init_elementwise(KernelTable& t) {
  t.add = binary<Add>;
  t.mul = binary<Mul>;
  t.axpy = axpy;
  t.scale = scale;
  t.bias_add = bias_add;
  t.col_sum = col_sum;
  t.sum_squares = sum_squares;
}

}  // namespace thimble::THIMBLE_ISA
