// StableLM: LayerNorm with bias, SwiGLU, partial rotary. The 12B style runs attention and mlp side by side on one norm and
// normalises each head of queries and keys with weights of its own, which the file keeps apart.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c, 32);
  c->norm = NormKind::layer;
  c->norm_eps = json.get_double("layer_norm_eps", 1e-5, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->qkv_bias = json.get_bool("use_qkv_bias", false);
  c->parallel_residual = c->shared_norm = json.get_bool("use_parallel_residual", false);
  if (json.get_bool("qk_layernorm", false)) c->qk_norm = QkNorm::heads;
  c->tied = json.get_bool("tie_word_embeddings", false);
  parse_rope(json, "rope_theta", c, json.get_double("rope_pct", 0.25, 0, 1));
}

}  // namespace

const Family kStablelmFamily = {
    {"stablelm"},
    {"StableLmForCausalLM"},
    parse,
    llama_rules({{"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
                 {"model.layers.{}.post_attention_layernorm.bias", Layout::plain, {Role::norm2_b}},
                 {"model.layers.{}.self_attn.q_layernorm.norms.{}.weight", Layout::blocks, {Role::q_norm_w}},
                 {"model.layers.{}.self_attn.k_layernorm.norms.{}.weight", Layout::blocks, {Role::k_norm_w}}}),
    "model.",
    {".rotary_emb.inv_freq"}};

}  // namespace thimble
