// Vectors of weights from every format (weight_format.h). Layout rows: kLanes neighbouring columns of one row as f32.
// Layout tiles: a "strip" is kLanes neighbouring rows (a whole tile on avx512, half of one on avx2), and a vector holds
// one column of it, lanes being rows, so that dequantization needs no shuffle. The value of a code is
// scale * (float(code) - float(zero)), rounded once; the difference of the integers is exact in f32.
#pragma once

#include "kernels/kernel_args.h"
#include "kernels/simd/simd.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
using vi = __m512i;
inline vi load_i(const void* p) { return _mm512_loadu_si512(p); }
inline vi set1_i(int32_t x) { return _mm512_set1_epi32(x); }
inline vi add_i(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline vi sub_i(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi and_i(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi and_or_i(vi a, vi b, vi c) { return _mm512_ternarylogic_epi32(a, b, c, 0xEA); }  // (a & b) | c
inline vi shift_right(vi a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf as_float(vi a) { return _mm512_castsi512_ps(a); }
inline vi load_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vf load_bf16(const uint16_t* p) {
  const vi wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return as_float(_mm512_slli_epi32(wide, 16));
}
inline vf keep_head(vf v, int64_t n) { return _mm512_maskz_mov_ps(head_mask(n), v); }
#else
using vi = __m256i;
inline vi load_i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline vi set1_i(int32_t x) { return _mm256_set1_epi32(x); }
inline vi add_i(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline vi sub_i(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi and_i(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi and_or_i(vi a, vi b, vi c) { return _mm256_or_si256(_mm256_and_si256(a, b), c); }
inline vi shift_right(vi a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
inline vf as_float(vi a) { return _mm256_castsi256_ps(a); }
inline vi load_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline vf load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load_bf16(const uint16_t* p) {
  const vi wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return as_float(_mm256_slli_epi32(wide, 16));
}
inline vf keep_head(vf v, int64_t n) { return as_float(and_i(_mm256_castps_si256(v), head_mask(n))); }
#endif

// ---- layout rows

template <WeightFormat F>
struct RowsElement {
  using type = uint16_t;
};
template <>
struct RowsElement<WeightFormat::f32> {
  using type = float;
};

template <WeightFormat F>
inline const typename RowsElement<F>::type* row_pointer(const WeightView& w, int64_t r, int64_t c) {
  return static_cast<const typename RowsElement<F>::type*>(w.data) + r * w.ld + c;
}

template <WeightFormat F>
[[gnu::always_inline]] inline vf load_row(const typename RowsElement<F>::type* p) {
  if constexpr (F == WeightFormat::f32) {
    return load(p);
  } else if constexpr (F == WeightFormat::f16) {
    return load_f16(p);
  } else {
    return load_bf16(p);
  }
}

// The first n < kLanes columns; the rest is zero.
template <WeightFormat F>
inline vf load_row_head(const typename RowsElement<F>::type* p, int64_t n) {
  if constexpr (F == WeightFormat::f32) {
    return load_head(p, n);
  } else {
    uint16_t head[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) head[i] = p[i];
    return load_row<F>(head);
  }
}

// ---- layout tiles

template <WeightFormat F>
constexpr int64_t kStepColumns = F == WeightFormat::q8 ? 4 : 8;

// The 32-bit code words of the strip at row r (a multiple of kLanes), from step 0 on; the next step lies 64 bytes on.
inline const uint8_t* strip_codes(const WeightView& w, int64_t r) {
  return static_cast<const uint8_t*>(w.data) + (r / 16 * w.steps) * 64 + r % 16 * 4;
}

struct StripGroup {
  vf scale;
  vi zero;
};
inline StripGroup strip_group(const WeightView& w, int64_t r, int64_t g) {
  const int64_t i = (r / 16 * w.groups + g) * 16 + r % 16;
  const vf scale = w.scale_f32 != 0 ? load(static_cast<const float*>(w.scales) + i)
                                    : load_f16(static_cast<const uint16_t*>(w.scales) + i);
  return {scale, load_u8(w.zeros + i)};
}

// Column J (0..3 for q8, 0..7 for q4) of a step's words.
template <WeightFormat F, int J>
[[gnu::always_inline]] inline vf code_value(vi words, const StripGroup& g) {
  constexpr int kShift = F == WeightFormat::q8 ? 8 * J : J < 4 ? 8 * J : 8 * (J - 4) + 4;
  constexpr int kMask = F == WeightFormat::q8 ? 255 : 15;
  const vi shifted = kShift == 0 ? words : shift_right(words, kShift);
  const vi code = kShift + (F == WeightFormat::q8 ? 8 : 4) == 32 ? shifted : and_i(shifted, set1_i(kMask));
  return to_float(sub_i(code, g.zero)) * g.scale;
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
