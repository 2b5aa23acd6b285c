// Named shapes have the weights that their names promise, and random models of them run.
#include "models/shapes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "models/generator.h"
#include "models/random_model.h"
#include "tensor/error.h"
#include "tests/models/support.h"

namespace thimble {
namespace {

using models_test::Engine;

int64_t parameters(const ModelConfig& config) { return random_model_bytes(config, {WeightFormat::f32, 0}) / 4; }

// As the models' cards and papers count them, tied tables once.
TEST(Shapes, HaveTheParametersOfTheRealModels) {
  const std::vector<std::pair<const char*, int64_t>> known = {{"tinyllama-1.1b", 1'100'048'384},
                                                              {"smollm-135m", 134'515'008},
                                                              {"smollm-360m", 361'821'120},
                                                              {"qwen2.5-0.5b", 494'032'768},
                                                              {"qwen2.5-1.5b", 1'543'714'304},
                                                              {"llama-3.2-1b", 1'235'814'400},
                                                              {"gpt2", 124'439'808},
                                                              {"opt-125m", 125'239'296},
                                                              {"opt-350m", 331'196'416},
                                                              {"pythia-70m", 70'426'624},
                                                              {"pythia-160m", 162'322'944},
                                                              {"pythia-410m", 405'334'016},
                                                              {"gemma-3-270m", 268'098'176},
                                                              {"bloom-560m", 559'214'592},
                                                              {"qwen3-0.6b", 596'049'920},
                                                              {"gemma-3-1b", 999'885'952},
                                                              {"starcoderbase-1b", 1'137'207'296},
                                                              {"falcon-rw-1b", 1'311'625'216},
                                                              {"phi-1.5", 1'418'270'720},
                                                              {"olmo-2-1b", 1'484'916'736},
                                                              {"stablelm-2-1.6b", 1'644'515'328},
                                                              {"gemma-2-2b", 2'614'341'888},
                                                              {"phi-2", 2'779'683'840},
                                                              {"starcoder2-3b", 3'030'371'328},
                                                              {"phi-3-mini", 3'821'079'552}};
  for (const auto& [name, count] : known) EXPECT_EQ(parameters(shape_config(name).config), count) << name;
}

TEST(Shapes, NamesAreDistinctAndAnUnknownOneIsAUsageErrorWithTheNearest) {
  std::set<std::string> names;
  for (const ModelShape& s : model_shapes()) {
    names.insert(s.name);
    EXPECT_TRUE(is_model_shape(s.name));
    EXPECT_NO_THROW(check_config(shape_config(s.name).config, s.name)) << s.name;
  }
  EXPECT_EQ(names.size(), model_shapes().size());
  EXPECT_FALSE(is_model_shape("TinyLlama"));
  for (const char* wrong : {"tinylama-1.1b", "something else entirely", ""}) {
    try {
      shape_config(wrong);
      FAIL() << wrong;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::usage);
      EXPECT_NE(e.hint().find("smollm-135m"), std::string::npos) << e.hint();
      EXPECT_EQ(e.hint().find("did you mean tinyllama-1.1b?") == 0, wrong[0] == 't') << e.hint();
    }
  }
}

TEST(RandomModel, FormatsAreReadByNameAndRefusedWithTheList) {
  for (const char* name : {"f32", "f16", "bf16", "q8_g128", "q8_row", "q4_g64", "q4_g32", "q4_row", "q2_g128", "q2_row", "q4_g32_sym", "q2_g64_min"})
    EXPECT_EQ(stored_format_name(parse_stored_format(name)), name);
  EXPECT_EQ(stored_format_name(parse_stored_format("q4")), "q4_g128");
  for (const char* wrong : {"q5", "q4_g7", "", "Q4", "q4_sym_g32", "q4_g32_zp"}) EXPECT_THROW(parse_stored_format(wrong), Error) << wrong;
}

// 172 and 64 columns: with and without padding in the tiles, and groups that do not divide them.
TEST(RandomModel, RunsInEveryFormatAndTilesArePaddedAsWritten) {
  const ShapeConfig shape = shape_config("stories260k");
  std::vector<int32_t> ids(12);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(37 * i % 512);
  for (const char* name : {"f32", "f16", "bf16", "q8_g128", "q8_row", "q4_g128", "q4_g32", "q4_row", "q2_g128", "q2_row_sym", "q4_g32_sym", "q4_g32_min", "q2_g64_min"}) {
    const StoredFormat format = parse_stored_format(name);
    Model model = random_model("tiny", shape, format);
    EXPECT_EQ(model.stored_bytes(), random_model_bytes(shape.config, format)) << name;
    EXPECT_EQ(model.parameters(), parameters(shape.config));
    Engine engine;
    // Codes, scales and zeros as the packer would write them.
    const Weight& w = model.weights.layers[0].down_w;
    if (is_tiled(w.format)) {
      std::vector<uint8_t> codes(static_cast<size_t>(w.numel()));
      const UnpackCodesArgs unpack{w.view(), codes.data()};
      (w.format == WeightFormat::q8   ? engine.kernels.unpack_q8
       : w.format == WeightFormat::q4 ? engine.kernels.unpack_q4
                                      : engine.kernels.unpack_q2)(unpack);
      const TileGeometry g = w.geometry();
      const auto count = static_cast<size_t>(w.rows * g.groups);
      uint16_t scale;
      std::memcpy(&scale, w.scales, 2);
      std::vector<uint8_t> zeros(count, w.zeros ? w.zeros[0] : w.zero);
      // Zero points that are all the same would not be stored; with one group per row another one would show in the padding.
      const bool differ = w.zeros && g.groups > 1;
      if (differ) zeros[0] ^= 1;
      const std::vector<uint16_t> scales(count, scale);
      uint16_t min = 0;
      if (w.mins) std::memcpy(&min, w.mins, 2);
      const std::vector<uint16_t> mins(count, min);
      TileSource source;
      source.rows = w.rows;
      source.cols = w.cols;
      source.group = w.group;
      source.codes = codes.data();
      source.scales = scales.data();
      source.zeros = w.mins ? nullptr : zeros.data();
      source.mins = w.mins ? mins.data() : nullptr;
      const TileStorage packed = pack_tiles(engine.kernels, w.format, source, nullptr);
      EXPECT_EQ(packed.weight.kind, w.zeros && !differ ? GroupKind::symmetric : w.kind) << name;
      if (w.mins) EXPECT_EQ(std::memcmp(packed.weight.mins, w.mins, g.offset_bytes), 0) << name;
      EXPECT_EQ(std::memcmp(packed.weight.data, w.data, g.code_bytes + g.scale_bytes), 0) << name;
    }
    std::vector<float> values(static_cast<size_t>(w.numel()));
    dequantize(engine.kernels, w, values.data());
    double squares = 0;
    for (const float v : values) squares += double(v) * double(v);
    EXPECT_NEAR(std::sqrt(squares / double(w.numel()) * double(w.cols)), 1.0, 0.1) << name;

    Transformer transformer(model, 16);
    Generator generator(transformer, *engine.ctx, 16);
    const float* logits = generator.feed(ids.data(), static_cast<int64_t>(ids.size()));
    double spread = 0;
    for (int64_t v = 0; v < shape.config.vocab_size; ++v) {
      ASSERT_TRUE(std::isfinite(logits[v])) << name;
      spread = std::max(spread, double(std::abs(logits[v])));
    }
    EXPECT_GT(spread, 0.1) << name;
    EXPECT_LT(spread, 100) << name;
  }
}

TEST(RandomModel, RepeatsWithItsSeedAndTakesNoMoreMemoryThanItKeeps) {
  const ShapeConfig shape = shape_config("stories260k");
  const StoredFormat format{WeightFormat::q4, 32};
  const Model a = random_model("a", shape, format, 5), b = random_model("b", shape, format, 5),
              c = random_model("c", shape, format, 6);
  const Weight &wa = a.weights.layers[2].up_w, &wb = b.weights.layers[2].up_w, &wc = c.weights.layers[2].up_w;
  EXPECT_EQ(std::memcmp(wa.data, wb.data, wa.stored_bytes()), 0);
  EXPECT_NE(std::memcmp(wa.data, wc.data, wa.stored_bytes()), 0);
  MemoryBudget enough(a.store.bytes()), less(a.store.bytes() / 2);
  EXPECT_NO_THROW(random_model("d", shape, format, 1, &enough));
  EXPECT_THROW(random_model("e", shape, format, 1, &less), Error);
}

}  // namespace
}  // namespace thimble
