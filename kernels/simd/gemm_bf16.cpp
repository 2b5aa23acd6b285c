// C[m, n] (+)= A[m, 2 k] B[2 k, n] from bf16 pairs (semantics: GemmBf16Args). The register tiles of gemm_f32: per pair one
// row of the panel times kRows broadcast pairs of A, 6 x 64 outputs on avx512 and 6 x 16 on avx2. With vdpbf16ps a step
// multiplies both halves at once. Without it they are widened to f32, low half first: correct, at the speed of f32.
// Every output is one chain; edge tiles run the same chain with fewer accumulators.
#include "kernels/simd/init.h"
#include "kernels/simd/pair_step.h"

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
void tile(const GemmBf16Args& t, const uint32_t* a, const uint32_t* b, float* c, int64_t last) {
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
    pair_step(acc, [&](int r) __attribute__((always_inline)) { return a[r * row]; }, b);
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
void stripe(const GemmBf16Args& t, const uint32_t* b, float* c, int64_t last) {
  const uint32_t* a = t.a;
  int64_t m = t.m;
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

void gemm_bf16(const GemmBf16Args& t) noexcept {
  for (int64_t j = 0; j < t.n; j += kWidth) {
    const int64_t n = t.n - j < kWidth ? t.n - j : kWidth;
    const int64_t vectors = (n + kLanes - 1) / kLanes, last = n - (vectors - 1) * kLanes;
    const uint32_t* b = t.b + j;
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

void init_gemm_bf16(KernelTable& t) { t.gemm_bf16 = gemm_bf16; }

}  // namespace thimble::THIMBLE_ISA
