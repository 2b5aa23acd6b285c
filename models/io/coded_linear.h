// A quantized linear as plain arrays, and the readers that hand them out: what every packed format (GPTQ, AWQ,
// compressed-tensors, bitsandbytes, GGUF blocks) comes down to before it is packed into tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/weight_format.h"
#include "models/io/tensor_source.h"

namespace thimble {

// Rows are output features, whatever the file's layout. w = scale * (code - zero) + min.
struct CodedLinear {
  int64_t out = 0, in = 0;
  int64_t groups = 0;      // ceil(in / group_size)
  int64_t group_size = 0;  // column c belongs to group c / group_size; the last group may be short
  int bits = 0;            // of a code: 1..8
  std::vector<uint8_t> codes;        // [out][in], one code per byte; columns ordered so that groups are contiguous
  std::vector<uint8_t> zeros;        // [out][groups]; empty: `zero` for all
  uint8_t zero = 0;
  std::vector<uint16_t> scales_f16;  // [out][groups]; the bits of the file when it stores F16, else empty
  std::vector<float> scales_f32;     // [out][groups]; otherwise
  std::vector<float> mins;           // [out][groups] or empty; only beside scales_f32, and without zero points
  std::vector<int32_t> perm;         // act-order: column c of codes is input perm[c]; else empty
  std::vector<float> bias;           // [out] or empty
  // Codes without a linear grid (NF4) are decoded: [out][in] in dense_format (f32, f16 or bf16), and nothing else is set
  // but out, in and bias.
  WeightFormat dense_format = WeightFormat::f32;
  std::vector<std::byte> dense;

  float scale(int64_t o, int64_t g) const;
  // The oracle: [out][in] in the original column order.
  std::vector<float> dequantize() const;
};

// The quantized linears of one checkpoint. Errors: input with file, tensor and field; unsupported names the layout.
class CodedSource {
 public:
  virtual ~CodedSource() = default;

  // module: a tensor's name without ".weight".
  virtual bool has(const std::string& module) const = 0;
  // The file's tensors that read() uses, so that what nobody uses can be refused. A bias counts only when it is all zero:
  // others load as tensors of their own.
  virtual std::vector<std::string> tensors(const std::string& module) const = 0;
  virtual CodedLinear read(const std::string& module) const = 0;
  virtual std::string description() const = 0;                   // "gptq 4-bit g128 sym"
  virtual const std::vector<std::string>& warnings() const = 0;  // assumptions made, one line each
};

// What a model directory says about its quantization: null when it is not quantized, else the reader of its method.
// `tensors` must outlive the result. Throws unsupported, naming method and file, for methods that nobody reads here.
std::unique_ptr<CodedSource> open_coded_source(const std::string& dir, const TensorSource& tensors);

}  // namespace thimble
