// GPT-2: LayerNorm, tanh GELU, learned positions, Conv1D weights [in, out] with q, k, v fused as thirds.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("n_embd", 1, kMaxDim);
  c->intermediate = json.get_int("n_inner", 4 * c->hidden, 1, 4 * kMaxDim);
  c->n_layers = json.require_int("n_layer", 1, 4096);
  c->n_heads = json.require_int("n_head", 1, 1 << 16);
  c->max_positions = json.get_int("n_positions", json.get_int("n_ctx", 1024, 1, kMaxDim), 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_epsilon", 1e-5, 0, 1);
  c->positions = PositionKind::learned;
  c->activation = parse_activation(json, "activation_function", "gelu_new");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = true;
  c->tied = json.get_bool("tie_word_embeddings", true);
  c->attn_scale_by_head_dim = json.get_bool("scale_attn_weights", true);
  c->attn_scale_by_layer = json.get_bool("scale_attn_by_inverse_layer_idx", false);
  if (json.get_bool("add_cross_attention", false))
    throw Error(ErrorCode::unsupported, json.file() + ": field \"add_cross_attention\": cross attention is not supported",
                "use a decoder-only model");
}

}  // namespace

const Family kGpt2Family = {
    {"gpt2"},
    {"GPT2LMHeadModel"},
    parse,
    {
        {"transformer.wte.weight", Layout::plain, {Role::token_embed}},
        {"transformer.wpe.weight", Layout::plain, {Role::pos_embed}},
        {"transformer.h.{}.ln_1.weight", Layout::plain, {Role::norm1_w}},
        {"transformer.h.{}.ln_1.bias", Layout::plain, {Role::norm1_b}},
        {"transformer.h.{}.attn.c_attn.weight", Layout::thirds_transposed, {Role::q_w, Role::k_w, Role::v_w}},
        {"transformer.h.{}.attn.c_attn.bias", Layout::thirds, {Role::q_b, Role::k_b, Role::v_b}},
        {"transformer.h.{}.attn.c_proj.weight", Layout::transposed, {Role::o_w}},
        {"transformer.h.{}.attn.c_proj.bias", Layout::plain, {Role::o_b}},
        {"transformer.h.{}.ln_2.weight", Layout::plain, {Role::norm2_w}},
        {"transformer.h.{}.ln_2.bias", Layout::plain, {Role::norm2_b}},
        {"transformer.h.{}.mlp.c_fc.weight", Layout::transposed, {Role::up_w}},
        {"transformer.h.{}.mlp.c_fc.bias", Layout::plain, {Role::up_b}},
        {"transformer.h.{}.mlp.c_proj.weight", Layout::transposed, {Role::down_w}},
        {"transformer.h.{}.mlp.c_proj.bias", Layout::plain, {Role::down_b}},
        {"transformer.ln_f.weight", Layout::plain, {Role::final_norm_w}},
        {"transformer.ln_f.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "transformer.",
    {".attn.bias", ".attn.masked_bias"}};

}  // namespace thimble
