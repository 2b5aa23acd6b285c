// Mixtral: Mistral with experts. The files of transformers 5 may hold one tensor for all experts of a layer.
#include "models/families.h"

namespace thimble {
namespace {

void parse(const JsonObject& json, ModelConfig* c) {
  parse_sizes(json, c, 8);
  c->norm_eps = json.get_double("rms_norm_eps", 1e-5, 0, 1);
  c->activation = parse_activation(json, "hidden_act", "silu");
  c->tied = json.get_bool("tie_word_embeddings", false);
  c->window = json.get_int("sliding_window", 0, 1, kMaxDim);
  c->n_experts = json.get_int("num_local_experts", 8, 1, kMaxExperts);
  c->n_experts_used = json.get_int("num_experts_per_tok", 2, 1, kMaxExperts);
  c->rope.theta = 1e6;
  parse_rope(json, "rope_theta", c);
}

std::vector<TensorRule> rules() {
  const char* const both = "model.layers.{}.mlp.experts.gate_up_proj";
  const auto expert = [](const char* name, Role role, TensorRule::Other other) {
    return TensorRule{name, Layout::plain, {role}, nullptr, other};
  };
  return llama_rules({
      {"model.layers.{}.post_attention_layernorm.weight", Layout::plain, {Role::norm2_w}},
      {"model.layers.{}.block_sparse_moe.gate.weight", Layout::plain, {Role::router_w}, nullptr, {"model.layers.{}.mlp.gate.weight"}},
      expert("model.layers.{}.block_sparse_moe.experts.{}.w1.weight", Role::expert_gate_w, {both, 0, 2}),
      expert("model.layers.{}.block_sparse_moe.experts.{}.w2.weight", Role::expert_down_w, {"model.layers.{}.mlp.experts.down_proj", 0, 1}),
      expert("model.layers.{}.block_sparse_moe.experts.{}.w3.weight", Role::expert_up_w, {both, 1, 2}),
  }, false);
}

}  // namespace

const Family kMixtralFamily = {{"mixtral"}, {"MixtralForCausalLM"}, parse, rules(), "model.", {".rotary_emb.inv_freq"}};

}  // namespace thimble
