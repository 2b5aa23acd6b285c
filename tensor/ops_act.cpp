// Activations f(x), gated units f(gate) * up, and values held within bounds. Saved: the inputs, or the output of softcap.
#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

struct ActivationKernels {
  UnaryFn forward;
  UnaryBwdFn backward;
  GatedFn gated;
  GatedBwdFn gated_backward;
};

ActivationKernels kernels_of(const KernelTable& k, Activation kind) {
  switch (kind) {
    case Activation::gelu_erf: return {k.gelu_erf, k.gelu_erf_bwd, k.gelu_erf_gated, k.gelu_erf_gated_bwd};
    case Activation::gelu_tanh: return {k.gelu_tanh, k.gelu_tanh_bwd, k.gelu_tanh_gated, k.gelu_tanh_gated_bwd};
    case Activation::relu: return {k.relu, k.relu_bwd, k.relu_gated, k.relu_gated_bwd};
    case Activation::silu: break;
  }
  return {k.silu, k.silu_bwd, k.silu_gated, k.silu_gated_bwd};
}

}  // namespace

Var activation(Context& ctx, Var x, Activation kind) {
  THIMBLE_ZONE(activation);
  count_elements(x.t.numel(), 4, 8);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_cheap_value(ctx, x.t.rows(), x.t.cols(), recorded);
  const UnaryFn fn = kernels_of(ctx.kernels, kind).forward;
  const float* in = x.t.f32();
  float* out = y.t.f32();
  for_elements(ctx, x.t.numel(), [&](int64_t i, int64_t n) { fn({n, in + i, out + i}); });
  if (recorded) {
    Node& node = ctx.tape->push(Op::activation);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = x.t.numel();
    node.dims[0] = static_cast<int64_t>(kind);
    node.saved[0] = in;
    node.output = replay_target(ctx, y);
  }
  return y;
}

void replay_activation(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation);
  count_elements(node.rows, 4, 8);
  const UnaryFn fn = kernels_of(ctx.kernels, static_cast<Activation>(node.dims[0])).forward;
  for_elements(ctx, node.rows, [&](int64_t i, int64_t n) { fn({n, node.saved[0] + i, node.output + i}); });
}

void activation_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  count_elements(node.rows, 8, 12);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  const UnaryBwdFn fn = kernels_of(ctx.kernels, static_cast<Activation>(node.dims[0])).backward;
  for_elements(ctx, node.rows, [&](int64_t i, int64_t n) { fn({n, node.saved[0] + i, dy + i, dx + i, accumulate}); });
}

Var gated(Context& ctx, Var gate, Var up, Activation kind) {
  THIMBLE_ZONE(activation);
  count_elements(gate.t.numel(), 5, 12);
  const bool recorded = ctx.tape && (gate.id >= 0 || up.id >= 0);
  Var y = new_cheap_value(ctx, gate.t.rows(), gate.t.cols(), recorded);
  const GatedFn fn = kernels_of(ctx.kernels, kind).gated;
  const float *g = gate.t.f32(), *u = up.t.f32();
  float* out = y.t.f32();
  for_elements(ctx, gate.t.numel(), [&](int64_t i, int64_t n) { fn({n, g + i, u + i, out + i}); });
  if (recorded) {
    Node& node = ctx.tape->push(Op::gated);
    node.in[0] = gate.id;
    node.in[1] = up.id;
    node.out = y.id;
    node.rows = gate.t.numel();
    node.dims[0] = static_cast<int64_t>(kind);
    node.saved[0] = g;
    node.saved[1] = u;
    node.output = replay_target(ctx, y);
  }
  return y;
}

void replay_gated(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation);
  count_elements(node.rows, 5, 12);
  const GatedFn fn = kernels_of(ctx.kernels, static_cast<Activation>(node.dims[0])).gated;
  for_elements(ctx, node.rows,
               [&](int64_t i, int64_t n) { fn({n, node.saved[0] + i, node.saved[1] + i, node.output + i}); });
}

// The kernel makes both gradients at once. One that nobody wants, or that adds to an earlier one, goes through scratch.
void gated_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t total = node.rows;
  count_elements(total, 10, 20);
  float* target[2];
  float* written[2];
  for (int i = 0; i < 2; ++i) {
    bool accumulate = false;
    target[i] = grad_target(ctx, node.in[i], &accumulate);
    written[i] = target[i] && !accumulate ? target[i] : ctx.scratch.floats(total, "gated gradients");
  }
  const GatedBwdFn fn = kernels_of(ctx.kernels, static_cast<Activation>(node.dims[0])).gated_backward;
  for_elements(ctx, total, [&](int64_t i, int64_t n) {
    fn({n, node.saved[0] + i, node.saved[1] + i, dy + i, written[0] + i, written[1] + i});
  });
  for (int i = 0; i < 2; ++i)
    if (target[i] && target[i] != written[i]) add_rows(ctx, total, target[i], written[i], target[i]);
}

// In place, since the gradient follows from the output.
Var softcap(Context& ctx, Var x, float cap) {
  THIMBLE_ZONE(activation);
  const int64_t n = x.t.numel();
  count_elements(n, 20, 8);
  float* data = x.t.f32();
  for_elements(ctx, n, [&](int64_t i, int64_t count) { ctx.kernels.softcap({count, cap, data + i, data + i}); });
  Var y = x;
  if (ctx.tape && x.id >= 0) {
    y.id = ctx.tape->add_value(x.t);
    Node& node = ctx.tape->push(Op::softcap);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = n;
    node.attr[0] = cap;
    node.saved[0] = data;
  }
  return y;
}

Var clip(Context& ctx, Var x, float limit) {
  THIMBLE_ZONE(activation);
  const int64_t n = x.t.numel();
  count_elements(n, 2, 8);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_value(ctx, x.t.rows(), x.t.cols(), recorded);
  const float* in = x.t.f32();
  float* out = y.t.f32();
  for_elements(ctx, n, [&](int64_t i, int64_t count) { ctx.kernels.clip({count, limit, in + i, out + i}); });
  if (recorded) {
    Node& node = ctx.tape->push(Op::clip);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = n;
    node.attr[0] = limit;
    node.saved[0] = in;
  }
  return y;
}

namespace {

void cap_backward(Context& ctx, const Node& node, CapBwdFn fn) {
  THIMBLE_ZONE(activation_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  count_elements(node.rows, 4, 12);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  for_elements(ctx, node.rows,
               [&](int64_t i, int64_t n) { fn({n, node.attr[0], node.saved[0] + i, dy + i, dx + i, accumulate}); });
}

}  // namespace

void softcap_backward(Context& ctx, const Node& node) { cap_backward(ctx, node, ctx.kernels.softcap_bwd); }
void clip_backward(Context& ctx, const Node& node) { cap_backward(ctx, node, ctx.kernels.clip_bwd); }

}  // namespace thimble
