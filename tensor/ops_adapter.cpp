// The ops of adapters. Each works on a contiguous range of rows, so that many people share one pass over a base; what a
// person's rows give does not depend on who else is in the batch. y is changed in place: the producers of y (linear,
// activation, embed) do not need their output in backward.
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/gemm.h"
#include "tensor/ops_internal.h"
#include "tensor/rng.h"
#include "tensor/trace.h"

namespace thimble {
namespace {

// out = dropout(x) over [rows, cols]: kept entries are scaled by 1 / (1 - p).
void apply_dropout(Context& ctx, const float* x, int64_t rows, int64_t cols, const Dropout& d, float* out) {
  const auto threshold = static_cast<uint32_t>(double(d.p) * 4294967296.0);
  const float scale = 1.0f / (1.0f - d.p);
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(d.seed), static_cast<uint32_t>(d.seed >> 32)};
  for_rows(ctx, rows, cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t r = first; r < first + count; ++r)
      for (int64_t c = 0; c < cols; c += 4) {
        const std::array<uint32_t, 4> draw =
            philox4x32({static_cast<uint32_t>(c / 4), static_cast<uint32_t>(r), static_cast<uint32_t>(d.stream),
                        static_cast<uint32_t>(d.stream >> 32)}, key);
        for (int64_t i = c; i < std::min(c + 4, cols); ++i)
          out[r * cols + i] = draw[size_t(i - c)] < threshold ? 0.0f : x[r * cols + i] * scale;
      }
  });
}

// dropout(x) in scratch, or x itself.
const float* dropped(Context& ctx, const float* x, int64_t rows, int64_t cols, const Dropout& d) {
  if (d.p == 0) return x;
  float* out = ctx.scratch.floats(rows * cols, "dropout");
  apply_dropout(ctx, x, rows, cols, d, out);
  return out;
}

// The gradient of value `id` [rows, cols], ready to be added to in the rows [begin, end): a fresh one is zero elsewhere.
float* grad_rows(Context& ctx, int32_t id, int64_t rows, int64_t cols, int64_t begin, int64_t end, bool* accumulate) {
  float* grad = grad_target(ctx, id, accumulate);
  if (!grad) return nullptr;
  if (!*accumulate && (begin > 0 || end < rows)) std::memset(grad, 0, size_t(rows * cols) * sizeof(float));
  return grad + begin * cols;
}

// [a[0]; a[1]; ...] in scratch, f32 rows like its parts.
Weight stacked(Context& ctx, Weight* const* a, int count, int64_t rows) {
  Weight all;
  all.rows = rows;
  all.cols = a[0]->cols;
  float* out = ctx.scratch.floats(all.numel(), "adapter weights");
  all.data = out;
  for (int i = 0; i < count; ++i) {
    std::memcpy(out, a[i]->data, size_t(a[i]->numel()) * sizeof(float));
    out += a[i]->numel();
  }
  return all;
}

// The columns of every part times its scale, out of place where asked.
void scale_parts(Context& ctx, int64_t rows, int64_t width, Weight* const* a, const float* scales, int count, const float* from, float* to) {
  for_rows(ctx, rows, width, [&](int64_t first, int64_t n, int64_t) {
    for (int64_t r = first; r < first + n; ++r) {
      int64_t at = r * width;
      for (int i = 0; i < count; at += a[i++]->rows) ctx.kernels.scale({a[i]->rows, scales[i], from + at, to + at});
    }
  });
}

}  // namespace

Var lora_down(Context& ctx, Var x, int64_t begin, int64_t end, Weight* const* a, const float* scales, int count,
              Dropout dropout) {
  THIMBLE_ZONE(lora);
  THIMBLE_CHECK(count > 0 && count <= kLoraGroup);
  const int64_t rows = end - begin, in = x.t.cols();
  int64_t width = 0;
  bool trains = false;
  for (int i = 0; i < count; ++i) {
    THIMBLE_CHECK(a[i]->cols == in);
    width += a[i]->rows;
    trains = trains || wants_grad(a[i]);
  }
  const bool recorded = ctx.tape && (x.id >= 0 || trains);
  const Var h = new_value(ctx, rows, width, recorded);
  const ArenaScope scope(ctx.scratch);
  const float* input = dropped(ctx, x.t.f32() + begin * in, rows, in, dropout);
  constexpr int64_t kFewRows = 4;  // a step of decoding: stacking would cost more than it saves
  if (rows <= kFewRows) {
    int64_t col = 0;
    for (int i = 0; i < count; col += a[i++]->rows) thin_forward(ctx, rows, input, in, *a[i], h.t.f32() + col, width, false);
  } else {
    thin_forward(ctx, rows, input, in, stacked(ctx, a, count, width), h.t.f32(), width, false);
  }
  scale_parts(ctx, rows, width, a, scales, count, h.t.f32(), h.t.f32());
  if (recorded) {
    auto** group = static_cast<Weight**>(ctx.saved.allocate(size_t(count) * sizeof(Weight*), "adapter groups"));
    float* kept = ctx.saved.floats(count, "adapter groups");
    std::copy(a, a + count, group);
    std::copy(scales, scales + count, kept);
    Node& node = ctx.tape->push(Op::lora_down);
    node.in[0] = x.id;
    node.out = h.id;
    node.group = group;
    node.rows = x.t.rows();
    node.dims[0] = begin;
    node.dims[1] = end;
    node.dims[2] = count;
    node.dims[3] = width;
    node.attr[0] = dropout.p;
    node.rng[0] = dropout.seed;
    node.rng[1] = dropout.stream;
    node.saved[0] = x.t.f32();
    node.saved[1] = kept;
  }
  return h;
}

// With dh of the scaled h: du = scale dh per part, dA = duᵀ dropout(x) and dx = dropout(du [A...]), each in one pass over
// x or dx.
void lora_down_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(lora_bwd);
  const float* dh = grad_of(ctx, node.out);
  if (!dh) return;
  Weight* const* a = node.group;
  const int count = static_cast<int>(node.dims[2]);
  const int64_t begin = node.dims[0], rows = node.dims[1] - begin, width = node.dims[3], in = a[0]->cols;
  const ArenaScope scope(ctx.scratch);
  float* du = ctx.scratch.floats(rows * width, "adapter gradients");
  scale_parts(ctx, rows, width, a, node.saved[1], count, dh, du);
  bool all = true, any = false;
  for (int i = 0; i < count; ++i) {
    all = all && wants_grad(a[i]);
    any = any || wants_grad(a[i]);
  }
  const Dropout dropout{node.attr[0], node.rng[0], node.rng[1]};
  const float* input = any ? dropped(ctx, node.saved[0] + begin * in, rows, in, dropout) : nullptr;
  if (all && count > 1) {
    Weight sum;
    sum.rows = width;
    sum.cols = in;
    sum.grad = ctx.scratch.floats(width * in, "adapter gradients");
    thin_dw(ctx, rows, du, width, input, in, &sum);
    const float* part = sum.grad;
    for (int i = 0; i < count; part += a[i++]->numel()) {
      if (grad_begin(a[i]))
        add_rows(ctx, a[i]->numel(), a[i]->grad, part, a[i]->grad);
      else
        std::memcpy(a[i]->grad, part, size_t(a[i]->numel()) * sizeof(float));
    }
  } else if (any) {
    int64_t col = 0;
    for (int i = 0; i < count; col += a[i++]->rows)
      if (wants_grad(a[i])) thin_dw(ctx, rows, du + col, width, input, in, a[i]);
  }
  bool accumulate = false;
  float* dx = grad_rows(ctx, node.in[0], node.rows, in, begin, begin + rows, &accumulate);
  if (!dx) return;
  const Weight all_a = stacked(ctx, a, count, width);
  if (dropout.p == 0) return thin_dx(ctx, rows, du, width, all_a, dx, in, accumulate);
  float* masked = ctx.scratch.floats(rows * in, "dropout");
  thin_dx(ctx, rows, du, width, all_a, masked, in, false);
  apply_dropout(ctx, masked, rows, in, dropout, masked);
  if (accumulate)
    add_rows(ctx, rows * in, dx, masked, dx);
  else
    std::memcpy(dx, masked, size_t(rows * in) * sizeof(float));
}

Var lora_up(Context& ctx, Var y, int64_t begin, int64_t end, Var h, int64_t col, Weight* b) {
  THIMBLE_ZONE(lora);
  const int64_t rows = end - begin, out = y.t.cols(), width = h.t.cols();
  THIMBLE_CHECK(h.t.rows() == rows && b->rows == out && col + b->cols <= width);
  thin_forward(ctx, rows, h.t.f32() + col, width, *b, y.t.f32() + begin * out, out, true);
  Var z = y;
  if (ctx.tape && (y.id >= 0 || h.id >= 0 || wants_grad(b))) {
    z.id = ctx.tape->add_value(y.t);
    Node& node = ctx.tape->push(Op::lora_up);
    node.in[0] = y.id;
    node.in[1] = h.id;
    node.out = z.id;
    node.b = b;
    node.dims[0] = begin;
    node.dims[1] = end;
    node.dims[2] = col;
    node.dims[3] = width;
    node.saved[0] = h.t.f32();
  }
  return z;
}

// dB = dyᵀ h, dh = dy B, in this adapter's columns of h.
void lora_up_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(lora_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  Weight* b = node.b;
  const int64_t begin = node.dims[0], rows = node.dims[1] - begin, col = node.dims[2], width = node.dims[3];
  const float* dy_rows = dy + begin * b->rows;
  if (wants_grad(b)) thin_dw(ctx, rows, dy_rows, b->rows, node.saved[0] + col, width, b);
  bool accumulate = false;
  if (float* dh = grad_target(ctx, node.in[1], &accumulate)) {
    if (!accumulate) std::memset(dh, 0, size_t(rows * width) * sizeof(float));
    thin_dx(ctx, rows, dy_rows, b->rows, *b, dh + col, width, true);
  }
  grad_share(ctx, node.in[0], dy);
}

namespace {

// Every row of data [rows, cols] times the factors, in place; before, when given, keeps what was there.
void scale_columns(Context& ctx, int64_t rows, int64_t cols, const float* factors, float* data, float* before = nullptr) {
  for_rows(ctx, rows, cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t r = first; r < first + count; ++r) {
      if (before) std::memcpy(before + r * cols, data + r * cols, size_t(cols) * sizeof(float));
      ctx.kernels.mul({cols, data + r * cols, factors, data + r * cols});
    }
  });
}

// The gradient of an input whose rows dims[0]..dims[1] were scaled by the factors, the others passed on.
void share_scaled(Context& ctx, const Node& node, int64_t cols, const float* factors, const float* dy) {
  if (node.in[0] < 0) return;
  const int64_t begin = node.dims[0];
  float* scaled = ctx.grads.floats(node.rows * cols, "activation gradients");
  std::memcpy(scaled, dy, size_t(node.rows * cols) * sizeof(float));
  scale_columns(ctx, node.dims[1] - begin, cols, factors, scaled + begin * cols);
  grad_share(ctx, node.in[0], scaled);
}

}  // namespace

Var col_scale(Context& ctx, Var y, int64_t begin, int64_t end, Weight* l) {
  const int64_t rows = end - begin, cols = y.t.cols();
  THIMBLE_CHECK(l->cols == cols);
  const bool recorded = ctx.tape && (y.id >= 0 || wants_grad(l));
  float* data = y.t.f32() + begin * cols;
  float* before = wants_grad(l) && recorded ? ctx.saved.floats(rows * cols, "adapter activations") : nullptr;
  scale_columns(ctx, rows, cols, l->f32(), data, before);
  Var z = y;
  if (recorded) {
    z.id = ctx.tape->add_value(y.t);
    Node& node = ctx.tape->push(Op::col_scale);
    node.in[0] = y.id;
    node.out = z.id;
    node.w = l;
    node.rows = y.t.rows();
    node.dims[0] = begin;
    node.dims[1] = end;
    node.saved[0] = before;
    node.output = replay_target(ctx, y);
  }
  return z;
}

// The op before it has just filled the rows again.
void replay_col_scale(Context& ctx, const Node& node) {
  const int64_t cols = node.w->cols, begin = node.dims[0];
  for_rows(ctx, node.dims[1] - begin, cols, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t r = begin + first; r < begin + first + count; ++r)
      ctx.kernels.mul({cols, node.output + r * cols, node.w->f32(), node.output + r * cols});
  });
}

void col_scale_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t begin = node.dims[0], rows = node.dims[1] - begin, cols = node.w->cols;
  const ArenaScope scope(ctx.scratch);
  if (wants_grad(node.w)) {
    float* products = ctx.scratch.floats(rows * cols, "adapter gradients");
    for_elements(ctx, rows * cols, [&](int64_t i, int64_t n) {
      ctx.kernels.mul({n, dy + begin * cols + i, node.saved[0] + i, products + i});
    });
    bias_grad(ctx, rows, products, node.w);
  }
  share_scaled(ctx, node, cols, node.w->f32(), dy);
}

void row_squares(const KernelTable& kernels, int threads, const Weight& w, double* squares) {
  constexpr int64_t kRows = 16;
  const int64_t chunks = (w.rows + kRows - 1) / kRows;
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, chunks)));
  std::vector<float> rows(static_cast<size_t>(workers * kRows * w.cols));
  parallel_for(workers, chunks, [&](int64_t chunk, int thread) {
    const int64_t begin = chunk * kRows, count = std::min(kRows, w.rows - begin);
    int32_t ids[kRows] = {};
    for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(begin + i);
    float* values = rows.data() + thread * kRows * w.cols;
    gather_rows(kernels, w, ids, count, values);
    for (int64_t i = 0; i < count; ++i) kernels.sum_squares({w.cols, values + i * w.cols, squares + begin + i});
  });
}

// |w + s bA|² = |w|² + 2 s b (A w) + s² b (A Aᵀ) bᵀ for a row w of W and b of B: as much work as r rows of x, and W is read
// as it is stored.
void dora_norms(Context& ctx, const Weight& w, const Weight& a, const Weight& b, float scale, const double* squares, float* norms) {
  THIMBLE_ZONE(lora);
  const int64_t rank = a.rows, in = a.cols, out = w.rows;
  THIMBLE_CHECK(w.cols == in && b.rows == out && b.cols == rank);
  const ArenaScope scope(ctx.scratch);
  float* aw = ctx.scratch.floats(rank * out, "adapter norms");
  exact_forward(ctx, rank, a.f32(), w, aw);
  auto* gram = static_cast<double*>(ctx.scratch.allocate(size_t(rank * rank) * sizeof(double), "adapter norms"));
  parallel_for(ctx.threads, rank, [&](int64_t i, int) {
    for (int64_t j = 0; j < rank; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < in; ++c) sum += double(a.f32()[i * in + c]) * double(a.f32()[j * in + c]);
      gram[i * rank + j] = sum;
    }
  });
  for_rows(ctx, out, rank * rank, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t n = first; n < first + count; ++n) {
      const float* row = b.f32() + n * rank;
      double cross = 0, square = 0;
      for (int64_t i = 0; i < rank; ++i) {
        cross += double(row[i]) * double(aw[i * out + n]);
        double sum = 0;
        for (int64_t j = 0; j < rank; ++j) sum += gram[i * rank + j] * double(row[j]);
        square += double(row[i]) * sum;
      }
      const double total = squares[n] + double(scale) * (2 * cross + double(scale) * square);
      norms[n] = static_cast<float>(std::sqrt(std::max(total, 0.0)));
    }
  });
}

Var dora_scale(Context& ctx, Var y, int64_t begin, int64_t end, Weight* m, const float* norms) {
  THIMBLE_ZONE(lora);
  const int64_t rows = end - begin, cols = y.t.cols();
  THIMBLE_CHECK(m->cols == cols);
  const bool recorded = ctx.tape && (y.id >= 0 || wants_grad(m));
  float* data = y.t.f32() + begin * cols;
  // Backward wants the factors, and m's gradient what they multiplied.
  Arena& arena = recorded ? ctx.saved : ctx.scratch;
  const ArenaScope scope(ctx.scratch);
  float* factors = arena.floats(cols, "adapter activations");
  float* before = wants_grad(m) && recorded ? ctx.saved.floats(rows * cols, "adapter activations") : nullptr;
  for (int64_t c = 0; c < cols; ++c) factors[c] = m->f32()[c] / norms[c];
  scale_columns(ctx, rows, cols, factors, data, before);
  Var z = y;
  if (recorded) {
    z.id = ctx.tape->add_value(y.t);
    Node& node = ctx.tape->push(Op::dora_scale);
    node.in[0] = y.id;
    node.out = z.id;
    node.w = m;
    node.rows = y.t.rows();
    node.dims[0] = begin;
    node.dims[1] = end;
    node.saved[0] = before;
    node.saved[1] = factors;
    node.saved[2] = norms;
  }
  return z;
}

void dora_scale_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(lora_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t begin = node.dims[0], rows = node.dims[1] - begin, cols = node.w->cols;
  const ArenaScope scope(ctx.scratch);
  if (wants_grad(node.w)) {
    float* products = ctx.scratch.floats(rows * cols, "adapter gradients");
    const float* norms = node.saved[2];
    for_rows(ctx, rows, cols, [&](int64_t first, int64_t count, int64_t) {
      for (int64_t r = first; r < first + count; ++r) {
        float* product = products + r * cols;
        ctx.kernels.mul({cols, dy + (begin + r) * cols, node.saved[0] + r * cols, product});
        for (int64_t c = 0; c < cols; ++c) product[c] /= norms[c];
      }
    });
    bias_grad(ctx, rows, products, node.w);
  }
  share_scaled(ctx, node, cols, node.saved[1], dy);
}

Var add_bias(Context& ctx, Var y, int64_t begin, int64_t end, Weight* b) {
  THIMBLE_ZONE(linear);
  const int64_t cols = y.t.cols();
  THIMBLE_CHECK(b->cols == cols);
  float* data = y.t.f32() + begin * cols;
  for_rows(ctx, end - begin, cols, [&](int64_t first, int64_t count, int64_t) {
    ctx.kernels.bias_add({count, cols, data + first * cols, cols, b->f32()});
  });
  Var z = y;
  if (ctx.tape && wants_grad(b)) {
    z.id = ctx.tape->add_value(y.t);
    Node& node = ctx.tape->push(Op::add_bias);
    node.in[0] = y.id;
    node.out = z.id;
    node.w = b;
    node.dims[0] = begin;
    node.dims[1] = end;
  }
  return z;
}

void add_bias_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  bias_grad(ctx, node.dims[1] - node.dims[0], dy + node.dims[0] * node.w->cols, node.w);
  grad_share(ctx, node.in[0], dy);
}

Var replace_rows(Context& ctx, Var y, int64_t begin, Weight* w) {
  const int64_t cols = y.t.cols();
  THIMBLE_CHECK(w->cols == cols && begin + w->rows <= y.t.rows());
  const bool recorded = ctx.tape && (y.id >= 0 || wants_grad(w));
  std::memcpy(y.t.f32() + begin * cols, w->data, size_t(w->numel()) * sizeof(float));
  Var z = y;
  if (recorded) {
    z.id = ctx.tape->add_value(y.t);
    Node& node = ctx.tape->push(Op::replace_rows);
    node.in[0] = y.id;
    node.out = z.id;
    node.w = w;
    node.rows = y.t.rows();
    node.dims[0] = begin;
  }
  return z;
}

void replace_rows_backward(Context& ctx, const Node& node) {
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  Weight* w = node.w;
  const int64_t cols = w->cols, begin = node.dims[0];
  if (wants_grad(w)) {
    const float* rows = dy + begin * cols;
    if (grad_begin(w))
      add_rows(ctx, w->numel(), w->grad, rows, w->grad);
    else
      std::memcpy(w->grad, rows, size_t(w->numel()) * sizeof(float));
  }
  if (node.in[0] < 0) return;
  float* rest = ctx.grads.floats(node.rows * cols, "activation gradients");
  std::memcpy(rest, dy, size_t(node.rows * cols) * sizeof(float));
  std::memset(rest + begin * cols, 0, size_t(w->numel()) * sizeof(float));
  grad_share(ctx, node.in[0], rest);
}

}  // namespace thimble
