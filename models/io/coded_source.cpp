#include <fmt/format.h>

#include <cstring>

#include "models/io/awq.h"
#include "models/io/bitsandbytes.h"
#include "models/io/coded_linear.h"
#include "models/io/compressed_tensors.h"
#include "models/io/gptq.h"
#include "models/io/half.h"
#include "tensor/error.h"

namespace thimble {

std::unique_ptr<CodedSource> open_coded_source(const std::string& dir, const TensorSource& tensors) {
  const std::optional<QuantStatement> statement = read_quant_statement(dir);
  if (!statement) return nullptr;
  struct Method {
    const char* name;
    std::unique_ptr<CodedSource> (*open)(const QuantStatement& statement, const TensorSource& tensors);
  };
  static constexpr Method kMethods[] = {{"gptq", open_gptq},
                                        {"awq", open_awq},
                                        {"compressed-tensors", open_compressed_tensors},
                                        {"bitsandbytes", open_bitsandbytes}};
  std::string known;
  for (const Method& method : kMethods) {
    if (statement->method == method.name) return method.open(*statement, tensors);
    known += (known.empty() ? "" : ", ") + std::string(method.name);
  }
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: the quantization method {} is not supported", statement->file,
                          quote_for_message(statement->method)),
              "supported: " + known + ", or the model without quantization");
}

float CodedLinear::scale(int64_t o, int64_t g) const {
  const auto i = static_cast<size_t>(o * groups + g);
  return scales_f16.empty() ? scales_f32[i] : io_detail::f16_to_f32(scales_f16[i]);
}

std::vector<float> CodedLinear::dequantize() const {
  std::vector<float> w(static_cast<size_t>(out * in));
  if (!dense.empty()) {
    for (size_t i = 0; i < w.size(); ++i) {
      uint16_t half = 0;
      if (dense_format == WeightFormat::f32) {
        std::memcpy(&w[i], &dense[4 * i], 4);
        continue;
      }
      std::memcpy(&half, &dense[2 * i], 2);
      w[i] = dense_format == WeightFormat::f16 ? io_detail::f16_to_f32(half) : io_detail::bf16_to_f32(half);
    }
    return w;
  }
  for (int64_t o = 0; o < out; ++o)
    for (int64_t c = 0; c < in; ++c) {
      const int64_t g = c / group_size, i = perm.empty() ? c : perm[static_cast<size_t>(c)];
      const auto at = static_cast<size_t>(o * groups + g);
      const int difference = int{codes[static_cast<size_t>(o * in + c)]} - int{zeros.empty() ? zero : zeros[at]};
      w[static_cast<size_t>(o * in + i)] =
          scale(o, g) * static_cast<float>(difference) + (mins.empty() ? 0.0f : mins[at]);
    }
  return w;
}

}  // namespace thimble
