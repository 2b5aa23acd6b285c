#include "tensor/blas.h"

#include <cblas.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <cctype>
#include <limits>

#include "tensor/error.h"

namespace thimble {
namespace {

// OpenBLAS starts a thread per core while it is loaded, and they spin for a tenth of a second: beside the first products of
// a command, which then often took six times as long. Few commands need the library: the first call loads it, with one
// thread.
struct OpenBlas {
  decltype(&cblas_sgemm) sgemm;
  decltype(&openblas_get_num_threads) get_threads;
  decltype(&openblas_set_num_threads) set_threads;
  decltype(&openblas_get_parallel) parallel;
  decltype(&openblas_get_corename) core;
  decltype(&openblas_get_config) config;
  // LAPACK's Fortran entry points.
  void (*dpotrf)(const char* uplo, const int* n, double* a, const int* lda, int* info);
  void (*spotrf)(const char* uplo, const int* n, float* a, const int* lda, int* info);
};

[[noreturn]] void fail_load() {
  const char* why = ::dlerror();
  throw Error(ErrorCode::unsupported, std::string("OpenBLAS: ") + (why ? why : "cannot be loaded"),
              "install it: apt install libopenblas0-pthread");
}

template <class Function>
void find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(::dlsym(library, name));
  if (!*function) fail_load();
}

OpenBlas load() {
  ::setenv("OPENBLAS_NUM_THREADS", "1", 1);
  void* const library = ::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) fail_load();
  OpenBlas blas{};
  find(library, "cblas_sgemm", &blas.sgemm);
  find(library, "openblas_get_num_threads", &blas.get_threads);
  find(library, "openblas_set_num_threads", &blas.set_threads);
  find(library, "openblas_get_parallel", &blas.parallel);
  find(library, "openblas_get_corename", &blas.core);
  find(library, "openblas_get_config", &blas.config);
  find(library, "dpotrf_", &blas.dpotrf);
  find(library, "spotrf_", &blas.spotrf);
  return blas;
}

const OpenBlas& open_blas() {
  static const OpenBlas blas = load();
  return blas;
}

// To compute with. OpenBLAS asks for its buffer of 128 MB at the first computation, and for ever where a limit refuses it.
const OpenBlas& ready_blas() {
  static const OpenBlas& ready = []() -> const OpenBlas& {
    const OpenBlas& blas = open_blas();
    constexpr size_t kBytes = size_t{129} << 20;  // and what malloc adds
    void* const room = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
      throw Error(ErrorCode::budget, "OpenBLAS: the system refused 135 MB of address space", "raise the limit (ulimit -v)");
    ::munmap(room, kBytes);
    const int n = 1;
    float one = 1;
    int info = 0;
    blas.spotrf("U", &n, &one, &n, &info);
    return blas;
  }();
  return ready;
}

int blas_int(int64_t x, const char* what) {
  if (x < 0 || x > std::numeric_limits<int>::max())
    throw Error(ErrorCode::unsupported, std::string(what) + ": a dimension of " + std::to_string(x) + " exceeds LAPACK's 32-bit integers");
  return static_cast<int>(x);
}

// The threads of OpenBLAS are a global of that library.
class BlasThreads {
 public:
  explicit BlasThreads(int threads) : before_(ready_blas().get_threads()) {
    if (threads != before_) ready_blas().set_threads(threads);
  }
  ~BlasThreads() {
    if (ready_blas().get_threads() != before_) ready_blas().set_threads(before_);
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
  const OpenBlas& blas = open_blas();
  BlasInfo info;
  Dl_info library{};
  if (::dladdr(reinterpret_cast<const void*>(blas.config), &library) != 0 && library.dli_fname) info.path = library.dli_fname;
  const int parallel = blas.parallel();
  info.flavour = parallel == OPENBLAS_OPENMP ? "openmp" : parallel == OPENBLAS_THREAD ? "pthread" : "sequential";
  info.core = blas.core();
  info.config = blas.config();
  return info;
}

bool blas_core_is_avx512(const std::string& core) {
  std::string lower = core;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "skylakex" || lower == "cooperlake" || lower == "sapphirerapids";
}

int64_t cholesky(int64_t n, double* a, int64_t lda) { return factor(n, a, lda, ready_blas().dpotrf); }
int64_t cholesky(int64_t n, float* a, int64_t lda) { return factor(n, a, lda, ready_blas().spotrf); }

void blas_sgemm_nt(int threads, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                   float* c, int64_t ldc) {
  const BlasThreads scope(threads);
  const auto narrow = [](int64_t x) { return blas_int(x, "blas_sgemm_nt"); };
  ready_blas().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, narrow(m), narrow(n), narrow(k), 1.0f, a, narrow(lda), b,
                    narrow(ldb), 0.0f, c, narrow(ldc));
}

}  // namespace thimble
