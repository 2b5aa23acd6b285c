// Starcoder2: Llama's attention with biases and LayerNorm, a plain MLP with tanh GELU, an optional window.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c, 2);
  c->norm = NormKind::layer;
  c->norm_eps = json.get_double("norm_epsilon", 1e-5, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "gelu_pytorch_tanh");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = json.get_bool("use_bias", true);
  c->window = json.get_int("sliding_window", 0, 1, kMaxDim);
  c->tied = json.get_bool("tie_word_embeddings", true);
  parse_rope(json, "rope_theta", c);
}

}  // namespace

const Family kStarcoder2Family = {
    {"starcoder2"},
    {"Starcoder2ForCausalLM"},
    parse,
    llama_rules({{"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
                 {"model.layers.{}.post_attention_layernorm.bias", Layout::plain, {Role::norm2_b}},
                 {"model.layers.{}.mlp.c_fc.weight", Layout::plain, {Role::up_w}},
                 {"model.layers.{}.mlp.c_fc.bias", Layout::plain, {Role::up_b}},
                 {"model.layers.{}.mlp.c_proj.weight", Layout::plain, {Role::down_w}},
                 {"model.layers.{}.mlp.c_proj.bias", Layout::plain, {Role::down_b}}},
                false),
    "model.",
    {".rotary_emb.inv_freq"}};

}  // namespace thimble
