// Activations to int8 per row and weight group (QuantizeI8Args): absmax, then codes = round(x / scale) with the division
// that the reference does, so that codes, scales and sums are equal on every tier. max(v, -127) comes first and returns
// its second operand for NaN.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
inline vf abs_value(vf v) { return _mm512_abs_ps(v); }
inline vf max_or_second(vf v, vf w) { return _mm512_max_ps(v, w); }
inline vf min_or_second(vf v, vf w) { return _mm512_min_ps(v, w); }
inline vi round_to_int(vf v) { return _mm512_cvtps_epi32(v); }
inline int32_t sum_lanes(vi v) { return _mm512_reduce_add_epi32(v); }
inline void store_codes(int8_t* p, vi v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
inline void store_codes_head(int8_t* p, vi v, int64_t n) { _mm512_mask_cvtepi32_storeu_epi8(p, head_mask(n), v); }
#else
inline vf abs_value(vf v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline vf max_or_second(vf v, vf w) { return _mm256_max_ps(v, w); }
inline vf min_or_second(vf v, vf w) { return _mm256_min_ps(v, w); }
inline vi round_to_int(vf v) { return _mm256_cvtps_epi32(v); }
inline int32_t sum_lanes(vi v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}
inline __m128i to_bytes(vi v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return _mm_packs_epi16(words, words);
}
inline void store_codes(int8_t* p, vi v) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), to_bytes(v)); }
inline void store_codes_head(int8_t* p, vi v, int64_t n) {
  alignas(16) int8_t bytes[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), to_bytes(v));
  for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
}
#endif

inline vi codes_of(vf x, vf scale) {
  return round_to_int(min_or_second(max_or_second(x / scale, set1(-127.0f)), set1(127.0f)));
}

// NaN is no part of the maximum: the running maximum is the second operand.
float absmax(const float* x, int64_t n) {
  vf m = set1(0.0f);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) m = max_or_second(abs_value(load(x + c)), m);
  if (c < n) m = max_or_second(abs_value(load_head(x + c, n - c)), m);
  return reduce_max(m);
}

// Fetches what comes after the row meanwhile: the maximum waits for memory, the divisions do not.
int32_t quantize(const float* x, int64_t n, float scale, int8_t* codes, int64_t ahead) {
  const vf s = set1(scale);
  vi sum = set1_i(0);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    _mm_prefetch(reinterpret_cast<const char*>(x + c + ahead), _MM_HINT_T0);
    const vi code = codes_of(load(x + c), s);
    sum = add_i(sum, code);
    store_codes(codes + c, code);
  }
  if (c < n) {  // the missing lanes are 0 / scale = 0
    const vi code = codes_of(load_head(x + c, n - c), s);
    sum = add_i(sum, code);
    store_codes_head(codes + c, code, n - c);
  }
  return sum_lanes(sum);
}

void quantize_i8(const QuantizeI8Args& a) noexcept {
  const int64_t ahead = a.group > 1024 ? a.group : 1024;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.ldx;
    int8_t* codes = a.codes + r * a.padded_cols;
    for (int64_t c = a.cols; c < a.padded_cols; ++c) codes[c] = 0;
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t begin = g * a.group, end = begin + a.group < a.cols ? begin + a.group : a.cols;
      const float scale = absmax(x + begin, end - begin) / 127.0f;
      int32_t sum = 0;
      if (scale == 0.0f) {
        for (int64_t c = begin; c < end; ++c) codes[c] = 0;
      } else {
        sum = quantize(x + begin, end - begin, scale, codes + begin, ahead);
      }
      a.scales[r * a.groups + g] = scale;
      a.sums[r * a.groups + g] = sum;
    }
  }
}

}  // namespace

void init_quantize(KernelTable& t) { t.quantize_i8 = quantize_i8; }

}  // namespace thimble::THIMBLE_ISA
