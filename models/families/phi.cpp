// Phi-1, 1.5 and 2: one LayerNorm before attention and a plain MLP side by side, partial rotary, biases everywhere, also on
// the head. Phi-3 is Llama with fused projections and, for long contexts, longrope.
#include "models/families.h"

namespace thimble {
namespace {

void parse_phi(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c);
  c->norm = NormKind::layer;
  c->norm_eps = json.get_double("layer_norm_eps", 1e-5, 0, 1);
  c->parallel_residual = c->shared_norm = true;
  c->activation = parse_activation(json, "hidden_act", "gelu_new");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = c->head_bias = true;
  if (json.get_bool("qk_layernorm", false)) {
    c->qk_norm = QkNorm::head;
    c->qk_norm_bias = true;
  }
  c->tied = json.get_bool("tie_word_embeddings", false);
  parse_rope(json, "rope_theta", c, 0.5);
}

void parse_phi3(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c);
  c->norm_eps = json.get_double("rms_norm_eps", 1e-5, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->window = json.get_int("sliding_window", 0, 1, kMaxDim);
  c->tied = json.get_bool("tie_word_embeddings", false);
  for (const char* key : {"attention_bias", "mlp_bias", "lm_head_bias"}) refuse_if_set(json, key, "a bias");
  parse_rope(json, "rope_theta", c);
}

}  // namespace

const Family kPhiFamily = {
    {"phi"},
    {"PhiForCausalLM"},
    parse_phi,
    {
        {"model.embed_tokens.weight", Layout::plain, {Role::token_embed}},
        {"model.layers.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
        {"model.layers.{}.input_layernorm.bias", Layout::plain, {Role::norm1_b}},
        {"model.layers.{}.self_attn.q_proj.weight", Layout::plain, {Role::q_w}},
        {"model.layers.{}.self_attn.q_proj.bias", Layout::plain, {Role::q_b}},
        {"model.layers.{}.self_attn.k_proj.weight", Layout::plain, {Role::k_w}},
        {"model.layers.{}.self_attn.k_proj.bias", Layout::plain, {Role::k_b}},
        {"model.layers.{}.self_attn.v_proj.weight", Layout::plain, {Role::v_w}},
        {"model.layers.{}.self_attn.v_proj.bias", Layout::plain, {Role::v_b}},
        {"model.layers.{}.self_attn.q_layernorm.weight", Layout::plain, {Role::q_norm_w}},
        {"model.layers.{}.self_attn.q_layernorm.bias", Layout::plain, {Role::q_norm_b}},
        {"model.layers.{}.self_attn.k_layernorm.weight", Layout::plain, {Role::k_norm_w}},
        {"model.layers.{}.self_attn.k_layernorm.bias", Layout::plain, {Role::k_norm_b}},
        {"model.layers.{}.self_attn.dense.weight", Layout::plain, {Role::o_w}},
        {"model.layers.{}.self_attn.dense.bias", Layout::plain, {Role::o_b}},
        {"model.layers.{}.mlp.fc1.weight", Layout::plain, {Role::up_w}},
        {"model.layers.{}.mlp.fc1.bias", Layout::plain, {Role::up_b}},
        {"model.layers.{}.mlp.fc2.weight", Layout::plain, {Role::down_w}},
        {"model.layers.{}.mlp.fc2.bias", Layout::plain, {Role::down_b}},
        {"model.final_layernorm.weight", Layout::plain, {Role::final_norm_w}},
        {"model.final_layernorm.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
        {"lm_head.bias", Layout::plain, {Role::lm_head_b}},
    },
    "model.",
    {".rotary_emb.inv_freq"}};

const Family kPhi3Family = {
    {"phi3"},
    {"Phi3ForCausalLM"},
    parse_phi3,
    {
        {"model.embed_tokens.weight", Layout::plain, {Role::token_embed}},
        {"model.layers.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
        {"model.layers.{}.self_attn.qkv_proj.weight", Layout::thirds, {Role::q_w, Role::k_w, Role::v_w}},
        {"model.layers.{}.self_attn.o_proj.weight", Layout::plain, {Role::o_w}},
        {"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
        {"model.layers.{}.mlp.gate_up_proj.weight", Layout::halves, {Role::gate_w, Role::up_w}},
        {"model.layers.{}.mlp.down_proj.weight", Layout::plain, {Role::down_w}},
        {"model.norm.weight", Layout::plain, {Role::final_norm_w}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "model.",
    {".rotary_emb.inv_freq"}};

}  // namespace thimble
