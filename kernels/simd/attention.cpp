// Attention of one key/value head and the query heads that share it, blockwise with the online softmax
// (Milakov, Gimelshein 2018; Dao et al. 2022):
//   s_j = softcap tanh(scale q.k_j / softcap) + alibi j,  o = sum_j exp(s_j - lse) v_j,  lse = log sum_j exp(s_j)
// A key block (kAttentionBlockK keys from key 0; prefix blocks first) is packed once, keys transposed, for all rows of
// the call; each tile of six rows then goes scores -> exponentials -> values without leaving the first-level cache.
// o holds the running sum. softmax_one is a key with score 0 and value 0 that comes before all others.
// A row's bits depend on its own visible keys only: masked scores add exactly nothing, and a block with non-finite
// values, where 0 * NaN would leak, is multiplied row by row within each row's own range.
#include "kernels/simd/attention_tile.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kChunkRows = 2048;  // rows that share a packed block; bounded by the scratch for max and sum

struct Block {
  Range keys;     // within the segment
  int64_t start;  // the segment's key of column 0
  bool prefix, finite;
  const float* kt;  // [head_dim][kBlockK]
  const float* v;   // value of column j at v[j * v_stride]
  int64_t v_stride;
};

struct Rows {
  int64_t t0, rows;  // row r of the chunk: t = t0 + r / group, g = r % group
  float* max;
  float* sum;
};

// The columns of the block that row t sees.
inline Range columns(const AttentionArgs& a, const Block& b, int64_t t) {
  const Range keys = b.prefix ? b.keys : intersect(b.keys, visible_keys(a, t));
  return {keys.begin - b.start, keys.end - b.start};
}

// Everything that is not a multiplication by a positive number, on whole vectors of a row of products.
inline void transform_scores(const AttentionArgs& a, const Block& b, float slope, Range cols, float* s) {
  for (int64_t j = round_down(cols.begin); j < cols.end; j += kLanes) {
    vf x = load(s + j) * set1(a.scale);
    if (a.softcap != 0) x = set1(a.softcap) * vtanh(x / set1(a.softcap));
    if (a.alibi && !b.prefix) x = madd(set1(slope), index_as_float(b.start + j), x);
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

void tile(const AttentionArgs& a, const Block& b, const Rows& rows, int64_t r0, int64_t n, float* s) {
  const int64_t t_first = rows.t0 + r0 / a.group, t_last = rows.t0 + (r0 + n - 1) / a.group;
  const Range first = columns(a, b, t_first), last = columns(a, b, t_last);
  const Range all{first.begin, last.end};
  if (all.empty()) return;
  const bool linear = a.softcap == 0 && a.scale > 0 && (!a.alibi || b.prefix);
  const int64_t from = round_down(all.begin), to = round_up(all.end);

  Product scores{};
  Product values{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = rows.t0 + (r0 + i) / a.group, g = (r0 + i) % a.group;
    scores.a[i] = a.q + t * a.q_row + g * a.q_head;
    scores.c[i] = s + i * kBlockK + from;
    values.a[i] = s + i * kBlockK + all.begin;
    values.c[i] = a.o + t * a.o_row + g * a.o_head;
  }
  scores.a_step = 1;
  scores.b = b.kt + from;
  scores.ldb = kBlockK;
  scores.rows = n;
  scores.cols = to - from;
  scores.depth = a.head_dim;
  product(scores);

  alignas(64) float drop[16] = {};
  float block_sum[kTileQ];
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
    if (!linear) transform_scores(a, b, a.alibi ? a.alibi[g] : 0.0f, cols, row);
    drop[i] = row_softmax(row, cols, linear ? a.scale : 1.0f, rows.max + r0 + i, block_sum + i);
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
  if (same || b.finite) {
    product(values);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const Range cols = columns(a, b, rows.t0 + (r0 + i) / a.group);
    if (cols.empty()) continue;
    Product one = values;
    one.a[0] = s + i * kBlockK + cols.begin;
    one.c[0] = values.c[i];
    one.b = b.v + cols.begin * b.v_stride;
    one.rescale = rescale + i;
    one.rows = 1;
    one.depth = cols.size();
    product(one);
  }
}

struct Scratch {
  float* kt;
  float* v;
  float* scores;
  float* max;
  float* sum;
};

void segment(const AttentionArgs& a, const Rows& rows, bool prefix, const Scratch& scratch) {
  const int64_t t_end = rows.t0 + rows.rows / a.group;
  const Range seen{prefix ? 0 : visible_keys(a, rows.t0).begin, prefix ? a.n_prefix : visible_keys(a, t_end - 1).end};
  if (seen.empty()) return;
  const float* k = prefix ? a.prefix_k : a.k;
  const float* v = prefix ? a.prefix_v : a.v;
  const int64_t k_row = prefix ? a.prefix_row : a.k_row, v_row = prefix ? a.prefix_row : a.v_row;
  for (int64_t start = seen.begin / kBlockK * kBlockK; start < seen.end; start += kBlockK) {
    Block b{
        intersect(seen, {start, start + kBlockK}), start, prefix, true, scratch.kt, scratch.v, round_up(a.head_dim)};
    const Range packed{b.keys.begin - start, b.keys.end - start};
    pack_transposed(k + start * k_row, k_row, packed, a.head_dim, scratch.kt);
    if (rows.rows == a.group && a.head_dim % kLanes == 0) {  // one position: all rows see the same keys
      b.v = v + start * v_row;
      b.v_stride = v_row;
    } else {
      b.finite = pack_rows(v + start * v_row, v_row, packed, a.head_dim, scratch.v);
    }
    for (int64_t r = 0; r < rows.rows; r += kTileQ) tile(a, b, rows, r, least(kTileQ, rows.rows - r), scratch.scores);
  }
}

void finish(const AttentionArgs& a, const Rows& rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    const int64_t t = rows.t0 + r / a.group, g = r % a.group;
    float* o = a.o + t * a.o_row + g * a.o_head;
    const bool sees_none = a.n_prefix == 0 && visible_keys(a, t).empty();
    const vf inverse = set1(sees_none ? 0.0f : 1.0f / rows.sum[r]);
    for (int64_t d = 0; d < a.head_dim; d += kLanes) {
      store_part(o + d, load_part(o + d, a.head_dim - d) * inverse, a.head_dim - d);
    }
    if (!a.lse) continue;
    const double lse = static_cast<double>(rows.max[r]) + __builtin_log(static_cast<double>(rows.sum[r]));
    a.lse[g * a.lse_head + t] = sees_none ? -kInfinity : static_cast<float>(lse);
  }
}

void attention(const AttentionArgs& a) noexcept {
  const int64_t padded = (a.head_dim + 63) / 64 * 64;
  Scratch scratch;
  scratch.kt = align64(a.scratch);
  scratch.v = scratch.kt + kBlockK * padded;
  scratch.scores = scratch.v + kBlockK * padded;
  scratch.max = scratch.scores + kTileQ * kBlockK;
  scratch.sum = scratch.max + kChunkRows;
  static_assert(kTileQ * kBlockK + 2 * kChunkRows <= kAttentionBlockQ * (2 * kBlockK + 2 * 64 + 8));
  const int64_t step = most(1, kChunkRows / a.group);
  for (int64_t t = 0; t < a.tq; t += step) {
    const Rows rows{t, least(step, a.tq - t) * a.group, scratch.max, scratch.sum};
    for (int64_t r = 0; r < rows.rows; ++r) {
      rows.max[r] = a.softmax_one != 0 ? 0.0f : -kInfinity;
      rows.sum[r] = a.softmax_one != 0 ? 1.0f : 0.0f;
      float* o = a.o + (t + r / a.group) * a.o_row + r % a.group * a.o_head;
      for (int64_t d = 0; d < a.head_dim; d += kLanes) store_part(o + d, set1(0.0f), a.head_dim - d);
    }
    if (a.n_prefix > 0) segment(a, rows, true, scratch);
    segment(a, rows, false, scratch);
    finish(a, rows);
  }
}

}  // namespace

void init_attention(KernelTable& t) { t.attention = attention; }

}  // namespace thimble::THIMBLE_ISA
