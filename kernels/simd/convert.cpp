// f32 <-> f16 and bf16, n elements, bit-equal to the reference: nearest even, quiet NaN. f16 by F16C. f32 -> bf16 in
// integers, with subnormal inputs flushed to signed zero as vcvtneps2bf16 does; the avx512_bf16 tier uses that
// instruction, and is all that this file adds there.
#include "kernels/simd/bf16.h"
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
using Halves = __m256i;  // kLanes 16-bit numbers
inline void store_halves(uint16_t* p, Halves v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store_halves_head(uint16_t* p, Halves v, int64_t n) { _mm256_mask_storeu_epi16(p, head_mask(n), v); }
#else
using Halves = __m128i;
inline void store_halves(uint16_t* p, Halves v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
inline void store_halves_head(uint16_t* p, Halves v, int64_t n) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}
#endif

#if defined(__AVX512BF16__)
inline Halves to_bf16(vf x) {
  const __m256bh h = _mm512_cvtneps_pbh(x);
  return reinterpret_cast<Halves>(h);
}
#elif defined(__AVX512F__)
inline Halves to_bf16(vf x) { return _mm512_cvtepi32_epi16(bf16_bits(x)); }
#else
inline Halves to_bf16(vf x) {
  const __m256i h = bf16_bits(x);
  return _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
#endif

template <class F>
void narrow(const ConvertArgs& a) noexcept {
  const auto* src = static_cast<const float*>(a.src);
  auto* dst = static_cast<uint16_t*>(a.dst);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store_halves(dst + i, F::f(load(src + i)));
  if (i < a.n) store_halves_head(dst + i, F::f(load_head(src + i, a.n - i)), a.n - i);
}

struct ToBf16 {
  static Halves f(vf x) { return to_bf16(x); }
};

#if !defined(__AVX512BF16__)

#if defined(__AVX512F__)
inline Halves load_halves(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Halves load_halves_head(const uint16_t* p, int64_t n) { return _mm256_maskz_loadu_epi16(head_mask(n), p); }
inline Halves to_f16(vf x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf from_f16(Halves h) { return _mm512_cvtph_ps(h); }
inline vf from_bf16(Halves h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
#else
inline Halves load_halves(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Halves load_halves_head(const uint16_t* p, int64_t n) {
  alignas(16) uint16_t buffer[8] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
inline Halves to_f16(vf x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf from_f16(Halves h) { return _mm256_cvtph_ps(h); }
inline vf from_bf16(Halves h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
#endif

struct ToF16 {
  static Halves f(vf x) { return to_f16(x); }
};
struct FromF16 {
  static vf f(Halves h) { return from_f16(h); }
};
struct FromBf16 {
  static vf f(Halves h) { return from_bf16(h); }
};

template <class F>
void widen(const ConvertArgs& a) noexcept {
  const auto* src = static_cast<const uint16_t*>(a.src);
  auto* dst = static_cast<float*>(a.dst);
  int64_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) store(dst + i, F::f(load_halves(src + i)));
  if (i < a.n) store_head(dst + i, F::f(load_halves_head(src + i, a.n - i)), a.n - i);
}

#endif

}  // namespace

void init_convert(KernelTable& t) {
  t.f32_to_bf16 = narrow<ToBf16>;
#if !defined(__AVX512BF16__)
  t.f32_to_f16 = narrow<ToF16>;
  t.f16_to_f32 = widen<FromF16>;
  t.bf16_to_f32 = widen<FromBf16>;
#endif
}

}  // namespace thimble::THIMBLE_ISA
