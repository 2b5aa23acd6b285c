// Llama, Mistral and Qwen2: RMSNorm, SwiGLU, rotary positions, separate projections. They differ in biases and window.
#include <algorithm>

#include "models/families.h"
#include "tensor/error.h"

namespace thimble {
namespace {

void parse_common(const JsonObject& json, ModelConfig* c) {
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("hidden_size", 1, kMaxDim);
  c->intermediate = json.require_int("intermediate_size", 1, kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  c->n_kv_heads = json.get_int("num_key_value_heads", c->n_heads, 1, 1 << 16);
  c->head_dim = json.get_int("head_dim", 0, 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 2048, 1, kMaxDim);
  c->norm_eps = json.get_double("rms_norm_eps", 1e-6, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->tied = json.get_bool("tie_word_embeddings", false);
  parse_rope(json, "rope_theta", c);
}

void parse_llama(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  c->qkv_bias = c->o_bias = json.get_bool("attention_bias", false);
  c->mlp_bias = json.get_bool("mlp_bias", false);
}

void parse_mistral(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  // Absent means the class default; null means no window.
  if (!json.json().contains("sliding_window"))
    c->window = 4096;
  else
    c->window = json.get_int("sliding_window", 0, 1, kMaxDim);
}

void parse_qwen2(const JsonObject& json, ModelConfig* c) {
  parse_common(json, c);
  c->qkv_bias = true;  // hard-wired in this family; o_proj has none
  if (!json.get_bool("use_sliding_window", false)) return;
  // Absent fields mean the class defaults; a null window means none.
  c->window = json.get_int("sliding_window", json.json().contains("sliding_window") ? 0 : 4096, 1, kMaxDim);
  c->window_from_layer = json.get_int("max_window_layers", 28, 0, kMaxDim);
  const nlohmann::json* types = json.find("layer_types");
  if (!types || c->window == 0) return;
  // Newer configs spell out what max_window_layers says. Layers with a window must be the last ones.
  const char* expected = "as many names as there are layers, each full_attention or sliding_attention";
  if (!types->is_array() || static_cast<int64_t>(types->size()) != c->n_layers) json.fail("layer_types", expected);
  c->window_from_layer = c->n_layers;
  for (int64_t l = 0; l < c->n_layers; ++l) {
    const nlohmann::json& type = (*types)[static_cast<size_t>(l)];
    if (type == "sliding_attention")
      c->window_from_layer = std::min(c->window_from_layer, l);
    else if (type != "full_attention")
      json.fail("layer_types", expected);
    else if (c->window_from_layer < l)
      throw Error(ErrorCode::unsupported,
                  json.file() + ": field \"layer_types\": full_attention behind sliding_attention is not supported",
                  "supported: full_attention in the first layers, sliding_attention in all others");
  }
}

const std::vector<TensorRule>& llama_tensors() {
  static const std::vector<TensorRule> rules = {
      {"model.embed_tokens.weight", Layout::plain, {Role::token_embed}},
      {"model.layers.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
      {"model.layers.{}.self_attn.q_proj.weight", Layout::plain, {Role::q_w}},
      {"model.layers.{}.self_attn.q_proj.bias", Layout::plain, {Role::q_b}},
      {"model.layers.{}.self_attn.k_proj.weight", Layout::plain, {Role::k_w}},
      {"model.layers.{}.self_attn.k_proj.bias", Layout::plain, {Role::k_b}},
      {"model.layers.{}.self_attn.v_proj.weight", Layout::plain, {Role::v_w}},
      {"model.layers.{}.self_attn.v_proj.bias", Layout::plain, {Role::v_b}},
      {"model.layers.{}.self_attn.o_proj.weight", Layout::plain, {Role::o_w}},
      {"model.layers.{}.self_attn.o_proj.bias", Layout::plain, {Role::o_b}},
      {"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
      {"model.layers.{}.mlp.gate_proj.weight", Layout::plain, {Role::gate_w}},
      {"model.layers.{}.mlp.gate_proj.bias", Layout::plain, {Role::gate_b}},
      {"model.layers.{}.mlp.up_proj.weight", Layout::plain, {Role::up_w}},
      {"model.layers.{}.mlp.up_proj.bias", Layout::plain, {Role::up_b}},
      {"model.layers.{}.mlp.down_proj.weight", Layout::plain, {Role::down_w}},
      {"model.layers.{}.mlp.down_proj.bias", Layout::plain, {Role::down_b}},
      {"model.norm.weight", Layout::plain, {Role::final_norm_w}},
      {"lm_head.weight", Layout::plain, {Role::lm_head}},
  };
  return rules;
}

}  // namespace

const Family kLlamaFamily = {{"llama"}, {"LlamaForCausalLM"}, parse_llama, llama_tensors(), "model.", {".rotary_emb.inv_freq"}};
const Family kMistralFamily = {{"mistral"}, {"MistralForCausalLM"}, parse_mistral, llama_tensors(), "model.", {".rotary_emb.inv_freq"}};
const Family kQwen2Family = {{"qwen2"}, {"Qwen2ForCausalLM"}, parse_qwen2, llama_tensors(), "model.", {".rotary_emb.inv_freq"}};

}  // namespace thimble
