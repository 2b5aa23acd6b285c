// GPT-J: one LayerNorm before attention and mlp side by side, neighbouring rotary pairs over part of each head, no biases in
// attention, a head with a bias.
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
  c->max_positions = json.get_int("n_positions", 2048, 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_epsilon", 1e-5, 0, 1);
  c->parallel_residual = c->shared_norm = true;
  c->activation = parse_activation(json, "activation_function", "gelu_new");
  c->gated_mlp = false;
  c->mlp_bias = c->head_bias = true;
  c->tied = json.get_bool("tie_word_embeddings", false);
  if (json.json().contains("rotary_dim") && !json.has("rotary_dim")) json.fail("rotary_dim", "the rotated entries of a head");
  c->rope.dims = json.get_int("rotary_dim", 64, 1, 1 << 16);
  c->rope.interleaved = c->rope.hf_interleaved = true;
}

}  // namespace

const Family kGptjFamily = {
    {"gptj"},
    {"GPTJForCausalLM"},
    parse,
    {
        {"transformer.wte.weight", Layout::plain, {Role::token_embed}},
        {"transformer.h.{}.ln_1.weight", Layout::plain, {Role::norm1_w}},
        {"transformer.h.{}.ln_1.bias", Layout::plain, {Role::norm1_b}},
        {"transformer.h.{}.attn.q_proj.weight", Layout::plain, {Role::q_w}},
        {"transformer.h.{}.attn.k_proj.weight", Layout::plain, {Role::k_w}},
        {"transformer.h.{}.attn.v_proj.weight", Layout::plain, {Role::v_w}},
        {"transformer.h.{}.attn.out_proj.weight", Layout::plain, {Role::o_w}},
        {"transformer.h.{}.mlp.fc_in.weight", Layout::plain, {Role::up_w}},
        {"transformer.h.{}.mlp.fc_in.bias", Layout::plain, {Role::up_b}},
        {"transformer.h.{}.mlp.fc_out.weight", Layout::plain, {Role::down_w}},
        {"transformer.h.{}.mlp.fc_out.bias", Layout::plain, {Role::down_b}},
        {"transformer.ln_f.weight", Layout::plain, {Role::final_norm_w}},
        {"transformer.ln_f.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
        {"lm_head.bias", Layout::plain, {Role::lm_head_b}},
    },
    "transformer.",
    {".attn.bias", ".attn.masked_bias", ".attn.embed_positions"}};

}  // namespace thimble
