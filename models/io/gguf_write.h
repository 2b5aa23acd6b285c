// GGUF v3: writing. Keys first, then declarations, then the data of each tensor in the order of the declarations; the
// file appears under its name when it is complete (see AtomicFile). The same calls give the same bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/io/gguf.h"
#include "tensor/file.h"

namespace thimble {

class GgufWriter {
 public:
  explicit GgufWriter(const std::string& path);

  void set_u32(const std::string& key, uint32_t value);
  void set_f32(const std::string& key, float value);
  void set_bool(const std::string& key, bool value);
  void set_string(const std::string& key, const std::string& value);
  void set_strings(const std::string& key, const std::vector<std::string>& values);
  void set_floats(const std::string& key, const std::vector<float>& values);
  void set_ints(const std::string& key, const std::vector<int32_t>& values);

  // dims[0] is the contiguous dimension. Throws input for names and shapes that the format cannot hold.
  void declare(const std::string& name, const std::vector<int64_t>& dims, GgmlType type);
  // Of the data section and of everything before it, as declared so far.
  uint64_t data_bytes() const { return data_bytes_; }
  uint64_t total_bytes() const;

  // Appends to the tensor whose turn it is; `name` must be that one. The first call ends the declarations.
  void write(const std::string& name, const void* data, size_t bytes);
  // Every tensor must have been filled.
  void finish();

 private:
  void key(const std::string& name, GgufType type);
  std::string header() const;
  void start();

  AtomicFile file_;
  std::string keys_;
  uint64_t n_keys_ = 0;
  std::vector<GgufTensor> tensors_;
  uint64_t data_bytes_ = 0;
  bool started_ = false;
  size_t current_ = 0;    // tensor
  uint64_t written_ = 0;  // bytes of it
};

}  // namespace thimble
