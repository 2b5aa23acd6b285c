// rope, and block attention over packed sequences. Saved for backward: q, k, v, o and the log normaliser of every row.
#include <cstring>

#include "tensor/ops_internal.h"
#include "tensor/trace.h"

namespace thimble {

// In place: nobody needs the unrotated projection again.
Var rope(Context& ctx, Var x, int64_t heads, int64_t head_dim, int64_t rot_dim, bool interleaved, const float* cos_table,
         const float* sin_table, const int32_t* positions) {
  THIMBLE_ZONE(rope);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
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
  if (s.cache_k) {
    a.k = s.cache_k[seq] + kv_head * d;
    a.v = s.cache_v[seq] + kv_head * d;
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

}  // namespace

Var attention(Context& ctx, Var q, Var k, Var v, const AttentionSpec* spec) {
  THIMBLE_ZONE(attention);
  const AttentionSpec& s = *spec;
  const int64_t rows = q.t.rows(), cols = s.n_heads * s.head_dim, group = s.n_heads / s.n_kv_heads;
  const bool recorded = ctx.tape && (q.id >= 0 || k.id >= 0 || v.id >= 0 || prefix_wants_grad(s));
  THIMBLE_CHECK(!recorded || !s.cache_k);
  Var y = new_value(ctx, rows, cols, recorded);
  float* lse = recorded ? ctx.saved.floats(rows * s.n_heads, "attention statistics") : nullptr;

  const ArenaScope scope(ctx.scratch);
  int64_t n_tasks = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i)
    n_tasks += (s.cu_seqlens[i + 1] - s.cu_seqlens[i] + kAttentionBlockQ - 1) / kAttentionBlockQ * s.n_kv_heads;
  auto* tasks = static_cast<AttentionTask*>(ctx.scratch.allocate(size_t(n_tasks) * sizeof(AttentionTask), "attention tasks"));
  int64_t t = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    const int32_t count = s.cu_seqlens[i + 1] - s.cu_seqlens[i];
    // Late blocks see the most keys: they come first, so that no thread is left with a long one at the end.
    for (int64_t b = (count + kAttentionBlockQ - 1) / kAttentionBlockQ - 1; b >= 0; --b)
      for (int64_t h = 0; h < s.n_kv_heads; ++h) {
        const auto row0 = static_cast<int32_t>(b * kAttentionBlockQ);
        tasks[t++] = {static_cast<int32_t>(i), static_cast<int32_t>(h), row0,
                      std::min(static_cast<int32_t>(kAttentionBlockQ), count - row0)};
      }
  }
  const int64_t scratch_floats = attention_scratch_floats(s.head_dim);
  float* scratch = ctx.scratch.floats(scratch_floats * ctx.threads, "attention blocks");
  const float* qd = q.t.f32();
  float* out = y.t.f32();
  parallel_for(ctx.threads, n_tasks, [&](int64_t c, int thread) {
    const AttentionTask& task = tasks[c];
    AttentionArgs a = base_args(s, task.seq, task.kv_head, s.cache_k ? nullptr : k.t.f32(), s.cache_k ? nullptr : v.t.f32());
    const int64_t row = s.cu_seqlens[task.seq] + task.row0, column = task.kv_head * group * s.head_dim;
    a.q = qd + row * cols + column;
    a.o = out + row * cols + column;
    a.tq = task.rows;
    a.q_pos0 += task.row0;
    if (a.causal) a.tk = a.q_pos0 + task.rows;
    if (lse) a.lse = lse + task.kv_head * group * rows + row;
    a.lse_head = rows;
    a.scratch = scratch + thread * scratch_floats;
    ctx.kernels.attention(a);
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
  }
  return y;
}

void attention_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(attention_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const AttentionSpec& s = *node.attention;
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
  parallel_for(ctx.threads, s.n_seqs * s.n_kv_heads, [&](int64_t c, int thread) {
    const int64_t seq = c / s.n_kv_heads, kv_head = c % s.n_kv_heads;
    const int64_t row = s.cu_seqlens[seq], column = kv_head * group * d;
    AttentionBwdArgs b{};
    b.f = base_args(s, seq, kv_head, node.saved[1], node.saved[2]);
    b.f.q = node.saved[0] + row * cols + column;
    b.f.o = const_cast<float*>(node.saved[3]) + row * cols + column;
    b.f.lse = const_cast<float*>(node.saved[4]) + kv_head * group * rows + row;
    b.f.lse_head = rows;
    b.f.scratch = scratch + thread * scratch_floats;
    b.d_o = dy + row * cols + column;
    b.dq = written[0] + row * cols + column;
    b.dk = written[1] + row * kv_cols + kv_head * d;
    b.dv = written[2] + row * kv_cols + kv_head * d;
    b.dk_row = b.dv_row = kv_cols;
    if (prefix_owner(s, seq)) {
      float* partial = d_prefix + seq * prefix_rows * prefix_stride + kv_head * d;
      b.d_prefix_k = partial + s.prefix_k_col;
      b.d_prefix_v = partial + s.prefix_v_col;
    }
    ctx.kernels.attention_bwd(b);
  });
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
