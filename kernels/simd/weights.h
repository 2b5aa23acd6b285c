// Vectors of weights from every format (weight_format.h). Layout rows: kLanes neighbouring columns of one row as f32.
// Layout tiles: a "strip" is kLanes neighbouring rows (a whole tile on avx512, half of one on avx2), and a vector holds
// one column of it, lanes being rows, so that dequantization needs no shuffle. The value of a code is
// fma(scale, float(code - zero), min): kinds of groups differ in where zero and min come from (WeightView), not in code.
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
inline vi as_int(vf a) { return _mm512_castps_si512(a); }
inline vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf as_float(vi a) { return _mm512_castsi512_ps(a); }
inline vi load_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vf load_bf16(const uint16_t* p) {
  const vi wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return as_float(_mm512_slli_epi32(wide, 16));
}
// The low and high 16 bits of every lane, as floats. maskz: g++ 12 warns about a read inside its plain _mm512_slli_epi32.
inline vf low_bf16(vi a) { return as_float(_mm512_maskz_slli_epi32(0xFFFF, a, 16)); }
inline vf high_bf16(vi a) { return as_float(and_i(a, set1_i(static_cast<int32_t>(0xFFFF0000)))); }
inline vf low_f16(vi a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
inline vf high_f16(vi a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16))); }
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
inline vi as_int(vf a) { return _mm256_castps_si256(a); }
inline vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
inline vf as_float(vi a) { return _mm256_castsi256_ps(a); }
inline vi load_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline vf load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load_bf16(const uint16_t* p) {
  const vi wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return as_float(_mm256_slli_epi32(wide, 16));
}
inline vf low_bf16(vi a) { return as_float(_mm256_slli_epi32(a, 16)); }
inline vf high_bf16(vi a) { return as_float(and_i(a, set1_i(static_cast<int32_t>(0xFFFF0000)))); }
inline __m128i low_halves(vi a) {  // they fit in 16 bits, so that packing does not saturate
  const vi low = and_i(a, set1_i(0xFFFF));
  return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}
inline vf low_f16(vi a) { return _mm256_cvtph_ps(low_halves(a)); }
inline vf high_f16(vi a) { return _mm256_cvtph_ps(low_halves(_mm256_srli_epi32(a, 16))); }
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
constexpr int64_t kStepColumns = step_columns(F);

// The 32-bit code words of the strip at row r (a multiple of kLanes), from step 0 on; the next step lies 64 bytes on.
inline const uint8_t* strip_codes(const WeightView& w, int64_t r) {
  return static_cast<const uint8_t*>(w.data) + (r / 16 * w.steps) * 64 + r % 16 * 4;
}

struct StripGroup {
  vf scale;
  vi zero;
  vf min;
};
inline int64_t strip_parameter(const WeightView& w, int64_t r, int64_t g) { return (r / 16 * w.groups + g) * 16 + r % 16; }
inline vf load_parameter(const WeightView& w, const void* values, int64_t i) {
  return w.scale_f32 != 0 ? load(static_cast<const float*>(values) + i) : load_f16(static_cast<const uint16_t*>(values) + i);
}
inline StripGroup strip_group(const WeightView& w, int64_t r, int64_t g) {
  const int64_t i = strip_parameter(w, r, g);
  return {load_parameter(w, w.scales, i), w.zeros != nullptr ? load_u8(w.zeros + i) : set1_i(w.zero),
          w.mins != nullptr ? load_parameter(w, w.mins, i) : set1(0.0f)};
}
// With the lanes from `rows` on switched off: their values are zero.
inline StripGroup masked_group(const WeightView& w, int64_t r, int64_t g, int64_t rows) {
  StripGroup s = strip_group(w, r, g);
  if (rows < kLanes) {
    s.scale = keep_head(s.scale, rows);
    s.min = keep_head(s.min, rows);
  }
  return s;
}

// Field J / 4 of byte J % 4: column J of a step's words.
template <WeightFormat F, int J>
[[gnu::always_inline]] inline vf code_value(vi words, const StripGroup& g) {
  constexpr int kBits = static_cast<int>(format_bits(F)), kShift = 8 * (J % 4) + kBits * (J / 4);
  const vi shifted = kShift == 0 ? words : shift_right(words, kShift);
  const vi code = kShift + kBits == 32 ? shifted : and_i(shifted, set1_i((1 << kBits) - 1));
  return madd(g.scale, to_float(sub_i(code, g.zero)), g.min);
}

// At most kLanes columns of a step, from column c on (a multiple of kLanes), as the first columns of the words: a step of
// q2 is two blocks wide where kLanes is 8, and its later fields are shifted down.
template <WeightFormat F>
constexpr int kBlockColumns = kStepColumns<F> < kLanes ? static_cast<int>(kStepColumns<F>) : static_cast<int>(kLanes);
template <WeightFormat F>
[[gnu::always_inline]] inline vi load_block_words(const uint8_t* codes, int64_t c) {
  const vi words = load_i(codes + c / kStepColumns<F> * 64);
  if constexpr (kStepColumns<F> > kLanes) {
    return shift_right(words, static_cast<int>(c % kStepColumns<F> / 4 * format_bits(F)));
  } else {
    return words;
  }
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
