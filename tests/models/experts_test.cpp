// A model with experts through what the project does with models: packed weights in every precision, batches, compression
// and its files, adapters, initial values.
#include <fstream>

#include "models/adapter.h"
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

// Adapters with random values in every tensor, so that none of them is without effect.
std::unique_ptr<Adapter> random_adapter(const Model& model, const KernelTable& kernels, AdapterOptions o, uint64_t seed) {
  o.seed = seed;
  o.rank = 3;
  o.targets = "all-linear";
  auto adapter = std::make_unique<Adapter>(model, kernels, o);
  Philox rng(seed, 99);
  adapter->for_each_parameter([&](const std::string&, Weight& w) {
    auto* data = static_cast<float*>(const_cast<void*>(w.data));
    for (int64_t i = 0; i < w.numel(); ++i) data[i] += static_cast<float>(0.1 * rng.normal());
  });
  return adapter;
}

// Sequence i under adapters[i]; null: the base alone.
std::vector<float> adapted_logits(Model& model, Context& ctx, const std::vector<std::vector<int32_t>>& sequences,
                                  const std::vector<Adapter*>& adapters) {
  Transformer transformer(model, 40);
  Rows rows;
  std::vector<AdapterSegment> segments;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto first = static_cast<int64_t>(rows.ids.size());
    rows.add(sequences[i]);
    if (adapters[i]) segments.push_back({first, static_cast<int64_t>(rows.ids.size()), adapters[i]});
  }
  const ArenaScope scope(ctx.saved);
  Batch batch = rows.batch();
  batch.segments = segments.data();
  batch.n_segments = static_cast<int64_t>(segments.size());
  const Var y = transformer.logits(ctx, transformer.forward(ctx, batch));
  return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
}

// all-linear means what it means in PEFT: every linear of the layers, those of the experts and the router included. Folded
// into the weights, an adapter computes the same; saved and loaded, the same bits; and people with adapters of their own
// share a batch without changing one another's bits.
TEST(ExpertModel, AdaptersReachEveryExpert) {
  const Mixtral files;
  for (const char* kind : {"lora", "dora", "ia3"}) {
    SCOPED_TRACE(kind);
    Engine e;
    LoadOptions trainable;
    trainable.trainable = true;
    Model model = load_model(files.dir.path(), e.kernels, trainable);
    AdapterOptions o;
    o.kind = std::string(kind) == "ia3" ? AdapterKind::ia3 : AdapterKind::lora;
    o.dora = std::string(kind) == "dora";
    const auto adapter = random_adapter(model, e.kernels, o, 1), other = random_adapter(model, e.kernels, o, 2);
    std::set<std::string> modules;
    adapter->export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) {
      const size_t end = std::min(t.name.rfind(".lora_"), t.name.rfind(".ia3_l"));
      modules.insert(t.name.substr(0, end));
    });
    EXPECT_EQ(modules.size(), 2u * (4 + 1 + 4 * 3));
    EXPECT_EQ(modules.count("base_model.model.model.layers.1.block_sparse_moe.experts.3.w2"), 1u);
    EXPECT_EQ(modules.count("base_model.model.model.layers.0.block_sparse_moe.gate"), 1u);
    const std::vector<std::vector<int32_t>> sequences = {text(1, 17, 70), text(2, 5, 70), text(3, 1, 70), text(4, 9, 70)};
    for (Precision precision : {Precision::f32, Precision::bf16}) {
      e.ctx->precision = precision;
      const std::vector<Adapter*> people = {adapter.get(), nullptr, other.get(), adapter.get()};
      const std::vector<float> together = adapted_logits(model, *e.ctx, sequences, people);
      std::vector<float> alone;
      for (size_t i = 0; i < sequences.size(); ++i) {
        const std::vector<float> one = adapted_logits(model, *e.ctx, {sequences[i]}, {people[i]});
        alone.insert(alone.end(), one.begin(), one.end());
      }
      EXPECT_TRUE(same_bits(together, alone));
    }
    e.ctx->precision = Precision::f32;
    const std::vector<float> base = logits(model, *e.ctx, {sequences[0]});
    const std::vector<float> beside = adapted_logits(model, *e.ctx, {sequences[0]}, {adapter.get()});
    EXPECT_GT(distance(beside, base), 0.01);
    const ScratchDir saved;
    adapter->save(saved.path(), files.dir.path());
    Adapter again(model, e.kernels, saved.path());
    EXPECT_TRUE(same_bits(beside, adapted_logits(model, *e.ctx, {sequences[0]}, {&again})));
    adapter->merged(model, e.kernels, [&](const ExportedTensor& t) { EXPECT_TRUE(import_tensor(model, t)) << t.name; });
    EXPECT_LT(distance(logits(model, *e.ctx, {sequences[0]}), beside), 1e-5);
  }
}

// Gradients of LoRA over experts, against differences of the double-precision model with W + scale B A in its places. The
// same bits when blocks run again, with dropout too.
TEST(ExpertModel, AdapterGradientsAgreeWithTheReference) {
  const Mixtral files;
  const reference::Model judge(config());
  const reference::Tensors weights = judge.random(3);
  Engine e;
  Model model = load_model(files.dir.path(), e.kernels);
  const auto adapter = random_adapter(model, e.kernels, {}, 5);
  adapter->enable_gradients();
  reference::Tensors parameters;
  adapter->export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) {
    parameters[t.name] = {t.shape, std::vector<double>(t.data.begin(), t.data.end())};
  });
  const double scale = 8.0 / 3;
  const auto loss_of = [&](const reference::Tensors& p) {
    reference::Tensors w = weights;
    for (const auto& [name, a] : p) {
      const size_t end = name.find(".lora_A.weight");
      if (end == std::string::npos) continue;
      const std::string module = name.substr(0, end);
      const reference::Tensor& b = p.at(module + ".lora_B.weight");
      std::vector<double>& data = w.at(module.substr(17) + ".weight").data;
      for (int64_t r = 0; r < b.shape[0]; ++r)
        for (int64_t c = 0; c < a.shape[1]; ++c)
          for (int64_t k = 0; k < 3; ++k)
            data[static_cast<size_t>(r * a.shape[1] + c)] += scale * b.data[static_cast<size_t>(r * 3 + k)] * a.data[static_cast<size_t>(k * a.shape[1] + c)];
    }
    return judge.loss(w, {text(1, 21, 70)});
  };
  Transformer transformer(model, 21);
  Rows rows;
  rows.add(text(1, 21, 70));
  std::vector<int32_t> labels(rows.ids.begin() + 1, rows.ids.end());
  labels.push_back(-1);
  const AdapterSegment segment{0, 21, adapter.get()};
  const auto step = [&](Recompute recompute, Precision precision, int threads) {
    Context ctx(e.kernels, threads, nullptr);
    ctx.precision = precision;
    ctx.training = precision == Precision::bf16;
    Tape tape;
    ctx.tape = &tape;
    adapter->for_each_parameter([](const std::string&, Weight& w) { w.grad_written = false; });
    Batch batch = rows.batch();
    batch.segments = &segment;
    batch.n_segments = 1;
    std::vector<float> all = {static_cast<float>(transformer.loss(ctx, transformer.forward(ctx, batch, recompute), labels.data(), 20))};
    backward(ctx);
    adapter->export_tensors(ExportWhat::gradients, [&](const ExportedTensor& t) { all.insert(all.end(), t.data.begin(), t.data.end()); });
    return all;
  };
  for (Precision precision : {Precision::f32, Precision::bf16}) {
    const std::vector<float> kept = step(Recompute::none, precision, 2);
    for (Recompute recompute : {Recompute::block, Recompute::cheap})
      for (int threads : {1, 3}) EXPECT_TRUE(same_bits(kept, step(recompute, precision, threads)));
  }
  EXPECT_NEAR(double(step(Recompute::none, Precision::f32, 2)[0]), loss_of(parameters), 1e-5);
  int compared = 0;
  adapter->export_tensors(ExportWhat::gradients, [&](const ExportedTensor& t) {
    ++compared;
    Philox rng(t.data.size(), 8);
    double got = 0, norm = 0;
    reference::Tensors moved = parameters;
    std::vector<double> direction;
    for (float g : t.data) {
      direction.push_back(rng.uniform() < 0.5 ? -1 : 1);
      got += double(g) * direction.back();
      norm += double(g) * double(g);
    }
    const auto at = [&](double h) {
      std::vector<double>& data = moved[t.name].data;
      for (size_t i = 0; i < data.size(); ++i) data[i] = parameters[t.name].data[i] + h * direction[i];
      return loss_of(moved);
    };
    constexpr double kStep = 2e-7;
    EXPECT_NEAR(got, (at(kStep) - at(-kStep)) / (2 * kStep), 4 * (1e-4 * std::sqrt(norm) + 1e-6)) << t.name;
  });
  EXPECT_GE(compared, 2 * 2 * (4 + 1 + 3 * 2));  // experts that no row went to have none
}

// Weights that an adapter replaces as a whole stand beside the experts of the base.
TEST(ExpertModel, AnAdapterMayReplaceTheHead) {
  const Mixtral files;
  Engine e;
  Model model = load_model(files.dir.path(), e.kernels);
  AdapterOptions o;
  o.modules_to_save = {"lm_head"};
  Adapter adapter(model, e.kernels, o);
  EXPECT_TRUE(same_bits(logits(model, *e.ctx, {text(1, 9, 70)}), adapted_logits(model, *e.ctx, {text(1, 9, 70)}, {&adapter})));
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
