// The architectures of GGUF as rows: which family of config.json each one is, how its tensors are called in both
// worlds, and what happens to their rows on the way. Readers and writers of GGUF share the rows.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/io/gguf.h"

namespace thimble {

// What distinguishes a tensor of Hugging Face's file from the one in GGUF.
enum class GgufChange : uint8_t {
  none,
  pairs_q,  // the rows of each head stand in the order of interleaved rotary pairs
  pairs_k,
  plus_one,    // a norm with 1 added
  transposed,  // Hugging Face keeps [in, out] (Conv1D)
  per_head,    // Hugging Face keeps q, k, v of each key/value head together; GGUF all q, then all k, then all v
  only_q,      // GGUF keeps q, k and v in one tensor, Hugging Face in three; reading only
  only_k,
  only_v,
  experts,     // one tensor per expert there ({} of the name: layer, expert), all in one here
  head_norms,  // one norm per head there, [heads, head_dim] here
};

struct GgufName {
  const char* gguf;  // without .weight or .bias; {} is the layer
  const char* hf;
  GgufChange change = GgufChange::none;
};

struct GgufArch {
  const char* arch;        // general.architecture
  const char* model_type;  // config.json; further ones of the same row are told apart by gguf_config()
  const std::vector<GgufName>* names;
};

// Null when nobody reads that architecture here.
const GgufArch* find_gguf_arch(const std::string& arch);
// By config.json's model_type; null when GGUF has no such architecture.
const GgufArch* find_gguf_arch_of(const std::string& model_type);
// The names of a row; Falcon has two sets.
const std::vector<GgufName>& gguf_names(const GgufArch& arch, bool two_norms);
std::string known_gguf_archs();

// The config.json that the metadata of a file amounts to. Throws input for missing keys, unsupported for architectures.
nlohmann::json gguf_config(const GgufFile& file);

// Row r of Hugging Face's tensor is row map[r] of GGUF's; empty: the same. head_dim: of a head.
struct HeadSizes {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
};
std::vector<int32_t> gguf_row_map(GgufChange change, const HeadSizes& heads, int64_t rows);

}  // namespace thimble
