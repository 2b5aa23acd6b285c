// Thimble's own packed store: a model directory whose model.safetensors holds the weights as the engine uses them, so
// that opening one maps the file and packs nothing. A weight stands under its role ("3.q_w", "token_embed"): rows as one
// tensor, tiles (kernels/weight_format.h) as NAME.codes U8 [tiles, steps, 64], NAME.scales F16 or F32 [tiles, groups, 16],
// NAME.zeros U8 or NAME.mins of that shape, and NAME.perm I32 [columns]; the file's metadata says under NAME which tiles
// they are: "q4 g128 zero_points", "q8 row symmetric 128", "q4 g32 minimum". config.json is Hugging Face's, with
// quant_method "thimble".
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "models/model.h"
#include "models/quantize.h"

namespace thimble {

class ModelSource;

bool is_packed_store(const std::string& dir);

// What config.json says of a store. Errors: input with file and field; unsupported for a newer version.
struct StoreStatement {
  int64_t version = 0;
  std::optional<bool> rope_interleaved;  // rows of queries and keys are not in the order of Hugging Face's files
  bool bare_names = false;               // ModelSource::bare_names() of the original
};
StoreStatement packed_store_statement(const std::string& dir);

// What load_model() does for such a directory. Tiles and rows stay mapped (trainable: rows are f32 copies); vectors of 16
// bits become f32.
// Errors: input with file and tensor or metadata key for anything missing, unused, misshapen, or that no packer leaves:
// padding rows with a scale, orders of columns that are none. unsupported for a newer version.
Model load_packed_store(const std::string& dir, const LoadOptions& options);

struct StoreReport {
  int64_t bytes = 0;    // of tensor data
  int64_t tensors = 0;
  int64_t kept = 0;     // linears that arrived in tiles
  int64_t rounded = 0;  // linears that were rounded to nearest
};

// Writes a model as it is in memory. config: its config.json without quantization_config. provenance: goes into
// quantization_config as "thimble" unless it is empty. Errors: budget or input when the directory cannot be written.
StoreReport write_packed_store(const std::string& dir, const Model& model, const KernelTable& kernels,
                               nlohmann::ordered_json config, const nlohmann::ordered_json& provenance);

struct StoreImport {
  LoadFormat linears;    // what linears in floats are rounded to; bits 0: they stay
  int threads = 1;
  bool dry_run = false;  // count only
  MemoryBudget* budget = nullptr;
  std::function<void(int64_t done, int64_t total)> progress;  // in weights
};

// The same from the file of any readable model, one of its tensors in memory at a time. The file is read twice: sizes
// first. Vectors keep the dtype of the file, so that a model that was only moved comes back bit by bit.
StoreReport import_packed_store(const std::string& dir, const ModelSource& source, const KernelTable& kernels,
                                const StoreImport& options);

}  // namespace thimble
