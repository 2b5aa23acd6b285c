#include "tensor/tape.h"

#include <cstring>

#include "tensor/context.h"
#include "tensor/ops.h"
#include "tensor/ops_internal.h"

namespace thimble {

const char* op_name(Op op) {
  static const char* const names[] = {
#define OP(name, has_backward) #name,
#include "tensor/op_rows.def"
#undef OP
  };
  return names[static_cast<int>(op)];
}

bool op_has_backward(Op op) {
  static const bool rows[] = {
#define OP(name, has_backward) has_backward,
#include "tensor/op_rows.def"
#undef OP
  };
  return rows[static_cast<int>(op)];
}

const float* grad_of(Context& ctx, int32_t id) {
  if (id < 0) return nullptr;
  const Tape::Value& v = ctx.tape->value(id);
  return v.written ? v.grad : nullptr;
}

float* grad_target(Context& ctx, int32_t id, bool* accumulate) {
  *accumulate = false;
  if (id < 0) return nullptr;
  Tape::Value& v = ctx.tape->value(id);
  if (v.shared) {
    const float* source = v.grad;
    v.grad = ctx.grads.floats(v.t.numel(), "activation gradients");
    std::memcpy(v.grad, source, size_t(v.t.numel()) * sizeof(float));
    v.shared = false;
  }
  if (!v.grad) v.grad = ctx.grads.floats(v.t.numel(), "activation gradients");
  *accumulate = v.written;
  v.written = true;
  return v.grad;
}

void grad_share(Context& ctx, int32_t id, const float* grad) {
  if (id < 0) return;
  Tape::Value& v = ctx.tape->value(id);
  // A buffer of the residual stream is taken over by an earlier block: who shares it outside of blocks gets a copy.
  const Tape::Turns& turns = ctx.tape->turns;
  const bool lasting = turns.depth > 0 || !turns.holds(grad);
  if (!v.grad && lasting) {
    v.grad = const_cast<float*>(grad);
    v.written = v.shared = true;
    return;
  }
  bool accumulate = false;
  float* target = grad_target(ctx, id, &accumulate);
  if (accumulate)
    add_rows(ctx, v.t.numel(), target, grad, target);
  else
    std::memcpy(target, grad, size_t(v.t.numel()) * sizeof(float));
}

namespace {

using BackwardFn = void (*)(Context&, const Node&);
constexpr BackwardFn kBackward[] = {
#define OP(name, has_backward) name##_backward,
#include "tensor/op_rows.def"
#undef OP
};

}  // namespace

void run_backward(Context& ctx, size_t first) {
  for (size_t i = ctx.tape->node_count(); i > first; --i) {
    ctx.tape->cursor = i - 1;
    const Node node = ctx.tape->node(i - 1);  // a copy: a replayed block pushes nodes
    kBackward[static_cast<int>(node.op)](ctx, node);
  }
}

void backward(Context& ctx) {
  THIMBLE_CHECK(ctx.tape);
  const ArenaScope scope(ctx.grads);
  ctx.tape->turns = {};
  ctx.tape->segments.clear();
  run_backward(ctx, 0);
  ctx.tape->clear();
}

}  // namespace thimble
