// 16-bit floats for the readers and writers of files: exact widening, and narrowing to the nearest (ties to even);
// scalar, no instruction-set assumptions.
#pragma once

#include <cstdint>
#include <cstring>

namespace thimble::io_detail {

inline float bits_to_f32(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline float bf16_to_f32(uint16_t h) { return bits_to_f32(static_cast<uint32_t>(h) << 16); }

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3FFu;
  if (exponent == 31) return bits_to_f32(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_f32(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal or zero: mantissa * 2^-24 is exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

inline uint32_t f32_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

// Adds half of the last place that stays, less one when that place is even; a carry runs into the exponent as it should.
inline uint32_t round_off(uint32_t v, int bits) { return (v + (1u << (bits - 1)) - 1 + (v >> bits & 1)) >> bits; }

inline uint16_t f32_to_bf16(float f) {
  const uint32_t v = f32_to_bits(f);
  if ((v & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(v >> 16 | 64);  // NaN stays one
  return static_cast<uint16_t>(round_off(v, 16));
}

inline uint16_t f32_to_f16(float f) {
  const uint32_t v = f32_to_bits(f), sign = v >> 16 & 0x8000u, magnitude = v & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // from 2^16
  if (magnitude >= 0x38800000u) return static_cast<uint16_t>(sign | round_off(magnitude - 0x38000000u, 13));  // normal; may round to infinity
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below half of the smallest subnormal
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14..24
  return static_cast<uint16_t>(sign | round_off((magnitude & 0x7FFFFFu) | 0x800000u, shift));
}

}  // namespace thimble::io_detail
