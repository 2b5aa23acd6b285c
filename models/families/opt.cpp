// OPT: LayerNorm, ReLU, learned positions shifted by two rows. The 350M style is post-norm, without a final norm, and
// projects narrow embeddings to the hidden width and back.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("hidden_size", 1, kMaxDim);
  c->embed_dim = json.get_int("word_embed_proj_dim", c->hidden, 1, kMaxDim);
  c->intermediate = json.require_int("ffn_dim", 1, kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 2048, 1, kMaxDim);
  c->norm_eps = 1e-5;  // not in the config
  c->norm_affine = json.get_bool("layer_norm_elementwise_affine", true);
  c->post_norm = !json.get_bool("do_layer_norm_before", true);
  c->final_norm = !c->post_norm && !json.get_bool("_remove_final_layer_norm", false);
  c->positions = PositionKind::learned;
  c->position_offset = 2;
  c->activation = parse_activation(json, "activation_function", "relu");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = json.get_bool("enable_bias", true);
  c->tied = json.get_bool("tie_word_embeddings", true);
}

}  // namespace

const Family kOptFamily = {
    {"opt"},
    {"OPTForCausalLM"},
    parse,
    {
        {"model.decoder.embed_tokens.weight", Layout::plain, {Role::token_embed}},
        {"model.decoder.embed_positions.weight", Layout::plain, {Role::pos_embed}},
        {"model.decoder.project_in.weight", Layout::plain, {Role::project_in}},
        {"model.decoder.project_out.weight", Layout::plain, {Role::project_out}},
        {"model.decoder.layers.{}.self_attn_layer_norm.weight", Layout::plain, {Role::norm1_w}},
        {"model.decoder.layers.{}.self_attn_layer_norm.bias", Layout::plain, {Role::norm1_b}},
        {"model.decoder.layers.{}.self_attn.q_proj.weight", Layout::plain, {Role::q_w}},
        {"model.decoder.layers.{}.self_attn.q_proj.bias", Layout::plain, {Role::q_b}},
        {"model.decoder.layers.{}.self_attn.k_proj.weight", Layout::plain, {Role::k_w}},
        {"model.decoder.layers.{}.self_attn.k_proj.bias", Layout::plain, {Role::k_b}},
        {"model.decoder.layers.{}.self_attn.v_proj.weight", Layout::plain, {Role::v_w}},
        {"model.decoder.layers.{}.self_attn.v_proj.bias", Layout::plain, {Role::v_b}},
        {"model.decoder.layers.{}.self_attn.out_proj.weight", Layout::plain, {Role::o_w}},
        {"model.decoder.layers.{}.self_attn.out_proj.bias", Layout::plain, {Role::o_b}},
        {"model.decoder.layers.{}.final_layer_norm.weight", Layout::plain, {Role::norm2_w}},
        {"model.decoder.layers.{}.final_layer_norm.bias", Layout::plain, {Role::norm2_b}},
        {"model.decoder.layers.{}.fc1.weight", Layout::plain, {Role::up_w}},
        {"model.decoder.layers.{}.fc1.bias", Layout::plain, {Role::up_b}},
        {"model.decoder.layers.{}.fc2.weight", Layout::plain, {Role::down_w}},
        {"model.decoder.layers.{}.fc2.bias", Layout::plain, {Role::down_b}},
        {"model.decoder.final_layer_norm.weight", Layout::plain, {Role::final_norm_w}},
        {"model.decoder.final_layer_norm.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "model.",
    {".decoder.version"}};

}  // namespace thimble
