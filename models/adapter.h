// Adapters: what one person's learning adds to a shared, read-only base. LoRA (and rsLoRA), IA3, prompt and prefix tuning,
// read and written in PEFT's format. Several may be resident; a batch names the rows that each of them serves.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "models/model.h"

namespace thimble {

enum class AdapterKind : uint8_t { lora, ia3, prompt, prefix };
const char* adapter_kind_name(AdapterKind kind);

struct AdapterOptions {
  AdapterKind kind = AdapterKind::lora;
  int64_t rank = 8;          // lora
  double alpha = 8;          // lora
  double dropout = 0;        // lora
  bool rslora = false;       // scale alpha / sqrt(rank) instead of alpha / rank
  std::string targets;       // regex over module names ("" = the family's default of PEFT); "all-linear"
  int64_t n_virtual = 8;     // prompt, prefix: virtual tokens
  uint64_t seed = 0;         // of the initial values
};

// What an adapter does to one linear of one layer.
struct AdapterModule {
  Weight* lora_a = nullptr;  // [rank, in]; q, k and v of a fused module share one
  Weight* lora_b = nullptr;  // [rank out]
  float scale = 0;
  Weight* ia3 = nullptr;     // [1, out], or [1, in] when it scales the input
  bool ia3_input = false;
};

class Adapter {
 public:
  // A fresh adapter: LoRA's A is uniform (Kaiming, a = sqrt 5) and B zero, IA3 is one, prompts start from the embeddings
  // of random tokens, prefixes from N(0, 0.02). So a fresh LoRA or IA3 changes nothing.
  Adapter(const Model& model, const KernelTable& kernels, const AdapterOptions& options, MemoryBudget* budget = nullptr);
  // A PEFT directory: adapter_config.json and adapter_model.safetensors. Errors name file and field; keys that match no
  // module of the base, and modules without keys, are errors that list them.
  Adapter(const Model& model, const KernelTable& kernels, const std::string& dir, MemoryBudget* budget = nullptr);
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  AdapterKind kind() const { return kind_; }
  int64_t n_virtual() const { return n_virtual_; }
  double dropout() const { return dropout_; }
  const AdapterModule& module(int64_t layer, Role role) const {
    return modules_[static_cast<size_t>(layer)][static_cast<size_t>(role)];
  }
  // A full replacement of the output matrix (PEFT's modules_to_save); null: the base's.
  Weight* head() { return head_; }
  Weight* prompt() { return prompt_; }  // prompt: [n, embed_dim]; prefix: [n, 2 * layers * kv_cols]

  // Every trainable tensor once, in a fixed order, with a name of its own.
  void for_each_parameter(const std::function<void(const std::string& name, Weight& w)>& fn);
  void enable_gradients();
  int64_t parameters() const;

  // The tensors under PEFT's keys and shapes: values, or gradients.
  void export_tensors(ExportWhat what, const std::function<void(const ExportedTensor&)>& fn) const;
  // Writes adapter_config.json and adapter_model.safetensors (f32). base: what the config calls the base model.
  void save(const std::string& dir, const std::string& base) const;

  // Copies of the base's weights with the adapter folded in, one per weight that it changes (f32, file layout and names).
  // Unsupported for prompt and prefix.
  void merged(const Model& model, const KernelTable& kernels, const std::function<void(const ExportedTensor&)>& fn) const;

 private:
  // One tensor of the adapter file and the weights that it holds.
  struct Entry {
    std::string key;                // PEFT's
    std::vector<int64_t> shape;
    const TensorRule* rule = nullptr;  // null for prompt_embeddings
    int64_t layer = 0;
    bool per_row = false;           // rows follow the fused layout: lora_B and output-scaling ia3
    std::vector<Weight*> parts;
  };
  Weight* make(int64_t rows, int64_t cols);
  void add_lora(const Model& model, const TensorRule& rule, int64_t layer, int64_t rank, double alpha, bool rslora);
  void add_ia3(const Model& model, const TensorRule& rule, int64_t layer, bool input);
  void add_prompt(const Model& model, int64_t rows);
  void add_head(const std::string& module);
  void initialise(const Model& model, const KernelTable& kernels, const AdapterOptions& options);
  void load(const std::string& dir);

  AdapterKind kind_;
  int64_t n_virtual_ = 0;
  double alpha_ = 8, dropout_ = 0;
  int64_t rank_ = 0;
  bool rslora_ = false, fan_in_fan_out_ = false;
  std::vector<std::string> target_names_, feedforward_names_;
  const ModelConfig config_;
  std::vector<std::array<AdapterModule, kRoleCount>> modules_;
  std::vector<Entry> entries_;
  Weight* prompt_ = nullptr;
  Weight* head_ = nullptr;
  std::string head_name_;  // module path
  std::deque<Weight> weights_;
  WeightStore store_;
};

// Rows [begin, end) of a batch belong to sequences that use this adapter. Begins and ends lie on sequence boundaries.
struct AdapterSegment {
  int64_t begin = 0, end = 0;
  Adapter* adapter = nullptr;
};

}  // namespace thimble
