// Adapters: what one person's learning adds to a shared, read-only base. LoRA (rsLoRA, DoRA), IA3, prompt and prefix tuning,
// read and written in PEFT's format. Several may be resident; a batch names the rows that each of them serves.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "models/adapter_config.h"
#include "models/model.h"

namespace thimble {

struct Context;
class TensorSource;

struct AdapterOptions {
  AdapterKind kind = AdapterKind::lora;
  int64_t rank = 8;          // lora
  double alpha = 8;          // lora
  double dropout = 0;        // lora
  bool rslora = false;       // scale alpha / sqrt(rank) instead of alpha / rank
  bool dora = false;         // lora with a magnitude of its own per output
  AdapterBias bias = AdapterBias::none;      // lora: biases of the base that learn too
  std::vector<std::string> modules_to_save;  // lora, ia3: modules of the base that learn as a whole
  std::string targets;       // regex over module names ("" = the family's default of PEFT); "all-linear"
  int64_t n_virtual = 8;     // prompt, prefix: virtual tokens
  uint64_t seed = 0;         // of the initial values
};

// The norms of the rows of W + scale B A: DoRA divides by them. They change with every step of training; without a tape
// they are kept for as long as A and B are the same.
struct DoraNorms {
  std::vector<double> squares;  // of W's rows
  std::vector<float> norms;
  uint64_t seen = 0;  // a hash of A and B
  bool known = false;
};

// What an adapter does to one linear of one layer.
struct AdapterModule {
  // row[in] of W becomes what the module makes of row r.
  void fold(int64_t r, int64_t inputs, double* row) const;


  Weight* lora_a = nullptr;  // [rank, in]; q, k and v of a fused module share one
  Weight* lora_b = nullptr;  // [out, rank]
  float scale = 0;
  Weight* magnitude = nullptr;  // [1, out]: DoRA
  DoraNorms* dora = nullptr;    // beside magnitude
  Weight* ia3 = nullptr;     // [1, out], or [1, in] when it scales the input
  bool ia3_input = false;
};

class Adapter {
 public:
  // A fresh adapter: LoRA's A is uniform (Kaiming, a = sqrt 5) and B zero, DoRA's magnitudes are the norms of the base's
  // rows, IA3 is one, prompts start from the embeddings of random tokens, prefixes from N(0, 0.02), modules and biases
  // that learn as a whole from the base's. So a fresh LoRA, DoRA or IA3 changes nothing.
  Adapter(const Model& model, const KernelTable& kernels, const AdapterOptions& options, MemoryBudget* budget = nullptr);
  // A PEFT directory: adapter_config.json and adapter_model.safetensors or .bin; or a LoRA adapter in GGUF. Errors name file
  // and field; keys that match no module of the base, and modules without keys, are errors that list them.
  Adapter(const Model& model, const KernelTable& kernels, const std::string& path, MemoryBudget* budget = nullptr);
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  AdapterKind kind() const { return config_.kind; }
  const AdapterConfig& config() const { return config_; }
  const std::vector<std::string>& warnings() const { return config_.warnings; }
  int64_t n_virtual() const { return config_.n_virtual; }
  double dropout() const { return config_.dropout; }
  // layer: a place (weights.h), for modules of experts.
  const AdapterModule& module(int64_t layer, Role role) const { return const_cast<Adapter*>(this)->module_at(layer, role); }
  // LoRA of the token embedding: lora_a [vocab, rank] and lora_b [embed_dim, rank]; null pointers without one.
  const AdapterModule& embedding() const { return embedding_; }
  Weight* prompt() { return prompt_; }  // prompt: [n, embed_dim]; prefix: [n, 2 * layers * kv_cols]
  // The norms for a module of this adapter over the base's weight w; in ctx.saved while a tape records.
  const float* norms(Context& ctx, const AdapterModule& module, const Weight& w);
  // After weights have been changed in a way that left A and B alone, or by kernels that compute nothing.
  void forget_norms();

  // Whether weights of the base are replaced as a whole (modules_to_save, bias): such an adapter has its batch to itself.
  bool replaces() const { return own_ != nullptr; }
  // The base's weights with the replaced ones in their places; the others are frozen views. Valid until the next call.
  ModelWeights& weights_over(const ModelWeights& base);

  // Every trainable tensor once, in a fixed order, with a name of its own. enable_gradients throws unsupported for LoRA of
  // the output matrix, which can be used but does not learn.
  void for_each_parameter(const std::function<void(const std::string& name, Weight& w)>& fn);
  void enable_gradients();
  int64_t parameters() const;

  // The tensors under PEFT's keys and shapes: values, or gradients.
  void export_tensors(ExportWhat what, const std::function<void(const ExportedTensor&)>& fn) const;
  // Writes adapter_config.json and adapter_model.safetensors (f32). base: what the config calls the base model.
  void save(const std::string& dir, const std::string& base) const;

  // Copies of the base's weights with the adapter folded in, one per weight that it changes (f32, file layout and names).
  // A packed base is decoded: what comes out is dense. Unsupported for prompt and prefix.
  void merged(const Model& model, const KernelTable& kernels, const std::function<void(const ExportedTensor&)>& fn) const;
  // Whether folding makes the output matrix differ from the embedding that it was tied to: see untie().
  bool unties() const;

 private:
  enum class Part : uint8_t { lora_a, lora_b, magnitude, ia3, prompt, whole };
  // One tensor of the adapter file and the weights that it holds.
  struct Entry {
    std::string key;                // PEFT's
    std::vector<int64_t> shape = {};
    Part part = Part::whole;
    const TensorRule* rule = nullptr;  // null for prompt_embeddings
    int64_t layer = 0;
    bool fused = false;       // rows follow the rule's layout: lora_B, what scales outputs, whole tensors
    bool vector = false;      // the weights are [1, features]
    bool transposed = false;  // the file has features last: lora_embedding_A, Conv1D
    bool optional = false, frozen = false;
    std::vector<Weight*> parts = {};
  };
  AdapterModule& module_at(int64_t place, Role role) {
    return modules_[static_cast<size_t>(expert_of(place) * model_.n_layers + layer_of(place))][static_cast<size_t>(role)];
  }
  std::string field(const std::string& name) const;  // for messages: of the configuration, or the command's option
  Weight* make(int64_t rows, int64_t cols);
  void build(const Model& model, const KernelTable& kernels);
  void build_module(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, const std::string& module);
  void add_lora(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, const std::string& module);
  void add_embedding(const TensorRule& rule, const std::string& module);
  void add_head(const Model& model, const KernelTable& kernels, const TensorRule& rule, const std::string& module);
  void fold_head();
  void add_ia3(const TensorRule& rule, int64_t layer, const std::string& module, bool input);
  void add_prompt();
  void add_biases(const Model& model);
  void add_whole(const TensorRule& rule, int64_t layer, const std::string& key, bool optional, bool frozen);
  void choose_targets(const Model& model, const std::string& targets);
  void initialise(const Model& model, const KernelTable& kernels, uint64_t seed);
  void load(const Model& model, const TensorSource& file);
  bool add_saved_embedding(const Model& model, const std::string& name, const std::string& key);
  void copy(const Entry& e, size_t part, float* file, float* weight, bool to_file) const;

  AdapterConfig config_;
  std::string path_;  // of the configuration; empty for a fresh adapter
  bool fan_in_fan_out_ = false;
  const ModelConfig model_;
  std::vector<std::array<AdapterModule, kRoleCount>> modules_;
  AdapterModule embedding_;
  AdapterModule head_;  // LoRA of the output matrix: folded into a matrix of the adapter's own when it is loaded
  std::vector<Entry> entries_;
  Weight* prompt_ = nullptr;
  std::deque<Weight> weights_;
  std::deque<DoraNorms> dora_;
  std::unique_ptr<ModelWeights> own_;                 // holds the replaced weights
  std::set<std::pair<Role, int64_t>> replaced_;
  WeightStore store_;
};

// Gives the output matrix of a tied model memory of its own, with the embedding's values.
void untie(Model& model, const KernelTable& kernels);

// Rows [begin, end) of a batch belong to sequences that use this adapter. Begins and ends lie on sequence boundaries.
struct AdapterSegment {
  int64_t begin = 0, end = 0;
  Adapter* adapter = nullptr;
};

}  // namespace thimble
