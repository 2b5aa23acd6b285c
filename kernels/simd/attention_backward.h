// Backward of attention (Dao et al. 2022). With p_j = exp(s_j - lse) recomputed from the saved lse and D = dO.o:
//   dv_j += p_j dO;  ds_j = p_j (dO.v_j - D);  dr_j = scale ds_j (1 - tanh²) with softcap, scale ds_j without
//   dq = sum_j dr_j k_j;  dk_j += dr_j q
// softmax_one needs nothing further: its extra term is inside lse. Key blocks are the outer loop: keys and values are
// packed once, dk and dv of the block stay in scratch while all row blocks pass by, dq is summed in place over the key
// blocks. Five register-tiled products per pair of blocks, all in a fixed order; operands f32 (E = float) or rounded to
// pairs of bf16 (E = uint32_t), everything between them f32.
#pragma once

#include "kernels/simd/attention_pairs.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int64_t kBlockQ = kAttentionBlockQ;
constexpr float kOnes[kTileQ] = {1, 1, 1, 1, 1, 1};

template <class E>
struct BwdScratch {
  E *kt, *vt;            // keys in columns: [head_dim][kBlockK]; pairs: [head_dim / 2][kBlockK]
  E* k;                  // [kBlockK][padded]; pairs: [kBlockK / 2][padded]
  float *dk, *dv;        // [kBlockK][padded]
  E *q, *d_o;            // rows, row_stride apart
  E *q_down, *d_o_down;  // the same as right operands over rows: [kBlockQ][padded]; pairs: [kBlockQ / 2][padded]
  float *p, *ds;         // [kBlockQ][kBlockK]
  E *p_down, *ds_down;   // as left operands over rows: [kBlockQ][kBlockK]; pairs: [kBlockQ / 2][kBlockK]
  E* ds_along;           // as left operand over keys: rows, along_stride apart
  float* delta;          // [kBlockQ]
  int64_t padded, row_stride, along_stride;
};

template <class E>
inline BwdScratch<E> bwd_scratch_of(const AttentionArgs& f) {
  const int64_t wide = (f.head_dim + 63) / 64 * 64;
  BwdScratch<E> s;
  float* at = align64(f.scratch);
  const auto take = [&](int64_t floats) {
    float* block = at;
    at += floats;
    return block;
  };
  const auto take_e = [&](int64_t floats) { return reinterpret_cast<E*>(take(floats)); };
  s.padded = round_up(f.head_dim);
  s.kt = take_e(kBlockK * wide);
  s.vt = take_e(kBlockK * wide);
  s.k = take_e(kBlockK * wide);
  s.dk = take(kBlockK * wide);
  s.dv = take(kBlockK * wide);
  s.q = take_e(kBlockQ * wide);
  s.d_o = take_e(kBlockQ * wide);
  s.p = take((kBlockQ + 1) * kBlockK);  // one row more: the partner of an odd one
  s.ds = take((kBlockQ + 1) * kBlockK);
  s.delta = take(kBlockQ);
  if constexpr (kPairs<E>) {
    s.row_stride = wide / 2;
    s.along_stride = kBlockK / 2 + kLanes;
    s.q_down = take_e(kBlockQ / 2 * wide);
    s.d_o_down = take_e(kBlockQ / 2 * wide);
    s.p_down = take_e(kBlockQ / 2 * kBlockK);
    s.ds_down = take_e(kBlockQ / 2 * kBlockK);
    s.ds_along = take_e(kBlockQ * s.along_stride);
  } else {
    s.row_stride = s.padded;
    s.along_stride = kBlockK;
    s.q_down = s.q;
    s.d_o_down = s.d_o;
    s.p_down = s.p;
    s.ds_down = s.ds_along = s.ds;
  }
  return s;
}

struct BwdBlock {
  Range keys;     // within the segment, seen by at least one row
  int64_t start;  // the segment's key of column 0
  bool prefix;
};

inline Range bwd_columns(const AttentionArgs& f, const BwdBlock& b, int64_t t) {
  const Range keys = b.prefix ? b.keys : intersect(b.keys, visible_keys(f, t));
  return {keys.begin - b.start, keys.end - b.start};
}

// Products of one row to probabilities, and dO.v to the gradient of q.k: both zero outside cols.
inline void row_gradient(const AttentionArgs& f, const BwdBlock& b, int64_t g, Range cols, float lse, float delta,
                         float* p, float* ds) {
  const vf zero = set1(0.0f), scale = set1(f.scale);
  const bool linear = f.softcap == 0 && (!f.alibi || b.prefix);
  for (int64_t j = round_down(cols.begin); j < cols.end; j += kLanes) {
    vf s = load(p + j), slope = scale;
    if (linear) {
      s = madd(s, scale, set1(-lse));
    } else {
      s = s * scale;
      if (f.softcap != 0) {
        const vf t = vtanh(s / set1(f.softcap));
        s = set1(f.softcap) * t;
        slope = scale * nmadd(t, t, set1(1.0f));
      }
      if (f.alibi && !b.prefix) s = madd(set1(f.alibi[g]), index_as_float(b.start + j), s);
      s = s - set1(lse);
    }
    vf e = vexp(s), d = e * (load(ds + j) - set1(delta)) * slope;
    if (j < cols.begin || j + kLanes > cols.end) {
      e = keep_lanes(e, cols.begin - j, cols.end - j, zero);
      d = keep_lanes(d, cols.begin - j, cols.end - j, zero);
    }
    store(p + j, e);
    store(ds + j, d);
  }
}

inline void clear(float* row, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j += kLanes) store(row + j, set1(0.0f));
}

// Rows [r0, r0 + n) of the row block that starts at row `base`: p, ds and dq.
template <class E>
void row_tile(const AttentionBwdArgs& a, const BwdBlock& b, const BwdScratch<E>& s, int64_t base, int64_t r0, int64_t n) {
  const AttentionArgs& f = a.f;
  const Range all{bwd_columns(f, b, (base + r0) / f.group).begin, bwd_columns(f, b, (base + r0 + n - 1) / f.group).end};
  for (int64_t i = 0; i < n && all.empty(); ++i) {
    clear(s.p + (r0 + i) * kBlockK, 0, kBlockK);
    clear(s.ds + (r0 + i) * kBlockK, 0, kBlockK);
  }
  if (all.empty()) return;
  const int64_t from = round_down(all.begin), to = round_up(all.end);
  ProductOf<E> products{}, gradients{}, dq{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = r0 + i, t = (base + r) / f.group, g = (base + r) % f.group;
    products.a[i] = s.q + r * s.row_stride;
    products.c[i] = s.p + r * kBlockK + from;
    gradients.a[i] = s.d_o + r * s.row_stride;
    gradients.c[i] = s.ds + r * kBlockK + from;
    dq.a[i] = s.ds_along + r * s.along_stride + (kPairs<E> ? all.begin / 2 : all.begin);
    dq.c[i] = a.dq + t * f.q_row + g * f.q_head;
  }
  products.a_step = gradients.a_step = dq.a_step = 1;
  products.rows = gradients.rows = dq.rows = n;
  products.ldb = gradients.ldb = kBlockK;
  products.cols = gradients.cols = to - from;
  products.depth = gradients.depth = kPairs<E> ? (f.head_dim + 1) / 2 : f.head_dim;
  products.b = s.kt + from;
  gradients.b = s.vt + from;
  product(products);
  product(gradients);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = r0 + i, t = (base + r) / f.group, g = (base + r) % f.group;
    const Range cols = bwd_columns(f, b, t);
    float *p = s.p + r * kBlockK, *ds = s.ds + r * kBlockK;
    if (cols.empty()) {
      clear(p, 0, kBlockK);
      clear(ds, 0, kBlockK);
      if constexpr (kPairs<E>) round_row(ds + from, to - from, s.ds_along + r * s.along_stride + from / 2);
      continue;
    }
    row_gradient(f, b, g, cols, f.lse[g * f.lse_head + t], s.delta[r], p, ds);
    clear(p, 0, round_down(cols.begin));
    clear(ds, 0, round_down(cols.begin));
    clear(p, round_up(cols.end), kBlockK);
    clear(ds, round_up(cols.end), kBlockK);
    if constexpr (kPairs<E>) round_row(ds + from, to - from, s.ds_along + r * s.along_stride + from / 2);
  }
  dq.b = s.k + (kPairs<E> ? all.begin / 2 : all.begin) * s.padded;
  dq.ldb = s.padded;
  dq.cols = f.head_dim;
  dq.depth = kPairs<E> ? (all.end + 1) / 2 - all.begin / 2 : all.size();
  dq.rescale = kOnes;
  product(dq);
}

// dv += pᵀ dO and dk += dsᵀ q over the rows of a block, six keys at a time, leaving out rows that see none of them.
template <class E>
void key_tiles(const AttentionArgs& f, const BwdBlock& b, const BwdScratch<E>& s, int64_t base, int64_t rows) {
  const Range keys{b.keys.begin - b.start, b.keys.end - b.start};
  int64_t r_begin = 0, r_end = 0;
  for (int64_t j = keys.begin; j < keys.end; j += kTileQ) {
    const int64_t n = least(kTileQ, keys.end - j);
    while (r_begin < rows && bwd_columns(f, b, (base + r_begin) / f.group).end <= j) ++r_begin;
    r_end = most(r_end, r_begin);
    while (r_end < rows && bwd_columns(f, b, (base + r_end) / f.group).begin < j + n) ++r_end;
    if (r_begin == r_end) continue;
    const int64_t first = kPairs<E> ? r_begin / 2 : r_begin;
    ProductOf<E> dv{}, dk{};
    for (int64_t i = 0; i < n; ++i) {
      dv.a[i] = s.p_down + first * kBlockK + j + i;
      dk.a[i] = s.ds_down + first * kBlockK + j + i;
      dv.c[i] = s.dv + (j + i) * s.padded;
      dk.c[i] = s.dk + (j + i) * s.padded;
    }
    dv.a_step = dk.a_step = kBlockK;
    dv.b = s.d_o_down + first * s.padded;
    dk.b = s.q_down + first * s.padded;
    dv.ldb = dk.ldb = s.padded;
    dv.rescale = dk.rescale = kOnes;
    dv.rows = dk.rows = n;
    dv.cols = dk.cols = s.padded;
    dv.depth = dk.depth = (kPairs<E> ? (r_end + 1) / 2 : r_end) - first;
    product(dv);
    product(dk);
  }
}

// dO.o with dO as the products see it.
template <class E>
inline float row_delta(const float* d_o, const float* o, int64_t dim) {
  vf delta = set1(0.0f);
  for (int64_t d = 0; d < dim; d += kLanes) {
    const vf grad = load_part(d_o + d, dim - d);
    const vf seen = kPairs<E> ? rounded_to_bf16(grad) : grad;
    delta = madd(seen, load_part(o + d, dim - d), delta);
  }
  return reduce_add(delta);
}

// q and dO of the row block into scratch, and D.
template <class E>
void load_rows(const AttentionBwdArgs& a, const BwdScratch<E>& s, int64_t base, int64_t rows) {
  const AttentionArgs& f = a.f;
  const float *even_q = nullptr, *even_d_o = nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = (base + r) / f.group, g = (base + r) % f.group;
    const float* q = f.q + t * f.q_row + g * f.q_head;
    const float* d_o = a.d_o + t * f.o_row + g * f.o_head;
    s.delta[r] = row_delta<E>(d_o, f.o + t * f.o_row + g * f.o_head, f.head_dim);
    if constexpr (kPairs<E>) {
      round_row(q, f.head_dim, s.q + r * s.row_stride);
      round_row(d_o, f.head_dim, s.d_o + r * s.row_stride);
      if (r % 2 != 0) {
        interleave_rows(even_q, q, f.head_dim, s.q_down + r / 2 * s.padded);
        interleave_rows(even_d_o, d_o, f.head_dim, s.d_o_down + r / 2 * s.padded);
      } else if (r + 1 == rows) {
        interleave_rows(q, nullptr, f.head_dim, s.q_down + r / 2 * s.padded);
        interleave_rows(d_o, nullptr, f.head_dim, s.d_o_down + r / 2 * s.padded);
      }
      even_q = q;
      even_d_o = d_o;
    } else {
      for (int64_t d = 0; d < f.head_dim; d += kLanes) {
        store(s.q + r * s.row_stride + d, load_part(q + d, f.head_dim - d));
        store(s.d_o + r * s.row_stride + d, load_part(d_o + d, f.head_dim - d));
      }
    }
  }
}

// p and ds as left operands of dv and dk.
inline void turn_rows(const BwdScratch<float>&, int64_t) {}
inline void turn_rows(const BwdScratch<uint32_t>& s, int64_t rows) {
  if (rows % 2 != 0) {
    clear(s.p + rows * kBlockK, 0, kBlockK);
    clear(s.ds + rows * kBlockK, 0, kBlockK);
  }
  for (int64_t r = 0; r < rows; r += 2) {
    interleave_rows(s.p + r * kBlockK, s.p + (r + 1) * kBlockK, kBlockK, s.p_down + r / 2 * kBlockK);
    interleave_rows(s.ds + r * kBlockK, s.ds + (r + 1) * kBlockK, kBlockK, s.ds_down + r / 2 * kBlockK);
  }
}

inline void pack_keys(const BwdScratch<float>& s, const float* k, const float* v, int64_t k_row, int64_t v_row, Range keys,
                      int64_t dim) {
  pack_transposed(k, k_row, keys, dim, s.kt);
  pack_transposed(v, v_row, keys, dim, s.vt);
  pack_rows(k, k_row, keys, dim, s.k);
}
inline void pack_keys(const BwdScratch<uint32_t>& s, const float* k, const float* v, int64_t k_row, int64_t v_row,
                      Range keys, int64_t dim) {
  pack_pairs_transposed(k, k_row, keys, dim, s.kt);
  pack_pairs_transposed(v, v_row, keys, dim, s.vt);
  pack_row_pairs(k, k_row, keys, dim, s.k);
}

template <class E>
void segment(const AttentionBwdArgs& a, const BwdScratch<E>& s, bool prefix) {
  const AttentionArgs& f = a.f;
  const int64_t total = f.tq * f.group, n_keys = prefix ? f.n_prefix : f.tk;
  const float* k = prefix ? f.prefix_k : f.k;
  const float* v = prefix ? f.prefix_v : f.v;
  const int64_t k_row = prefix ? f.prefix_row : f.k_row, v_row = prefix ? f.prefix_row : f.v_row;
  float* dk = prefix ? a.d_prefix_k : a.dk;
  float* dv = prefix ? a.d_prefix_v : a.dv;
  const int64_t dk_row = prefix ? f.prefix_row : a.dk_row, dv_row = prefix ? f.prefix_row : a.dv_row;
  Range seen{0, n_keys};
  if (!prefix && f.tq > 0) seen = {visible_keys(f, 0).begin, visible_keys(f, f.tq - 1).end};
  const Range mine{prefix ? 0 : a.key_begin, prefix ? n_keys : a.key_end};
  for (int64_t start = mine.begin; start < mine.end; start += kBlockK) {
    const int64_t end = least(mine.end, start + kBlockK);
    const BwdBlock b{intersect(seen, {start, end}), start, prefix};
    clear(s.dk, 0, kBlockK * s.padded);
    clear(s.dv, 0, kBlockK * s.padded);
    if (!b.keys.empty() && total > 0) {
      const Range packed{b.keys.begin - start, b.keys.end - start};
      pack_keys(s, k + start * k_row, v + start * v_row, k_row, v_row, packed, f.head_dim);
      for (int64_t base = 0; base < total; base += kBlockQ) {
        const int64_t rows = least(kBlockQ, total - base);
        const Range cols{bwd_columns(f, b, base / f.group).begin, bwd_columns(f, b, (base + rows - 1) / f.group).end};
        if (cols.empty()) continue;
        load_rows(a, s, base, rows);
        for (int64_t r = 0; r < rows; r += kTileQ) row_tile(a, b, s, base, r, least(kTileQ, rows - r));
        if (!dk && !dv) continue;
        turn_rows(s, rows);
        key_tiles(f, b, s, base, rows);
      }
    }
    for (int64_t j = 0; j < end - start; ++j) {
      for (int64_t d = 0; d < f.head_dim; d += kLanes) {
        const int64_t n = f.head_dim - d;
        const vf gk = load(s.dk + j * s.padded + d), gv = load(s.dv + j * s.padded + d);
        float* to_k = dk ? dk + (start + j) * dk_row + d : nullptr;
        float* to_v = dv ? dv + (start + j) * dv_row + d : nullptr;
        if (to_k) store_part(to_k, prefix ? load_part(to_k, n) + gk : gk, n);
        if (to_v) store_part(to_v, prefix ? load_part(to_v, n) + gv : gv, n);
      }
    }
  }
}

template <class E>
void attention_backward(const AttentionBwdArgs& a) noexcept {
  const AttentionArgs& f = a.f;
  const BwdScratch<E> s = bwd_scratch_of<E>(f);
  for (int64_t r = 0; r < f.tq * f.group; ++r) {
    float* dq = a.dq + r / f.group * f.q_row + r % f.group * f.q_head;
    for (int64_t d = 0; d < f.head_dim; d += kLanes) store_part(dq + d, set1(0.0f), f.head_dim - d);
  }
  if (f.n_prefix > 0 && a.key_begin == 0) segment(a, s, true);
  segment(a, s, false);
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
