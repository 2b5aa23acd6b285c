// A small model of every family and style, as the config.json that Hugging Face would write, and random weights for it.
#pragma once

#include "models/init.h"
#include "tensor/rng.h"
#include "tests/models/support.h"

namespace thimble::models_test {

struct SmallFamily {
  const char* name;
  const char* config;
};

inline const std::vector<SmallFamily>& small_families() {
  static const std::vector<SmallFamily> list = {
      {"llama",
       R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
           "rope_theta": 10000.0, "tie_word_embeddings": false})"},
      {"mixtral",
       R"({"model_type": "mixtral", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4,
           "num_experts_per_tok": 2, "sliding_window": null})"},
      {"qwen2, windows in some layers",
       R"({"model_type": "qwen2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_sliding_window": true,
           "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]})"},
      {"qwen3",
       R"({"model_type": "qwen3", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
           "rope_theta": 1000000, "tie_word_embeddings": true})"},
      {"gemma",
       R"({"model_type": "gemma", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64})"},
      {"gemma2",
       R"({"model_type": "gemma2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
           "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0})"},
      {"gemma3",
       R"({"model_type": "gemma3_text", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
           "sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16, "rope_theta": 1000000,
           "rope_local_base_freq": 10000, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})"},
      {"phi",
       R"({"model_type": "phi", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "max_position_embeddings": 64, "partial_rotary_factor": 0.5})"},
      {"phi, norms on queries and keys",
       R"({"model_type": "phi", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "qk_layernorm": true})"},
      {"phi3, longrope",
       R"({"model_type": "phi3", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
           "original_max_position_embeddings": 12, "sliding_window": 9,
           "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.5, 2.0, 4.0, 6.0]}})"},
      {"stablelm",
       R"({"model_type": "stablelm", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "use_qkv_bias": true})"},
      {"stablelm, 12B style",
       R"({"model_type": "stablelm", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "qk_layernorm": true,
           "use_parallel_residual": true})"},
      {"gpt_neox",
       R"({"model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "max_position_embeddings": 64, "rotary_pct": 0.5})"},
      {"opt, 350M style",
       R"({"model_type": "opt", "vocab_size": 61, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 24, "do_layer_norm_before": false})"},
      {"gpt2",
       R"({"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 64})"},
      {"gptj",
       R"({"model_type": "gptj", "vocab_size": 61, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 64,
           "rotary_dim": 4, "tie_word_embeddings": false})"},
      {"gpt_bigcode",
       R"({"model_type": "gpt_bigcode", "vocab_size": 61, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4,
           "n_positions": 64, "multi_query": true})"},
      {"gpt_bigcode, a key/value head per head",
       R"({"model_type": "gpt_bigcode", "vocab_size": 61, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4,
           "n_positions": 64, "multi_query": false})"},
      {"falcon, 7B style",
       R"({"model_type": "falcon", "vocab_size": 61, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "multi_query": true, "parallel_attn": true, "new_decoder_architecture": false})"},
      {"falcon, 40B style",
       R"({"model_type": "falcon", "vocab_size": 61, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": true})"},
      {"falcon, 11B style",
       R"({"model_type": "falcon", "vocab_size": 61, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": true, "num_ln_in_parallel_attn": 1})"},
      {"falcon, RW style",
       R"({"model_type": "falcon", "vocab_size": 61, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "multi_query": false, "parallel_attn": false, "alibi": true, "bias": true})"},
      {"bloom",
       R"({"model_type": "bloom", "vocab_size": 61, "hidden_size": 32, "n_layer": 3, "n_head": 4})"},
      {"olmo",
       R"({"model_type": "olmo", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "clip_qkv": 0.9})"},
      {"olmo2",
       R"({"model_type": "olmo2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})"},
      {"starcoder2",
       R"({"model_type": "starcoder2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 7})"},
      {"cohere",
       R"({"model_type": "cohere", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "logit_scale": 0.25})"},
      {"cohere, large style",
       R"({"model_type": "cohere", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_qk_norm": true,
           "logit_scale": 0.8})"},
  };
  return list;
}

// Weights of a size that makes every part of the model matter; f32, writable, with gradients when asked for.
inline Model small_model(const SmallFamily& family, const ScratchDir& dir, bool gradients = false) {
  write_json(dir / "config.json", nlohmann::json::parse(family.config));
  Model model = init_model(dir / "config.json", 1);
  Philox rng(7, 11);
  for_each_weight(model.weights, [&](Role role, int64_t, Weight& w) {
    auto* data = static_cast<float*>(const_cast<void*>(w.data));
    const bool norm = std::string(role_name(role)).find("norm") != std::string::npos;
    const double spread = role_shape(model.config, role).vector ? 0.2 : role == Role::token_embed ? 1.0 : 0.3;
    // A norm's weight keeps its own start, which knows of an offset.
    for (int64_t i = 0; i < w.numel(); ++i) data[i] = static_cast<float>((norm ? double(data[i]) : 0.0) + spread * rng.normal());
  });
  if (gradients) enable_gradients(model);
  return model;
}

// Its model.safetensors, f32, beside the config.json that small_model() wrote.
inline void save_weights(const Model& model, const KernelTable& kernels, const std::string& dir) {
  SafetensorsWriter writer(dir + "/model.safetensors");
  export_tensors(model, kernels, ExportWhat::weights,
                 [&](const ExportedTensor& t) { writer.declare(t.name, SafetensorsDtype::f32, t.shape); });
  export_tensors(model, kernels, ExportWhat::weights, [&](const ExportedTensor& t) {
    writer.write(t.name, t.data.data(), t.data.size() * sizeof(float));
  });
  writer.finish();
}

}  // namespace thimble::models_test
