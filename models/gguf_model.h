// A GGUF file as a model: its metadata as a config.json, its tensors under Hugging Face's names and in Hugging Face's
// layout, so that everything behind the loader (adapters, training, saving) meets one convention. Plain tensors that
// need no change stay mapped; the others are made when they are asked for. Quantized ones are read through coded().
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/gguf_arch.h"
#include "models/io/coded_linear.h"
#include "models/io/gguf.h"
#include "models/io/tensor_source.h"
#include "tensor/arena.h"

namespace thimble {

// The GGUF file that a model path means: the path itself, or the only one in a directory without config.json. "" for
// everything else.
std::string gguf_path(const std::string& path);

class GgufModel final : public TensorSource {
 public:
  explicit GgufModel(const std::string& path, MemoryBudget* budget = nullptr);

  const GgufFile& file() const { return file_; }
  const nlohmann::json& config() const { return config_; }

  const std::string& path() const override { return file_.path(); }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override { return file_.file_bytes(); }
  TensorView find_view(const std::string& name) const override;
  void release_pages() const override { file_.release_pages(); }
  void forget_views() const override { views_.clear(); }

  // Null when no tensor is quantized. Valid as long as this object.
  const CodedSource* coded() const;

  // One tensor of the file, whatever its type, as Hugging Face has it; nothing is kept. For tools that stream.
  struct Entry {
    std::string name;  // Hugging Face's
    const GgufTensor* tensor = nullptr;
    GgufChange change = GgufChange::none;
    int64_t block = 0;           // which expert, or which head's norm
    std::vector<int64_t> shape;  // Hugging Face's
  };
  const Entry* find_entry(const std::string& name) const;  // nullptr when absent
  std::vector<float> read_f32(const Entry& entry) const;
  // Row r of the entry is row map[r] of the file's tensor; empty: the same.
  std::vector<int32_t> row_map(const Entry& entry) const;
  // The entry that a tensor of the file became (the first, when it became several); nullptr when it is not used.
  const Entry* entry_of(const std::string& gguf_name) const;

 private:
  class Coded;
  void add_tensors(const std::vector<GgufName>& names);
  const std::byte* data_of(const Entry& entry) const;  // of its expert, if it is one

  GgufFile file_;
  nlohmann::json config_;
  HeadSizes heads_;
  MemoryBudget* budget_;
  std::map<std::string, Entry> entries_;
  std::vector<std::string> names_;
  std::unique_ptr<CodedSource> coded_;
  struct Made {
    TensorInfo info;
    Buffer data;
  };
  mutable std::map<std::string, Made> views_;

 public:
  ~GgufModel() override;
};

}  // namespace thimble
