// Single weights in every format, straight from weight_format.h: what the reference kernels read W(r, c) with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/kernel_args.h"

namespace thimble::ref {
namespace {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float bf16_value(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }

// To nearest even; NaN becomes quiet, subnormals become signed zeros.
inline uint16_t bf16_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
  if (magnitude < 0x00800000u) return static_cast<uint16_t>(u >> 16 & 0x8000u);
  return static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

// sign, 5 bits of exponent with bias 15, 10 bits of mantissa; exponent 0: mantissa * 2^-24.
inline float f16_value(uint16_t h) {
  const uint32_t sign = uint32_t{h} >> 15 << 31, exponent = h >> 10 & 31u, mantissa = h & 1023u;
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return bits_to_float(sign | 0x7F800000u | mantissa << 13 | quiet);
  }
  if (exponent == 0) {
    const float x = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -x : x;
  }
  return bits_to_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

// Where column c of lane r % 16 lies, and what its group's parameters are.
inline uint32_t tile_code(WeightFormat f, const void* codes, int64_t steps, int64_t r, int64_t c) {
  const CodePlace place = code_place(f, r % 16, c);
  const uint32_t byte = static_cast<const uint8_t*>(codes)[r / 16 * steps * 64 + place.byte];
  return byte >> place.shift & ((1u << format_bits(f)) - 1);
}
inline int64_t group_index(const WeightView& w, int64_t r, int64_t g) { return (r / 16 * w.groups + g) * 16 + r % 16; }
inline float group_parameter(const WeightView& w, const void* values, int64_t i) {
  return w.scale_f32 != 0 ? static_cast<const float*>(values)[i] : f16_value(static_cast<const uint16_t*>(values)[i]);
}
inline float group_scale(const WeightView& w, int64_t r, int64_t g) { return group_parameter(w, w.scales, group_index(w, r, g)); }
inline int32_t group_zero(const WeightView& w, int64_t r, int64_t g) {
  return w.zeros != nullptr ? w.zeros[group_index(w, r, g)] : w.zero;
}
inline float group_min(const WeightView& w, int64_t r, int64_t g) {
  return w.mins != nullptr ? group_parameter(w, w.mins, group_index(w, r, g)) : 0.0f;
}

template <WeightFormat F>
uint32_t weight_code(const WeightView& w, int64_t r, int64_t c) {
  return tile_code(F, w.data, w.steps, r, c);
}

// W(r, c) as f32; a code's value is rounded once.
template <WeightFormat F>
float weight(const WeightView& w, int64_t r, int64_t c) {
  if constexpr (F == WeightFormat::f32) {
    return static_cast<const float*>(w.data)[r * w.ld + c];
  } else if constexpr (F == WeightFormat::f16) {
    return f16_value(static_cast<const uint16_t*>(w.data)[r * w.ld + c]);
  } else if constexpr (F == WeightFormat::bf16) {
    return bf16_value(static_cast<const uint16_t*>(w.data)[r * w.ld + c]);
  } else {
    const int64_t g = c / w.group;
    const int32_t code = static_cast<int32_t>(weight_code<F>(w, r, c));
    return std::fma(group_scale(w, r, g), static_cast<float>(code - group_zero(w, r, g)), group_min(w, r, g));
  }
}

}  // namespace
}  // namespace thimble::ref
