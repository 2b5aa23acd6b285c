// GPTQ checkpoints (AutoGPTQ, GPTQModel): configuration, and unpacking of one linear into plain arrays.
// Layout of the packed tensors: codes along inputs, zero points along outputs, both as little-endian bit streams of
// 32-bit words; version 1 stores zero - 1. Errors: input with file, tensor and field; unsupported names the layout.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/io/coded_linear.h"
#include "models/io/quant_config.h"

namespace thimble {

struct GptqConfig {
  int bits = 4;             // 2, 3, 4 or 8
  int64_t group_size = -1;  // inputs per group; -1: one group per row
  bool desc_act = false;
  bool sym = true;
  bool v2 = false;                    // zero points stored as they are; v1 stores zero - 1
  std::string file;                   // where it was read
  std::vector<std::string> warnings;  // assumptions made, one line each
  // Modules with settings of their own, or left unquantized (skip): "dynamic" in the order of the file; the first that
  // fits a module counts.
  struct Rule {
    NamePattern pattern;
    bool skip = false;
    int bits = 4;
    int64_t group_size = -1;
    bool sym = true, desc_act = false;
  };
  std::vector<Rule> rules;
  // Shapes [out, in] of modules that were padded to whole words ("thimble": {"shapes"}, see models/README.md).
  std::map<std::string, std::array<int64_t, 2>> shapes;

  // The settings of this module; rules, shapes and warnings are left out.
  GptqConfig of(const std::string& module) const;
  bool skips(const std::string& module) const;
};

// The "dynamic" key that gives one module settings of its own ("+:") or leaves it alone ("-:").
std::string gptq_dynamic_key(const std::string& module, bool quantized);

// The config of a directory whose quantization statement (quant_config.h) is GPTQ's; else empty. Throws unsupported for
// marlin, bitblas, exl3 and gptq_p.
std::optional<GptqConfig> read_gptq_config(const std::string& dir);

// `tensors` must outlive the result. A symmetric file whose zero points are those of the other version than its label
// says is read as that version, with a warning.
std::unique_ptr<CodedSource> open_gptq(const QuantStatement& statement, const TensorSource& tensors);

// The packed tensors of one linear; g_idx and bias may be empty.
struct GptqSource {
  std::string name;  // of the module, for messages
  TensorView qweight, qzeros, scales, g_idx, bias;
};
// True when the set holds <module>.qweight.
bool gptq_has(const TensorSource& set, const std::string& module);
GptqSource gptq_source(const TensorSource& set, const std::string& module);

CodedLinear unpack_gptq(const GptqSource& source, const GptqConfig& config);

// Takes away the rows and inputs behind [out, in], which padding added. Throws input, naming the module, when they are
// not there, or are not padding.
void crop_gptq(CodedLinear& linear, const std::string& module, int64_t out, int64_t in);

// The packed tensors of one linear, as unpack_gptq reads them. Outputs and inputs are padded with zero points to whole
// words: *_padded are their numbers then.
struct GptqPacked {
  int64_t out_padded = 0, in_padded = 0, groups = 0;
  std::vector<uint32_t> qweight;  // [in_padded * bits / 32, out_padded]
  std::vector<uint32_t> qzeros;   // [groups, out_padded * bits / 32]
  std::vector<uint16_t> scales;   // [groups, out_padded], f16
  std::vector<int32_t> g_idx;     // [in_padded]
};
// codes [out, in] with columns in the order of perm (empty: identity); zeros and scales [out, groups]; group: columns
// per group. v2: zero points as they are.
GptqPacked pack_gptq(int64_t out, int64_t in, int bits, int64_t group, const uint8_t* codes, const uint8_t* zeros,
                     const uint16_t* scales_f16, const int32_t* perm, bool v2);

}  // namespace thimble
