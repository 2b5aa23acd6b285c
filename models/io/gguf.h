// GGUF v2 and v3: reading. Metadata (typed keys, the tokenizer's arrays) and tensors in a mapped file. The reader
// accepts what ggml's own reader accepts and refuses the rest, since a file that only one of the two loads helps
// nobody. Errors: input with file and key or tensor; unsupported for tensor types that are known but not decoded here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/file.h"

namespace thimble {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
inline constexpr uint32_t kGgufTypes = 13;
const char* gguf_type_name(GgufType type);  // "u32", "string"

// The numbers of the file format.
enum class GgmlType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  bf16 = 30,
};

struct GgmlTypeInfo {
  const char* name;  // "Q4_K"
  int elements;      // of a block; 1 for plain types
  int bytes;         // of a block
};
// Null for numbers that no released format has (or had and removed).
const GgmlTypeInfo* ggml_type_info(uint32_t type);
inline const GgmlTypeInfo& ggml_type_info(GgmlType type) { return *ggml_type_info(static_cast<uint32_t>(type)); }

// What the metadata says under a key: a value or an array of values that still lie in the header.
struct GgufEntry {
  GgufType type = GgufType::u8;
  GgufType element = GgufType::u8;  // of an array
  uint64_t count = 1;               // of an array; else 1
  size_t offset = 0;                // of the first element in the header
  size_t bytes = 0;                 // of all elements
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> dims;  // as in the file: dims[0] is the contiguous dimension; empty for a scalar
  GgmlType type = GgmlType::f32;
  uint64_t offset = 0;  // from the start of the data section
  uint64_t bytes = 0;

  int64_t elements() const;
  std::vector<int64_t> shape() const {
    return {dims.rbegin(), dims.rend()};
  }  // outermost first, as everywhere else here
};

class GgufFile {
 public:
  explicit GgufFile(const std::string& path);
  // The same checks for bytes in memory; `name` stands for the file in messages.
  static GgufFile from_memory(std::string bytes, const std::string& name);

  const std::string& path() const { return name_; }
  uint32_t version() const { return version_; }
  uint64_t file_bytes() const { return size_; }
  uint64_t alignment() const { return alignment_; }

  const std::vector<std::string>& keys() const { return keys_; }  // in file order
  const GgufEntry* find(const std::string& key) const;            // nullptr when absent
  bool has(const std::string& key) const { return find(key) != nullptr; }

  // Empty when absent; throw input, naming key and types, when the value is of another kind. Integers of every width
  // (and booleans for none of them) count as integers; a u64 above INT64_MAX is refused. Floats accept integers too.
  std::optional<std::string> get_string(const std::string& key) const;
  std::optional<int64_t> get_int(const std::string& key) const;
  std::optional<double> get_float(const std::string& key) const;
  std::optional<bool> get_bool(const std::string& key) const;
  // As above, but throws input when absent or outside min..max.
  int64_t require_int(const std::string& key, int64_t min, int64_t max) const;
  std::string require_string(const std::string& key) const;

  // Arrays; empty when absent. A single value is not an array of one. The views point into the header, which lives as
  // long as this object (moving it keeps them valid): a vocabulary is not copied.
  std::vector<std::string_view> get_strings(const std::string& key) const;
  std::vector<int64_t> get_ints(const std::string& key) const;  // booleans become 0 and 1
  std::vector<float> get_floats(const std::string& key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* find_tensor(const std::string& name) const;        // nullptr when absent
  // The first byte of a tensor's data; throws input when the file has been truncated since it was opened.
  const std::byte* data(const GgufTensor& tensor) const;
  void release_pages() const { map_.release_pages(); }  // see MappedFile

  // True when the file starts with the magic bytes.
  static bool present(const std::string& path);

 private:
  class Cursor;
  GgufFile() = default;
  void parse();
  void parse_metadata(Cursor& in, uint64_t count);
  void parse_tensors(Cursor& in, uint64_t count);
  const GgufEntry& array_of(const std::string& key, const GgufEntry& entry, const char* expected) const;
  int64_t int_at(const std::string& key, GgufType type, size_t offset) const;
  [[noreturn]] void wrong_type(const std::string& key, const GgufEntry& entry, const char* expected) const;

  std::string name_;
  MappedFile map_;
  std::string memory_;  // instead of map_
  bool in_memory_ = false;
  uint64_t size_ = 0;
  std::vector<char> header_;  // everything before the data section; a vector because moving it keeps its bytes in place
  uint64_t data_start_ = 0;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  std::vector<std::string> keys_;
  std::unordered_map<std::string, GgufEntry> entries_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_index_;
};

}  // namespace thimble
