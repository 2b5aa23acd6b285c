// Cohere (Command R): one LayerNorm without bias before attention and mlp side by side, neighbouring rotary pairs, a tied
// head whose logits are scaled; the large one normalises each head of queries and keys with weights of its own.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c);
  c->norm = NormKind::layer;
  c->norm_eps = json.get_double("layer_norm_eps", 1e-5, 0, 1);
  c->norm_bias = false;
  c->parallel_residual = c->shared_norm = true;
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  if (json.get_bool("use_qk_norm", false)) c->qk_norm = QkNorm::heads;
  c->logit_scale = json.get_double("logit_scale", 0.0625, -1e9, 1e9);
  c->tied = json.get_bool("tie_word_embeddings", true);
  parse_rope(json, "rope_theta", c);
  c->rope.interleaved = c->rope.hf_interleaved = true;
}

}  // namespace

const Family kCohereFamily = {{"cohere"},
                              {"CohereForCausalLM"},
                              parse,
                              llama_rules({{"model.layers.{}.self_attn.q_norm.weight", Layout::head_rows, {Role::q_norm_w}},
                                           {"model.layers.{}.self_attn.k_norm.weight", Layout::head_rows, {Role::k_norm_w}}}),
                              "model.",
                              {".rotary_emb.inv_freq"}};

}  // namespace thimble
