// f32 <-> f16 and bf16, n elements, by integer arithmetic. Narrowing rounds to nearest, ties to even; NaN becomes quiet
// and keeps its upper payload bits. f16 keeps subnormals in both directions. f32 -> bf16 turns subnormal inputs into
// signed zeros, as vcvtneps2bf16 does; bf16 -> f32 only moves bits. Bit-equal on all tiers.
#include <cstring>

#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// u / 2^shift to nearest even, 0 < shift < 32.
uint32_t round_shift(uint32_t u, int shift) {
  const uint32_t half = 1u << (shift - 1), rest = u & ((1u << shift) - 1u);
  uint32_t q = u >> shift;
  if (rest > half || (rest == half && (q & 1u))) ++q;
  return q;
}

uint16_t to_f16(float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7FFFFFFFu;
  uint32_t h;
  if (magnitude > 0x7F800000u) {
    h = 0x7E00u | (magnitude >> 13 & 0x3FFu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and infinity
    h = 0x7C00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: normal; a carry out of the mantissa raises the exponent
    h = round_shift(magnitude - (112u << 23), 13);
  } else if (magnitude >= 0x33000000u) {  // 2^-25: subnormal, unit 2^-24
    const int exponent = static_cast<int>(magnitude >> 23);
    h = round_shift((magnitude & 0x7FFFFFu) | 0x800000u, 126 - exponent);
  } else {
    h = 0;
  }
  return static_cast<uint16_t>(sign | h);
}

float from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3FFu;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return float_of(sign | bits_of(value));
  }
  if (exponent == 31) return float_of(sign | 0x7F800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0u));
  return float_of(sign | (exponent + 112u) << 23 | mantissa << 13);
}

template <uint16_t (*F)(float)>
void narrow(const ConvertArgs& a) noexcept {
  const auto* src = static_cast<const float*>(a.src);
  auto* dst = static_cast<uint16_t*>(a.dst);
  for (int64_t i = 0; i < a.n; ++i) dst[i] = F(src[i]);
}

template <float (*F)(uint16_t)>
void widen(const ConvertArgs& a) noexcept {
  const auto* src = static_cast<const uint16_t*>(a.src);
  auto* dst = static_cast<float*>(a.dst);
  for (int64_t i = 0; i < a.n; ++i) dst[i] = F(src[i]);
}

}  // namespace

void init_convert(KernelTable& t) {
  t.f32_to_f16 = narrow<to_f16>;
  t.f16_to_f32 = widen<from_f16>;
  t.f32_to_bf16 = narrow<bf16_bits>;
  t.bf16_to_f32 = widen<bf16_value>;
}

}  // namespace thimble::ref
