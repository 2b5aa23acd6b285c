// Top-k routing over experts: w = softmax of the k largest logits; y_r = sum_i w_ri E_ri(x_r). Saved: the choice, w, and the
// experts' outputs. Backward of the weights: dlogit_i = w_i (dw_i - sum_j w_j dw_j) for the chosen ones, 0 for the others.
#include "tensor/ops_experts.h"

#include <cmath>
#include <cstring>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

int32_t* indices(Context& ctx, int64_t n) {
  return static_cast<int32_t*>(ctx.saved.allocate(size_t(n) * sizeof(int32_t), "expert choices"));
}

// The k largest in falling order. A NaN never wins over a number that stands before it, and never leaves a place empty.
void choose(const float* logits, int64_t experts, int64_t k, int32_t* chosen) {
  for (int64_t i = 0; i < k; ++i) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e)
      if (std::find(chosen, chosen + i, e) == chosen + i && (best < 0 || logits[e] > logits[best])) best = e;
    chosen[i] = best;
  }
}

float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) lane[i % kLanes] += a[i] * b[i];
  double sum = 0;
  for (float part : lane) sum += double(part);
  return static_cast<float>(sum);
}

}  // namespace

Routing route(Context& ctx, Var logits, int64_t k, ExpertChoice* choice) {
  THIMBLE_ZONE(activation);
  Routing r;
  r.rows = logits.t.rows();
  r.experts = logits.t.cols();
  r.k = k;
  THIMBLE_CHECK(k > 0 && k <= r.experts);
  const int64_t experts = r.experts;
  count_elements(r.rows * experts, double(k), 4);
  const bool recorded = ctx.tape && logits.id >= 0;
  const bool known = choice && choice->known;
  int32_t* chosen = choice ? choice->chosen : indices(ctx, r.slots());
  r.weights = new_value(ctx, r.rows, k, recorded);
  const float* in = logits.t.f32();
  float* w = r.weights.t.f32();
  for_rows(ctx, r.rows, experts * k, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t row = first; row < first + count; ++row) {
      const float* x = in + row * experts;
      int32_t* mine = chosen + row * k;
      if (!known) choose(x, experts, k, mine);
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += std::exp(double(x[mine[i]]) - double(x[mine[0]]));
      for (int64_t i = 0; i < k; ++i)
        w[row * k + i] = static_cast<float>(std::exp(double(x[mine[i]]) - double(x[mine[0]])) / sum);
    }
  });
  if (choice) choice->known = true;
  int32_t *begin = indices(ctx, experts + 1), *slot = indices(ctx, r.slots()), *pair = indices(ctx, r.slots());
  std::fill_n(begin, experts + 1, 0);
  for (int64_t p = 0; p < r.slots(); ++p) ++begin[chosen[p] + 1];
  for (int64_t e = 0; e < experts; ++e) begin[e + 1] += begin[e];
  // begin[e] runs to the end of its expert, and is put back by one expert afterwards.
  for (int64_t p = 0; p < r.slots(); ++p) {
    slot[p] = begin[chosen[p]]++;
    pair[slot[p]] = static_cast<int32_t>(p);
  }
  for (int64_t e = experts; e > 0; --e) begin[e] = begin[e - 1];
  begin[0] = 0;
  r.chosen = chosen;
  r.slot = slot;
  r.pair = pair;
  r.begin = begin;
  if (recorded) {
    Node& node = ctx.tape->push(Op::route);
    node.in[0] = logits.id;
    node.out = r.weights.id;
    node.rows = r.rows;
    node.dims[0] = experts;
    node.dims[1] = k;
    node.saved[0] = w;
    node.ids = chosen;
  }
  return r;
}

void route_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(activation_bwd);
  const float* dw = grad_of(ctx, node.out);
  if (!dw) return;
  const int64_t experts = node.dims[0], k = node.dims[1];
  count_elements(node.rows * experts, 1, 8);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  for_rows(ctx, node.rows, experts, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t row = first; row < first + count; ++row) {
      const float *w = node.saved[0] + row * k, *d = dw + row * k;
      double mean = 0;
      for (int64_t i = 0; i < k; ++i) mean += double(w[i]) * double(d[i]);
      if (!accumulate) std::memset(dx + row * experts, 0, size_t(experts) * sizeof(float));
      for (int64_t i = 0; i < k; ++i)
        dx[row * experts + node.ids[row * k + i]] += static_cast<float>(double(w[i]) * (double(d[i]) - mean));
    }
  });
}

Var expert_gather(Context& ctx, Var x, const Routing& r) {
  THIMBLE_ZONE(embed);
  const int64_t cols = x.t.cols();
  THIMBLE_CHECK(x.t.rows() == r.rows);
  count_elements(r.slots() * cols, 0, 8);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_value(ctx, r.slots(), cols, recorded);
  const float* in = x.t.f32();
  float* out = y.t.f32();
  for_rows(ctx, r.slots(), cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t s = first; s < first + count; ++s)
      std::memcpy(out + s * cols, in + r.pair[s] / r.k * cols, size_t(cols) * sizeof(float));
  });
  if (recorded) {
    Node& node = ctx.tape->push(Op::expert_gather);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = r.rows;
    node.dims[0] = cols;
    node.dims[1] = r.k;
    node.ids = r.slot;
  }
  return y;
}

void expert_gather_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(embed);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t cols = node.dims[0], k = node.dims[1];
  count_elements(node.rows * k * cols, 1, 8);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  for_rows(ctx, node.rows, cols * k, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t row = first; row < first + count; ++row)
      for (int64_t i = 0; i < k; ++i) {
        const float* from = dy + int64_t{node.ids[row * k + i]} * cols;
        float* to = dx + row * cols;
        if (i == 0 && !accumulate)
          std::memcpy(to, from, size_t(cols) * sizeof(float));
        else
          ctx.kernels.add({cols, to, from, to});
      }
  });
}

void expert_linears(Context& ctx, const Routing& r, ExpertLinear* all, int count) {
  const ZoneOwner owner(Zone::linear);
  const ArenaScope scope(ctx.scratch);
  auto* products = static_cast<ForwardProduct*>(ctx.scratch.allocate(size_t(count * r.experts) * sizeof(ForwardProduct), "linears"));
  for (int i = 0; i < count; ++i) {
    auto& [x, w, packs, y] = all[i];
    THIMBLE_CHECK(x.t.rows() == r.slots());
    bool recorded = ctx.tape && x.id >= 0;
    for (int64_t e = 0; e < r.experts; ++e) {
      THIMBLE_CHECK(w[e]->cols == x.t.cols() && w[e]->rows == w[0]->rows);
      recorded = recorded || (ctx.tape && wants_grad(w[e]));
    }
    y = packs ? new_packed_value(ctx, r.slots(), w[0]->rows, recorded) : new_value(ctx, r.slots(), w[0]->rows, recorded);
  }
  // The products of one input stand together: it is quantized once.
  int used = 0;
  for (int64_t e = 0; e < r.experts; ++e) {
    const int64_t first = r.begin[e], n = r.begin[e + 1] - first;
    for (int i = 0; i < count && n > 0; ++i) {
      const auto& [x, w, packs, y] = all[i];
      products[used++] = {n, x.t.f32() + first * w[e]->cols, w[e], y.t.f32() + first * w[e]->rows};
    }
  }
  weight_forward(ctx, products, used);
  for (int i = 0; i < count; ++i) {
    const auto& [x, w, packs, y] = all[i];
    if (y.id < 0) continue;
    auto** group = static_cast<Weight**>(ctx.saved.allocate(size_t(r.experts) * sizeof(Weight*), "expert choices"));
    std::copy_n(w, r.experts, group);
    Node& node = ctx.tape->push(Op::expert_linear);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = r.slots();
    node.dims[0] = r.experts;
    node.saved[0] = x.t.f32();
    node.ids = r.begin;
    node.group = group;
    node.output = replay_target(ctx, y);
  }
}

Var expert_linear(Context& ctx, Var x, const Routing& r, Weight* const* w, bool packs) {
  ExpertLinear one{x, w, packs, {}};
  expert_linears(ctx, r, &one, 1);
  return one.y;
}

void expert_linear_backward(Context& ctx, const Node& node) {
  const ZoneOwner owner(Zone::linear_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  for (int64_t e = 0; e < node.dims[0]; ++e) {
    Weight* w = node.group[e];
    const int64_t first = node.ids[e], count = node.ids[e + 1] - first;
    const float* dy_rows = dy + first * w->rows;
    if (wants_grad(w)) {
      if (count > 0)
        weight_dw(ctx, count, dy_rows, node.saved[0] + first * w->cols, w);
      else if (!grad_begin(w))  // an expert that saw no row has a gradient, and it is zero
        std::memset(w->grad, 0, size_t(w->numel()) * sizeof(float));
    }
    if (dx && count > 0) weight_dx(ctx, count, dy_rows, *w, dx + first * w->cols, accumulate);
  }
}

Var expert_combine(Context& ctx, Var y, const Routing& r) {
  THIMBLE_ZONE(add);
  const int64_t cols = y.t.cols();
  THIMBLE_CHECK(y.t.rows() == r.slots());
  count_elements(r.slots() * cols, 2, 8);
  const bool recorded = ctx.tape && (y.id >= 0 || r.weights.id >= 0);
  Var z = new_value(ctx, r.rows, cols, recorded);
  const float *in = y.t.f32(), *w = r.weights.t.f32();
  float* out = z.t.f32();
  for_rows(ctx, r.rows, cols * r.k, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t row = first; row < first + count; ++row)
      for (int64_t i = 0; i < r.k; ++i) {
        const float* from = in + int64_t{r.slot[row * r.k + i]} * cols;
        const float weight = w[row * r.k + i];
        if (i == 0)
          ctx.kernels.scale({cols, weight, from, out + row * cols});
        else
          ctx.kernels.axpy({cols, weight, from, out + row * cols});
      }
  });
  if (recorded) {
    Node& node = ctx.tape->push(Op::expert_combine);
    node.in[0] = y.id;
    node.in[1] = r.weights.id;
    node.out = z.id;
    node.rows = r.rows;
    node.dims[0] = cols;
    node.dims[1] = r.k;
    node.saved[0] = w;
    node.saved[1] = in;
    node.ids = r.slot;
  }
  return z;
}

void expert_combine_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(add);
  const float* dz = grad_of(ctx, node.out);
  if (!dz) return;
  const int64_t cols = node.dims[0], k = node.dims[1];
  count_elements(node.rows * k * cols, 3, 16);
  bool add_y = false, add_w = false;
  float* dy = grad_target(ctx, node.in[0], &add_y);
  float* dw = grad_target(ctx, node.in[1], &add_w);
  for_rows(ctx, node.rows, cols * k, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t row = first; row < first + count; ++row)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t at = int64_t{node.ids[row * k + i]} * cols;
        const float* d = dz + row * cols;
        if (dw) dw[row * k + i] = (add_w ? dw[row * k + i] : 0.0f) + dot(d, node.saved[1] + at, cols);
        if (!dy) continue;
        if (add_y)
          ctx.kernels.axpy({cols, node.saved[0][row * k + i], d, dy + at});
        else
          ctx.kernels.scale({cols, node.saved[0][row * k + i], d, dy + at});
      }
  });
}

}  // namespace thimble
