// GPTQ unpacking: hand examples, files packed here, and the dequantized weights of real packers.
#include "models/io/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "models/io/half.h"
#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

// A linear to pack: codes [out][in], zeros [out][groups], group of each input.
struct Plain {
  int bits = 4;
  int64_t out = 32, in = 64, groups = 2;
  std::vector<int> codes, zeros;
  std::vector<int32_t> group;
  bool v2 = false, with_g_idx = true;
  SafetensorsDtype scale_dtype = SafetensorsDtype::f16;
};

Plain random_plain(int bits, int64_t out, int64_t in, int64_t group_size, uint64_t seed) {
  Random random{seed};
  Plain p;
  p.bits = bits;
  p.out = out;
  p.in = in;
  p.groups = (in + group_size - 1) / group_size;
  for (int64_t i = 0; i < out * in; ++i) p.codes.push_back(static_cast<int>(random.below(1u << bits)));
  for (int64_t i = 0; i < out * p.groups; ++i) p.zeros.push_back(static_cast<int>(random.below(1u << bits)));
  for (int64_t i = 0; i < in; ++i) p.group.push_back(static_cast<int32_t>(i / group_size));
  return p;
}

// Sets field i of a bit stream, one bit at a time: nothing in common with the reader.
void set_field(std::vector<uint32_t>& words, size_t i, int bits, int value, size_t stride, size_t first) {
  for (int b = 0; b < bits; ++b) {
    const size_t bit = i * static_cast<size_t>(bits) + static_cast<size_t>(b);
    if (value >> b & 1) words[first + bit / 32 * stride] |= 1u << bit % 32;
  }
}

float scale_value(int64_t o, int64_t g) {
  return 0.25f + 0.0625f * static_cast<float>((o * 3 + g) % 8);
}  // exact in bf16

void write_plain(const std::string& path, const Plain& p) {
  const size_t out = static_cast<size_t>(p.out), in = static_cast<size_t>(p.in), groups = static_cast<size_t>(p.groups);
  const size_t bits = static_cast<size_t>(p.bits);
  std::vector<uint32_t> qweight(in * bits / 32 * out), qzeros(groups * (out * bits / 32));
  for (size_t o = 0; o < out; ++o)
    for (size_t i = 0; i < in; ++i) set_field(qweight, i, p.bits, p.codes[o * in + i], out, o);
  for (size_t g = 0; g < groups; ++g)
    for (size_t o = 0; o < out; ++o) {
      const int z = p.zeros[o * groups + g];
      set_field(qzeros, o, p.bits, p.v2 ? z : (z - 1) & ((1 << p.bits) - 1), 1, g * (out * bits / 32));
    }
  std::vector<float> scales;
  std::vector<uint16_t> f16, bf16;
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t o = 0; o < p.out; ++o) {
      const float s = scale_value(o, g);
      uint32_t u;
      std::memcpy(&u, &s, 4);
      scales.push_back(s);
      bf16.push_back(static_cast<uint16_t>(u >> 16));
      f16.push_back(static_cast<uint16_t>(((u >> 23 & 255) - 112) << 10 | (u >> 13 & 1023)));
    }
  const void* s = p.scale_dtype == SafetensorsDtype::f16    ? static_cast<const void*>(f16.data())
                  : p.scale_dtype == SafetensorsDtype::bf16 ? static_cast<const void*>(bf16.data())
                                                            : static_cast<const void*>(scales.data());
  const int64_t word_rows = p.in * p.bits / 32, word_columns = p.out * p.bits / 32;
  std::vector<NamedTensor> tensors = {{"l.qweight", SafetensorsDtype::i32, {word_rows, p.out}, qweight.data()},
                                      {"l.qzeros", SafetensorsDtype::i32, {p.groups, word_columns}, qzeros.data()},
                                      {"l.scales", p.scale_dtype, {p.groups, p.out}, s}};
  if (p.with_g_idx) tensors.push_back({"l.g_idx", SafetensorsDtype::i32, {p.in}, p.group.data()});
  write_safetensors(path, tensors);
}

GptqConfig config_of(int bits, int64_t group_size, bool v2) {
  GptqConfig c;
  c.bits = bits;
  c.group_size = group_size;
  c.v2 = v2;
  c.sym = false;
  c.file = "quantize_config.json";
  return c;
}

void expect_weights(const Plain& p, const CodedLinear& l) {
  const std::vector<float> w = l.dequantize();
  ASSERT_EQ(w.size(), p.codes.size());
  for (int64_t o = 0; o < p.out; ++o)
    for (int64_t i = 0; i < p.in; ++i) {
      const int64_t g = p.group[static_cast<size_t>(i)];
      const float want = scale_value(o, g) * static_cast<float>(p.codes[static_cast<size_t>(o * p.in + i)] -
                                                                p.zeros[static_cast<size_t>(o * p.groups + g)]);
      ASSERT_EQ(w[static_cast<size_t>(o * p.in + i)], want) << o << ", " << i;
    }
}

TEST(Gptq, HandExample) {
  // Word 0x76543210, stored zero 7 (so 8), scale 0.5: -4, -3.5, ... -0.5.
  const ScratchDir dir;
  std::vector<uint32_t> qweight(8, 0x76543210u), qzeros(1, 0x77777777u);
  std::vector<uint16_t> scales(8, 0x3800);
  write_safetensors(dir / "h.safetensors", {{"l.qweight", SafetensorsDtype::i32, {1, 8}, qweight.data()},
                                            {"l.qzeros", SafetensorsDtype::i32, {1, 1}, qzeros.data()},
                                            {"l.scales", SafetensorsDtype::f16, {1, 8}, scales.data()}});
  const SafetensorsSet set(dir / "h.safetensors");
  EXPECT_TRUE(gptq_has(set, "l"));
  EXPECT_FALSE(gptq_has(set, "m"));
  GptqConfig config = config_of(4, -1, false);
  config.sym = true;
  const CodedLinear l = unpack_gptq(gptq_source(set, "l"), config);
  EXPECT_EQ(l.groups, 1);
  EXPECT_EQ(l.group_size, 8);
  const std::vector<float> w = l.dequantize();
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(w[i], -4.0f + 0.5f * static_cast<float>(i % 8));
}

TEST(Gptq, EveryWidthVersionAndScaleType) {
  const ScratchDir dir;
  const std::string path = dir / "p.safetensors";
  uint64_t seed = 1;
  for (const int bits : {2, 3, 4, 8})
    for (const bool v2 : {false, true})
      for (const int64_t group_size : {int64_t{32}, int64_t{-1}, int64_t{48}})  // 48: the last group of 96+64 is short
        for (const SafetensorsDtype scales : {SafetensorsDtype::f16, SafetensorsDtype::bf16, SafetensorsDtype::f32}) {
          SCOPED_TRACE(std::to_string(bits) + (v2 ? " v2 " : " v1 ") + std::to_string(group_size));
          Plain p = random_plain(bits, 64, 160, group_size < 0 ? 160 : group_size, ++seed);
          p.v2 = v2;
          p.scale_dtype = scales;
          p.with_g_idx = seed % 2 == 0;
          write_plain(path, p);
          const CodedLinear l = unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config_of(bits, group_size, v2));
          EXPECT_EQ(l.out, 64);
          EXPECT_EQ(l.in, 160);
          EXPECT_EQ(l.groups, p.groups);
          EXPECT_TRUE(l.perm.empty());
          EXPECT_EQ(l.scales_f16.empty(), scales != SafetensorsDtype::f16);
          EXPECT_EQ(l.scales_f32.empty(), scales == SafetensorsDtype::f16);
          expect_weights(p, l);
        }
}

TEST(Gptq, ActOrderSortsColumnsIntoGroups) {
  const ScratchDir dir;
  const std::string path = dir / "a.safetensors";
  Plain p = random_plain(4, 32, 96, 32, 5);
  Random random{9};
  for (size_t i = p.group.size(); i > 1; --i) std::swap(p.group[i - 1], p.group[random.below(i)]);
  write_plain(path, p);
  GptqConfig config = config_of(4, 32, false);
  config.desc_act = true;
  const CodedLinear l = unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config);
  ASSERT_EQ(l.perm.size(), 96u);
  for (size_t c = 0; c < 96; ++c) EXPECT_EQ(p.group[static_cast<size_t>(l.perm[c])], static_cast<int32_t>(c / 32));
  expect_weights(p, l);
  // desc_act = false in the config does not make g_idx wrong.
  expect_weights(p, unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config_of(4, 32, false)));

  p.with_g_idx = false;
  write_plain(path, p);
  expect_error(ErrorCode::input, {"desc_act", "g_idx is missing"},
               [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config); });
  p.with_g_idx = true;
  p.group[0] = (p.group[0] + 1) % 3;
  write_plain(path, p);
  expect_error(ErrorCode::unsupported, {"l.g_idx", "not all of 32 inputs"},
               [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config); });
  for (const int32_t bad : {-1, 3, INT32_MIN}) {
    p.group[7] = bad;
    write_plain(path, p);
    expect_error(ErrorCode::input, {"l.g_idx", "input 7", "between 0 and 2", std::to_string(bad)},
                 [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config); });
  }
}

TEST(Gptq, MislabelledVersionIsCaught) {
  const ScratchDir dir;
  const std::string path = dir / "v.safetensors";
  for (const int bits : {2, 4, 8})
    for (const bool v2 : {false, true}) {
      Plain p = random_plain(bits, 32, 64, 32, 3);
      for (int& z : p.zeros) z = 1 << (bits - 1);
      p.v2 = v2;
      write_plain(path, p);
      GptqConfig config = config_of(bits, 32, v2);
      config.sym = true;
      expect_weights(p, unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config));
      config.v2 = !v2;
      expect_error(ErrorCode::input, {"l.qzeros", "symmetric", "quantize_config.json"},
                   [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config); });
    }
}

TEST(Gptq, MislabelledFilesAreReadWithAWarning) {
  for (const int bits : {2, 4, 8})
    for (const bool v2 : {false, true}) {
      const ScratchDir dir;
      Plain p = random_plain(bits, 32, 64, 32, 3);
      for (int& z : p.zeros) z = 1 << (bits - 1);
      p.v2 = v2;
      write_plain(dir / "model.safetensors", p);
      const auto open = [&](bool label_v2, const SafetensorsSet& set) {
        put_file(dir / "config.json", R"({"quantization_config":{"quant_method":"gptq","group_size":32,"sym":true,"bits":)" + std::to_string(bits) +
                                          R"(,"checkpoint_format":")" + (label_v2 ? "gptq_v2" : "gptq") + "\"}}");
        return open_coded_source(dir.path(), set);
      };
      const SafetensorsSet set(dir.path());
      const auto right = open(v2, set), wrong = open(!v2, set);
      EXPECT_TRUE(right->warnings().empty());
      ASSERT_EQ(wrong->warnings().size(), 1u);
      EXPECT_NE(wrong->warnings()[0].find("l.qzeros"), std::string::npos) << wrong->warnings()[0];
      expect_weights(p, right->read("l"));
      expect_weights(p, wrong->read("l"));
    }
}

// Settings per module, by patterns: the first one of the file that fits counts, whatever its letters.
TEST(Gptq, DynamicPatterns) {
  const ScratchDir dir;
  const auto read = [&](const std::string& dynamic) {
    put_file(dir / "config.json", R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":32,"sym":true,"dynamic":{)" + dynamic + "}}}");
    return *read_gptq_config(dir.path());
  };
  const GptqConfig c = read(R"("+:.*\\.down":{"bits":8,"group_size":64,"mse":2.4},"-:.*\\.layers\\.0\\..*":{},".*\\.up$":{"sym":false},"+:a":{"bits":2})");
  EXPECT_EQ(c.of("m.layers.0.down").bits, 8);
  EXPECT_EQ(c.of("m.layers.0.down").group_size, 64);
  EXPECT_FALSE(c.skips("m.layers.0.down"));
  EXPECT_TRUE(c.skips("m.layers.0.up"));
  EXPECT_FALSE(c.skips("m.layers.1.up"));
  EXPECT_FALSE(c.of("m.layers.1.up").sym);
  EXPECT_EQ(c.of("m.layers.1.up_proj").bits, 4);  // $
  EXPECT_EQ(c.of("attn").bits, 2);                // from the first character, not up to the last
  EXPECT_EQ(c.of("m.attn").bits, 4);
  expect_error(ErrorCode::input, {"pattern", "(a+)+$"}, [&] { read(R"("+:(a+)+$":{"bits":8})").of(std::string(60, 'a') + "b"); });
}

TEST(Gptq, AQuantizedModuleThatTheConfigSkips) {
  const ScratchDir dir;
  Plain p = random_plain(4, 32, 64, 32, 3);
  write_plain(dir / "model.safetensors", p);
  const SafetensorsSet set(dir.path());
  put_file(dir / "quantize_config.json", R"({"bits":4,"group_size":32,"sym":false,"dynamic":{"-:l":{}}})");
  expect_error(ErrorCode::input, {"l.qweight", "dynamic", "quantize_config.json"}, [&] { open_coded_source(dir.path(), set)->read("l"); });
  put_file(dir / "quantize_config.json", R"({"bits":8,"group_size":-1,"sym":true,"dynamic":{"l":{"bits":4,"group_size":32,"sym":false}}})");
  expect_weights(p, open_coded_source(dir.path(), set)->read("l"));
}

TEST(Gptq, ShapesThatDisagree) {
  const ScratchDir dir;
  const std::string path = dir / "s.safetensors";
  std::vector<uint32_t> zeros(4096);
  const auto refused = [&](int bits, int64_t group_size, const std::vector<int64_t>& qweight,
                           const std::vector<int64_t>& qzeros, const std::vector<int64_t>& scales,
                           std::initializer_list<std::string> parts) {
    write_safetensors(path, {{"l.qweight", SafetensorsDtype::i32, qweight, zeros.data()},
                             {"l.qzeros", SafetensorsDtype::i32, qzeros, zeros.data()},
                             {"l.scales", SafetensorsDtype::f16, scales, zeros.data()}});
    expect_error(ErrorCode::input, parts,
                 [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config_of(bits, group_size, false)); });
  };
  refused(4, 32, {8, 32}, {1, 4}, {2, 32}, {"l.qzeros", "expected [2, 4]", "found I32 [1, 4]"});
  refused(4, 32, {8, 32}, {2, 5}, {2, 32}, {"l.qzeros", "found I32 [2, 5]"});
  refused(4, 32, {8, 32}, {2, 4}, {2, 33}, {"l.scales", "expected F16, BF16 or F32 [2, 32]"});
  refused(4, 64, {8, 32}, {2, 4}, {2, 32}, {"l.qzeros", "groups of 64"});
  refused(3, 32, {8, 32}, {2, 3}, {2, 32}, {"l.qweight", "whole 3-bit codes"});
  refused(4, 32, {8, 31}, {2, 4}, {2, 31}, {"l.qzeros"});
  refused(4, 32, {256}, {2, 4}, {2, 32}, {"l.qweight", "two dimensions"});
  refused(4, 32, {0, 32}, {2, 4}, {2, 32}, {"l.qweight", "found I32 [0, 32]"});
  write_safetensors(path, {{"l.qweight", SafetensorsDtype::f32, {8, 32}, zeros.data()}});
  expect_error(ErrorCode::input, {"l.qzeros", "missing"}, [&] { gptq_source(SafetensorsSet(path), "l"); });
  write_safetensors(path, {{"l.qweight", SafetensorsDtype::f32, {8, 32}, zeros.data()},
                           {"l.qzeros", SafetensorsDtype::i32, {2, 4}, zeros.data()},
                           {"l.scales", SafetensorsDtype::f16, {2, 32}, zeros.data()}});
  expect_error(ErrorCode::input, {"l.qweight", "expected I32"},
               [&] { unpack_gptq(gptq_source(SafetensorsSet(path), "l"), config_of(4, 32, false)); });
}

TEST(Gptq, Config) {
  const ScratchDir dir;
  EXPECT_FALSE(read_gptq_config(dir.path()));
  const std::string config = dir / "config.json", quant = dir / "quant_config.json",
                    quantize = dir / "quantize_config.json";
  put_file(config, R"({"model_type":"llama"})");
  EXPECT_FALSE(read_gptq_config(dir.path()));
  put_file(config,
           R"({"quantization_config":{"bits":8,"group_size":128,"quant_method":"gptq","sym":true,"desc_act":true}})");
  auto c = read_gptq_config(dir.path());
  ASSERT_TRUE(c);
  EXPECT_EQ(c->bits, 8);
  EXPECT_TRUE(c->desc_act);
  EXPECT_FALSE(c->v2);
  EXPECT_TRUE(c->warnings.empty());
  put_file(quant, R"({"w_bit":3,"q_group_size":-1,"method":"GPTQ","format":"gptq_v2","dynamic":{"-:lm_head":{}}})");
  c = read_gptq_config(dir.path());
  ASSERT_TRUE(c);
  EXPECT_EQ(c->bits, 3);
  EXPECT_EQ(c->group_size, -1);
  EXPECT_TRUE(c->v2);
  EXPECT_TRUE(c->sym);
  ASSERT_EQ(c->warnings.size(), 1u);
  EXPECT_TRUE(c->skips("lm_head"));
  EXPECT_FALSE(c->skips("model.lm_head"));
  const auto read = [&](const std::string& json) {
    put_file(quantize, json);
    return read_gptq_config(dir.path());
  };
  EXPECT_FALSE(read(R"({"w_bit":4,"q_group_size":128,"zero_point":true,"version":"GEMM"})"));
  EXPECT_FALSE(read(R"({"bits":4,"quant_method":"awq"})"));
  EXPECT_EQ(read(R"({"bits":4.0,"group_size":32,"sym":false})")->bits, 4);
  for (const std::string name : {"marlin", "bitblas", "exl3", "gptq_p"}) {
    const std::string format =
        R"({"bits":4,"group_size":32,"quant_method":"gptq","checkpoint_format":")" + name + "\"}";
    expect_error(ErrorCode::unsupported, {"quantize_config.json", name}, [&] { read(format); });
    EXPECT_FALSE(read(R"({"bits":4,"group_size":32,"quant_method":")" + name + "\"}"));  // another method, by its name
  }
  expect_error(ErrorCode::unsupported, {"marlin"},
               [&] { read(R"({"bits":4,"group_size":32,"is_marlin_format":true})"); });
  expect_error(ErrorCode::unsupported, {"\"new\""}, [&] { read(R"({"bits":4,"group_size":32,"format":"new"})"); });
  expect_error(ErrorCode::unsupported, {"5 bits"}, [&] { read(R"({"bits":5,"group_size":32})"); });
  expect_error(ErrorCode::unsupported, {"pack_dtype"},
               [&] { read(R"({"bits":4,"group_size":32,"pack_dtype":"int8"})"); });
  expect_error(ErrorCode::unsupported, {"dynamic", "\"((\"", "pattern"},
               [&] { read(R"({"bits":4,"group_size":32,"dynamic":{"+:((":{"bits":8}}})"); });
  expect_error(ErrorCode::input, {"quantize_config.json", "\"bits\"", "found nothing"}, [&] { read("{}"); });
  expect_error(ErrorCode::input, {"\"group_size\""}, [&] { read(R"({"bits":4,"group_size":0})"); });
  expect_error(ErrorCode::input, {"\"group_size\""}, [&] { read(R"({"bits":4,"group_size":"all"})"); });
  expect_error(ErrorCode::input, {"expected an object"}, [&] { read("[]"); });
}

// The distance of two floats in units in the last place.
int64_t ulps(float a, float b) {
  const auto key = [](float f) {
    int32_t i;
    std::memcpy(&i, &f, 4);
    return i < 0 ? int64_t{INT32_MIN} - i : int64_t{i};
  };
  return std::abs(key(a) - key(b));
}

TEST(Gptq, WeightsOfRealPackers) {
  const std::string folder = shared("oracle/quant");
  SKIP_WITHOUT(folder);
  for (const std::string name :
       {"gptq4_g32_asym", "gptq4_g32_asym_v2", "gptq3_g32_asym", "gptq8_g32_sym", "gptq4_g32_sym_actorder"}) {
    SCOPED_TRACE(name);
    const std::string dir = folder + "/" + name;
    const auto config = read_gptq_config(dir);
    ASSERT_TRUE(config);
    EXPECT_EQ(config->v2, name == "gptq4_g32_asym_v2");
    const SafetensorsSet model(dir);
    const SafetensorsFile expected(dir + "/expected.safetensors");
    int compared = 0, permuted = 0;
    for (const TensorInfo& t : expected.tensors()) {
      if (t.name.rfind("dequant.", 0) != 0) continue;
      const std::string module = t.name.substr(8, t.name.size() - 8 - 7);  // without ".weight"
      const CodedLinear l = unpack_gptq(gptq_source(model, module), *config);
      ASSERT_EQ(t.shape, (std::vector<int64_t>{l.out, l.in})) << module;
      std::vector<float> want(static_cast<size_t>(t.elements()));
      expected.read_f32(t, want.data());
      const std::vector<float> got = l.dequantize();
      int64_t worst = 0;
      for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, ulps(got[i], want[i]));
      EXPECT_LE(worst, 1) << module;
      ++compared;
      permuted += !l.perm.empty();
    }
    EXPECT_EQ(compared, 3);
    EXPECT_EQ(permuted > 0, name == "gptq4_g32_sym_actorder");
  }
}

}  // namespace
}  // namespace thimble
