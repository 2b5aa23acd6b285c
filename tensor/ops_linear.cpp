// linear: y = x Wᵀ + b, dx = dy W, dW = dyᵀ x, db = column sums of dy. Nothing is saved but x itself. A weight in act-order
// holds permuted columns: x is gathered once per call, dx scattered back.
#include <algorithm>
#include <cstring>

#include "tensor/gemm.h"
#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

// scratch[i, c] = x[i, perm[c]]
const float* gather_columns(Context& ctx, int64_t m, const float* x, const Weight& w) {
  float* gathered = ctx.scratch.floats(m * w.cols, "gathered activations");
  for_rows(ctx, m, w.cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t i = first; i < first + count; ++i)
      for (int64_t c = 0; c < w.cols; ++c) gathered[i * w.cols + c] = x[i * w.cols + w.perm[c]];
  });
  return gathered;
}

constexpr int64_t kFewRows = 4;  // what a trace calls a gemv, whichever path computes it

ZoneKey product_key(Product product, const Weight& w, Arithmetic arithmetic) {
  return {Zone::linear, product, arithmetic, w.format, static_cast<uint16_t>(is_tiled(w.format) ? w.group : 0)};
}

ZoneKey forward_key(int64_t m, const Weight& w, Arithmetic arithmetic) {
  return product_key(m <= kFewRows ? Product::gemv : Product::gemm, w, arithmetic);
}

// Over weights of one format; bf16: a single one.
void forward_products(Context& ctx, Arithmetic arithmetic, WeightFormat format, const GemmProduct* products, int count) {
  const bool bf16 = arithmetic == Arithmetic::bf16, int8_act = arithmetic == Arithmetic::int8;
  const GemmProduct& p = products[0];
  const size_t bytes = bf16 ? gemm_nt_bf16_scratch_bytes(ctx.kernels, ctx.threads, p.m, p.w)
                            : gemm_nt_scratch_bytes(ctx.kernels, ctx.threads, format, products, count, int8_act);
  const GemmExec exec{&ctx.kernels, ctx.threads, ctx.scratch.allocate(bytes, "gemm panels"), bytes};
  if (bf16) return gemm_nt_bf16(exec, p.m, p.x, p.ldx, format, p.w, p.y, p.ldy, p.accumulate);
  gemm_nt(exec, format, products, count, int8_act);
}

// Rows of x and y at a distance of their own, in the arithmetic that the caller chose.
void forward_product(Context& ctx, Arithmetic arithmetic, int64_t m, const float* x, int64_t ldx, const Weight& w, float* y,
                     int64_t ldy, bool accumulate) {
  const ArenaScope scope(ctx.scratch);
  const ZoneScope zone(forward_key(m, w, arithmetic));
  count_product(m, w, accumulate);
  const GemmProduct one{m, x, ldx, w.view(), y, ldy, accumulate};
  forward_products(ctx, arithmetic, w.format, &one, 1);
}

void dx_product(Context& ctx, Arithmetic arithmetic, int64_t m, const float* dy, int64_t ldy, const Weight& w, float* dx,
                int64_t ldx, bool accumulate) {
  const ArenaScope scope(ctx.scratch);
  const ZoneScope zone(product_key(Product::dx, w, arithmetic));
  count_product(m, w, accumulate);
  const bool bf16 = arithmetic == Arithmetic::bf16;
  const size_t bytes = bf16 ? gemm_nn_bf16_scratch_bytes(ctx.kernels, ctx.threads, m, w.view())
                            : gemm_nn_scratch_bytes(ctx.kernels, ctx.threads, m, w.format, w.view());
  const GemmExec exec{&ctx.kernels, ctx.threads, ctx.scratch.allocate(bytes, "gemm panels"), bytes};
  (bf16 ? gemm_nn_bf16 : gemm_nn)(exec, m, dy, ldy, w.format, w.view(), dx, ldx, accumulate);
}

void dw_product(Context& ctx, Arithmetic arithmetic, int64_t m, const float* dy, int64_t ldy, const float* x, int64_t ldx,
                Weight* w) {
  const ArenaScope scope(ctx.scratch);
  const ZoneScope zone(product_key(Product::dw, *w, arithmetic));
  count_dw(m, *w);
  const bool bf16 = arithmetic == Arithmetic::bf16;
  const size_t bytes =
      (bf16 ? gemm_tn_bf16_scratch_bytes : gemm_tn_scratch_bytes)(ctx.kernels, ctx.threads, m, w->rows, w->cols);
  const GemmExec exec{&ctx.kernels, ctx.threads, ctx.scratch.allocate(bytes, "gemm panels"), bytes};
  (bf16 ? gemm_tn_bf16 : gemm_tn)(exec, m, dy, ldy, w->rows, x, ldx, w->cols, w->grad, w->cols, grad_begin(w));
}

Arithmetic arithmetic_of(const Context& ctx) {
  return ctx.precision == Precision::bf16 ? Arithmetic::bf16 : Arithmetic::f32;
}

Arithmetic forward_arithmetic(const Context& ctx, const Weight& w) {
  return ctx.precision == Precision::int8_act && is_tiled(w.format) ? Arithmetic::int8 : arithmetic_of(ctx);
}

// Below this rank, rounding x to bf16 costs more than bf16 products save.
Arithmetic thin_arithmetic(const Context& ctx, const Weight& w) {
  constexpr int64_t kThinRank = 32;
  return std::min(w.rows, w.cols) > kThinRank ? arithmetic_of(ctx) : Arithmetic::f32;
}

}  // namespace

void weight_forward(Context& ctx, const ForwardProduct* products, int count) {
  GemmProduct together[kGemmTogether];
  const auto key_of = [&](const ForwardProduct& p) { return forward_key(p.m, *p.w, forward_arithmetic(ctx, *p.w)); };
  for (int i = 0, n = 0; i < count; i += n) {
    const ArenaScope scope(ctx.scratch);
    const ZoneKey key = key_of(products[i]);
    const int most = key.arithmetic == Arithmetic::bf16 ? 1 : kGemmTogether;
    for (n = 0; n < most && i + n < count && key_of(products[i + n]) == key; ++n) {
      const auto& [m, x, w, y] = products[i + n];
      together[n] = {m, w->perm ? gather_columns(ctx, m, x, *w) : x, w->cols, w->view(), y, w->rows, false};
    }
    const ZoneScope zone(key);
    for (int j = 0; j < n; ++j) count_product(products[i + j].m, *products[i + j].w, false);
    forward_products(ctx, key.arithmetic, products[i].w->format, together, n);
  }
}

void exact_forward(Context& ctx, int64_t m, const float* x, const Weight& w, float* y) {
  const ArenaScope scope(ctx.scratch);
  if (w.perm) x = gather_columns(ctx, m, x, w);
  forward_product(ctx, Arithmetic::f32, m, x, w.cols, w, y, w.rows, false);
}

void weight_dx(Context& ctx, int64_t m, const float* dy, const Weight& w, float* dx, bool accumulate) {
  if (!w.perm) return dx_product(ctx, arithmetic_of(ctx), m, dy, w.rows, w, dx, w.cols, accumulate);
  const ArenaScope scope(ctx.scratch);
  float* permuted = ctx.scratch.floats(m * w.cols, "permuted gradients");
  dx_product(ctx, arithmetic_of(ctx), m, dy, w.rows, w, permuted, w.cols, false);
  for_rows(ctx, m, w.cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t i = first; i < first + count; ++i)
      for (int64_t c = 0; c < w.cols; ++c) {
        float& out = dx[i * w.cols + w.perm[c]];
        out = accumulate ? out + permuted[i * w.cols + c] : permuted[i * w.cols + c];
      }
  });
}

void weight_dw(Context& ctx, int64_t m, const float* dy, const float* x, Weight* w) {
  dw_product(ctx, arithmetic_of(ctx), m, dy, w->rows, x, w->cols, w);
}

void thin_forward(Context& ctx, int64_t m, const float* x, int64_t ldx, const Weight& w, float* y, int64_t ldy, bool accumulate) {
  forward_product(ctx, thin_arithmetic(ctx, w), m, x, ldx, w, y, ldy, accumulate);
}

void thin_dx(Context& ctx, int64_t m, const float* dy, int64_t ldy, const Weight& w, float* dx, int64_t ldx, bool accumulate) {
  dx_product(ctx, thin_arithmetic(ctx, w), m, dy, ldy, w, dx, ldx, accumulate);
}

void thin_dw(Context& ctx, int64_t m, const float* dy, int64_t ldy, const float* x, int64_t ldx, Weight* w) {
  dw_product(ctx, thin_arithmetic(ctx, *w), m, dy, ldy, x, ldx, w);
}

void bias_grad(Context& ctx, int64_t m, const float* dy, Weight* b) {
  const bool accumulate = grad_begin(b);
  const int64_t cols = b->cols;
  constexpr int64_t kColumns = 256;
  parallel_for(ctx.threads, (cols + kColumns - 1) / kColumns, [&](int64_t c, int) {
    const int64_t begin = c * kColumns;
    ctx.kernels.col_sum({m, std::min(kColumns, cols - begin), dy + begin, cols, b->grad + begin, accumulate});
  });
}

void linears(Context& ctx, Linear* all, int count) {
  const ZoneOwner owner(Zone::linear);
  const ArenaScope scope(ctx.scratch);
  auto* products = static_cast<ForwardProduct*>(ctx.scratch.allocate(size_t(count) * sizeof(ForwardProduct), "linears"));
  for (int i = 0; i < count; ++i) {
    Linear& one = all[i];
    const int64_t m = one.x.t.rows();
    THIMBLE_CHECK(one.x.t.cols() == one.w->cols);
    const bool recorded = ctx.tape && (one.x.id >= 0 || wants_grad(one.w) || wants_grad(one.b));
    one.y = one.packs ? new_packed_value(ctx, m, one.w->rows, recorded) : new_value(ctx, m, one.w->rows, recorded);
    products[i] = {m, one.x.t.f32(), one.w, one.y.t.f32()};
  }
  weight_forward(ctx, products, count);
  for (int i = 0; i < count; ++i) {
    const auto& [x, w, b, packs, y] = all[i];
    const int64_t m = x.t.rows(), rows = w->rows;
    if (b && *b) {
      THIMBLE_ZONE(linear);
      count_elements(m * rows, 1, 8);
      for_rows(ctx, m, rows, [&, out = y.t.f32(), bias = b->f32()](int64_t r, int64_t n, int64_t) {
        ctx.kernels.bias_add({n, rows, out + r * rows, rows, bias});
      });
    }
    if (y.id < 0) continue;
    Node& node = ctx.tape->push(Op::linear);
    node.in[0] = x.id;
    node.out = y.id;
    node.w = w;
    node.b = b;
    node.rows = m;
    node.saved[0] = x.t.f32();
    node.output = replay_target(ctx, y);
  }
}

Var linear(Context& ctx, Var x, Weight* w, Weight* b, bool packs) {
  Linear one{x, w, b, packs, {}};
  linears(ctx, &one, 1);
  return one.y;
}

void linear_backward(Context& ctx, const Node& node) {
  const ZoneOwner owner(Zone::linear_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  if (wants_grad(node.w)) weight_dw(ctx, node.rows, dy, node.saved[0], node.w);
  if (wants_grad(node.b)) {
    THIMBLE_ZONE(linear_bwd);
    count_elements(node.rows * node.b->cols, 1, 4);
    bias_grad(ctx, node.rows, dy, node.b);
  }
  bool accumulate = false;
  if (float* dx = grad_target(ctx, node.in[0], &accumulate)) weight_dx(ctx, node.rows, dy, *node.w, dx, accumulate);
}

}  // namespace thimble
