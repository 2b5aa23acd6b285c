// rope, and block attention over packed sequences, with or without a cache. Saved for backward: q, k, v, o and the log
// normaliser of every row.
#include <cstring>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {

// In place: nobody needs the unrotated projection again.
Var rope(Context& ctx, Var x, int64_t heads, int64_t head_dim, int64_t rot_dim, bool interleaved, const float* cos_table,
         const float* sin_table, const int32_t* positions) {
  THIMBLE_ZONE(rope);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  count_elements(rows * heads * rot_dim, 3, 8);
  THIMBLE_CHECK(cols == heads * head_dim);
  const bool recorded = ctx.tape && x.id >= 0;
  float* data = x.t.f32();
  for_rows(ctx, rows, cols, [&](int64_t r, int64_t n, int64_t) {
    ctx.kernels.rope({n, heads, head_dim, rot_dim, data + r * cols, cols, data + r * cols, cols, cos_table, sin_table,
                      positions + r, interleaved, false});
  });
  Var y = x;
  if (recorded) {
    y.id = ctx.tape->add_value(x.t);
    Node& node = ctx.tape->push(Op::rope);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = rows;
    node.dims[0] = heads;
    node.dims[1] = head_dim;
    node.dims[2] = rot_dim;
    node.dims[3] = interleaved;
    node.saved[0] = cos_table;
    node.saved[1] = sin_table;
    node.ids = positions;
  }
  return y;
}

void rope_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(rope);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t cols = node.dims[0] * node.dims[1];
  count_elements(node.rows * node.dims[0] * node.dims[2], 3, 8);
  const ArenaScope scope(ctx.scratch);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  float* rotated = accumulate ? ctx.scratch.floats(node.rows * cols, "rope gradients") : dx;
  for_rows(ctx, node.rows, cols, [&](int64_t r, int64_t n, int64_t) {
    ctx.kernels.rope({n, node.dims[0], node.dims[1], node.dims[2], dy + r * cols, cols, rotated + r * cols, cols,
                      node.saved[0], node.saved[1], node.ids + r, static_cast<int32_t>(node.dims[3]), true});
  });
  if (accumulate) add_rows(ctx, node.rows * cols, dx, rotated, dx);
}

namespace {

Arithmetic arithmetic_of(const Context& ctx) { return ctx.precision == Precision::bf16 ? Arithmetic::bf16 : Arithmetic::f32; }

struct AttentionTask {
  int32_t seq, kv_head, row0, rows;
};

// The arguments of one (sequence, kv head) without q rows, o and scratch.
AttentionArgs base_args(const AttentionSpec& s, int64_t seq, int64_t kv_head, const float* k, const float* v) {
  const int64_t d = s.head_dim, kv_cols = s.n_kv_heads * d, group = s.n_heads / s.n_kv_heads;
  const int64_t first = s.cu_seqlens[seq], count = s.cu_seqlens[seq + 1] - first;
  AttentionArgs a{};
  a.q_row = a.o_row = s.n_heads * d;
  a.q_head = a.o_head = d;
  if (s.cache) {
    a.q_pos0 = s.cache_len[seq];
  } else {
    a.k = k + first * kv_cols + kv_head * d;
    a.v = v + first * kv_cols + kv_head * d;
  }
  a.tk = a.q_pos0 + count;
  a.k_row = a.v_row = kv_cols;
  a.n_prefix = s.prefix_k ? (s.prefix_len ? s.prefix_len[seq] : s.n_prefix) : 0;
  if (a.n_prefix > 0) {
    a.prefix_k = s.prefix_k[seq] + kv_head * d;
    a.prefix_v = s.prefix_v[seq] + kv_head * d;
    a.prefix_row = s.prefix_row > 0 ? s.prefix_row : kv_cols;
  }
  a.tq = count;
  a.group = group;
  a.head_dim = d;
  a.window = s.window;
  a.causal = s.causal;
  a.softmax_one = s.softmax_one;
  a.scale = s.scale;
  a.softcap = s.softcap;
  a.alibi = s.alibi ? s.alibi + kv_head * group : nullptr;
  return a;
}

Weight* prefix_owner(const AttentionSpec& s, int64_t seq) {
  Weight* w = s.prefix_owner ? s.prefix_owner[seq] : nullptr;
  return wants_grad(w) ? w : nullptr;
}

bool prefix_wants_grad(const AttentionSpec& s) {
  for (int64_t i = 0; i < s.n_seqs; ++i)
    if (prefix_owner(s, i)) return true;
  return false;
}

// Rows [row0, row0 + rows) of a sequence: what both kinds of attention set per task.
void set_rows(const AttentionSpec& s, AttentionArgs* a, const float* q, float* o, int64_t seq, int64_t kv_head, int64_t row0,
              int64_t rows) {
  const int64_t cols = s.n_heads * s.head_dim, row = s.cu_seqlens[seq] + row0;
  const int64_t column = kv_head * a->group * s.head_dim;
  a->q = q + row * cols + column;
  a->o = o + row * cols + column;
  a->tq = rows;
  a->q_pos0 += row0;
  if (a->causal) a->tk = a->q_pos0 + rows;
}

int64_t count_tasks(const AttentionSpec& s, int64_t rows) {
  int64_t n = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) n += (s.cu_seqlens[i + 1] - s.cu_seqlens[i] + rows - 1) / rows * s.n_kv_heads;
  return n;
}

// Rows of a task: enough to pay for packing the keys, few enough that every thread gets several tasks. The bits of a row do
// not depend on it.
int64_t task_rows(const Context& ctx, const AttentionSpec& s) {
  const int64_t group = s.n_heads / s.n_kv_heads;
  int64_t rows = std::max<int64_t>(kAttentionBlockQ, 256 / group);
  while (rows > kAttentionBlockQ && count_tasks(s, rows) < 8 * ctx.threads) rows /= 2;
  return rows;
}

constexpr int64_t kSplitRows = 8;  // a task with more rows than these has work enough

// One (sequence, kv head) whose keys are split: parts lie one after another.
struct SplitHead {
  int32_t seq, kv_head, n_parts;
  float* parts;
  int64_t part_stride;
};
struct CacheTask {
  int32_t seq, kv_head, row0, rows;
  int64_t part;
  float* partial;
};

AttentionCacheFn cache_kernel(const Context& ctx, KvType type) {
  const KernelTable& kernels = ctx.kernels;
  if (ctx.precision == Precision::bf16)
    return type == KvType::f32   ? kernels.attention_cache_f32_bf16
           : type == KvType::f16 ? kernels.attention_cache_f16_bf16
                                 : kernels.attention_cache_i8_bf16;
  return type == KvType::f32   ? kernels.attention_cache_f32
         : type == KvType::f16 ? kernels.attention_cache_f16
                               : kernels.attention_cache_i8;
}

// The parts of a sequence's keys that its rows see: [first, end) chunks, and the prefix.
struct Parts {
  int64_t first, end;
  bool prefix;
  int64_t count() const { return std::max<int64_t>(0, end - first) + (prefix ? 1 : 0); }
};
Parts parts_of(const AttentionSpec& s, int64_t seq) {
  const int64_t before = s.cache_len[seq], tk = before + s.cu_seqlens[seq + 1] - s.cu_seqlens[seq];
  const int64_t n_prefix = s.prefix_k ? (s.prefix_len ? s.prefix_len[seq] : s.n_prefix) : 0;
  const int64_t begin = s.window > 0 ? std::max<int64_t>(0, before - s.window + 1) : 0;
  return {begin / kAttentionChunkK, (tk + kAttentionChunkK - 1) / kAttentionChunkK, n_prefix > 0};
}

// Keys are split among tasks where there would be few tasks otherwise. Split or not, the bits are the same: a row's sum
// is made of these parts in any case.
void cached_attention(Context& ctx, const AttentionSpec& s, const float* q, float* o) {
  const int64_t group = s.n_heads / s.n_kv_heads, stride = s.head_dim + 2;
  const auto step = static_cast<int32_t>(task_rows(ctx, s));
  const bool few = s.n_seqs * s.n_kv_heads < 4 * ctx.threads;
  const auto rows_of = [&](int64_t seq) { return int64_t{s.cu_seqlens[seq + 1]} - s.cu_seqlens[seq]; };
  const auto splits = [&](int64_t seq) {
    return ctx.threads > 1 && few && rows_of(seq) > 0 && rows_of(seq) <= kSplitRows && parts_of(s, seq).count() > 1;
  };
  const ArenaScope scope(ctx.scratch);
  int64_t n_tasks = 0, n_heads = 0, n_floats = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    if (!splits(i)) {
      n_tasks += (rows_of(i) + step - 1) / step * s.n_kv_heads;
      continue;
    }
    const int64_t parts = parts_of(s, i).count();
    n_tasks += parts * s.n_kv_heads;
    n_heads += s.n_kv_heads;
    n_floats += parts * s.n_kv_heads * rows_of(i) * group * stride;
  }
  auto* tasks = static_cast<CacheTask*>(ctx.scratch.allocate(size_t(n_tasks) * sizeof(CacheTask), "attention tasks"));
  auto* heads = static_cast<SplitHead*>(ctx.scratch.allocate(size_t(n_heads) * sizeof(SplitHead), "attention tasks"));
  float* partial = ctx.scratch.floats(n_floats, "attention parts");
  const int64_t scratch_floats = attention_scratch_floats(s.head_dim);
  float* scratch = ctx.scratch.floats(scratch_floats * ctx.threads, "attention blocks");
  n_tasks = n_heads = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    const auto seq = static_cast<int32_t>(i), rows = static_cast<int32_t>(rows_of(i));
    for (int32_t h = 0; h < s.n_kv_heads; ++h) {
      if (!splits(i)) {
        for (int32_t row0 = (rows + step - 1) / step * step - step; row0 >= 0; row0 -= step)
          tasks[n_tasks++] = {seq, h, row0, std::min(step, rows - row0), kAttentionAllParts, nullptr};
        continue;
      }
      const Parts parts = parts_of(s, i);
      const int64_t part_floats = rows * group * stride;
      heads[n_heads++] = {seq, h, static_cast<int32_t>(parts.count()), partial, part_floats};
      for (int64_t p = parts.prefix ? kAttentionPrefixPart : parts.first; p < parts.end; p = p < 0 ? parts.first : p + 1) {
        tasks[n_tasks++] = {seq, h, 0, rows, p, partial};
        partial += part_floats;
      }
    }
  }
  const AttentionCacheFn kernel = cache_kernel(ctx, s.cache->type);
  parallel_for(ctx.threads, n_tasks, [&](int64_t c, int thread) {
    const CacheTask& task = tasks[c];
    std::byte* head = s.cache->head(s.cache_seqs[task.seq], task.kv_head);
    AttentionCacheArgs a{};
    a.f = base_args(s, task.seq, task.kv_head, nullptr, nullptr);
    set_rows(s, &a.f, q, o, task.seq, task.kv_head, task.row0, task.rows);
    a.f.scratch = scratch + thread * scratch_floats;
    a.k = head;
    a.v = head + s.cache->v_offset();
    if (s.cache->type == KvType::int8) {
      a.k_scale = s.cache->k_scale(head);
      a.v_scale = s.cache->v_scale(head);
    }
    a.part = task.part;
    a.partial = task.partial;
    kernel(a);
  });
  parallel_for(ctx.threads, n_heads, [&](int64_t c, int) {
    const SplitHead& h = heads[c];
    AttentionArgs a = base_args(s, h.seq, h.kv_head, nullptr, nullptr);
    set_rows(s, &a, q, o, h.seq, h.kv_head, 0, rows_of(h.seq));
    ctx.kernels.attention_merge({h.parts, h.n_parts, h.part_stride, a.o, a.o_row, a.o_head, nullptr, 0, a.tq, group,
                                 s.head_dim, a.softmax_one});
  });
}

}  // namespace

Var attention(Context& ctx, Var q, Var k, Var v, const AttentionSpec* spec) {
  const ZoneScope zone(Zone::attention, arithmetic_of(ctx));
  const AttentionSpec& s = *spec;
  count_attention(s, false);
  const int64_t rows = q.t.rows(), cols = s.n_heads * s.head_dim, group = s.n_heads / s.n_kv_heads;
  const bool recorded = ctx.tape && (q.id >= 0 || k.id >= 0 || v.id >= 0 || prefix_wants_grad(s));
  THIMBLE_CHECK((!recorded || !s.cache) && group <= kAttentionMaxGroup);
  Var y = new_packed_value(ctx, rows, cols, recorded);
  if (s.cache) {
    cached_attention(ctx, s, q.t.f32(), y.t.f32());
    return y;
  }
  float* lse = recorded ? ctx.saved.floats(rows * s.n_heads, "attention statistics") : nullptr;

  const ArenaScope scope(ctx.scratch);
  const int64_t step = task_rows(ctx, s);
  const int64_t n_tasks = count_tasks(s, step);
  auto* tasks = static_cast<AttentionTask*>(ctx.scratch.allocate(size_t(n_tasks) * sizeof(AttentionTask), "attention tasks"));
  int64_t t = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    const int64_t count = s.cu_seqlens[i + 1] - s.cu_seqlens[i];
    // Head by head, so that threads share its keys and values in the caches. Late blocks see the most keys: they come
    // first, so that no thread is left with a long one at the end.
    for (int32_t h = 0; h < s.n_kv_heads; ++h)
      for (int64_t row0 = (count + step - 1) / step * step - step; row0 >= 0; row0 -= step)
        tasks[t++] = {static_cast<int32_t>(i), h, static_cast<int32_t>(row0),
                      static_cast<int32_t>(std::min(step, count - row0))};
  }
  const int64_t scratch_floats = attention_scratch_floats(s.head_dim);
  float* scratch = ctx.scratch.floats(scratch_floats * ctx.threads, "attention blocks");
  const float* qd = q.t.f32();
  float* out = y.t.f32();
  const AttentionFn kernel = ctx.precision == Precision::bf16 ? ctx.kernels.attention_bf16 : ctx.kernels.attention;
  parallel_for(ctx.threads, n_tasks, [&](int64_t c, int thread) {
    const AttentionTask& task = tasks[c];
    AttentionArgs a = base_args(s, task.seq, task.kv_head, k.t.f32(), v.t.f32());
    set_rows(s, &a, qd, out, task.seq, task.kv_head, task.row0, task.rows);
    if (lse) a.lse = lse + task.kv_head * group * rows + s.cu_seqlens[task.seq] + task.row0;
    a.lse_head = rows;
    a.scratch = scratch + thread * scratch_floats;
    kernel(a);
  });
  if (recorded) {
    Node& node = ctx.tape->push(Op::attention);
    node.in[0] = q.id;
    node.in[1] = k.id;
    node.in[2] = v.id;
    node.out = y.id;
    node.rows = rows;
    node.saved[0] = q.t.f32();
    node.saved[1] = k.t.f32();
    node.saved[2] = v.t.f32();
    node.saved[3] = out;
    node.saved[4] = lse;
    node.attention = spec;
    node.output = replay_target(ctx, y);
  }
  return y;
}

namespace {

// A sequence's keys are split among tasks where there are few (sequence, kv head) pairs. The shape alone decides: the
// parts of dq are added in order, which is another order of sums.
constexpr int64_t kManyTasks = 16, kBwdParts = 4, kBwdKeys = 256;
int64_t bwd_part_keys(const AttentionSpec& s, int64_t keys) {
  if (s.n_seqs * s.n_kv_heads >= kManyTasks) return std::max<int64_t>(1, keys);
  const int64_t even = (keys + kBwdParts - 1) / kBwdParts;
  return std::max(kBwdKeys, (even + kAttentionBlockK - 1) / kAttentionBlockK * kAttentionBlockK);
}

struct BwdTask {
  int32_t seq, kv_head, part, key_begin, key_end;
};

}  // namespace

void attention_backward(Context& ctx, const Node& node) {
  const ZoneScope zone(Zone::attention_bwd, arithmetic_of(ctx));
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const AttentionSpec& s = *node.attention;
  count_attention(s, true);
  const int64_t rows = node.rows, d = s.head_dim, group = s.n_heads / s.n_kv_heads;
  const int64_t cols = s.n_heads * d, kv_cols = s.n_kv_heads * d;
  const ArenaScope scope(ctx.scratch);
  // A gradient that adds to an earlier one, or that nobody wants, is made in scratch.
  float *target[3], *written[3];
  for (int i = 0; i < 3; ++i) {
    bool accumulate = false;
    target[i] = grad_target(ctx, node.in[i], &accumulate);
    const int64_t n = rows * (i == 0 ? cols : kv_cols);
    written[i] = target[i] && !accumulate ? target[i] : ctx.scratch.floats(n, "attention gradients");
  }
  // Gradients of a prefix cross sequences: each sequence adds to a partial of its own, and the partials are added in order.
  int64_t prefix_rows = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i)
    if (const Weight* w = prefix_owner(s, i)) prefix_rows = std::max(prefix_rows, w->rows);
  const int64_t prefix_stride = s.prefix_row > 0 ? s.prefix_row : kv_cols;
  float* d_prefix = prefix_rows > 0 ? ctx.scratch.floats(s.n_seqs * prefix_rows * prefix_stride, "prefix gradients") : nullptr;
  if (d_prefix) std::memset(d_prefix, 0, size_t(s.n_seqs * prefix_rows * prefix_stride) * sizeof(float));
  const int64_t scratch_floats = attention_bwd_scratch_floats(d);
  float* scratch = ctx.scratch.floats(scratch_floats * ctx.threads, "attention blocks");
  auto* tasks = static_cast<BwdTask*>(
      ctx.scratch.allocate(size_t(s.n_seqs * s.n_kv_heads * kBwdParts) * sizeof(BwdTask), "attention tasks"));
  int64_t n_tasks = 0;
  int32_t most_parts = 1;
  for (int32_t i = 0; i < s.n_seqs; ++i) {
    const int32_t keys = s.cu_seqlens[i + 1] - s.cu_seqlens[i];
    const auto step = static_cast<int32_t>(bwd_part_keys(s, keys));
    for (int32_t h = 0; h < s.n_kv_heads; ++h) {
      int32_t part = 0;
      for (int32_t begin = 0; begin == 0 || begin < keys; begin += step, ++part)
        tasks[n_tasks++] = {i, h, part, begin, std::min(keys, begin + step)};
      most_parts = std::max(most_parts, part);
    }
  }
  const AttentionBwdFn kernel =
      ctx.precision == Precision::bf16 ? ctx.kernels.attention_bwd_bf16 : ctx.kernels.attention_bwd;
  float* dq_parts = most_parts > 1 ? ctx.scratch.floats((most_parts - 1) * rows * cols, "attention gradients") : nullptr;
  parallel_for(ctx.threads, n_tasks, [&](int64_t c, int thread) {
    const int64_t seq = tasks[c].seq, kv_head = tasks[c].kv_head;
    const int64_t row = s.cu_seqlens[seq], column = kv_head * group * d;
    AttentionBwdArgs b{};
    b.key_begin = tasks[c].key_begin;
    b.key_end = tasks[c].key_end;
    b.f = base_args(s, seq, kv_head, node.saved[1], node.saved[2]);
    b.f.q = node.saved[0] + row * cols + column;
    b.f.o = const_cast<float*>(node.saved[3]) + row * cols + column;
    b.f.lse = const_cast<float*>(node.saved[4]) + kv_head * group * rows + row;
    b.f.lse_head = rows;
    b.f.scratch = scratch + thread * scratch_floats;
    b.d_o = dy + row * cols + column;
    b.dq = (tasks[c].part == 0 ? written[0] : dq_parts + (tasks[c].part - 1) * rows * cols) + row * cols + column;
    b.dk = written[1] + row * kv_cols + kv_head * d;
    b.dv = written[2] + row * kv_cols + kv_head * d;
    b.dk_row = b.dv_row = kv_cols;
    if (prefix_owner(s, seq)) {
      float* partial = d_prefix + seq * prefix_rows * prefix_stride + kv_head * d;
      b.d_prefix_k = partial + s.prefix_k_col;
      b.d_prefix_v = partial + s.prefix_v_col;
    }
    kernel(b);
  });
  for (int64_t i = 0; most_parts > 1 && i < s.n_seqs; ++i) {
    const int64_t first = s.cu_seqlens[i] * cols, keys = s.cu_seqlens[i + 1] - s.cu_seqlens[i];
    const int64_t step = bwd_part_keys(s, keys);
    for (int64_t p = 1; p * step < keys; ++p)
      add_rows(ctx, keys * cols, written[0] + first, dq_parts + (p - 1) * rows * cols + first, written[0] + first);
  }
  for (int i = 0; i < 3; ++i)
    if (target[i] && target[i] != written[i]) add_rows(ctx, rows * (i == 0 ? cols : kv_cols), target[i], written[i], target[i]);
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    Weight* w = prefix_owner(s, i);
    if (!w) continue;
    if (!grad_begin(w)) std::memset(w->grad, 0, size_t(w->numel()) * sizeof(float));
    const float* partial = d_prefix + i * prefix_rows * prefix_stride;
    for (int64_t r = 0; r < w->rows; ++r)
      for (int64_t column : {s.prefix_k_col, s.prefix_v_col}) {
        float* g = w->grad + r * w->cols + column;
        ctx.kernels.add({kv_cols, g, partial + r * prefix_stride + column, g});
      }
  }
}

}  // namespace thimble
