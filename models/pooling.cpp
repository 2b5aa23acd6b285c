#include "models/pooling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace thimble {
namespace {

// What each row of a sequence of n counts for in a weighted sum; max is no such sum.
void fill_weights(Pooling pooling, int64_t n, int64_t skipped, float* w) {
  std::fill_n(w, n, 0.0f);
  const auto count = static_cast<double>(n - skipped);
  double positions = 0;
  for (int64_t i = skipped; i < n; ++i) positions += double(i + 1);
  switch (pooling) {
    case Pooling::cls: w[0] = 1; break;
    case Pooling::last_token: w[n - 1] = 1; break;
    case Pooling::weighted_mean:
      for (int64_t i = skipped; i < n; ++i) w[i] = static_cast<float>(double(i + 1) / positions);
      break;
    case Pooling::mean_sqrt_len: std::fill(w + skipped, w + n, static_cast<float>(1 / std::sqrt(count))); break;
    case Pooling::mean:
    case Pooling::max: std::fill(w + skipped, w + n, static_cast<float>(1 / count)); break;
  }
}

}  // namespace

EmbedHead::EmbedHead(const EmbedRecipe& recipe, int64_t width)
    : recipe_(&recipe), width_(width), dimensions_(recipe.is_static ? width : width * static_cast<int64_t>(recipe.pooling.size())) {
  for (const EmbedStep& s : recipe.steps) {
    if (s.normalize) continue;
    if (s.dense.in != dimensions_)
      throw Error(ErrorCode::input,
                  fmt::format("{}: a Dense module takes {} inputs, what stands before it gives {}", recipe.model_path, s.dense.in, dimensions_),
                  "the modules belong to different models");
    Weight w, b;
    w.rows = s.dense.out;
    w.cols = s.dense.in;
    w.data = s.dense.weight.data();
    b.rows = 1;
    b.cols = s.dense.out;
    b.data = s.dense.bias.empty() ? nullptr : s.dense.bias.data();
    weights_.push_back(w);
    biases_.push_back(b);
    dimensions_ = s.dense.out;
  }
}

bool EmbedHead::differentiable() const {
  return recipe_->pooling.size() == 1 && recipe_->pooling[0] != Pooling::max && weights_.empty();
}

Var EmbedHead::pool(Context& ctx, Var hidden, const int32_t* cu_seqlens, int64_t n_seqs, const int64_t* skipped) const {
  const auto parts = static_cast<int64_t>(recipe_->pooling.size());
  const auto unpooled = [&](int64_t s) {
    return skipped ? std::max<int64_t>(0, std::min(skipped[s], int64_t{cu_seqlens[s + 1]} - cu_seqlens[s] - 1)) : 0;
  };
  const auto weighted = [&](Pooling kind) {
    float* weights = ctx.saved.floats(hidden.t.rows(), "pooling weights");
    for (int64_t s = 0; s < n_seqs; ++s)
      fill_weights(kind, cu_seqlens[s + 1] - cu_seqlens[s], unpooled(s), weights + cu_seqlens[s]);
    return pool_rows(ctx, hidden, cu_seqlens, n_seqs, weights);
  };
  if (parts == 1 && recipe_->pooling[0] != Pooling::max) return weighted(recipe_->pooling[0]);
  Var all;
  all.t = Tensor::matrix(ctx.saved.floats(n_seqs * width_ * parts, "embeddings"), n_seqs, width_ * parts);
  for (int64_t p = 0; p < parts; ++p) {
    const Pooling kind = recipe_->pooling[static_cast<size_t>(p)];
    Var one;
    if (kind != Pooling::max) one = weighted(kind);
    for (int64_t s = 0; s < n_seqs; ++s) {
      float* out = all.t.f32() + (s * parts + p) * width_;
      if (kind != Pooling::max) {
        std::copy_n(one.t.f32() + s * width_, width_, out);
        continue;
      }
      const int64_t first = cu_seqlens[s] + unpooled(s);
      std::copy_n(hidden.t.f32() + first * width_, width_, out);
      for (int64_t r = first + 1; r < cu_seqlens[s + 1]; ++r)
        for (int64_t c = 0; c < width_; ++c) out[c] = std::max(out[c], hidden.t.f32()[r * width_ + c]);
    }
  }
  return all;
}

Var EmbedHead::finish(Context& ctx, Var rows) const {
  size_t next = 0;
  for (const EmbedStep& s : recipe_->steps) {
    if (s.normalize) {
      rows = l2_normalize(ctx, rows);
      continue;
    }
    rows = linear(ctx, rows, &weights_[next], biases_[next] ? &biases_[next] : nullptr);
    ++next;
    if (!s.dense.tanh) continue;
    for (int64_t i = 0; i < rows.t.numel(); ++i) rows.t.f32()[i] = std::tanh(rows.t.f32()[i]);
  }
  return rows;
}

Var EmbedHead::run(Context& ctx, Var hidden, const int32_t* cu_seqlens, int64_t n_seqs, const int64_t* skipped) const {
  THIMBLE_CHECK(!ctx.tape || differentiable());
  return finish(ctx, pool(ctx, hidden, cu_seqlens, n_seqs, skipped));
}

}  // namespace thimble
