// Shared by the tests of packed formats: bits set one at a time, floats in 16 bits by arithmetic, and damage to whole
// checkpoints. Nothing here is the readers' code.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>

#include "models/io/coded_linear.h"
#include "tests/io/support.h"

namespace thimble::io_test {

// Sets the field of `bits` bits that starts at bit `bit` of a row of 32-bit words.
inline void set_bits(uint32_t* words, size_t bit, int bits, int value) {
  for (int b = 0; b < bits; ++b)
    if (value >> b & 1) words[(bit + static_cast<size_t>(b)) / 32] |= 1u << (bit + static_cast<size_t>(b)) % 32;
}

// A value of a small float type: mantissa bits, exponent bits; normal values only.
inline uint16_t small_float(double value, int mantissa, int exponent) {
  if (value == 0) return 0;
  int e;
  const double fraction = std::frexp(std::fabs(value), &e) * 2 - 1;  // |value| = (1 + fraction) 2^(e - 1)
  const int bias = (1 << (exponent - 1)) - 1;
  auto field = static_cast<long>(std::nearbyint(std::ldexp(fraction, mantissa)));  // ties to even; may carry
  const long bits = (static_cast<long>(e - 1 + bias) << mantissa) + field;
  return static_cast<uint16_t>(bits | (value < 0 ? 0x8000 : 0));
}
inline uint16_t to_f16(double v) { return small_float(v, 10, 5); }
inline uint16_t to_bf16(double v) { return small_float(v, 7, 8); }
inline double from_small(uint16_t h, int mantissa, int exponent) {
  const int field = (h & 0x7FFF) >> mantissa, bias = (1 << (exponent - 1)) - 1;
  if ((h & 0x7FFF) == 0) return 0;
  const double v = std::ldexp(1 + std::ldexp(h & ((1 << mantissa) - 1), -mantissa), field - bias);
  return h & 0x8000 ? -v : v;
}

// Scales that f16 and bf16 hold exactly.
inline double scale_of(int64_t o, int64_t g) { return 0.25 + 0.0625 * static_cast<double>((o * 3 + g * 5) % 8); }

// Tensors that own their bytes.
struct Tensors {
  struct One {
    std::string name;
    SafetensorsDtype dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::vector<One> list;

  template <class T>
  void add(const std::string& name, SafetensorsDtype dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
    list.push_back({name, dtype, std::move(shape),
                    std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))});
  }
  void add_floats(const std::string& name, SafetensorsDtype dtype, std::vector<int64_t> shape,
                  const std::vector<double>& values) {
    std::vector<uint16_t> half;
    std::vector<float> wide;
    for (double v : values) {
      half.push_back(dtype == SafetensorsDtype::f16 ? to_f16(v) : to_bf16(v));
      wide.push_back(static_cast<float>(v));
    }
    dtype == SafetensorsDtype::f32 ? add(name, dtype, std::move(shape), wide)
                                   : add(name, dtype, std::move(shape), half);
  }
  One& at(const std::string& name) {
    for (One& one : list)
      if (one.name == name) return one;
    throw std::runtime_error("no tensor " + name);
  }
  void remove(const std::string& name) {
    for (size_t i = 0; i < list.size(); ++i)
      if (list[i].name == name) list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
  }
  void write(const std::string& path) const {
    std::vector<NamedTensor> named;
    for (const One& one : list) named.push_back({one.name, one.dtype, one.shape, one.bytes.data()});
    write_safetensors(path, named);
  }
};

// A model directory with quantization_config and tensors, and the source that it opens.
struct Checkpoint {
  ScratchDir dir;
  std::unique_ptr<SafetensorsSet> set;
  std::unique_ptr<CodedSource> source;

  Checkpoint(const std::string& quantization_config, const Tensors& tensors) {
    put_file(dir / "config.json", "{\"quantization_config\":" + quantization_config + "}");
    tensors.write(dir / "model.safetensors");
    set = std::make_unique<SafetensorsSet>(dir.path());
    source = open_coded_source(dir.path(), *set);
  }
};

// What read() says a module is, against values in doubles, [out][in].
inline void expect_weights(const CodedLinear& l, int64_t out, int64_t in, const std::vector<double>& want) {
  ASSERT_EQ(l.out, out);
  ASSERT_EQ(l.in, in);
  const std::vector<float> got = l.dequantize();
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], static_cast<float>(want[i])) << "element " << i;
}

inline void expect_refused(ErrorCode code, std::initializer_list<std::string> parts, const std::string& config,
                           const Tensors& tensors, const std::string& module = "l") {
  expect_error(code, parts, [&] { Checkpoint(config, tensors).source->read(module); });
}

// Random damage to config and tensors is refused or harmless.
inline void damage(const std::string& config, const Tensors& tensors, int rounds) {
  const ScratchDir dir;
  const std::string json = "{\"quantization_config\":" + config + "}";
  put_file(dir / "config.json", json);
  tensors.write(dir / "model.safetensors");
  const std::string file = get_file(dir / "model.safetensors");
  Random random{7};
  int read = 0, refused = 0;
  for (int i = 0; i < rounds; ++i) {
    const bool of_config = i % 2 == 0;
    put_file(dir / "config.json", of_config ? mutate(json, random, json.size()) : json);
    put_file(dir / "model.safetensors", of_config ? file : mutate(file, random, file.size()));
    try {
      const SafetensorsSet set(dir.path());
      const std::unique_ptr<CodedSource> source = open_coded_source(dir.path(), set);
      if (!source) continue;
      for (const std::string& name : set.names()) {
        const std::string module = name.substr(0, name.find('.'));
        if (!source->has(module)) continue;
        source->tensors(module);
        (void)source->read(module).dequantize();
        ++read;
      }
    } catch (const Error& e) {
      EXPECT_TRUE(e.code() == ErrorCode::input || e.code() == ErrorCode::unsupported) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(read, rounds / 50);
  EXPECT_GT(refused, rounds / 20);
}

}  // namespace thimble::io_test
