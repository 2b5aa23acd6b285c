// AWQ: the order of nibbles by hand, files packed here, scales of activations, and what is refused.
#include "models/io/awq.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/io/coded.h"

namespace thimble {
namespace {

using namespace io_test;

constexpr const char* kConfig = R"({"quant_method":"awq","bits":4,"group_size":32,"zero_point":true,"version":"gemm"})";

// Nibble i of a word is output 8 c + kOrder[i].
constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
size_t nibble_of(int64_t o) {
  return static_cast<size_t>(std::find(kOrder, kOrder + 8, static_cast<int>(o % 8)) - kOrder);
}

struct Awq {
  int64_t out = 24, in = 64, group = 32;
  std::vector<int> codes, zeros;
  Tensors tensors;
  std::vector<double> weights;

  explicit Awq(SafetensorsDtype scales = SafetensorsDtype::f16, int64_t group_size = 32,
               const std::string& module = "l")
      : group(group_size) {
    Random random{11};
    const int64_t groups = in / group, words = out / 8;
    std::vector<uint32_t> qweight(static_cast<size_t>(in * words)), qzeros(static_cast<size_t>(groups * words));
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        zeros.push_back(static_cast<int>(random.below(16)));
        set_bits(&qzeros[static_cast<size_t>(g * words + o / 8)], nibble_of(o) * 4, 4, zeros.back());
      }
      for (int64_t i = 0; i < in; ++i) {
        codes.push_back(static_cast<int>(random.below(16)));
        set_bits(&qweight[static_cast<size_t>(i * words + o / 8)], nibble_of(o) * 4, 4, codes.back());
        weights.push_back(scale_of(o, i / group) * (codes.back() - zeros[static_cast<size_t>(o * groups + i / group)]));
      }
    }
    std::vector<double> by_group;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t o = 0; o < out; ++o) by_group.push_back(scale_of(o, g));
    tensors.add(module + ".qweight", SafetensorsDtype::i32, {in, words}, qweight);
    tensors.add(module + ".qzeros", SafetensorsDtype::i32, {groups, words}, qzeros);
    tensors.add_floats(module + ".scales", scales, {groups, out}, by_group);
  }
};

TEST(Awq, HandExample) {
  // Outputs 0..7 of 0x76543210 are 0, 4, 1, 5, 2, 6, 3, 7; the zero points 0xFEDCBA98 are 8, 12, 9, 13, 10, 14, 11, 15.
  Tensors t;
  t.add("l.qweight", SafetensorsDtype::i32, {1, 1}, std::vector<uint32_t>{0x76543210u});
  t.add("l.qzeros", SafetensorsDtype::i32, {1, 1}, std::vector<uint32_t>{0xFEDCBA98u});
  t.add("l.scales", SafetensorsDtype::f16, {1, 8}, std::vector<uint16_t>(8, 0x3800));  // 0.5
  const Checkpoint c(R"({"quant_method":"awq","bits":4,"group_size":-1})", t);
  const CodedLinear l = c.source->read("l");
  EXPECT_EQ(l.codes, (std::vector<uint8_t>{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(l.zeros, (std::vector<uint8_t>{8, 12, 9, 13, 10, 14, 11, 15}));
  expect_weights(l, 8, 1, std::vector<double>(8, -4));
}

TEST(Awq, EveryScaleTypeAndGroup) {
  for (const SafetensorsDtype dtype : {SafetensorsDtype::f16, SafetensorsDtype::bf16, SafetensorsDtype::f32})
    for (const int64_t group : {int64_t{16}, int64_t{32}, int64_t{64}}) {
      const Awq a(dtype, group);
      const Checkpoint c(R"({"quant_method":"awq","bits":4,"zero_point":true,"version":"GEMM","group_size":)" +
                             std::to_string(group == 64 ? -1 : group) + "}",
                         a.tensors);
      ASSERT_TRUE(c.source->has("l"));
      EXPECT_FALSE(c.source->has("m"));
      EXPECT_TRUE(c.source->warnings().empty());
      const CodedLinear l = c.source->read("l");
      EXPECT_EQ(l.scales_f16.empty(), dtype != SafetensorsDtype::f16);
      expect_weights(l, a.out, a.in, a.weights);
    }
}

TEST(Awq, WhatIsWrittenIsWhatWasRead) {
  const Awq a;
  const Checkpoint c(kConfig, a.tensors);
  const CodedLinear l = c.source->read("l");
  const AwqPacked p = pack_awq(l.out, l.in, l.group_size, l.codes.data(), l.zeros.data(), l.scales_f16.data());
  const auto same = [&](const char* name, const void* data, size_t bytes) {
    const TensorView v = c.set->view(name);
    EXPECT_TRUE(v.info->bytes == bytes && std::memcmp(v.data, data, bytes) == 0) << name;
  };
  same("l.qweight", p.qweight.data(), p.qweight.size() * 4);
  same("l.qzeros", p.qzeros.data(), p.qzeros.size() * 4);
  same("l.scales", p.scales.data(), p.scales.size() * 2);
}

TEST(Awq, SpellingsOfTheConfig) {
  const Awq a;
  for (const std::string config :
       {R"({"w_bit":4,"q_group_size":32,"zero_point":true,"version":"GEMM"})",
        R"({"quant_method":"AWQ","bits":4,"group_size":32})",
        R"({"method":"awq","format":"gemm","bits":4,"group_size":32,"modules_to_not_convert":["lm_head"]})"})
    expect_weights(Checkpoint(config, a.tensors).source->read("l"), a.out, a.in, a.weights);
  EXPECT_EQ(Checkpoint(kConfig, a.tensors).source->description(), "awq 4-bit g32 asym");
  for (const std::string version : {"gemv", "gemv_fast", "GEMV", "marlin", "llm-awq"})
    expect_refused(ErrorCode::unsupported, {"config.json", lower_case(version)},
                   R"({"quant_method":"awq","bits":4,"group_size":32,"version":")" + version + "\"}", a.tensors);
  expect_refused(ErrorCode::unsupported, {"llm-awq"},
                 R"({"quant_method":"awq","bits":4,"group_size":32,"backend":"llm-awq"})", a.tensors);
  expect_refused(ErrorCode::unsupported, {"3 bits"}, R"({"quant_method":"awq","bits":3,"group_size":32})", a.tensors);
  expect_refused(ErrorCode::input, {"group_size"}, R"({"quant_method":"awq","bits":4,"group_size":0})", a.tensors);
}

TEST(Awq, ShapesThatDisagree) {
  const auto refused = [](const char* name, std::vector<int64_t> shape, std::initializer_list<std::string> parts) {
    Awq a;
    a.tensors.at(name).shape = std::move(shape);
    expect_refused(ErrorCode::input, parts, kConfig, a.tensors);
  };
  refused("l.qweight", {192}, {"l.qweight", "two dimensions"});
  refused("l.qweight", {48, 4}, {"l.qweight", "48 inputs", "group size 32"});
  refused("l.qweight", {32, 6}, {"l.qzeros", "expected [1, 6]"});
  refused("l.qzeros", {3, 2}, {"l.qzeros", "expected [2, 3]", "I32 [3, 2]"});
  refused("l.scales", {24, 2}, {"l.scales", "[2, 24]"});
  Awq gone;
  gone.tensors.remove("l.qzeros");
  expect_refused(ErrorCode::input, {"l.qzeros", "missing"}, kConfig, gone.tensors);
  Awq floats;
  floats.tensors.at("l.qweight").dtype = SafetensorsDtype::f32;
  expect_refused(ErrorCode::input, {"l.qweight", "expected I32"}, kConfig, floats.tensors);
}

TEST(Awq, ScalesOfAnActivationDivideTheInputsOfTheNextLinear) {
  Awq a(SafetensorsDtype::f16, 32, "h.0.mlp.down");
  Tensors up;
  up.add("h.0.mlp.up.qweight", SafetensorsDtype::i32, {32, 8}, std::vector<uint32_t>(256));  // 32 inputs: not the one
  std::vector<double> scales, want = a.weights;
  for (int64_t i = 0; i < a.in; ++i) scales.push_back(0.5 + 0.125 * static_cast<double>(i % 9));
  for (size_t i = 0; i < want.size(); ++i) want[i] /= scales[i % 64];
  a.tensors.list.push_back(up.list[0]);
  a.tensors.add_floats("h.0.mlp.act.scales", SafetensorsDtype::f16, {64}, scales);
  const Checkpoint c(kConfig, a.tensors);
  const CodedLinear l = c.source->read("h.0.mlp.down");
  EXPECT_TRUE(l.codes.empty());
  expect_weights(l, a.out, a.in, want);
  ASSERT_EQ(c.source->warnings().size(), 1u);
  EXPECT_NE(c.source->warnings()[0].find("activation"), std::string::npos);
  const std::vector<std::string> used = c.source->tensors("h.0.mlp.down");
  EXPECT_NE(std::find(used.begin(), used.end(), "h.0.mlp.act.scales"), used.end());

  Awq zero(SafetensorsDtype::f16, 32, "h.0.mlp.down");
  zero.tensors.add_floats("h.0.mlp.act.scales", SafetensorsDtype::f32, {64}, std::vector<double>(64, 0.0));
  expect_refused(ErrorCode::input, {"act.scales", "finite"}, kConfig, zero.tensors, "h.0.mlp.down");
  Awq lost(SafetensorsDtype::f16, 32, "h.0.mlp.down");
  lost.tensors.add_floats("h.0.mlp.act.scales", SafetensorsDtype::f32, {63}, std::vector<double>(63, 1.0));
  expect_refused(ErrorCode::unsupported, {"act.scales", "ScaledActivation"}, kConfig, lost.tensors, "h.0.mlp.down");
}

TEST(Awq, DamagedCheckpoints) { damage(kConfig, Awq().tensors, 3000); }

TEST(Awq, WeightsOfARealPacker) {
  const std::string dir = shared("oracle/quant/awq4_gemm_g32");
  SKIP_WITHOUT(dir);
  const SafetensorsSet set(dir);
  const auto source = open_coded_source(dir, set);
  const SafetensorsFile expected(dir + "/expected.safetensors");
  int compared = 0;
  for (const TensorInfo& t : expected.tensors()) {
    if (t.name.rfind("dequant.", 0) != 0) continue;
    const CodedLinear l = source->read(t.name.substr(8, t.name.size() - 8 - 7));
    std::vector<double> want(static_cast<size_t>(t.elements()));
    expected.read_f64(t, want.data());
    expect_weights(l, t.shape[0], t.shape[1], want);
    ++compared;
  }
  EXPECT_EQ(compared, 3);
}

}  // namespace
}  // namespace thimble
