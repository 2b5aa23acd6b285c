// bitsandbytes checkpoints: 4 bits by a codebook (NF4, FP4) in blocks of the flattened weight, and LLM.int8 rows.
#pragma once

#include <memory>

#include "models/io/coded_linear.h"
#include "models/io/quant_config.h"

namespace thimble {

// `tensors` must outlive the result. The 4-bit codebooks are no linear grid, so these linears are decoded, to the dtype
// that the checkpoint names, as bitsandbytes does for every product: w = codebook[code] * absmax of its block, in f32,
// then rounded. Codebooks and the scales of nested blocks are those of the file. int8 linears keep their codes.
// Throws unsupported for column layouts of int8 weights and unknown dtypes.
std::unique_ptr<CodedSource> open_bitsandbytes(const QuantStatement& statement, const TensorSource& tensors);

}  // namespace thimble
