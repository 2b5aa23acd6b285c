#include "models/shapes.h"

#include <algorithm>
#include <numeric>

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

// Letters to insert, delete or replace to make b of a.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

const std::vector<ModelShape>& model_shapes() {
  static const std::vector<ModelShape> shapes = {
      {"stories260k",
       R"({"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
           "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
           "tie_word_embeddings": true})"},
      {"stories15m",
       R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
           "num_attention_heads": 6, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true})"},
      {"pythia-70m",
       R"({"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048,
           "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 2048, "rotary_pct": 0.25})"},
      {"gpt2",
       R"({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024})"},
      {"opt-125m",
       R"({"model_type": "opt", "vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
           "num_attention_heads": 12, "max_position_embeddings": 2048})"},
      {"llama-134m",
       R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
           "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5})"},
      {"smollm-135m",
       R"({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
           "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
           "rms_norm_eps": 1e-5, "tie_word_embeddings": true})"},
      {"pythia-160m",
       R"({"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 768, "intermediate_size": 3072,
           "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 2048, "rotary_pct": 0.25})"},
      {"opt-350m",
       R"({"model_type": "opt", "vocab_size": 50272, "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
           "num_attention_heads": 16, "max_position_embeddings": 2048, "word_embed_proj_dim": 512,
           "do_layer_norm_before": false})"},
      {"smollm-360m",
       R"({"model_type": "llama", "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560,
           "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5, "max_position_embeddings": 2048,
           "rms_norm_eps": 1e-5, "tie_word_embeddings": true})"},
      {"pythia-410m",
       R"({"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 1024, "intermediate_size": 4096,
           "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 2048, "rotary_pct": 0.25})"},
      {"qwen2.5-0.5b",
       R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
           "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
           "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true})"},
      {"tinyllama-1.1b",
       R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
           "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
           "rms_norm_eps": 1e-5})"},
      {"llama-3.2-1b",
       R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
           "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
           "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
           "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192}})"},
      {"qwen2.5-1.5b",
       R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
           "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
           "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true})"},
      {"gemma-3-270m",
       R"({"model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
           "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
           "max_position_embeddings": 32768, "sliding_window": 512, "query_pre_attn_scalar": 256, "rope_theta": 1000000.0,
           "rope_local_base_freq": 10000.0})"},
      {"bloom-560m",
       R"({"model_type": "bloom", "vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16})"},
      {"qwen3-0.6b",
       R"({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
           "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
           "max_position_embeddings": 40960, "rope_theta": 1000000.0, "tie_word_embeddings": true})"},
      {"gemma-3-1b",
       R"({"model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
           "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
           "max_position_embeddings": 32768, "sliding_window": 512, "query_pre_attn_scalar": 256, "rope_theta": 1000000.0,
           "rope_local_base_freq": 10000.0})"},
      {"starcoderbase-1b",
       R"({"model_type": "gpt_bigcode", "vocab_size": 49152, "n_embd": 2048, "n_layer": 24, "n_head": 16, "n_inner": 8192,
           "n_positions": 8192, "multi_query": true})"},
      {"falcon-rw-1b",
       R"({"model_type": "falcon", "vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 24,
           "num_attention_heads": 32, "multi_query": false, "parallel_attn": false, "alibi": true, "bias": true})"},
      {"phi-1.5",
       R"({"model_type": "phi", "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192,
           "num_hidden_layers": 24, "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5})"},
      {"olmo-2-1b",
       R"({"model_type": "olmo2", "vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192,
           "num_hidden_layers": 16, "num_attention_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
           "rope_theta": 500000.0})"},
      {"stablelm-2-1.6b",
       R"({"model_type": "stablelm", "vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 5632,
           "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
           "use_qkv_bias": true})"},
      {"gemma-2-2b",
       R"({"model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
           "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
           "max_position_embeddings": 8192, "sliding_window": 4096, "query_pre_attn_scalar": 256})"},
      {"phi-2",
       R"({"model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
           "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4})"},
      {"starcoder2-3b",
       R"({"model_type": "starcoder2", "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288,
           "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 16384,
           "rope_theta": 999999.4420358813, "sliding_window": 4096})"},
      {"phi-3-mini",
       R"({"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
           "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
           "original_max_position_embeddings": 4096, "sliding_window": 2047})"},
  };
  return shapes;
}

bool is_model_shape(const std::string& name) {
  for (const ModelShape& shape : model_shapes())
    if (name == shape.name) return true;
  return false;
}

ShapeConfig shape_config(const std::string& name) {
  const ModelShape* nearest = nullptr;
  size_t least = std::max<size_t>(3, name.size() / 2);  // farther away is no misspelling
  std::string list;
  for (const ModelShape& shape : model_shapes()) {
    if (name == shape.name) {
      const std::string file = "shape " + name;
      const nlohmann::json json = parse_json(shape.config, file);
      const JsonObject object(json, file);
      ShapeConfig found;
      found.family = &find_family(object);
      found.config = parse_config(object, *found.family);
      return found;
    }
    const size_t distance = edit_distance(name, shape.name);
    if (distance < least) {
      least = distance;
      nearest = &shape;
    }
    list += (list.empty() ? "" : ", ") + std::string(shape.name);
  }
  throw Error(ErrorCode::usage, "unknown model shape " + quote_for_message(name),
              (nearest ? "did you mean " + std::string(nearest->name) + "? " : std::string()) + "shapes: " + list);
}

}  // namespace thimble
