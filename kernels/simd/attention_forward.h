// The forward of attention over key blocks from any source, with the online softmax (Milakov, Gimelshein 2018; Dao et al.
// 2022) and the parts of kernel_args.h. A tile of up to kMaxTile rows goes scores -> exponentials -> values without
// leaving the first-level cache.
// A row's bits depend on its own visible keys only: masked scores add exactly nothing, and a block with non-finite
// values, where 0 * NaN would leak, is multiplied row by row within each row's own range.
#pragma once

#include "kernels/simd/attention_tile.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kChunkRows = kAttentionMaxGroup;  // rows that share a packed block; bounded by the scratch

template <class E>
struct BlockOf {
  Range keys;     // within the segment
  int64_t start;  // the segment's key of column 0
  bool prefix, finite;
  bool streams;  // comes from memory and is used by few tiles
  const E* kt;  // [head_dim][kBlockK]
  const E* v;   // value of column j at v[j * v_stride]
  int64_t v_stride;
  const float* k_scale;  // of column j; null: 1
  const float* v_scale;
};
using Block = BlockOf<float>;

// The state of the part at hand.
struct Rows {
  int64_t t0, rows;  // row r: t = t0 + r / group, g = r % group
  float *max, *sum;
  float* values;  // row r at values + r * values_row; null: in o
  int64_t values_row;
};

inline float* values_of(const AttentionArgs& a, const Rows& rows, int64_t r) {
  return rows.values ? rows.values + r * rows.values_row
                     : a.o + (rows.t0 + r / a.group) * a.o_row + r % a.group * a.o_head;
}

struct Scratch {
  float *kt, *v;             // one block
  float* scores;             // [8][kBlockK]
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
  s.max = s.scores + 8 * kBlockK;
  s.sum = s.max + kChunkRows;
  s.part_max = s.sum + kChunkRows;
  s.part_sum = s.part_max + kChunkRows;
  s.values = s.part_sum + kChunkRows;
  return s;
}
static_assert(kMaxTile <= 8);

// The columns of the block that row t sees.
template <class E>
inline Range columns(const AttentionArgs& a, const BlockOf<E>& b, int64_t t) {
  const Range keys = b.prefix ? b.keys : intersect(b.keys, visible_keys(a, t));
  return {keys.begin - b.start, keys.end - b.start};
}

// Everything that is not a multiplication by a positive number, on whole vectors of a row of products.
template <class E>
inline void transform_scores(const AttentionArgs& a, const BlockOf<E>& b, float slope, Range cols, float* s) {
  for (int64_t j = round_down(cols.begin); j < cols.end; j += kLanes) {
    vf x = load(s + j) * set1(a.scale);
    if (a.softcap != 0) x = set1(a.softcap) * vtanh(x / set1(a.softcap));
    if (a.alibi && !b.prefix) x = madd(set1(slope), index_as_float(b.start + j), x);
    store(s + j, x);
  }
}

// s[j] *= by[j] on cols; what shares a vector with them becomes zero.
inline void scale_columns(float* s, const float* by, Range cols) {
  for (int64_t j = round_down(cols.begin); j < cols.end; j += kLanes) {
    vf x = load(s + j) * load(by + j);
    if (j < cols.begin || j + kLanes > cols.end) x = keep_lanes(x, cols.begin - j, cols.end - j, set1(0.0f));
    store(s + j, x);
  }
}

// Scores of one row to exponentials; updates its maximum and sum, returns the difference of the maxima.
inline float row_softmax(float* s, Range cols, float scale, float* max, float* block_sum) {
  const int64_t from = round_down(cols.begin);
  vf top = set1(-kInfinity);
  for (int64_t j = from; j < cols.end; j += kLanes) {
    vf x = load(s + j);
    if (j < cols.begin || j + kLanes > cols.end) {
      x = keep_lanes(x, cols.begin - j, cols.end - j, set1(-kInfinity));
      store(s + j, x);
    }
    top = vmax(x, top);
  }
  const float block_max = reduce_max(top) * scale;
  const float old = *max, now = block_max > old ? block_max : old;
  const float shift = now == -kInfinity ? 0.0f : now;
  vf sum = set1(0.0f);
  for (int64_t j = from; j < cols.end; j += kLanes) {
    const vf e = vexp(madd(load(s + j), set1(scale), set1(-shift)));
    sum = sum + e;
    store(s + j, e);
  }
  *max = now;
  *block_sum = reduce_add(sum);
  return old - shift;
}

// multiply(p, n): the product of n rows, see Multiply in attention.cpp and attention_cache.cpp.
template <class E, class Multiply>
void tile(const AttentionArgs& a, const BlockOf<E>& b, const Rows& rows, int64_t r0, int64_t n, float* s,
          const Multiply& multiply) {
  const int64_t t_first = rows.t0 + r0 / a.group, t_last = rows.t0 + (r0 + n - 1) / a.group;
  const Range first = columns(a, b, t_first), last = columns(a, b, t_last);
  const Range all{first.begin, last.end};
  if (all.empty()) return;
  const bool linear = a.softcap == 0 && a.scale > 0 && (!a.alibi || b.prefix);
  const int64_t from = round_down(all.begin), to = round_up(all.end);

  ProductOf<E> scores{};
  ProductOf<E> values{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = rows.t0 + (r0 + i) / a.group, g = (r0 + i) % a.group;
    scores.a[i] = a.q + t * a.q_row + g * a.q_head;
    scores.c[i] = s + i * kBlockK + from;
    values.a[i] = s + i * kBlockK + all.begin;
    values.c[i] = values_of(a, rows, r0 + i);
  }
  scores.a_step = 1;
  scores.b = b.kt + from;
  scores.ldb = kBlockK;
  scores.rows = n;
  scores.cols = to - from;
  scores.depth = a.head_dim;
  // One row walks through a block once, line by line: it asks a page ahead. More rows walk through it several times, in
  // columns: they ask for the same place of the block that comes next, scores for the values, values for the next keys.
  const auto distance = [](const E* here, const E* next) {
    return static_cast<int64_t>(reinterpret_cast<intptr_t>(next) - reinterpret_cast<intptr_t>(here));
  };
  scores.ahead = !b.streams ? 0 : n == 1 ? kPageBytes : distance(b.kt, b.v);
  multiply(scores);

  alignas(64) float drop[16] = {};
  float block_sum[kMaxTile];
  bool same = true;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = rows.t0 + (r0 + i) / a.group, g = (r0 + i) % a.group;
    const Range cols = columns(a, b, t);
    float* row = s + i * kBlockK;
    if (cols.empty()) {
      for (int64_t j = from; j < to; j += kLanes) store(row + j, set1(0.0f));
      block_sum[i] = 0;
      same = false;
      continue;
    }
    if (b.k_scale) scale_columns(row, b.k_scale, cols);
    if (!linear) transform_scores(a, b, a.alibi ? a.alibi[g] : 0.0f, cols, row);
    drop[i] = row_softmax(row, cols, linear ? a.scale : 1.0f, rows.max + r0 + i, block_sum + i);
    if (b.v_scale) scale_columns(row, b.v_scale, cols);
    for (int64_t j = from; j < round_down(cols.begin); j += kLanes) store(row + j, set1(0.0f));
    for (int64_t j = round_up(cols.end); j < to; j += kLanes) store(row + j, set1(0.0f));
    same = same && cols.begin == all.begin && cols.end == all.end;
  }
  alignas(64) float rescale[16];
  for (int64_t i = 0; i < 16; i += kLanes) store(rescale + i, vexp(load(drop + i)));
  for (int64_t i = 0; i < n; ++i) {
    float& sum = rows.sum[r0 + i];
    sum = sum * rescale[i] + block_sum[i];
  }

  values.a_step = 1;
  values.b = b.v + all.begin * b.v_stride;
  values.ldb = b.v_stride;
  values.rescale = rescale;
  values.rows = n;
  values.cols = a.head_dim;
  values.depth = all.size();
  values.ahead = !b.streams ? 0 : n == 1 ? kPageBytes : distance(b.v, b.kt + kBlockK * a.head_dim);
  if (same || b.finite) return multiply(values);
  for (int64_t i = 0; i < n; ++i) {
    const Range cols = columns(a, b, rows.t0 + (r0 + i) / a.group);
    if (cols.empty()) continue;
    ProductOf<E> one = values;
    one.a[0] = s + i * kBlockK + cols.begin;
    one.c[0] = values.c[i];
    one.b = b.v + cols.begin * b.v_stride;
    one.rescale = rescale + i;
    one.rows = 1;
    one.depth = cols.size();
    multiply(one);
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
      a, rows, keys, kTileQ, rows.rows, s.scores,
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

}  // namespace
}  // namespace thimble::THIMBLE_ISA
