#include "quant/rtn.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernel_table.h"
#include "tensor/error.h"

namespace thimble {
namespace {

const KernelTable& reference() {
  static const KernelTable table = build_kernel_table(Tier::ref);
  return table;
}

}  // namespace

float f16_value(uint16_t bits) {
  float value = 0;
  reference().f16_to_f32({1, &bits, &value});
  return value;
}

uint16_t f16_bits(float value) {
  uint16_t bits = 0;
  reference().f32_to_f16({1, &value, &bits});
  return bits;
}

QuantizedMatrix quantize_rtn(const float* w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric) {
  THIMBLE_CHECK(bits >= 2 && bits <= 8 && rows > 0 && cols > 0 && group >= 0);
  QuantizedMatrix q;
  q.rows = rows;
  q.cols = cols;
  q.bits = bits;
  q.group = group > 0 ? group : cols;
  q.groups = (cols + q.group - 1) / q.group;
  q.codes.resize(static_cast<size_t>(rows * cols));
  q.zeros.resize(static_cast<size_t>(rows * q.groups));
  q.scales_f16.resize(q.zeros.size());
  const int levels = (1 << bits) - 1;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < q.groups; ++g) {
      const float* x = w + r * cols + g * q.group;
      const int64_t n = std::min(q.group, cols - g * q.group);
      float low = 0, high = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (!std::isfinite(x[i])) throw Error(ErrorCode::input, "a weight is not a finite number", "the checkpoint is damaged");
        low = std::min(low, x[i]);
        high = std::max(high, x[i]);
      }
      float scale = symmetric ? std::max(-low, high) / (float(levels) / 2) : (high - low) / float(levels);
      const auto at = static_cast<size_t>(r * q.groups + g);
      q.scales_f16[at] = f16_bits(std::min(scale, 65504.0f));
      scale = f16_value(q.scales_f16[at]);
      const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
      const float zero = symmetric ? float(1 << (bits - 1)) : std::clamp(std::nearbyint(-low * inverse), 0.0f, float(levels));
      q.zeros[at] = static_cast<uint8_t>(zero);
      uint8_t* codes = &q.codes[static_cast<size_t>(r * cols + g * q.group)];
      for (int64_t i = 0; i < n; ++i)
        codes[i] = static_cast<uint8_t>(std::clamp(std::nearbyint(x[i] * inverse) + zero, 0.0f, float(levels)));
    }
  return q;
}

std::vector<float> dequantize(const QuantizedMatrix& q) {
  std::vector<float> w(q.codes.size());
  for (int64_t r = 0; r < q.rows; ++r)
    for (int64_t c = 0; c < q.cols; ++c) {
      const auto at = static_cast<size_t>(r * q.cols + c), group = static_cast<size_t>(r * q.groups + c / q.group);
      w[at] = f16_value(q.scales_f16[group]) * (float(q.codes[at]) - float(q.zeros[group]));
    }
  return w;
}

}  // namespace thimble
