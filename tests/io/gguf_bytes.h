// Builds GGUF files by hand, right or wrong ones: nothing in common with the reader.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thimble::io_test {

template <class T>
void put(std::string& to, T v) {
  to.append(reinterpret_cast<const char*>(&v), sizeof v);
}

inline void put_string(std::string& to, const std::string& s) {
  put<uint64_t>(to, s.size());
  to += s;
}

struct GgufBytes {
  struct Tensor {
    std::string name;
    std::vector<int64_t> dims;
    uint32_t type = 0;
    std::string data;
    int64_t offset = -1;  // -1: where it belongs
  };
  uint32_t version = 3;
  uint64_t alignment = 32;
  std::string keys;  // encoded
  uint64_t n_keys = 0;
  std::vector<Tensor> tensors;
  int64_t n_tensors = -1;  // -1: as many as there are

  void key(const std::string& name, uint32_t type, const std::string& value) {
    put_string(keys, name);
    put(keys, type);
    keys += value;
    ++n_keys;
  }
  template <class T>
  void number(const std::string& name, uint32_t type, T v) {
    std::string value;
    put(value, v);
    key(name, type, value);
  }
  void u32(const std::string& name, uint32_t v) { number(name, 4, v); }
  void f32(const std::string& name, float v) { number(name, 6, v); }
  void boolean(const std::string& name, bool v) { number<uint8_t>(name, 7, v); }
  void text(const std::string& name, const std::string& v) {
    std::string value;
    put_string(value, v);
    key(name, 8, value);
  }
  void array(const std::string& name, uint32_t element, uint64_t count, const std::string& elements) {
    std::string value;
    put(value, element);
    put(value, count);
    key(name, 9, value + elements);
  }
  void strings(const std::string& name, const std::vector<std::string>& v) {
    std::string elements;
    for (const std::string& s : v) put_string(elements, s);
    array(name, 8, v.size(), elements);
  }
  template <class T>
  void numbers(const std::string& name, uint32_t element, const std::vector<T>& v) {
    std::string elements;
    for (T x : v) put(elements, x);
    array(name, element, v.size(), elements);
  }
  void tensor(const std::string& name, std::vector<int64_t> dims, uint32_t type, std::string data) {
    tensors.push_back({name, std::move(dims), type, std::move(data), -1});
  }

  std::string bytes() const {
    std::string out = "GGUF", data;
    put(out, version);
    put<int64_t>(out, n_tensors == -1 ? static_cast<int64_t>(tensors.size()) : n_tensors);
    put(out, n_keys);
    out += keys;
    for (const Tensor& t : tensors) {
      put_string(out, t.name);
      put(out, static_cast<uint32_t>(t.dims.size()));
      for (int64_t d : t.dims) put(out, d);
      put(out, t.type);
      put<uint64_t>(out, t.offset < 0 ? data.size() : static_cast<uint64_t>(t.offset));
      data += t.data;
      data.resize((data.size() + alignment - 1) / alignment * alignment);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

}  // namespace thimble::io_test
