// The GGUF container: typed metadata, tensors, every rule of ggml's own reader, random damage.
#include "models/io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/io/gguf_bytes.h"
#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

GgufBytes sample() {
  GgufBytes b;
  b.text("general.architecture", "llama");
  b.u32("llama.block_count", 7);
  b.number<uint64_t>("wide", 10, 1u << 20);
  b.number<uint64_t>("too_wide", 10, ~uint64_t{0});
  b.number<int8_t>("small", 1, -3);
  b.f32("eps", 0.5f);
  b.number<double>("eps64", 12, 0.25);
  b.boolean("yes", true);
  b.strings("tokens", {"a", "", std::string("b\0c", 3)});
  b.numbers<float>("scores", 6, {1.5f, -2.0f});
  b.numbers<int32_t>("types", 5, {3, -1});
  b.numbers<uint8_t>("flags", 7, {1, 0, 2});
  b.strings("none", {});
  b.tensor("one", {4, 2}, 0, std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"));
  b.tensor("two", {32, 1, 2}, 2, std::string(36, 'q'));
  b.tensor("scalar", {}, 1, "hh");
  return b;
}

GgufFile parse(const GgufBytes& b) { return GgufFile::from_memory(b.bytes(), "x.gguf"); }

TEST(Gguf, ReadsMetadataByType) {
  for (uint32_t version : {2u, 3u}) {
    GgufBytes b = sample();
    b.version = version;
    const GgufFile f = parse(b);
    EXPECT_EQ(f.version(), version);
    EXPECT_EQ(f.get_string("general.architecture"), "llama");
    EXPECT_EQ(f.get_int("llama.block_count"), 7);
    EXPECT_EQ(f.get_int("wide"), 1 << 20);
    EXPECT_EQ(f.get_int("small"), -3);
    EXPECT_EQ(f.get_float("eps"), 0.5);
    EXPECT_EQ(f.get_float("eps64"), 0.25);
    EXPECT_EQ(f.get_float("small"), -3.0);
    EXPECT_EQ(f.get_bool("yes"), true);
    EXPECT_EQ(f.get_int("absent"), std::nullopt);
    EXPECT_EQ(f.keys().size(), 13u);
    EXPECT_EQ(f.keys()[1], "llama.block_count");
    const std::vector<std::string_view> tokens = f.get_strings("tokens");
    ASSERT_EQ(tokens.size(), 3u);
    EXPECT_EQ(tokens[0], "a");
    EXPECT_EQ(tokens[1], "");
    EXPECT_EQ(tokens[2], std::string_view("b\0c", 3));
    EXPECT_EQ(f.get_floats("scores"), (std::vector<float>{1.5f, -2.0f}));
    EXPECT_EQ(f.get_ints("types"), (std::vector<int64_t>{3, -1}));
    EXPECT_EQ(f.get_ints("flags"), (std::vector<int64_t>{1, 0, 1}));
    EXPECT_TRUE(f.get_strings("none").empty());
    EXPECT_TRUE(f.get_strings("absent").empty());
  }
}

TEST(Gguf, RefusesOtherTypesByName) {
  const GgufFile f = parse(sample());
  expect_error(ErrorCode::input, {"x.gguf", "\"eps\"", "expected an integer", "f32"}, [&] { f.get_int("eps"); });
  expect_error(ErrorCode::input, {"\"yes\"", "expected an integer", "bool"}, [&] { f.get_int("yes"); });
  expect_error(ErrorCode::input, {"too_wide", "too large"}, [&] { f.get_int("too_wide"); });
  expect_error(ErrorCode::input, {"tokens", "expected a string", "an array of string"},
               [&] { f.get_string("tokens"); });
  expect_error(ErrorCode::input, {"types", "an array of strings"}, [&] { f.get_strings("types"); });
  expect_error(ErrorCode::input, {"scores", "an array of integers"}, [&] { f.get_ints("scores"); });
  expect_error(ErrorCode::input, {"types", "an array of floats"}, [&] { f.get_floats("types"); });
  expect_error(ErrorCode::input, {"small", "bool"}, [&] { f.get_bool("small"); });
  expect_error(ErrorCode::input, {"absent", "missing"}, [&] { f.require_int("absent", 0, 1); });
  expect_error(ErrorCode::input, {"block_count", "between 1 and 6", "found 7"},
               [&] { f.require_int("llama.block_count", 1, 6); });
}

TEST(Gguf, FindsTensorsInTheFile) {
  const testing::ScratchDir dir;
  put_file(dir.path() + "/x.gguf", sample().bytes());
  EXPECT_TRUE(GgufFile::present(dir.path() + "/x.gguf"));
  const GgufFile f(dir.path() + "/x.gguf");
  ASSERT_EQ(f.tensors().size(), 3u);
  const GgufTensor* one = f.find_tensor("one");
  ASSERT_NE(one, nullptr);
  EXPECT_EQ(one->shape(), (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(one->elements(), 8);
  EXPECT_EQ(std::memcmp(f.data(*one), "ABCDEFGH", 8), 0);
  const GgufTensor* two = f.find_tensor("two");
  ASSERT_NE(two, nullptr);
  EXPECT_EQ(two->type, GgmlType::q4_0);
  EXPECT_EQ(two->bytes, 36u);
  EXPECT_EQ(static_cast<char>(*f.data(*two)), 'q');
  EXPECT_EQ(f.find_tensor("scalar")->elements(), 1);
  EXPECT_EQ(f.find_tensor("three"), nullptr);
  std::filesystem::resize_file(dir.path() + "/x.gguf", 100);
  expect_error(ErrorCode::input, {"x.gguf"}, [&] { f.data(*one); });
}

TEST(Gguf, MovesWithItsViews) {
  GgufFile a = parse(sample());
  const std::vector<std::string_view> tokens = a.get_strings("tokens");
  const GgufFile b = std::move(a);
  EXPECT_EQ(tokens[0].data(), b.get_strings("tokens")[0].data());
  EXPECT_EQ(std::memcmp(b.data(*b.find_tensor("one")), "ABCD", 4), 0);
}

TEST(Gguf, HonoursAlignment) {
  GgufBytes b = sample();
  b.u32("general.alignment", 128);
  b.alignment = 128;
  const GgufFile f = parse(b);
  EXPECT_EQ(f.alignment(), 128u);
  EXPECT_EQ(f.find_tensor("two")->offset, 128u);
  EXPECT_EQ(static_cast<char>(*f.data(*f.find_tensor("two"))), 'q');
  b.alignment = 32;
  expect_error(ErrorCode::input, {"tensor \"two\"", "offset 32", "expected 128"}, [&] { parse(b); });
}

// What comes after the last tensor's data may be missing: ggml pads, other writers do not.
TEST(Gguf, NeedsNoPaddingAtTheEnd) {
  std::string bytes = sample().bytes();
  bytes.resize(bytes.size() - 30);
  const GgufFile f = GgufFile::from_memory(bytes, "x");
  EXPECT_EQ(std::memcmp(f.data(*f.find_tensor("scalar")), "hh", 2), 0);
  bytes.pop_back();
  expect_error(ErrorCode::input, {"scalar", "truncated"}, [&] { GgufFile::from_memory(bytes, "x"); });
}

template <class F>
void refused(ErrorCode code, std::initializer_list<std::string> parts, F change) {
  GgufBytes b = sample();
  change(b);
  expect_error(code, parts, [&] { parse(b); });
}

TEST(Gguf, RefusesWhatGgmlRefuses) {
  const ErrorCode input = ErrorCode::input;
  refused(ErrorCode::unsupported, {"version 1"}, [](GgufBytes& b) { b.version = 1; });
  refused(input, {"version 0"}, [](GgufBytes& b) { b.version = 0; });
  refused(ErrorCode::unsupported, {"version 4"}, [](GgufBytes& b) { b.version = 4; });
  refused(ErrorCode::unsupported, {"big-endian"}, [](GgufBytes& b) { b.version = 0x03000000; });
  refused(input, {"key 13 is empty"}, [](GgufBytes& b) { b.u32("", 1); });
  refused(input, {"\"eps\" stands twice"}, [](GgufBytes& b) { b.u32("eps", 1); });
  refused(input, {"\"odd\"", "unknown type 13"}, [](GgufBytes& b) { b.key("odd", 13, "xxxxxxxx"); });
  refused(input, {"\"odd\"", "unknown element type 77"}, [](GgufBytes& b) { b.array("odd", 77, 0, ""); });
  refused(input, {"\"deep\"", "nested arrays"}, [](GgufBytes& b) { b.array("deep", 9, 1, std::string(12, '\0')); });
  refused(input, {"\"long\"", "limit"}, [](GgufBytes& b) { b.array("long", 4, uint64_t{1} << 40, ""); });
  refused(input, {"\"long\"", "announced"}, [](GgufBytes& b) { b.array("long", 4, 1 << 20, ""); });
  refused(input, {"general.alignment", "power of two", "24"}, [](GgufBytes& b) { b.u32("general.alignment", 24); });
  refused(input, {"general.alignment", "power of two", "0"}, [](GgufBytes& b) { b.u32("general.alignment", 0); });
  refused(input, {"general.alignment", "expected u32", "u64"},
          [](GgufBytes& b) { b.number<uint64_t>("general.alignment", 10, 32); });
  refused(input, {"tensors are announced"}, [](GgufBytes& b) { b.n_tensors = int64_t{1} << 60; });
  refused(input, {"tensors are announced"}, [](GgufBytes& b) { b.n_tensors = std::numeric_limits<int64_t>::min(); });
  refused(input, {"metadata keys are announced"}, [](GgufBytes& b) { b.n_keys = ~uint64_t{0}; });
  refused(input, {"\"one\" stands twice"}, [](GgufBytes& b) { b.tensor("one", {1}, 0, "abcd"); });
  refused(input, {"64 bytes", "limit is 63"}, [](GgufBytes& b) { b.tensor(std::string(64, 'n'), {1}, 0, "abcd"); });
  refused(input, {"5 dimensions"}, [](GgufBytes& b) { b.tensor("x", {1, 1, 1, 1, 1}, 0, "abcd"); });
  refused(input, {"negative", "-1"}, [](GgufBytes& b) { b.tensor("x", {1, -1}, 0, "abcd"); });
  refused(input, {"overflows"}, [](GgufBytes& b) { b.tensor("x", {int64_t{1} << 32, int64_t{1} << 32}, 0, "abcd"); });
  refused(input, {"\"x\"", "multiple", "Q4_0", "33"}, [](GgufBytes& b) { b.tensor("x", {33}, 2, "abcd"); });
  refused(input, {"unknown tensor type 4"}, [](GgufBytes& b) { b.tensor("x", {32}, 4, "abcd"); });
  refused(ErrorCode::unsupported, {"type 133", "fork"}, [](GgufBytes& b) { b.tensor("x", {64}, 133, "abcd"); });
  refused(ErrorCode::unsupported, {"NVFP4"}, [](GgufBytes& b) { b.tensor("x", {64}, 40, "abcd"); });
  refused(input, {"\"x\"", "offset 99"}, [](GgufBytes& b) { b.tensors.push_back({"x", {1}, 0, "abcd", 99}); });
  refused(input, {"announced"}, [](GgufBytes& b) { b.tensor("x", {int64_t{1} << 50}, 0, "abcd"); });
  refused(ErrorCode::unsupported, {"split into 3 files", "gguf-split"},
          [](GgufBytes& b) { b.number<uint16_t>("split.count", 2, 3); });
  expect_error(input, {"GGUF", "before GGUF"}, [] { GgufFile::from_memory("lmgg............", "old.bin"); });
  expect_error(input, {"found a file of 3 bytes"}, [] { GgufFile::from_memory("GGU", "x"); });
}

std::string from_hex(const std::string& path) {
  const std::string hex = get_file(path);
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size() && isxdigit(static_cast<unsigned char>(hex[i])); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

TEST(Gguf, ReadsTheForeignHeaders) {
  SKIP_WITHOUT(shared("data/malformed/gguf-v2-f32.hex"));
  const std::string folder = shared("data/malformed/");
  const GgufFile v2 = GgufFile::from_memory(from_hex(folder + "gguf-v2-f32.hex"), "v2");
  ASSERT_EQ(v2.tensors().size(), 1u);
  EXPECT_EQ(v2.tensors()[0].name, "dense.weight");
  EXPECT_EQ(std::memcmp(v2.data(v2.tensors()[0]), "ABCDEFGH", 8), 0);
  const GgufFile v3 = GgufFile::from_memory(from_hex(folder + "gguf-v3-q4-0.hex"), "v3");
  EXPECT_EQ(v3.tensors()[0].type, GgmlType::q4_0);
  EXPECT_EQ(v3.tensors()[0].bytes, 18u);
  expect_error(ErrorCode::input, {"unknown tensor type 43"},
               [&] { GgufFile::from_memory(from_hex(folder + "gguf-unknown-type.hex"), "u"); });
  expect_error(ErrorCode::unsupported, {"version 4"},
               [&] { GgufFile::from_memory(from_hex(folder + "gguf-unsupported-version.hex"), "u"); });
}

TEST(Gguf, RandomDamageNeverCrashes) {
  const std::string good = sample().bytes();
  Random random{42};
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    try {
      const GgufFile f = GgufFile::from_memory(mutate(good, random, 800), "x");
      for (const GgufTensor& t : f.tensors())
        if (t.bytes) {
          volatile std::byte last = f.data(t)[t.bytes - 1];
          (void)last;
        }
      for (const std::string& key : f.keys()) {
        const GgufEntry& e = *f.find(key);
        if (e.type == GgufType::array && e.element == GgufType::string)
          for (std::string_view s : f.get_strings(key)) accepted += s.size() > 1000000;
      }
      ++accepted;
    } catch (const Error& e) {
      EXPECT_NE(e.code(), ErrorCode::internal) << e.what();
    }
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace thimble
