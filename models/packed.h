// Writing a model with quantized linears so that it loads again with the same bits: config.json and model.safetensors
// in a layout that other programs read (packed_formats.h), whichever method chose the codes. Everything else keeps the
// dtype that the model holds it in. See models/README.md for what is ours in quantization_config.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/compress.h"
#include "models/packed_formats.h"

namespace thimble {

// A model that compress_model changed. config: the config.json of the model that was compressed, without
// quantization_config. provenance: goes into quantization_config as "thimble". Returns the bytes of model.safetensors.
// The rows of a llama2.c model's q and k are written in the order that Hugging Face expects, so the written model's
// attention scores are the same sums in another order; every other model gives the same bits when it is loaded.
// Errors: budget or input when the directory cannot be written; unsupported, naming the linear, for what the format
// cannot hold.
int64_t write_compressed(const std::string& dir, const Model& model, const KernelTable& kernels,
                         nlohmann::ordered_json config, const CompressReport& report,
                         const nlohmann::ordered_json& provenance, PackedFormat format = PackedFormat::gptq);

// Throws unsupported, naming the linear, when the format cannot hold the linears of a model on this grid. permuted:
// with columns in act-order. Lets a caller fail before the work.
void require_packed_format(const Model& model, PackedFormat format, const WeightSpec& spec, bool permuted);

struct PackedOptions {
  PackedFormat format = PackedFormat::gptq;
  WeightSpec spec;  // of linears that are rounded
  nlohmann::ordered_json provenance = nlohmann::ordered_json::object();
  int threads = 1;
  bool dry_run = false;                                     // count only
  std::function<void(const std::string& module)> progress;  // before each quantized linear
};

struct PackedReport {
  int64_t bytes = 0;    // of tensor data
  int64_t tensors = 0;
  int64_t kept = 0;     // linears whose codes are those of the model
  int64_t rounded = 0;  // linears that were rounded to nearest from floats
  std::vector<std::string>
      requantized;  // linears with codes that the format cannot hold, so rounded again: "name: why"
};

// Any model. Linears that lie on a grid of codes, scales and zero points which the format can hold keep them; in a
// model without any quantized linear all of them are rounded to nearest with the spec; in a quantized one, linears in
// floats stay in floats. Embeddings, head and norms are never rounded. At most one tensor lies in memory besides the
// model. config, errors: as above.
PackedReport write_quantized(const std::string& dir, const Model& model, const KernelTable& kernels,
                             nlohmann::ordered_json config, const PackedOptions& options);

}  // namespace thimble
