// safetensors: reading (one mapped file, or a directory of shards) and writing. The reader takes a file from a
// stranger: every rule of the format is checked before any tensor is handed out, and opening touches the header only.
// Errors: input with file, tensor and field; unsupported for a model that exists only as a pickle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/file.h"

namespace thimble {

// Every dtype of the format, in the order of safetensors_dtype_name(). C64 is a pair of f32.
enum class SafetensorsDtype : uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};
inline constexpr int kSafetensorsDtypes = 22;

const char* safetensors_dtype_name(SafetensorsDtype dtype);  // as in the file: "F8_E4M3"
int safetensors_dtype_bits(SafetensorsDtype dtype);          // per element: 4, 6, 8, 16, 32 or 64
std::optional<SafetensorsDtype> safetensors_dtype_from_name(std::string_view name);

struct TensorInfo {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::f32;
  std::vector<int64_t> shape;  // empty: a scalar; outermost first
  uint64_t offset = 0;         // from the start of the file's data section
  uint64_t bytes = 0;

  int64_t elements() const;
};

// "F32 [2, 3]", for messages.
std::string describe_tensor(const TensorInfo& info);

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // by offset: they tile the data section exactly
  std::map<std::string, std::string> metadata;  // __metadata__
  uint64_t data_bytes = 0;
};

inline constexpr uint64_t kSafetensorsMaxHeader = 100'000'000;
inline constexpr size_t kSafetensorsMaxRank = 32;

// Parses the JSON header alone (without its 8-byte length). data_bytes: what follows it in the file.
SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes, const std::string& file);

// One tensor inside a mapped file. data may be unaligned (old writers did not pad).
struct TensorView {
  const TensorInfo* info = nullptr;
  const std::byte* data = nullptr;
  std::string file;

  explicit operator bool() const { return info != nullptr; }
  // Convert all elements to out[info->elements()]. F32 F16 BF16 F64 BOOL and every integer type; integers beyond
  // the target's precision round to nearest. Throws unsupported, naming file and dtype, for the others.
  void read_f32(float* out) const;
  void read_f64(double* out) const;
  // Integer types and BOOL; a U64 above INT64_MAX is refused.
  void read_i64(int64_t* out) const;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }  // in file order
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::string& path() const { return map_.path(); }
  uint64_t file_bytes() const { return map_.size(); }

  const TensorInfo* find(const std::string& name) const;  // nullptr when absent
  // The first byte of a tensor; throws input when there is none of that name, or the file has been truncated since.
  const std::byte* data(const std::string& name) const;
  TensorView view(const std::string& name) const;
  void release_pages() const { map_.release_pages(); }
  void read_f32(const TensorInfo& info, float* out) const { view(info.name).read_f32(out); }
  void read_f64(const TensorInfo& info, double* out) const { view(info.name).read_f64(out); }
  void read_i64(const TensorInfo& info, int64_t* out) const { view(info.name).read_i64(out); }

 private:
  MappedFile map_;
  SafetensorsHeader header_;
  uint64_t data_start_ = 0;
  std::unordered_map<std::string, size_t> index_;
};

// Writes one file through a temporary name (see AtomicFile): declare every tensor, write the bytes of each, finish().
// Same declarations and bytes give the same file whatever the order of the calls: tensors stand by falling element
// size, then by name, and the header is padded so that the data starts 8-byte aligned. With a larger alignment, a
// multiple of 8, tensors whose size is a multiple of it come first, and so start at multiples of it.
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(const std::string& path, uint64_t alignment = 8);
  ~SafetensorsWriter();

  void set_metadata(const std::string& key, const std::string& value);
  // Throws input for a duplicate or invalid name, or a shape that the format cannot hold.
  void declare(const std::string& name, SafetensorsDtype dtype, const std::vector<int64_t>& shape);
  // Appends to the tensor; several calls may fill it piece by piece, and tensors may be written in any order. The
  // first call ends the declarations.
  void write(const std::string& name, const void* data, size_t bytes);
  // Completes the file and renames it into place. Every tensor must have been filled.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct NamedTensor {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::f32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// Writes dir/model.safetensors when everything fits into max_shard_bytes of tensor data, else
// dir/model-00001-of-0000N.safetensors ... in the given order and then dir/model.safetensors.index.json. Files of the
// other layout that an earlier save left in dir are removed last, since they would shadow the new ones.
void write_safetensors_sharded(const std::string& dir, const std::vector<NamedTensor>& tensors,
                               const std::map<std::string, std::string>& metadata, uint64_t max_shard_bytes);

}  // namespace thimble
