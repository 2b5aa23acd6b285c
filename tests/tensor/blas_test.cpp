// Cholesky through LAPACK: the factor multiplies back, the other triangle is untouched, a matrix that is not positive
// definite is reported with its minor, and OpenBLAS is loaded as the flavour that does not bring a second OpenMP.
#include "tensor/blas.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <vector>

#include "tensor/error.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

// A = B Bᵀ + I in the lower triangle; the upper one and the padding of the rows hold NaN.
template <class T>
std::vector<T> positive_definite(int64_t n, int64_t lda) {
  Philox random(5, 0);
  std::vector<double> b(static_cast<size_t>(n * n));
  for (double& x : b) x = random.normal();
  std::vector<T> a(static_cast<size_t>(n * lda), std::numeric_limits<T>::quiet_NaN());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = i == j ? 1.0 : 0.0;
      for (int64_t k = 0; k < n; ++k) sum += b[static_cast<size_t>(i * n + k)] * b[static_cast<size_t>(j * n + k)];
      a[static_cast<size_t>(i * lda + j)] = static_cast<T>(sum);
    }
  }
  return a;
}

// Backward error of Cholesky (Higham, theorem 10.3): |A - L Lᵀ| <= gamma_{n+1} |L| |Lᵀ|, gamma_k = k u / (1 - k u).
template <class T>
void check_factor(int64_t n, int64_t lda) {
  const std::vector<T> a = positive_definite<T>(n, lda);
  std::vector<T> l = a;
  ASSERT_EQ(cholesky(n, l.data(), lda), 0);
  const double u = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2, k = static_cast<double>(n + 1);
  const double gamma = k * u / (1 - k * u);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < lda; ++j) {
      const size_t at = static_cast<size_t>(i * lda + j);
      if (j > i) {
        EXPECT_TRUE(std::isnan(l[at])) << i << " " << j;
        continue;
      }
      double sum = 0, absolute = 0;
      for (int64_t p = 0; p <= j; ++p) {
        const double term = static_cast<double>(l[static_cast<size_t>(i * lda + p)]) * static_cast<double>(l[static_cast<size_t>(j * lda + p)]);
        sum += term;
        absolute += std::abs(term);
      }
      EXPECT_NEAR(sum, static_cast<double>(a[at]), gamma * absolute) << i << " " << j;
    }
  }
}

TEST(Blas, CholeskyMultipliesBackAndLeavesTheOtherTriangle) {
  for (const int64_t n : {0, 1, 2, 7, 64, 150}) {
    check_factor<double>(n, n + 3);
    check_factor<float>(n, n + 3);
  }
}

TEST(Blas, CholeskyReportsTheMinorThatIsNotPositiveDefinite) {
  std::vector<double> a = {4, 0, 0, 0, 1, 0, 0, 0, -1};
  EXPECT_EQ(cholesky(3, a.data(), 3), 3);
}

TEST(Blas, SgemmIsTheProductWithTheTranspose) {
  const float a[] = {1, 2, 3, 4, 5, 6};              // 2 x 3
  const float b[] = {1, 0, 1, 0, 1, 0, 2, 2, 2, 1, 1, 1};  // 4 x 3
  float c[8];
  blas_sgemm_nt(1, 2, 4, 3, a, 3, b, 3, c, 4);
  const float want[] = {4, 2, 12, 6, 10, 5, 30, 15};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(c[i], want[i]) << i;
}

TEST(Blas, TheLoadedLibraryIsNamedAndBringsNoSecondOpenMP) {
  const BlasInfo info = blas_info();
  EXPECT_NE(info.path.find("openblas"), std::string::npos) << info.path;
  EXPECT_FALSE(info.core.empty());
  EXPECT_NE(info.flavour, "openmp") << "install libopenblas-pthread-dev and choose it with update-alternatives";
  EXPECT_TRUE(blas_core_is_avx512("SkylakeX"));
  EXPECT_FALSE(blas_core_is_avx512("Haswell"));
}

// Loads the library, leaves it no room for its buffer, and computes.
[[noreturn]] void compute_without_room() {
  blas_info();
  const auto threads = std::filesystem::directory_iterator("/proc/self/task");
  if (std::distance(begin(threads), end(threads)) != 1) ::_exit(2);
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  const rlim_t bytes = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (rlim_t{64} << 20);
  const rlimit limit{bytes, bytes};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(3);
  double a = 4;
  try {
    cholesky(1, &a, 1);
  } catch (const Error& e) {
    ::_exit(e.code() == ErrorCode::budget ? 0 : 4);
  }
  ::_exit(5);
}

TEST(Blas, LoadsWithoutThreadsAndALimitOnMemoryIsAnError) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(compute_without_room(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace thimble
