#include "models/transformer.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "tensor/error.h"

namespace thimble {
namespace {

bool trainable(const LayerWeights& layer) {
  bool any = false;
#define LAYER_ROLE(field, kind) any = any || layer.field.grad;
#include "models/roles.def"
  return any;
}

Weight* present(Weight& w) { return w ? &w : nullptr; }

}  // namespace

Transformer::Transformer(Model& model, int64_t max_tokens) : model_(model), max_tokens_(max_tokens) {
  const ModelConfig& c = model_.config;
  if (c.positions == PositionKind::learned && max_tokens > c.max_positions)
    throw Error(ErrorCode::input,
                fmt::format("{}: {} tokens are asked for, but the model has learned positions for {}", model_.path, max_tokens, c.max_positions),
                fmt::format("use a context of at most {}", c.max_positions));
  if (c.positions == PositionKind::rope) {
    const RopeFrequencies f = rope_frequencies(c.rope);
    const size_t half = f.inv_freq.size();
    cos_.resize(static_cast<size_t>(max_tokens) * half);
    sin_.resize(cos_.size());
    for (size_t p = 0; p < static_cast<size_t>(max_tokens); ++p)
      for (size_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(p) * f.inv_freq[j];  // f32, as the reference implementations do
        cos_[p * half + j] = static_cast<float>(std::cos(double(angle))) * f.attention_factor;
        sin_[p * half + j] = static_cast<float>(std::sin(double(angle))) * f.attention_factor;
      }
  }
  for (int64_t l = 0; l < c.n_layers; ++l) {
    AttentionSpec s;
    s.n_heads = c.n_heads;
    s.n_kv_heads = c.n_kv_heads;
    s.head_dim = c.head_dim;
    s.window = l >= c.window_from_layer ? c.window : 0;
    double scale = c.attn_scale_by_head_dim ? 1.0 / std::sqrt(double(c.head_dim)) : 1.0;
    if (c.attn_scale_by_layer) scale /= double(l + 1);
    s.scale = static_cast<float>(scale);
    specs_.push_back(s);
    calls_.push_back({&Transformer::run_layer, this, static_cast<int>(l)});
  }
}

Var Transformer::norm(Context& ctx, Var x, Weight& w, Weight& b) {
  const auto eps = static_cast<float>(model_.config.norm_eps);
  if (model_.config.norm == NormKind::rms) return rms_norm(ctx, x, &w, eps);
  return layer_norm(ctx, x, present(w), present(b), eps);
}

Var Transformer::attention_branch(Context& ctx, int layer, Var x) {
  const ModelConfig& c = model_.config;
  LayerWeights& w = model_.weights.layers[static_cast<size_t>(layer)];
  Var q = linear(ctx, x, &w.q_w, present(w.q_b));
  Var k = linear(ctx, x, &w.k_w, present(w.k_b));
  Var v = linear(ctx, x, &w.v_w, present(w.v_b));
  if (c.positions == PositionKind::rope) {
    q = rope(ctx, q, c.n_heads, c.head_dim, c.rope.dims, c.rope.interleaved, cos_.data(), sin_.data(), positions_);
    k = rope(ctx, k, c.n_kv_heads, c.head_dim, c.rope.dims, c.rope.interleaved, cos_.data(), sin_.data(), positions_);
  }
  ctx.observe("q", layer, q.t);
  ctx.observe("k", layer, k.t);
  ctx.observe("v", layer, v.t);
  if (KvCache* cache = batch_->cache) {
    const size_t row_bytes = size_t(c.kv_cols()) * sizeof(float);
    for (int64_t s = 0; s < batch_->n_seqs; ++s) {
      const int64_t first = batch_->cu_seqlens[s], count = batch_->cu_seqlens[s + 1] - first;
      std::memcpy(cache->k_row(layer, s, cache->length(s)), k.t.f32() + first * c.kv_cols(), size_t(count) * row_bytes);
      std::memcpy(cache->v_row(layer, s, cache->length(s)), v.t.f32() + first * c.kv_cols(), size_t(count) * row_bytes);
    }
  }
  const Var a = attention(ctx, q, k, v, &specs_[static_cast<size_t>(layer)]);
  ctx.observe("attention", layer, a.t);
  const Var o = linear(ctx, a, &w.o_w, present(w.o_b));
  ctx.observe("attention_out", layer, o.t);
  return o;
}

Var Transformer::mlp_branch(Context& ctx, int layer, Var x) {
  const ModelConfig& c = model_.config;
  LayerWeights& w = model_.weights.layers[static_cast<size_t>(layer)];
  const Var up = linear(ctx, x, &w.up_w, present(w.up_b));
  ctx.observe("up", layer, up.t);
  const Var inner = c.gated_mlp ? gated(ctx, linear(ctx, x, &w.gate_w, present(w.gate_b)), up, c.activation)
                                : activation(ctx, up, c.activation);
  ctx.observe("activation", layer, inner.t);
  const Var down = linear(ctx, inner, &w.down_w, present(w.down_b));
  ctx.observe("mlp_out", layer, down.t);
  return down;
}

Var Transformer::run_layer(Context& ctx, void* self, int layer, Var x) {
  auto& t = *static_cast<Transformer*>(self);
  const ModelConfig& c = t.model_.config;
  LayerWeights& w = t.model_.weights.layers[static_cast<size_t>(layer)];
  if (c.post_norm) {
    Var h = t.norm(ctx, add(ctx, x, t.attention_branch(ctx, layer, x)), w.norm1_w, w.norm1_b);
    h = t.norm(ctx, add(ctx, h, t.mlp_branch(ctx, layer, h)), w.norm2_w, w.norm2_b);
    ctx.observe("block", layer, h.t);
    return h;
  }
  const Var n1 = t.norm(ctx, x, w.norm1_w, w.norm1_b);
  ctx.observe("norm1", layer, n1.t);
  const Var a = t.attention_branch(ctx, layer, n1);
  if (c.parallel_residual) {
    const Var n2 = t.norm(ctx, x, w.norm2_w, w.norm2_b);
    ctx.observe("norm2", layer, n2.t);
    const Var h = add(ctx, add(ctx, x, a), t.mlp_branch(ctx, layer, n2));
    ctx.observe("block", layer, h.t);
    return h;
  }
  const Var h = add(ctx, x, a);
  ctx.observe("attention_residual", layer, h.t);
  const Var n2 = t.norm(ctx, h, w.norm2_w, w.norm2_b);
  ctx.observe("norm2", layer, n2.t);
  const Var out = add(ctx, h, t.mlp_branch(ctx, layer, n2));
  ctx.observe("block", layer, out.t);
  return out;
}

Var Transformer::forward(Context& ctx, const Batch& batch, Recompute recompute) {
  const ModelConfig& c = model_.config;
  THIMBLE_CHECK(!(batch.cache && ctx.tape));
  auto* positions = static_cast<int32_t*>(ctx.saved.allocate(size_t(batch.n) * sizeof(int32_t), "positions"));
  for (int64_t s = 0; s < batch.n_seqs; ++s) {
    const int64_t start = batch.cache ? batch.cache->length(s) : 0;
    const int64_t first = batch.cu_seqlens[s], count = batch.cu_seqlens[s + 1] - first;
    const int64_t limit = batch.cache ? std::min(max_tokens_, batch.cache->capacity()) : max_tokens_;
    if (start + count > limit)
      throw Error(ErrorCode::input, fmt::format("a sequence of {} tokens does not fit a context of {}", start + count, limit),
                  "shorten the text, or raise --ctx up to what the model supports");
    for (int64_t i = 0; i < count; ++i) {
      positions[first + i] = static_cast<int32_t>(start + i);
      const int32_t id = batch.ids[first + i];
      if (id < 0 || id >= c.vocab_size)
        throw Error(ErrorCode::input, fmt::format("token id {} is out of range: the model's vocabulary has {} entries", id, c.vocab_size),
                    "the tokenizer and the model do not belong together");
    }
  }
  positions_ = positions;
  batch_ = &batch;
  for (int64_t l = 0; l < c.n_layers; ++l) {
    AttentionSpec& s = specs_[static_cast<size_t>(l)];
    s.n_seqs = batch.n_seqs;
    s.cu_seqlens = batch.cu_seqlens;
    s.cache_k = batch.cache ? batch.cache->k_pointers(l) : nullptr;
    s.cache_v = batch.cache ? batch.cache->v_pointers(l) : nullptr;
    s.cache_len = batch.cache ? batch.cache->lengths() : nullptr;
  }

  ModelWeights& w = model_.weights;
  Var x = embed(ctx, &w.token_embed, batch.ids, batch.n);
  if (c.projected()) x = linear(ctx, x, &w.project_in, nullptr);
  if (c.positions == PositionKind::learned) x = add_positions(ctx, x, &w.pos_embed, positions, c.position_offset);
  ctx.observe("embedding", -1, x.t);
  for (int64_t l = 0; l < c.n_layers; ++l) {
    const bool needs_grad = ctx.tape && (x.id >= 0 || trainable(w.layers[static_cast<size_t>(l)]));
    x = run_block(ctx, &calls_[static_cast<size_t>(l)], x, recompute == Recompute::block, needs_grad);
  }
  if (c.final_norm) x = norm(ctx, x, w.final_norm_w, w.final_norm_b);
  ctx.observe("final_norm", -1, x.t);
  if (c.projected()) x = linear(ctx, x, &w.project_out, nullptr);
  if (batch.cache)
    for (int64_t s = 0; s < batch.n_seqs; ++s) batch.cache->advance(s, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
  return x;
}

Var Transformer::logits(Context& ctx, Var hidden) {
  const Var y = linear(ctx, hidden, &model_.weights.head(), nullptr);
  ctx.observe("logits", -1, y.t);
  return y;
}

double Transformer::loss(Context& ctx, Var hidden, const int32_t* labels, double denominator, double* row_loss) {
  return linear_cross_entropy(ctx, hidden, &model_.weights.head(), nullptr, labels, denominator, row_loss);
}

}  // namespace thimble
