// Writing GGUF: bytes of hand-computed blocks, ggml's rounding rules, the quality of the searched formats, and files
// that the reader reads back.
#include "models/io/ggml_encode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "models/io/ggml_blocks.h"
#include "models/io/gguf_write.h"
#include "models/io/half.h"
#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

std::vector<float> normal_values(size_t n, uint64_t seed) {
  Random random{seed};
  std::vector<float> v(n);
  for (float& x : v) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += double(random() >> 11) * 0x1p-53;
    x = static_cast<float>(0.05 * sum);
  }
  return v;
}

std::string encode(GgmlType type, const std::vector<float>& v) {
  const GgmlTypeInfo& info = ggml_type_info(type);
  std::string out(v.size() / static_cast<size_t>(info.elements) * static_cast<size_t>(info.bytes), '\0');
  encode_ggml(type, v.data(), static_cast<int64_t>(v.size()), reinterpret_cast<std::byte*>(out.data()), "t");
  return out;
}
std::vector<float> decode(GgmlType type, const std::string& bytes) {
  const GgmlTypeInfo& info = ggml_type_info(type);
  std::vector<float> out(bytes.size() / static_cast<size_t>(info.bytes) * static_cast<size_t>(info.elements));
  decode_ggml(type, reinterpret_cast<const std::byte*>(bytes.data()), static_cast<int64_t>(out.size()), out.data());
  return out;
}

TEST(GgmlEncode, NarrowsToTheNearestHalf) {
  using io_detail::f16_to_f32;
  using io_detail::f32_to_f16;
  for (uint32_t h = 0; h < 0x7C00; ++h) {  // every finite one, and the midpoints beside it
    const float v = f16_to_f32(static_cast<uint16_t>(h)), next = f16_to_f32(static_cast<uint16_t>(h + 1));
    ASSERT_EQ(f32_to_f16(v), h);
    ASSERT_EQ(f32_to_f16(-v), h | 0x8000u);
    if (h + 1 == 0x7C00) continue;
    const float middle = static_cast<float>((double(v) + double(next)) / 2);
    ASSERT_EQ(f32_to_f16(middle), h % 2 == 0 ? h : h + 1);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 1e9f)), h + 1);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, -1.0f)), h);
  }
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(1e30f), 0x7C00);
  EXPECT_EQ(f32_to_f16(INFINITY), 0x7C00);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(NAN))));
  EXPECT_EQ(io_detail::f32_to_bf16(1.0f), 0x3F80);
  EXPECT_EQ(io_detail::f32_to_bf16(1.00390625f), 0x3F80);  // a tie goes to the even one
  EXPECT_EQ(io_detail::f32_to_bf16(1.01171875f), 0x3F82);
}

TEST(GgmlEncode, HandBlocks) {
  // Largest magnitude -4: d = 0.5, codes trunc(x / 0.5 + 8.5).
  std::vector<float> v(32, 0.0f);
  v[0] = -4;
  v[1] = 1;
  v[16] = 3.5f;
  v[17] = 4;  // 16 is clamped to 15
  std::string bytes = encode(GgmlType::q4_0, v);
  EXPECT_EQ(bytes.substr(0, 4), std::string("\x00\x38\xF0\xFA", 4));
  EXPECT_EQ(bytes[4], static_cast<char>(0x88));
  // A positive largest value makes d negative, and itself code 0.
  v.assign(32, 0.0f);
  v[5] = 8;
  bytes = encode(GgmlType::q4_0, v);
  EXPECT_EQ(bytes.substr(0, 2), std::string("\x00\xBC", 2));
  EXPECT_EQ(bytes[2 + 5], static_cast<char>(0x80));
  // Q8_0: d = 127 / 127; halves go away from zero.
  v.assign(32, 0.0f);
  v[0] = 127;
  v[1] = 2.5f;
  v[2] = -2.5f;
  bytes = encode(GgmlType::q8_0, v);
  EXPECT_EQ(bytes.substr(0, 5), std::string("\x00\x3C\x7F\x03\xFD", 5));
  // Q4_1: range 0..15.
  for (int i = 0; i < 32; ++i) v[size_t(i)] = static_cast<float>(i % 16) - 2;
  bytes = encode(GgmlType::q4_1, v);
  EXPECT_EQ(bytes.substr(0, 6), std::string("\x00\x3C\x00\xC0\x00\x11", 6));
  // All zero.
  v.assign(256, 0.0f);
  for (GgmlType type : {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q8_0, GgmlType::q4_k, GgmlType::q6_k})
    for (float w : decode(type, encode(type, v))) ASSERT_EQ(w, 0.0f) << ggml_type_info(type).name;
}

// Relative root of the mean squared error on normal values; the bounds are a few percent above what these encoders
// reach and below what a plain rounding to the range gives (Q4_K 0.079, Q6_K 0.0198).
TEST(GgmlEncode, SearchedFormatsAreCloserThanPlainRounding) {
  const std::vector<float> v = normal_values(256 * 400, 5);
  const auto error = [&](GgmlType type) {
    const std::vector<float> w = decode(type, encode(type, v));
    double e = 0, s = 0;
    for (size_t i = 0; i < v.size(); ++i) e += std::pow(double(w[i]) - v[i], 2), s += double(v[i]) * v[i];
    return std::sqrt(e / s);
  };
  EXPECT_LT(error(GgmlType::f16), 3e-4);
  EXPECT_LT(error(GgmlType::bf16), 2e-3);
  EXPECT_LT(error(GgmlType::q8_0), 0.0060);
  EXPECT_LT(error(GgmlType::q4_0), 0.095);
  EXPECT_LT(error(GgmlType::q4_1), 0.085);
  EXPECT_LT(error(GgmlType::q4_k), 0.076);
  EXPECT_LT(error(GgmlType::q6_k), 0.0190);
}

TEST(GgmlEncode, DecodedBlocksEncodeToThemselves) {
  const std::vector<float> v = normal_values(256 * 8, 6);
  for (GgmlType type : {GgmlType::q4_0, GgmlType::q8_0}) {
    const std::string bytes = encode(type, v);
    CodedLinear q = read_ggml_coded(type, reinterpret_cast<const std::byte*>(bytes.data()), 8, 256);
    std::string again(bytes.size(), '\0');
    ASSERT_TRUE(encode_ggml_codes(type, q, reinterpret_cast<std::byte*>(again.data())));
    EXPECT_EQ(again, bytes);
    q.zeros.assign(size_t(8 * 8), static_cast<uint8_t>(q.zero));
    EXPECT_TRUE(encode_ggml_codes(type, q, reinterpret_cast<std::byte*>(again.data())));
    q.zeros[3] = 1;
    EXPECT_FALSE(encode_ggml_codes(type, q, reinterpret_cast<std::byte*>(again.data())));
    EXPECT_FALSE(encode_ggml_codes(GgmlType::q4_k, q, reinterpret_cast<std::byte*>(again.data())));
  }
}

TEST(GgmlEncode, RefusesWhatIsNotFinite) {
  std::vector<float> v(32, 1.0f);
  v[3] = INFINITY;
  expect_error(ErrorCode::input, {"tensor \"t\"", "element 3", "inf"}, [&] { encode(GgmlType::q8_0, v); });
  EXPECT_EQ(decode(GgmlType::f16, encode(GgmlType::f16, v))[3], INFINITY);
  expect_error(ErrorCode::usage, {"q3_k", "choose one of"}, [] { ggml_type_from_name("q3_k"); });
  EXPECT_EQ(ggml_type_from_name("Q4_k"), GgmlType::q4_k);
}

TEST(GgufWrite, ReadsBack) {
  const testing::ScratchDir dir;
  const std::string path = dir.path() + "/x.gguf";
  const std::vector<float> v = normal_values(64, 8);
  const std::string blocks = encode(GgmlType::q8_0, v);
  {
    GgufWriter w(path);
    w.set_string("general.architecture", "llama");
    w.set_u32("n", 7);
    w.set_f32("f", 0.5f);
    w.set_bool("b", true);
    w.set_strings("s", {"a", "", "c"});
    w.set_floats("fs", {1, 2});
    w.set_ints("is", {-1, 3});
    w.declare("v", {3}, GgmlType::f32);
    w.declare("m", {32, 2}, GgmlType::q8_0);
    EXPECT_FALSE(file_exists(path));
    w.write("v", v.data(), 8);
    w.write("v", v.data() + 2, 4);
    w.write("m", blocks.data(), blocks.size());
    const uint64_t total = w.total_bytes();
    w.finish();
    EXPECT_EQ(std::filesystem::file_size(path), total);
  }
  const GgufFile f(path);
  EXPECT_EQ(f.version(), 3u);
  EXPECT_EQ(f.get_int("n"), 7);
  EXPECT_EQ(f.get_float("f"), 0.5);
  EXPECT_EQ(f.get_bool("b"), true);
  EXPECT_EQ(f.get_strings("s").size(), 3u);
  EXPECT_EQ(f.get_floats("fs"), (std::vector<float>{1, 2}));
  EXPECT_EQ(f.get_ints("is"), (std::vector<int64_t>{-1, 3}));
  EXPECT_EQ(std::memcmp(f.data(*f.find_tensor("v")), v.data(), 12), 0);
  EXPECT_EQ(std::memcmp(f.data(*f.find_tensor("m")), blocks.data(), blocks.size()), 0);
  GgufWriter other(path);
  expect_error(ErrorCode::input, {"33", "Q8_0"}, [&] { other.declare("odd", {33}, GgmlType::q8_0); });
  expect_error(ErrorCode::input, {"63 bytes"}, [&] { other.declare(std::string(64, 'x'), {1}, GgmlType::f32); });
}

}  // namespace
}  // namespace thimble
