// One step of AdamW with moments of 8 bits (AdamwQ8Args): decode, the step of adamw, code again per block.
#include <cmath>
#include <cstring>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

constexpr float kSmallest = 0x1p-126f;  // below it a reciprocal would overflow

float decode_m(int8_t code, float scale) {
  const float root = static_cast<float>(code) * (1.0f / 127.0f);
  return root * std::fabs(root) * scale;
}

float decode_v(uint8_t code, float scale) {
  if (code == 0) return 0.0f;
  const uint32_t bits = (uint32_t{code} + kAdamwCodeBase) << 20;
  float share;
  std::memcpy(&share, &bits, 4);
  return share * scale;
}

int8_t code_m(float m, float inverse) {
  const float root = std::nearbyint(std::sqrt(std::fmin(std::fabs(m) * inverse, 1.0f)) * 127.0f);
  return static_cast<int8_t>(std::signbit(m) ? -root : root);
}

// 20 random bits of a number.
uint32_t noise(uint32_t x) {
  x *= 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA77u;
  x ^= x >> 13;
  x *= 0xC2B2AE3Du;
  return x >> 12;
}

uint8_t code_v(float v, float inverse, uint32_t random) {
  const float share = std::fmin(v * inverse, 1.0f);
  uint32_t bits;
  std::memcpy(&bits, &share, 4);
  const auto code = static_cast<int32_t>((bits + random) >> 20) - static_cast<int32_t>(kAdamwCodeBase);
  return static_cast<uint8_t>(v == 0.0f ? 0 : code < 1 ? 1 : code);
}

void adamw_q8(const AdamwQ8Args& a) noexcept {
  const float keep = 1.0f - a.lr * a.weight_decay;
  for (int64_t first = 0; first < a.n; first += kAdamwBlock) {
    const int64_t block = first / kAdamwBlock, count = first + kAdamwBlock < a.n ? kAdamwBlock : a.n - first;
    float m[kAdamwBlock], v[kAdamwBlock], largest_m = 0, largest_v = 0;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = first + j;
      const float g = a.g[i] * a.grad_scale;
      m[j] = a.beta1 * decode_m(a.m[i], a.m_scale[block]) + (1.0f - a.beta1) * g;
      v[j] = a.beta2 * decode_v(a.v[i], a.v_scale[block]) + (1.0f - a.beta2) * g * g;
      a.p[i] = a.p[i] * keep - a.step_size * m[j] / (std::sqrt(v[j]) * a.v_correction + a.eps);
      largest_m = std::fmax(largest_m, std::fabs(m[j]));
      largest_v = std::fmax(largest_v, v[j]);
    }
    a.m_scale[block] = largest_m < kSmallest ? 0.0f : largest_m;
    a.v_scale[block] = largest_v < kSmallest ? 0.0f : largest_v;
    const float inverse_m = largest_m < kSmallest ? 0.0f : 1.0f / largest_m;
    const float inverse_v = largest_v < kSmallest ? 0.0f : 1.0f / largest_v;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = first + j;
      a.m[i] = code_m(m[j], inverse_m);
      a.v[i] = inverse_v == 0.0f ? uint8_t{0} : code_v(v[j], inverse_v, noise(a.seed + static_cast<uint32_t>(i)));
    }
  }
}

}  // namespace

void init_adamw_q8(KernelTable& t) { t.adamw_q8 = adamw_q8; }

}  // namespace thimble::ref
