// A family is a row: a config parser, a tensor map, names to ignore. Everything irregular about a checkpoint ends here.
#pragma once

#include <string>
#include <vector>

#include "models/config.h"
#include "models/io/json.h"
#include "models/weights.h"

namespace thimble {

// How the roles of a rule lie in one tensor of the file.
enum class Layout : uint8_t {
  plain,             // [rows, cols], or [n] for vectors
  transposed,        // Conv1D: [in, out]
  thirds,            // q, k, v one after the other along the output features
  thirds_transposed, // the same in a Conv1D
  per_head,          // per head: q rows, k rows, v rows (GPT-NeoX)
};

struct TensorRule {
  const char* name;          // in the file; {} is the layer
  Layout layout;
  std::vector<Role> roles;   // one, or q, k, v of a fused tensor
};

struct Family {
  std::vector<const char*> model_types;    // config.json "model_type"
  std::vector<const char*> architectures;  // used when model_type is missing
  void (*parse)(const JsonObject& json, ModelConfig* config);
  std::vector<TensorRule> tensors;
  const char* optional_prefix;             // base-model files lack it
  std::vector<const char*> ignored;        // suffixes of tensors that are buffers, not weights
};

const std::vector<const Family*>& families();

// The row for a config.json. Throws unsupported, listing the known families.
const Family& find_family(const JsonObject& json);

// config.json of a Hugging Face model directory.
ModelConfig parse_config(const JsonObject& json, const Family& family);

// Helpers for the parsers of the rows.
constexpr int64_t kMaxDim = int64_t{1} << 24;
Activation parse_activation(const JsonObject& json, const char* key, const char* fallback);
// rope_theta, rope_scaling, and v5's rope_parameters.
void parse_rope(const JsonObject& json, const char* theta_key, ModelConfig* config);

// One file per family.
extern const Family kLlamaFamily, kMistralFamily, kQwen2Family, kNeoxFamily, kOptFamily, kGpt2Family;

}  // namespace thimble
