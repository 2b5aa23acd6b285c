// The transformer as flat flags. There is no switch on a family's name behind this struct: a family's config parser
// fills the flags, and the one transformer reads them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/ops.h"

namespace thimble {

enum class NormKind : uint8_t { rms, layer };
enum class PositionKind : uint8_t { rope, learned, none };
enum class RopeScaling : uint8_t { none, linear, llama3, yarn };

struct RopeConfig {
  double theta = 10000;
  int64_t dims = 0;          // rotated entries of each head; even
  bool interleaved = false;  // pairs (2j, 2j+1) instead of (j, j + dims/2)
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  double attention_factor = 0;                       // yarn; 0: 0.1 ln(factor) + 1
  int64_t original_max_positions = 0;                // llama3, yarn
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
  bool post_norm = false;       // x = norm(x + f(x)) instead of x + f(norm(x))
  bool final_norm = true;
  bool parallel_residual = false;  // x + attn(norm1 x) + mlp(norm2 x)

  PositionKind positions = PositionKind::rope;
  int64_t position_offset = 0;  // learned: position p uses row p + offset
  RopeConfig rope;

  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool gated_mlp = true;
  Activation activation = Activation::silu;
  bool tied = false;                    // the head is the token embedding
  bool attn_scale_by_head_dim = true;   // scores / sqrt(head_dim)
  bool attn_scale_by_layer = false;     // scores / (layer + 1) besides
  int64_t window = 0;                   // keys a query sees, itself included; 0: all before it
  int64_t window_from_layer = 0;        // layers below see everything

  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;

  bool projected() const { return embed_dim != hidden; }
  int64_t q_cols() const { return n_heads * head_dim; }
  int64_t kv_cols() const { return n_kv_heads * head_dim; }
};

const char* activation_name(Activation a);
const char* norm_name(NormKind n);
const char* position_name(PositionKind p);
const char* rope_scaling_name(RopeScaling s);

// Throws (input, naming `file`) when fields contradict one another or are absurd.
void check_config(const ModelConfig& config, const std::string& file);

// inv_freq [dims / 2] with the scaling applied, and the factor on cos and sin.
struct RopeFrequencies {
  std::vector<float> inv_freq;
  float attention_factor = 1;
};
RopeFrequencies rope_frequencies(const RopeConfig& rope);

}  // namespace thimble
