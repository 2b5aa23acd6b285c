// kLanes x kLanes transposes in registers: v[i] lane j <-> v[j] lane i.
#pragma once

#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
// Pairs of rows, then quads, inside the 128-bit lanes; then the lanes themselves as a 4 x 4 transpose.
[[gnu::always_inline]] inline void transpose(vf* v) {
  __m512 a[16], b[16];
  unroll<8>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = 2 * decltype(index)::value;
    a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  });
  unroll<4>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = 4 * decltype(index)::value;
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xEE);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
  });
  unroll<4>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value;
    const __m512 even_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), odd_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
    const __m512 even_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
    v[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
    v[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
  });
}
#else
[[gnu::always_inline]] inline void transpose(vf* v) {
  __m256 a[8], b[8];
  unroll<4>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = 2 * decltype(index)::value;
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  });
  unroll<2>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = 4 * decltype(index)::value;
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
  });
  unroll<4>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value;
    v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  });
}
#endif

}  // namespace
}  // namespace thimble::THIMBLE_ISA
