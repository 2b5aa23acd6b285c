#include <fmt/format.h>

#include <cstring>

#include "models/io/coded_linear.h"
#include "models/io/gptq.h"
#include "models/io/half.h"

namespace thimble {
namespace {

class GptqCheckpoint final : public CodedSource {
 public:
  GptqCheckpoint(GptqConfig config, const TensorSource& tensors) : config_(std::move(config)), tensors_(tensors) {}

  bool has(const std::string& module) const override { return gptq_has(tensors_, module); }
  std::vector<std::string> tensors(const std::string& module) const override {
    return {module + ".qweight", module + ".qzeros", module + ".scales", module + ".g_idx"};
  }
  CodedLinear read(const std::string& module) const override {
    GptqSource source = gptq_source(tensors_, module);
    const auto shape = config_.shapes.find(module);
    if (shape == config_.shapes.end()) return unpack_gptq(source, config_.of(module));
    source.bias = {};  // is not padded, and loads as a tensor of its own
    CodedLinear linear = unpack_gptq(source, config_.of(module));
    crop_gptq(linear, module, shape->second[0], shape->second[1]);
    return linear;
  }
  std::string description() const override {
    return fmt::format("gptq {}-bit {} {}{}", config_.bits, config_.group_size > 0 ? "g" + std::to_string(config_.group_size) : "row",
                       config_.sym ? "sym" : "asym", config_.desc_act ? " act-order" : "");
  }
  const std::vector<std::string>& warnings() const override { return config_.warnings; }

 private:
  GptqConfig config_;
  const TensorSource& tensors_;
};

}  // namespace

std::unique_ptr<CodedSource> open_coded_source(const std::string& dir, const TensorSource& tensors) {
  if (std::optional<GptqConfig> config = read_gptq_config(dir)) return std::make_unique<GptqCheckpoint>(std::move(*config), tensors);
  refuse_other_quantization(dir);
  return nullptr;
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
      w[static_cast<size_t>(o * in + i)] = scale(o, g) * static_cast<float>(difference) + (mins.empty() ? 0.0f : mins[at]);
    }
  return w;
}

}  // namespace thimble
