// Round-to-nearest quantization of a weight matrix to grouped affine codes: w = scale * (code - zero). Two grids carry
// this name: symmetric, scale = absmax / (2^(bits-1) - 0.5) with zero = 2^(bits-1); and min-max, whose range includes 0.
// Codes are chosen against the scale as it is stored (rounded to f16).
#pragma once

#include <cstdint>
#include <vector>

namespace thimble {

struct QuantizedMatrix {
  int64_t rows = 0, cols = 0, group = 0, groups = 0;  // group: columns per group
  int bits = 0;
  std::vector<uint8_t> codes;        // [rows][cols]
  std::vector<uint8_t> zeros;        // [rows][groups]
  std::vector<uint16_t> scales_f16;  // [rows][groups]
};

// w: row-major [rows, cols]. bits 2..8; group 0: one group per row. Throws input for NaN or infinite weights.
QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric);

// The matrix that the codes stand for.
std::vector<float> dequantize(const QuantizedMatrix& q);

float f16_value(uint16_t bits);
uint16_t f16_bits(float value);  // round to nearest even

}  // namespace thimble
