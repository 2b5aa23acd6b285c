// Panels of bf16 pairs, from any weight format (semantics: PairPanelArgs). Values are rounded before anything is moved, so
// that transposes work on 32-bit lanes of two. pairs_t: rows are turned in registers, kLanes rows of kLanes pairs at a
// time; tiles have their rows in the lanes already. pairs_n: two rows are interleaved; tiles round two strips into one
// vector, whose lanes are then pairs of rows, and transpose that. pairs_columns: two rows interleaved, then transposed.
#include "kernels/simd/bf16.h"
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/transpose.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kLaneCount = static_cast<int>(kLanes);

inline void store_pairs(uint32_t* p, vf v) { store(reinterpret_cast<float*>(p), v); }

void store_zeros(uint32_t* out, int64_t rows, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) store_pairs(out + i * stride, set1(0.0f));
}

// 2 kLanes columns of a row as kLanes pairs.
template <WeightFormat F>
[[gnu::always_inline]] inline vf load_pairs(const typename RowsElement<F>::type* p) {
  if constexpr (F == WeightFormat::bf16) {
    return as_float(load_i(p));
  } else {
    return as_float(halves(load_row<F>(p), load_row<F>(p + kLanes)));
  }
}

// The first n < 2 kLanes columns; the rest is zero.
template <WeightFormat F>
inline vf load_pairs_head(const typename RowsElement<F>::type* p, int64_t n) {
  if constexpr (F == WeightFormat::bf16) {
    uint16_t head[2 * kLanes] = {};
    for (int64_t i = 0; i < n; ++i) head[i] = p[i];
    return as_float(load_i(head));
  } else if (n < kLanes) {
    return as_float(halves(load_row_head<F>(p, n), set1(0.0f)));
  } else {
    return as_float(halves(load_row<F>(p), load_row_head<F>(p + kLanes, n - kLanes)));
  }
}

template <WeightFormat F>
void rows_pairs_t(const PairPanelArgs& a) noexcept {
  const int64_t pairs = (a.cols + 1) / 2;
  for (int64_t i = 0; i < a.nr; i += kLanes) {
    const int64_t n = a.rows - i;
    if (n <= 0) {
      store_zeros(a.out + i, pairs, a.nr);
      continue;
    }
    for (int64_t p = 0; p < pairs; p += kLanes) {
      const int64_t width = a.cols - 2 * p;
      const auto* in = row_pointer<F>(a.w, a.row0 + i, a.col0 + 2 * p);
      uint32_t* out = a.out + p * a.nr + i;
      vf v[kLanes];
      if (n >= kLanes && width >= 2 * kLanes) {
        unroll<kLaneCount>([&](auto j) __attribute__((always_inline)) {
          v[decltype(j)::value] = load_pairs<F>(in + decltype(j)::value * a.w.ld);
        });
        transpose(v);
        unroll<kLaneCount>([&](auto j) __attribute__((always_inline)) {
          store_pairs(out + decltype(j)::value * a.nr, v[decltype(j)::value]);
        });
      } else {
        for (int64_t j = 0; j < kLanes; ++j)
          v[j] = j >= n                 ? set1(0.0f)
                 : width >= 2 * kLanes ? load_pairs<F>(in + j * a.w.ld)
                                       : load_pairs_head<F>(in + j * a.w.ld, width);
        transpose(v);
        for (int64_t j = 0; j < kLanes && p + j < pairs; ++j) store_pairs(out + j * a.nr, v[j]);
      }
    }
  }
}

// kLanes columns of two rows.
template <WeightFormat F>
[[gnu::always_inline]] inline vf load_two_rows(const typename RowsElement<F>::type* even,
                                               const typename RowsElement<F>::type* odd) {
  if constexpr (F == WeightFormat::bf16) {
    return as_float(interleave_halves(even, odd));
  } else {
    return as_float(interleave(load_row<F>(even), load_row<F>(odd)));
  }
}

// The first n <= kLanes columns of a row and of the one below it, if there is one.
template <WeightFormat F>
inline vf load_two_rows_head(const typename RowsElement<F>::type* even, int64_t ld, bool has_odd, int64_t n) {
  typename RowsElement<F>::type low[kLanes] = {}, high[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    low[i] = even[i];
    if (has_odd) high[i] = even[ld + i];
  }
  return load_two_rows<F>(low, high);
}

template <WeightFormat F>
void rows_pairs_n(const PairPanelArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; r += 2) {
    const auto* p = row_pointer<F>(a.w, a.row0 + r, a.col0);
    const bool has_odd = r + 1 < a.rows;
    uint32_t* out = a.out + r / 2 * a.nr;
    int64_t c = 0;
    if (has_odd) {
      for (; c + kLanes <= a.cols; c += kLanes) store_pairs(out + c, load_two_rows<F>(p + c, p + a.w.ld + c));
    }
    for (; c < a.nr; c += kLanes) {
      const int64_t n = a.cols - c < kLanes ? a.cols - c : kLanes;
      store_pairs(out + c, n > 0 ? load_two_rows_head<F>(p + c, a.w.ld, has_odd, n) : set1(0.0f));
    }
  }
}

void pairs_columns(const PairPanelArgs& a) noexcept {
  constexpr WeightFormat kF32 = WeightFormat::f32;
  for (int64_t c = 0; c < a.cols; c += kLanes) {
    const int64_t width = a.cols - c < kLanes ? a.cols - c : kLanes;
    for (int64_t r = 0; r < a.rows; r += 2 * kLanes) {
      const float* p = row_pointer<kF32>(a.w, a.row0 + r, a.col0 + c);
      const int64_t left = a.rows - r, pairs = (left + 1) / 2, ld = a.w.ld;
      uint32_t* out = a.out + c * a.nr + r / 2;
      vf v[kLanes];
      if (left >= 2 * kLanes && width == kLanes) {
        unroll<kLaneCount>([&](auto j) __attribute__((always_inline)) {
          constexpr int i = decltype(j)::value;
          v[i] = load_two_rows<kF32>(p + 2 * i * ld, p + (2 * i + 1) * ld);
        });
        transpose(v);
        unroll<kLaneCount>([&](auto j) __attribute__((always_inline)) {
          store_pairs(out + decltype(j)::value * a.nr, v[decltype(j)::value]);
        });
      } else {
        for (int64_t j = 0; j < kLanes; ++j)
          v[j] = j < pairs ? load_two_rows_head<kF32>(p + 2 * j * ld, ld, 2 * j + 1 < left, width) : set1(0.0f);
        transpose(v);
        for (int64_t j = 0; j < width; ++j) {
          float* row = reinterpret_cast<float*>(out + j * a.nr);
          if (pairs >= kLanes) {
            store(row, v[j]);
          } else {
            store_head(row, v[j], pairs);
          }
        }
      }
    }
  }
}

// A step holds whole pairs, and so does a group.
template <WeightFormat F>
void tiles_pairs_t(const PairPanelArgs& a) noexcept {
  constexpr int kColumns = static_cast<int>(kStepColumns<F>);
  for (int64_t i = 0; i < a.nr; i += kLanes) {
    const int64_t n = a.rows - i;
    if (n <= 0) {
      store_zeros(a.out + i, (a.cols + 1) / 2, a.nr);
      continue;
    }
    const uint8_t* codes = strip_codes(a.w, a.row0 + i);
    const int64_t end = a.col0 + a.cols;
    uint32_t* out = a.out + i;
    for (int64_t c = a.col0; c < end;) {
      const int64_t g = c / a.w.group, group_end = (g + 1) * a.w.group < end ? (g + 1) * a.w.group : end;
      const StripGroup group = masked_group(a.w, a.row0 + i, g, n);
      for (; c + kColumns <= group_end; c += kColumns, out += kColumns / 2 * a.nr) {
        const vi words = load_i(codes + c / kColumns * 64);
        unroll<kColumns / 2>([&](auto index) __attribute__((always_inline)) {
          constexpr int j = decltype(index)::value;
          store_pairs(out + j * a.nr,
                      as_float(interleave(code_value<F, 2 * j>(words, group), code_value<F, 2 * j + 1>(words, group))));
        });
      }
      if (c < group_end) {
        const vi words = load_i(codes + c / kColumns * 64);
        unroll<kColumns / 2>([&](auto index) __attribute__((always_inline)) {
          constexpr int j = decltype(index)::value;
          if (c + 2 * j < group_end) {
            const vf odd = c + 2 * j + 1 < group_end ? code_value<F, 2 * j + 1>(words, group) : set1(0.0f);
            store_pairs(out + j * a.nr, as_float(interleave(code_value<F, 2 * j>(words, group), odd)));
          }
        });
        c = end;
      }
    }
  }
}

// Columns [c, c + kLanes) of the strips at rows r and r + kLanes, of which `rows` count: v[i] is the pair of rows 2 i and
// 2 i + 1. Columns beyond the padded ones are zero.
template <WeightFormat F>
[[gnu::always_inline]] inline void unpack_pairs(const WeightView& w, int64_t r, int64_t rows, int64_t c, vf* v) {
  constexpr int kColumns = kBlockColumns<F>, kBlocks = kLaneCount / kColumns;
  const bool two = rows > kLanes;
  const uint8_t* first = strip_codes(w, r);
  const uint8_t* second = two ? strip_codes(w, r + kLanes) : first;
  unroll<kBlocks>([&](auto index) __attribute__((always_inline)) {
    constexpr int s = decltype(index)::value;
    const int64_t block = c + s * kColumns;
    if (block < w.steps * kStepColumns<F>) {
      const int64_t g = block / w.group;
      const StripGroup one = masked_group(w, r, g, rows);
      const StripGroup other = two ? masked_group(w, r + kLanes, g, rows - kLanes) : StripGroup{set1(0.0f), one.zero, set1(0.0f)};
      const vi words = load_block_words<F>(first, block), more = load_block_words<F>(second, block);
      unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
        constexpr int column = decltype(j)::value;
        v[s * kColumns + column] = as_float(halves(code_value<F, column>(words, one), code_value<F, column>(more, other)));
      });
    } else {
      unroll<kColumns>([&](auto j) __attribute__((always_inline)) { v[s * kColumns + decltype(j)::value] = set1(0.0f); });
    }
  });
  transpose(v);
}

template <WeightFormat F>
void tiles_pairs_n(const PairPanelArgs& a) noexcept {
  for (int64_t i = 0; i < a.rows; i += 2 * kLanes) {
    const int64_t n = a.rows - i < 2 * kLanes ? a.rows - i : 2 * kLanes, pairs = (n + 1) / 2;
    for (int64_t c = 0; c < a.nr; c += kLanes) {
      uint32_t* out = a.out + i / 2 * a.nr + c;
      if (c >= a.cols) {
        store_zeros(out, pairs, a.nr);
        continue;
      }
      vf v[kLanes];
      unpack_pairs<F>(a.w, a.row0 + i, n, a.col0 + c, v);
      if (pairs == kLanes && a.cols - c >= kLanes) {
        unroll<kLaneCount>([&](auto j) __attribute__((always_inline)) {
          store_pairs(out + decltype(j)::value * a.nr, v[decltype(j)::value]);
        });
      } else {
        for (int64_t j = 0; j < pairs; ++j)
          store_pairs(out + j * a.nr, a.cols - c >= kLanes ? v[j] : keep_head(v[j], a.cols - c));
      }
    }
  }
}

}  // namespace

void init_pairs(KernelTable& t) {
  t.pairs_t_f32 = rows_pairs_t<WeightFormat::f32>;
  t.pairs_t_f16 = rows_pairs_t<WeightFormat::f16>;
  t.pairs_t_bf16 = rows_pairs_t<WeightFormat::bf16>;
  t.pairs_t_q8 = tiles_pairs_t<WeightFormat::q8>;
  t.pairs_t_q4 = tiles_pairs_t<WeightFormat::q4>;
  t.pairs_t_q2 = tiles_pairs_t<WeightFormat::q2>;
  t.pairs_n_f32 = rows_pairs_n<WeightFormat::f32>;
  t.pairs_n_f16 = rows_pairs_n<WeightFormat::f16>;
  t.pairs_n_bf16 = rows_pairs_n<WeightFormat::bf16>;
  t.pairs_n_q8 = tiles_pairs_n<WeightFormat::q8>;
  t.pairs_n_q4 = tiles_pairs_n<WeightFormat::q4>;
  t.pairs_n_q2 = tiles_pairs_n<WeightFormat::q2>;
  t.pairs_columns = pairs_columns;
}

}  // namespace thimble::THIMBLE_ISA
