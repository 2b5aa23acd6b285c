#include "tools/cli/model_output.h"

#include <filesystem>
#include <set>
#include <vector>

#include "models/gguf_model.h"
#include "models/io/json.h"
#include "models/unpack.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::cli {
namespace {

bool is_query_or_key(const std::string& name) {
  return name.find(".q_proj.weight") != std::string::npos || name.find(".k_proj.weight") != std::string::npos;
}

const char* dtype_name(SafetensorsDtype dtype) {
  return dtype == SafetensorsDtype::f16 ? "float16" : dtype == SafetensorsDtype::bf16 ? "bfloat16" : "float32";
}

}  // namespace

nlohmann::ordered_json base_config(const Model& model) {
  if (const std::string gguf = gguf_path(model.path); !gguf.empty()) return gguf_config(GgufFile(gguf));
  if (!model.llama2c) {
    const std::string path = is_directory(model.path) ? join_path(model.path, "config.json") : model.path;
    const nlohmann::json checked = parse_json_file(path);
    nlohmann::ordered_json config = nlohmann::ordered_json::parse(read_file(path));
    for (const char* key : {"quantization_config", "compression_config"}) config.erase(key);
    return config;
  }
  const ModelConfig& c = model.config;
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden},
          {"intermediate_size", c.intermediate},
          {"num_hidden_layers", c.n_layers},
          {"num_attention_heads", c.n_heads},
          {"num_key_value_heads", c.n_kv_heads},
          {"max_position_embeddings", c.max_positions},
          {"rms_norm_eps", c.norm_eps},
          {"rope_theta", c.rope.theta},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", c.tied},
          {"bos_token_id", c.bos_id},
          {"eos_token_id", c.eos_ids.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(c.eos_ids[0])}};
}

int64_t write_model(const std::string& dir, const Model& model, const KernelTable& kernels,
                    nlohmann::ordered_json config, SafetensorsDtype dtype, const Adapter* adapter) {
  make_directories(dir);
  // "dtype" is what newer versions of transformers write.
  config.erase("dtype");
  config["torch_dtype"] = dtype_name(dtype);
  write_file(join_path(dir, "config.json"), config.dump(2) + "\n");

  SafetensorsWriter writer(join_path(dir, "model.safetensors"));
  writer.set_metadata("format", "pt");
  export_tensors(model, kernels, ExportWhat::weights,
                 [&](const ExportedTensor& t) { writer.declare(t.name, dtype, t.shape); });
  std::string bytes;
  const auto write = [&](ExportedTensor t) {
    if (is_query_or_key(t.name)) order_rotary_rows(model.config, &t);
    bytes.resize(t.data.size() * size_t(safetensors_dtype_bits(dtype)) / 8);
    write_floats(kernels, t.data.data(), static_cast<int64_t>(t.data.size()), dtype, bytes.data());
    writer.write(t.name, bytes.data(), bytes.size());
  };
  std::set<std::string> merged;
  if (adapter)
    adapter->merged(model, kernels, [&](const ExportedTensor& t) {
      merged.insert(t.name);
      write(t);
    });
  export_tensors(model, kernels, ExportWhat::weights, [&](const ExportedTensor& t) {
    if (merged.count(t.name) == 0) write(t);
  });
  writer.finish();
  return static_cast<int64_t>(merged.size());
}

bool same_path(const std::string& a, const std::string& b) {
  std::error_code failed;
  return std::filesystem::equivalent(a, b, failed) && !failed;
}

}  // namespace thimble::cli
