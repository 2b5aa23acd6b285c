// C[m, n] (+)= A[m, k] B[k, n] with B packed as a panel [k][nr]: every element is one chain over k, product and sum
// rounded separately.
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void gemm_f32(const GemmTileArgs& a) noexcept {
  for (int64_t i = 0; i < a.m; ++i) {
    for (int64_t j = 0; j < a.n; ++j) {
      float acc = a.accumulate != 0 ? a.c[i * a.ldc + j] : 0.0f;
      for (int64_t p = 0; p < a.k; ++p) acc += a.a[i * a.a_row + p * a.a_col] * a.b[p * a.nr + j];
      a.c[i * a.ldc + j] = acc;
    }
  }
}

}  // namespace

void init_gemm_f32(KernelTable& t) {
  t.gemm_f32 = gemm_f32;
  t.gemm_mr = 4;
  t.gemm_nr = 32;
  t.gemm_kc = 256;
  t.gemm_nc = 256;
}

}  // namespace thimble::ref
