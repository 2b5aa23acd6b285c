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
  thirds,            // q, k, v one behind the other along the output features (k and v may be narrower)
  thirds_transposed, // the same in a Conv1D
  per_head,          // per key/value head: the q rows of the heads that share it, its k rows, its v rows
  halves,            // gate, up one behind the other
  head_rows,         // a vector [heads * head_dim] as a matrix [heads, head_dim]
  blocks,            // the rows, or the entries of a vector, cut into tensors of their own; the second {} counts them
};

struct TensorRule {
  const char* name;          // in the file; {} is the layer, a second one the expert or the block
  Layout layout;
  std::vector<Role> roles;   // one, or those of a fused tensor
  bool (*when)(const ModelConfig& config) = nullptr;  // for tensors that go by different names; null: always
  // Another place to read it from: for weights of experts a part of a tensor of them all, [experts, parts * rows, cols].
  struct Other {
    const char* name = nullptr;
    int part = 0, parts = 1;
  } other = {};
};

// Endings of a tensor's name: in the rules, and in files that spell it otherwise.
struct NameAlias {
  const char *name, *in_file;
};

struct Family {
  std::vector<const char*> model_types;    // config.json "model_type"
  std::vector<const char*> architectures;  // used when model_type is missing
  void (*parse)(const JsonObject& json, ModelConfig* config);
  std::vector<TensorRule> tensors;
  const char* optional_prefix;             // base-model files lack it
  std::vector<const char*> ignored;        // suffixes of tensors that are buffers, not weights
  std::vector<NameAlias> aliases = {};
};

const std::vector<const Family*>& families();

// The row for a config.json. Throws unsupported, listing the known families.
const Family& find_family(const JsonObject& json);

// config.json of a Hugging Face model directory.
ModelConfig parse_config(const JsonObject& json, const Family& family);

// Helpers for the parsers of the rows.
constexpr int64_t kMaxDim = int64_t{1} << 24;
Activation parse_activation(const JsonObject& json, const char* key, const char* fallback);
// The sizes under the names that most families share: vocab_size, hidden_size, intermediate_size, num_hidden_layers,
// num_attention_heads, num_key_value_heads, head_dim, max_position_embeddings. Absent: 2048 positions, and kv_heads; when
// that is 0, and for null, as many as heads.
void parse_sizes(const JsonObject& json, ModelConfig* config, int64_t kv_heads = 0);
// As get_double, but null means 0, not the fallback: for settings that null switches off.
double get_double_or_null(const JsonObject& json, const char* key, double fallback, double min, double max);
// The theta under theta_key (as config has it without one), rope_scaling, partial_rotary_factor (as `share` without one),
// and v5's rope_parameters, which may differ for layers with a window. Sizes and max_positions must be set. Whatever would
// change a result and is not known is refused by name.
void parse_rope(const JsonObject& json, const char* theta_key, ModelConfig* config, double share = 1);
// layer_types, a name per layer: sets window_layers. False when absent.
bool parse_layer_types(const JsonObject& json, ModelConfig* config);
// x as the checkpoint's dtype ("dtype", "torch_dtype") holds it.
double round_to_dtype(const JsonObject& json, double x);
// Refuses (unsupported) a switch that is set.
void refuse_if_set(const JsonObject& json, const char* key, const char* what);
// Llama's names for what most families have under them, biases included: embeddings, projections, input_layernorm, the
// final norm, the head. `more` are the others, with those of the mlp when its names differ.
std::vector<TensorRule> llama_rules(std::vector<TensorRule> more, bool mlp = true);

// Rows of models/families, a file each or a few alike.
extern const Family kLlamaFamily, kMistralFamily, kQwen2Family, kQwen3Family, kGemmaFamily, kGemma2Family, kGemma3Family,
    kPhiFamily, kPhi3Family, kStablelmFamily, kNeoxFamily, kOptFamily, kGpt2Family, kGptjFamily, kGptBigcodeFamily,
    kMixtralFamily, kFalconFamily, kBloomFamily, kOlmoFamily, kOlmo2Family, kStarcoder2Family, kCohereFamily,
    kBertFamily, kRobertaFamily, kDistilbertFamily;

}  // namespace thimble
