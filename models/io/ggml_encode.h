// Weights to the blocks of GGUF. Q4_0, Q4_1 and Q8_0 round as ggml's reference encoder does, bit for bit; Q4_K and Q6_K
// search scale and minimum of each sub-block for the least weighted squared error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "models/io/coded_linear.h"
#include "models/io/gguf.h"

namespace thimble {

// F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K Q6_K.
bool ggml_is_encodable(GgmlType type);
// The type of such a name ("q4_k"), in any case; throws usage for others.
GgmlType ggml_type_from_name(const std::string& name);

// `elements` (whole blocks) from in to out. Values that are not finite are refused (input); `name` is for the message.
void encode_ggml(GgmlType type, const float* in, int64_t elements, std::byte* out, const std::string& name);

// Codes that already lie on the type's grid go over as they are: Q4_0 from 4 bits around zero point 8, Q8_0 from 8 bits
// around 128, each with f16 scales and groups of whole blocks. False, and nothing is written, for others.
bool encode_ggml_codes(GgmlType type, const CodedLinear& linear, std::byte* out);

}  // namespace thimble
