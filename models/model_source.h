// Any readable model as Hugging Face's config.json and tensors, one at a time: what `convert` and other tools that
// stream read from. Nothing but the tensor at hand is in memory; plain tensors are views of mapped files, whose pages are
// given back after some tens of megabytes.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/io/coded_linear.h"
#include "models/io/tensor_source.h"
#include "models/model.h"

namespace thimble {

struct SourceTensor {
  std::string name;                                // as Hugging Face's files name it
  std::vector<int64_t> shape;                      // as in Hugging Face's file
  SafetensorsDtype dtype = SafetensorsDtype::f32;  // of plain tensors
  bool coded = false;                              // read_codes() has it
  int64_t elements() const;

  const TensorRule* rule = nullptr;
  int64_t layer = -1, block = 0;
  std::string stored;              // the name in the file; of a coded one the module
  int64_t slice = -1, slices = 1;  // a part of a tensor of several experts; -1: all of it
};

class GgufModel;

class ModelSource {
 public:
  // path: whatever load_model() takes. Errors as there.
  explicit ModelSource(const std::string& path);
  ~ModelSource();

  const std::string& path() const { return path_; }
  const nlohmann::ordered_json& json() const { return json_; }  // config.json, without what describes a quantization
  const ModelConfig& config() const { return config_; }
  const Family& family() const { return *family_; }
  std::string container() const { return container_; }  // "safetensors", "pickle", "gguf", "llama2.c", "thimble"
  std::string quantization() const { return store_ ? store_->quantization : coded_ ? coded_->description() : ""; }
  uint64_t file_bytes() const { return store_ ? uint64_t(store_->file_bytes) : tensors_->file_bytes(); }

  const std::vector<SourceTensor>& tensors() const { return list_; }
  // Whether names lack the family's prefix, as in files of base models.
  bool bare_names() const { return bare_names_; }
  const GgufModel* gguf() const { return gguf_; }  // null unless the container is GGUF
  // Of plain ones; lasts until the next call.
  TensorView view(const SourceTensor& tensor) const;
  CodedLinear read_codes(const SourceTensor& tensor) const;       // of coded ones
  std::vector<float> read_f32(const SourceTensor& tensor) const;  // of both, in Hugging Face's layout

 private:
  void list_tensors();
  void list_store();

  std::string path_, container_;
  nlohmann::ordered_json json_;
  const Family* family_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<Model> store_;  // a packed store, which keeps weights by role; else tensors_
  mutable std::string made_;      // the tensor of the store that was asked for last
  std::unique_ptr<TensorSource> tensors_;
  const GgufModel* gguf_ = nullptr;
  std::unique_ptr<CodedSource> own_coded_;
  const CodedSource* coded_ = nullptr;
  std::vector<SourceTensor> list_;
  bool bare_names_ = false;
  mutable TensorInfo sliced_;
};

// A llama2.c file under Hugging Face's names, the rows of q and k in Hugging Face's order.
nlohmann::ordered_json llama2c_config(const Llama2cFile& file);

}  // namespace thimble
