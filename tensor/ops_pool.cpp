// What turns the rows of a sequence into one vector. pool_rows: y[s] = sum over the rows r of sequence s of weights[r] x[r];
// l2_normalize: y[r] = x[r] / max(|x[r]|, 1e-12). Sums run in double, rows and columns in order, so a sequence's vector
// depends on its own rows alone. Saved: the weights; y and the lengths. Backward: dx[r] = weights[r] dy[s];
// dx = (dy - y (y . dy)) / |x|, and dy / 1e-12 where |x| is below that.
#include <cmath>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

constexpr int64_t kPoolColumns = 64;  // whose sums stay in the caches while the rows go by
constexpr double kSmallestLength = 1e-12;

}  // namespace

Var pool_rows(Context& ctx, Var x, const int32_t* cu_seqlens, int64_t n_seqs, const float* weights) {
  THIMBLE_ZONE(add);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  THIMBLE_CHECK(cu_seqlens[n_seqs] == rows);
  count_elements(rows * cols, 2, 4);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_value(ctx, n_seqs, cols, recorded);
  const float* in = x.t.f32();
  float* out = y.t.f32();
  parallel_for(ctx.threads, n_seqs, [&](int64_t s, int) {
    for (int64_t c0 = 0; c0 < cols; c0 += kPoolColumns) {
      const int64_t n = std::min(kPoolColumns, cols - c0);
      double sum[kPoolColumns] = {};
      for (int64_t r = cu_seqlens[s]; r < cu_seqlens[s + 1]; ++r) {
        const double w = double{weights[r]};
        for (int64_t c = 0; c < n; ++c) sum[c] += w * double{in[r * cols + c0 + c]};
      }
      for (int64_t c = 0; c < n; ++c) out[s * cols + c0 + c] = static_cast<float>(sum[c]);
    }
  });
  if (recorded) {
    Node& node = ctx.tape->push(Op::pool_rows);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = rows;
    node.dims[0] = n_seqs;
    node.dims[1] = cols;
    node.ids = cu_seqlens;
    node.saved[0] = weights;
  }
  return y;
}

void pool_rows_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(add);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t cols = node.dims[1];
  count_elements(node.rows * cols, 1, 4);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  parallel_for(ctx.threads, node.dims[0], [&](int64_t s, int) {
    for (int64_t r = node.ids[s]; r < node.ids[s + 1]; ++r) {
      const float w = node.saved[0][r];
      const float* from = dy + s * cols;
      float* to = dx + r * cols;
      for (int64_t c = 0; c < cols; ++c) to[c] = (accumulate ? to[c] : 0.0f) + w * from[c];
    }
  });
}

Var l2_normalize(Context& ctx, Var x) {
  THIMBLE_ZONE(norm);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  count_elements(rows * cols, 3, 8);
  const bool recorded = ctx.tape && x.id >= 0;
  Var y = new_value(ctx, rows, cols, recorded);
  float* lengths = recorded ? ctx.saved.floats(rows, "norm statistics") : nullptr;
  const float* in = x.t.f32();
  float* out = y.t.f32();
  for_rows(ctx, rows, cols, [&](int64_t first, int64_t n, int64_t) {
    for (int64_t r = first; r < first + n; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < cols; ++c) squares += double{in[r * cols + c]} * double{in[r * cols + c]};
      const double length = std::sqrt(squares), by = std::max(length, kSmallestLength);
      for (int64_t c = 0; c < cols; ++c) out[r * cols + c] = static_cast<float>(double{in[r * cols + c]} / by);
      if (lengths) lengths[r] = static_cast<float>(length);
    }
  });
  if (recorded) {
    Node& node = ctx.tape->push(Op::l2_normalize);
    node.in[0] = x.id;
    node.out = y.id;
    node.rows = rows;
    node.dims[0] = cols;
    node.saved[0] = out;
    node.saved[1] = lengths;
  }
  return y;
}

void l2_normalize_backward(Context& ctx, const Node& node) {
  THIMBLE_ZONE(norm_bwd);
  const float* dy = grad_of(ctx, node.out);
  if (!dy) return;
  const int64_t cols = node.dims[0];
  count_elements(node.rows * cols, 5, 16);
  bool accumulate = false;
  float* dx = grad_target(ctx, node.in[0], &accumulate);
  for_rows(ctx, node.rows, cols, [&](int64_t first, int64_t n, int64_t) {
    for (int64_t r = first; r < first + n; ++r) {
      const float *y = node.saved[0] + r * cols, *d = dy + r * cols;
      const double length = double{node.saved[1][r]};
      double along = 0;  // a vector that is too short is only scaled
      if (length > kSmallestLength)
        for (int64_t c = 0; c < cols; ++c) along += double{y[c]} * double{d[c]};
      float* to = dx + r * cols;
      for (int64_t c = 0; c < cols; ++c)
        to[c] = (accumulate ? to[c] : 0.0f) +
                static_cast<float>((double{d[c]} - double{y[c]} * along) / std::max(length, kSmallestLength));
    }
  });
}

}  // namespace thimble
