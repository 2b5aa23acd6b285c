// The quantization blocks of GGUF: decoded to f32, or taken apart into codes, scales and minima without being quantized
// again: every format but IQ4_NL is a linear grid, and IQ4_NL's sixteen values are whole numbers, which 8-bit codes
// hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "models/io/coded_linear.h"
#include "models/io/gguf.h"

namespace thimble {

// F32, F16, BF16, F64 and the integers: types that TensorSource hands out as they are.
bool ggml_is_plain(GgmlType type);
SafetensorsDtype ggml_plain_dtype(GgmlType type);
// Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K..Q6_K IQ4_NL.
bool ggml_is_coded(GgmlType type);

// `elements` (whole blocks) from data to out. F32, F16, BF16, F64 and every coded type.
void decode_ggml(GgmlType type, const std::byte* data, int64_t elements, float* out);

// A matrix of a coded type: [rows][cols] blocks. row_map[r], when given, is the row of the file that becomes row r.
CodedLinear read_ggml_coded(GgmlType type, const std::byte* data, int64_t rows, int64_t cols,
                            const std::vector<int32_t>& row_map = {});

// What IQ4_NL's nibbles stand for.
extern const int8_t kIq4NlValues[16];

}  // namespace thimble
