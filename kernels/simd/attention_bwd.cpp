// Backward of attention (Dao et al. 2022). With p_j = exp(s_j - lse) recomputed from the saved lse and D = dO.o:
//   dv_j += p_j dO;  ds_j = p_j (dO.v_j - D);  dr_j = scale ds_j (1 - tanh²) with softcap, scale ds_j without
//   dq = sum_j dr_j k_j;  dk_j += dr_j q
// softmax_one needs nothing further: its extra term is inside lse. Key blocks are the outer loop: keys and values are
// packed once, dk and dv of the block stay in scratch while all row blocks pass by, dq is summed in place over the key
// blocks. Five register-tiled products per pair of blocks, all in a fixed order.
#include "kernels/simd/attention_tile.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int64_t kBlockQ = kAttentionBlockQ;
constexpr float kOnes[kTileQ] = {1, 1, 1, 1, 1, 1};

struct Scratch {
  float *kt, *vt;  // [head_dim][kBlockK]
  float* k;        // [kBlockK][padded]
  float *dk, *dv;  // [kBlockK][padded]
  float *q, *d_o;  // [kBlockQ][padded]
  float *p, *ds;   // [kBlockQ][kBlockK]
  float* delta;    // [kBlockQ]
  int64_t padded;
};

struct Block {
  Range keys;     // within the segment, seen by at least one row
  int64_t start;  // the segment's key of column 0
  bool prefix;
};

inline Range columns(const AttentionArgs& f, const Block& b, int64_t t) {
  const Range keys = b.prefix ? b.keys : intersect(b.keys, visible_keys(f, t));
  return {keys.begin - b.start, keys.end - b.start};
}

// Products of one row to probabilities, and dO.v to the gradient of q.k: both zero outside cols.
inline void row_gradient(const AttentionArgs& f, const Block& b, int64_t g, Range cols, float lse, float delta,
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
void row_tile(const AttentionBwdArgs& a, const Block& b, const Scratch& s, int64_t base, int64_t r0, int64_t n) {
  const AttentionArgs& f = a.f;
  const Range all{columns(f, b, (base + r0) / f.group).begin, columns(f, b, (base + r0 + n - 1) / f.group).end};
  for (int64_t i = 0; i < n && all.empty(); ++i) {
    clear(s.p + (r0 + i) * kBlockK, 0, kBlockK);
    clear(s.ds + (r0 + i) * kBlockK, 0, kBlockK);
  }
  if (all.empty()) return;
  const int64_t from = round_down(all.begin), to = round_up(all.end);
  Product products{}, gradients{}, dq{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = r0 + i, t = (base + r) / f.group, g = (base + r) % f.group;
    products.a[i] = s.q + r * s.padded;
    products.c[i] = s.p + r * kBlockK + from;
    gradients.a[i] = s.d_o + r * s.padded;
    gradients.c[i] = s.ds + r * kBlockK + from;
    dq.a[i] = s.ds + r * kBlockK + all.begin;
    dq.c[i] = a.dq + t * f.q_row + g * f.q_head;
  }
  products.a_step = gradients.a_step = dq.a_step = 1;
  products.rows = gradients.rows = dq.rows = n;
  products.ldb = gradients.ldb = kBlockK;
  products.cols = gradients.cols = to - from;
  products.depth = gradients.depth = f.head_dim;
  products.b = s.kt + from;
  gradients.b = s.vt + from;
  product(products);
  product(gradients);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = r0 + i, t = (base + r) / f.group, g = (base + r) % f.group;
    const Range cols = columns(f, b, t);
    float *p = s.p + r * kBlockK, *ds = s.ds + r * kBlockK;
    if (cols.empty()) {
      clear(p, 0, kBlockK);
      clear(ds, 0, kBlockK);
      continue;
    }
    row_gradient(f, b, g, cols, f.lse[g * f.lse_head + t], s.delta[r], p, ds);
    clear(p, 0, round_down(cols.begin));
    clear(ds, 0, round_down(cols.begin));
    clear(p, round_up(cols.end), kBlockK);
    clear(ds, round_up(cols.end), kBlockK);
  }
  dq.b = s.k + all.begin * s.padded;
  dq.ldb = s.padded;
  dq.cols = f.head_dim;
  dq.depth = all.size();
  dq.rescale = kOnes;
  product(dq);
}

// dv += pᵀ dO and dk += dsᵀ q over the rows of a block, six keys at a time, leaving out rows that see none of them.
void key_tiles(const AttentionArgs& f, const Block& b, const Scratch& s, int64_t base, int64_t rows) {
  const Range keys{b.keys.begin - b.start, b.keys.end - b.start};
  int64_t r_begin = 0, r_end = 0;
  for (int64_t j = keys.begin; j < keys.end; j += kTileQ) {
    const int64_t n = least(kTileQ, keys.end - j);
    while (r_begin < rows && columns(f, b, (base + r_begin) / f.group).end <= j) ++r_begin;
    r_end = most(r_end, r_begin);
    while (r_end < rows && columns(f, b, (base + r_end) / f.group).begin < j + n) ++r_end;
    if (r_begin == r_end) continue;
    Product dv{}, dk{};
    for (int64_t i = 0; i < n; ++i) {
      dv.a[i] = s.p + r_begin * kBlockK + j + i;
      dk.a[i] = s.ds + r_begin * kBlockK + j + i;
      dv.c[i] = s.dv + (j + i) * s.padded;
      dk.c[i] = s.dk + (j + i) * s.padded;
    }
    dv.a_step = dk.a_step = kBlockK;
    dv.b = s.d_o + r_begin * s.padded;
    dk.b = s.q + r_begin * s.padded;
    dv.ldb = dk.ldb = s.padded;
    dv.rescale = dk.rescale = kOnes;
    dv.rows = dk.rows = n;
    dv.cols = dk.cols = s.padded;
    dv.depth = dk.depth = r_end - r_begin;
    product(dv);
    product(dk);
  }
}

// q and dO of the row block into scratch, and D = dO.o.
void load_rows(const AttentionBwdArgs& a, const Scratch& s, int64_t base, int64_t rows) {
  const AttentionArgs& f = a.f;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = (base + r) / f.group, g = (base + r) % f.group;
    const float* q = f.q + t * f.q_row + g * f.q_head;
    const float* d_o = a.d_o + t * f.o_row + g * f.o_head;
    const float* o = f.o + t * f.o_row + g * f.o_head;
    vf delta = set1(0.0f);
    for (int64_t d = 0; d < f.head_dim; d += kLanes) {
      const int64_t n = f.head_dim - d;
      const vf grad = load_part(d_o + d, n);
      store(s.q + r * s.padded + d, load_part(q + d, n));
      store(s.d_o + r * s.padded + d, grad);
      delta = madd(grad, load_part(o + d, n), delta);
    }
    s.delta[r] = reduce_add(delta);
  }
}

void segment(const AttentionBwdArgs& a, const Scratch& s, bool prefix) {
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
    const Block b{intersect(seen, {start, end}), start, prefix};
    clear(s.dk, 0, kBlockK * s.padded);
    clear(s.dv, 0, kBlockK * s.padded);
    if (!b.keys.empty() && total > 0) {
      const Range packed{b.keys.begin - start, b.keys.end - start};
      pack_transposed(k + start * k_row, k_row, packed, f.head_dim, s.kt);
      pack_transposed(v + start * v_row, v_row, packed, f.head_dim, s.vt);
      pack_rows(k + start * k_row, k_row, packed, f.head_dim, s.k);
      for (int64_t base = 0; base < total; base += kBlockQ) {
        const int64_t rows = least(kBlockQ, total - base);
        const Range cols{columns(f, b, base / f.group).begin, columns(f, b, (base + rows - 1) / f.group).end};
        if (cols.empty()) continue;
        load_rows(a, s, base, rows);
        for (int64_t r = 0; r < rows; r += kTileQ) row_tile(a, b, s, base, r, least(kTileQ, rows - r));
        if (dk || dv) key_tiles(f, b, s, base, rows);
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

void attention_bwd(const AttentionBwdArgs& a) noexcept {
  const AttentionArgs& f = a.f;
  const int64_t wide = (f.head_dim + 63) / 64 * 64;
  Scratch s;
  s.padded = round_up(f.head_dim);
  s.kt = align64(f.scratch);
  s.vt = s.kt + kBlockK * wide;
  s.k = s.vt + kBlockK * wide;
  s.dk = s.k + kBlockK * wide;
  s.dv = s.dk + kBlockK * wide;
  s.q = s.dv + kBlockK * wide;
  s.d_o = s.q + kBlockQ * wide;
  s.p = s.d_o + kBlockQ * wide;
  s.ds = s.p + kBlockQ * kBlockK;
  s.delta = s.ds + kBlockQ * kBlockK;
  for (int64_t r = 0; r < f.tq * f.group; ++r) {
    float* dq = a.dq + r / f.group * f.q_row + r % f.group * f.q_head;
    for (int64_t d = 0; d < f.head_dim; d += kLanes) store_part(dq + d, set1(0.0f), f.head_dim - d);
  }
  if (f.n_prefix > 0 && a.key_begin == 0) segment(a, s, true);
  segment(a, s, false);
}

}  // namespace

void init_attention_bwd(KernelTable& t) { t.attention_bwd = attention_bwd; }

}  // namespace thimble::THIMBLE_ISA
