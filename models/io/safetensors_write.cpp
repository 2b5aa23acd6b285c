// The writer half of safetensors.h.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "models/io/json.h"
#include "models/io/safetensors.h"
#include "tensor/error.h"

namespace thimble {
namespace {

std::string json_string(const std::string& path, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorCode::input, path + ": a tensor name or metadata entry is not valid UTF-8", "rename it");
  }
}

uint64_t tensor_bytes(const std::string& path, const std::string& name, SafetensorsDtype dtype,
                      const std::vector<int64_t>& shape) {
  const auto fail = [&](const char* what) {
    throw Error(ErrorCode::input, fmt::format("{}: tensor {}: shape [{}]: {}", path, quote_for_message(name),
                                              fmt::join(shape, ", "), what));
  };
  if (shape.size() > kSafetensorsMaxRank) fail("too many dimensions");
  uint64_t elements = 1, bits = 0;
  for (const int64_t d : shape) {
    if (d < 0) fail("negative dimension");
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(d), &elements) ||
        elements > static_cast<uint64_t>(INT64_MAX))
      fail("the size overflows 64 bits");
  }
  if (__builtin_mul_overflow(elements, static_cast<uint64_t>(safetensors_dtype_bits(dtype)), &bits))
    fail("the size overflows 64 bits");
  if (bits % 8 != 0) fail("does not fill whole bytes");
  return bits / 8;
}

}  // namespace

struct SafetensorsWriter::State {
  struct Tensor {
    TensorInfo info;
    uint64_t written = 0;
  };

  State(const std::string& p, uint64_t a) : path(p), alignment(a), file(p) {}

  void write_header() {
    std::vector<Tensor*> order;
    for (auto& entry : tensors) order.push_back(&entry.second);  // by name, from the map
    std::stable_sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) {
      return safetensors_dtype_bits(a->info.dtype) > safetensors_dtype_bits(b->info.dtype);
    });
    if (alignment > 8)
      std::stable_partition(order.begin(), order.end(), [&](const Tensor* t) { return t->info.bytes % alignment == 0; });
    std::string header = "{";
    if (!metadata.empty()) {
      header += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata) {
        if (header.back() != '{') header += ',';
        header += json_string(path, key) + ":" + json_string(path, value);
      }
      header += '}';
    }
    uint64_t at = 0;
    for (Tensor* t : order) {
      if (header.size() > 1) header += ',';
      t->info.offset = at;
      at += t->info.bytes;
      header += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                            json_string(path, t->info.name), safetensors_dtype_name(t->info.dtype),
                            fmt::join(t->info.shape, ","), t->info.offset, at);
    }
    header += '}';
    header.resize((header.size() + 8 + alignment - 1) / alignment * alignment - 8, ' ');
    if (header.size() > kSafetensorsMaxHeader)
      throw Error(ErrorCode::input, path + ": the header would exceed 100 MB", "write fewer tensors per file");
    char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xFF);
    file.write(length, sizeof length);
    file.write(header);
    data_start = sizeof length + header.size();
    declared = true;
  }

  std::string path;
  uint64_t alignment;
  AtomicFile file;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;
  bool declared = false;
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, uint64_t alignment)
    : state_(std::make_unique<State>(path, alignment)) {
  THIMBLE_CHECK(alignment >= 8 && alignment % 8 == 0);
}
SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::set_metadata(const std::string& key, const std::string& value) {
  THIMBLE_CHECK(!state_->declared);
  state_->metadata[key] = value;
}

void SafetensorsWriter::declare(const std::string& name, SafetensorsDtype dtype, const std::vector<int64_t>& shape) {
  State& s = *state_;
  THIMBLE_CHECK(!s.declared);
  State::Tensor tensor;
  tensor.info.name = name;
  tensor.info.dtype = dtype;
  tensor.info.shape = shape;
  tensor.info.bytes = tensor_bytes(s.path, name, dtype, shape);
  if (name == "__metadata__" || !s.tensors.emplace(name, std::move(tensor)).second)
    throw Error(ErrorCode::input, s.path + ": tensor " + quote_for_message(name) + ": the name is taken", "rename one");
}

void SafetensorsWriter::write(const std::string& name, const void* data, size_t bytes) {
  State& s = *state_;
  if (!s.declared) s.write_header();
  const auto it = s.tensors.find(name);
  THIMBLE_CHECK(it != s.tensors.end());
  State::Tensor& t = it->second;
  THIMBLE_CHECK(bytes <= t.info.bytes - t.written);
  s.file.write_at(s.data_start + t.info.offset + t.written, data, bytes);
  t.written += bytes;
}

void SafetensorsWriter::finish() {
  State& s = *state_;
  if (!s.declared) s.write_header();
  for (const auto& entry : s.tensors) THIMBLE_CHECK(entry.second.written == entry.second.info.bytes);
  s.file.commit();
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer(path);
  for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
  for (const NamedTensor& t : tensors) writer.declare(t.name, t.dtype, t.shape);
  for (const NamedTensor& t : tensors) writer.write(t.name, t.data, tensor_bytes(path, t.name, t.dtype, t.shape));
  writer.finish();
}

void write_safetensors_sharded(const std::string& dir, const std::vector<NamedTensor>& tensors,
                               const std::map<std::string, std::string>& metadata, uint64_t max_shard_bytes) {
  const std::string single = join_path(dir, "model.safetensors");
  const std::string index = join_path(dir, "model.safetensors.index.json");
  make_directories(dir);
  std::vector<std::vector<NamedTensor>> shards(1);
  uint64_t in_shard = 0, total = 0;
  for (const NamedTensor& t : tensors) {
    const uint64_t bytes = tensor_bytes(single, t.name, t.dtype, t.shape);
    if (!shards.back().empty() && in_shard + bytes > max_shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(t);
    in_shard += bytes;
    total += bytes;
  }
  const auto remove_stale = [](const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
      throw Error(ErrorCode::input, path + ": cannot remove the file of an earlier save: " + std::strerror(errno),
                  "remove it by hand");
  };
  if (shards.size() == 1) {
    write_safetensors(single, tensors, metadata);
    remove_stale(index);
    return;
  }
  nlohmann::json map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(join_path(dir, name), shards[i], metadata);
    for (const NamedTensor& t : shards[i])
      if (!map.emplace(t.name, name).second)
        throw Error(ErrorCode::input, index + ": tensor " + quote_for_message(t.name) + ": the name is taken",
                    "rename one");
  }
  const nlohmann::json content = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file(index, content.dump(2) + "\n");
  remove_stale(single);
}

}  // namespace thimble
