#include "quant/awq.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kRowsPerChunk = 8;

size_t at(int64_t i) { return static_cast<size_t>(i); }

}  // namespace

std::vector<float> awq_weight_means(const std::vector<const float*>& matrices, const std::vector<int64_t>& rows,
                                    int64_t cols, const WeightSpec& spec) {
  const int64_t group = group_width(spec, cols);
  std::vector<double> sum(at(cols));
  int64_t total = 0;
  for (size_t m = 0; m < matrices.size(); ++m) {
    total += rows[m];
    for (int64_t r = 0; r < rows[m]; ++r)
      for (int64_t begin = 0; begin < cols; begin += group) {
        const float* w = matrices[m] + r * cols;
        const int64_t end = std::min(cols, begin + group);
        float largest = 0;
        for (int64_t c = begin; c < end; ++c) largest = std::max(largest, std::fabs(w[c]));
        if (largest == 0) continue;
        for (int64_t c = begin; c < end; ++c) sum[at(c)] += double(std::fabs(w[c])) / double(largest);
      }
  }
  std::vector<float> mean(at(cols));
  for (size_t c = 0; c < mean.size(); ++c) mean[c] = static_cast<float>(sum[c] / double(std::max<int64_t>(1, total)));
  return mean;
}

std::vector<float> awq_scales(const std::vector<float>& x_mean, const std::vector<float>& w_mean, double ratio) {
  std::vector<double> s(x_mean.size());
  double low = INFINITY, high = 0;
  for (size_t c = 0; c < s.size(); ++c) {
    s[c] = std::pow(double(x_mean[c]), ratio) / (std::pow(double(w_mean[c]), 1.0 - ratio) + 1e-4);
    s[c] = std::max(s[c], 1e-4);
    low = std::min(low, s[c]);
    high = std::max(high, s[c]);
  }
  const double middle = std::sqrt(high * low);
  std::vector<float> scales(s.size(), 1.0f);
  for (size_t c = 0; c < s.size(); ++c) {
    const double scaled = s[c] / middle;
    if (std::isfinite(scaled) && scaled > 0) scales[c] = static_cast<float>(scaled);
  }
  return scales;
}

void round_scaled(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const std::vector<float>& scales,
                  float* out, int threads) {
  THIMBLE_CHECK(static_cast<int64_t>(scales.size()) == cols);
  const int64_t group = group_width(spec, cols);
  parallel_for(threads, (rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
    for (int64_t r = chunk * kRowsPerChunk; r < std::min(rows, (chunk + 1) * kRowsPerChunk); ++r) {
      float* row = out + r * cols;
      for (int64_t c = 0; c < cols; ++c) row[c] = w[r * cols + c] * scales[at(c)];
      for (int64_t begin = 0; begin < cols; begin += group) {
        const int64_t n = std::min(group, cols - begin);
        const Grid grid = choose_grid(row + begin, n, spec.bits, spec.symmetric);
        for (int64_t c = begin; c < begin + n; ++c) row[c] = grid.round(row[c]) / scales[at(c)];
      }
    }
  });
}

AwqScales search_scales(const std::vector<float>& x_mean, const std::vector<float>& w_mean,
                        const std::function<double(const std::vector<float>&)>& loss) {
  AwqScales best;
  best.scales.assign(x_mean.size(), 1.0f);
  best.loss = best.loss_unscaled = loss(best.scales);
  for (int i = 0; i < kAwqRatios; ++i) {
    const double ratio = double(i) / kAwqRatios;
    std::vector<float> scales = awq_scales(x_mean, w_mean, ratio);
    const double l = loss(scales);
    if (i == 0) best.loss_zero = l;
    if (!(l < best.loss)) continue;
    best.loss = l;
    best.ratio = ratio;
    best.scales = std::move(scales);
  }
  return best;
}

std::vector<float> awq_clip(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const float* gram,
                            const KernelTable& kernels, int threads) {
  const int64_t group = group_width(spec, cols), groups = group_count(spec, cols);
  std::vector<float> shrink(at(rows * groups), 1.0f), d(at(rows * group));
  std::vector<double> least(at(rows)), error(at(rows));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * group, n = std::min(group, cols - begin);
    for (int i = 0; i < 10; ++i) {
      const float factor = 1.0f - static_cast<float>(i) / 20.0f;
      parallel_for(threads, (rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
        for (int64_t r = chunk * kRowsPerChunk; r < std::min(rows, (chunk + 1) * kRowsPerChunk); ++r) {
          const float* x = w + r * cols + begin;
          const Grid grid = choose_grid(x, n, spec.bits, spec.symmetric, factor);
          for (int64_t c = 0; c < n; ++c) d[at(r * n + c)] = x[c] - grid.round(x[c]);
        }
      });
      gram_error(kernels, threads, d.data(), rows, n, gram + begin * cols + begin, cols, &error);
      for (int64_t r = 0; r < rows; ++r) {
        if (i > 0 && !(error[at(r)] < least[at(r)])) continue;
        least[at(r)] = error[at(r)];
        shrink[at(r * groups + g)] = factor;
      }
    }
  }
  return shrink;
}

}  // namespace thimble
