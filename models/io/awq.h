// AWQ checkpoints in AutoAWQ's "gemm" layout: 4 bits, zero points as they are, no act-order. Codes and zero points are
// packed along outputs: nibble i of a word holds output 8 c + {0, 2, 4, 6, 1, 3, 5, 7}[i].
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "models/io/coded_linear.h"
#include "models/io/quant_config.h"

namespace thimble {

// `tensors` must outlive the result. Throws unsupported for gemv, gemv_fast, marlin and llm-awq, and for other widths.
// A ScaledActivation (act.scales: the activation's output is divided by it) is folded into the columns of the linear
// that reads it, which is decoded to f32 for that.
std::unique_ptr<CodedSource> open_awq(const QuantStatement& statement, const TensorSource& tensors);

// One linear's packed tensors. codes [out, in], zeros and scales [out, groups]; out a multiple of 8, codes < 16.
struct AwqPacked {
  std::vector<uint32_t> qweight;  // [in, out / 8]
  std::vector<uint32_t> qzeros;   // [groups, out / 8]
  std::vector<uint16_t> scales;   // [groups, out], f16
};
AwqPacked pack_awq(int64_t out, int64_t in, int64_t group, const uint8_t* codes, const uint8_t* zeros,
                   const uint16_t* scales_f16);

}  // namespace thimble
