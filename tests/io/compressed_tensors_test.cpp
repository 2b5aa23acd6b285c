// compressed-tensors: one word by hand, files packed here in every layout, targets, and what is refused.
#include "models/io/compressed_tensors.h"

#include <gtest/gtest.h>

#include "tests/io/coded.h"

namespace thimble {
namespace {

using namespace io_test;

// inputs: what input_activations says.
std::string config_with(const std::string& weights, const std::string& inputs = "null",
                        const std::string& format = "pack-quantized", const std::string& targets = R"(["Linear"])") {
  return R"({"quant_method":"compressed-tensors","format":")" + format +
         R"(","quantization_status":"compressed","ignore":["lm_head"],)" +
         R"("kv_cache_scheme":null,"config_groups":{"group_0":{"targets":)" + targets + R"(,"weights":{)" + weights +
         R"(},"input_activations":)" + inputs + R"(,"output_activations":null}}})";
}

// Signed codes and zero points, groups by input.
struct Plain {
  int bits = 4;
  int64_t out = 21, in = 64, groups = 2;
  std::vector<int> codes, zeros;
  std::vector<int32_t> group_of;
  std::vector<double> weights;

  Plain(int width, int64_t inputs, int64_t group_count, bool symmetric, bool reorder = false)
      : bits(width), in(inputs), groups(group_count) {
    Random random{static_cast<uint64_t>(width * 100 + inputs)};
    const int half = 1 << (bits - 1);
    for (int64_t i = 0; i < in; ++i) group_of.push_back(static_cast<int32_t>(i / (in / groups)));
    if (reorder)
      for (size_t i = group_of.size(); i > 1; --i) std::swap(group_of[i - 1], group_of[random.below(i)]);
    for (int64_t i = 0; i < out * groups; ++i)
      zeros.push_back(symmetric ? 0 : static_cast<int>(random.below(static_cast<size_t>(2 * half))) - half);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) {
        codes.push_back(static_cast<int>(random.below(static_cast<size_t>(2 * half))) - half);
        const int64_t g = group_of[static_cast<size_t>(i)];
        weights.push_back(scale_of(o, g) * (codes.back() - zeros[static_cast<size_t>(o * groups + g)]));
      }
  }

  void add_scales(Tensors& t, SafetensorsDtype dtype) const {
    std::vector<double> scales;
    for (int64_t o = 0; o < out; ++o)
      for (int64_t g = 0; g < groups; ++g) scales.push_back(scale_of(o, g));
    t.add_floats("l.weight_scale", dtype, {out, groups}, scales);
  }

  Tensors packed(bool with_zeros, SafetensorsDtype scale_dtype = SafetensorsDtype::bf16, bool wide_shape = true) const {
    Tensors t;
    const int64_t per_word = 32 / bits, words = (in + per_word - 1) / per_word,
                  zero_words = (out + per_word - 1) / per_word;
    const int half = 1 << (bits - 1);
    std::vector<uint32_t> weight(static_cast<size_t>(out * words)), zero(static_cast<size_t>(zero_words * groups));
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i)
        set_bits(&weight[static_cast<size_t>(o * words + i / per_word)], static_cast<size_t>(i % per_word * bits), bits,
                 codes[static_cast<size_t>(o * in + i)] + half);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t g = 0; g < groups; ++g)
        set_bits(&zero[static_cast<size_t>(o / per_word * groups + g)], static_cast<size_t>(o % per_word * bits), bits,
                 zeros[static_cast<size_t>(o * groups + g)] + half);
    t.add("l.weight_packed", SafetensorsDtype::i32, {out, words}, weight);
    if (wide_shape)
      t.add("l.weight_shape", SafetensorsDtype::i64, {2}, std::vector<int64_t>{out, in});
    else
      t.add("l.weight_shape", SafetensorsDtype::i32, {2},
            std::vector<int32_t>{static_cast<int32_t>(out), static_cast<int32_t>(in)});
    if (with_zeros) t.add("l.weight_zero_point", SafetensorsDtype::i32, {zero_words, groups}, zero);
    add_scales(t, scale_dtype);
    return t;
  }

  Tensors bytes(bool with_zeros) const {
    Tensors t;
    t.add("l.weight", SafetensorsDtype::i8, {out, in}, std::vector<int8_t>(codes.begin(), codes.end()));
    if (with_zeros)
      t.add("l.weight_zero_point", SafetensorsDtype::i8, {out, groups},
            std::vector<int8_t>(zeros.begin(), zeros.end()));
    add_scales(t, SafetensorsDtype::bf16);
    return t;
  }
};

std::string grid(int bits, bool symmetric, const std::string& strategy, int64_t group = 0,
                 const std::string& more = "") {
  return "\"num_bits\":" + std::to_string(bits) + ",\"symmetric\":" + (symmetric ? "true" : "false") +
         ",\"strategy\":\"" + strategy + "\"" + (group > 0 ? ",\"group_size\":" + std::to_string(group) : "") + more;
}

TEST(CompressedTensors, HandExample) {
  // 0x76543210 holds -8, -7, ... -1; the zero points 0x...A of one row is 2: -10, ... -3 steps of 0.5.
  Tensors t;
  t.add("l.weight_packed", SafetensorsDtype::i32, {1, 1}, std::vector<uint32_t>{0x76543210u});
  t.add("l.weight_shape", SafetensorsDtype::i64, {2}, std::vector<int64_t>{1, 8});
  t.add("l.weight_zero_point", SafetensorsDtype::i32, {1, 1}, std::vector<uint32_t>{0x0000000Au});
  t.add("l.weight_scale", SafetensorsDtype::bf16, {1, 1}, std::vector<uint16_t>{0x3F00});
  expect_weights(Checkpoint(config_with(grid(4, false, "channel")), t).source->read("l"), 1, 8,
                 {-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5});
}

TEST(CompressedTensors, ThreeBitsFillTenOfAWord) {
  // Codes 0..9 at bits 0, 3, ... 27; the eleventh in the next word.
  Tensors t;
  uint32_t word = 0;
  for (uint32_t i = 0; i < 10; ++i) word |= i % 8 << 3 * i;
  t.add("l.weight_packed", SafetensorsDtype::i32, {1, 2}, std::vector<uint32_t>{word, 5u});
  t.add("l.weight_shape", SafetensorsDtype::i32, {2}, std::vector<int32_t>{1, 11});
  t.add("l.weight_scale", SafetensorsDtype::f32, {1, 1}, std::vector<float>{1});
  expect_weights(Checkpoint(config_with(grid(3, true, "channel")), t).source->read("l"), 1, 11,
                 {-4, -3, -2, -1, 0, 1, 2, 3, -4, -3, 1});
}

TEST(CompressedTensors, EveryLayout) {
  for (const int bits : {2, 3, 4, 8})
    for (const bool symmetric : {true, false})
      for (const int64_t groups : {1, 4})
        for (const int64_t in : {64, 104}) {
          SCOPED_TRACE(std::to_string(bits) + (symmetric ? " sym " : " asym ") + std::to_string(groups) + " " +
                       std::to_string(in));
          const Plain p(bits, in, groups, symmetric);
          const std::string own = grid(bits, symmetric, groups > 1 ? "group" : "channel", groups > 1 ? in / groups : 0);
          const SafetensorsDtype dtype = bits == 2   ? SafetensorsDtype::f16
                                         : bits == 3 ? SafetensorsDtype::f32
                                                     : SafetensorsDtype::bf16;
          const Checkpoint c(config_with(own), p.packed(!symmetric, dtype, in == 64));
          ASSERT_TRUE(c.source->has("l"));
          expect_weights(c.source->read("l"), p.out, p.in, p.weights);
          for (const char* format : {"int-quantized", "naive-quantized"}) {
            const Checkpoint bytes(config_with(own, "null", format), p.bytes(!symmetric));
            ASSERT_TRUE(bytes.source->has("l"));
            expect_weights(bytes.source->read("l"), p.out, p.in, p.weights);
          }
        }
}

TEST(CompressedTensors, OneScaleForTheMatrix) {
  Plain p(8, 64, 1, true);
  Tensors t = p.bytes(false);
  t.remove("l.weight_scale");
  t.add("l.weight_scale", SafetensorsDtype::bf16, {1}, std::vector<uint16_t>{to_bf16(0.375)});
  std::vector<double> want;
  for (int q : p.codes) want.push_back(0.375 * (q - 3));
  t.add("l.weight_zero_point", SafetensorsDtype::i8, {1}, std::vector<int8_t>{3});
  expect_weights(Checkpoint(config_with(grid(8, false, "tensor"), "null", "int-quantized"), t).source->read("l"), p.out,
                 p.in, want);
}

TEST(CompressedTensors, ActOrder) {
  const Plain p(4, 64, 4, false, true);
  Tensors t = p.packed(true);
  t.add("l.weight_g_idx", SafetensorsDtype::i32, {64}, p.group_of);
  const Checkpoint c(config_with(grid(4, false, "group", 16, R"(,"actorder":"group")")), t);
  const CodedLinear l = c.source->read("l");
  EXPECT_EQ(l.perm.size(), 64u);
  expect_weights(l, p.out, p.in, p.weights);
  EXPECT_EQ(c.source->description(), "compressed-tensors pack-quantized 4-bit g16 asym act-order");
  // Not filled in: nothing was reordered.
  const Plain q(4, 64, 4, true);
  Tensors unset = q.packed(false);
  unset.add("l.weight_g_idx", SafetensorsDtype::i32, {64}, std::vector<int32_t>(64, -1));
  expect_weights(
      Checkpoint(config_with(grid(4, true, "group", 16, R"(,"actorder":"static")")), unset).source->read("l"), q.out,
      q.in, q.weights);
  t.at("l.weight_g_idx").bytes[0] = 9;
  expect_refused(ErrorCode::input, {"l.weight_g_idx", "between 0 and 3", "found 9"},
                 config_with(grid(4, false, "group", 16)), t);
}

TEST(CompressedTensors, GroupsOfModules) {
  const Plain four(4, 64, 1, true), eight(8, 64, 1, true);
  Tensors t = four.packed(false);
  for (const Tensors::One& one : eight.packed(false).list)
    t.list.push_back({"m.mlp.down" + one.name.substr(1), one.dtype, one.shape, one.bytes});
  const auto config = [](const std::string& second) {
    return R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,
              "strategy":"channel"}},"group_1":{"targets":)" +
           second + R"(,"weights":{"num_bits":8,"strategy":"channel"}}}})";
  };
  for (const std::string target : {R"(["m.mlp.down"])", R"(["re:.*down"])", R"(["re:m\\.mlp"])"}) {
    const Checkpoint c(config(target), t);
    expect_weights(c.source->read("l"), four.out, four.in, four.weights);
    expect_weights(c.source->read("m.mlp.down"), eight.out, eight.in, eight.weights);
  }
  // A pattern fits from the first character; this one does not, and 8 bits are read as 4.
  expect_refused(ErrorCode::input, {"weight_packed", "4 bits"}, config(R"(["re:mlp"])"), t, "m.mlp.down");
  expect_refused(ErrorCode::unsupported, {"targets", "((", "pattern"}, config(R"(["re:(("])"), t);
  const std::string two =
      R"({"quant_method":"compressed-tensors","config_groups":{"a":{"targets":["re:m.*"],"weights":{"num_bits":4,"strategy":"channel"}},
      "b":{"targets":["re:.*down"],"weights":{"num_bits":8,"strategy":"channel"}}}})";
  expect_refused(ErrorCode::unsupported, {"two groups", "re:m.*", "re:.*down"}, two, t, "m.mlp.down");
  expect_refused(ErrorCode::input, {"\"l\"", "no group"}, two, t, "l");
  std::string ignoring = config(R"(["re:.*down"])");
  ignoring.insert(1, R"("ignore":["re:m\\..*"],)");
  expect_refused(ErrorCode::input, {"\"m.mlp.down\"", "ignore"}, ignoring, t, "m.mlp.down");
}

TEST(CompressedTensors, WhatIsRefusedByName) {
  const Plain p(4, 64, 1, true);
  const Tensors t = p.packed(false);
  const auto refused = [&](const std::string& config, std::initializer_list<std::string> parts) {
    expect_refused(ErrorCode::unsupported, parts, config, t);
  };
  const std::string own = grid(4, true, "channel");
  for (const std::string format :
       {"float-quantized", "sparse-24-bitmask", "marlin-24", "nvfp4-pack-quantized", "dense"})
    refused(config_with(own, "null", format), {"config.json", "\"" + format + "\""});
  refused(config_with(grid(4, true, "block")), {"strategy", "block"});
  refused(config_with(grid(5, true, "channel")), {"num_bits", "5 bits"});
  refused(config_with(R"("num_bits":4,"type":"float","strategy":"channel")"), {"type", "float"});
  refused(config_with(own, R"({"num_bits":8,"dynamic":false,"strategy":"tensor"})"), {"input_activations", "dynamic"});
  refused(R"({"quant_method":"compressed-tensors","kv_cache_scheme":{"num_bits":8},"config_groups":{}})",
          {"kv_cache_scheme"});
  refused(R"({"quant_method":"compressed-tensors","transform_config":{"a":1},"config_groups":{}})",
          {"transform_config"});
  refused(R"({"quant_method":"compressed-tensors","sparsity_config":{"format":"sparse-bitmask"},"config_groups":{}})",
          {"sparse-bitmask"});
  expect_refused(ErrorCode::input, {"config_groups"}, R"({"quant_method":"compressed-tensors"})", t);
  expect_refused(ErrorCode::input, {"config_groups"}, R"({"quant_method":"compressed-tensors","config_groups":{}})", t);
  expect_refused(ErrorCode::input, {"group_size"}, config_with(grid(4, true, "group")), t);
}

// Writers up to 2025 say "frozen" about weights that are packed.
TEST(CompressedTensors, StatusDoesNotDecide) {
  const Plain p(4, 64, 1, true);
  std::string config = config_with(grid(4, true, "channel"));
  const std::string said = "\"compressed\"";
  config.replace(config.find(said), said.size(), "\"frozen\"");
  const Checkpoint c(config, p.packed(false));
  expect_weights(c.source->read("l"), p.out, p.in, p.weights);
}

TEST(CompressedTensors, DynamicInputsAreSaid) {
  const Plain p(8, 64, 1, true);
  const std::string config =
      config_with(grid(8, true, "channel"),
                  R"({"num_bits":8,"dynamic":true,"strategy":"token","symmetric":true,"type":"int"})", "int-quantized");
  const Checkpoint c(config, p.bytes(false));
  expect_weights(c.source->read("l"), p.out, p.in, p.weights);
  ASSERT_EQ(c.source->warnings().size(), 1u);
  EXPECT_NE(c.source->warnings()[0].find("--precision int8_act"), std::string::npos) << c.source->warnings()[0];
}

TEST(CompressedTensors, TensorsThatDisagree) {
  const Plain p(4, 64, 2, false);
  const std::string config = config_with(grid(4, false, "group", 32));
  const auto refused = [&](const char* name, std::vector<int64_t> shape, std::initializer_list<std::string> parts) {
    Tensors t = p.packed(true);
    t.at(name).shape = std::move(shape);
    expect_refused(ErrorCode::input, parts, config, t);
  };
  refused("l.weight_packed", {8, 21}, {"l.weight_packed", "[21, 64]"});
  refused("l.weight_scale", {2, 21}, {"l.weight_scale", "[21, 2]"});
  refused("l.weight_zero_point", {2, 3}, {"l.weight_zero_point", "[21, 2]"});
  Tensors lost = p.packed(true);
  lost.remove("l.weight_zero_point");
  expect_refused(ErrorCode::input, {"weight_zero_point", "symmetric"}, config, lost);
  Tensors huge = p.packed(true);
  huge.remove("l.weight_shape");
  huge.add("l.weight_shape", SafetensorsDtype::i64, {2}, std::vector<int64_t>{21, INT64_MAX - 3});
  expect_refused(ErrorCode::input, {"l.weight_packed"}, config, huge);
  Plain wide(8, 64, 1, true);
  wide.codes[5] = 9;
  expect_refused(ErrorCode::input, {"l.weight", "not of 4 bits"},
                 config_with(grid(4, true, "channel"), "null", "int-quantized"), wide.bytes(false));
}

TEST(CompressedTensors, DamagedCheckpoints) {
  damage(config_with(grid(4, false, "group", 32)), Plain(4, 64, 2, false).packed(true), 3000);
  damage(config_with(grid(8, true, "channel"), "null", "int-quantized", R"(["re:l.*"])"),
         Plain(8, 64, 1, true).bytes(false), 2000);
}

TEST(CompressedTensors, PackingIsWhatWasRead) {
  for (const int bits : {2, 3, 4, 8}) {
    const Plain p(bits, 104, 4, false);
    const Checkpoint c(config_with(grid(bits, false, "group", 26)), p.packed(true));
    const CodedLinear l = c.source->read("l");
    const CtPacked packed = pack_compressed(l.out, l.in, l.groups, bits, l.codes.data(), l.zeros.data());
    const auto same = [&](const char* name, const std::vector<uint32_t>& words) {
      const TensorView v = c.set->view(name);
      EXPECT_TRUE(v.info->bytes == words.size() * 4 && std::memcmp(v.data, words.data(), v.info->bytes) == 0)
          << name << bits;
    };
    same("l.weight_packed", packed.weight);
    same("l.weight_zero_point", packed.zero_point);
  }
}

}  // namespace
}  // namespace thimble
