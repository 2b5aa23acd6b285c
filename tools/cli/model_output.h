// Writing a model as a Hugging Face directory.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "models/adapter.h"
#include "models/io/safetensors.h"
#include "models/model.h"

namespace thimble::cli {

// The config.json that a model was loaded with, without what describes a quantization; of a llama2.c file, the
// equivalent.
nlohmann::ordered_json base_config(const Model& model);

// Writes config.json (with the dtype filled in) and then model.safetensors, each through a temporary name. At most one
// tensor lies in memory besides the model. adapter: folded into the weights; may be null. dtype: f32, f16 or bf16.
// llama2.c weights get the row order that Hugging Face expects of rotary heads. Returns
// how many tensors the adapter changed.
int64_t write_model(const std::string& dir, const Model& model, const KernelTable& kernels,
                    nlohmann::ordered_json config, SafetensorsDtype dtype = SafetensorsDtype::f32,
                    const Adapter* adapter = nullptr);

// True when both paths name the same existing file or directory.
bool same_path(const std::string& a, const std::string& b);

}  // namespace thimble::cli
