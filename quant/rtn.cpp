#include "quant/rtn.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernel_table.h"
#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kRowsPerChunk = 8;

const KernelTable& reference() {
  static const KernelTable table = build_kernel_table(Tier::ref);
  return table;
}

// fn(row, group, first column, columns) for every group, over threads.
template <class Fn>
void for_each_group(int64_t rows, int64_t cols, int64_t group, int threads, Fn&& fn) {
  const int64_t groups = (cols + group - 1) / group;
  parallel_for(threads, (rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
    for (int64_t r = chunk * kRowsPerChunk; r < std::min(rows, (chunk + 1) * kRowsPerChunk); ++r)
      for (int64_t g = 0; g < groups; ++g) fn(r, g, g * group, std::min(group, cols - g * group));
  });
}

// Without codes' offsets: zeros or minima are the caller's.
QuantizedMatrix empty_matrix(int64_t rows, int64_t cols, int bits, int64_t group) {
  THIMBLE_CHECK(bits >= 2 && bits <= 8 && rows > 0 && cols > 0 && group >= 0);
  QuantizedMatrix q;
  q.rows = rows;
  q.cols = cols;
  q.bits = bits;
  q.group = group > 0 ? group : cols;
  q.groups = (cols + q.group - 1) / q.group;
  q.codes.resize(static_cast<size_t>(rows * cols));
  q.scales_f16.resize(static_cast<size_t>(rows * q.groups));
  return q;
}

}  // namespace

float f16_value(uint16_t bits) {
  float value = 0;
  reference().f16_to_f32({1, &bits, &value});
  return value;
}

uint16_t f16_bits(float value) {
  uint16_t bits = 0;
  reference().f32_to_f16({1, &value, &bits});
  return bits;
}

void check_finite(const float* w, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(w[i])) throw Error(ErrorCode::input, "a weight is not a finite number", "the checkpoint is damaged");
}

float Grid::code(float x) const { return std::clamp(std::nearbyint(x * inverse) + zero, 0.0f, levels); }

Grid choose_grid(const float* x, int64_t n, int bits, bool symmetric, float shrink) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  low *= shrink;
  high *= shrink;
  Grid grid;
  grid.levels = static_cast<float>((1 << bits) - 1);
  const float scale = symmetric ? std::max(-low, high) / (grid.levels / 2) : (high - low) / grid.levels;
  grid.scale_f16 = f16_bits(std::min(scale, 65504.0f));
  grid.scale = f16_value(grid.scale_f16);
  grid.inverse = grid.scale > 0 ? 1.0f / grid.scale : 0.0f;
  grid.zero = symmetric ? float(1 << (bits - 1)) : std::clamp(std::nearbyint(-low * grid.inverse), 0.0f, grid.levels);
  return grid;
}

float choose_shrink(const float* x, int64_t n, int bits, bool symmetric) {
  float best = 1;
  double least = -1;
  for (int i = 0; i < 80; ++i) {
    const float shrink = 1.0f - static_cast<float>(i) / 100.0f;
    const Grid grid = choose_grid(x, n, bits, symmetric, shrink);
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += std::pow(std::fabs(double(x[c]) - double(grid.round(x[c]))), 2.4);
    if (least >= 0 && sum >= least) continue;
    least = sum;
    best = shrink;
  }
  return best;
}

QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric) {
  return quantize_rtn(w, rows, cols, {bits, group, symmetric}, nullptr, 1);
}

QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const float* shrink,
                             int threads) {
  check_finite(w, rows * cols);
  QuantizedMatrix q = empty_matrix(rows, cols, spec.bits, spec.group);
  q.zeros.resize(q.scales_f16.size());
  for_each_group(rows, cols, q.group, threads, [&](int64_t r, int64_t g, int64_t first, int64_t n) {
    const auto at = static_cast<size_t>(r * q.groups + g);
    const float* x = w + r * cols + first;
    const Grid grid = choose_grid(x, n, spec.bits, spec.symmetric, shrink ? shrink[at] : 1.0f);
    q.scales_f16[at] = grid.scale_f16;
    q.zeros[at] = static_cast<uint8_t>(grid.zero);
    uint8_t* codes = &q.codes[static_cast<size_t>(r * cols + first)];
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(grid.code(x[i]));
  });
  return q;
}

QuantizedMatrix quantize_rtn_min(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, int threads) {
  check_finite(w, rows * cols);
  QuantizedMatrix q = empty_matrix(rows, cols, bits, group);
  q.mins_f16.resize(q.scales_f16.size());
  const float levels = static_cast<float>((1 << bits) - 1);
  for_each_group(rows, cols, q.group, threads, [&](int64_t r, int64_t g, int64_t first, int64_t n) {
    const auto at = static_cast<size_t>(r * q.groups + g);
    const float* x = w + r * cols + first;
    const auto [low, high] = std::minmax_element(x, x + n);
    q.mins_f16[at] = f16_bits(std::clamp(*low, -65504.0f, 65504.0f));
    const float min = f16_value(q.mins_f16[at]);
    q.scales_f16[at] = f16_bits(std::clamp((*high - min) / levels, 0.0f, 65504.0f));
    const float scale = f16_value(q.scales_f16[at]), inverse = scale > 0 ? 1.0f / scale : 0.0f;
    uint8_t* codes = &q.codes[static_cast<size_t>(r * cols + first)];
    for (int64_t i = 0; i < n; ++i)
      codes[i] = static_cast<uint8_t>(std::clamp(std::nearbyint((x[i] - min) * inverse), 0.0f, levels));
  });
  return q;
}

std::vector<float> clip_ranges(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, int threads) {
  const int64_t groups = group_count(spec, cols);
  std::vector<float> shrink(static_cast<size_t>(rows * groups));
  for_each_group(rows, cols, group_width(spec, cols), threads, [&](int64_t r, int64_t g, int64_t first, int64_t n) {
    shrink[static_cast<size_t>(r * groups + g)] = choose_shrink(w + r * cols + first, n, spec.bits, spec.symmetric);
  });
  return shrink;
}

std::vector<float> dequantize(const QuantizedMatrix& q) {
  std::vector<float> w(q.codes.size());
  for (int64_t r = 0; r < q.rows; ++r)
    for (int64_t c = 0; c < q.cols; ++c) {
      const auto at = static_cast<size_t>(r * q.cols + c), group = static_cast<size_t>(r * q.groups + c / q.group);
      const auto to = static_cast<size_t>(r * q.cols + (q.perm.empty() ? c : q.perm[static_cast<size_t>(c)]));
      const float scale = f16_value(q.scales_f16[group]);
      w[to] = q.mins_f16.empty() ? scale * (float(q.codes[at]) - float(q.zeros[group]))
                                 : std::fma(scale, float(q.codes[at]), f16_value(q.mins_f16[group]));
    }
  return w;
}

}  // namespace thimble
