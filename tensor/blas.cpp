#include "tensor/blas.h"

#include <cblas.h>
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <limits>

#include "tensor/error.h"

// LAPACK's Fortran entry points inside OpenBLAS; no header of this package declares them.
extern "C" {
void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info);
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info);
}

namespace thimble {
namespace {

int blas_int(int64_t x, const char* what) {
  if (x < 0 || x > std::numeric_limits<int>::max())
    throw Error(ErrorCode::unsupported, std::string(what) + ": a dimension of " + std::to_string(x) + " exceeds LAPACK's 32-bit integers");
  return static_cast<int>(x);
}

// The threads of OpenBLAS are a global of that library.
class BlasThreads {
 public:
  explicit BlasThreads(int threads) : before_(openblas_get_num_threads()) {
    if (threads != before_) openblas_set_num_threads(threads);
  }
  ~BlasThreads() {
    if (openblas_get_num_threads() != before_) openblas_set_num_threads(before_);
  }
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int before_;
};

// LAPACK is column-major: our lower triangle is its upper one, and A = UᵀU with U = Lᵀ.
template <class T, class Potrf>
int64_t factor(int64_t n, T* a, int64_t lda, Potrf potrf) {
  if (n == 0) return 0;
  const int order = blas_int(n, "cholesky"), stride = blas_int(lda, "cholesky");
  THIMBLE_CHECK(lda >= n);
  const BlasThreads one(1);
  int info = 0;
  potrf("U", &order, a, &stride, &info);
  THIMBLE_CHECK(info >= 0);
  return info;
}

}  // namespace

BlasInfo blas_info() {
  BlasInfo info;
  Dl_info library{};
  if (::dladdr(reinterpret_cast<const void*>(&openblas_get_config), &library) != 0 && library.dli_fname) info.path = library.dli_fname;
  const int parallel = openblas_get_parallel();
  info.flavour = parallel == OPENBLAS_OPENMP ? "openmp" : parallel == OPENBLAS_THREAD ? "pthread" : "sequential";
  info.core = openblas_get_corename();
  info.config = openblas_get_config();
  return info;
}

bool blas_core_is_avx512(const std::string& core) {
  std::string lower = core;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "skylakex" || lower == "cooperlake" || lower == "sapphirerapids";
}

int64_t cholesky(int64_t n, double* a, int64_t lda) { return factor(n, a, lda, dpotrf_); }
int64_t cholesky(int64_t n, float* a, int64_t lda) { return factor(n, a, lda, spotrf_); }

void blas_sgemm_nt(int threads, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                   float* c, int64_t ldc) {
  const BlasThreads scope(threads);
  const auto narrow = [](int64_t x) { return blas_int(x, "blas_sgemm_nt"); };
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, narrow(m), narrow(n), narrow(k), 1.0f, a, narrow(lda), b, narrow(ldb),
              0.0f, c, narrow(ldc));
}

}  // namespace thimble
