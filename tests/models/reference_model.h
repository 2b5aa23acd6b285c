// A second transformer that shares nothing with the engine: double precision, plain loops, one sequence at a time, written
// from the published formulas of every family and reading Hugging Face's names directly. Slow on purpose; what it computes
// is what the engine is compared with.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace thimble::reference {

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<double> data;
};
using Tensors = std::map<std::string, Tensor>;

// A .safetensors file with F32, F16, BF16 and I64 tensors; throws std::runtime_error for others.
Tensors read_safetensors(const std::string& path);
// All tensors as F32.
void write_safetensors(const std::string& path, const Tensors& tensors);

enum class Kind { matrix, norm, zero_norm, bias };  // zero_norm: weights that are added to one

struct Declared {
  std::string name;
  std::vector<int64_t> shape;
  Kind kind;
};

struct Spec;

class Model {
 public:
  // config.json as transformers 4 spells it. Throws std::runtime_error for families that are not covered.
  explicit Model(const nlohmann::json& config);
  ~Model();

  // Every tensor of a checkpoint with this config.
  std::vector<Declared> declared() const;
  // N(0, 0.2) for matrices, 1 + 0.2 N for norms (0.2 N for those added to one), 0.1 N for biases; rounded to f32.
  Tensors random(uint64_t seed) const;

  int64_t vocab() const;
  // [sequence, vocab]
  std::vector<double> logits(const Tensors& tensors, const std::vector<int32_t>& ids) const;
  // Mean of -log p over the positions of all sequences that have a next token.
  double loss(const Tensors& tensors, const std::vector<std::vector<int32_t>>& sequences) const;
  // What leaves the last block (behind the final norm, where there is one): [sequence, hidden]. types: BERT's; empty: zeros.
  std::vector<double> hidden(const Tensors& tensors, const std::vector<int32_t>& ids, const std::vector<int32_t>& types = {}) const;

 private:
  std::unique_ptr<Spec> spec_;
};

}  // namespace thimble::reference
