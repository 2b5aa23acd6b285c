// OLMo: Llama with a LayerNorm that has no parameters, and bounds on q, k and v. OLMo 2: RMSNorm behind each branch and none
// before it, and on the whole projections of queries and keys.
#include "models/families.h"

namespace thimble {
namespace {

void parse_common(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  c->tied = json.get_bool("tie_word_embeddings", false);
  parse_rope(json, "rope_theta", c);
}

void parse_olmo(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  c->norm = NormKind::layer;
  c->norm_eps = 1e-5;  // not in the config
  c->norm_affine = false;
  c->qkv_clip = json.get_double("clip_qkv", 0, 1e-6, 1e9);
}

void parse_olmo2(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  c->norm_eps = json.get_double("rms_norm_eps", 1e-5, 0, 1);
  c->pre_norm = false;
  c->branch_norm = true;
  c->qk_norm = QkNorm::whole;
}

}  // namespace

const Family kOlmoFamily = {{"olmo"}, {"OlmoForCausalLM"}, parse_olmo, llama_rules({}), "model.", {".rotary_emb.inv_freq"}};
const Family kOlmo2Family = {
    {"olmo2"},
    {"Olmo2ForCausalLM"},
    parse_olmo2,
    llama_rules({{"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::branch_norm1_w}},
                 {"model.layers.{}.post_feedforward_layernorm.weight", Layout::plain, {Role::branch_norm2_w}},
                 {"model.layers.{}.self_attn.q_norm.weight", Layout::plain, {Role::q_norm_w}},
                 {"model.layers.{}.self_attn.k_norm.weight", Layout::plain, {Role::k_norm_w}}}),
    "model.",
    {".rotary_emb.inv_freq"}};

}  // namespace thimble
