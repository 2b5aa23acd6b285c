// From the tensors of a checkpoint to the weights of a model: every tensor has a rule, every rule its tensor.
#pragma once

#include "models/io/coded_linear.h"
#include "models/io/json.h"
#include "models/model.h"

namespace thimble {

// What a container and a quantization method make of a checkpoint. Lives as long as the model, for mapped weights.
struct Checkpoint {
  const TensorSource* tensors = nullptr;
  const CodedSource* coded = nullptr;  // null: not quantized
  const std::vector<TensorRule>* rules = nullptr;  // under the names of the container: the family's, or GGUF's
  const char* optional_prefix = "";    // of names that base-model files lack
};

// A model without weights: path, family and config.
Model start_model(const std::string& path, const JsonObject& config, const LoadOptions& options);

// Fills the weights of a model whose config and family are set. Errors: input with file and tensor for anything missing,
// unused or misshapen; unsupported for dtypes and layouts.
void load_weights(Model& model, const KernelTable& kernels, const LoadOptions& options, const Checkpoint& checkpoint);

// The shape that a rule's tensor (one of its blocks) has in the file; empty when the model has no such tensor.
std::vector<int64_t> file_shape(const ModelConfig& config, const TensorRule& rule);

}  // namespace thimble
