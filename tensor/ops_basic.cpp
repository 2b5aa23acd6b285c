// Embedding, learned positions, add, scale, and the block that frees or replays its inside.
#include <cstring>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

EmbedFn embed_kernel(const KernelTable& k, WeightFormat format) {
  switch (format) {
    case WeightFormat::f16: return k.embed_f16;
    case WeightFormat::bf16: return k.embed_bf16;
    case WeightFormat::q8: return k.embed_q8;
    case WeightFormat::q4: return k.embed_q4;
    case WeightFormat::q2: return k.embed_q2;
    case WeightFormat::f32: break;
  }
  return k.embed_f32;
}

// out[i] = W(ids[i] + offset)
void gather(Context& ctx, const Weight& w, const int32_t* ids, int64_t n, float* out) {
  THIMBLE_CHECK(!w.perm);
  count_elements(n * w.cols, is_tiled(w.format) ? 2 : 0, 4 + double(format_bits(w.format)) / 8);
  const EmbedFn fn = embed_kernel(ctx.kernels, w.format);
  for_rows(ctx, n, w.cols, [&](int64_t r, int64_t count, int64_t) {
    fn({w.view(), count, ids + r, out + r * w.cols, w.cols});
  });
}

// w.grad[ids[i]] += dy[i], rows in order: threads own column ranges, so the sum of a row does not depend on them.
void scatter(Context& ctx, Weight* w, const int32_t* ids, int64_t n, const float* dy) {
  THIMBLE_ZONE(embed);
  const int64_t cols = w->cols;
  count_elements(n * cols, 1, 12);
  if (!grad_begin(w)) for_elements(ctx, w->numel(), [&](int64_t i, int64_t count) { std::memset(w->grad + i, 0, size_t(count) * sizeof(float)); });
  // A share of the columns per thread: no sum crosses shares, and wide ones are read in sequence. The row of the next id
  // lies anywhere and is fetched meanwhile, a piece at a time.
  constexpr int64_t kPiece = 256, kLine = 16;
  const int64_t width = std::max<int64_t>(64, (cols / ctx.threads + kLine - 1) / kLine * kLine);
  parallel_for(ctx.threads, (cols + width - 1) / width, [&](int64_t c, int) {
    const int64_t begin = c * width, end = std::min(begin + width, cols);
    for (int64_t i = 0; i < n; ++i) {
      const float* next = w->grad + int64_t{ids[std::min(i + 1, n - 1)]} * cols;
      for (int64_t at = begin; at < end; at += kPiece) {
        const int64_t count = std::min(kPiece, end - at);
        for (int64_t line = 0; line < count; line += kLine) __builtin_prefetch(next + at + line, 1);
        ctx.kernels.axpy({count, 1.0f, dy + i * cols + at, w->grad + int64_t{ids[i]} * cols + at});
      }
    }
  });
}

}  // namespace

Var embed(Context& ctx, Weight* w, const int32_t* ids, int64_t n) {
  THIMBLE_ZONE(embed);
  const bool recorded = ctx.tape && wants_grad(w);
  Var y = new_value(ctx, n, w->cols, recorded);
  gather(ctx, *w, ids, n, y.t.f32());
  if (recorded) {
    Node& node = ctx.tape->push(Op::embed);
    node.out = y.id;
    node.w = w;
    node.rows = n;
    node.ids = ids;
  }
  return y;
}

void embed_backward(Context& ctx, const Node& node) {
  if (const float* dy = grad_of(ctx, node.out)) scatter(ctx, node.w, node.ids, node.rows, dy);
}

Var add_positions(Context& ctx, Var x, Weight* w, const int32_t* positions, int64_t offset) {
  THIMBLE_ZONE(embed);
  const int64_t n = x.t.rows(), cols = x.t.cols();
  const bool recorded = ctx.tape && (x.id >= 0 || wants_grad(w));
  Var y = new_value(ctx, n, cols, recorded);
  // The row numbers outlive the op: backward scatters by them.
  auto* rows = static_cast<int32_t*>(ctx.saved.allocate(size_t(n) * sizeof(int32_t), "positions"));
  for (int64_t i = 0; i < n; ++i) rows[i] = positions[i] + static_cast<int32_t>(offset);
  gather(ctx, *w, rows, n, y.t.f32());
  add_rows(ctx, n * cols, x.t.f32(), y.t.f32(), y.t.f32());
  if (recorded) {
    Node& node = ctx.tape->push(Op::add_positions);
    node.in[0] = x.id;
    node.out = y.id;
    node.w = w;
    node.rows = n;
    node.ids = rows;
  }
  return y;
}

void add_positions_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  if (wants_grad(node.w)) scatter(ctx, node.w, node.ids, node.rows, dy);
  grad_share(ctx, node.in[0], dy);
}

namespace {

Var add_to(Context& ctx, Var a, Var b, Var y, bool recorded) {
  THIMBLE_ZONE(add);
  count_elements(a.t.numel(), 1, 12);
  add_rows(ctx, a.t.numel(), a.t.f32(), b.t.f32(), y.t.f32());
  if (recorded) {
    Node& node = ctx.tape->push(Op::add);
    node.in[0] = a.id;
    node.in[1] = b.id;
    node.out = y.id;
  }
  return y;
}

}  // namespace

Var add(Context& ctx, Var a, Var b) {
  const bool recorded = ctx.tape && (a.id >= 0 || b.id >= 0);
  return add_to(ctx, a, b, new_value(ctx, a.t.rows(), a.t.cols(), recorded), recorded);
}

Var add_into(Context& ctx, Var a, Var b) {
  const bool recorded = ctx.tape && (a.id >= 0 || b.id >= 0);
  return add_to(ctx, a, b, {b.t, recorded ? ctx.tape->add_value(b.t) : -1}, recorded);
}

// Both operands share dy; whoever adds to a shared gradient copies it first, so a residual stream read by two parallel
// branches is never changed under the branch that reads it later.
void add_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(add);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  grad_share(ctx, node.in[0], dy);
  grad_share(ctx, node.in[1], dy);
}

Var scale(Context& ctx, Var x, float alpha) {
  THIMBLE_ZONE(add);
  count_elements(x.t.numel(), 1, 8);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_value(ctx, x.t.rows(), x.t.cols(), recorded);
  const float* in = x.t.f32();
  float* out = y.t.f32();
  for_elements(ctx, x.t.numel(), [&](int64_t i, int64_t n) { ctx.kernels.scale({n, alpha, in + i, out + i}); });
  if (recorded) {
    Node& node = ctx.tape->push(Op::scale);
    node.in[0] = x.id;
    node.out = y.id;
    node.attr[0] = alpha;
    node.rows = x.t.numel();
  }
  return y;
}

void scale_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  const float alpha = node.attr[0];
  for_elements(ctx, node.rows, [&](int64_t i, int64_t n) {
    if (accumulate)
      ctx.kernels.axpy({n, alpha, dy + i, dx + i});
    else
      ctx.kernels.scale({n, alpha, dy + i, dx + i});
  });
}

Var pack(Context& ctx, Var y) {
  if (!packs_values(ctx)) return y;
  THIMBLE_ZONE(activation);
  const int64_t n = y.t.numel();
  float* value = y.t.f32();
  uint16_t* packed = nullptr;
  if (y.id >= 0 && replay_target(ctx, y)) {
    packed = static_cast<uint16_t*>(ctx.saved.allocate(size_t(n) * sizeof(uint16_t), "activations"));
    Node& node = ctx.tape->producer(y.id);
    node.packed = packed;
    node.widened = value;
  }
  count_elements(n, 0, packed ? 12 : 8);
  for_elements(ctx, n, [&](int64_t begin, int64_t count) {
    constexpr int64_t kPart = 2048;
    uint16_t part[kPart];
    for (int64_t i = begin; i < begin + count; i += kPart) {
      const int64_t m = std::min(kPart, begin + count - i);
      uint16_t* const half = packed ? packed + i : part;
      ctx.kernels.f32_to_bf16({m, value + i, half});
      ctx.kernels.bf16_to_f32({m, half, value + i});
    }
  });
  return y;
}

Var run_block(Context& ctx, const BlockCall* call, Var x, Recompute recompute, bool needs_grad) {
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  if (ctx.tape && needs_grad && recompute != Recompute::block) {
    ctx.tape->push(Op::segment_begin);
    const ArenaScope scope(ctx.replayed);
    const bool outside = ctx.replay_cheap;
    ctx.replay_cheap = recompute == Recompute::cheap;
    Var y = call->fn(ctx, call->user, call->index, x);
    ctx.replay_cheap = outside;
    // A block may end in a cheap op (post-norm), but others read its output: they get a copy that is kept.
    if (ctx.replayed.owns(y.t.data)) y = scale(ctx, y, 1.0f);
    Node& end = ctx.tape->push(Op::segment_end);
    end.in[0] = x.id;
    end.out = y.id;
    return y;
  }
  const bool recorded = ctx.tape && needs_grad;
  Var y = new_value(ctx, rows, cols, recorded);
  {
    const ArenaScope scope(ctx.saved);
    Tape* tape = ctx.tape;
    ctx.tape = nullptr;
    const Var inside = call->fn(ctx, call->user, call->index, {x.t, -1});
    ctx.tape = tape;
    for_elements(ctx, y.t.numel(), [&](int64_t i, int64_t n) { std::memcpy(y.t.f32() + i, inside.t.f32() + i, size_t(n) * sizeof(float)); });
  }
  if (recorded) {
    Node& node = ctx.tape->push(Op::checkpoint);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = rows;
    node.dims[0] = cols;
    node.saved[0] = x.t.f32();
    node.block = call;
  }
  return y;
}

namespace {

// The gradient of a block's input outlives the block, so it is placed below the block's other gradients. Two buffers
// that take turns are enough for a residual stream; a value that is read elsewhere too gets memory of its own.
void place_input_grad(Context& ctx, int32_t in) {
  if (in < 0) return;
  Tape::Value& x = ctx.tape->value(in);
  Tape::Turns& turns = ctx.tape->turns;
  if (x.shared) {
    bool accumulate = false;
    grad_target(ctx, in, &accumulate);  // a copy, made before the block's memory begins
  }
  if (x.grad) return;
  const int64_t numel = x.t.numel();
  if (turns.depth == 0 && turns.numel != numel) {
    turns.numel = numel;
    for (int i = 0; i < 2; ++i) {
      turns.buffer[i] = ctx.grads.floats(numel, "residual gradients");
      turns.owner[i] = -1;
    }
  }
  for (int i = 0; i < 2 && turns.depth == 0 && !x.grad; ++i)
    if (turns.owner[i] < 0) {
      x.grad = turns.buffer[i];
      turns.owner[i] = in;
    }
  if (!x.grad) x.grad = ctx.grads.floats(numel, "residual gradients");
}

}  // namespace

namespace {

void replay(Context& ctx, const Node& node) {
  switch (node.op) {
    case Op::rms_norm:
    case Op::layer_norm: return replay_norm(ctx, node);
    case Op::activation: return replay_activation(ctx, node);
    case Op::gated: return replay_gated(ctx, node);
    case Op::col_scale: return replay_col_scale(ctx, node);
    default: return;  // packed, by this node or by one that works in its place
  }
}

void widen(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation);
  const int64_t n = ctx.tape->value(node.out).t.numel();
  count_elements(n, 0, 6);
  for_elements(ctx, n, [&](int64_t i, int64_t count) {
    ctx.kernels.bf16_to_f32({count, node.packed + i, node.widened + i});
  });
}

// Fills the outputs that the block did not keep, in the order of the forward.
void replay_cheap_ops(Context& ctx) {
  const Tape& tape = *ctx.tape;
  size_t begin = tape.cursor;
  for (int depth = 1; depth > 0;) {
    const Op op = tape.node(--begin).op;
    depth += op == Op::segment_end ? 1 : op == Op::segment_begin ? -1 : 0;
  }
  for (size_t i = begin; i < tape.cursor; ++i) {
    const Node& node = tape.node(i);
    if (node.output && node.op != Op::col_scale) {  // which works in place; the others get the addresses of the forward again
      const int64_t numel = ctx.tape->value(node.out).t.numel();
      THIMBLE_CHECK(ctx.replayed.floats(numel, "activations") == node.output);
    }
    if (node.output) replay(ctx, node);
    if (node.packed) widen(ctx, node);
  }
}

}  // namespace

void segment_end_backward(Context& ctx, const Node& node) {
  const Arena::Mark replayed = ctx.replayed.mark();
  replay_cheap_ops(ctx);
  place_input_grad(ctx, node.in[0]);
  ctx.tape->segments.push_back({ctx.grads.mark(), replayed, node.out});
  ++ctx.tape->turns.depth;
}

void segment_begin_backward(Context& ctx, const Node&) {
  Tape& tape = *ctx.tape;
  ctx.grads.reset(tape.segments.back().mark);
  ctx.replayed.reset(tape.segments.back().replayed);
  if (--tape.turns.depth == 0) tape.turns.release(tape.segments.back().out);
  tape.segments.pop_back();
}

void checkpoint_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  place_input_grad(ctx, node.in[0]);
  const ArenaScope saved(ctx.saved), grads(ctx.grads);
  ++ctx.tape->turns.depth;
  const size_t nodes = ctx.tape->node_count(), values = ctx.tape->value_count();
  Var x;
  x.t = Tensor::matrix(const_cast<float*>(node.saved[0]), node.rows, node.dims[0]);
  if (node.in[0] >= 0) {
    x.id = ctx.tape->add_value(x.t);
    ctx.tape->value(x.id) = ctx.tape->value(node.in[0]);
  }
  const Var y = node.block->fn(ctx, node.block->user, node.block->index, x);
  if (y.id >= 0) {
    Tape::Value& out = ctx.tape->value(y.id);
    out.grad = const_cast<float*>(dy);
    out.written = out.shared = true;
    run_backward(ctx, nodes);
  }
  if (node.in[0] >= 0) {
    const Tape::Value inside = ctx.tape->value(x.id);
    Tape::Value& outer = ctx.tape->value(node.in[0]);
    outer.written = inside.written;
    THIMBLE_CHECK(inside.grad == outer.grad);
  }
  ctx.tape->truncate(nodes, values);
  if (--ctx.tape->turns.depth == 0) ctx.tape->turns.release(node.out);
}

}  // namespace thimble
