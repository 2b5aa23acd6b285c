// Rotary position embedding (Su et al. 2021): in each head the pair (a, b) turns by the angle of (position, j) into
// (a c - b s, b c + a s), j < rot_dim / 2; the rest of the head is copied. x [rows][heads * head_dim], y may be x.
// Interleaved pairs are separated and joined by shuffles. Same roundings as the reference: products are not fused.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"

namespace thimble::THIMBLE_ISA {
namespace {

// 2 kLanes consecutive numbers, two registers, to their even and odd ones, and back.
#if defined(__AVX512F__)
inline void split_pairs(vf low, vf high, vf* even, vf* odd) {
  const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *even = _mm512_permutex2var_ps(low, e, high);
  *odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(e, _mm512_set1_epi32(1)), high);
}
inline void join_pairs(vf even, vf odd, vf* low, vf* high) {
  const __m512i l = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *low = _mm512_permutex2var_ps(even, l, odd);
  *high = _mm512_permutex2var_ps(even, _mm512_add_epi32(l, _mm512_set1_epi32(8)), odd);
}
#else
inline void split_pairs(vf low, vf high, vf* even, vf* odd) {
  const __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
  const __m256d o = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xDD));
  *even = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xD8));
  *odd = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xD8));
}
inline void join_pairs(vf even, vf odd, vf* low, vf* high) {
  const __m256 l = _mm256_unpacklo_ps(even, odd), h = _mm256_unpackhi_ps(even, odd);
  *low = _mm256_permute2f128_ps(l, h, 0x20);
  *high = _mm256_permute2f128_ps(l, h, 0x31);
}
#endif

void rope(const RopeArgs& a) noexcept {
  const int64_t half = a.rot_dim / 2;
  const vf sign = set1(a.inverse ? -0.0f : 0.0f);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* cos_row = a.cos_table + a.positions[r] * half;
    const float* sin_row = a.sin_table + a.positions[r] * half;
    for (int64_t h = 0; h < a.heads; ++h) {
      const float* x = a.x + r * a.ldx + h * a.head_dim;
      float* y = a.y + r * a.ldy + h * a.head_dim;
      int64_t j = 0;
      for (; j + kLanes <= half; j += kLanes) {
        const vf c = load(cos_row + j), s = load(sin_row + j) ^ sign;
        if (a.interleaved) {
          vf u, v, low, high;
          split_pairs(load(x + 2 * j), load(x + 2 * j + kLanes), &u, &v);
          join_pairs(u * c - v * s, v * c + u * s, &low, &high);
          store(y + 2 * j, low);
          store(y + 2 * j + kLanes, high);
        } else {
          const vf u = load(x + j), v = load(x + half + j);
          store(y + j, u * c - v * s);
          store(y + half + j, v * c + u * s);
        }
      }
      const int64_t n = half - j;
      if (n > 0 && !a.interleaved) {
        const vf c = load_head(cos_row + j, n), s = load_head(sin_row + j, n) ^ sign;
        const vf u = load_head(x + j, n), v = load_head(x + half + j, n);
        store_head(y + j, u * c - v * s, n);
        store_head(y + half + j, v * c + u * s, n);
      } else {
        for (; j < half; ++j) {
          const float c = cos_row[j], s = a.inverse ? -sin_row[j] : sin_row[j];
          const float u = x[2 * j], v = x[2 * j + 1];
          y[2 * j] = u * c - v * s;
          y[2 * j + 1] = v * c + u * s;
        }
      }
      for (int64_t d = 2 * half; d < a.head_dim; d += kLanes) {
        const int64_t rest = a.head_dim - d;
        if (rest >= kLanes) {
          store(y + d, load(x + d));
        } else {
          store_head(y + d, load_head(x + d, rest), rest);
        }
      }
    }
  }
}

}  // namespace

void init_rope(KernelTable& t) { t.rope = rope; }

}  // namespace thimble::THIMBLE_ISA
