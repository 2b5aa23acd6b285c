// The one transformer: training, evaluation, prefill and decode run this forward. It reads the flags of ModelConfig and
// knows no family.
#pragma once

#include <cstdint>
#include <vector>

#include "models/kv_cache.h"
#include "models/model.h"
#include "tensor/ops.h"

namespace thimble {

// Token rows of several sequences, packed without padding. Everything outlives backward.
struct Batch {
  const int32_t* ids = nullptr;
  int64_t n = 0;
  const int32_t* cu_seqlens = nullptr;  // [n_seqs + 1]
  int64_t n_seqs = 0;
  KvCache* cache = nullptr;  // rows continue the cached sequences and are appended; no gradients
};

// Which blocks keep their activations for backward, and which are replayed.
enum class Recompute : uint8_t { none, block };

class Transformer {
 public:
  // max_tokens: longest sequence (with cache: cached and new) that forward will be asked for.
  Transformer(Model& model, int64_t max_tokens);

  // Hidden state behind the final norm (and projection): [n, embed_dim].
  // Throws input for ids out of range and for sequences beyond max_tokens.
  Var forward(Context& ctx, const Batch& batch, Recompute recompute = Recompute::none);
  // hidden Wᵀ: [n, vocab]
  Var logits(Context& ctx, Var hidden);
  // Cross entropy of every row against labels (negative: ignored), divided by denominator.
  double loss(Context& ctx, Var hidden, const int32_t* labels, double denominator, double* row_loss = nullptr);

  Model& model() const { return model_; }
  const ModelConfig& config() const { return model_.config; }
  int64_t max_tokens() const { return max_tokens_; }

 private:
  static Var run_layer(Context& ctx, void* self, int layer, Var x);
  Var attention_branch(Context& ctx, int layer, Var x);
  Var mlp_branch(Context& ctx, int layer, Var x);
  Var norm(Context& ctx, Var x, Weight& w, Weight& b);

  Model& model_;
  int64_t max_tokens_;
  std::vector<float> cos_, sin_;       // [max_tokens][rope.dims / 2]
  std::vector<AttentionSpec> specs_;   // per layer, filled by forward
  std::vector<BlockCall> calls_;       // per layer
  const int32_t* positions_ = nullptr; // of the running forward
  const Batch* batch_ = nullptr;
};

}  // namespace thimble
