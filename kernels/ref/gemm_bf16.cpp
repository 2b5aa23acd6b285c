// C[m, n] (+)= A[m, 2 k] B[2 k, n] from bf16 pairs: every element is one chain over the depth in f32, low half before
// high half. The products are exact, so that this rounds exactly as a chain of fma does.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

float low(uint32_t pair) { return bits_to_float(pair << 16); }
float high(uint32_t pair) { return bits_to_float(pair & 0xFFFF0000u); }

void gemm_bf16(const GemmBf16Args& g) noexcept {
  for (int64_t i = 0; i < g.m; ++i) {
    for (int64_t j = 0; j < g.n; ++j) {
      float acc = g.accumulate != 0 ? g.c[i * g.ldc + j] : 0.0f;
      for (int64_t p = 0; p < g.k; ++p) {
        const uint32_t a = g.a[i * g.a_row + p * g.a_col], b = g.b[p * g.nr + j];
        acc += low(a) * low(b);
        acc += high(a) * high(b);
      }
      g.c[i * g.ldc + j] = acc;
    }
  }
}

}  // namespace

void init_gemm_bf16(KernelTable& t) { t.gemm_bf16 = gemm_bf16; }

}  // namespace thimble::ref
