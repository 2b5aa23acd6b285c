// GPT-BigCode (StarCoder 1, SantaCoder): GPT-2 with plain linears and one key/value head, or queries, keys and values fused
// per head.
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
  c->n_kv_heads = json.get_bool("multi_query", true) ? 1 : c->n_heads;
  c->max_positions = json.get_int("n_positions", 1024, 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_epsilon", 1e-5, 0, 1);
  c->positions = PositionKind::learned;
  c->activation = parse_activation(json, "activation_function", "gelu_pytorch_tanh");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = true;
  c->tied = json.get_bool("tie_word_embeddings", true);
  c->attn_scale_by_head_dim = json.get_bool("scale_attn_weights", true);
  refuse_if_set(json, "add_cross_attention", "cross attention");
}

}  // namespace

const Family kGptBigcodeFamily = {
    {"gpt_bigcode"},
    {"GPTBigCodeForCausalLM"},
    parse,
    {
        {"transformer.wte.weight", Layout::plain, {Role::token_embed}},
        {"transformer.wpe.weight", Layout::plain, {Role::pos_embed}},
        {"transformer.h.{}.ln_1.weight", Layout::plain, {Role::norm1_w}},
        {"transformer.h.{}.ln_1.bias", Layout::plain, {Role::norm1_b}},
        {"transformer.h.{}.attn.c_attn.weight", Layout::per_head, {Role::q_w, Role::k_w, Role::v_w}},
        {"transformer.h.{}.attn.c_attn.bias", Layout::per_head, {Role::q_b, Role::k_b, Role::v_b}},
        {"transformer.h.{}.attn.c_proj.weight", Layout::plain, {Role::o_w}},
        {"transformer.h.{}.attn.c_proj.bias", Layout::plain, {Role::o_b}},
        {"transformer.h.{}.ln_2.weight", Layout::plain, {Role::norm2_w}},
        {"transformer.h.{}.ln_2.bias", Layout::plain, {Role::norm2_b}},
        {"transformer.h.{}.mlp.c_fc.weight", Layout::plain, {Role::up_w}},
        {"transformer.h.{}.mlp.c_fc.bias", Layout::plain, {Role::up_b}},
        {"transformer.h.{}.mlp.c_proj.weight", Layout::plain, {Role::down_w}},
        {"transformer.h.{}.mlp.c_proj.bias", Layout::plain, {Role::down_b}},
        {"transformer.ln_f.weight", Layout::plain, {Role::final_norm_w}},
        {"transformer.ln_f.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "transformer.",
    {".attn.bias", ".attn.masked_bias"}};

}  // namespace thimble
