// Compression of a loaded model, layer by layer and in place: the one transformer runs block by block over calibration
// sequences, an observer collects what the inputs of every linear look like, and quant/ chooses codes or zeros. One
// layer's statistics exist at a time. Embeddings, head, norms and biases stay as they are stored (AWQ folds its scales
// into norms and neighbouring linears).
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/model.h"
#include "quant/spec.h"
#include "tensor/context.h"

namespace thimble {

// rtn_clip: round to nearest after a search of the range with the smallest error of the weights.
enum class CompressMethod : uint8_t { none, rtn, rtn_clip, gptq, awq, magnitude, wanda, sparsegpt };
const char* compress_method_name(CompressMethod method);  // "rtn-clip"

// An exception to the options for the linears that it matches; of several the last counts.
struct CompressRule {
  std::string match;      // "<layer>.<role>" with * for any text: "0.*", "*.down_w", "3.q_w"; of experts "3.expert_up_w.7"
  bool keep = false;      // left alone
  WeightSpec spec;        // of a quantizing method, unless keep
  Sparsity sparsity;      // of a pruning method, unless keep
};

struct CompressOptions {
  CompressMethod method = CompressMethod::none;
  WeightSpec spec;         // of methods that quantize
  Sparsity sparsity;       // of methods that prune
  std::vector<CompressRule> rules;
  double damp = 0.01;      // gptq, sparsegpt: share of the mean diagonal that is added to it; grows when that is not enough
  bool act_order = true;   // gptq: columns with the largest inputs first
  bool static_groups = true;  // gptq: every group's grid comes from the original weights, so that columns stay in place
  bool clip = false;       // gptq: ranges as rtn-clip chooses them
  bool per_row = false;    // magnitude: the share is kept in every row instead of in every matrix
  int64_t batch_rows = 2048;  // tokens that run through a block together: bounds the memory of activations
  std::function<void(const std::string& what, int64_t done, int64_t total)> progress;

  bool quantizes() const { return method >= CompressMethod::rtn && method <= CompressMethod::awq; }
  bool prunes() const { return method >= CompressMethod::magnitude; }
  bool needs_calibration() const;
  std::string name() const;  // as parse_compression reads it
};

// "none", "rtn:int4-g64-asym", "rtn-clip:...", "gptq:...", "awq:...", "magnitude:0.5", "magnitude:2:4", "wanda:0.5",
// "sparsegpt:0.5". Throws usage, listing the forms.
CompressOptions parse_compression(const std::string& text, const std::string& where = "compression");

// What happened to one linear.
struct TensorReport {
  Role role = Role::count;
  int64_t layer = 0;       // a place (weights.h)
  std::string name;        // "0.q_w"
  std::string spec;        // "int4-g64-asym", "0.5", or "stored" when the tensor was left alone
  std::string method;      // that was used, fallbacks considered
  std::string fallback;    // why it is not the method that was asked for, or not all of it; empty: it is
  double damp = 0;         // that was used: gptq, sparsegpt
  double rel_err = 0;      // |(W - W')x|^2 / |Wx|^2 over the calibration tokens, of the inputs that the method saw
  bool of_outputs = false; // false: there are no statistics, and rel_err is |W - W'|^2 / |W|^2
  double zeros = 0;        // share of weights that are zero afterwards
  double ratio = 0;        // awq: the exponent of the scales; negative: not scaled
  int bits = 0;            // of its codes; 0: not quantized
  WeightSpec weight_spec;  // when bits > 0
};

struct CompressReport {
  std::string compression;  // CompressOptions::name()
  int64_t bytes_before = 0, bytes_after = 0;  // stored, of all weights
  double bits_per_weight = 0;                 // of all weights, embeddings and head included
  double linear_bits_per_weight = 0;          // of the compressed linears only
  int64_t parameters = 0;
  int64_t calibration_tokens = 0, calibration_sequences = 0;
  std::string calibration_sha256;             // of the token ids; empty: none were needed
  std::vector<TensorReport> tensors;

  nlohmann::ordered_json tensors_json() const;
};

// calibration: token sequences, at least one token each and at most max_tokens of the model; ignored by methods that need
// none. ctx.precision is f32 meanwhile. The bits of the result do not depend on threads.
// Errors: unsupported for a model that is quantized already, or has gradients; input for missing calibration, ids out of
// range, weights that are not finite; usage for a rule that matches nothing.
CompressReport compress_model(Model& model, Context& ctx, const CompressOptions& options,
                              const std::vector<std::vector<int32_t>>& calibration);

// Texts of the model's own at temperature 1: `count` sequences of `length` tokens, BOS (a random id for models without)
// included. Sequence i depends on (model, seed, i) only.
std::vector<std::vector<int32_t>> sample_calibration(Model& model, Context& ctx, int64_t count, int64_t length,
                                                     uint64_t seed,
                                                     const std::function<void(int64_t done, int64_t total)>& progress = {});

std::string sha256_of_ids(const std::vector<std::vector<int32_t>>& sequences);

}  // namespace thimble
