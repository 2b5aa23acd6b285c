// Llama (SmolLM goes by its name), Mistral, Qwen2 and Qwen3: RMSNorm, SwiGLU, rotary positions, separate projections. They
// differ in biases, windows and the norm on queries and keys.
#include "models/families.h"

namespace thimble {
namespace {

void parse_common(const JsonObject& json, ModelConfig* c, int64_t kv_heads = 0) {
  parse_sizes(json, c, kv_heads);
  c->norm_eps = json.get_double("rms_norm_eps", 1e-6, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->tied = json.get_bool("tie_word_embeddings", false);
}

void parse_llama(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  parse_rope(json, "rope_theta", c);
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  c->mlp_bias = json.get_bool("mlp_bias", false);
}

void parse_mistral(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c, 8);
  parse_rope(json, "rope_theta", c);
  // Absent means the class default; null means no window.
  if (!json.json().contains("sliding_window"))
    c->window = 4096;
  else
    c->window = json.get_int("sliding_window", 0, 1, kMaxDim);
}

void parse_qwen(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c, 32);
  refuse_if_set(json, "use_mrope", "rotary positions of several dimensions");
  if (json.get_bool("use_sliding_window", false)) {
    // Absent fields mean the class defaults; a null window means none.
    c->window = json.get_int("sliding_window", json.json().contains("sliding_window") ? 0 : 4096, 1, kMaxDim);
    c->window_from_layer = json.get_int("max_window_layers", 28, 0, kMaxDim);
    if (c->window > 0) parse_layer_types(json, c);  // newer configs spell out what max_window_layers says
  }
}

void parse_qwen2(const JsonObject& json, ModelConfig* c) {
  parse_qwen(json, c);
  parse_rope(json, "rope_theta", c);
  c->qkv_bias = true;  // hard-wired in this family; o_proj has none
}

void parse_qwen3(const JsonObject& json, ModelConfig* c) {
  parse_qwen(json, c);
  if (c->head_dim == 0) c->head_dim = 128;
  parse_rope(json, "rope_theta", c);
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  c->qk_norm = QkNorm::head;
}

const TensorRule kNorm2 = {"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}};

}  // namespace

const Family kLlamaFamily = {{"llama"}, {"LlamaForCausalLM"}, parse_llama, llama_rules({kNorm2}), "model.", {".rotary_emb.inv_freq"}};
const Family kMistralFamily = {{"mistral"}, {"MistralForCausalLM"}, parse_mistral, llama_rules({kNorm2}), "model.", {".rotary_emb.inv_freq"}};
const Family kQwen2Family = {{"qwen2"}, {"Qwen2ForCausalLM"}, parse_qwen2, llama_rules({kNorm2}), "model.", {".rotary_emb.inv_freq"}};
const Family kQwen3Family = {{"qwen3"},
                             {"Qwen3ForCausalLM"},
                             parse_qwen3,
                             llama_rules({kNorm2,
                                          {"model.layers.{}.self_attn.q_norm.weight", Layout::plain, {Role::q_norm_w}},
                                          {"model.layers.{}.self_attn.k_norm.weight", Layout::plain, {Role::k_norm_w}}}),
                             "model.",
                             {".rotary_emb.inv_freq"}};

}  // namespace thimble
