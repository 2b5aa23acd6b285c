// f32 -> bf16 in registers, bit-equal to the reference: nearest even, quiet NaN, subnormals to signed zero. By
// vcvtne2ps2bf16 where the tier has it, else in integers.
#pragma once

#include "kernels/simd/simd.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512BF16__)

// 2 kLanes halves in memory order: those of `first`, then those of `second`.
inline vi halves(vf first, vf second) {
  const __m512bh h = _mm512_cvtne2ps_pbh(second, first);
  return reinterpret_cast<vi>(h);
}
// Lane j: `even` in the low half, `odd` in the high half.
inline vi interleave(vf even, vf odd) {
  const vi order = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                     0x180008, 0x190009, 0x1A000A, 0x1B000B, 0x1C000C, 0x1D000D, 0x1E000E, 0x1F000F);
  return _mm512_permutexvar_epi16(order, halves(even, odd));
}

#elif defined(__AVX512F__)

// The 16 bits of each lane's bf16 as an integer.
inline vi bf16_bits(vf x) {
  const vi u = _mm512_castps_si512(x), top = _mm512_maskz_srli_epi32(0xFFFF, u, 16);
  const vi rounded = add_i(u, add_i(and_i(top, set1_i(1)), set1_i(0x7FFF)));
  const vi magnitude = and_i(u, set1_i(0x7FFFFFFF));
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, set1_i(0x7F800000));
  const __mmask16 small = _mm512_cmplt_epi32_mask(magnitude, set1_i(0x00800000));
  vi h = _mm512_mask_or_epi32(_mm512_maskz_srli_epi32(0xFFFF, rounded, 16), nan, top, set1_i(0x40));
  h = _mm512_mask_and_epi32(h, small, top, set1_i(0x8000));
  return h;
}
inline vi halves(vf first, vf second) {
  const __m256i low = _mm512_cvtepi32_epi16(bf16_bits(first)), high = _mm512_cvtepi32_epi16(bf16_bits(second));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline vi interleave(vf even, vf odd) {
  return _mm512_or_si512(bf16_bits(even), _mm512_maskz_slli_epi32(0xFFFF, bf16_bits(odd), 16));
}

#else

inline vi bf16_bits(vf x) {
  const vi u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
  const vi rounded = add_i(u, add_i(and_i(top, set1_i(1)), set1_i(0x7FFF)));
  const vi magnitude = and_i(u, set1_i(0x7FFFFFFF));
  const vi nan = _mm256_cmpgt_epi32(magnitude, set1_i(0x7F800000));
  const vi small = _mm256_cmpgt_epi32(set1_i(0x00800000), magnitude);
  const vi h = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_or_si256(top, set1_i(0x40)), nan);
  return _mm256_blendv_epi8(h, and_i(top, set1_i(0x8000)), small);
}
inline vi halves(vf first, vf second) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(bf16_bits(first), bf16_bits(second)), 0xD8);
}
inline vi interleave(vf even, vf odd) {
  return _mm256_or_si256(bf16_bits(even), _mm256_slli_epi32(bf16_bits(odd), 16));
}

#endif

// kLanes 16-bit numbers of two rows, side by side in 32-bit lanes.
inline vi interleave_halves(const uint16_t* even, const uint16_t* odd) {
#if defined(__AVX512F__)
  const vi low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const vi high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return _mm512_or_si512(low, _mm512_maskz_slli_epi32(0xFFFF, high, 16));
#else
  const vi low = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(even)));
  const vi high = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(odd)));
  return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
#endif
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
