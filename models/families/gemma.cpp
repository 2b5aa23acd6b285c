// Gemma, Gemma 2 and the text models of Gemma 3: RMSNorm with 1 + w, scaled embeddings, tanh GELU in the gate, a tied head.
// Gemma 2 adds norms behind the branches, softcaps and a window in every other layer; Gemma 3 norms on queries and keys
// and rotary settings of its own for layers with a window, and drops the softcaps.
#include <cmath>

#include "models/families.h"
#include "tensor/error.h"

namespace thimble {
namespace {

void parse_common(const JsonObject& json, ModelConfig* c, int64_t kv_heads) {
  parse_sizes(json, c, kv_heads);
  if (c->head_dim == 0) c->head_dim = 256;
  c->norm_eps = json.get_double("rms_norm_eps", 1e-6, 0, 1);
  c->norm_offset = 1;
  c->embed_scale = round_to_dtype(json, std::sqrt(double(c->hidden)));
  c->activation = parse_activation(json, "hidden_activation", "gelu_pytorch_tanh");
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  c->tied = json.get_bool("tie_word_embeddings", true);
  refuse_if_set(json, "use_bidirectional_attention", "attention to later tokens");
}

void parse_gemma(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c, 16);
  // hidden_act says "gelu" in old files, which was always meant to be the tanh form; transformers 5 has only this field.
  if (!json.json().contains("hidden_activation") && json.object("rope_parameters"))
    c->activation = parse_activation(json, "hidden_act", "gelu_pytorch_tanh");
  parse_rope(json, "rope_theta", c);
}

// What Gemma 2 and 3 share. pattern: without layer_types, every so many layers one sees everything.
void parse_newer(const JsonObject& json, ModelConfig* c, double attn_softcap, double logit_softcap, int64_t pattern) {
  parse_common(json, c, 4);
  c->branch_norm = true;
  c->query_pre_attn_scalar = json.get_double("query_pre_attn_scalar", 256, 1e-6, 1e9);
  c->attn_softcap = get_double_or_null(json, "attn_logit_softcapping", attn_softcap, 0, 1e9);
  c->logit_softcap = get_double_or_null(json, "final_logit_softcapping", logit_softcap, 0, 1e9);
  c->window = json.get_int("sliding_window", json.json().contains("sliding_window") ? 0 : 4096, 1, kMaxDim);
  if (parse_layer_types(json, c)) return;
  for (int64_t l = 0; l < c->n_layers; ++l) c->window_layers.push_back((l + 1) % pattern != 0);
}

void parse_gemma2(const JsonObject& json, ModelConfig* c) {
  parse_newer(json, c, 50, 30, 2);
  parse_rope(json, "rope_theta", c);
}

void parse_gemma3(const JsonObject& json, ModelConfig* c) {
  const int64_t pattern = json.get_int("sliding_window_pattern", json.get_int("_sliding_window_pattern", 6, 1, kMaxDim), 1, kMaxDim);
  parse_newer(json, c, 0, 0, pattern);
  c->qk_norm = QkNorm::head;
  c->scale_prompts = false;
  c->rope.theta = 1e6;
  parse_rope(json, "rope_theta", c);
  if (c->local_rope) return;
  c->local_rope = true;
  c->rope_local.theta = json.get_double("rope_local_base_freq", 10000, 1.0 + 1e-6, 1e15);
  c->rope_local.dims = c->rope.dims;
}

const TensorRule kGemma2Norms[] = {
    {"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::branch_norm1_w}},
    {"model.layers.{}.pre_feedforward_layernorm.weight", Layout::plain, {Role::norm2_w}},
    {"model.layers.{}.post_feedforward_layernorm.weight", Layout::plain, {Role::branch_norm2_w}},
    {"model.layers.{}.self_attn.q_norm.weight", Layout::plain, {Role::q_norm_w}},
    {"model.layers.{}.self_attn.k_norm.weight", Layout::plain, {Role::k_norm_w}},
};
std::vector<TensorRule> newer_rules() { return llama_rules({std::begin(kGemma2Norms), std::end(kGemma2Norms)}); }

}  // namespace

const Family kGemmaFamily = {{"gemma"},
                             {"GemmaForCausalLM"},
                             parse_gemma,
                             llama_rules({{"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}}}),
                             "model.",
                             {".rotary_emb.inv_freq"}};
const Family kGemma2Family = {{"gemma2"}, {"Gemma2ForCausalLM"}, parse_gemma2, newer_rules(), "model.", {".rotary_emb.inv_freq"}};
const Family kGemma3Family = {{"gemma3_text"}, {"Gemma3ForCausalLM"}, parse_gemma3, newer_rules(), "model.", {".rotary_emb.inv_freq"}};

}  // namespace thimble
