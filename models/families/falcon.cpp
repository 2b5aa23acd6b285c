// Falcon: exact GELU, queries, keys and values fused per key/value head. The 7B style shares one norm between attention and
// mlp, which run side by side, and has one key/value head; the new architecture (40B) has a norm for each and several;
// the RW models are sequential with a key/value head per query head, and use alibi.
#include "models/families.h"
#include "tensor/error.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int(json.has("n_embed") ? "n_embed" : "hidden_size", 1, kMaxDim);
  c->intermediate = json.get_int("ffn_hidden_size", 4 * c->hidden, 1, 4 * kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 2048, 1, kMaxDim);
  c->norm_eps = json.get_double("layer_norm_epsilon", 1e-5, 0, 1);
  c->activation = parse_activation(json, "activation", "gelu");
  c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = json.get_bool("bias", false);
  c->tied = json.get_bool("tie_word_embeddings", true);
  const bool grouped = json.get_bool("new_decoder_architecture", false);
  if (grouped)
    c->n_kv_heads = json.get_int("num_kv_heads", c->n_heads, 1, 1 << 16);
  else
    c->n_kv_heads = json.get_bool("multi_query", true) ? 1 : c->n_heads;
  c->parallel_residual = json.get_bool("parallel_attn", true);
  const int64_t norms = json.get_int("num_ln_in_parallel_attn", grouped ? 2 : 1, 1, 2);
  if ((grouped && !c->parallel_residual) || (!grouped && norms == 2))
    throw Error(ErrorCode::unsupported,
                json.file() + ": fields \"new_decoder_architecture\", \"parallel_attn\" and \"num_ln_in_parallel_attn\": "
                              "this combination is not supported",
                "supported: the new architecture in parallel with one or two norms, the old one with one norm or sequential");
  c->shared_norm = c->parallel_residual && norms == 1;
  if (json.get_bool("alibi", false)) {
    c->positions = PositionKind::alibi;
    c->alibi_scaled = c->alibi_bf16 = true;
  } else {
    parse_rope(json, "rope_theta", c);
  }
}

bool two_norms(const ModelConfig& c) { return c.parallel_residual && !c.shared_norm; }
bool other_norms(const ModelConfig& c) { return !two_norms(c); }

}  // namespace

const Family kFalconFamily = {
    {"falcon"},
    {"FalconForCausalLM"},
    parse,
    {
        {"transformer.word_embeddings.weight", Layout::plain, {Role::token_embed}},
        {"transformer.h.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}, other_norms},
        {"transformer.h.{}.input_layernorm.bias", Layout::plain, {Role::norm1_b}, other_norms},
        {"transformer.h.{}.ln_attn.weight", Layout::plain, {Role::norm1_w}, two_norms},
        {"transformer.h.{}.ln_attn.bias", Layout::plain, {Role::norm1_b}, two_norms},
        {"transformer.h.{}.self_attention.query_key_value.weight", Layout::per_head, {Role::q_w, Role::k_w, Role::v_w}},
        {"transformer.h.{}.self_attention.query_key_value.bias", Layout::per_head, {Role::q_b, Role::k_b, Role::v_b}},
        {"transformer.h.{}.self_attention.dense.weight", Layout::plain, {Role::o_w}},
        {"transformer.h.{}.self_attention.dense.bias", Layout::plain, {Role::o_b}},
        {"transformer.h.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}, other_norms},
        {"transformer.h.{}.post_attention_layernorm.bias", Layout::plain, {Role::norm2_b}, other_norms},
        {"transformer.h.{}.ln_mlp.weight", Layout::plain, {Role::norm2_w}, two_norms},
        {"transformer.h.{}.ln_mlp.bias", Layout::plain, {Role::norm2_b}, two_norms},
        {"transformer.h.{}.mlp.dense_h_to_4h.weight", Layout::plain, {Role::up_w}},
        {"transformer.h.{}.mlp.dense_h_to_4h.bias", Layout::plain, {Role::up_b}},
        {"transformer.h.{}.mlp.dense_4h_to_h.weight", Layout::plain, {Role::down_w}},
        {"transformer.h.{}.mlp.dense_4h_to_h.bias", Layout::plain, {Role::down_b}},
        {"transformer.ln_f.weight", Layout::plain, {Role::final_norm_w}},
        {"transformer.ln_f.bias", Layout::plain, {Role::final_norm_b}},
        {"lm_head.weight", Layout::plain, {Role::lm_head}},
    },
    "transformer.",
    {".rotary_emb.inv_freq"}};

}  // namespace thimble
