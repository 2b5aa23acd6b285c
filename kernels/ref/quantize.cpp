// Activations to int8 for the integer products: per row and weight group, scale = absmax / 127, code = x / scale rounded
// to nearest even and clamped to [-127, 127], and the sum of the codes. A group of zeros (or of values so small that the
// scale vanishes) has scale 0 and codes 0. NaN is no part of the maximum and becomes -127.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

int32_t quantize(float x, float scale) {
  const float code = std::nearbyint(x / scale);
  if (!(code >= -127.0f)) return -127;
  return code > 127.0f ? 127 : static_cast<int32_t>(code);
}

void quantize_i8(const QuantizeI8Args& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.ldx;
    int8_t* codes = a.codes + r * a.padded_cols;
    for (int64_t c = a.cols; c < a.padded_cols; ++c) codes[c] = 0;
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t begin = g * a.group, end = begin + a.group < a.cols ? begin + a.group : a.cols;
      float absmax = 0.0f;
      for (int64_t c = begin; c < end; ++c) absmax = std::fabs(x[c]) > absmax ? std::fabs(x[c]) : absmax;
      const float scale = absmax / 127.0f;
      int32_t sum = 0;
      for (int64_t c = begin; c < end; ++c) {
        const int32_t code = scale == 0.0f ? 0 : quantize(x[c], scale);
        codes[c] = static_cast<int8_t>(code);
        sum += code;
      }
      a.scales[r * a.groups + g] = scale;
      a.sums[r * a.groups + g] = sum;
    }
  }
}

}  // namespace

void init_quantize(KernelTable& t) { t.quantize_i8 = quantize_i8; }

}  // namespace thimble::ref
