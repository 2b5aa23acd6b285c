#include "models/io/gguf_write.h"

#include <fmt/format.h>

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr uint64_t kAlignment = 32;  // the format's default, which needs no key

template <class T>
void put(std::string& to, T v) {
  to.append(reinterpret_cast<const char*>(&v), sizeof v);
}
void put_string(std::string& to, const std::string& s) {
  put<uint64_t>(to, s.size());
  to += s;
}
uint64_t padded(uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

GgufWriter::GgufWriter(const std::string& path) : file_(path) {}

void GgufWriter::key(const std::string& name, GgufType type) {
  THIMBLE_CHECK(!started_);
  put_string(keys_, name);
  put(keys_, static_cast<uint32_t>(type));
  ++n_keys_;
}
void GgufWriter::set_u32(const std::string& name, uint32_t value) { key(name, GgufType::u32), put(keys_, value); }
void GgufWriter::set_f32(const std::string& name, float value) { key(name, GgufType::f32), put(keys_, value); }
void GgufWriter::set_bool(const std::string& name, bool value) {
  key(name, GgufType::boolean), put<uint8_t>(keys_, value);
}
void GgufWriter::set_string(const std::string& name, const std::string& value) {
  key(name, GgufType::string), put_string(keys_, value);
}

void GgufWriter::set_strings(const std::string& name, const std::vector<std::string>& values) {
  key(name, GgufType::array);
  put(keys_, static_cast<uint32_t>(GgufType::string));
  put<uint64_t>(keys_, values.size());
  for (const std::string& v : values) put_string(keys_, v);
}
void GgufWriter::set_floats(const std::string& name, const std::vector<float>& values) {
  key(name, GgufType::array);
  put(keys_, static_cast<uint32_t>(GgufType::f32));
  put<uint64_t>(keys_, values.size());
  for (float v : values) put(keys_, v);
}
void GgufWriter::set_ints(const std::string& name, const std::vector<int32_t>& values) {
  key(name, GgufType::array);
  put(keys_, static_cast<uint32_t>(GgufType::i32));
  put<uint64_t>(keys_, values.size());
  for (int32_t v : values) put(keys_, v);
}

void GgufWriter::declare(const std::string& name, const std::vector<int64_t>& dims, GgmlType type) {
  THIMBLE_CHECK(!started_);
  const GgmlTypeInfo& info = ggml_type_info(type);
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::input, fmt::format("tensor {}: {}", quote_for_message(name), what), "GGUF cannot hold it");
  };
  if (name.empty() || name.size() > 63) refuse("its name has more than 63 bytes, or none");
  if (dims.empty() || dims.size() > 4) refuse(fmt::format("{} dimensions: expected 1 to 4", dims.size()));
  if (dims[0] % info.elements != 0)
    refuse(fmt::format("rows of {} elements are no multiple of {}'s block of {}", dims[0], info.name, info.elements));
  GgufTensor t;
  t.name = name;
  t.dims = dims;
  t.type = type;
  t.offset = data_bytes_;
  t.bytes = static_cast<uint64_t>(t.elements() / info.elements) * static_cast<uint64_t>(info.bytes);
  data_bytes_ += padded(t.bytes);
  tensors_.push_back(std::move(t));
}

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, tensors_.size());
  put<uint64_t>(out, n_keys_);
  out += keys_;
  for (const GgufTensor& t : tensors_) {
    put_string(out, t.name);
    put(out, static_cast<uint32_t>(t.dims.size()));
    for (int64_t d : t.dims) put(out, d);
    put(out, static_cast<uint32_t>(t.type));
    put(out, t.offset);
  }
  out.resize(padded(out.size()));
  return out;
}

uint64_t GgufWriter::total_bytes() const { return header().size() + data_bytes_; }

void GgufWriter::start() {
  started_ = true;
  file_.write(header());
}

void GgufWriter::write(const std::string& name, const void* data, size_t bytes) {
  if (!started_) start();
  THIMBLE_CHECK(current_ < tensors_.size() && tensors_[current_].name == name &&
                bytes <= tensors_[current_].bytes - written_);
  file_.write(data, bytes);
  written_ += bytes;
  if (written_ < tensors_[current_].bytes) return;
  const std::string zeros(padded(written_) - written_, '\0');
  file_.write(zeros);
  ++current_;
  written_ = 0;
}

void GgufWriter::finish() {
  if (!started_) start();
  THIMBLE_CHECK(current_ == tensors_.size());
  file_.commit();
}

}  // namespace thimble
