// Encoders: the stored case of Hugging Face's BERT, random models of every row against a double-precision reference, the
// spellings of checkpoints, and what an encoder refuses.
#include <fmt/format.h>

#include "models/embedder.h"
#include "models/pooling.h"
#include "tests/models/encoder_reference.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

struct Spelling {
  const char *type, *prefix;
  std::map<std::string, std::string> names;  // canonical -> the file's, "@" is the layer
};

const Spelling& bert() {
  static const Spelling s = {"bert",
                             "bert.",
                             {{"word", "embeddings.word_embeddings.weight"},
                              {"pos", "embeddings.position_embeddings.weight"},
                              {"type", "embeddings.token_type_embeddings.weight"},
                              {"ln", "embeddings.LayerNorm"},
                              {"q", "encoder.layer.@.attention.self.query"},
                              {"k", "encoder.layer.@.attention.self.key"},
                              {"v", "encoder.layer.@.attention.self.value"},
                              {"o", "encoder.layer.@.attention.output.dense"},
                              {"ln1", "encoder.layer.@.attention.output.LayerNorm"},
                              {"up", "encoder.layer.@.intermediate.dense"},
                              {"down", "encoder.layer.@.output.dense"},
                              {"ln2", "encoder.layer.@.output.LayerNorm"},
                              {"pool", "pooler.dense"}}};
  return s;
}

const Spelling& distilbert() {
  static const Spelling s = {"distilbert",
                             "distilbert.",
                             {{"word", "embeddings.word_embeddings.weight"},
                              {"pos", "embeddings.position_embeddings.weight"},
                              {"ln", "embeddings.LayerNorm"},
                              {"q", "transformer.layer.@.attention.q_lin"},
                              {"k", "transformer.layer.@.attention.k_lin"},
                              {"v", "transformer.layer.@.attention.v_lin"},
                              {"o", "transformer.layer.@.attention.out_lin"},
                              {"ln1", "transformer.layer.@.sa_layer_norm"},
                              {"up", "transformer.layer.@.ffn.lin1"},
                              {"down", "transformer.layer.@.ffn.lin2"},
                              {"ln2", "transformer.layer.@.output_layer_norm"}}};
  return s;
}

// A random encoder, in files and in the reference.
struct RandomEncoder {
  static constexpr int64_t kVocab = 50, kHidden = 32, kInner = 48, kLayers = 2, kHeads = 4, kPositions = 24;
  Checkpoint checkpoint;
  EncoderReference reference;
  Philox rng{11, 3};

  double normal(double deviation) { return double{static_cast<float>(deviation * rng.normal())}; }
  void put(const std::string& canonical, const std::string& name, int64_t rows, int64_t cols, bool vector, double mean, double deviation) {
    Matrix m(static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(cols)));
    std::vector<float> data;
    for (auto& row : m)
      for (double& x : row) {
        x = double{static_cast<float>(mean + normal(deviation))};
        data.push_back(static_cast<float>(x));
      }
    reference.w[canonical] = m;
    checkpoint.tensors.push_back({name, SafetensorsDtype::f32, vector ? std::vector<int64_t>{cols} : std::vector<int64_t>{rows, cols},
                                  std::string(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float))});
  }
  void linear(const std::string& canonical, const std::string& name, int64_t out, int64_t in) {
    put(canonical + ".w", name + ".weight", out, in, false, 0, 0.3);
    put(canonical + ".b", name + ".bias", 1, out, true, 0, 0.1);
  }
  void norm(const std::string& canonical, const std::string& name) {
    put(canonical + ".w", name + ".weight", 1, kHidden, true, 1, 0.2);
    put(canonical + ".b", name + ".bias", 1, kHidden, true, 0, 0.1);
  }

  RandomEncoder(const Spelling& s, const std::string& type, int64_t padding_positions, bool prefixed) {
    const auto name = [&](const std::string& canonical, int64_t layer = 0) {
      std::string n = (prefixed ? s.prefix : "") + s.names.at(canonical);
      if (const size_t at = n.find('@'); at != std::string::npos) n.replace(at, 1, std::to_string(layer));
      return n;
    };
    put("word", name("word"), kVocab, kHidden, false, 0, 0.5);
    put("pos", name("pos"), kPositions + padding_positions, kHidden, false, 0, 0.5);
    if (s.names.count("type")) put("type", name("type"), 2, kHidden, false, 0, 0.5);
    norm("ln", name("ln"));
    for (int64_t l = 0; l < kLayers; ++l) {
      const std::string p = std::to_string(l) + ".";
      for (const char* c : {"q", "k", "v", "o"}) linear(p + c, name(c, l), kHidden, kHidden);
      norm(p + "ln1", name("ln1", l));
      linear(p + "up", name("up", l), kInner, kHidden);
      linear(p + "down", name("down", l), kHidden, kInner);
      norm(p + "ln2", name("ln2", l));
    }
    if (s.names.count("pool")) linear("pool", name("pool"), kHidden, kHidden);
    reference.layers = kLayers;
    reference.heads = kHeads;
    reference.first_position = padding_positions;
    if (type == "distilbert")
      checkpoint.config = {{"model_type", type}, {"vocab_size", kVocab}, {"dim", kHidden}, {"hidden_dim", kInner}, {"n_layers", kLayers},
                           {"n_heads", kHeads}, {"max_position_embeddings", kPositions}, {"activation", "gelu"}};
    else
      checkpoint.config = {{"model_type", type}, {"vocab_size", kVocab}, {"hidden_size", kHidden}, {"intermediate_size", kInner},
                           {"num_hidden_layers", kLayers}, {"num_attention_heads", kHeads}, {"hidden_act", "gelu"},
                           {"max_position_embeddings", kPositions + padding_positions}, {"type_vocab_size", 2}, {"layer_norm_eps", 1e-12}};
    if (padding_positions > 0) checkpoint.config["pad_token_id"] = padding_positions - 1;
  }
};

struct Hidden {
  std::vector<float> rows, pooler;
};
Hidden run(Model& model, Context& ctx, const Rows& rows, const int32_t* types) {
  Transformer transformer(model, RandomEncoder::kPositions);
  const ArenaScope scope(ctx.saved);
  Batch batch = rows.batch();
  batch.token_types = types;
  const Var h = transformer.forward(ctx, batch);
  Hidden out{{h.t.f32(), h.t.f32() + h.t.numel()}, {}};
  if (model.config.pooler) {
    const Var p = transformer.pooler_output(ctx, batch, h);
    out.pooler.assign(p.t.f32(), p.t.f32() + p.t.numel());
  }
  return out;
}

Rows sample_rows(std::vector<int32_t>* types) {
  Rows rows;
  for (const int64_t n : {7, 1, 24, 13}) rows.add(text(static_cast<uint64_t>(n), n, RandomEncoder::kVocab));
  rows.add({1, 9, 1, 3, 3, 30, 1});  // padding of RoBERTa inside a text
  for (size_t i = 0; i < rows.ids.size(); ++i) types->push_back(static_cast<int32_t>(i % 3 == 0));
  return rows;
}

void expect_near_reference(const RandomEncoder& made, Model& model, const std::string& what) {
  std::vector<int32_t> types;
  const Rows rows = sample_rows(&types);
  for (const Tier tier : tiers()) {
    Engine engine(tier);
    const bool typed = model.config.token_types > 0;
    const Hidden got = run(model, *engine.ctx, rows, typed ? types.data() : nullptr);
    for (size_t s = 0; s + 1 < rows.cu.size(); ++s) {
      const auto at = [&](const std::vector<int32_t>& v) { return std::vector<int32_t>(v.begin() + rows.cu[s], v.begin() + rows.cu[s + 1]); };
      const Matrix want = made.reference.forward(at(rows.ids), at(types));
      for (size_t t = 0; t < want.size(); ++t)
        for (size_t c = 0; c < want[t].size(); ++c)
          ASSERT_NEAR(double{got.rows[(size_t(rows.cu[s]) + t) * want[t].size() + c]}, want[t][c], 2e-5) << what << ", " << tier_name(tier) << ", sequence " << s << ", row " << t;
      if (!model.config.pooler) continue;
      const std::vector<double> pooled = made.reference.pooled(want);
      for (size_t c = 0; c < pooled.size(); ++c) ASSERT_NEAR(double{got.pooler[s * pooled.size() + c]}, pooled[c], 1e-5) << what << ", pooler";
    }
  }
}

TEST(Encoder, RowsAgreeWithDoublePrecision) {
  const struct {
    const Spelling& spelling;
    const char *type, *prefix;
    int64_t padding;
  } cases[] = {{bert(), "bert", "bert.", 0}, {bert(), "roberta", "roberta.", 2}, {bert(), "xlm-roberta", "roberta.", 2},
               {bert(), "roberta", "roberta.", 4}, {distilbert(), "distilbert", "distilbert.", 0}};
  for (const auto& c : cases)
    for (const bool prefixed : {false, true}) {
      Spelling s = c.spelling;
      s.prefix = c.prefix;
      const ScratchDir dir;
      const RandomEncoder made(s, c.type, c.padding, prefixed);
      made.checkpoint.write(dir.path());
      Engine engine;
      Model model = load_model(dir.path(), engine.kernels);
      EXPECT_TRUE(model.config.bidirectional);
      EXPECT_EQ(model.config.pooler, s.names.count("pool") > 0);
      EXPECT_EQ(model.config.max_positions, RandomEncoder::kPositions);
      expect_near_reference(made, model, fmt::format("{}{}", c.type, prefixed ? ", prefixed" : ""));
    }
}

// Older spellings of norms, tensors of the pretraining heads, and a checkpoint without a pooler.
TEST(Encoder, CheckpointsOfOtherOrigins) {
  RandomEncoder made(bert(), "bert", 0, true);
  Checkpoint& c = made.checkpoint;
  for (Checkpoint::Item& item : c.tensors) {
    const auto ends = [&](const std::string& end) { return item.name.size() > end.size() && item.name.compare(item.name.size() - end.size(), end.size(), end) == 0; };
    if (ends("LayerNorm.weight")) item.name.replace(item.name.size() - 6, 6, "gamma");
    if (ends("LayerNorm.bias")) item.name.replace(item.name.size() - 4, 4, "beta");
  }
  c.erase("bert.pooler.dense.weight");
  c.erase("bert.pooler.dense.bias");
  const std::string zeros(RandomEncoder::kVocab * sizeof(float), '\0');
  c.tensors.push_back({"cls.predictions.bias", SafetensorsDtype::f32, {RandomEncoder::kVocab}, zeros});
  c.tensors.push_back({"bert.embeddings.position_ids", SafetensorsDtype::i64, {1, 2}, std::string(16, '\0')});
  const ScratchDir dir;
  c.write(dir.path());
  Engine engine;
  Model model = load_model(dir.path(), engine.kernels);
  EXPECT_FALSE(model.config.pooler);
  expect_near_reference(made, model, "older names");
  Transformer transformer(model, 8);
  const Rows rows = [] {
    Rows r;
    r.add({1, 2});
    return r;
  }();
  const ArenaScope scope(engine.ctx->saved);
  const Batch batch = rows.batch();
  const Var h = transformer.forward(*engine.ctx, batch);
  EXPECT_THROW(transformer.pooler_output(*engine.ctx, batch, h), Error);
  // A classifier on top is not an embedder's.
  c.tensors.push_back({"classifier.weight", SafetensorsDtype::f32, {1, 2}, std::string(8, '\0')});
  c.write(dir.path());
  EXPECT_THROW(load_model(dir.path(), engine.kernels), Error);
}

template <class Body>
void expect_error(ErrorCode code, const std::string& part, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error: expected one about " << part;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(Encoder, RefusesWhatItCannotDo) {
  const RandomEncoder made(bert(), "bert", 0, false);
  Engine engine;
  const std::vector<std::pair<std::string, nlohmann::json>> settings = {
      {"position_embedding_type", "relative_key"}, {"is_decoder", true}, {"add_cross_attention", true}};
  for (const auto& [key, value] : settings) {
    Checkpoint changed = made.checkpoint;
    changed.config[key] = value;
    const ScratchDir dir;
    changed.write(dir.path());
    expect_error(ErrorCode::unsupported, key, [&, d = dir.path()] { load_model(d, engine.kernels); });
  }
  const ScratchDir dir;
  made.checkpoint.write(dir.path());
  Model model = load_model(dir.path(), engine.kernels);
  Transformer transformer(model, RandomEncoder::kPositions);
  Rows rows;
  rows.add({1, 2, 3});
  Context& ctx = *engine.ctx;
  const ArenaScope scope(ctx.saved);
  const Batch batch = rows.batch();
  const Var h = transformer.forward(ctx, batch);
  expect_error(ErrorCode::unsupported, "output matrix", [&] { transformer.logits(ctx, h); });
  const int32_t labels[] = {2, 3, -1};
  expect_error(ErrorCode::unsupported, "output matrix", [&] { transformer.loss(ctx, h, labels, 2); });
  KvCache cache(model.config, 1, 8);
  expect_error(ErrorCode::unsupported, "encoder", [&] { transformer.forward(ctx, rows.batch(&cache)); });
  const int32_t types[] = {0, 2, 0};
  Batch typed = rows.batch();
  typed.token_types = types;
  expect_error(ErrorCode::input, "token type 2", [&] { transformer.forward(ctx, typed); });
  expect_error(ErrorCode::input, "positions", [&] { Transformer(model, RandomEncoder::kPositions + 1); });
}

// A token's state depends on its own sequence alone, in both directions.
TEST(Encoder, NeighboursDoNotShowButLaterTokensDo) {
  const RandomEncoder made(bert(), "bert", 0, false);
  const ScratchDir dir;
  made.checkpoint.write(dir.path());
  Engine engine(best_tier(), 3);
  Model model = load_model(dir.path(), engine.kernels);
  const std::vector<int32_t> first = text(1, 9, RandomEncoder::kVocab), second = text(2, 14, RandomEncoder::kVocab);
  Rows both, alone;
  both.add(second);
  both.add(first);
  alone.add(first);
  const std::vector<float> together = run(model, *engine.ctx, both, nullptr).rows, apart = run(model, *engine.ctx, alone, nullptr).rows;
  EXPECT_TRUE(same_bits(apart, std::vector<float>(together.end() - static_cast<std::ptrdiff_t>(apart.size()), together.end())));
  Rows changed = alone;
  changed.ids.back() = (changed.ids.back() + 1) % RandomEncoder::kVocab;
  const std::vector<float> other = run(model, *engine.ctx, changed, nullptr).rows;
  EXPECT_NE(other[0], apart[0]);
}

// Everything that Hugging Face's BertModel and sentence-transformers' pooling stored, gradients included.
std::string oracle_digest(const std::string& dir, Tier tier, int threads) {
  Engine engine(tier, threads);
  Context& ctx = *engine.ctx;
  const SafetensorsFile expected(dir + "/expected.safetensors");
  std::set<std::string> compared;
  const auto integers = [&](const char* key) {
    const TensorInfo* info = expected.find(key);
    std::vector<int64_t> v(static_cast<size_t>(info->elements()));
    expected.read_i64(*info, v.data());
    compared.insert(key);
    return v;
  };
  const auto floats = [&](const std::string& key) {
    const TensorInfo* info = expected.find(key);
    std::vector<float> v(info ? static_cast<size_t>(info->elements()) : 0);
    if (info) expected.read_f32(*info, v.data());
    compared.insert(key);
    return v;
  };
  LoadOptions options;
  options.trainable = true;
  Model model = load_model(dir, engine.kernels, options);
  enable_gradients(model);
  const std::vector<int64_t> ids = integers("input_ids"), mask = integers("attention_mask"), token_types = integers("token_type_ids");
  const size_t length = ids.size() / 3;
  Rows rows;
  std::vector<int32_t> types;
  std::vector<size_t> place;
  for (size_t s = 0; s < 3; ++s) {
    std::vector<int32_t> one;
    for (size_t i = s * length; i < (s + 1) * length && mask[i] == 1; ++i) {
      one.push_back(static_cast<int32_t>(ids[i]));
      types.push_back(static_cast<int32_t>(token_types[i]));
      place.push_back(i);
    }
    rows.add(one);
  }
  Sha256 digest;
  const auto near = [&](const std::string& key, const Var& got, const std::vector<float>& want, double limit) {
    ASSERT_EQ(static_cast<size_t>(got.t.numel()), want.size()) << key;
    digest.update(got.t.data, want.size() * sizeof(float));
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got.t.f32()[i], want[i], limit) << key << " " << i << ", " << tier_name(tier);
  };
  Transformer transformer(model, static_cast<int64_t>(length));
  const EmbedRecipe recipe = read_embed_recipe(dir);
  EXPECT_EQ(describe(recipe), "mean, normalize");
  EXPECT_EQ(recipe.max_tokens, 64);
  Batch batch = rows.batch();
  batch.token_types = types.data();
  const ArenaScope scope(ctx.saved);
  Tape tape;
  ctx.tape = &tape;
  const Var h = transformer.forward(ctx, batch);
  const auto width = static_cast<size_t>(h.t.cols());
  std::vector<float> hidden;
  const std::vector<float> padded = floats("last_hidden_state");
  for (const size_t i : place) hidden.insert(hidden.end(), padded.begin() + std::ptrdiff_t(i * width), padded.begin() + std::ptrdiff_t((i + 1) * width));
  near("last_hidden_state", h, hidden, 2e-5);
  const EmbedRecipe mean;
  near("mean_pooled", EmbedHead(mean, h.t.cols()).run(ctx, h, batch.cu_seqlens, 3), floats("mean_pooled"), 2e-5);
  near("pooler_output", transformer.pooler_output(ctx, batch, h), floats("pooler_output"), 2e-5);
  const EmbedHead head(recipe, h.t.cols());
  const Var y = head.run(ctx, h, batch.cu_seqlens, 3);
  near("embeddings", y, floats("embeddings"), 1e-5);
  std::vector<float> probe = floats("probe");
  double loss = 0;
  for (size_t i = 0; i < probe.size(); ++i) loss += double{y.t.f32()[i]} * double{probe[i]};
  EXPECT_NEAR(loss, double{floats("loss")[0]}, 1e-5);
  tape.value(y.id).grad = probe.data();
  tape.value(y.id).written = true;
  backward(ctx);
  ctx.tape = nullptr;
  export_tensors(model, engine.kernels, ExportWhat::gradients, [&](const ExportedTensor& t) {
    digest.update(t.data.data(), t.data.size() * sizeof(float));
    const std::string name = "grad." + t.name.substr(5);
    const std::vector<float> want = floats(name);
    EXPECT_EQ(want.size(), t.data.size()) << name;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += (double{t.data[i]} - double{want[i]}) * (double{t.data[i]} - double{want[i]});
      norm += double{want[i]} * double{want[i]};
    }
    EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm) + 1e-6) << name << ", " << tier_name(tier);
  });
  for (const TensorInfo& t : expected.tensors()) EXPECT_TRUE(compared.count(t.name)) << t.name;
  return digest.hex();
}

TEST(Encoder, TheStoredCaseOnEveryTier) {
  const std::string dir = shared("oracle/hf/bert_minilm");
  if (!std::filesystem::exists(dir)) GTEST_SKIP() << "not here: " << dir;
  for (const Tier tier : tiers()) {
    const std::string one = oracle_digest(dir, tier, 1);
    EXPECT_EQ(oracle_digest(dir, tier, 3), one) << tier_name(tier) << ": other bits with other threads";
  }
}

}  // namespace
}  // namespace thimble::models_test
