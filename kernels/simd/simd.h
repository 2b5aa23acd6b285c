// The vector vocabulary of the SIMD tiers, and the only place that includes xsimd. A source under simd/ is compiled once
// per tier; everything here is in an anonymous namespace so that nothing inline can be merged across tiers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <xsimd/xsimd.hpp>

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
using Arch = xsimd::avx512bw;
#else
using Arch = xsimd::fma3<xsimd::avx2>;  // plain avx2 has no fma in xsimd 8.1
#endif
using vf = xsimd::batch<float, Arch>;  // 16 or 8 floats
constexpr int64_t kLanes = vf::size;

inline vf load(const float* p) { return vf::load_unaligned(p); }
inline void store(float* p, vf v) { v.store_unaligned(p); }
inline vf set1(float x) { return vf(x); }

// a * b + c and c - a * b, rounded once. On the register: clang 14 turns xsimd's fma on avx512 into mul + add.
inline vf madd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#else
  return _mm256_fmadd_ps(a, b, c);
#endif
}
inline vf nmadd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fnmadd_ps(a, b, c);
#else
  return _mm256_fnmadd_ps(a, b, c);
#endif
}

// The first n < kLanes floats; the rest is zero on load and untouched on store.
#if defined(__AVX512F__)
inline __mmask16 head_mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline vf load_head(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(head_mask(n), p); }
inline void store_head(float* p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, head_mask(n), v); }
#else
inline __m256i head_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf load_head(const float* p, int64_t n) { return _mm256_maskload_ps(p, head_mask(n)); }
inline void store_head(float* p, vf v, int64_t n) { _mm256_maskstore_ps(p, head_mask(n), v); }
#endif

// Sums and maxima over the lanes, in a fixed order.
inline float reduce_add(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#endif
}
inline float reduce_max(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
#endif
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
