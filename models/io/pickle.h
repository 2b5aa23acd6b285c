// PyTorch checkpoints (pytorch_model.bin, one or in shards): a zip container with a pickle that says where tensors lie.
// The pickle is read by an interpreter that knows what a state dict needs and nothing else: no code of the file runs,
// no name is imported, and everything unknown is refused by name (unsupported). Errors otherwise: input with file and
// member or tensor. Files from before the zip container are unsupported.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/io/tensor_source.h"
#include "tensor/arena.h"
#include "tensor/file.h"

namespace thimble {

// One checkpoint file. Tensors keep the order of their names; views of contiguous ones point into the mapped file,
// others (transposed, sliced) are put in order when they are asked for.
class PickleFile {
 public:
  explicit PickleFile(const std::string& path);
  // The same for bytes in memory; `name` stands for the file in messages.
  PickleFile(std::string bytes, const std::string& name);

  const std::string& path() const { return name_; }
  uint64_t file_bytes() const { return size_; }
  struct Tensor {
    TensorInfo info;               // offset: of the first element, from the start of the file
    std::vector<int64_t> strides;  // in elements
    bool contiguous = true;
  };
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  TensorView find_view(const std::string& name) const;  // empty when absent
  void release_pages() const { map_.release_pages(); }
  void forget_views() const { ordered_.clear(); }

 private:
  struct Member {
    uint64_t offset = 0, bytes = 0;
  };
  void parse();
  void read_directory();
  void read_pickle();
  std::string bytes_at(uint64_t offset, uint64_t bytes) const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string name_;
  MappedFile map_;
  std::string memory_;  // instead of map_
  bool in_memory_ = false;
  uint64_t size_ = 0;
  std::map<std::string, Member> members_;
  std::string root_;  // of the archive: "pytorch_model/"
  std::map<std::string, Tensor> tensors_;
  mutable std::map<std::string, Buffer> ordered_;
};

// All tensors of a directory with pytorch_model.bin, or with pytorch_model.bin.index.json and its shards.
class PickleSet final : public TensorSource {
 public:
  explicit PickleSet(const std::string& dir);
  static bool present(const std::string& dir);

  const std::string& path() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override;
  TensorView find_view(const std::string& name) const override;
  void release_pages() const override;
  void forget_views() const override;

 private:
  std::string path_;
  std::vector<std::unique_ptr<PickleFile>> files_;
  std::vector<std::string> names_;
  std::map<std::string, size_t> where_;
};

}  // namespace thimble
