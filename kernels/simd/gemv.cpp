// y[i, r] (+)= sum_c x[i, c] W(r, c) for i < m <= 8, at the speed of reading W. Lanes are output rows and every output is
// one fma chain over c, the chain of panel_t + gemm_f32. Layout rows transposes blocks in registers, one strip of rows
// after the other; tiles stream as they are, several strips side by side to hide the latency of the chains. Codes become
// floats without integer conversions: (code | 2^23's bits) - (2^23 + zero) is exactly code - zero; fields that a shift has
// to move anyway (q2) go to bit 0. W is prefetched some KB ahead, as each stream is short.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/transpose.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

// ---- layout rows

// One fma step of M chains: column c of the strip against x(i, c).
template <int M>
[[gnu::always_inline]] inline void step(const GemvArgs& a, int64_t c, vf w, vf* acc) {
  unroll<M>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = decltype(i)::value;
    acc[m] = madd(set1(a.x[m * a.ldx + c]), w, acc[m]);
  });
}

template <int M>
inline void load_y(const GemvArgs& a, int64_t r, int64_t n, vf* acc) {
  unroll<M>([&](auto i) __attribute__((always_inline)) {
    const float* y = a.y + decltype(i)::value * a.ldy + r;
    acc[decltype(i)::value] = a.accumulate == 0 ? set1(0.0f) : n >= kLanes ? load(y) : load_head(y, n);
  });
}

template <int M>
inline void store_y(const GemvArgs& a, int64_t r, int64_t n, const vf* acc) {
  unroll<M>([&](auto i) __attribute__((always_inline)) {
    float* y = a.y + decltype(i)::value * a.ldy + r;
    if (n >= kLanes) {
      store(y, acc[decltype(i)::value]);
    } else {
      store_head(y, acc[decltype(i)::value], n);
    }
  });
}

// One block of columns from c on, of the strip whose first row is p: one 32-bit lane of each row is one column, or two
// that are transposed as one. Meanwhile the next stretch of the strip is asked for, row after row: line by line, sixteen
// rows would be as many streams.
template <WeightFormat F>
constexpr int64_t kBlockWidth = kLanes * 4 / static_cast<int64_t>(sizeof(typename RowsElement<F>::type));
constexpr int64_t kStretchBytes = 1024;

template <WeightFormat F, int M>
[[gnu::always_inline]] inline void rows_block(const GemvArgs& a, const typename RowsElement<F>::type* p, int64_t c, vf* acc) {
  constexpr int64_t kStretch = kStretchBytes * kBlockWidth<F> / kLanes / 4;
  constexpr int64_t kRowLines = kStretchBytes / 64, kBlockLines = kLanes * kLanes / 16;
  static_assert(kRowLines % kBlockLines == 0);
  vf v[kLanes];
  unroll<static_cast<int>(kLanes)>([&](auto i) __attribute__((always_inline)) {
    v[decltype(i)::value] = load(reinterpret_cast<const float*>(p + decltype(i)::value * a.w.ld + c));
  });
  const int64_t next = c / kStretch * kStretch + kStretch;
  if (next < a.w.cols) {
    const int64_t line = c % kStretch / kBlockWidth<F> * kBlockLines;
    const char* q = reinterpret_cast<const char*>(p + line / kRowLines * a.w.ld + next) + line % kRowLines * 64;
    unroll<static_cast<int>(kBlockLines)>([&](auto i) __attribute__((always_inline)) {
      _mm_prefetch(q + 64 * decltype(i)::value, _MM_HINT_T0);
    });
  }
  transpose(v);
  unroll<static_cast<int>(kLanes)>([&](auto j) __attribute__((always_inline)) {
    const vf w = v[decltype(j)::value];
    if constexpr (F == WeightFormat::f32) {
      step<M>(a, c + decltype(j)::value, w, acc);
    } else {
      const vi pair = as_int(w);
      step<M>(a, c + 2 * decltype(j)::value, F == WeightFormat::bf16 ? low_bf16(pair) : low_f16(pair), acc);
      step<M>(a, c + 2 * decltype(j)::value + 1, F == WeightFormat::bf16 ? high_bf16(pair) : high_f16(pair), acc);
    }
  });
}

// The same for the last columns, or a strip of n < kLanes rows.
template <WeightFormat F, int M>
void edge_block(const GemvArgs& a, const typename RowsElement<F>::type* p, int64_t n, int64_t c, vf* acc) {
  const int64_t width = a.w.cols - c < kLanes ? a.w.cols - c : kLanes;
  vf v[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const auto* q = p + i * a.w.ld + c;
    v[i] = i >= n ? set1(0.0f) : width == kLanes ? load_row<F>(q) : load_row_head<F>(q, width);
  }
  transpose(v);
  for (int64_t j = 0; j < width; ++j) step<M>(a, c + j, v[j], acc);
}

// The strip of kLanes rows from row r on.
template <WeightFormat F, int M>
void rows_strip(const GemvArgs& a, int64_t r) {
  const auto* p = row_pointer<F>(a.w, a.row0 + r, 0);
  const int64_t n = a.rows - r;
  vf acc[M];
  load_y<M>(a, r, n, acc);
  int64_t c = 0;
  if (n >= kLanes)
    for (; c + kBlockWidth<F> <= a.w.cols; c += kBlockWidth<F>) rows_block<F, M>(a, p, c, acc);
  for (; c < a.w.cols; c += kLanes) edge_block<F, M>(a, p, n, c, acc);
  store_y<M>(a, r, n, acc);
}

template <WeightFormat F, int M>
void gemv_rows_m(const GemvArgs& a) {
  for (int64_t r = 0; r < a.rows; r += kLanes) rows_strip<F, M>(a, r);
}

template <WeightFormat F>
void gemv_rows(const GemvArgs& a) noexcept {
  switch (a.m) {
    case 1: return gemv_rows_m<F, 1>(a);
    case 2: return gemv_rows_m<F, 2>(a);
    case 3: return gemv_rows_m<F, 3>(a);
    case 4: return gemv_rows_m<F, 4>(a);
    case 5: return gemv_rows_m<F, 5>(a);
    case 6: return gemv_rows_m<F, 6>(a);
    case 7: return gemv_rows_m<F, 7>(a);
    case 8: return gemv_rows_m<F, 8>(a);
    default: return;
  }
}

// ---- tiles

constexpr int32_t kMagic = 0x4B000000;  // the bits of 2^23: or-ing a code in adds it exactly
constexpr float kTwo23 = 8388608.0f;
constexpr float kTwo19 = 524288.0f;  // with a unit of 1/16: a nibble at bits 4..7 counts as it is

// The parameters of a group, for fields at bit 0 and (q4) at bit 4.
struct GemvGroup {
  vf scale, base, base4, min;
};
template <WeightFormat F>
inline GemvGroup gemv_group(const WeightView& w, int64_t r, int64_t g) {
  const StripGroup s = strip_group(w, r, g);
  const vf zero = to_float(s.zero);
  return {s.scale, zero + set1(kTwo23), zero + set1(kTwo19), s.min};
}

// Column J of the words as scale * (code - zero), plus min if there is one.
template <WeightFormat F, bool HasMin, int J>
[[gnu::always_inline]] inline vf weight_value(vi words, const GemvGroup& g) {
  constexpr int kShift = 8 * (J % 4) + (F == WeightFormat::q2 ? J / 4 * 2 : 0);
  constexpr bool kHigh = F == WeightFormat::q4 && J >= 4;
  constexpr int kMask = F == WeightFormat::q8 ? 255 : F == WeightFormat::q2 ? 3 : kHigh ? 240 : 15;
  const vi bytes = kShift == 0 ? words : shift_right(words, kShift);
  const vi bits = and_or_i(bytes, set1_i(kMask), set1_i(kHigh ? 0x49000000 : kMagic));
  const vf difference = as_float(bits) - (kHigh ? g.base4 : g.base);
  if constexpr (HasMin) {
    return madd(g.scale, difference, g.min);
  } else {
    return difference * g.scale;
  }
}

// T strips of kLanes rows from row r on, all of them inside the matrix.
template <WeightFormat F, bool HasMin, int M, int T>
void tile_strips(const GemvArgs& a, int64_t r) {
  constexpr int kColumns = static_cast<int>(kStepColumns<F>);
  const WeightView& w = a.w;
  const int64_t row = a.row0 + r;
  const uint8_t* codes[T];
  vf acc[T][M];
  unroll<T>([&](auto t) __attribute__((always_inline)) {
    constexpr int s = decltype(t)::value;
    codes[s] = strip_codes(w, row + s * kLanes);
    load_y<M>(a, r + s * kLanes, a.rows - r - s * kLanes, acc[s]);
  });
  int64_t c = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t group_end = (g + 1) * w.group < w.cols ? (g + 1) * w.group : w.cols;
    GemvGroup group[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      group[decltype(t)::value] = gemv_group<F>(w, row + decltype(t)::value * kLanes, g);
    });
    for (; c + kColumns <= group_end; c += kColumns) {
      vi words[T];
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        const uint8_t* p = codes[decltype(t)::value] + c / kColumns * 64;
        words[decltype(t)::value] = load_i(p);
        if (kLanes == 16 || decltype(t)::value % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(p + 4096), _MM_HINT_T0);
      });
      unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          constexpr int s = decltype(t)::value;
          step<M>(a, c + decltype(j)::value, weight_value<F, HasMin, decltype(j)::value>(words[s], group[s]), acc[s]);
        });
      });
    }
    if (c < group_end) {
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        constexpr int s = decltype(t)::value;
        const vi words = load_i(codes[s] + c / kColumns * 64);
        unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
          if (c + decltype(j)::value < group_end)
            step<M>(a, c + decltype(j)::value, weight_value<F, HasMin, decltype(j)::value>(words, group[s]), acc[s]);
        });
      });
      c = group_end;
    }
  }
  unroll<T>([&](auto t) __attribute__((always_inline)) {
    store_y<M>(a, r + decltype(t)::value * kLanes, a.rows - r - decltype(t)::value * kLanes, acc[decltype(t)::value]);
  });
}

template <WeightFormat F, bool HasMin, int M>
void gemv_tiles_m(const GemvArgs& a) {
  constexpr int kStrips = M <= 2 ? 4 : kLanes == 16 ? 2 : 1;  // what the registers hold
  int64_t r = 0;
  for (; r + (kStrips - 1) * kLanes < a.rows; r += kStrips * kLanes) tile_strips<F, HasMin, M, kStrips>(a, r);
  for (; r < a.rows; r += kLanes) tile_strips<F, HasMin, M, 1>(a, r);
}

template <WeightFormat F, bool HasMin>
void gemv_tiles_kind(const GemvArgs& a) {
  switch (a.m) {
    case 1: return gemv_tiles_m<F, HasMin, 1>(a);
    case 2: return gemv_tiles_m<F, HasMin, 2>(a);
    case 3: return gemv_tiles_m<F, HasMin, 3>(a);
    case 4: return gemv_tiles_m<F, HasMin, 4>(a);
    case 5: return gemv_tiles_m<F, HasMin, 5>(a);
    case 6: return gemv_tiles_m<F, HasMin, 6>(a);
    case 7: return gemv_tiles_m<F, HasMin, 7>(a);
    case 8: return gemv_tiles_m<F, HasMin, 8>(a);
    default: return;
  }
}
template <WeightFormat F>
void gemv_tiles(const GemvArgs& a) noexcept {
  (a.w.mins != nullptr ? gemv_tiles_kind<F, true> : gemv_tiles_kind<F, false>)(a);
}

}  // namespace

void init_gemv(KernelTable& t) {
  t.gemv_tile_rows = kLanes == 16 ? 32 : 7;
  t.gemv_dense_rows = kLanes == 16 ? 2 * kGemvMaxRows : kGemvMaxRows;
  t.gemv_f32 = gemv_rows<WeightFormat::f32>;
  t.gemv_f16 = gemv_rows<WeightFormat::f16>;
  t.gemv_bf16 = gemv_rows<WeightFormat::bf16>;
  t.gemv_q8 = gemv_tiles<WeightFormat::q8>;
  t.gemv_q4 = gemv_tiles<WeightFormat::q4>;
  t.gemv_q2 = gemv_tiles<WeightFormat::q2>;
}

}  // namespace thimble::THIMBLE_ISA
