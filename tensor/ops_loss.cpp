// Chunked head and cross entropy: logits of one chunk of rows at a time, turned into d_logits in place; from those the
// gradients of hidden and head at once. So V-wide buffers hold one chunk, never the batch. Where most rows have no
// label (only the answers of questions are learned), the others are skipped: the rows with one are gathered first.
#include <cstring>

#include "tensor/op_work.h"
#include "tensor/ops_internal.h"

namespace thimble {
namespace {

// Of rows with labels below this share, the others are skipped.
constexpr double kSparse = 0.75;

// All rows; gradients of head and bias when `recorded`, and of the rows into d_hidden when it is given.
double dense_cross_entropy(Context& ctx, Var hidden, Weight* head, Weight* bias, const int32_t* labels,
                           double denominator, double* row_loss, const float* row_scale, float softcap,
                           float* d_hidden, bool recorded) {
  const int64_t rows = hidden.t.rows(), cols = hidden.t.cols(), vocab = head->rows;
  const ArenaScope scope(ctx.scratch);
  // A head that learns passes its whole gradient through the caches once per chunk, so it gets longer ones.
  const int64_t chunk_floats = recorded && wants_grad(head) ? 1 << 23 : 1 << 22;
  const int64_t step = std::min(rows, std::max<int64_t>(16, chunk_floats / vocab / 16 * 16));
  float* logits = ctx.scratch.floats(step * vocab, "logits chunk");
  // The gradient through a cap needs the capped logits beside that of the logits.
  float* values = softcap > 0 && recorded ? ctx.scratch.floats(step * vocab, "logits chunk") : logits;
  auto* losses = static_cast<double*>(ctx.scratch.allocate(size_t(step) * sizeof(double), "losses"));
  const float d_scale = static_cast<float>(1.0 / denominator);
  double total = 0;
  for (int64_t r = 0; r < rows; r += step) {
    const int64_t n = std::min(step, rows - r);
    count_elements(n * vocab, 5, recorded ? 8 : 4);
    const ForwardProduct product{n, hidden.t.f32() + r * cols, head, logits};
    weight_forward(ctx, &product, 1);
    for_rows(ctx, n, vocab, [&](int64_t i, int64_t count, int64_t) {
      if (bias && *bias) ctx.kernels.bias_add({count, vocab, logits + i * vocab, vocab, bias->f32()});
      const float* x = values + i * vocab;
      if (softcap > 0) ctx.kernels.softcap({count * vocab, softcap, logits + i * vocab, values + i * vocab});
      float* d_logits = recorded ? logits + i * vocab : nullptr;
      if (!row_scale)
        ctx.kernels.cross_entropy({count, vocab, x, vocab, labels + r + i, d_logits, d_scale, losses + i, nullptr});
      for (int64_t j = 0; row_scale && j < count; ++j)
        ctx.kernels.cross_entropy({1, vocab, x + j * vocab, vocab, labels + r + i + j,
                                   d_logits ? d_logits + j * vocab : nullptr, row_scale[r + i + j], losses + i + j,
                                   nullptr});
      if (softcap > 0 && d_logits) ctx.kernels.softcap_bwd({count * vocab, softcap, x, d_logits, d_logits, 0});
    });
    for (int64_t i = 0; i < n; ++i) total += row_scale ? losses[i] * double(row_scale[r + i]) : losses[i] / denominator;
    if (row_loss) std::memcpy(row_loss + r, losses, size_t(n) * sizeof(double));
    if (!recorded) continue;
    if (d_hidden) weight_dx(ctx, n, logits, *head, d_hidden + r * cols, false);
    if (wants_grad(head)) weight_dw(ctx, n, logits, hidden.t.f32() + r * cols, head);
    if (wants_grad(bias)) bias_grad(ctx, n, logits, bias);
  }
  return total;
}

// The loss of the labelled rows alone, which lie in `picked`; d_hidden of the others is zero.
double sparse_cross_entropy(Context& ctx, Var hidden, Weight* head, Weight* bias, const int32_t* labels,
                            double denominator, double* row_loss, const float* row_scale, float softcap,
                            int64_t labelled) {
  const int64_t rows = hidden.t.rows(), cols = hidden.t.cols();
  const bool recorded = ctx.tape && (hidden.id >= 0 || wants_grad(head) || wants_grad(bias));
  float* d_hidden =
      recorded && hidden.id >= 0 ? ctx.saved.floats(rows * cols, "gradient of the last hidden state") : nullptr;
  const ArenaScope scope(ctx.saved);
  const size_t n = static_cast<size_t>(labelled);
  auto* at = static_cast<int64_t*>(ctx.saved.allocate(n * sizeof(int64_t), "labelled rows"));
  auto* picked_labels = static_cast<int32_t*>(ctx.saved.allocate(n * sizeof(int32_t), "labelled rows"));
  auto* picked_loss = static_cast<double*>(ctx.saved.allocate(n * sizeof(double), "labelled rows"));
  float* picked_scale = row_scale ? ctx.saved.floats(labelled, "labelled rows") : nullptr;
  float* picked = ctx.saved.floats(labelled * cols, "labelled rows");
  int64_t to = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (row_loss) row_loss[r] = 0;
    if (labels[r] < 0) continue;
    at[to] = r;
    picked_labels[to] = labels[r];
    if (row_scale) picked_scale[to] = row_scale[r];
    std::memcpy(picked + to * cols, hidden.t.f32() + r * cols, size_t(cols) * sizeof(float));
    ++to;
  }
  // Gradients of parameters are made by the call; that of the picked rows is scattered here, so they are no tape value.
  Var rows_of;
  rows_of.t = Tensor::matrix(picked, labelled, cols);
  float* d_picked = d_hidden ? ctx.saved.floats(labelled * cols, "labelled rows") : nullptr;
  const double total = dense_cross_entropy(ctx, rows_of, head, bias, picked_labels, denominator, picked_loss,
                                           picked_scale, softcap, d_picked, recorded);
  for (int64_t i = 0; i < labelled && row_loss; ++i) row_loss[at[i]] = picked_loss[i];
  if (d_hidden) {
    std::memset(d_hidden, 0, size_t(rows * cols) * sizeof(float));
    for (int64_t i = 0; i < labelled; ++i)
      std::memcpy(d_hidden + at[i] * cols, d_picked + i * cols, size_t(cols) * sizeof(float));
  }
  if (recorded) {
    Node& node = ctx.tape->push(Op::linear_cross_entropy);
    node.in[0] = hidden.id;
    node.saved[0] = d_hidden;
  }
  return total;
}

}  // namespace

double linear_cross_entropy(Context& ctx, Var hidden, Weight* head, Weight* bias, const int32_t* labels,
                            double denominator, double* row_loss, const float* row_scale, float softcap) {
  THIMBLE_ZONE(loss);
  const int64_t rows = hidden.t.rows(), cols = hidden.t.cols();
  THIMBLE_CHECK(cols == head->cols && denominator > 0);
  int64_t labelled = 0;
  for (int64_t r = 0; r < rows; ++r) labelled += labels[r] >= 0 ? 1 : 0;
  if (labelled > 0 && double(labelled) < kSparse * double(rows))
    return sparse_cross_entropy(ctx, hidden, head, bias, labels, denominator, row_loss, row_scale, softcap, labelled);
  const bool recorded = ctx.tape && (hidden.id >= 0 || wants_grad(head) || wants_grad(bias));
  float* d_hidden =
      recorded && hidden.id >= 0 ? ctx.saved.floats(rows * cols, "gradient of the last hidden state") : nullptr;
  const double total =
      dense_cross_entropy(ctx, hidden, head, bias, labels, denominator, row_loss, row_scale, softcap, d_hidden, recorded);
  if (recorded) {
    Node& node = ctx.tape->push(Op::linear_cross_entropy);
    node.in[0] = hidden.id;
    node.saved[0] = d_hidden;
  }
  return total;
}

void linear_cross_entropy_backward(Context& ctx, const Node& node) {
  if (node.saved[0]) grad_share(ctx, node.in[0], node.saved[0]);
}

}  // namespace thimble
