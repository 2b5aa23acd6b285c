// A model in memory: flags, weights, and the memory and mapped files that own them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/families.h"
#include "models/io/llama2c.h"
#include "models/io/tensor_source.h"
#include "models/weights.h"

namespace thimble {

// Memory of weights that are not mapped: packed, converted, transposed or trainable ones.
class WeightStore {
 public:
  explicit WeightStore(MemoryBudget* budget = nullptr) : budget_(budget) {}
  // 64-byte aligned, zeroed.
  void* allocate(size_t bytes);
  void adopt(Buffer buffer) { buffers_.push_back(std::move(buffer)); }
  int64_t bytes() const;  // of all blocks
  void clear();

 private:
  MemoryBudget* budget_;
  std::vector<Buffer> buffers_;
  size_t left_ = 0;
  std::byte* at_ = nullptr;
};

struct Model;

struct LoadOptions {
  bool trainable = false;  // f32 copies with gradients for every weight that the file stores as f32, f16 or bf16
  MemoryBudget* budget = nullptr;
  // For tools that stream: called with every weight as it comes, once; then its memory is freed, so that one tensor of the
  // file is in memory at a time, and the model that is returned has none. place: see for_each_place().
  std::function<void(const Model& model, Role role, int64_t place, const Weight& weight)> consume;
};

struct Model {
  ModelConfig config;
  const Family* family = nullptr;
  ModelWeights weights;
  std::string path;
  int64_t file_bytes = 0;
  std::string quantization;           // "" or for example "gptq 4-bit g32 asym"
  std::vector<std::string> warnings;  // assumptions made while loading, one line each

  WeightStore store;
  std::unique_ptr<TensorSource> source;  // null for llama2.c files, and when every weight was copied
  std::unique_ptr<Llama2cFile> llama2c;

  int64_t parameters() const;
  int64_t stored_bytes() const;
};

// path: a Hugging Face directory (config.json with safetensors), a GGUF file, a packed store, or a llama2.c .bin file. f32,
// f16 and bf16 matrices stay in the mapped file where their layout allows, tiles of a packed store always do; GPTQ weights
// and the like are packed into tiles.
// Errors: input with file and tensor for anything missing, unused, misshapen; unsupported for families and formats.
Model load_model(const std::string& path, const KernelTable& kernels, const LoadOptions& options = {});

// Gives every weight a zeroed gradient; weights that are not f32 rows are refused (unsupported).
void enable_gradients(Model& model);

// Where the roles of a rule lie in a tensor of the file: file feature row of row r of part p. (Also for vectors, whose
// entries count as rows.)
int64_t source_row(const ModelConfig& config, Layout layout, int part, int64_t r);
inline bool layout_is_transposed(Layout l) { return l == Layout::transposed || l == Layout::thirds_transposed; }

// The tensors of the model under their file names, in the file's shape and layout, as f32: weights, or gradients.
struct ExportedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> data;
};
enum class ExportWhat { weights, gradients };
// fn is called once per file tensor; tensors whose parts have no gradient are left out.
void export_tensors(const Model& model, const KernelTable& kernels, ExportWhat what,
                    const std::function<void(const ExportedTensor&)>& fn);
// One weight tensor by its file name, dequantized; empty data when there is none of that name.
ExportedTensor export_tensor(const Model& model, const KernelTable& kernels, const std::string& name);

// Overwrites the weights that a file tensor holds; the model must have been loaded as trainable. False when the model has
// no tensor of that name.
bool import_tensor(Model& model, const ExportedTensor& tensor);

// "model.layers.{}.x" with the layer, and the number of the expert or the block, filled in. layer is a place (weights.h).
std::string rule_name(const TensorRule& rule, int64_t layer, int64_t block = 0);
// How many tensors a rule stands for in a layer: 0 when the model has none of them, 1 except for Layout::blocks.
int64_t rule_blocks(const ModelConfig& config, const TensorRule& rule);
// fn(rule, layer, block) for every tensor that the rules name for this model.
template <class Fn>
void for_each_tensor(const ModelConfig& config, const std::vector<TensorRule>& rules, Fn&& fn) {
  for (const TensorRule& rule : rules) {
    const int64_t blocks = rule_blocks(config, rule);
    for_each_place(config, rule.roles[0], [&](int64_t place) {
      for (int64_t block = 0; block < blocks; ++block) fn(rule, place, block);
    });
  }
}

}  // namespace thimble
