// What GPTQ, SparseGPT, Wanda and AWQ know about the inputs of a linear: the sum of x xᵀ, and its factor.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble {

// Sums over tokens. Products of a call are f32 chains, sums over calls f64; the bits do not depend on threads.
class InputStatistics {
 public:
  explicit InputStatistics(int64_t cols) : cols_(cols), gram_(static_cast<size_t>(cols * cols)), abs_(static_cast<size_t>(cols)) {}

  // x: [m, cols] with row stride ldx.
  void add(const KernelTable& kernels, int threads, const float* x, int64_t m, int64_t ldx);

  int64_t cols() const { return cols_; }
  int64_t tokens() const { return tokens_; }
  const std::vector<double>& gram() const { return gram_; }  // [cols, cols]: sum of x xᵀ
  std::vector<float> mean_abs() const;                       // [cols]: mean |x|
  std::vector<float> norms() const;                          // [cols]: sqrt of the sum of x²
  std::vector<float> gram_f32() const;                       // divided by the tokens

 private:
  int64_t cols_, tokens_ = 0;
  std::vector<double> gram_, abs_;
  std::vector<float> product_, scratch_;
};

// The sum over rows of d G dᵀ for d [rows, cols], G [cols, cols] symmetric with row stride ldg: the error of outputs that
// an error d of weights makes.
double gram_error(const KernelTable& kernels, int threads, const float* d, int64_t rows, int64_t cols, const float* gram,
                  int64_t ldg, std::vector<double>* per_row = nullptr);

// U, upper triangular, with (H + damping)^-1 = Uᵀ U, for the columns in the order `perm`.
struct InverseFactor {
  bool ok = false;                // false: no damping up to 10 times the mean diagonal made H positive definite
  int64_t cols = 0;
  double damp = 0;                // share of the mean diagonal that was added
  std::vector<float> upper;       // [cols, cols]
  std::vector<int32_t> perm;      // position p is input perm[p]; empty: identity
  std::vector<float> diagonal;    // of H, by position

  // What the columns [begin, end) of a block have left over is made good in those behind it: w [rows, cols - end], row
  // stride cols, += errors U[begin:end, end:]. errors: [rows, end - begin], row stride ld. Does nothing after the last block.
  void spread(const KernelTable& kernels, int threads, int64_t rows, const float* errors, int64_t ld, int64_t begin, int64_t end,
              float* w, std::vector<float>& scratch) const;
};

// Columns without any input get a diagonal of 1: nothing they do is compensated. When Cholesky's factorization fails,
// the damping grows tenfold. act_order: inputs with the largest diagonal first.
InverseFactor factor_hessian(const InputStatistics& statistics, double damp, bool act_order, int threads);

}  // namespace thimble
