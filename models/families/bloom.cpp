// Bloom: alibi, a norm on the embeddings, LayerNorm, queries, keys and values fused per head, tanh GELU, biases everywhere.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int(json.has("n_embed") ? "n_embed" : "hidden_size", 1, kMaxDim);
  c->intermediate = 4 * c->hidden;
  c->n_layers = json.require_int(json.has("n_layer") ? "n_layer" : "num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int(json.has("n_head") ? "n_head" : "num_attention_heads", 1, 1 << 16);
  c->max_positions = json.get_int("seq_length", 2048, 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_epsilon", 1e-5, 0, 1);
  c->embed_norm = true;
  c->positions = PositionKind::alibi;
  c->activation = Activation::gelu_tanh;
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = true;
  c->tied = json.get_bool("tie_word_embeddings", true);
  refuse_if_set(json, "apply_residual_connection_post_layernorm", "a residual stream that starts behind the norm");
}

}  // namespace

const Family kBloomFamily = {
    {"bloom"},
    {"BloomForCausalLM"},
    parse,
    {
        {"transformer.word_embeddings.weight", Layout::plain, {Role::token_embed}},
        {"transformer.word_embeddings_layernorm.weight", Layout::plain, {Role::embed_norm_w}},
        {"transformer.word_embeddings_layernorm.bias", Layout::plain, {Role::embed_norm_b}},
        {"transformer.h.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
        {"transformer.h.{}.input_layernorm.bias", Layout::plain, {Role::norm1_b}},
        {"transformer.h.{}.self_attention.query_key_value.weight", Layout::per_head, {Role::q_w, Role::k_w, Role::v_w}},
        {"transformer.h.{}.self_attention.query_key_value.bias", Layout::per_head, {Role::q_b, Role::k_b, Role::v_b}},
        {"transformer.h.{}.self_attention.dense.weight", Layout::plain, {Role::o_w}},
        {"transformer.h.{}.self_attention.dense.bias", Layout::plain, {Role::o_b}},
        {"transformer.h.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
        {"transformer.h.{}.post_attention_layernorm.bias", Layout::plain, {Role::norm2_b}},
        {"transformer.h.{}.mlp.dense_h_to_4h.weight", Layout::plain, {Role::up_w}},
        {"transformer.h.{}.mlp.dense_h_to_4h.bias", Layout::plain, {Role::up_b}},
        {"transformer.h.{}.mlp.dense_4h_to_h.weight", Layout::plain, {Role::down_w}},
        {"transformer.h.{}.mlp.dense_4h_to_h.bias", Layout::plain, {Role::down_b}},
        {"transformer.ln_f.weight", Layout::plain, {Role::final_norm_w}},
        {"transformer.ln_f.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "transformer.",
    {}};

}  // namespace thimble
