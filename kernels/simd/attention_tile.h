// What attention, attention over a cache and backward share: which keys a row sees, packing of key blocks, and the
// register-tiled product C(r, :) = C(r, :) * rescale[r] + sum over k in order of A(r, k) B(k, :) with rows found through
// pointers and B in f32, f16 or int8, or both in pairs of bf16.
#pragma once

#include "kernels/kernel_args.h"
#include "kernels/simd/bf16.h"
#include "kernels/simd/math.h"
#include "kernels/simd/pair_step.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int64_t kBlockK = kAttentionBlockK;
constexpr int kTileQ = 6;  // rows of a register tile
#if defined(__AVX512F__)
constexpr int kMaxTile = 8;      // rows of a tile over a cache: eight query heads that share their keys
constexpr int kTileVectors = 4;  // 6 x 64: 24 accumulators of 32 registers
#else
constexpr int kMaxTile = 6;
constexpr int kTileVectors = 2;  // 6 x 16: 12 of 16
#endif
constexpr int kMaxRows = 12;    // rows whose scores are made together: two register tiles share the softmax's latencies
constexpr int kRowVectors = 8;  // one row alone needs this many chains to hide the latency of fma
constexpr int64_t kPrefetchKeys = 16;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_down(int64_t n) { return n / kLanes * kLanes; }
inline int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline float* align64(float* p) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
}

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  int64_t size() const { return end - begin; }
};

inline Range intersect(Range a, Range b) { return {most(a.begin, b.begin), least(a.end, b.end)}; }

// The keys of the main sequence that row t sees. Both ends grow with t.
inline Range visible_keys(const AttentionArgs& a, int64_t t) {
  const int64_t pos = a.q_pos0 + t;
  return {a.window > 0 ? most(0, pos - a.window + 1) : 0, a.causal != 0 ? least(a.tk, pos + 1) : a.tk};
}

inline vf load_part(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_head(p, n); }
inline void store_part(float* p, vf v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_head(p, v, n);
  }
}

#if defined(__AVX512F__)
using LaneIndex = __m512i;
inline LaneIndex lane_index() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline vf index_as_float(int64_t base) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(lane_index(), _mm512_set1_epi32(static_cast<int>(base))));
}
// v where begin <= lane < end, otherwise `other`.
inline vf keep_lanes(vf v, int64_t begin, int64_t end, vf other) {
  const uint32_t below_end = end >= 16 ? 0xFFFFu : end <= 0 ? 0u : (1u << end) - 1u;
  const uint32_t below_begin = begin >= 16 ? 0xFFFFu : begin <= 0 ? 0u : (1u << begin) - 1u;
  return _mm512_mask_blend_ps(static_cast<__mmask16>(below_end & ~below_begin), other, v);
}
// x[i][j] -> x[j][i]
inline void transpose(vf (&x)[16]) {
  vf t[16];
  unroll<8>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value * 2;
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  });
  unroll<4>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value * 4;
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 2]);
    const __m512d c = _mm512_castps_pd(t[i + 1]), d = _mm512_castps_pd(t[i + 3]);
    x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  });
  unroll<4>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value;
    const vf a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD);
    const vf c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88), d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xDD);
    t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
    t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
  });
  unroll<16>([&](auto n) __attribute__((always_inline)) { x[decltype(n)::value] = t[decltype(n)::value]; });
}
#else
inline vf index_as_float(int64_t base) {
  return _mm256_cvtepi32_ps(
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(base))));
}
inline vf keep_lanes(vf v, int64_t begin, int64_t end, vf other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane);
  const __m256i before_begin = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(begin)), lane);
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_andnot_si256(before_begin, before_end)));
}
inline void transpose(vf (&x)[8]) {
  vf t[8];
  unroll<4>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value * 2;
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  });
  unroll<2>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value * 4;
    x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  });
  unroll<4>([&](auto n) __attribute__((always_inline)) {
    constexpr int i = decltype(n)::value;
    t[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
  });
  unroll<8>([&](auto n) __attribute__((always_inline)) { x[decltype(n)::value] = t[decltype(n)::value]; });
}
#endif

inline void prefetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// out[d * kBlockK + j] = rows[j * stride + d] for d < dim and j in `keys`; the rest of the touched vectors is zero.
// The next rows are asked for line by line before this group is turned, so that the memory sees one forward stream; a
// prefetch beyond an array is harmless.
inline void pack_transposed(const float* rows, int64_t stride, Range keys, int64_t dim, float* out) {
  for (int64_t j = round_down(keys.begin); j < keys.end; j += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t d = 0; d < dim; d += 16) prefetch(rows + (j + kPrefetchKeys + i) * stride + d);
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      vf x[kLanes];
      if (j >= keys.begin && j + kLanes <= keys.end && d + kLanes <= dim) {
        unroll<static_cast<int>(kLanes)>([&](auto n) __attribute__((always_inline)) {
          x[decltype(n)::value] = load(rows + (j + decltype(n)::value) * stride + d);
        });
      } else {
        for (int64_t i = 0; i < kLanes; ++i) {
          const bool seen = j + i >= keys.begin && j + i < keys.end;
          x[i] = seen ? load_part(rows + (j + i) * stride + d, dim - d) : set1(0.0f);
        }
      }
      transpose(x);
      const int64_t n_d = least(kLanes, dim - d);
      if (n_d == kLanes) {
        unroll<static_cast<int>(kLanes)>([&](auto n) __attribute__((always_inline)) {
          store(out + (d + decltype(n)::value) * kBlockK + j, x[decltype(n)::value]);
        });
      } else {
        for (int64_t i = 0; i < n_d; ++i) store(out + (d + i) * kBlockK + j, x[i]);
      }
    }
  }
}

// out[j * padded + d] = rows[j * stride + d] for j in `keys`, zero for dim <= d < padded. True if all are finite.
inline bool pack_rows(const float* rows, int64_t stride, Range keys, int64_t dim, float* out) {
  const int64_t padded = round_up(dim);
  vf probe = set1(0.0f);  // x * 0 is NaN for infinities and NaN
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      const vf x = load_part(rows + j * stride + d, dim - d);
      probe = madd(x, set1(0.0f), probe);
      store(out + j * padded + d, x);
    }
  }
  return reduce_add(probe) == 0.0f;
}

// n floats as pairs of bf16, up to whole vectors of pairs; an odd n ends with a zero.
inline void round_row(const float* x, int64_t n, uint32_t* out) {
  for (int64_t d = 0; d < n; d += 2 * kLanes) {
    const vf first = load_part(x + d, n - d);
    const vf second = n - d > kLanes ? load_part(x + d + kLanes, n - d - kLanes) : set1(0.0f);
    store(reinterpret_cast<float*>(out + d / 2), as_float(halves(first, second)));
  }
}

// kLanes elements of a cache as floats.
inline vf load_element(const float* p) { return load(p); }
inline vf load_element(const uint16_t* p) { return load_f16(p); }
inline vf load_element(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
}

// The other operand: pairs of bf16 meet pairs (k counts pairs then), everything else f32.
template <class E>
struct LeftOf {
  using type = float;
};
template <>
struct LeftOf<uint32_t> {
  using type = uint32_t;
};
template <class E>
constexpr bool kPairs = false;
template <>
constexpr bool kPairs<uint32_t> = true;

template <class E>
struct ProductOf {
  const typename LeftOf<E>::type* a[kMaxRows];  // A(r, k) = a[r][k * a_step]
  int64_t a_step;
  const E* b;  // B(k, c) = b[k * ldb + c], readable up to whole vectors
  int64_t ldb;
  float* c[kMaxRows];
  const float* rescale;  // null: C starts at zero
  int64_t rows, cols, depth;
  int64_t ahead;  // bytes from an element of B to what is asked for when that is used; only tiles that stream look at it
};
using Product = ProductOf<float>;

// kAhead: B is streamed from memory, ask for what comes next.
template <int R, int V, bool kAhead, class E>
inline void product_tile(const ProductOf<E>& p, int64_t col, int64_t last) {
  vf acc[R][V];
  const bool whole = last == kLanes;
  const typename LeftOf<E>::type* a[R];
  unroll<R>([&](auto i) __attribute__((always_inline)) { a[decltype(i)::value] = p.a[decltype(i)::value]; });
  if (p.rescale) {
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      constexpr int r = decltype(i)::value;
      const vf factor = set1(p.rescale[r]);
      unroll<V>([&](auto j) __attribute__((always_inline)) {
        constexpr int v = decltype(j)::value;
        const float* c = p.c[r] + col + v * kLanes;
        acc[r][v] = (v < V - 1 || whole ? load(c) : load_head(c, last)) * factor;
      });
    });
  } else {
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      unroll<V>([&](auto j)
                    __attribute__((always_inline)) { acc[decltype(i)::value][decltype(j)::value] = set1(0.0f); });
    });
  }
  const E* b = p.b + col;
  const int64_t ldb = p.ldb, step = p.a_step;
  int64_t at = 0;
  for (int64_t k = p.depth; k > 0; --k) {
    if constexpr (kAhead) {
      constexpr int kBytes = V * static_cast<int>(kLanes) * static_cast<int>(sizeof(E)), kLines = (kBytes + 63) / 64;
      unroll<kLines>([&](auto j) __attribute__((always_inline)) {
        _mm_prefetch(reinterpret_cast<const char*>(b) + p.ahead + decltype(j)::value * 64, R == 1 ? _MM_HINT_T0 : _MM_HINT_T1);
      });
    }
    if constexpr (kPairs<E>) {
      pair_step(acc, [&](int r) __attribute__((always_inline)) { return a[r][at]; }, b);
    } else {
      vf w[V];
      unroll<V>([&](auto j) __attribute__((always_inline)) {
        w[decltype(j)::value] = load_element(b + decltype(j)::value * kLanes);
      });
      unroll<R>([&](auto i) __attribute__((always_inline)) {
        constexpr int r = decltype(i)::value;
        const vf x = set1(a[r][at]);
        unroll<V>([&](auto j) __attribute__((always_inline)) {
          constexpr int v = decltype(j)::value;
          acc[r][v] = madd(x, w[v], acc[r][v]);
        });
      });
    }
    at += step;
    b += ldb;
  }
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    constexpr int r = decltype(i)::value;
    unroll<V>([&](auto j) __attribute__((always_inline)) {
      constexpr int v = decltype(j)::value;
      float* c = p.c[r] + col + v * kLanes;
      if (v < V - 1 || whole) {
        store(c, acc[r][v]);
      } else {
        store_head(c, acc[r][v], last);
      }
    });
  });
}

template <int R, int V, class E>
inline void product_rest(const ProductOf<E>& p, int64_t col, int vectors, int64_t last) {
  if constexpr (V > 0) {
    if (vectors == V) return product_tile<R, V, false>(p, col, last);
    product_rest<R, V - 1>(p, col, vectors, last);
  }
}

template <int R, class E>
void product_rows(const ProductOf<E>& p) {
  constexpr int kVectors = R == 1 ? kRowVectors : kTileVectors;
  int64_t col = 0;
  for (; col + kVectors * kLanes <= p.cols; col += kVectors * kLanes) product_tile<R, kVectors, false>(p, col, kLanes);
  if (col == p.cols) return;
  const int64_t vectors = (p.cols - col + kLanes - 1) / kLanes;
  product_rest<R, kVectors>(p, col, static_cast<int>(vectors), p.cols - col - (vectors - 1) * kLanes);
}

template <class E>
void product(const ProductOf<E>& p) {
  switch (p.rows) {
    case 6:
      return product_rows<6>(p);
    case 5:
      return product_rows<5>(p);
    case 4:
      return product_rows<4>(p);
    case 3:
      return product_rows<3>(p);
    case 2:
      return product_rows<2>(p);
    case 1:
      return product_rows<1>(p);
    default:
      return;
  }
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
