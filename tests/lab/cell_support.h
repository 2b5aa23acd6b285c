// A small random model with the world's tokenizer, as files, and cells over small worlds.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "models/init.h"
#include "models/io/safetensors.h"
#include "models/tokenizer/tokenizer.h"
#include "tests/scratch_dir.h"
#include "tools/lab/cell.h"
#include "tools/lab/world/lexicon.h"

namespace thimble::lab_test {

using testing::ScratchDir;

struct SmallModel {
  int64_t hidden = 32, inter = 64, layers = 2, heads = 2, kv_heads = 1, positions = 512;
  uint64_t seed = 3;
  double scale = 8;  // of the matrices' initial values: a random model with opinions
};

inline void write_model(const std::string& dir, const SmallModel& m = {}) {
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/tokenizer.json") << lab::world_tokenizer_json();
  const Tokenizer tokenizer = Tokenizer::load(dir);
  const nlohmann::json config = {{"model_type", "llama"},
                                 {"architectures", {"LlamaForCausalLM"}},
                                 {"vocab_size", tokenizer.vocab_size()},
                                 {"hidden_size", m.hidden},
                                 {"intermediate_size", m.inter},
                                 {"num_hidden_layers", m.layers},
                                 {"num_attention_heads", m.heads},
                                 {"num_key_value_heads", m.kv_heads},
                                 {"max_position_embeddings", m.positions},
                                 {"rms_norm_eps", 1e-5},
                                 {"hidden_act", "silu"},
                                 {"tie_word_embeddings", true},
                                 {"bos_token_id", tokenizer.bos_id()},
                                 {"eos_token_id", tokenizer.eos_id()}};
  std::ofstream(dir + "/config.json") << config.dump(1);
  const Model model = init_model(dir + "/config.json", m.seed);
  const KernelTable kernels = build_kernel_table(best_tier());
  std::vector<ExportedTensor> tensors;
  export_tensors(model, kernels, ExportWhat::weights, [&](const ExportedTensor& t) {
    tensors.push_back(t);
    if (t.shape.size() == 2)
      for (float& x : tensors.back().data) x *= static_cast<float>(m.scale);
  });
  std::vector<NamedTensor> named;
  for (const ExportedTensor& t : tensors) named.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(dir + "/model.safetensors", named, {{"format", "pt"}});
}

inline lab::CellConfig small_cell(const std::string& model, const std::string& task, const std::string& method) {
  lab::CellConfig c;
  c.model = model;
  c.method.name = method;
  c.method.rank = 4;
  c.method.alpha = 8;
  c.method.batch = 2;
  c.task.world.task = task;
  c.task.world.people = 5;
  c.task.world.queries = 4;
  c.task.world.history = 8;
  c.seed = 1;
  if (method != "none" && method != "rag") c.steps = {4};
  return c;
}

struct Machine {
  explicit Machine(int threads = 2) : kernels(build_kernel_table(best_tier())) {
    environment.kernels = &kernels;
    environment.threads = threads;
  }
  KernelTable kernels;
  lab::CellEnvironment environment;
};

// Everything that a cell publishes but its costs.
inline std::string published(const lab::CellResult& r) {
  std::string text = r.metrics.dump(1);
  for (const auto& row : r.predictions) text += "\n" + row.dump();
  for (const auto& row : r.curve) text += "\n" + row.dump();
  return text;
}

}  // namespace thimble::lab_test
