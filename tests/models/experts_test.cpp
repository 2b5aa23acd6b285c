// A model with experts through what the project does with models: packed weights in every precision, batches, compression
// and its files, adapters, initial values.
#include <fstream>

#include "models/compress.h"
#include "models/init.h"
#include "models/packed.h"
#include "models/quantize.h"
#include "models/random_model.h"
#include "tests/models/reference_model.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

using Json = nlohmann::json;

Json config() {
  return {{"model_type", "mixtral"},      {"vocab_size", 70},          {"hidden_size", 32},          {"intermediate_size", 64},
          {"num_hidden_layers", 2},       {"num_attention_heads", 4},  {"num_key_value_heads", 2},   {"max_position_embeddings", 64},
          {"num_local_experts", 4},       {"num_experts_per_tok", 2},  {"rms_norm_eps", 1e-5},       {"rope_theta", 10000.0},
          {"sliding_window", nullptr},    {"tie_word_embeddings", false}};
}

struct Mixtral {
  Mixtral() {
    write_json(dir / "config.json", config());
    reference::write_safetensors(dir / "model.safetensors", reference::Model(config()).random(3));
  }
  ScratchDir dir;
};

std::vector<float> logits(Model& model, Context& ctx, const std::vector<std::vector<int32_t>>& sequences) {
  Transformer transformer(model, 40);
  Rows rows;
  for (const auto& s : sequences) rows.add(s);
  return logits_of(transformer, ctx, rows);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    d += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
    n += double(b[i]) * double(b[i]);
  }
  return std::sqrt(d / n);
}

TEST(ExpertModel, EveryEnumerationReachesEveryExpert) {
  const Mixtral files;
  Engine e;
  const Model model = load_model(files.dir.path(), e.kernels);
  int64_t experts = 0, parameters = 0;
  std::set<std::string> names;
  for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
    EXPECT_TRUE(names.insert(weight_name(role, place)).second);
    EXPECT_EQ(&model.weights.at(role, place), &w);
    experts += role_is_expert(role);
    parameters += w.numel();
  });
  EXPECT_EQ(experts, 2 * 4 * 3);
  EXPECT_EQ(names.count("1.expert_up_w.3"), 1u);
  EXPECT_EQ(names.count("0.up_w"), 0u);
  EXPECT_EQ(parameters, model.parameters());
  EXPECT_EQ(parameters, int64_t{2 * 70 * 32 + 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 32 + 4 * 32 + 4 * 3 * 64 * 32)});
}

// Quantized while loading: the router stays as it is, the logits are those of the weights that the codes stand for, and a
// sequence has the same bits alone and in company, in every precision.
TEST(ExpertModel, PackedExpertsComputeWhatTheirCodesSay) {
  const Mixtral files;
  for (const char* format : {"stored", "q8", "q4-g32", "q4-g32-min", "q2-g32"}) {
    Engine e;
    Model packed = load_model(files.dir.path(), e.kernels);
    quantize_model(packed, e.kernels, parse_load_format(format), nullptr);
    EXPECT_FALSE(is_tiled(packed.weights.layers[1].router_w.format));
    EXPECT_EQ(is_tiled(packed.weights.layers[1].experts[3].expert_down_w.format), std::string(format) != "stored");
    LoadOptions trainable;
    trainable.trainable = true;
    Model dense = load_model(files.dir.path(), e.kernels, trainable);
    export_tensors(packed, e.kernels, ExportWhat::weights, [&](const ExportedTensor& t) { EXPECT_TRUE(import_tensor(dense, t)) << t.name; });
    const std::vector<std::vector<int32_t>> sequences = {text(1, 17, 70), text(2, 5, 70), text(3, 1, 70)};
    EXPECT_LE(distance(logits(packed, *e.ctx, sequences), logits(dense, *e.ctx, sequences)), 2e-6) << format;
    for (Precision precision : {Precision::f32, Precision::bf16, Precision::int8_act}) {
      e.ctx->precision = precision;
      const std::vector<float> together = logits(packed, *e.ctx, sequences);
      std::vector<float> alone;
      for (const auto& s : sequences) {
        const std::vector<float> one = logits(packed, *e.ctx, {s});
        alone.insert(alone.end(), one.begin(), one.end());
      }
      EXPECT_TRUE(same_bits(together, alone)) << format << ", precision " << int(precision);
    }
  }
}

TEST(ExpertModel, EveryCompressionTreatsEveryExpertAndLoadsAgain) {
  const Mixtral files;
  std::vector<std::vector<int32_t>> calibration;
  for (uint64_t i = 0; i < 12; ++i) calibration.push_back(text(10 + i, 32, 70));
  for (const char* method : {"rtn:int4-g32-asym", "rtn-clip:int4-g32-sym", "gptq:int4-g32-asym", "gptq:int3-row-sym", "awq:int4-g32-asym",
                             "magnitude:0.5", "wanda:0.5", "sparsegpt:2:4"}) {
    SCOPED_TRACE(method);
    Engine e;
    Model model = load_model(files.dir.path(), e.kernels);
    const std::vector<float> before = logits(model, *e.ctx, {text(1, 30, 70)});
    const std::vector<float> router(model.weights.layers[0].router_w.f32(), model.weights.layers[0].router_w.f32() + 4 * 32);
    CompressOptions options = parse_compression(method);
    options.static_groups = false;  // with act-order's permutation: each expert has one of its own
    const CompressReport report = compress_model(model, *e.ctx, options, calibration);
    std::set<std::string> names;
    for (const TensorReport& t : report.tensors) {
      EXPECT_TRUE(names.insert(t.name).second) << t.name;
      EXPECT_GT(t.rel_err, 0) << t.name;
      EXPECT_LT(t.rel_err, 0.9) << t.name;
    }
    EXPECT_EQ(names.size(), 2u * (4 + 4 * 3));
    EXPECT_EQ(std::vector<float>(model.weights.layers[0].router_w.f32(), model.weights.layers[0].router_w.f32() + 4 * 32), router);
    const std::vector<float> after = logits(model, *e.ctx, {text(1, 30, 70)});
    EXPECT_GT(distance(after, before), 0);
    const ScratchDir out;
    write_compressed(out.path(), model, e.kernels, config(), report, {{"compression", report.compression}});
    Model again = load_model(out.path(), e.kernels);
    EXPECT_TRUE(same_bits(after, logits(again, *e.ctx, {text(1, 30, 70)})));
    EXPECT_EQ(again.stored_bytes(), model.stored_bytes());
  }
}

// Two tokens reach at most four experts: the others are rounded without statistics, and the report says so.
TEST(ExpertModel, AnExpertThatNoTokenReachesIsReported) {
  const Mixtral files;
  for (const char* method : {"awq:int4-g32-asym", "wanda:0.5", "gptq:int4-g32-asym", "sparsegpt:0.5"}) {
    Engine e;
    Model model = load_model(files.dir.path(), e.kernels);
    const CompressReport report = compress_model(model, *e.ctx, parse_compression(method), {text(5, 1, 70)});
    int unreached = 0;
    for (const TensorReport& t : report.tensors)
      if (role_is_expert(t.role)) unreached += !t.fallback.empty();
    EXPECT_GE(unreached, 2 * 2 * 3) << method;
    for (float logit : logits(model, *e.ctx, {text(1, 9, 70)})) ASSERT_TRUE(std::isfinite(logit)) << method;
  }
}

TEST(ExpertModel, RulesNameExperts) {
  const Mixtral files;
  Engine e;
  Model model = load_model(files.dir.path(), e.kernels);
  CompressOptions options = parse_compression("rtn:int4-g32-asym");
  options.rules = {{"*", true, {}, {}}, {"1.expert_*_w.2", false, options.spec, {}}};
  compress_model(model, *e.ctx, options, {});
  for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
    EXPECT_EQ(is_tiled(w.format), role_is_expert(role) && layer_of(place) == 1 && expert_of(place) == 2) << weight_name(role, place);
  });
}

TEST(ExpertModel, InitialValuesDifferBetweenExpertsAndRandomModelsRun) {
  const ScratchDir dir;
  write_json(dir / "config.json", config());
  Model model = init_model(dir / "config.json", 7, 0, nullptr);
  std::set<float> firsts;
  int64_t matrices = 0;
  for_each_weight(model.weights, [&](Role role, int64_t, const Weight& w) {
    if (role_shape(model.config, role).vector) return;
    ++matrices;
    firsts.insert(w.f32()[0]);
  });
  EXPECT_EQ(static_cast<int64_t>(firsts.size()), matrices);
  Engine e;
  const ShapeConfig shape{model.config, model.family};
  Model random = random_model("random", shape, parse_stored_format("q4_g32"), 1, nullptr);
  EXPECT_EQ(random.stored_bytes(), random_model_bytes(shape.config, parse_stored_format("q4_g32")));
  for (float logit : logits(random, *e.ctx, {text(1, 9, 70)})) ASSERT_TRUE(std::isfinite(logit));
}

TEST(ExpertModel, WrongShapesOfFusedExpertsAreNamed) {
  const Mixtral files;
  reference::Tensors t = reference::read_safetensors(files.dir / "model.safetensors");
  t.erase("model.layers.0.block_sparse_moe.experts.0.w1.weight");
  t["model.layers.0.mlp.experts.gate_up_proj"] = {{4, 64, 32}, std::vector<double>(4 * 64 * 32)};
  reference::write_safetensors(files.dir / "model.safetensors", t);
  Engine e;
  try {
    load_model(files.dir.path(), e.kernels);
    FAIL() << "a tensor of half the rows was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::input);
    EXPECT_NE(std::string(error.what()).find("gate_up_proj has shape [4, 64, 32]: config.json implies [4, 128, 32]"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace thimble::models_test
