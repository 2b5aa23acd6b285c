// C[m, n] (+)= A[m, k] B[k, n] with B packed as a panel [k][nr]. A register tile of kRows x kWidth outputs walks all of k:
// per step one row of the panel (kVectors loads) times kRows broadcast values of A. avx512: 6 x 64 with 24 accumulators;
// avx2: 6 x 16 with 12. A is read in place through two strides, which serves x row-major and dy transposed alike.
// Every output is one fma chain over k; edge tiles (fewer rows or columns) run the same chain with fewer accumulators.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kRows = 6;
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int64_t kWidth = kVectors * kLanes;

// One tile of R rows and V vectors; the last vector holds `last` columns (1..kLanes).
template <int R, int V>
void tile(const GemmTileArgs& t, const float* a, const float* b, float* c, int64_t last) {
  vf acc[R][V];
  const bool whole = last == kLanes;
  if (t.accumulate != 0) {
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      constexpr int r = decltype(i)::value;
      unroll<V - 1>([&](auto j) __attribute__((always_inline)) {
        constexpr int v = decltype(j)::value;
        acc[r][v] = load(c + r * t.ldc + v * kLanes);
      });
      const float* tail = c + r * t.ldc + (V - 1) * kLanes;
      acc[r][V - 1] = whole ? load(tail) : load_head(tail, last);
    });
  } else {
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      unroll<V>([&](auto j) __attribute__((always_inline)) { acc[decltype(i)::value][decltype(j)::value] = set1(0.0f); });
    });
  }
  const int64_t row = t.a_row, col = t.a_col, nr = t.nr;
  for (int64_t p = t.k; p > 0; --p) {
    vf w[V];
    unroll<V>([&](auto j) __attribute__((always_inline)) { w[decltype(j)::value] = load(b + decltype(j)::value * kLanes); });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      constexpr int r = decltype(i)::value;
      const vf x = set1(a[r * row]);
      unroll<V>([&](auto j) __attribute__((always_inline)) {
        constexpr int v = decltype(j)::value;
        acc[r][v] = madd(x, w[v], acc[r][v]);
      });
    });
    a += col;
    b += nr;
  }
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    constexpr int r = decltype(i)::value;
    unroll<V - 1>([&](auto j) __attribute__((always_inline)) {
      constexpr int v = decltype(j)::value;
      store(c + r * t.ldc + v * kLanes, acc[r][v]);
    });
    float* tail = c + r * t.ldc + (V - 1) * kLanes;
    if (whole) {
      store(tail, acc[r][V - 1]);
    } else {
      store_head(tail, acc[r][V - 1], last);
    }
  });
}

template <int V>
void stripe(const GemmTileArgs& t, const float* b, float* c, int64_t last) {
  const float* a = t.a;
  int64_t m = t.m;
  if constexpr (V == 1) {  // a step of six rows would wait for its own sums
    for (; m >= 2 * kRows; m -= 2 * kRows, a += 2 * kRows * t.a_row, c += 2 * kRows * t.ldc) tile<2 * kRows, 1>(t, a, b, c, last);
  }
  for (; m >= kRows; m -= kRows, a += kRows * t.a_row, c += kRows * t.ldc) tile<kRows, V>(t, a, b, c, last);
  switch (m) {
    case 5: return tile<5, V>(t, a, b, c, last);
    case 4: return tile<4, V>(t, a, b, c, last);
    case 3: return tile<3, V>(t, a, b, c, last);
    case 2: return tile<2, V>(t, a, b, c, last);
    case 1: return tile<1, V>(t, a, b, c, last);
    default: return;
  }
}

void gemm_f32(const GemmTileArgs& t) noexcept {
  for (int64_t j = 0; j < t.n; j += kWidth) {
    const int64_t n = t.n - j < kWidth ? t.n - j : kWidth;
    const int64_t vectors = (n + kLanes - 1) / kLanes, last = n - (vectors - 1) * kLanes;
    const float* b = t.b + j;
    float* c = t.c + j;
    switch (vectors) {
#if defined(__AVX512F__)
      case 4: stripe<4>(t, b, c, last); break;
      case 3: stripe<3>(t, b, c, last); break;
#endif
      case 2: stripe<2>(t, b, c, last); break;
      default: stripe<1>(t, b, c, last); break;
    }
  }
}

}  // namespace

void init_gemm_f32(KernelTable& t) {
  t.gemm_f32 = gemm_f32;
  t.gemm_mr = kRows;
  t.gemm_nr = kWidth;
  t.gemm_kc = 1024;
  t.gemm_nc = 128;
}

}  // namespace thimble::THIMBLE_ISA
