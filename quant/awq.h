// AWQ (Lin et al., arXiv 2306.00978): inputs that are large deserve a finer grid. Their columns of W are multiplied by a
// scale before rounding, and whatever makes the inputs divides by it; the scales are powers of the mean input, chosen by
// the error they leave. Then each group's range is shrunk as far as the error of its outputs falls.
#pragma once

#include <functional>
#include <vector>

#include "quant/hessian.h"
#include "quant/rtn.h"

namespace thimble {

constexpr int kAwqRatios = 20;  // exponents 0, 1/20 .. 19/20

// Mean over all rows of |w| / (largest |w| of its group), per column. Matrices: [rows_i, cols].
std::vector<float> awq_weight_means(const std::vector<const float*>& matrices, const std::vector<int64_t>& rows,
                                    int64_t cols, const WeightSpec& spec);

// x_mean^ratio / (w_mean^(1 - ratio) + 1e-4), at least 1e-4, divided by sqrt(max * min).
std::vector<float> awq_scales(const std::vector<float>& x_mean, const std::vector<float>& w_mean, double ratio);

// out = Q(w * s) / s: what the model computes when the inputs are divided by s. Rows in parallel.
void round_scaled(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const std::vector<float>& scales,
                  float* out, int threads);

struct AwqScales {
  std::vector<float> scales;  // all 1 when nothing beats that
  double ratio = -1;          // -1: no scaling
  double loss = 0, loss_unscaled = 0, loss_zero = 0;  // with the chosen scales, with 1, with ratio 0
};
// loss(scales) is evaluated for 1 and for every ratio; the first of equal ones wins.
AwqScales search_scales(const std::vector<float>& x_mean, const std::vector<float>& w_mean,
                        const std::function<double(const std::vector<float>&)>& loss);

// Shrink factors [rows][groups], 1 - i/20 for i < 10, with the least error d G dᵀ of each group's own outputs.
// gram: [cols, cols] of the inputs that w sees.
std::vector<float> awq_clip(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const float* gram,
                            const KernelTable& kernels, int threads);

}  // namespace thimble
