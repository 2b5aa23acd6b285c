// Rules of the safetensors reader, one by one; round trips; sharded sets; random damage.
#include "models/io/tensor_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

std::string with_length(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return file + header + data;
}

// The reader on header + data bytes.
SafetensorsFile open_bytes(const ScratchDir& dir, const std::string& header, const std::string& data) {
  put_file(dir / "t.safetensors", with_length(header, data));
  return SafetensorsFile(dir / "t.safetensors");
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& range) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + range + "}";
}

TEST(Safetensors, DtypeTable) {
  for (int i = 0; i < kSafetensorsDtypes; ++i) {
    const auto dtype = static_cast<SafetensorsDtype>(i);
    EXPECT_EQ(safetensors_dtype_from_name(safetensors_dtype_name(dtype)), dtype);
  }
  EXPECT_STREQ(safetensors_dtype_name(SafetensorsDtype::boolean), "BOOL");
  EXPECT_STREQ(safetensors_dtype_name(SafetensorsDtype::u64), "U64");
  EXPECT_STREQ(safetensors_dtype_name(SafetensorsDtype::f8_e5m2fnuz), "F8_E5M2FNUZ");
  EXPECT_EQ(safetensors_dtype_bits(SafetensorsDtype::f4), 4);
  EXPECT_EQ(safetensors_dtype_bits(SafetensorsDtype::f6_e3m2), 6);
  EXPECT_EQ(safetensors_dtype_bits(SafetensorsDtype::bf16), 16);
  EXPECT_EQ(safetensors_dtype_bits(SafetensorsDtype::c64), 64);
  EXPECT_FALSE(safetensors_dtype_from_name("f32"));
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  const ScratchDir dir;
  EXPECT_TRUE(open_bytes(dir, "{}", "").tensors().empty());
  EXPECT_TRUE(open_bytes(dir, "{}      ", "").tensors().empty());
  const SafetensorsFile scalar = open_bytes(dir, "{" + entry("s", "U8", "[]", "[0,1]") + "}", "x");
  EXPECT_EQ(scalar.find("s")->elements(), 1);
  EXPECT_EQ(static_cast<char>(*scalar.data("s")), 'x');
  // Zero-sized tensors share an offset with a neighbour; entries may stand in any order.
  const SafetensorsFile mixed =
      open_bytes(dir,
                 "{" + entry("b", "U8", "[2]", "[1,3]") + "," + entry("z", "F32", "[3,0]", "[1,1]") + "," +
                     entry("a", "I8", "[1]", "[0,1]") + ",\"__metadata__\":{\"format\":\"pt\",\"\":\"\"}," +
                     entry("end", "F64", "[0]", "[3,3]") + "}",
                 "abc");
  EXPECT_EQ(mixed.tensors().size(), 4u);
  EXPECT_EQ(mixed.tensors()[0].name, "a");
  EXPECT_EQ(mixed.tensors()[1].name, "z");
  EXPECT_EQ(mixed.find("z")->elements(), 0);
  EXPECT_EQ(static_cast<char>(mixed.data("b")[1]), 'c');
  EXPECT_EQ(mixed.metadata().at("format"), "pt");
  EXPECT_EQ(mixed.find("nope"), nullptr);
  EXPECT_EQ(open_bytes(dir, "{" + entry("f4", "F4", "[2,3]", "[0,3]") + "}", "abc").find("f4")->bytes, 3u);
  EXPECT_EQ(open_bytes(dir, "{" + entry("f6", "F6_E2M3", "[4]", "[0,3]") + "}", "abc").find("f6")->bytes, 3u);
  const SafetensorsFile nan = open_bytes(dir, "{" + entry("n", "F32", "[1]", "[0,4]") + "}", "\xff\xff\xff\xff");
  float f = 0;
  nan.view("n").read_f32(&f);
  EXPECT_TRUE(std::isnan(f));
}

TEST(Safetensors, RefusesEachBrokenRule) {
  const ScratchDir dir;
  const auto refused = [&](const std::string& header, const std::string& data,
                           std::initializer_list<std::string> parts) {
    SCOPED_TRACE(header.substr(0, 200));
    expect_error(ErrorCode::input, {"t.safetensors"}, [&] { open_bytes(dir, header, data); });
    expect_error(ErrorCode::input, parts, [&] { open_bytes(dir, header, data); });
  };
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& range) {
    return "{" + entry("x", dtype, shape, range) + "}";
  };
  // The container.
  refused("", "", {"does not start with '{'"});
  refused(" {}", "", {"does not start with '{'"});
  refused("[]", "", {"does not start with '{'"});
  refused("{", "", {"syntax error"});
  refused("{} x", "", {"syntax error"});
  refused("{}{}", "", {"syntax error"});
  refused(std::string("{}\0{", 4), "", {"NUL byte at 2"});
  refused("{\"\xff\":1}", "", {"UTF-8"});
  refused("{}", "trailing", {"the tensors end at 0", "8 data bytes"});
  refused(one("U8", "[1]", "[0,1]"), "xy", {"the tensors end at 1"});
  refused(one("U8", "[2]", "[0,2]"), "x", {"\"x\"", "data_offsets", "holds 1 data bytes"});
  // Ranges.
  refused(one("U8", "[1]", "[1,2]"), "xy", {"a hole"});
  refused("{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}", "abc",
          {"\"b\"", "an overlap"});
  refused("{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[0,2]") + "}", "ab", {"an overlap"});
  refused(one("U8", "[1]", "[1,0]"), "x", {"ends before it begins"});
  refused(one("U8", "[1]", "[0,18446744073709551615]"), "x", {"spans 18446744073709551615 bytes"});
  refused(one("U8", "[1]", "[18446744073709551615,18446744073709551616]"), "x", {"data_offsets"});
  refused(one("U8", "[1]", "[0]"), "x", {"expected two numbers, found 1"});
  refused(one("U8", "[1]", "[0,1,2]"), "x", {"expected two numbers, found more"});
  refused(one("U8", "[1]", "[0,-1]"), "x", {"data_offsets", "-1"});
  refused(one("U8", "[1]", "[0,1.0]"), "x", {"data_offsets"});
  refused(one("U8", "[1]", "[0,\"1\"]"), "x", {"data_offsets", "the string"});
  refused(one("U8", "[1]", "{}"), "x", {"data_offsets", "an object"});
  // Sizes.
  refused(one("F32", "[1]", "[0,1]"), "x", {"spans 1 bytes", "needs 4"});
  refused(one("F4", "[3]", "[0,1]"), "x", {"whole bytes"});
  refused(one("F6_E3M2", "[2]", "[0,1]"), "x", {"whole bytes"});
  refused(one("U8", "[4294967296,4294967296]", "[0,0]"), "", {"overflows"});
  refused(one("F64", "[2305843009213693952]", "[0,0]"), "", {"overflows"});
  refused(one("U8", "[4611686018427387904,2,0]", "[0,0]"), "", {"overflows"});
  refused(one("U8", "[9223372036854775808]", "[0,0]"), "", {"too large"});
  refused(one("U8", "[-1]", "[0,1]"), "x", {"shape", "-1"});
  refused(one("U8", "[1.0]", "[0,1]"), "x", {"shape"});
  refused(one("U8", "[true]", "[0,1]"), "x", {"shape"});
  refused(one("U8", "[[1]]", "[0,1]"), "x", {"shape", "an array"});
  refused(one("U8", "1", "[0,1]"), "x", {"shape", "expected an array"});
  std::string rank = "[1";
  for (int i = 0; i < 32; ++i) rank += ",1";
  refused(one("U8", rank + "]", "[0,1]"), "x", {"more than 32 dimensions"});
  // Names, fields, dtypes.
  refused(one("F128", "[1]", "[0,1]"), "x", {"\"x\"", "unknown dtype \"F128\""});
  refused(one("f32", "[1]", "[0,4]"), "xxxx", {"unknown dtype"});
  refused("{\"x\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,1]}}", "x", {"dtype", "expected a string, found 7"});
  refused("{\"x\":{\"shape\":[],\"data_offsets\":[0,1]}}", "x", {"dtype: missing"});
  refused("{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", "x", {"shape: missing"});
  refused("{\"x\":{\"dtype\":\"U8\",\"shape\":[]}}", "x", {"data_offsets: missing"});
  refused("{\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"more\":1}}", "x", {"unknown field \"more\""});
  refused("{\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", "x",
          {"dtype stands twice"});
  refused("{" + entry("a", "U8", "[0]", "[0,0]") + "," + entry("a", "U8", "[0]", "[0,0]") + "}", "",
          {"\"a\" stands twice", "column"});
  refused("{\"x\":null}", "", {"expected an object, found null"});
  refused("{\"x\":[]}", "", {"expected an object, found an array"});
  // Metadata.
  refused("{\"__metadata__\":null}", "", {"__metadata__"});
  refused("{\"__metadata__\":{\"k\":1}}", "", {"__metadata__", "\"k\"", "expected a string, found 1"});
  refused("{\"__metadata__\":{\"k\":{}}}", "", {"__metadata__", "an object"});
  refused("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", "", {"__metadata__", "twice"});
  refused("{\"__metadata__\":{},\"__metadata__\":{}}", "", {"__metadata__ stands twice"});
  // Depth bombs end at the first bracket that does not belong.
  refused("{\"x\":" + std::string(1'000'000, '['), "", {"expected an object"});
  refused("{\"__metadata__\":" + std::string(100'000, '['), "", {"__metadata__"});
}

TEST(Safetensors, RefusesLengthsThatDoNotFit) {
  const ScratchDir dir;
  const auto open = [&](const std::string& bytes) {
    put_file(dir / "t.safetensors", bytes);
    return SafetensorsFile(dir / "t.safetensors");
  };
  expect_error(ErrorCode::input, {"has 0 bytes"}, [&] { open(""); });
  expect_error(ErrorCode::input, {"has 7 bytes"}, [&] { open(std::string(7, '\0')); });
  expect_error(ErrorCode::input, {"header length 3 exceeds the 2 bytes"},
               [&] { open(std::string("\3\0\0\0\0\0\0\0{}", 10)); });
  expect_error(ErrorCode::input, {"exceeds the limit"}, [&] { open(std::string(8, '\xff') + "{}"); });
  expect_error(ErrorCode::input, {"cannot open"}, [&] { SafetensorsFile f(dir / "missing"); });
  expect_error(ErrorCode::input, {"not a regular file"}, [&] { SafetensorsFile f(dir.path()); });
}

TEST(Safetensors, HexDumpsOfDamagedFiles) {
  const std::string folder = shared("data/malformed");
  SKIP_WITHOUT(folder);
  const ScratchDir dir;
  int seen = 0, accepted = 0;
  for (const auto& item : std::filesystem::directory_iterator(folder)) {
    const std::string name = item.path().filename().string();
    if (name.rfind("safetensors", 0) != 0 || item.path().extension() != ".hex") continue;
    SCOPED_TRACE(name);
    const std::string hex = get_file(item.path().string());
    std::string bytes;
    for (size_t i = 0; i + 1 < hex.size() && std::isxdigit(static_cast<unsigned char>(hex[i])); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    put_file(dir / name, bytes);
    ++seen;
    if (name == "safetensors-header-only.hex") {
      EXPECT_TRUE(SafetensorsFile(dir / name).tensors().empty());
      ++accepted;
    } else if (name == "safetensors-two-tensors.hex") {
      const SafetensorsFile f(dir / name);
      ASSERT_EQ(f.tensors().size(), 2u);
      EXPECT_EQ(std::memcmp(f.data("a"), "abc", 3), 0);
      EXPECT_EQ(std::memcmp(f.data("b"), "DEFGH", 5), 0);
      ++accepted;
    } else if (name == "safetensors-gap.hex") {
      expect_error(ErrorCode::input, {"\"x\"", "a hole"}, [&] { SafetensorsFile f(dir / name); });
    } else if (name == "safetensors-unknown-dtype.hex") {
      expect_error(ErrorCode::input, {"\"x\"", "F128"}, [&] { SafetensorsFile f(dir / name); });
    } else {  // real headers whose data was cut off
      expect_error(ErrorCode::input, {"\"weight\"", "the file holds 0 data bytes"},
                   [&] { SafetensorsFile f(dir / name); });
    }
  }
  EXPECT_GE(seen, 6);
  EXPECT_EQ(accepted, 2);
}

std::vector<NamedTensor> one_of_each(std::vector<std::string>& storage) {
  std::vector<NamedTensor> tensors;
  storage.clear();
  storage.reserve(64);
  Random random{7};
  const auto add = [&](const std::string& name, SafetensorsDtype dtype, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    std::string bytes;
    for (int64_t i = 0; i < n * safetensors_dtype_bits(dtype) / 8; ++i) bytes += static_cast<char>(random());
    storage.push_back(bytes);
    tensors.push_back({name, dtype, shape, storage.back().data()});
  };
  for (int i = 0; i < kSafetensorsDtypes; ++i) {
    const auto dtype = static_cast<SafetensorsDtype>(i);
    add(std::string("t.") + safetensors_dtype_name(dtype), dtype, {3, 4});
    add(std::string("empty \"\xc3\xa9\" ") + safetensors_dtype_name(dtype), dtype, {2, 0, 5});
    if (safetensors_dtype_bits(dtype) >= 8) add(std::string("scalar.") + safetensors_dtype_name(dtype), dtype, {});
  }
  return tensors;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
  const ScratchDir dir;
  std::vector<std::string> storage;
  std::vector<NamedTensor> tensors = one_of_each(storage);
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"quote\"", "line\nbreak"}};
  write_safetensors(dir / "a.safetensors", tensors, metadata);
  const SafetensorsFile f(dir / "a.safetensors");
  EXPECT_EQ(f.metadata(), metadata);
  ASSERT_EQ(f.tensors().size(), tensors.size());
  for (const NamedTensor& t : tensors) {
    const TensorInfo* info = f.find(t.name);
    ASSERT_NE(info, nullptr) << t.name;
    EXPECT_EQ(info->dtype, t.dtype);
    EXPECT_EQ(info->shape, t.shape);
    EXPECT_EQ(std::memcmp(f.data(t.name), t.data, info->bytes), 0) << t.name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(f.data(t.name)) % std::max(1, safetensors_dtype_bits(t.dtype) / 8), 0u)
        << t.name;
  }
  int bits = 64;  // element sizes fall
  for (const TensorInfo& t : f.tensors())
    if (t.bytes > 0) {
      EXPECT_LE(safetensors_dtype_bits(t.dtype), bits);
      bits = safetensors_dtype_bits(t.dtype);
    }
  // The order of the calls does not show in the bytes.
  std::reverse(tensors.begin(), tensors.end());
  write_safetensors(dir / "b.safetensors", tensors, metadata);
  EXPECT_EQ(get_file(dir / "a.safetensors"), get_file(dir / "b.safetensors"));
}

TEST(Safetensors, WriterFillsPieceByPiece) {
  const ScratchDir dir;
  SafetensorsWriter writer(dir / "w.safetensors");
  writer.declare("a", SafetensorsDtype::u8, {4});
  writer.declare("b", SafetensorsDtype::f32, {});
  expect_error(ErrorCode::input, {"\"a\"", "taken"}, [&] { writer.declare("a", SafetensorsDtype::u8, {1}); });
  expect_error(ErrorCode::input, {"\"c\"", "whole bytes"}, [&] { writer.declare("c", SafetensorsDtype::f4, {1}); });
  expect_error(ErrorCode::input, {"\"d\"", "overflows"}, [&] {
    writer.declare("d", SafetensorsDtype::u8, {INT64_MAX, 3});
  });
  expect_error(ErrorCode::input, {"\"e\"", "negative"}, [&] { writer.declare("e", SafetensorsDtype::u8, {-1}); });
  writer.write("a", "he", 2);
  const float half = 0.5f;
  writer.write("b", &half, 4);
  expect_error(ErrorCode::internal, {"check failed"}, [&] { writer.finish(); });
  writer.write("a", "y!", 2);
  expect_error(ErrorCode::internal, {"check failed"}, [&] { writer.write("a", "?", 1); });
  EXPECT_FALSE(std::filesystem::exists(dir / "w.safetensors"));
  writer.finish();
  const SafetensorsFile f(dir / "w.safetensors");
  EXPECT_EQ(std::memcmp(f.data("a"), "hey!", 4), 0);
  float back = 0;
  f.read_f32(*f.find("b"), &back);
  EXPECT_EQ(back, 0.5f);
  expect_error(ErrorCode::input, {"UTF-8"}, [&] {
    write_safetensors(dir / "bad.safetensors", {{"\xff", SafetensorsDtype::u8, {0}, nullptr}});
  });
  EXPECT_FALSE(std::filesystem::exists(dir / "bad.safetensors"));
}

TEST(Safetensors, ConversionsAlsoFromUnalignedData) {
  const ScratchDir dir;
  // A header of odd length: everything is misaligned.
  const auto convert = [&](const std::string& dtype, const std::string& bytes, size_t n) {
    std::string header =
        "{" + entry("x", dtype, "[" + std::to_string(n) + "]", "[0," + std::to_string(bytes.size()) + "]") + "}";
    if (header.size() % 2 == 0) header += ' ';
    const SafetensorsFile f = open_bytes(dir, header, bytes);
    std::vector<double> wide(n);
    std::vector<float> narrow(n);
    f.view("x").read_f64(wide.data());
    f.view("x").read_f32(narrow.data());
    for (size_t i = 0; i < n; ++i)
      EXPECT_TRUE(std::isnan(wide[i]) || narrow[i] == static_cast<float>(wide[i])) << dtype;
    return wide;
  };
  const auto raw = [](auto... v) {
    std::string bytes;
    (bytes.append(reinterpret_cast<const char*>(&v), sizeof v), ...);
    return bytes;
  };
  using V = std::vector<double>;
  EXPECT_EQ(convert("F32", raw(1.5f, -0.1f), 2), (V{1.5, static_cast<double>(-0.1f)}));
  EXPECT_EQ(convert("F64", raw(1e300, 0.1), 2), (V{1e300, 0.1}));
  EXPECT_EQ(convert("F16",
                    raw(uint16_t{0x3C00}, uint16_t{0xC001}, uint16_t{1}, uint16_t{0x83FF}, uint16_t{0x7BFF},
                        uint16_t{0x7C00}),
                    6),
            (V{1.0, -2.001953125, 0x1p-24, -1023 * 0x1p-24, 65504.0, static_cast<double>(INFINITY)}));
  EXPECT_TRUE(std::isnan(convert("F16", raw(uint16_t{0x7E01}), 1)[0]));
  EXPECT_EQ(convert("BF16", raw(uint16_t{0x3F80}, uint16_t{0xC049}), 2), (V{1.0, -3.140625}));
  EXPECT_EQ(convert("I8", raw(int8_t{-128}, int8_t{5}), 2), (V{-128, 5}));
  EXPECT_EQ(convert("U8", raw(uint8_t{255}), 1), (V{255}));
  EXPECT_EQ(convert("I16", raw(int16_t{-30000}), 1), (V{-30000}));
  EXPECT_EQ(convert("U16", raw(uint16_t{60000}), 1), (V{60000}));
  EXPECT_EQ(convert("I32", raw(INT32_MIN), 1), (V{-2147483648.0}));
  EXPECT_EQ(convert("U32", raw(UINT32_MAX), 1), (V{4294967295.0}));
  EXPECT_EQ(convert("I64", raw(INT64_MIN), 1), (V{-0x1p63}));
  EXPECT_EQ(convert("U64", raw(UINT64_MAX), 1), (V{0x1p64}));
  EXPECT_EQ(convert("BOOL", raw(uint8_t{0}, uint8_t{1}), 2), (V{0, 1}));

  int64_t i = 0;
  open_bytes(dir, "{" + entry("x", "I16", "[1]", "[0,2]") + "}", raw(int16_t{-7})).view("x").read_i64(&i);
  EXPECT_EQ(i, -7);
  expect_error(ErrorCode::input, {"\"x\"", "element 0"}, [&] {
    open_bytes(dir, "{" + entry("x", "U64", "[1]", "[0,8]") + "}", raw(UINT64_MAX)).view("x").read_i64(&i);
  });
  expect_error(ErrorCode::unsupported, {"\"x\"", "F32"}, [&] {
    open_bytes(dir, "{" + entry("x", "F32", "[1]", "[0,4]") + "}", raw(1.0f)).view("x").read_i64(&i);
  });
  float f = 0;
  expect_error(ErrorCode::unsupported, {"\"x\"", "F8_E4M3"},
               [&] { open_bytes(dir, "{" + entry("x", "F8_E4M3", "[1]", "[0,1]") + "}", "x").view("x").read_f32(&f); });
}

TEST(Safetensors, TruncationAfterOpeningIsAnError) {
  const ScratchDir dir;
  const std::string path = dir / "t.safetensors";
  const SafetensorsFile f = open_bytes(dir, "{" + entry("x", "U8", "[5000]", "[0,5000]") + "}", std::string(5000, 'x'));
  EXPECT_EQ(static_cast<char>(f.data("x")[4999]), 'x');
  ASSERT_EQ(::truncate(path.c_str(), 100), 0);
  expect_error(ErrorCode::input, {path, "truncated"}, [&] { f.data("x"); });
  expect_error(ErrorCode::input, {"\"y\"", "not in the file"}, [&] { f.data("y"); });
}

TEST(SafetensorsSet, ShardsRoundTrip) {
  const ScratchDir dir;
  std::vector<std::string> storage;
  const std::vector<NamedTensor> tensors = one_of_each(storage);
  const std::string single = dir / "m/model.safetensors", index = dir / "m/model.safetensors.index.json";
  write_safetensors_sharded(dir / "m", tensors, {{"format", "pt"}}, 100);
  EXPECT_FALSE(std::filesystem::exists(single));
  const SafetensorsSet set(dir / "m");
  EXPECT_GT(set.files().size(), 3u);
  EXPECT_EQ(set.names().size(), tensors.size());
  EXPECT_TRUE(std::is_sorted(set.names().begin(), set.names().end()));
  EXPECT_EQ(set.metadata().at("format"), "pt");
  for (const NamedTensor& t : tensors) {
    ASSERT_TRUE(set.has(t.name));
    EXPECT_EQ(set.find(t.name)->shape, t.shape);
    EXPECT_EQ(std::memcmp(set.data(t.name), t.data, set.find(t.name)->bytes), 0);
  }
  EXPECT_EQ(set.find("nope"), nullptr);
  EXPECT_FALSE(set.find_view("nope"));
  expect_error(ErrorCode::input, {"\"nope\"", "missing"}, [&] { set.view("nope"); });
  // A later save as one file is what a reader then sees, and the other way round.
  write_safetensors_sharded(dir / "m", {tensors[0]}, {}, 1 << 20);
  EXPECT_FALSE(std::filesystem::exists(index));
  EXPECT_EQ(SafetensorsSet(dir / "m").names().size(), 1u);
  write_safetensors_sharded(dir / "m", tensors, {}, 100);
  EXPECT_FALSE(std::filesystem::exists(single));
  EXPECT_EQ(SafetensorsSet(dir / "m").names().size(), tensors.size());
}

TEST(SafetensorsSet, IndexIsNotTrusted) {
  const ScratchDir dir;
  const uint8_t byte = 1;
  std::filesystem::create_directories(dir / "m");
  std::filesystem::create_directories(dir / "else");
  write_safetensors(dir / "m/s1.safetensors", {{"a", SafetensorsDtype::u8, {1}, &byte}});
  write_safetensors(dir / "m/s2.safetensors", {{"b", SafetensorsDtype::u8, {1}, &byte}});
  write_safetensors(dir / "else/s3.safetensors", {{"c", SafetensorsDtype::u8, {1}, &byte}});
  const auto with_index = [&](const std::string& json) {
    put_file(dir / "m/model.safetensors.index.json", json);
    return SafetensorsSet(dir / "m").names().size();
  };
  const auto refused = [&](const std::string& map, std::initializer_list<std::string> parts) {
    SCOPED_TRACE(map);
    expect_error(ErrorCode::input, parts, [&] { with_index("{\"weight_map\":" + map + "}"); });
  };
  EXPECT_EQ(with_index(R"({"metadata":{},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})"), 2u);
  refused(R"({"a":"s1.safetensors","b":"s1.safetensors"})", {"s1.safetensors", "\"b\"", "not in the file"});
  refused(R"({"a":"s1.safetensors","b":"s2.safetensors","x":"s2.safetensors"})", {"s2.safetensors", "\"x\""});
  refused(R"({"a":"s1.safetensors","a":"s1.safetensors"})", {"\"a\"", "twice", "line 1"});
  refused(R"({"a":"../else/s3.safetensors"})", {"\"a\"", "not a plain file name"});
  refused(R"({"c":"..\\else\\s3.safetensors"})", {"not a plain file name"});
  refused(R"({"c":"/etc/passwd"})", {"not a plain file name"});
  refused(R"({"c":".."})", {"not a plain file name"});
  refused(R"({"c":""})", {"not a plain file name"});
  refused(R"({"c":"model.bin"})", {"does not end in .safetensors"});
  refused(R"({"c":"s9.safetensors"})", {"s9.safetensors", "cannot be found"});
  refused(R"({"c":3})", {"weight_map.c", "found 3"});
  refused(R"({})", {"weight_map"});
  refused("null", {"weight_map", "found null"});
  expect_error(ErrorCode::input, {"expected an object"}, [&] { with_index("[]"); });
  std::filesystem::create_symlink("../else/s3.safetensors", dir / "m/link.safetensors");
  refused(R"({"c":"link.safetensors"})", {"\"c\"", "link out of the directory"});
  std::filesystem::create_symlink("s1.safetensors", dir / "m/inner.safetensors");
  EXPECT_EQ(with_index(R"({"weight_map":{"a":"inner.safetensors"}})"), 1u);
  // A tensor in a shard that the index does not name.
  write_safetensors(dir / "m/s2.safetensors",
                    {{"b", SafetensorsDtype::u8, {1}, &byte}, {"extra", SafetensorsDtype::u8, {1}, &byte}});
  refused(R"({"a":"s1.safetensors","b":"s2.safetensors"})", {"s2.safetensors", "\"extra\"", "does not name it"});
  write_safetensors(dir / "m/s2.safetensors",
                    {{"b", SafetensorsDtype::u8, {1}, &byte}, {"a", SafetensorsDtype::u8, {1}, &byte}});
  refused(R"({"a":"s1.safetensors","b":"s2.safetensors"})", {"s2.safetensors", "\"a\"", "places it elsewhere"});
}

TEST(SafetensorsSet, PicklesAreNeverRead) {
  const ScratchDir dir;
  EXPECT_FALSE(SafetensorsSet::present(dir.path()));
  expect_error(ErrorCode::input, {"neither model.safetensors nor"}, [&] { SafetensorsSet s(dir.path()); });
  put_file(dir / "pytorch_model.bin", "PK");
  EXPECT_FALSE(SafetensorsSet::present(dir.path()));
  expect_error(ErrorCode::unsupported, {"pytorch_model.bin", "convert the model to safetensors"},
               [&] { SafetensorsSet s(dir.path()); });
  expect_error(ErrorCode::unsupported, {"convert the model to safetensors"},
               [&] { SafetensorsSet s(dir / "pytorch_model.bin"); });
  put_file(dir / "model.safetensors", with_length("{}", ""));
  EXPECT_TRUE(SafetensorsSet::present(dir.path()));
  EXPECT_TRUE(SafetensorsSet::present(dir / "model.safetensors"));
  EXPECT_TRUE(SafetensorsSet(dir.path()).names().empty());
}

TEST(SafetensorsSet, ShardedModelEqualsWholeModel) {
  const std::string whole = shared("oracle/hf/llama_gqa_untied"), parts = shared("oracle/hf/llama_gqa_untied_sharded");
  SKIP_WITHOUT(whole);
  SKIP_WITHOUT(parts);
  const SafetensorsSet a(whole), b(parts);
  EXPECT_EQ(b.files().size(), 2u);
  ASSERT_EQ(a.names(), b.names());
  for (const std::string& name : a.names())
    EXPECT_EQ(std::memcmp(a.data(name), b.data(name), a.find(name)->bytes), 0) << name;
  expect_error(ErrorCode::unsupported, {"pytorch_model.bin"},
               [&] { SafetensorsSet s(shared("oracle/hf/llama_gqa_untied_ptbin")); });
}

// Whatever happens to a file, only Error may come out, and what is accepted is sane: every byte of every tensor can
// be read.
TEST(Safetensors, RandomDamage) {
  const ScratchDir dir;
  const std::string path = dir / "d.safetensors";
  std::vector<std::string> storage;
  std::vector<NamedTensor> tensors = one_of_each(storage);
  write_safetensors(path, {tensors.begin(), tensors.begin() + 12}, {{"format", "pt"}});
  const std::string valid = get_file(path);
  const size_t header = 8 + static_cast<unsigned char>(valid[0]) + 256 * static_cast<unsigned char>(valid[1]);
  Random random{1};
  int accepted = 0, refused = 0;
  unsigned sum = 0;
  for (int round = 0; round < 24'000; ++round) {
    std::string damaged = mutate(valid, random, round % 8 == 0 ? valid.size() : round % 8 == 1 ? 8 : header);
    // Half of the time the length field is made to fit again, so that the JSON behind it is reached.
    if (round % 2 == 0 && damaged.size() > 8 + 16) {
      size_t end = damaged.rfind('}');
      if (end != std::string::npos && end > 8) {
        end = std::min(damaged.find_first_not_of(' ', end + 1), damaged.size());
        damaged = with_length(damaged.substr(8, end - 8), damaged.substr(end));
      }
    }
    put_file(path, damaged);
    try {
      const SafetensorsFile f(path);
      uint64_t at = 0;
      for (const TensorInfo& t : f.tensors()) {
        ASSERT_EQ(t.offset, at);
        at += t.bytes;
        const std::byte* data = f.data(t.name);
        for (uint64_t i = 0; i < t.bytes; ++i) sum += static_cast<unsigned>(data[i]);
      }
      ASSERT_LE(at + 8, f.file_bytes());
      ++accepted;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ErrorCode::input) << e.what();
      ASSERT_NE(std::string(e.what()).find(path), std::string::npos);
      ++refused;
    }
  }
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 10'000);
  RecordProperty("sum", static_cast<int>(sum % 1000));
}

}  // namespace
}  // namespace thimble
