// The one transformer: training, evaluation, prefill and decode run this forward. It reads the flags of ModelConfig and
// knows no family.
#pragma once

#include <cstdint>
#include <vector>

#include "models/adapter.h"
#include "models/kv_cache.h"
#include "models/model.h"
#include "tensor/ops.h"
#include "tensor/ops_experts.h"

namespace thimble {

// The id of a row that stands for a virtual token: sequences under a prompt adapter begin with n_virtual() of them.
constexpr int32_t kVirtualToken = -1;

// Token rows of several sequences, packed without padding. Everything outlives backward.
struct Batch {
  const int32_t* ids = nullptr;
  int64_t n = 0;
  const int32_t* cu_seqlens = nullptr;  // [n_seqs + 1]
  int64_t n_seqs = 0;
  KvCache* cache = nullptr;  // rows continue the cached sequences and are appended; no gradients
  const AdapterSegment* segments = nullptr;  // which rows use which adapter; rows of none use the base alone
  int64_t n_segments = 0;
  const int32_t* token_types = nullptr;  // [n], of models that have them; null: all 0
};

class Transformer {
 public:
  // max_tokens: longest sequence that forward will be asked for, cached and virtual tokens included. rope_tokens: the length
  // that sets rotary scalings which follow it (dynamic, longrope); 0: max_tokens.
  Transformer(Model& model, int64_t max_tokens, int64_t rope_tokens = 0);

  // Hidden state behind the final norm (projection, logit scale): [n, embed_dim].
  // Throws input for ids out of range and for sequences beyond max_tokens.
  Var forward(Context& ctx, const Batch& batch, Recompute recompute = Recompute::none);
  // What a model's pooler makes of the first row of every sequence: [n_seqs, hidden]. No gradients. Throws unsupported
  // where there is none.
  Var pooler_output(Context& ctx, const Batch& batch, Var hidden);
  // hidden Wᵀ, with bias and softcap where the model has them: [n, vocab]. This and loss throw unsupported for models without a head.
  Var logits(Context& ctx, Var hidden);
  // Cross entropy of every row against labels (negative: ignored), divided by denominator.
  // row_weights, when given, are the weights of the rows' losses instead of 1 / denominator.
  double loss(Context& ctx, Var hidden, const int32_t* labels, double denominator, double* row_loss = nullptr,
              const float* row_weights = nullptr);

  // The same in pieces, for work that goes layer by layer over stored activations (calibration): the values that enter the
  // first block [n, hidden], and one block alone. No cache, no gradients.
  Var embed_batch(Context& ctx, const Batch& batch);
  Var one_block(Context& ctx, const Batch& batch, int64_t layer, Var x);

  Model& model() const { return model_; }
  const ModelConfig& config() const { return model_.config; }
  int64_t max_tokens() const { return max_tokens_; }

 private:
  static Var run_layer(Context& ctx, void* self, int layer, Var x);
  // Checks the batch and sets what the blocks read of it. Returns its ids with virtual tokens as token 0 when it has some,
  // else null.
  const int32_t* prepare(Context& ctx, const Batch& batch);
  Var enter(Context& ctx, const Batch& batch);
  Var attention_branch(Context& ctx, int layer, Var x);
  Var mlp_branch(Context& ctx, int layer, Var x);
  Var add_branch(Context& ctx, Var x, Var branch, Weight& w, Weight& b);
  Var norm(Context& ctx, Var x, Weight& w, Weight& b, bool packs = false);
  // The norm on queries or keys [n, heads * head_dim].
  Var norm_heads(Context& ctx, Var x, Weight& w, Weight& b);
  // x Wᵀ + b with what the batch's adapters do to this linear.
  Var project(Context& ctx, int layer, Role role, Var x, Weight& w, Weight& b);
  // The same for several linears of one input; LoRA adapters of them read it once.
  struct Projection {
    Role role;
    Weight* w;
    Weight* b;
    Var y, input;  // input: x, or what IA3 made of it
  };
  void project_all(Context& ctx, int layer, Var x, Projection* projections, int count);
  Var expert_branch(Context& ctx, int layer, Var x);
  void project_experts(Context& ctx, int layer, const Routing& r, Var x, Projection* projections, Weight* const* const* weights, int count);
  template <class Fn>
  void for_each_expert_segment(int layer, const Routing& r, Fn&& fn);
  void adapt(Context& ctx, int layer, const AdapterSegment& s, Var x, Projection* projections, int count);
  Var place_prompts(Context& ctx, const Batch& batch, Var x);
  void place_prefixes(Context& ctx, const Batch& batch);
  void require_head() const;
  bool layer_trains(const Batch& batch, int64_t layer) const;
  Adapter* adapter_of(const Batch& batch, int64_t seq) const;

  // What adapters do to rows [first, first + n) besides LoRA and IA3 of linears: bias_last says that the bias of a projection
  // comes behind them.
  static bool bias_last(const Batch& batch, int layer, Role role);
  Var adapt_embedding(Context& ctx, const Batch& batch, const int32_t* ids, Var x);

  Model& model_;
  ModelWeights* weights_;              // of the running forward: the model's, or with an adapter's own in their places
  int64_t max_tokens_;
  struct RopeTables {
    std::vector<float> cos, sin;  // [max_tokens][dims / 2]
    void fill(const RopeConfig& rope, int64_t positions, int64_t tokens);
  };
  RopeTables rope_, local_rope_;
  std::vector<float> slopes_;          // alibi: [n_heads]
  Weight no_weight_;
  std::vector<AttentionSpec> specs_;   // per layer, filled by forward
  std::vector<BlockCall> calls_;       // per layer
  const int32_t* positions_ = nullptr; // of the running forward
  const Batch* batch_ = nullptr;
  ExpertChoice* choices_ = nullptr;  // per layer, of a forward that is recorded; null: none
};

}  // namespace thimble
