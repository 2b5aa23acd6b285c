// GPT-NeoX (Pythia): LayerNorm with bias, fused query_key_value per head, partial rotary, parallel or sequential residual.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("hidden_size", 1, kMaxDim);
  c->intermediate = json.require_int("intermediate_size", 1, kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 2048, 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_eps", 1e-5, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "gelu");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", true);
  c->mlp_bias = true;
  c->parallel_residual = json.get_bool("use_parallel_residual", true);
  c->tied = json.get_bool("tie_word_embeddings", false);
  parse_rope(json, json.has("rotary_emb_base") ? "rotary_emb_base" : "rope_theta", c, json.get_double("rotary_pct", 0.25, 0, 1));
}

}  // namespace

const Family kNeoxFamily = {
    {"gpt_neox"},
    {"GPTNeoXForCausalLM"},
    parse,
    {
        {"gpt_neox.embed_in.weight", Layout::plain, {Role::token_embed}},
        {"gpt_neox.layers.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
        {"gpt_neox.layers.{}.input_layernorm.bias", Layout::plain, {Role::norm1_b}},
        {"gpt_neox.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
        {"gpt_neox.layers.{}.post_attention_layernorm.bias", Layout::plain, {Role::norm2_b}},
        {"gpt_neox.layers.{}.attention.query_key_value.weight", Layout::per_head, {Role::q_w, Role::k_w, Role::v_w}},
        {"gpt_neox.layers.{}.attention.query_key_value.bias", Layout::per_head, {Role::q_b, Role::k_b, Role::v_b}},
        {"gpt_neox.layers.{}.attention.dense.weight", Layout::plain, {Role::o_w}},
        {"gpt_neox.layers.{}.attention.dense.bias", Layout::plain, {Role::o_b}},
        {"gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", Layout::plain, {Role::up_w}},
        {"gpt_neox.layers.{}.mlp.dense_h_to_4h.bias", Layout::plain, {Role::up_b}},
        {"gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", Layout::plain, {Role::down_w}},
        {"gpt_neox.layers.{}.mlp.dense_4h_to_h.bias", Layout::plain, {Role::down_b}},
        {"gpt_neox.final_layer_norm.weight", Layout::plain, {Role::final_norm_w}},
        {"gpt_neox.final_layer_norm.bias", Layout::plain, {Role::final_norm_b}},
        {"embed_out.weight", Layout::plain, {Role::lm_head}},
    },
    "gpt_neox.",
    {".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"}};

}  // namespace thimble
