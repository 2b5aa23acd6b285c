// The forward of attention over key blocks from any source, with the online softmax (Milakov, Gimelshein 2018; Dao et al.
// 2022) and the parts of kernel_args.h. A tile of up to kMaxTile rows goes scores -> exponentials -> values without
// leaving the first-level cache.
// A row's bits depend on its own visible keys only: masked scores add exactly nothing, and a block with non-finite
// values, where 0 * NaN would leak, is multiplied row by row within each row's own range.
#pragma once

#include "kernels/simd/attention_tile.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff(), kLargest = 2e38f, kLog2E = 1.44269504f;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kChunkRows = kAttentionMaxGroup;  // rows that share a packed block; bounded by the scratch

template <class E>
struct BlockOf {
  Range keys;     // within the segment
  int64_t start;  // the segment's key of column 0
  bool prefix, finite;
  bool streams;  // comes from memory and is used by few tiles
  const E* kt;   // [head_dim][kBlockK]; pairs: [head_dim / 2][kBlockK]
  const E* v;    // value of column j at v[j * v_stride]; pairs: of columns j and j + 1 at v[j / 2 * v_stride]
  int64_t v_stride;
  const float* k_scale;  // of column j; null: 1
  const float* v_scale;
};
using Block = BlockOf<float>;
using Block16 = BlockOf<uint32_t>;

// Left operands of the rows of a tile in pairs of bf16.
template <class E>
struct RoundedRows {};
template <>
struct RoundedRows<uint32_t> {
  alignas(64) uint32_t queries[kMaxRows][kAttentionMaxHeadDim / 2];
  alignas(64) uint32_t probabilities[kMaxRows][kBlockK / 2 + kLanes];
};

// The state of the part at hand.
struct Rows {
  int64_t t0, rows;  // row r: t = t0 + r / group, g = r % group
  float *max, *sum;
  float* values;  // row r at values + r * values_row; null: in o
  int64_t values_row;
};

inline float* values_of(const AttentionArgs& a, const Rows& rows, int64_t r, int64_t t, int64_t g) {
  return rows.values ? rows.values + r * rows.values_row : a.o + t * a.o_row + g * a.o_head;
}
inline float* values_of(const AttentionArgs& a, const Rows& rows, int64_t r) {
  return values_of(a, rows, r, rows.t0 + r / a.group, r % a.group);
}

struct Scratch {
  float *kt, *v;             // one block
  float* scores;             // [kMaxRows][kBlockK]
  float *max, *sum;          // [kChunkRows], of the merged parts
  float *part_max, *part_sum;
  float* values;             // [kChunkRows][padded head_dim], of the part at hand
};

inline Scratch scratch_of(const AttentionArgs& a) {
  const int64_t padded = (a.head_dim + 63) / 64 * 64;
  Scratch s;
  s.kt = align64(a.scratch);
  s.v = s.kt + kBlockK * padded;
  s.scores = s.v + kBlockK * padded;
  s.max = s.scores + kMaxRows * kBlockK;
  s.sum = s.max + kChunkRows;
  s.part_max = s.sum + kChunkRows;
  s.part_sum = s.part_max + kChunkRows;
  s.values = s.part_sum + kChunkRows;
  return s;
}
static_assert(kMaxRows <= kAttentionTileRows);

// The columns of the block that row t sees.
template <class E>
inline Range columns(const AttentionArgs& a, const BlockOf<E>& b, int64_t t) {
  const Range keys = b.prefix ? b.keys : intersect(b.keys, visible_keys(a, t));
  return {keys.begin - b.start, keys.end - b.start};
}

// A row of products to scores but for the multiplication by `scale`, which is left to the exponentials where nothing else
// is done to a score. Returns the maximum over cols; other lanes of their vectors become -inf.
template <class E>
inline float row_maximum(const AttentionArgs& a, const BlockOf<E>& b, bool linear, float slope, Range cols, float* s) {
  vf top = set1(-kInfinity);
  const auto finish = [&](int64_t j, vf x) __attribute__((always_inline)) {
    if (b.k_scale) x = x * load(b.k_scale + j);
    if (!linear) {
      if (a.softcap != 0) {
        x = set1(a.softcap) * vtanh(x * set1(a.scale / a.softcap));
      } else {
        x = x * set1(a.scale);
      }
      if (a.alibi && !b.prefix) x = madd(set1(slope), index_as_float(b.start + j), x);
    }
    if (j < cols.begin || j + kLanes > cols.end) x = keep_lanes(x, cols.begin - j, cols.end - j, set1(-kInfinity));
    store(s + j, x);
    top = vmax(x, top);
  };
  int64_t j = round_down(cols.begin);
  if (b.k_scale || !linear) {
    for (; j < cols.end; j += kLanes) finish(j, load(s + j));
    return reduce_max(top);
  }
  if (j < cols.begin) {
    finish(j, load(s + j));
    j += kLanes;
  }
  for (; j + kLanes <= cols.end; j += kLanes) top = vmax(load(s + j), top);
  if (j < cols.end) finish(j, load(s + j));
  return reduce_max(top);
}

// 2^x for x below 127, to 1.2 ulp; 0 from -152 on. A Chebyshev fit of (2^f - 1) / f on |f| <= 1/2.
inline vf exp2_below(vf x) {
  x = vmax(set1(-152.0f), x);
  const vf n = vround(x), f = x - n;
  vf p = madd(set1(0.0001545316336f), f, set1(0.001339086331f));
  p = madd(p, f, set1(0.009618083015f));
  p = madd(p, f, set1(0.05550356954f));
  p = madd(p, f, set1(0.2402265072f));
  p = madd(p, f, set1(0.6931471825f));
  return scale_exponent(madd(p, f, set1(1.0f)), n);
}

// Scores to exponentials, 2^(scale * score - shift); returns their sum. `by` multiplies what is stored, not what is
// summed; lanes outside become zero.
inline float row_exponentials(float* s, Range cols, float scale, float shift, const float* by) {
  vf sum = set1(0.0f);
  for (int64_t j = round_down(cols.begin); j < cols.end; j += kLanes) {
    vf e = exp2_below(madd(load(s + j), set1(scale), set1(-shift)));
    sum = sum + e;
    if (by) {
      e = e * load(by + j);
      if (j < cols.begin || j + kLanes > cols.end) e = keep_lanes(e, cols.begin - j, cols.end - j, set1(0.0f));
    }
    store(s + j, e);
  }
  return reduce_add(sum);
}

// multiply(p) computes p, which has at most Multiply::kRows rows. More rows are register tiles one after another.
template <class E, class Multiply>
inline void multiply_rows(const ProductOf<E>& p, const Multiply& multiply) {
  if (p.rows <= Multiply::kRows) return multiply(p);
  for (int64_t r = 0; r < p.rows; r += kTileQ) {
    ProductOf<E> part = p;
    part.rows = least(kTileQ, p.rows - r);
    for (int64_t i = 0; i < part.rows; ++i) {
      part.a[i] = p.a[r + i];
      part.c[i] = p.c[r + i];
    }
    if (p.rescale) part.rescale = p.rescale + r;
    multiply(part);
  }
}

// One row of pairs of values over its own columns only: at an odd end the other half of the pair is switched off. The
// pieces of the chain continue in c.
template <class Multiply>
void multiply_pairs_within(const Block16& b, Range cols, ProductOf<uint32_t> one, const Multiply& multiply) {
  constexpr float kOne = 1.0f;
  uint32_t edge[kAttentionMaxHeadDim];
  const uint32_t* const probabilities = one.a[0];
  const auto piece = [&](int64_t pair, int64_t depth, uint32_t mask) {
    if (depth <= 0) return;
    one.a[0] = probabilities + pair;
    one.b = b.v + pair * b.v_stride;
    one.depth = depth;
    if (mask != ~uint32_t{0}) {
      for (int64_t d = 0; d < one.cols; ++d) edge[d] = one.b[d] & mask;
      for (int64_t d = one.cols; d < round_up(one.cols); ++d) edge[d] = 0;
      one.b = edge;
    }
    multiply(one);
    one.rescale = &kOne;
  };
  int64_t first = cols.begin / 2;
  const int64_t last = cols.end / 2;
  if (cols.begin % 2 != 0) piece(first++, 1, 0xFFFF0000u);
  piece(first, last - first, ~uint32_t{0});
  if (cols.end % 2 != 0) piece(last, 1, 0x0000FFFFu);
}

// n <= kMaxRows rows from r0 on against one block: scores, exponentials, values.
template <class E, class Multiply>
void tile(const AttentionArgs& a, const BlockOf<E>& b, const Rows& rows, int64_t r0, int64_t n, float* s,
          const Multiply& multiply) {
  int64_t t[kMaxRows], g[kMaxRows];
  t[0] = rows.t0 + r0 / a.group;
  g[0] = r0 % a.group;
  for (int64_t i = 1; i < n; ++i) {
    const bool next = g[i - 1] + 1 == a.group;
    t[i] = t[i - 1] + (next ? 1 : 0);
    g[i] = next ? 0 : g[i - 1] + 1;
  }
  const Range all{columns(a, b, t[0]).begin, columns(a, b, t[n - 1]).end};
  if (all.empty()) return;
  const bool linear = a.softcap == 0 && a.scale > 0 && (!a.alibi || b.prefix);
  const int64_t from = round_down(all.begin), to = round_up(all.end);

  ProductOf<E> scores{}, values{};
  for (int64_t i = 0; i < n; ++i) {
    scores.c[i] = s + i * kBlockK + from;
    values.c[i] = values_of(a, rows, r0 + i, t[i], g[i]);
  }
  RoundedRows<E> rounded;
  for (int64_t i = 0; i < n; ++i) {
    const float* q = a.q + t[i] * a.q_row + g[i] * a.q_head;
    if constexpr (kPairs<E>) {
      round_row(q, a.head_dim, rounded.queries[i]);
      scores.a[i] = rounded.queries[i];
      values.a[i] = rounded.probabilities[i] + all.begin / 2;
    } else {
      scores.a[i] = q;
      values.a[i] = s + i * kBlockK + all.begin;
    }
  }
  scores.a_step = 1;
  scores.b = b.kt + from;
  scores.ldb = kBlockK;
  scores.rows = n;
  scores.cols = to - from;
  scores.depth = kPairs<E> ? (a.head_dim + 1) / 2 : a.head_dim;
  // One row walks through a block once, line by line: it asks a page ahead. More rows walk through it several times, in
  // columns: they ask for the same place of the block that comes next, scores for the values, values for the next keys.
  const auto distance = [](const E* here, const E* next) {
    return static_cast<int64_t>(reinterpret_cast<intptr_t>(next) - reinterpret_cast<intptr_t>(here));
  };
  scores.ahead = !b.streams ? 0 : n == 1 ? kPageBytes : distance(b.kt, b.v);
  multiply_rows(scores, multiply);

  // First all maxima, then all exponentials: those of a row wait for its maximum, those of the next row need not.
  const float scale = linear ? a.scale : 1.0f;
  alignas(64) float top[16], shift[16], rescale[16], sums[16];
  for (int64_t i = 0; i < 16; i += kLanes) {
    store(top + i, set1(-kInfinity));
    store(sums + i, set1(0.0f));
  }
  Range cols[kMaxRows];
  bool same = true;
  for (int64_t i = 0; i < n; ++i) {
    cols[i] = columns(a, b, t[i]);
    same = same && cols[i].begin == all.begin && cols[i].end == all.end;
    if (cols[i].empty()) continue;
    top[i] = row_maximum(a, b, linear, a.alibi ? a.alibi[g[i]] : 0.0f, cols[i], s + i * kBlockK);
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf old = load_part(rows.max + r0 + i, n - i), now = vmax(load(top + i) * set1(scale), old);
    const vf finite = vmax(now, set1(-kLargest));  // a row that has seen nothing: exp(-inf) below, not exp(NaN)
    store(shift + i, finite * set1(kLog2E));
    store(rescale + i, vexp(old - finite));
    store_part(rows.max + r0 + i, now, n - i);
  }
  for (int64_t i = 0; i < n; ++i) {
    float* row = s + i * kBlockK;
    int64_t begin = to, end = to;
    if (!cols[i].empty()) {
      sums[i] = row_exponentials(row, cols[i], scale * kLog2E, shift[i], b.v_scale);
      begin = round_down(cols[i].begin);
      end = round_up(cols[i].end);
    }
    for (int64_t j = from; j < begin; j += kLanes) store(row + j, set1(0.0f));
    for (int64_t j = end; j < to; j += kLanes) store(row + j, set1(0.0f));
    if constexpr (kPairs<E>) round_row(row + from, to - from, rounded.probabilities[i] + from / 2);
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf old = load_part(rows.sum + r0 + i, n - i);
    store_part(rows.sum + r0 + i, old * load(rescale + i) + load(sums + i), n - i);
  }

  values.a_step = 1;
  values.b = b.v + (kPairs<E> ? all.begin / 2 : all.begin) * b.v_stride;
  values.ldb = b.v_stride;
  values.rescale = rescale;
  values.rows = n;
  values.cols = a.head_dim;
  values.depth = kPairs<E> ? (all.end + 1) / 2 - all.begin / 2 : all.size();
  values.ahead = !b.streams ? 0 : n == 1 ? kPageBytes : distance(b.v, b.kt + kBlockK * a.head_dim);
  if (b.finite || (same && !kPairs<E>)) return multiply_rows(values, multiply);
  for (int64_t i = 0; i < n; ++i) {
    if (cols[i].empty()) continue;
    ProductOf<E> one = values;
    one.c[0] = values.c[i];
    one.rescale = rescale + i;
    one.rows = 1;
    if constexpr (kPairs<E>) {
      one.a[0] = rounded.probabilities[i];
      multiply_pairs_within(b, cols[i], one, multiply);
    } else {
      one.a[0] = s + i * kBlockK + cols[i].begin;
      one.b = b.v + cols[i].begin * b.v_stride;
      one.depth = cols[i].size();
      multiply(one);
    }
  }
}

// All blocks of the keys `seen`, in tiles of at most `tile_rows` rows that do not cross a multiple of `together` rows;
// fill(start, keys) makes the block that starts at key `start`.
template <class Fill, class Multiply>
void run_blocks(const AttentionArgs& a, const Rows& rows, Range seen, int64_t tile_rows, int64_t together, float* scores,
                const Fill& fill, const Multiply& multiply) {
  for (int64_t start = seen.begin / kBlockK * kBlockK; start < seen.end; start += kBlockK) {
    const auto b = fill(start, intersect(seen, {start, start + kBlockK}));
    for (int64_t first = 0; first < rows.rows; first += together) {
      const int64_t end = least(rows.rows, first + together);
      for (int64_t r = first; r < end; r += tile_rows) {
        tile(a, b, rows, r, least(tile_rows, end - r), scores, multiply);
      }
    }
  }
}

// f32 rows, packed: what `attention` reads, and the prefix of every source.
inline Block packed_rows(const AttentionArgs& a, const Rows& rows, const Scratch& s, bool prefix, int64_t start,
                         Range keys) {
  const float* k = prefix ? a.prefix_k : a.k;
  const float* v = prefix ? a.prefix_v : a.v;
  const int64_t k_row = prefix ? a.prefix_row : a.k_row, v_row = prefix ? a.prefix_row : a.v_row;
  const Range packed{keys.begin - start, keys.end - start};
  Block b{keys, start, prefix, true, false, s.kt, s.v, round_up(a.head_dim), nullptr, nullptr};
  pack_transposed(k + start * k_row, k_row, packed, a.head_dim, s.kt);
  if (rows.rows == a.group && a.head_dim % kLanes == 0) {  // one position: all rows see the same keys
    b.v = v + start * v_row;
    b.v_stride = v_row;
  } else {
    b.finite = pack_rows(v + start * v_row, v_row, packed, a.head_dim, s.v);
  }
  return b;
}

template <class Multiply>
void rows_part(const AttentionArgs& a, const Rows& rows, const Scratch& s, bool prefix, Range keys,
               const Multiply& multiply) {
  run_blocks(
      a, rows, keys, kMaxRows, rows.rows, s.scores,
      [&](int64_t start, Range block) { return packed_rows(a, rows, s, prefix, start, block); }, multiply);
}

inline void begin_part(const AttentionArgs& a, const Rows& rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    rows.max[r] = -kInfinity;
    rows.sum[r] = 0.0f;
    float* x = values_of(a, rows, r);
    for (int64_t d = 0; d < a.head_dim; d += kLanes) store_part(x + d, set1(0.0f), a.head_dim - d);
  }
}

// Adds a part to what was merged before it: (max, sum, values) of both; an empty side leaves the other as it is.
inline void merge_part(int64_t head_dim, float part_max, float part_sum, const float* part, float* max, float* sum,
                       float* values) {
  if (part_sum == 0.0f) return;
  if (*sum == 0.0f) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store_part(values + d, load_part(part + d, head_dim - d), head_dim - d);
    }
    *max = part_max;
    *sum = part_sum;
    return;
  }
  const float now = part_max > *max ? part_max : *max;
  alignas(64) float factors[16] = {*max - now, part_max - now};
  store(factors, vexp(load(factors)));
  const vf old = set1(factors[0]), fresh = set1(factors[1]);
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const vf x = load_part(values + d, head_dim - d), y = load_part(part + d, head_dim - d);
    store_part(values + d, madd(y, fresh, x * old), head_dim - d);
  }
  *sum = *sum * factors[0] + part_sum * factors[1];
  *max = now;
}

// Normalises a row; lse may be null.
inline void finish_row(int64_t head_dim, bool softmax_one, float max, float sum, float* o, float* lse) {
  const bool sees_none = sum == 0.0f;
  float factor = sees_none ? 0.0f : 1.0f;
  if (softmax_one && !sees_none) {
    const float now = max > 0.0f ? max : 0.0f;
    alignas(64) float factors[16] = {max - now, -now};
    store(factors, vexp(load(factors)));
    factor = factors[0];
    sum = sum * factors[0] + factors[1];
    max = now;
  }
  const vf inverse = set1(sees_none ? 0.0f : factor / sum);
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    store_part(o + d, load_part(o + d, head_dim - d) * inverse, head_dim - d);
  }
  if (!lse) return;
  const double log_sum = static_cast<double>(max) + __builtin_log(static_cast<double>(sum));
  *lse = sees_none ? -kInfinity : static_cast<float>(log_sum);
}

// All parts of all rows. run(rows, prefix, keys) runs the blocks of one part.
template <class Run>
void attend(const AttentionArgs& a, const Scratch& s, const Run& run) {
  const int64_t step = most(1, kChunkRows / a.group);
  for (int64_t t = 0; t < a.tq; t += step) {
    const int64_t t_end = least(a.tq, t + step);
    const Range seen{visible_keys(a, t).begin, visible_keys(a, t_end - 1).end};
    const int64_t first = seen.begin / kAttentionChunkK, end = (seen.end + kAttentionChunkK - 1) / kAttentionChunkK;
    const Rows merged{t, (t_end - t) * a.group, s.max, s.sum, nullptr, 0};
    begin_part(a, merged);
    // A single part needs no merging: it is summed in o.
    const bool single = (a.n_prefix > 0 ? 1 : 0) + (seen.empty() ? 0 : end - first) <= 1;
    const Rows part{t, merged.rows, s.part_max, s.part_sum, s.values, round_up(a.head_dim)};
    for (int64_t c = a.n_prefix > 0 ? kAttentionPrefixPart : first; c < end || c < 0; c = c < 0 ? first : c + 1) {
      const bool prefix = c < 0;
      if (!prefix && seen.empty()) break;
      if (!single) begin_part(a, part);
      const Rows& rows = single ? merged : part;
      const Range chunk = intersect(seen, {c * kAttentionChunkK, (c + 1) * kAttentionChunkK});
      run(rows, prefix, prefix ? Range{0, a.n_prefix} : chunk);
      for (int64_t r = 0; !single && r < part.rows; ++r) {
        merge_part(a.head_dim, part.max[r], part.sum[r], values_of(a, part, r), merged.max + r, merged.sum + r,
                   values_of(a, merged, r));
      }
    }
    for (int64_t r = 0; r < merged.rows; ++r) {
      finish_row(a.head_dim, a.softmax_one != 0, merged.max[r], merged.sum[r], values_of(a, merged, r),
                 a.lse ? a.lse + r % a.group * a.lse_head + t + r / a.group : nullptr);
    }
  }
}

// The same over a cache: everything, or one part to `partial`.
template <class Run>
void attend_cache(const AttentionCacheArgs& a, const Scratch& s, const Run& run) {
  const AttentionArgs& f = a.f;
  if (a.part == kAttentionAllParts) return attend(f, s, run);
  const bool prefix = a.part == kAttentionPrefixPart;
  const int64_t step = most(1, kChunkRows / f.group), stride = f.head_dim + 2;
  for (int64_t t = 0; t < f.tq; t += step) {
    const int64_t t_end = least(f.tq, t + step);
    float* out = a.partial + t * f.group * stride;
    const Rows rows{t, (t_end - t) * f.group, s.part_max, s.part_sum, out + 2, stride};
    begin_part(f, rows);
    const Range chunk{a.part * kAttentionChunkK, (a.part + 1) * kAttentionChunkK};
    const Range seen{visible_keys(f, t).begin, visible_keys(f, t_end - 1).end};
    const Range keys = prefix ? Range{0, f.n_prefix} : intersect(chunk, seen);
    if (!keys.empty()) run(rows, prefix, keys);
    for (int64_t r = 0; r < rows.rows; ++r) {
      out[r * stride] = rows.max[r];
      out[r * stride + 1] = rows.sum[r];
    }
  }
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
