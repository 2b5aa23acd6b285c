// Named tensors of a checkpoint, whatever file holds them: safetensors, a pickle, GGUF. The loader of models knows no other.
#pragma once

#include <string>
#include <vector>

#include "models/io/safetensors.h"

namespace thimble {

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  virtual const std::string& path() const = 0;                // for messages
  virtual const std::vector<std::string>& names() const = 0;  // sorted; every tensor of the file, quantized ones included
  virtual uint64_t file_bytes() const = 0;                    // of all files
  // Empty when absent. The bytes stay valid as long as the source. A tensor whose elements are no SafetensorsDtype (blocks
  // of GGUF) is never handed out here: it is read through a CodedSource.
  virtual TensorView find_view(const std::string& name) const = 0;

  // Gives the pages of mapped files back to the system. Views stay valid: what they show is read again when it is used.
  virtual void release_pages() const {}
  // Says that so many bytes were read and will not be soon again: after some tens of megabytes their pages are released.
  void done_with(uint64_t bytes) const {
    done_ += bytes;
    if (done_ < uint64_t{32} << 20) return;
    release_pages();
    done_ = 0;
  }
  // Ends the views of tensors that lie in no file as they are and were made when they were asked for.
  virtual void forget_views() const {}

  bool has(const std::string& name) const { return static_cast<bool>(find_view(name)); }
  TensorView view(const std::string& name) const;  // throws input when absent

 private:
  mutable uint64_t done_ = 0;
};

// All tensors of a model: a .safetensors file, or a directory with model.safetensors, or with
// model.safetensors.index.json and its shards. An index is not trusted: shards are plain file names that stay inside
// the directory, and index and shards must name the same tensors.
class SafetensorsSet final : public TensorSource {
 public:
  explicit SafetensorsSet(const std::string& path);

  // True when the path holds something this class reads; lets callers probe for other formats.
  static bool present(const std::string& path);

  const std::string& path() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override;
  TensorView find_view(const std::string& name) const override;
  void release_pages() const override;
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  // The metadata of the first file.
  const std::map<std::string, std::string>& metadata() const { return files_.front()->metadata(); }

  const TensorInfo* find(const std::string& name) const;  // nullptr when absent
  const std::byte* data(const std::string& name) const;   // as SafetensorsFile::data

 private:
  const SafetensorsFile* file_of(const std::string& name) const;

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, size_t> where_;  // name -> index into files_
};

}  // namespace thimble
