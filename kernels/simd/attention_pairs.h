// Blocks in pairs of bf16: keys in pairs along the head, transposed, values in pairs of keys, from f32 rows or from a
// cache. Everything is rounded once per block, for all rows of the call.
#pragma once

#include "kernels/simd/attention_tile.h"

namespace thimble::THIMBLE_ISA {
namespace {

inline void store_pairs(uint32_t* p, vf v) { store(reinterpret_cast<float*>(p), v); }
inline vf load_upto(const float* p, int64_t n) { return n > 0 ? load_part(p, n) : set1(0.0f); }
// The first n elements of a row; f32 rows may end there, those of a cache are readable up to whole vectors.
inline vf load_row_part(const float* p, int64_t n) { return load_part(p, n); }
template <class E>
inline vf load_row_part(const E* p, int64_t n) {
  return n >= kLanes ? load_element(p) : keep_head(load_element(p), n);
}

// 2 kLanes columns from d on of row j as pairs; zero outside the row or `keys`.
inline vf row_pairs(const float* rows, int64_t stride, Range keys, int64_t dim, int64_t j, int64_t d) {
  if (j < keys.begin || j >= keys.end) return set1(0.0f);
  const float* p = rows + j * stride + d;
  return as_float(halves(load_upto(p, dim - d), load_upto(p + kLanes, dim - d - kLanes)));
}

// out[d / 2 * kBlockK + j] = (rows[j][d], rows[j][d + 1]) for d < dim and j in `keys`; the rest of the touched vectors is
// zero.
inline void pack_pairs_transposed(const float* rows, int64_t stride, Range keys, int64_t dim, uint32_t* out) {
  const int64_t pairs = (dim + 1) / 2;
  for (int64_t j = round_down(keys.begin); j < keys.end; j += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t d = 0; d < dim; d += 16) prefetch(rows + (j + kPrefetchKeys + i) * stride + d);
    }
    for (int64_t p = 0; p < pairs; p += kLanes) {
      vf x[kLanes];
      if (j >= keys.begin && j + kLanes <= keys.end && 2 * (p + kLanes) <= dim) {
        const float* from = rows + j * stride + 2 * p;
        unroll<static_cast<int>(kLanes)>([&](auto n) __attribute__((always_inline)) {
          const float* row = from + decltype(n)::value * stride;
          x[decltype(n)::value] = as_float(halves(load(row), load(row + kLanes)));
        });
      } else {
        for (int64_t i = 0; i < kLanes; ++i) x[i] = row_pairs(rows, stride, keys, dim, j + i, 2 * p);
      }
      transpose(x);
      uint32_t* to = out + p * kBlockK + j;
      if (pairs - p >= kLanes) {
        unroll<static_cast<int>(kLanes)>([&](auto n) __attribute__((always_inline)) {
          store_pairs(to + decltype(n)::value * kBlockK, x[decltype(n)::value]);
        });
      } else {
        for (int64_t i = 0; i < pairs - p; ++i) store_pairs(to + i * kBlockK, x[i]);
      }
    }
  }
}

// out[j / 2 * padded + d] = (rows[j][d], rows[j + 1][d]), j even, zero outside `keys` and beyond dim. True if all are finite.
template <class E>
inline bool pack_row_pairs(const E* rows, int64_t stride, Range keys, int64_t dim, uint32_t* out) {
  const int64_t padded = round_up(dim);
  vf probe = set1(0.0f);  // x * 0 is NaN for infinities and NaN
  for (int64_t j = keys.begin / 2 * 2; j < keys.end; j += 2) {
    const bool has_even = j >= keys.begin, has_odd = j + 1 < keys.end;
    const E* row = rows + j * stride;
    for (int64_t d = 0; d < dim; d += kLanes) {
      vf even = set1(0.0f), odd = set1(0.0f);
      if (has_even) even = load_row_part(row + d, dim - d);
      if (has_odd) odd = load_row_part(row + stride + d, dim - d);
      if constexpr (sizeof(E) > 1) {
        probe = madd(even, set1(0.0f), probe);
        probe = madd(odd, set1(0.0f), probe);
      }
      store_pairs(out + j / 2 * padded + d, as_float(interleave(even, odd)));
    }
  }
  return reduce_add(probe) == 0.0f;
}

// n columns of two rows side by side, zero up to a whole vector; no odd row: zeros.
inline void interleave_rows(const float* even, const float* odd, int64_t n, uint32_t* out) {
  for (int64_t d = 0; d < n; d += kLanes) {
    const vf high = odd ? load_part(odd + d, n - d) : set1(0.0f);
    store_pairs(out + d, as_float(interleave(load_part(even + d, n - d), high)));
  }
}

// x as bf16 and back.
inline vf rounded_to_bf16(vf x) {
  const vi pairs = interleave(set1(0.0f), x);  // the high half of a pair is the float
  return as_float(pairs);
}

// Keys of a cache, k(j, d) at keys[d * kBlockK + j]: two rows side by side. What lies in the block is readable.
template <class E>
inline void pack_column_pairs(const E* keys, Range columns, int64_t dim, uint32_t* out) {
  for (int64_t d = 0; d < dim; d += 2) {
    const E* even = keys + d * kBlockK;
    for (int64_t j = round_down(columns.begin); j < columns.end; j += kLanes) {
      const vf odd = d + 1 < dim ? load_element(even + kBlockK + j) : set1(0.0f);
      store_pairs(out + d / 2 * kBlockK + j, as_float(interleave(load_element(even + j), odd)));
    }
  }
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
