// Blocks of GGUF: one block per format worked out by hand, random blocks against formulas element by element in double,
// the coded form against the decoded one, and the weights that llama.cpp's own quantizer wrote.
#include "models/io/ggml_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "models/io/half.h"
#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

const GgmlType kCoded[] = {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0, GgmlType::q2_k,
                           GgmlType::q3_k, GgmlType::q4_k, GgmlType::q5_k, GgmlType::q6_k, GgmlType::iq4_nl};

std::vector<float> decode(GgmlType type, const std::string& bytes) {
  std::vector<float> out(static_cast<size_t>(ggml_type_info(type).elements));
  decode_ggml(type, reinterpret_cast<const std::byte*>(bytes.data()), static_cast<int64_t>(out.size()), out.data());
  return out;
}

std::string half(uint16_t bits) { return {static_cast<char>(bits & 255), static_cast<char>(bits >> 8)}; }
constexpr uint16_t kOne = 0x3C00, kHalf = 0x3800, kTwo = 0x4000, kMinusOne = 0xBC00;

TEST(GgmlBlocks, HandBlocksOf32) {
  // Byte j of the nibbles is 0x21: low nibble 1 (elements 0..15), high nibble 2 (elements 16..31).
  const std::string nibbles(16, '\x21');
  std::vector<float> w = decode(GgmlType::q4_0, half(kTwo) + nibbles);
  EXPECT_EQ(w[0], -14.0f);  // 2 * (1 - 8)
  EXPECT_EQ(w[16], -12.0f);
  w = decode(GgmlType::q4_1, half(kHalf) + half(kMinusOne) + nibbles);
  EXPECT_EQ(w[0], -0.5f);  // 0.5 * 1 - 1
  EXPECT_EQ(w[31], 0.0f);
  // The fifth bits: element 0 and element 31 have it.
  const std::string high("\x01\x00\x00\x80", 4);
  w = decode(GgmlType::q5_0, half(kOne) + high + nibbles);
  EXPECT_EQ(w[0], 1.0f);  // 17 - 16
  EXPECT_EQ(w[1], -15.0f);
  EXPECT_EQ(w[31], 2.0f);
  EXPECT_EQ(w[30], -14.0f);
  w = decode(GgmlType::q5_1, half(kOne) + half(kHalf) + high + nibbles);
  EXPECT_EQ(w[0], 17.5f);
  EXPECT_EQ(w[30], 2.5f);
  std::string q8 = half(kHalf) + std::string(32, '\x03');
  q8[2] = '\x80';
  w = decode(GgmlType::q8_0, q8);
  EXPECT_EQ(w[0], -64.0f);  // 0.5 * -128
  EXPECT_EQ(w[1], 1.5f);
  w = decode(GgmlType::iq4_nl, half(kOne) + nibbles);
  EXPECT_EQ(w[0], -104.0f);
  EXPECT_EQ(w[16], -83.0f);
}

TEST(GgmlBlocks, HandBlocksOf256) {
  // Q4_K: d 1, dmin 0.5; scale 0 = 3, min 0 = 2; scale 4 = 5 | 2 << 4 = 37, min 4 = 6 | 1 << 4 = 22.
  std::string scales(12, '\0');
  scales[0] = static_cast<char>(3 | 2 << 6);  // scale 0; top bits belong to scale 4
  scales[4] = static_cast<char>(2 | 1 << 6);  // min 0; top bits belong to min 4
  scales[8] = static_cast<char>(5 | 6 << 4);  // low nibbles of scale 4 and min 4
  std::string codes(128, '\0');
  codes[0] = '\x09';   // sub-block 0, element 0
  codes[64] = '\x07';  // sub-block 4, element 0: 128
  codes[65] = '\x70';  // sub-block 5, element 1: 161
  std::vector<float> w = decode(GgmlType::q4_k, half(kOne) + half(kHalf) + scales + codes);
  EXPECT_EQ(w[0], 26.0f);     // 3 * 9 - 0.5 * 2
  EXPECT_EQ(w[1], -1.0f);     // 0 - 0.5 * 2
  EXPECT_EQ(w[128], 248.0f);  // 37 * 7 - 0.5 * 22
  EXPECT_EQ(w[161], 0.0f);    // scale and min of sub-block 5 are 0
  // Q5_K: the same, with the fifth bit of elements 0 (bit 0 of qh[0]) and 128 (bit 4 of qh[0]).
  std::string fifth(32, '\0');
  fifth[0] = '\x11';
  w = decode(GgmlType::q5_k, half(kOne) + half(kHalf) + scales + fifth + codes);
  EXPECT_EQ(w[0], 74.0f);     // 3 * 25 - 1
  EXPECT_EQ(w[128], 840.0f);  // 37 * 23 - 11
  EXPECT_EQ(w[1], -1.0f);
  // Q2_K: group 0 scale 3 min 4, group 9 scale 1 min 0.
  std::string s2(16, '\0');
  s2[0] = '\x43';
  s2[9] = '\x01';
  std::string q2(64, '\0');
  q2[1] = '\x02';        // element 1
  q2[32 + 17] = '\x03';  // second half, t 0, byte 17: element 145, group 9
  w = decode(GgmlType::q2_k, s2 + q2 + half(kTwo) + half(kHalf));
  EXPECT_EQ(w[0], -2.0f);  // 0 - 0.5 * 4
  EXPECT_EQ(w[1], 10.0f);  // 2 * 3 * 2 - 2
  EXPECT_EQ(w[145], 6.0f);
  // Q3_K: scale of group 0 = 33 (1 + 2 << 4), of group 15 = 0; element 0 has the mask bit, element 1 has not.
  std::string mask(32, '\0'), q3(64, '\0'), s3(12, '\0');
  mask[0] = '\x01';
  q3[0] = '\x03';
  q3[1] = '\x03';
  s3[0] = '\x01';
  s3[8] = '\x02';
  w = decode(GgmlType::q3_k, mask + q3 + s3 + half(kTwo));
  EXPECT_EQ(w[0], 6.0f);      // 2 * (33 - 32) * 3
  EXPECT_EQ(w[1], -2.0f);     // 2 * 1 * (3 - 4)
  EXPECT_EQ(w[255], 256.0f);  // 2 * (0 - 32) * (0 - 4)
  // Q6_K: element 96 + 5 of the second half: ql[64 + 37] high nibble, qh[32 + 5] bits 6 and 7, scale 8 + 6.
  std::string ql(128, '\0'), qh(64, '\0'), s6(16, '\0');
  ql[64 + 37] = '\x90';
  qh[32 + 5] = static_cast<char>(0xC0);
  s6[14] = '\xFF';
  s6[0] = '\x02';
  w = decode(GgmlType::q6_k, ql + qh + s6 + half(kHalf));
  EXPECT_EQ(w[128 + 96 + 5], -12.5f);  // 0.5 * -1 * (9 + 48 - 32)
  EXPECT_EQ(w[0], -32.0f);             // 0.5 * 2 * (0 - 32)
}

// Element i of a block by the formulas of the format, in double: bit by bit, nothing shared with the decoder.
double reference(GgmlType type, const uint8_t* p, int i) {
  const auto h = [&](int at) { return static_cast<double>(io_detail::f16_to_f32(static_cast<uint16_t>(p[at] | p[at + 1] << 8))); };
  const auto bit = [&](int byte, int n) { return p[byte] >> n & 1; };
  const auto nibble = [&](int start) { return i < 16 ? p[start + i] & 15 : p[start + i - 16] >> 4; };
  const int sub32 = i / 32, sub16 = i / 16, l = i % 32;
  const auto six = [&](int start, bool minimum) {
    if (sub32 < 4) return p[start + sub32 + (minimum ? 4 : 0)] % 64;
    const int low = minimum ? p[start + sub32 + 4] / 16 : p[start + sub32 + 4] % 16;
    return low + 16 * (p[start + sub32 - (minimum ? 0 : 4)] / 64);
  };
  const auto four = [&](int start) {
    const int byte = p[start + i / 64 * 32 + l];
    return sub32 % 2 ? byte / 16 : byte % 16;
  };
  switch (type) {
    case GgmlType::q4_0: return h(0) * (nibble(2) - 8);
    case GgmlType::q4_1: return h(0) * nibble(4) + h(2);
    case GgmlType::q5_0: return h(0) * (nibble(6) + 16 * bit(2 + i / 8, i % 8) - 16);
    case GgmlType::q5_1: return h(0) * (nibble(8) + 16 * bit(4 + i / 8, i % 8)) + h(2);
    case GgmlType::q8_0: return h(0) * static_cast<int8_t>(p[2 + i]);
    case GgmlType::iq4_nl: {
      static const int table[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
      return h(0) * table[nibble(2)];
    }
    case GgmlType::q2_k: {
      const int byte = 16 + (i >= 128 ? 32 : 0) + l, t = sub32 % 4;
      return h(80) * (p[sub16] % 16) * (2 * bit(byte, 2 * t + 1) + bit(byte, 2 * t)) - h(82) * (p[sub16] / 16);
    }
    case GgmlType::q3_k: {
      const int byte = 32 + (i >= 128 ? 32 : 0) + l, t = sub32 % 4;
      const int low = sub16 < 8 ? p[96 + sub16] % 16 : p[96 + sub16 - 8] / 16;
      const int high = 2 * bit(104 + sub16 % 4, sub16 / 4 * 2 + 1) + bit(104 + sub16 % 4, sub16 / 4 * 2);
      return h(108) * (low + 16 * high - 32) * (2 * bit(byte, 2 * t + 1) + bit(byte, 2 * t) - 4 + 4 * bit(l, sub32));
    }
    case GgmlType::q4_k: return h(0) * six(4, false) * four(16) - h(2) * six(4, true);
    case GgmlType::q5_k: return h(0) * six(4, false) * (four(48) + 16 * bit(16 + l, sub32)) - h(2) * six(4, true);
    case GgmlType::q6_k: {
      const int half_block = i / 128, row = i % 128 / 32, q = 64 * half_block + l + (row % 2 ? 32 : 0);
      const int low = row < 2 ? p[q] % 16 : p[q] / 16, high = p[128 + 32 * half_block + l] >> (2 * row) & 3;
      return h(208) * static_cast<int8_t>(p[192 + sub16]) * (low + 16 * high - 32);
    }
    default: return 0;
  }
}

std::string random_block(GgmlType type, Random& random) {
  std::string bytes(static_cast<size_t>(ggml_type_info(type).bytes), '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  const auto finite = [&](size_t at) { bytes[at + 1] = static_cast<char>((bytes[at + 1] & 0x83) | 0x28); };
  switch (type) {
    case GgmlType::q2_k: finite(80), finite(82); break;
    case GgmlType::q3_k: finite(108); break;
    case GgmlType::q6_k: finite(208); break;
    case GgmlType::q4_1:
    case GgmlType::q5_1:
    case GgmlType::q4_k:
    case GgmlType::q5_k: finite(2); [[fallthrough]];
    default: finite(0);
  }
  return bytes;
}

TEST(GgmlBlocks, AgreeWithTheFormulas) {
  Random random{7};
  for (GgmlType type : kCoded)
    for (int round = 0; round < 50; ++round) {
      const std::string block = random_block(type, random);
      const std::vector<float> w = decode(type, block);
      for (size_t i = 0; i < w.size(); ++i) {
        const double expected = reference(type, reinterpret_cast<const uint8_t*>(block.data()), static_cast<int>(i));
        ASSERT_NEAR(w[i], expected, 1e-6 * std::max(8.0, std::abs(expected))) << ggml_type_info(type).name << " element " << i;
      }
    }
}

TEST(GgmlBlocks, CodesHoldTheSameWeights) {
  Random random{9};
  for (GgmlType type : kCoded) {
    const GgmlTypeInfo& info = ggml_type_info(type);
    const int64_t rows = 5, cols = 2 * info.elements;
    std::string bytes;
    for (int64_t i = 0; i < rows * 2; ++i) bytes += random_block(type, random);
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    std::vector<float> w(static_cast<size_t>(rows * cols));
    decode_ggml(type, data, rows * cols, w.data());
    const CodedLinear q = read_ggml_coded(type, data, rows, cols);
    const std::vector<float> again = q.dequantize();
    ASSERT_EQ(again.size(), w.size());
    for (size_t i = 0; i < w.size(); ++i) ASSERT_FLOAT_EQ(again[i], w[i]) << info.name << " element " << i;
    EXPECT_LE(*std::max_element(q.codes.begin(), q.codes.end()), (1 << q.bits) - 1) << info.name;
    // Rows in another order.
    const CodedLinear mixed = read_ggml_coded(type, data, 3, cols, {4, 0, 4});
    const std::vector<float> m = mixed.dequantize();
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t c = 0; c < cols; ++c)
        ASSERT_EQ(m[size_t(r * cols + c)], again[size_t((r == 1 ? 0 : 4) * cols + c)]) << info.name;
  }
}

TEST(GgmlBlocks, AgreeWithTheReferenceFiles) {
  SKIP_WITHOUT(shared("oracle/gguf"));
  for (const char* name : {"f16", "q4_0", "q4_k", "q5_1", "q6_k", "q8_0"}) {
    const std::string folder = shared("oracle/gguf/") + name;
    const GgufFile gguf(folder + "/model.gguf");
    const SafetensorsFile expected(folder + "/expected.safetensors");
    int compared = 0;
    for (const TensorInfo& info : expected.tensors()) {
      if (info.name.rfind("dequant.", 0) != 0) continue;
      std::string tensor = info.name.substr(8);
      const GgufTensor* t = gguf.find_tensor(tensor);
      if (!t) t = gguf.find_tensor(tensor + ".weight");
      ASSERT_NE(t, nullptr) << info.name;
      const auto n = static_cast<size_t>(info.elements());
      std::vector<float> want(n), got(n);
      expected.read_f32(info, want.data());
      decode_ggml(t->type, gguf.data(*t), static_cast<int64_t>(n), got.data());
      for (size_t i = 0; i < n; ++i) ASSERT_FLOAT_EQ(got[i], want[i]) << name << " " << info.name << " " << i;
      ++compared;
    }
    EXPECT_EQ(compared, 2) << name;
  }
}

}  // namespace
}  // namespace thimble
