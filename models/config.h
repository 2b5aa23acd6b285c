// The transformer as flat flags. There is no switch on a family's name behind this struct: a family's config parser
// fills the flags, and the one transformer reads them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/ops.h"

namespace thimble {

enum class NormKind : uint8_t { rms, layer };
enum class PositionKind : uint8_t { rope, learned, alibi, none };
enum class RopeScaling : uint8_t { none, linear, dynamic, llama3, yarn, longrope };
// What is normalised between the projection of queries (or keys) and their rotation: nothing; each head, all heads with
// the same weights or each with its own; or the whole projection. The norm is of the model's kind.
enum class QkNorm : uint8_t { none, head, heads, whole };

struct RopeConfig {
  double theta = 10000;
  int64_t dims = 0;          // rotated entries of each head; even
  bool interleaved = false;  // pairs (2j, 2j+1) instead of (j, j + dims/2)
  bool hf_interleaved = false;  // the same of the family's Hugging Face files: when they differ, rows of q and k move on export
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn: the bounds of the ramp are whole dimensions
  double attention_factor = 0;                       // yarn, longrope: on cos and sin; 0: yarn's 0.1 ln(factor) + 1
  int64_t original_max_positions = 0;                // dynamic, llama3, yarn, longrope
  std::vector<double> short_factors, long_factors;   // longrope: [dims / 2]

  // The frequencies follow from the length of the text. It is decided once per request, by what the request may grow to
  // (Transformer's max_tokens), since a cache cannot be turned to other frequencies.
  bool depends_on_length() const { return scaling == RopeScaling::dynamic || scaling == RopeScaling::longrope; }
  bool operator==(const RopeConfig&) const = default;
};

struct ModelConfig {
  std::string family;  // for display and export only
  int64_t vocab_size = 0, hidden = 0, intermediate = 0, n_layers = 0;
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;
  int64_t embed_dim = 0;  // width of the embeddings; projected to hidden when different

  NormKind norm = NormKind::rms;
  double norm_eps = 1e-5;
  bool norm_affine = true;      // norms have weights (and biases, for LayerNorm)
  bool norm_bias = true;        // LayerNorm's bias
  double norm_offset = 0;       // RMSNorm multiplies by weight + offset (Gemma: 1)
  bool pre_norm = true;         // x + f(norm(x)); false: f reads x itself
  bool branch_norm = false;     // x + norm(f(...)): a norm on what each branch adds, besides pre_norm or instead of it
  bool post_norm = false;       // x = norm(x + f(x)) instead of x + f(norm(x))
  bool final_norm = true;
  bool parallel_residual = false;  // x + attn(norm1 x) + mlp(norm2 x)
  bool shared_norm = false;        // parallel: mlp reads norm1 x too
  bool embed_norm = false;         // a norm behind the embeddings and positions

  double embed_scale = 1;       // on token embeddings
  bool scale_prompts = true;    // and on virtual tokens; false: the scale is the embedding's own
  PositionKind positions = PositionKind::rope;
  int64_t position_offset = 0;  // learned: position p uses row p + offset
  int32_t placeless_id = -1;    // learned: this token takes no position, but row offset - 1; -1: there is none
  bool alibi_scaled = false;    // alibi: the bias is divided by sqrt(head_dim) like the scores
  bool alibi_bf16 = false;      // alibi: slopes rounded to bf16
  RopeConfig rope;
  bool local_rope = false;      // layers with a window rotate by rope_local
  RopeConfig rope_local;

  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  QkNorm qk_norm = QkNorm::none;
  bool qk_norm_bias = false;
  double qkv_clip = 0;                  // q, k and v are held in [-clip, clip]; 0: not
  double attn_softcap = 0;              // scores become cap tanh(score / cap); 0: not
  double query_pre_attn_scalar = 0;     // scores / sqrt(this) instead of sqrt(head_dim); 0: not given
  bool gated_mlp = true;
  int64_t n_experts = 0, n_experts_used = 0;  // of a layer, and those that a row goes to; 0: a single mlp
  Activation activation = Activation::silu;
  bool tied = false;                    // the head is the token embedding
  bool attn_scale_by_head_dim = true;   // scores / sqrt(head_dim)
  bool attn_scale_by_layer = false;     // scores / (layer + 1) besides
  int64_t window = 0;                   // keys a query sees, itself included; 0: all before it
  int64_t window_from_layer = 0;        // layers below see everything
  std::vector<uint8_t> window_layers;   // which layers have the window, one entry each; empty: as window_from_layer says
  bool head_bias = false;               // lm_head has a bias
  double logit_scale = 1, logit_softcap = 0;  // logits = cap tanh(scale hidden Wᵀ / cap); cap 0: none

  // Encoders.
  bool bidirectional = false;  // a row sees its whole sequence; there is no cache
  int64_t token_types = 0;     // embeddings of token types; 0: none
  bool pooler = false;         // tanh(pooler_w h + pooler_b) of a sequence's first row, beside the hidden states
  bool has_head = true;        // false: hidden states are all there is

  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;

  bool has_window(int64_t layer) const {
    if (window == 0) return false;
    return window_layers.empty() ? layer >= window_from_layer : window_layers[static_cast<size_t>(layer)] != 0;
  }
  const RopeConfig& rope_of(int64_t layer) const { return local_rope && has_window(layer) ? rope_local : rope; }
  bool projected() const { return embed_dim != hidden; }
  int64_t q_cols() const { return n_heads * head_dim; }
  int64_t kv_cols() const { return n_kv_heads * head_dim; }
  bool operator==(const ModelConfig&) const = default;
};

const char* activation_name(Activation a);
const char* norm_name(NormKind n);
const char* position_name(PositionKind p);
const char* rope_scaling_name(RopeScaling s);
const char* qk_norm_name(QkNorm n);

// Throws (input, naming `file`) when fields contradict one another or are absurd.
void check_config(const ModelConfig& config, const std::string& file);

// inv_freq [dims / 2] with the scaling applied, and the factor on cos and sin. tokens: the length that decides where the
// scaling depends on it.
struct RopeFrequencies {
  std::vector<float> inv_freq;
  float attention_factor = 1;
};
RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t tokens);

// Whether texts of the two lengths turn by different frequencies.
bool rope_changes(const ModelConfig& config, int64_t tokens, int64_t others);

// The slopes of the heads (Press et al., 2022): 2^(-8 (h + 1) / n) for a power of two n; for other counts those of the
// power below, then every other one of the power above.
std::vector<float> alibi_slopes(int64_t n_heads, bool to_bf16);

}  // namespace thimble
