// compressed-tensors checkpoints (llm-compressor) with integer weights: pack-quantized (codes of 2, 3, 4 or 8 bits,
// floor(32 / bits) to a word, along inputs) and int-quantized or naive-quantized (one code per byte). Codes and zero
// points are signed in the format and unsigned here: both are shifted by 2^(bits - 1).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "models/io/coded_linear.h"
#include "models/io/quant_config.h"

namespace thimble {

// `tensors` must outlive the result. Throws unsupported for float, sparse and mixed formats, quantized caches, outputs,
// or inputs with stored scales, and transforms. Inputs that the format quantizes dynamically give a warning: nothing
// here is lost in the weights.
std::unique_ptr<CodedSource> open_compressed_tensors(const QuantStatement& statement, const TensorSource& tensors);

// One linear's codes as pack-quantized stores them: codes [out, in], zeros [out, groups], each < 2^bits.
struct CtPacked {
  std::vector<uint32_t> weight;      // [out, ceil(in / per_word)]
  std::vector<uint32_t> zero_point;  // [ceil(out / per_word), groups]
};
CtPacked pack_compressed(int64_t out, int64_t in, int64_t groups, int bits, const uint8_t* codes, const uint8_t* zeros);
// How many codes a word holds: 16, 10, 8, 4.
constexpr int64_t ct_per_word(int bits) { return 32 / bits; }

}  // namespace thimble
