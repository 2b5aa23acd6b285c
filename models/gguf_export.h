// A model as a GGUF file that llama.cpp loads: names, metadata, row orders, and the tokenizer.
// Errors: unsupported for families and settings that GGUF has no place for; input as the source's.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "models/gguf_arch.h"
#include "models/io/gguf_write.h"
#include "models/model_source.h"

namespace thimble {

// One tensor of the file to be.
struct GgufExportTensor {
  std::string name;
  std::vector<int64_t> dims;  // dims[0] is the contiguous one
  GgmlType type = GgmlType::f32;
  GgufChange change = GgufChange::none;
  std::vector<const SourceTensor*> parts;  // more than one: stacked (experts, norms per head)
  uint64_t bytes() const;
};

class GgufExport {
 public:
  // type: of the matrices whose rows are whole blocks. Others, and the head of 4-bit files, get the next finer type
  // that fits; vectors, routers and position embeddings stay f32.
  GgufExport(const ModelSource& source, GgmlType type);

  const std::vector<GgufExportTensor>& tensors() const { return tensors_; }
  uint64_t data_bytes() const;
  // tokenizer: a path for Tokenizer::load(); empty: the file gets none. GGUF sources hand on their own keys.
  // Returns warnings, one line each. progress: bytes of data written so far. A file that would describe another
  // network, because GGUF has no key for a setting, is removed again (unsupported).
  std::vector<std::string> write(const std::string& path, const std::string& tokenizer,
                                 const std::function<void(uint64_t)>& progress) const;

 private:
  void plan();
  void settings(GgufWriter& out) const;
  std::vector<float> rope_factors() const;
  void write_tensor(GgufWriter& out, const GgufExportTensor& t) const;

  const ModelSource& source_;
  GgmlType type_;
  const GgufArch* arch_;
  std::vector<GgufExportTensor> tensors_;
};

// The tokenizer's keys of a GGUF file. Returns warnings.
std::vector<std::string> write_gguf_tokenizer(GgufWriter& out, const std::string& tokenizer, const ModelConfig& config);

}  // namespace thimble
