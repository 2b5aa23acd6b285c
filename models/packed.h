// Writing a compressed model so that it loads again, with the same bits: config.json and model.safetensors. Quantized
// linears are stored as GPTQ packs them (io/gptq.h), whichever method chose their codes, so that other programs can read
// them; the others in the dtype that the model holds them in. See models/README.md for what is ours in quantization_config.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "models/compress.h"

namespace thimble {

// config: the config.json of the model that was compressed, without quantization_config. provenance: goes into
// quantization_config as "thimble". Returns the bytes of model.safetensors.
// The rows of a llama2.c model's q and k are written in the order that Hugging Face expects, so the written model's
// attention scores are the same sums in another order; every other model gives the same bits when it is loaded.
// Errors: budget or input when the directory cannot be written.
int64_t write_compressed(const std::string& dir, const Model& model, const KernelTable& kernels,
                         nlohmann::ordered_json config, const CompressReport& report,
                         const nlohmann::ordered_json& provenance);

// Where row `row` of a query or key matrix of a model with neighbouring rotary pairs (2j, 2j + 1) stands in the order with
// halves (j, j + head_dim / 2); the row itself for other models.
int64_t rotary_file_row(const ModelConfig& config, int64_t row);
// Whether rows move at all: the model's pairs are not those of its family's Hugging Face files.
inline bool moves_rotary_rows(const ModelConfig& config) {
  return config.positions == PositionKind::rope && config.rope.interleaved != config.rope.hf_interleaved;
}

}  // namespace thimble
