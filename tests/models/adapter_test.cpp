// Adapters over a shared base: what one person's rows give does not depend on who shares the batch, gradients through a
// packed base are those through the matrix it stands for, and a saved adapter loads with the same bits.
#include <map>

#include "models/adapter.h"
#include "models/quantize.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

struct Kind {
  AdapterKind kind;
  bool dora = false;
  Kind(AdapterKind k, bool d = false) : kind(k), dora(d) {}
  const char* name() const { return dora ? "dora" : adapter_kind_name(kind); }
  bool adds_tokens() const { return kind == AdapterKind::prompt || kind == AdapterKind::prefix; }
};
const Kind kKinds[] = {AdapterKind::lora, AdapterKind::ia3, {AdapterKind::lora, true}, AdapterKind::prompt, AdapterKind::prefix};

// An adapter that changes something: fresh LoRA and IA3 do not.
std::unique_ptr<Adapter> random_adapter(const Model& model, const KernelTable& kernels, Kind kind, uint64_t seed,
                                        const std::string& targets = "all-linear", double dropout = 0) {
  AdapterOptions o;
  o.kind = kind.kind;
  o.dora = kind.dora;
  o.rank = 3;
  o.alpha = 5;
  o.dropout = dropout;
  o.n_virtual = 4;
  o.seed = seed;
  if (!kind.adds_tokens()) o.targets = targets;
  auto adapter = std::make_unique<Adapter>(model, kernels, o);
  Philox rng(seed, 99);
  adapter->for_each_parameter([&](const std::string&, Weight& w) {
    auto* data = static_cast<float*>(const_cast<void*>(w.data));
    for (int64_t i = 0; i < w.numel(); ++i) data[i] += static_cast<float>(0.1 * rng.normal());
  });
  adapter->enable_gradients();
  return adapter;
}

struct Person {
  Adapter* adapter;
  std::vector<std::vector<int32_t>> texts;
};

struct Outcome {
  std::vector<std::vector<float>> logits;     // per person
  std::vector<std::vector<float>> gradients;  // per person
};

// Forward and backward over the people in one batch; each person's loss is the mean over their own labels.
Outcome run(Transformer& transformer, Context& ctx, const std::vector<Person>& people, Recompute recompute = Recompute::none) {
  std::vector<int32_t> ids, labels, cu = {0};
  std::vector<float> weights;
  std::vector<AdapterSegment> segments;
  for (const Person& p : people) {
    const auto begin = static_cast<int64_t>(ids.size());
    int64_t count = 0;
    for (const auto& t : p.texts) {
      const int64_t virtuals = p.adapter->kind() == AdapterKind::prompt ? p.adapter->n_virtual() : 0;
      for (int64_t i = 0; i < virtuals; ++i) {
        ids.push_back(kVirtualToken);
        labels.push_back(i + 1 == virtuals ? t[0] : -1);
      }
      for (size_t i = 0; i < t.size(); ++i) {
        ids.push_back(t[i]);
        labels.push_back(i + 1 < t.size() ? t[i + 1] : -1);
      }
      cu.push_back(static_cast<int32_t>(ids.size()));
    }
    for (size_t i = size_t(begin); i < ids.size(); ++i) count += labels[i] >= 0;
    weights.resize(ids.size(), 1.0f / static_cast<float>(count));
    segments.push_back({begin, static_cast<int64_t>(ids.size()), p.adapter});
  }
  Batch batch;
  batch.ids = ids.data();
  batch.n = static_cast<int64_t>(ids.size());
  batch.cu_seqlens = cu.data();
  batch.n_seqs = static_cast<int64_t>(cu.size()) - 1;
  batch.segments = segments.data();
  batch.n_segments = static_cast<int64_t>(segments.size());
  for (const Person& p : people) p.adapter->for_each_parameter([](const std::string&, Weight& w) { w.grad_written = false; });

  Outcome result;
  {
    const ArenaScope scope(ctx.saved);
    const Var y = transformer.logits(ctx, transformer.forward(ctx, batch));
    for (const AdapterSegment& s : segments)
      result.logits.emplace_back(y.t.f32() + s.begin * y.t.cols(), y.t.f32() + s.end * y.t.cols());
  }
  const ArenaScope scope(ctx.saved);
  Tape tape;
  ctx.tape = &tape;
  ctx.training = true;
  ctx.seed = 5;
  ctx.step = 3;
  const Var hidden = transformer.forward(ctx, batch, recompute);
  transformer.loss(ctx, hidden, labels.data(), 1.0, nullptr, weights.data());
  backward(ctx);
  ctx.tape = nullptr;
  ctx.training = false;
  for (const Person& p : people) {
    std::vector<float> all;
    p.adapter->for_each_parameter([&](const std::string&, Weight& w) {
      EXPECT_TRUE(w.grad_written);
      all.insert(all.end(), w.grad, w.grad + w.numel());
    });
    result.gradients.push_back(std::move(all));
  }
  return result;
}

TEST(Adapter, MixedBatchGivesEachPersonTheSameBitsAsAlone) {
  for (const std::string& name : {std::string("llama_gqa_untied"), std::string("gpt_neox"), std::string("gpt2")})
    for (int bits : {0, 4}) {
      Engine e;
      Model model = load_model(oracle(name), e.kernels);
      quantize_model(model, e.kernels, {bits, 32});
      Transformer transformer(model, 64);
      std::vector<std::unique_ptr<Adapter>> adapters;
      std::vector<Person> people;
      for (size_t i = 0; i < 7; ++i) {
        adapters.push_back(random_adapter(model, e.kernels, kKinds[i % 5], 10 + i, "all-linear", i > 4 ? 0.0 : 0.3));
        Person p{adapters.back().get(), {}};
        for (size_t t = 0; t <= i % 3; ++t) p.texts.push_back(text(100 * i + t, static_cast<int64_t>(3 + 7 * t + i), model.config.vocab_size));
        people.push_back(p);
      }
      const Outcome together = run(transformer, *e.ctx, people);
      for (size_t i = 0; i < people.size(); ++i) {
        const Outcome alone = run(transformer, *e.ctx, {people[i]});
        EXPECT_TRUE(same_bits(alone.logits[0], together.logits[i])) << name << " bits " << bits << " person " << i;
        EXPECT_TRUE(same_bits(alone.gradients[0], together.gradients[i])) << name << " bits " << bits << " person " << i;
      }
      for (Recompute recompute : {Recompute::cheap, Recompute::block}) {
        const Outcome replayed = run(transformer, *e.ctx, people, recompute);
        for (size_t i = 0; i < people.size(); ++i)
          EXPECT_TRUE(same_bits(replayed.gradients[i], together.gradients[i])) << name << " recompute, person " << i;
      }
    }
}

// The base as f32, with the values that the packed one stands for.
void import_dequantized(Model& twin, const Model& packed, const KernelTable& kernels) {
  export_tensors(packed, kernels, ExportWhat::weights, [&](const ExportedTensor& t) { ASSERT_TRUE(import_tensor(twin, t)); });
}

TEST(Adapter, GradientsThroughPackedBaseEqualTheDequantizedTwins) {
  LoadOptions trainable;
  trainable.trainable = true;
  for (const std::string& name : {std::string("llama_gqa_untied"), std::string("gpt_neox"), std::string("opt_prenorm")})
    for (Tier tier : tiers())
      for (int bits : {8, 4}) {
        Engine e(tier);
        Model packed = load_model(oracle(name), e.kernels);
        quantize_model(packed, e.kernels, {bits, bits == 8 ? 0 : 32});
        Model twin = load_model(oracle(name), e.kernels, trainable);
        import_dequantized(twin, packed, e.kernels);
        Transformer packed_transformer(packed, 64), twin_transformer(twin, 64);
        for (const Kind& kind : kKinds) {
          const auto a = random_adapter(packed, e.kernels, kind, 3), b = random_adapter(twin, e.kernels, kind, 3);
          if (kind.kind == AdapterKind::prompt)  // starts from the embeddings, which both share
            std::memcpy(const_cast<void*>(b->prompt()->data), a->prompt()->data, size_t(a->prompt()->numel()) * sizeof(float));
          const std::vector<std::vector<int32_t>> texts = {text(1, 20, packed.config.vocab_size), text(2, 9, packed.config.vocab_size)};
          const Outcome x = run(packed_transformer, *e.ctx, {{a.get(), texts}}), y = run(twin_transformer, *e.ctx, {{b.get(), texts}});
          double difference = 0, norm = 0;
          for (size_t i = 0; i < x.gradients[0].size(); ++i) {
            const double d = double(x.gradients[0][i]) - double(y.gradients[0][i]);
            difference += d * d;
            norm += double(y.gradients[0][i]) * double(y.gradients[0][i]);
          }
          EXPECT_GT(norm, 0);
          EXPECT_LE(std::sqrt(difference), 1e-5 * std::sqrt(norm)) << name << " " << tier_name(tier) << " q" << bits << " " << kind.name();
        }
      }
}

TEST(Adapter, SavedAdapterLoadsWithTheSameBits) {
  for (const std::string& name : {std::string("llama_gqa_untied"), std::string("gpt_neox"), std::string("gpt2"), std::string("opt_prenorm")}) {
    Engine e;
    Model model = load_model(oracle(name), e.kernels);
    Transformer transformer(model, 64);
    for (const Kind& kind : kKinds)
      for (const std::string& targets : {std::string("all-linear"), std::string("\\.1\\..*")}) {
        if (targets != "all-linear" && kind.adds_tokens()) continue;
        const auto adapter = random_adapter(model, e.kernels, kind, 8, targets);
        const ScratchDir dir;
        adapter->save(dir.path(), "base");
        Adapter loaded(model, e.kernels, dir.path());
        loaded.enable_gradients();
        const std::vector<std::vector<int32_t>> texts = {text(1, 12, model.config.vocab_size)};
        const Outcome before = run(transformer, *e.ctx, {{adapter.get(), texts}}), after = run(transformer, *e.ctx, {{&loaded, texts}});
        EXPECT_TRUE(same_bits(before.logits[0], after.logits[0])) << name << " " << kind.name() << " " << targets;
        EXPECT_EQ(adapter->parameters(), loaded.parameters());
      }
  }
}

TEST(Adapter, MergedWeightsGiveTheAdaptersLogits) {
  LoadOptions trainable;
  trainable.trainable = true;
  for (const std::string& name : {std::string("llama_gqa_untied"), std::string("gpt_neox"), std::string("gpt2"), std::string("opt_prenorm")}) {
    Engine e;
    for (const Kind& kind : {Kind(AdapterKind::lora), Kind(AdapterKind::ia3), Kind(AdapterKind::lora, true)}) {
      Model model = load_model(oracle(name), e.kernels, trainable);
      Transformer transformer(model, 64);
      const auto adapter = random_adapter(model, e.kernels, kind, 4);
      const std::vector<int32_t> ids = text(6, 15, model.config.vocab_size);
      const Outcome want = run(transformer, *e.ctx, {{adapter.get(), {ids}}});
      std::vector<ExportedTensor> merged;
      adapter->merged(model, e.kernels, [&](const ExportedTensor& t) { merged.push_back(t); });
      for (const ExportedTensor& t : merged) ASSERT_TRUE(import_tensor(model, t));
      Rows rows;
      rows.add(ids);
      const std::vector<float> got = logits_of(transformer, *e.ctx, rows);
      double worst = 0;
      for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(double(got[i]) - double(want.logits[0][i])));
      EXPECT_LE(worst, 1e-4) << name << " " << kind.name();
    }
  }
}

TEST(Adapter, FreshLoraDoraAndIa3ChangeNothing) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  Transformer transformer(model, 64);
  Rows rows;
  rows.add(text(6, 15, model.config.vocab_size));
  const std::vector<float> base = logits_of(transformer, *e.ctx, rows);
  for (const Kind& kind : {Kind(AdapterKind::lora), Kind(AdapterKind::ia3), Kind(AdapterKind::lora, true)}) {
    AdapterOptions o;
    o.kind = kind.kind;
    o.dora = kind.dora;
    Adapter adapter(model, e.kernels, o);
    const AdapterSegment segment{0, 15, &adapter};
    const ArenaScope scope(e.ctx->saved);
    Batch batch = rows.batch();
    batch.segments = &segment;
    batch.n_segments = 1;
    const Var y = transformer.logits(*e.ctx, transformer.forward(*e.ctx, batch));
    EXPECT_TRUE(same_bits(base, std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel()))) << kind.name();
  }
}

// PEFT's modules_to_save: the output matrix is the adapter's own, trains, and is merged as it is.
TEST(Adapter, OutputMatrixOfItsOwn) {
  Engine e;
  LoadOptions trainable;
  trainable.trainable = true;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels, trainable);
  const auto lora = random_adapter(model, e.kernels, AdapterKind::lora, 1, "q_proj");
  const ScratchDir dir;
  lora->save(dir.path(), "base");
  std::vector<ExportedTensor> tensors;
  lora->export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  ExportedTensor head = export_tensor(model, e.kernels, "lm_head.weight");
  Philox rng(4, 4);
  for (float& x : head.data) x += static_cast<float>(0.1 * rng.normal());
  head.name = "base_model.model.lm_head.weight";
  tensors.push_back(head);
  std::vector<NamedTensor> named;
  for (const ExportedTensor& t : tensors) named.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(dir / "adapter_model.safetensors", named);
  nlohmann::json config = read_json(dir / "adapter_config.json");
  config["modules_to_save"] = nlohmann::json::array({"lm_head"});
  write_json(dir / "adapter_config.json", config);
  Adapter adapter(model, e.kernels, dir.path());
  adapter.enable_gradients();
  ASSERT_TRUE(adapter.replaces());
  Transformer transformer(model, 64);
  const std::vector<std::vector<int32_t>> texts = {text(1, 12, model.config.vocab_size)};
  const Outcome own = run(transformer, *e.ctx, {{&adapter, texts}}), base = run(transformer, *e.ctx, {{lora.get(), texts}});
  EXPECT_FALSE(same_bits(own.logits[0], base.logits[0]));
  EXPECT_EQ(own.gradients[0].size(), base.gradients[0].size() + head.data.size());
  const ScratchDir again;
  adapter.save(again.path(), "base");
  Adapter loaded(model, e.kernels, again.path());
  loaded.enable_gradients();
  EXPECT_TRUE(same_bits(run(transformer, *e.ctx, {{&loaded, texts}}).logits[0], own.logits[0]));
  std::vector<ExportedTensor> merged;
  adapter.merged(model, e.kernels, [&](const ExportedTensor& t) { merged.push_back(t); });
  for (const ExportedTensor& t : merged) ASSERT_TRUE(import_tensor(model, t)) << t.name;
  Rows rows;
  rows.add(texts[0]);
  const std::vector<float> got = logits_of(transformer, *e.ctx, rows);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], own.logits[0][i], 1e-4);
}

// DoRA's norms are kept between calls without a tape: they must follow a change of A or B.
TEST(Adapter, KeptNormsFollowTheWeights) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  Transformer transformer(model, 64);
  const auto adapter = random_adapter(model, e.kernels, {AdapterKind::lora, true}, 3);
  Rows rows;
  rows.add(text(6, 15, model.config.vocab_size));
  Batch batch = rows.batch();
  const AdapterSegment segment{0, batch.n, adapter.get()};
  batch.segments = &segment;
  batch.n_segments = 1;
  const auto logits = [&](bool taped) {
    const ArenaScope scope(e.ctx->saved);
    Tape tape;
    if (taped) e.ctx->tape = &tape;
    const Var y = transformer.logits(*e.ctx, transformer.forward(*e.ctx, batch));
    e.ctx->tape = nullptr;
    return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
  };
  const std::vector<float> before = logits(false);
  EXPECT_TRUE(same_bits(before, logits(false)));
  EXPECT_TRUE(same_bits(before, logits(true)));
  adapter->for_each_parameter([](const std::string& name, Weight& w) {
    if (name.find("lora_B") != std::string::npos) static_cast<float*>(const_cast<void*>(w.data))[0] += 0.5f;
  });
  const std::vector<float> after = logits(false);
  EXPECT_FALSE(same_bits(before, after));
  EXPECT_TRUE(same_bits(after, logits(true)));
}

// Biases and whole modules of a fresh adapter begin as the base's, learn, and survive a save.
TEST(Adapter, FreshAdapterWithBiasesAndWholeModules) {
  for (const std::string& name : {std::string("gpt2"), std::string("opt_prenorm"), std::string("qwen2")}) {
    Engine e;
    Model model = load_model(oracle(name), e.kernels);
    Transformer transformer(model, 64);
    AdapterOptions o;
    o.bias = AdapterBias::all;
    o.modules_to_save = {"lm_head"};
    Adapter adapter(model, e.kernels, o);
    adapter.enable_gradients();
    Rows rows;
    rows.add(text(6, 12, model.config.vocab_size));
    const Outcome fresh = run(transformer, *e.ctx, {{&adapter, {rows.ids}}});
    EXPECT_TRUE(same_bits(fresh.logits[0], logits_of(transformer, *e.ctx, rows))) << name;
    Philox rng(1, 99);
    adapter.for_each_parameter([&](const std::string&, Weight& w) {
      auto* data = static_cast<float*>(const_cast<void*>(w.data));
      for (int64_t i = 0; i < w.numel(); ++i) data[i] += static_cast<float>(0.05 * rng.normal());
    });
    const Outcome moved = run(transformer, *e.ctx, {{&adapter, {rows.ids}}});
    EXPECT_FALSE(same_bits(fresh.logits[0], moved.logits[0])) << name;
    const ScratchDir dir;
    adapter.save(dir.path(), "base");
    Adapter loaded(model, e.kernels, dir.path());
    loaded.enable_gradients();
    const Outcome again = run(transformer, *e.ctx, {{&loaded, {rows.ids}}});
    EXPECT_TRUE(same_bits(moved.logits[0], again.logits[0])) << name;
    EXPECT_TRUE(same_bits(moved.gradients[0], again.gradients[0])) << name;
    // Folding gives a tied model an output matrix of its own.
    LoadOptions trainable;
    trainable.trainable = true;
    Model folded = load_model(oracle(name), e.kernels, trainable);
    EXPECT_EQ(adapter.unties(), folded.config.tied);
    if (adapter.unties()) untie(folded, e.kernels);
    adapter.merged(folded, e.kernels, [&](const ExportedTensor& t) { EXPECT_TRUE(import_tensor(folded, t)) << t.name; });
    Transformer plain(folded, 64);
    const std::vector<float> got = logits_of(plain, *e.ctx, rows);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], moved.logits[0][i], 1e-4) << name;
  }
}

// Spellings of keys that versions of PEFT have used.
TEST(Adapter, KeysOfOtherVersions) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  const auto dora = random_adapter(model, e.kernels, {AdapterKind::lora, true}, 1, "q_proj");
  const ScratchDir dir;
  dora->save(dir.path(), "base");
  std::vector<ExportedTensor> tensors;
  dora->export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  const auto loads_as = [&](const std::function<std::string(std::string)>& rename) {
    std::vector<NamedTensor> named;
    for (const ExportedTensor& t : tensors) named.push_back({rename(t.name), SafetensorsDtype::f32, t.shape, t.data.data()});
    write_safetensors(dir / "adapter_model.safetensors", named);
    Adapter loaded(model, e.kernels, dir.path());
    size_t i = 0;
    loaded.export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) {
      EXPECT_EQ(t.name, tensors.at(i).name);
      EXPECT_TRUE(same_bits(t.data, tensors.at(i++).data));
    });
    EXPECT_EQ(i, tensors.size());
  };
  const auto replace = [](std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  };
  loads_as([&](std::string n) { return replace(n, "lora_magnitude_vector", "lora_magnitude_vector.weight"); });
  loads_as([&](std::string n) { return replace(n, "lora_magnitude_vector", "lora_magnitude_vector.default.weight"); });
  loads_as([&](std::string n) { return replace(n, ".lora_A.", ".lora_A.default."); });
  loads_as([&](std::string n) { return replace(n, "base_model.model.model.", "base_model.model."); });  // of the bare model
  EXPECT_THROW(loads_as([&](std::string n) { return replace(n, "layers.1.", "layers.7."); }), Error);
}

// Where the embeddings are stored as well, PEFT writes a replaced module three times; the plain key is what it reads.
TEST(Adapter, ReplacedModulesThatStandInTheFileThreeTimes) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  AdapterOptions o;
  o.rank = 2;
  o.targets = "q_proj";
  o.modules_to_save = {"lm_head"};
  const Adapter fresh(model, e.kernels, o);
  const ScratchDir dir;
  fresh.save(dir.path(), "base");
  std::vector<ExportedTensor> tensors;
  fresh.export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  const std::string module = "base_model.model.lm_head.";
  std::vector<NamedTensor> named;
  std::vector<float> other;
  for (const ExportedTensor& t : tensors) {
    named.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
    if (t.name != module + "weight") continue;
    other.assign(t.data.size(), 7.0f);
    for (const char* part : {"modules_to_save.weight", "original_module.weight"}) named.push_back({module + part, SafetensorsDtype::f32, t.shape, other.data()});
  }
  ASSERT_EQ(named.size(), tensors.size() + 2);
  write_safetensors(dir / "adapter_model.safetensors", named);
  const Adapter loaded(model, e.kernels, dir.path());
  size_t i = 0;
  loaded.export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { EXPECT_TRUE(same_bits(t.data, tensors.at(i++).data)) << t.name; });
  EXPECT_EQ(i, tensors.size());
}

// Null names the family's defaults; P-tuning stores the rows of a prompt.
TEST(Adapter, DefaultModulesAndOtherPrompts) {
  Engine e;
  for (const char* name : {"llama_gqa_untied", "gpt2", "gpt_neox", "opt_prenorm"}) {
    Model model = load_model(oracle(name), e.kernels);
    AdapterOptions o;
    o.kind = AdapterKind::ia3;
    const Adapter fresh(model, e.kernels, o);
    const ScratchDir dir;
    fresh.save(dir.path(), "base");
    nlohmann::json config = read_json(dir / "adapter_config.json");
    for (const char* field : {"feedforward_modules", "target_modules"}) {
      config[field] = nullptr;
      write_json(dir / "adapter_config.json", config);
      EXPECT_EQ(Adapter(model, e.kernels, dir.path()).parameters(), fresh.parameters()) << name << " without " << field;
    }
  }
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  const ScratchDir dir;
  const auto prompt = random_adapter(model, e.kernels, AdapterKind::prompt, 3);
  prompt->save(dir.path(), "base");
  nlohmann::json config = read_json(dir / "adapter_config.json");
  config.update({{"peft_type", "P_TUNING"}, {"encoder_hidden_size", 64}, {"encoder_reparameterization_type", "MLP"}, {"encoder_num_layers", 2}, {"encoder_dropout", 0.0}});
  write_json(dir / "adapter_config.json", config);
  Adapter loaded(model, e.kernels, dir.path());
  EXPECT_TRUE(loaded.warnings().empty());
  EXPECT_EQ(loaded.kind(), AdapterKind::prompt);
  EXPECT_EQ(loaded.n_virtual(), prompt->n_virtual());
}

// adapter_model.bin, as torch.save writes it.
TEST(Adapter, PickledTensors) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  std::map<std::string, std::vector<float>> want;
  Adapter(model, e.kernels, oracle("../peft/llama_lora")).export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { want[t.name] = t.data; });
  size_t same = 0;
  Adapter(model, e.kernels, oracle("../peft/llama_lora_bin")).export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) {
    EXPECT_TRUE(same_bits(t.data, want[t.name])) << t.name;
    ++same;
  });
  EXPECT_EQ(same, want.size());
  EXPECT_EQ(same, 8u);
}

TEST(Adapter, ConfigurationsThatChangeTheResultAreRefusedByName) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  const auto adapter = random_adapter(model, e.kernels, AdapterKind::lora, 1, "q_proj");
  const ScratchDir dir;
  adapter->save(dir.path(), "base");
  const nlohmann::json config = read_json(dir / "adapter_config.json");
  const auto outcome = [&](const std::string& key, const nlohmann::json& value) -> std::string {
    nlohmann::json changed = config;
    changed[key] = value;
    write_json(dir / "adapter_config.json", changed);
    try {
      const Adapter loaded(model, e.kernels, dir.path());
      return loaded.warnings().empty() ? "" : "warning: " + loaded.warnings()[0];
    } catch (const Error& error) {
      return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
    }
  };
  for (const auto& [key, value] : std::vector<std::pair<std::string, nlohmann::json>>{
           {"init_lora_weights", "pissa"}, {"init_lora_weights", "pissa_niter_16"}, {"init_lora_weights", "olora"},
           {"init_lora_weights", "loftq"}, {"layer_replication", nlohmann::json::array({1})}, {"lora_bias", true}, {"ensure_weight_tying", true},
           {"trainable_token_indices", nlohmann::json::array({1, 2})}, {"kasa_config", nlohmann::json::object({{"beta", 1e-4}})}, {"init_lora_weights", "PiSSA"}, {"peft_type", "ADALORA"}, {"peft_type", "LOHA"}}) {
    const std::string text = outcome(key, value);
    EXPECT_EQ(text.substr(0, 2), "5:") << key << " " << value << ": " << text;
    EXPECT_NE(text.find(value.is_string() ? value.get<std::string>() : key), std::string::npos) << text;
  }
  for (const auto& [key, value] : std::vector<std::pair<std::string, nlohmann::json>>{
           {"init_lora_weights", "Gaussian"}, {"init_lora_weights", false}, {"lora_bias", false}, {"exclude_modules", nlohmann::json::array({"k_proj"})},
           {"trainable_token_indices", nullptr}, {"peft_version", "0.18.0"}, {"eva_config", nullptr}})
    EXPECT_EQ(outcome(key, value), "") << key << " " << value;
  const std::string unknown = outcome("a_field_of_the_future", 1);
  EXPECT_EQ(unknown.substr(0, 8), "warning:") << unknown;
  EXPECT_NE(unknown.find("a_field_of_the_future"), std::string::npos) << unknown;
  EXPECT_EQ(outcome("exclude_modules", nlohmann::json::array({"q_proj"})).substr(0, 2), "3:");
  EXPECT_EQ(outcome("modules_to_save", nlohmann::json::array({"score"})).substr(0, 2), "3:");
  EXPECT_EQ(outcome("target_modules", nlohmann::json::array({"q_proj", "lm_head"})).substr(0, 2), "3:");  // has no tensors
  EXPECT_EQ(outcome("use_rslora", true), "");
  EXPECT_EQ(outcome("rank_pattern", nlohmann::json::object({{"(", 3}})).substr(0, 2), "3:");
  EXPECT_EQ(outcome("rank_pattern", nlohmann::json::object({{"q_proj", 0}})).substr(0, 2), "3:");
  EXPECT_EQ(outcome("layers_to_transform", nlohmann::json::array({"one"})).substr(0, 2), "3:");
  EXPECT_EQ(outcome("bias", "some").substr(0, 2), "3:");
  EXPECT_EQ(outcome("bias", "lora_only"), "");  // PEFT 0.12 does not store them
}

TEST(Adapter, DamagedFilesAreRefusedByName) {
  Engine e;
  Model llama = load_model(oracle("llama_gqa_untied"), e.kernels), neox = load_model(oracle("gpt_neox"), e.kernels);
  const auto adapter = random_adapter(llama, e.kernels, AdapterKind::lora, 1, "q_proj");
  const ScratchDir dir;
  adapter->save(dir.path(), "base");
  EXPECT_THROW(Adapter(neox, e.kernels, dir.path()), Error);  // no module of that name
  nlohmann::json config = read_json(dir / "adapter_config.json");
  const auto code_with = [&](const std::string& key, const nlohmann::json& value) {
    nlohmann::json changed = config;
    changed[key] = value;
    write_json(dir / "adapter_config.json", changed);
    try {
      Adapter(llama, e.kernels, dir.path());
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("adapter_"), std::string::npos) << error.what();
      return static_cast<int>(error.code());
    }
    return 0;
  };
  EXPECT_EQ(code_with("r", 3), 0);
  EXPECT_EQ(code_with("r", 7), 3);  // shapes no longer fit
  EXPECT_EQ(code_with("r", "many"), 3);
  EXPECT_EQ(code_with("peft_type", "VERA"), 5);
  EXPECT_EQ(code_with("use_dora", true), 3);  // has no magnitudes
  EXPECT_EQ(code_with("target_modules", nlohmann::json::array({"q_proj", "v_proj"})), 3);  // v_proj has no tensors
  EXPECT_EQ(code_with("target_modules", "(unclosed"), 3);
}

}  // namespace
}  // namespace thimble::models_test
