#include "quant/hessian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/blas.h"
#include "tensor/error.h"
#include "tensor/gemm.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

// L^-1 of a lower triangular matrix, row-major, in place of `inverse` (zeroed). Row i needs the rows above it, columns
// are independent of one another.
void invert_lower(int64_t n, const std::vector<double>& l, std::vector<double>& inverse, int threads) {
  constexpr int64_t kColumns = 64;
  parallel_for(threads, (n + kColumns - 1) / kColumns, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kColumns, end = std::min(n, begin + kColumns);
    for (int64_t i = begin; i < n; ++i) {
      double* row = &inverse[at(i * n)];
      const int64_t width = std::min(end, i + 1);
      for (int64_t k = begin; k < i; ++k) {
        const double factor = l[at(i * n + k)];
        const double* above = &inverse[at(k * n)];
        const int64_t last = std::min(end, k + 1);
        for (int64_t c = begin; c < last; ++c) row[c] -= factor * above[c];
      }
      if (i < end) row[i] += 1;
      const double scale = 1.0 / l[at(i * n + i)];
      for (int64_t c = begin; c < width; ++c) row[c] *= scale;
    }
  });
}

}  // namespace

void InputStatistics::add(const KernelTable& kernels, int threads, const float* x, int64_t m, int64_t ldx) {
  if (m == 0) return;
  product_.resize(gram_.size());
  const size_t bytes = gemm_tn_scratch_bytes(kernels, threads, m, cols_, cols_);
  scratch_.resize(bytes / sizeof(float) + 32);
  const GemmExec exec{&kernels, threads, scratch_.data(), scratch_.size() * sizeof(float)};
  gemm_tn(exec, m, x, ldx, cols_, x, ldx, cols_, product_.data(), cols_, false);
  parallel_for(threads, cols_, [&](int64_t r, int) {
    for (int64_t c = 0; c < cols_; ++c) gram_[at(r * cols_ + c)] += double(product_[at(r * cols_ + c)]);
  });
  for (int64_t t = 0; t < m; ++t)
    for (int64_t c = 0; c < cols_; ++c) abs_[at(c)] += std::fabs(double(x[t * ldx + c]));
  tokens_ += m;
}

std::vector<float> InputStatistics::mean_abs() const {
  std::vector<float> mean(abs_.size());
  for (size_t c = 0; c < mean.size(); ++c) mean[c] = static_cast<float>(abs_[c] / double(std::max<int64_t>(1, tokens_)));
  return mean;
}

std::vector<float> InputStatistics::norms() const {
  std::vector<float> norms(at(cols_));
  for (int64_t c = 0; c < cols_; ++c) norms[at(c)] = static_cast<float>(std::sqrt(std::max(0.0, gram_[at(c * cols_ + c)])));
  return norms;
}

std::vector<float> InputStatistics::gram_f32() const {
  std::vector<float> gram(gram_.size());
  const double scale = 1.0 / double(std::max<int64_t>(1, tokens_));
  for (size_t i = 0; i < gram.size(); ++i) gram[i] = static_cast<float>(gram_[i] * scale);
  return gram;
}

double gram_error(const KernelTable& kernels, int threads, const float* d, int64_t rows, int64_t cols, const float* gram,
                  int64_t ldg, std::vector<double>* per_row) {
  std::vector<float> product(at(rows * cols));
  WeightView view{};
  view.data = gram;
  view.rows = view.cols = cols;
  view.ld = ldg;
  const size_t bytes = gemm_nt_scratch_bytes(kernels, threads, rows, WeightFormat::f32, view);
  std::vector<float> scratch(bytes / sizeof(float) + 32);
  gemm_nt({&kernels, threads, scratch.data(), scratch.size() * sizeof(float)}, rows, d, cols, WeightFormat::f32, view,
          product.data(), cols, false);
  std::vector<double> local;
  std::vector<double>& sums = per_row ? *per_row : local;
  sums.assign(at(rows), 0.0);
  parallel_for(threads, rows, [&](int64_t r, int) {
    double sum = 0;
    for (int64_t c = 0; c < cols; ++c) sum += double(d[r * cols + c]) * double(product[at(r * cols + c)]);
    sums[at(r)] = std::max(0.0, sum);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void InverseFactor::spread(const KernelTable& kernels, int threads, int64_t rows, const float* errors, int64_t ld, int64_t begin,
                           int64_t end, float* w, std::vector<float>& scratch) const {
  if (end == cols) return;
  WeightView rest{};
  rest.data = &upper[at(begin * cols + end)];
  rest.rows = end - begin;
  rest.cols = cols - end;
  rest.ld = cols;
  const size_t bytes = gemm_nn_scratch_bytes(kernels, threads, rows, WeightFormat::f32, rest);
  scratch.resize(std::max(scratch.size(), bytes / sizeof(float) + 32));
  gemm_nn({&kernels, threads, scratch.data(), scratch.size() * sizeof(float)}, rows, errors, ld, WeightFormat::f32, rest, w, cols,
          true);
}

InverseFactor factor_hessian(const InputStatistics& statistics, double damp, bool act_order, int threads) {
  const int64_t n = statistics.cols();
  const std::vector<double>& gram = statistics.gram();
  const double scale = 2.0 / double(std::max<int64_t>(1, statistics.tokens()));
  InverseFactor f;
  f.cols = n;
  std::vector<double> diagonal(at(n));
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) {
    diagonal[at(i)] = gram[at(i * n + i)] * scale;
    if (!std::isfinite(diagonal[at(i)])) return f;
    mean += diagonal[at(i)] / double(n);
  }
  std::vector<int32_t> order(at(n));
  std::iota(order.begin(), order.end(), 0);
  if (act_order)
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return diagonal[size_t(a)] > diagonal[size_t(b)]; });
  if (!std::is_sorted(order.begin(), order.end())) f.perm = order;

  // With the columns turned around, the lower factor L of H gives the upper factor of its inverse without forming it:
  // H = U' U'ᵀ with U' upper, so H^-1 = Uᵀ U with U = U'^-1.
  std::vector<double> l(gram.size());
  for (double share = damp; share <= 10.0 || share == damp; share = share > 0 ? share * 10 : 0.01) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        const int64_t a = order[at(n - 1 - i)], b = order[at(n - 1 - j)];
        double h = gram[at(a * n + b)] * scale;
        if (i == j) h = h == 0 ? 1.0 : h + share * mean;
        l[at(i * n + j)] = h;
      }
    if (cholesky(n, l.data(), n) != 0) continue;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) finite = finite && std::isfinite(l[at(i * n + i)]) && l[at(i * n + i)] > 0;
    if (!finite) continue;
    f.ok = true;
    f.damp = share;
    break;
  }
  if (!f.ok) return f;
  std::vector<double> inverse(gram.size());
  invert_lower(n, l, inverse, threads);
  f.upper.assign(gram.size(), 0.0f);
  f.diagonal.resize(at(n));
  for (int64_t i = 0; i < n; ++i) {
    f.diagonal[at(i)] = static_cast<float>(diagonal[size_t(order[at(i)])]);
    for (int64_t j = i; j < n; ++j) f.upper[at(i * n + j)] = static_cast<float>(inverse[at((n - 1 - i) * n + n - 1 - j)]);
  }
  return f;
}

}  // namespace thimble
