// Shared by the ops: loops over elements and rows whose chunks depend on the shape only, and the backward of every op.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tensor/context.h"
#include "tensor/ops.h"
#include "tensor/parallel.h"
#include "tensor/tape.h"

namespace thimble {

#define OP(name, has_backward) void name##_backward(Context& ctx, const Node& node);
#include "tensor/op_rows.def"
#undef OP

constexpr int64_t kElementChunk = 1 << 15;  // elements per chunk of an elementwise loop

// body(begin, count) over [0, n)
template <class Body>
void for_elements(Context& ctx, int64_t n, Body&& body) {
  const int64_t chunks = (n + kElementChunk - 1) / kElementChunk;
  parallel_for(ctx.threads, chunks, [&](int64_t c, int) {
    const int64_t begin = c * kElementChunk;
    body(begin, std::min(kElementChunk, n - begin));
  });
}

// Rows per chunk of a row-wise loop over [rows, cols].
inline int64_t row_chunk(int64_t cols) { return std::max<int64_t>(1, kElementChunk / std::max<int64_t>(1, cols)); }

// body(first_row, count, chunk)
template <class Body>
void for_rows(Context& ctx, int64_t rows, int64_t cols, Body&& body) {
  const int64_t step = row_chunk(cols);
  parallel_for(ctx.threads, (rows + step - 1) / step, [&](int64_t c, int) {
    const int64_t begin = c * step;
    body(begin, std::min(step, rows - begin), c);
  });
}

// y = a + b over n elements
inline void add_rows(Context& ctx, int64_t n, const float* a, const float* b, float* y) {
  for_elements(ctx, n, [&](int64_t i, int64_t count) { ctx.kernels.add({count, a + i, b + i, y + i}); });
}

inline bool wants_grad(const Weight* w) { return w && w->grad; }

// A new value [rows, cols] in ctx.saved, on the tape when `recorded`.
inline Var new_value(Context& ctx, int64_t rows, int64_t cols, bool recorded) {
  Var y;
  y.t = Tensor::matrix(ctx.saved.floats(rows * cols, "activations"), rows, cols);
  if (recorded) y.id = ctx.tape->add_value(y.t);
  return y;
}

// The same for the output of a cheap op, which a block under Recompute::cheap does not keep.
inline Var new_cheap_value(Context& ctx, int64_t rows, int64_t cols, bool recorded) {
  if (!recorded || !ctx.replay_cheap) return new_value(ctx, rows, cols, recorded);
  Var y;
  y.t = Tensor::matrix(ctx.replayed.floats(rows * cols, "activations"), rows, cols);
  y.id = ctx.tape->add_value(y.t);
  return y;
}
// Whether pack() does anything, and an output that it will keep.
inline bool packs_values(const Context& ctx) { return ctx.training && ctx.precision == Precision::bf16; }
inline Var new_packed_value(Context& ctx, int64_t rows, int64_t cols, bool recorded) {
  return packs_values(ctx) ? new_cheap_value(ctx, rows, cols, recorded) : new_value(ctx, rows, cols, recorded);
}
// What Node::output of that op is.
inline float* replay_target(const Context& ctx, const Var& y) {
  return ctx.replayed.owns(y.t.data) ? y.t.f32() : nullptr;
}

// Runs the forward of a node with an output again.
void replay_norm(Context& ctx, const Node& node);
void replay_activation(Context& ctx, const Node& node);
void replay_gated(Context& ctx, const Node& node);
void replay_col_scale(Context& ctx, const Node& node);

// y[m, w.rows] = x[m, w.cols] Wᵀ in the context's precision; neighbours of like weights run together (gemm.h).
struct ForwardProduct {
  int64_t m;
  const float* x;
  const Weight* w;
  float* y;
};
void weight_forward(Context& ctx, const ForwardProduct* products, int count);
// dx[m, w.cols] (+)= dy[m, w.rows] W.
void weight_dx(Context& ctx, int64_t m, const float* dy, const Weight& w, float* dx, bool accumulate);
// y = x Wᵀ in f32, whatever the context's precision.
void exact_forward(Context& ctx, int64_t m, const float* x, const Weight& w, float* y);
// w.grad (+)= dyᵀ x
void weight_dw(Context& ctx, int64_t m, const float* dy, const float* x, Weight* w);
// The same products for adapters, whose weights are thin: up to rank 32 in f32 whatever the context's precision, and with
// strides, so that several adapters stand side by side in one h.
void thin_forward(Context& ctx, int64_t m, const float* x, int64_t ldx, const Weight& w, float* y, int64_t ldy, bool accumulate);
void thin_dx(Context& ctx, int64_t m, const float* dy, int64_t ldy, const Weight& w, float* dx, int64_t ldx, bool accumulate);
void thin_dw(Context& ctx, int64_t m, const float* dy, int64_t ldy, const float* x, int64_t ldx, Weight* w);
// b.grad (+)= sum of the rows of dy
void bias_grad(Context& ctx, int64_t m, const float* dy, Weight* b);
// grad[cols] (+)= partials[0] + partials[1] + ... in order
void add_partials(Context& ctx, const float* partials, int64_t count, int64_t cols, float* grad, bool accumulate);

}  // namespace thimble
