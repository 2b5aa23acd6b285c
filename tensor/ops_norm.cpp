// RMSNorm and LayerNorm. Saved: x and the row statistics. The gradients of weight and bias cross rows: each chunk of rows
// makes a partial sum, and the partials are added in order.
#include <cstring>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

Var norm(Context& ctx, Op op, Var x, Weight* w, Weight* b, float eps, float w_offset, bool packs) {
  THIMBLE_ZONE(norm);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  const bool recorded = ctx.tape && (x.id >= 0 || wants_grad(w) || wants_grad(b));
  const bool layer = op == Op::layer_norm;
  count_elements(rows * cols, layer ? 8 : 4, 8);
  Var y = (packs ? new_packed_value : new_cheap_value)(ctx, rows, cols, recorded);
  float* mean = recorded && layer ? ctx.saved.floats(rows, "norm statistics") : nullptr;
  float* rstd = recorded ? ctx.saved.floats(rows, "norm statistics") : nullptr;
  const NormFn fn = layer ? ctx.kernels.layer_norm : ctx.kernels.rms_norm;
  const float* in = x.t.f32();
  float* out = y.t.f32();
  const float* weight = w && *w ? w->f32() : nullptr;
  const float* bias = b && *b ? b->f32() : nullptr;
  for_rows(ctx, rows, cols, [&](int64_t r, int64_t n, int64_t) {
    fn({n, cols, in + r * cols, weight, bias, out + r * cols, mean ? mean + r : nullptr, rstd ? rstd + r : nullptr, eps,
        w_offset});
  });
  if (recorded) {
    Node& node = ctx.tape->push(op);
    node.in[0] = x.id;
    node.out = y.id;
    node.w = w;
    node.b = b;
    node.rows = rows;
    node.dims[0] = cols;
    node.attr[0] = w_offset;
    node.attr[1] = eps;
    node.output = replay_target(ctx, y);
    node.saved[0] = in;
    node.saved[1] = mean;
    node.saved[2] = rstd;
    node.saved[3] = weight;
  }
  return y;
}

void norm_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(norm_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t rows = node.rows, cols = node.dims[0];
  const int64_t chunks = (rows + row_chunk(cols) - 1) / row_chunk(cols);
  const bool layer = node.op == Op::layer_norm;
  count_elements(rows * cols, layer ? 16 : 10, 12);
  float* dw = wants_grad(node.w) ? ctx.scratch.floats(chunks * cols, "norm partials") : nullptr;
  float* db = layer && wants_grad(node.b) ? ctx.scratch.floats(chunks * cols, "norm partials") : nullptr;
  if (dw) std::memset(dw, 0, size_t(chunks * cols) * sizeof(float));
  if (db) std::memset(db, 0, size_t(chunks * cols) * sizeof(float));
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  const NormBwdFn fn = layer ? ctx.kernels.layer_norm_bwd : ctx.kernels.rms_norm_bwd;
  for_rows(ctx, rows, cols, [&](int64_t r, int64_t n, int64_t chunk) {
    fn({n, cols, node.saved[0] + r * cols, node.saved[3], dy + r * cols, layer ? node.saved[1] + r : nullptr,
        node.saved[2] + r, dx ? dx + r * cols : nullptr, dw ? dw + chunk * cols : nullptr, db ? db + chunk * cols : nullptr,
        node.attr[0], accumulate});
  });
  if (dw) add_partials(ctx, dw, chunks, cols, node.w->grad, grad_begin(node.w));
  if (db) add_partials(ctx, db, chunks, cols, node.b->grad, grad_begin(node.b));
}

}  // namespace

void replay_norm(Context& ctx, const Node& node) {
  THIMBLE_ZONE(norm);
  const int64_t cols = node.dims[0];
  count_elements(node.rows * cols, node.op == Op::layer_norm ? 8 : 4, 8);
  const NormFn fn = node.op == Op::layer_norm ? ctx.kernels.layer_norm : ctx.kernels.rms_norm;
  const float* bias = node.b && *node.b ? node.b->f32() : nullptr;
  for_rows(ctx, node.rows, cols, [&](int64_t r, int64_t n, int64_t) {
    fn({n, cols, node.saved[0] + r * cols, node.saved[3], bias, node.output + r * cols, nullptr, nullptr, node.attr[1],
        node.attr[0]});
  });
}

void add_partials(Context& ctx, const float* partials, int64_t count, int64_t cols, float* grad, bool accumulate) {
  constexpr int64_t kColumns = 256;
  parallel_for(ctx.threads, (cols + kColumns - 1) / kColumns, [&](int64_t c, int) {
    const int64_t begin = c * kColumns;
    ctx.kernels.col_sum({count, std::min(kColumns, cols - begin), partials + begin, cols, grad + begin, accumulate});
  });
}

Var rms_norm(Context& ctx, Var x, Weight* w, float eps, float w_offset, bool packs) {
  return norm(ctx, Op::rms_norm, x, w, nullptr, eps, w_offset, packs);
}
Var layer_norm(Context& ctx, Var x, Weight* w, Weight* b, float eps, bool packs) {
  return norm(ctx, Op::layer_norm, x, w, b, eps, 0, packs);
}
void rms_norm_backward(Context& ctx, const Node& node) { norm_backward(ctx, node); }
void layer_norm_backward(Context& ctx, const Node& node) { norm_backward(ctx, node); }

}  // namespace thimble
