// Round-to-nearest quantization of a weight matrix to grouped affine codes: w = scale * (code - zero). Two grids carry
// this name: symmetric, scale = absmax / (2^(bits-1) - 0.5) with zero = 2^(bits-1); and min-max, whose range includes 0.
// Codes are chosen against the scale as it is stored (rounded to f16). A range may be shrunk before it becomes a grid:
// what lies outside is clipped, and everything inside gets a finer step.
#pragma once

#include <cstdint>
#include <vector>

#include "quant/spec.h"

namespace thimble {

struct QuantizedMatrix {
  int64_t rows = 0, cols = 0, group = 0, groups = 0;  // group: columns per group
  int bits = 0;
  std::vector<uint8_t> codes;        // [rows][cols]
  std::vector<uint8_t> zeros;        // [rows][groups]; empty when there are minima
  std::vector<uint16_t> mins_f16;    // [rows][groups]: w = scale * code + min; else empty
  std::vector<uint16_t> scales_f16;  // [rows][groups]
  std::vector<int32_t> perm;         // act-order: column c of codes is input perm[c]; empty: identity
};

// The grid of one group.
struct Grid {
  uint16_t scale_f16 = 0;
  float scale = 0, inverse = 0;  // of the f16 scale; inverse 0 for scale 0
  float zero = 0, levels = 0;

  float code(float x) const;  // 0 .. levels
  float round(float x) const { return scale * (code(x) - zero); }
};

// Of n weights, whose range is multiplied by shrink first.
Grid choose_grid(const float* x, int64_t n, int bits, bool symmetric, float shrink = 1);

// The shrink factor 1 - i / 100, i < 80, with the smallest sum of |error|^2.4, as GPTQ's "mse" option does.
float choose_shrink(const float* x, int64_t n, int bits, bool symmetric);

// w: row-major [rows, cols]. bits 2..8; group 0: one group per row. Throws input for NaN or infinite weights.
QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric);

// The same over threads; shrink: [rows][groups], null: none.
QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, const float* shrink,
                             int threads);

// With a minimum per group instead of a zero point: the grid spans exactly the weights of the group, 0 need not be on it.
QuantizedMatrix quantize_rtn_min(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, int threads);

// choose_shrink of every group: [rows][groups].
std::vector<float> clip_ranges(const float* w, int64_t rows, int64_t cols, const WeightSpec& spec, int threads);

// Columns per group, and groups per row.
inline int64_t group_width(const WeightSpec& spec, int64_t cols) { return spec.group > 0 && spec.group < cols ? spec.group : cols; }
inline int64_t group_count(const WeightSpec& spec, int64_t cols) {
  return (cols + group_width(spec, cols) - 1) / group_width(spec, cols);
}

// Throws input when a weight is not finite.
void check_finite(const float* w, int64_t n);

// The matrix that the codes stand for, columns in the order of the inputs.
std::vector<float> dequantize(const QuantizedMatrix& q);

float f16_value(uint16_t bits);
uint16_t f16_bits(float value);  // round to nearest even

}  // namespace thimble
