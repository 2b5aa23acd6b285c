// The layouts in which quantized linears are written: tensors of one linear, what a layout cannot hold, and the
// quantization_config over all of them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "models/io/safetensors.h"
#include "quant/spec.h"

namespace thimble {

enum class PackedFormat : uint8_t {
  gptq,                // version 1, or 2 when a zero point is 0
  awq,                 // gemm: 4 bits, no act-order
  compressed_tensors,  // pack-quantized
  int_quantized,       // compressed-tensors with a byte per code, whose inputs other programs round to 8 bits as well
};
const char* packed_format_name(PackedFormat format);  // "gptq", "awq", "compressed-tensors", "int-quantized"
// Throws usage, listing the names.
PackedFormat parse_packed_format(const std::string& text, const std::string& where = "--format");

// One linear of a file: rows in the order of the file, columns so that groups are contiguous.
struct PackedModule {
  std::string name;                                // without ".weight"
  int64_t out = 0, in = 0, group = 0, groups = 0;  // group: columns per group
  WeightSpec spec;
  std::vector<uint8_t> codes, zeros;  // [out, in], [out, groups]
  std::vector<uint16_t> scales_f16;   // [out, groups], or
  std::vector<float> scales_f32;      // when f16 does not hold them
  std::vector<int32_t> perm;          // column c is input perm[c]; empty: identity
  bool ordered = false;               // some linear of the model has a permutation
  bool transposed = false;            // the family keeps this linear as a Conv1D
};

struct PackedTensor {
  std::string name;
  SafetensorsDtype dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// Why this format cannot hold the linear; empty: it can.
std::string cannot_hold(PackedFormat format, const PackedModule& module);

// The tensors of a linear. v2: GPTQ's zero points as they are.
std::vector<PackedTensor> pack_module(PackedFormat format, const PackedModule& module, bool v2);

// What quantization_config says about all linears of a model.
struct PackedModel {
  WeightSpec common;  // of most linears
  bool v2 = false;    // GPTQ
  bool permuted = false;
  std::vector<std::pair<std::string, WeightSpec>> others;  // modules with a grid of their own
  std::vector<std::string> dense;                          // linears of layers that are not quantized
  std::vector<std::string> heads;  // other linears that are not: head, projections of embeddings
  nlohmann::ordered_json shapes = nlohmann::ordered_json::object();  // [out, in] of padded modules (GPTQ)
  bool lm_head = false;                                              // is quantized as well
};
// Throws unsupported when the format has no way to say it: AWQ with several grids.
nlohmann::ordered_json quantization_config(PackedFormat format, const PackedModel& model);

}  // namespace thimble
