// GPTQ packing: what real packers wrote comes out again byte by byte; padding, settings per module, and configs that lie
// about either.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "models/io/gptq.h"
#include "tests/io/coded.h"

namespace thimble {
namespace {

using namespace io_test;

template <class T>
bool equal_bytes(const TensorView& view, const std::vector<T>& values) {
  return view.info->bytes == values.size() * sizeof(T) && std::memcmp(view.data, values.data(), view.info->bytes) == 0;
}

void expect_same_files(const std::string& dir) {
  SCOPED_TRACE(dir);
  const std::optional<GptqConfig> config = read_gptq_config(dir);
  ASSERT_TRUE(config);
  const SafetensorsSet set(dir);
  int64_t modules = 0;
  for (const std::string& name : set.names()) {
    const size_t at = name.rfind(".qweight");
    if (at == std::string::npos || at + 8 != name.size()) continue;
    const GptqSource source = gptq_source(set, name.substr(0, at));
    const CodedLinear l = unpack_gptq(source, *config);
    if (l.scales_f16.empty()) continue;
    const GptqPacked p = pack_gptq(l.out, l.in, l.bits, l.group_size, l.codes.data(), l.zeros.data(), l.scales_f16.data(),
                                   l.perm.empty() ? nullptr : l.perm.data(), config->v2);
    EXPECT_EQ(p.out_padded, l.out);
    EXPECT_EQ(p.in_padded, l.in);
    EXPECT_TRUE(equal_bytes(source.qweight, p.qweight)) << name;
    EXPECT_TRUE(equal_bytes(source.qzeros, p.qzeros)) << name;
    EXPECT_TRUE(equal_bytes(source.scales, p.scales)) << name;
    if (source.g_idx) EXPECT_TRUE(equal_bytes(source.g_idx, p.g_idx)) << name;
    ++modules;
  }
  EXPECT_GT(modules, 0);
}

TEST(GptqPack, StoredCheckpointsComeOutAgain) {
  for (const char* dir : {"oracle/gptq4_g32_asym", "cases/gptq_neox_actorder"})
    expect_same_files(std::string(THIMBLE_SOURCE_DIR) + "/tests/data/" + dir);
}

TEST(GptqPack, CheckpointsOfOtherPackersComeOutAgain) {
  const std::string root = std::string(THIMBLE_SOURCE_DIR) + "/../shared/oracle/quant";
  if (!std::filesystem::exists(root)) GTEST_SKIP() << "not here: " << root;
  for (const auto& entry : std::filesystem::directory_iterator(root))
    if (read_gptq_config(entry.path().string())) expect_same_files(entry.path().string());
}

TEST(GptqPack, PaddedShapesAreCutOffAgain) {
  for (int bits : {2, 3, 4, 8})
    for (int64_t group : {32, 43})
      for (bool v2 : {false, true}) {
        const int64_t out = 21, in = 43, groups = (in + group - 1) / group;
        Random random{static_cast<uint64_t>(bits)};
        std::vector<uint8_t> codes, zeros;
        std::vector<uint16_t> scales;
        for (int64_t i = 0; i < out * in; ++i) codes.push_back(static_cast<uint8_t>(random.below(1u << bits)));
        for (int64_t i = 0; i < out * groups; ++i) {
          zeros.push_back(static_cast<uint8_t>(random.below(1u << bits)));
          scales.push_back(static_cast<uint16_t>(0x3000 + random.below(64)));
        }
        const GptqPacked p = pack_gptq(out, in, bits, group, codes.data(), zeros.data(), scales.data(), nullptr, v2);
        EXPECT_EQ(p.in_padded * bits % 32, 0);
        EXPECT_EQ(p.out_padded * bits % 32, 0);
        const ScratchDir dir;
        const std::string file = dir / "m.safetensors";
        write_safetensors(file, {{"m.qweight", SafetensorsDtype::i32, {p.in_padded * bits / 32, p.out_padded}, p.qweight.data()},
                                 {"m.qzeros", SafetensorsDtype::i32, {p.groups, p.out_padded * bits / 32}, p.qzeros.data()},
                                 {"m.scales", SafetensorsDtype::f16, {p.groups, p.out_padded}, p.scales.data()},
                                 {"m.g_idx", SafetensorsDtype::i32, {p.in_padded}, p.g_idx.data()}});
        const SafetensorsSet set(file);
        GptqConfig config;
        config.bits = bits;
        config.group_size = group == in ? -1 : group;
        config.sym = false;
        config.v2 = v2;
        CodedLinear l = unpack_gptq(gptq_source(set, "m"), config);
        crop_gptq(l, "m", out, in);
        EXPECT_EQ(l.out, out);
        EXPECT_EQ(l.in, in);
        EXPECT_EQ(l.codes, codes);
        EXPECT_EQ(l.zeros, zeros);
        EXPECT_EQ(l.scales_f16, scales);
        CodedLinear again = unpack_gptq(gptq_source(set, "m"), config);
        expect_error(ErrorCode::input, {"\"m\"", "real shape"}, [&] { crop_gptq(again, "m", out, in + 64); });
        expect_error(ErrorCode::input, {"\"m\"", "real shape"}, [&] { crop_gptq(again, "m", out - 20, in - 40); });
      }
}

TEST(GptqPack, SettingsPerModule) {
  const ScratchDir dir;
  const auto read = [&](const std::string& json) {
    put_file(dir / "quantize_config.json", json);
    return read_gptq_config(dir.path());
  };
  const std::string key = gptq_dynamic_key("model.layers.0.mlp.down_proj", true);
  EXPECT_EQ(key, "+:^model\\.layers\\.0\\.mlp\\.down_proj$");
  EXPECT_EQ(gptq_dynamic_key("lm_head", false), "-:^lm_head$");
  const auto c = read(R"({"bits":4,"group_size":32,"sym":false,"dynamic":{"+:^a\\.b$":{"bits":8,"group_size":-1},"-:^c$":{}},
                          "thimble":{"shapes":{"a.b":[5,7]}}})");
  ASSERT_TRUE(c);
  EXPECT_EQ(c->of("a.b").bits, 8);
  EXPECT_EQ(c->of("a.b").group_size, -1);
  EXPECT_EQ(c->of("a.c").bits, 4);
  EXPECT_EQ(c->shapes.at("a.b")[1], 7);
  expect_error(ErrorCode::unsupported, {"dynamic", "\"method\""}, [&] { read(R"({"bits":4,"group_size":32,"dynamic":{"+:^a$":{"bits":8,"method":"x"}}})"); });
  expect_error(ErrorCode::input, {"dynamic"}, [&] { read(R"({"bits":4,"group_size":32,"dynamic":{"+:^a$":8}})"); });
  expect_error(ErrorCode::input, {"bits"}, [&] { read(R"({"bits":4,"group_size":32,"dynamic":{"+:^a$":{"bits":7}}})"); });
  for (const char* shape : {"[5]", "[5,-1]", "\"x\"", "[5,7.5]", "[0,7]", "[5,99999999999]"})
    expect_error(ErrorCode::input, {"shapes"}, [&] {
      read(std::string(R"({"bits":4,"group_size":32,"thimble":{"shapes":{"m":)") + shape + "}}}");
    });
}

TEST(GptqPack, DamagedCheckpoints) {
  const int64_t out = 32, in = 96, group = 32;
  Random random{5};
  std::vector<uint8_t> codes, zeros;
  for (int64_t i = 0; i < out * in; ++i) codes.push_back(static_cast<uint8_t>(random.below(8)));
  for (int64_t i = 0; i < out * in / group; ++i) zeros.push_back(static_cast<uint8_t>(random.below(8)));
  const std::vector<uint16_t> scales(zeros.size(), 0x3400);
  std::vector<int32_t> perm;
  for (int32_t i = 0; i < in; ++i) perm.push_back(i * 5 % static_cast<int32_t>(in));
  const GptqPacked p = pack_gptq(out, in, 3, group, codes.data(), zeros.data(), scales.data(), perm.data(), false);
  Tensors t;
  t.add("l.qweight", SafetensorsDtype::i32, {in * 3 / 32, out}, p.qweight);
  t.add("l.qzeros", SafetensorsDtype::i32, {p.groups, out * 3 / 32}, p.qzeros);
  t.add("l.scales", SafetensorsDtype::f16, {p.groups, out}, p.scales);
  t.add("l.g_idx", SafetensorsDtype::i32, {in}, p.g_idx);
  damage(R"({"quant_method":"gptq","bits":3,"group_size":32,"desc_act":true,"sym":false,)"
         R"("dynamic":{"+:^m.*":{"bits":8},"-:lm_head":{}},"thimble":{"shapes":{"m":[31,95]}}})",
         t, 3000);
}

}  // namespace
}  // namespace thimble
