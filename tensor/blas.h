// OpenBLAS behind one small door: LAPACK for the Cholesky factor that GPTQ needs, a matrix product as the yardstick of
// benches, and which library was loaded. Products of models never come from here: its sums change with its threads.
#pragma once

#include <cstdint>
#include <string>

namespace thimble {

struct BlasInfo {
  std::string path;     // file of the loaded library
  std::string flavour;  // sequential, pthread or openmp
  std::string core;     // the kernels it chose, for example SkylakeX
  std::string config;   // version and build flags, in its own words
};
BlasInfo blas_info();

// True when the chosen kernels use AVX-512.
bool blas_core_is_avx512(const std::string& core);

// A = L Lᵀ in place, A[n, n] symmetric, row-major with leading dimension lda >= n; only the lower triangle (diagonal
// included) is read and written. Returns 0, or the 1-based order of the first leading minor that is not positive
// definite (A is then half overwritten). Runs on one thread, so the bits do not depend on the machine's load.
// Not to be called from several threads at once. Throws unsupported for n above 2^31 - 1.
int64_t cholesky(int64_t n, double* a, int64_t lda);
int64_t cholesky(int64_t n, float* a, int64_t lda);

// C[m, n] = A[m, k] Bᵀ, B[n, k], row-major, with this many threads of OpenBLAS. For comparisons only.
void blas_sgemm_nt(int threads, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                   float* c, int64_t ldc);

}  // namespace thimble
