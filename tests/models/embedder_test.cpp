// Texts as vectors: pooling against sums by hand, the files of sentence-transformers and model2vec, and a vector that depends
// on its text alone.
#include "models/embedder.h"

#include "models/pooling.h"
#include "models/tokenizer/bpe_trainer.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

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

class EmbedderTest : public ::testing::Test {
 protected:
  KernelTable kernels = build_kernel_table(best_tier(), nullptr, 0);
  Model model = load_model(oracle("llama_gqa_untied"), kernels);
  Context ctx{kernels, 1, nullptr};
  Transformer transformer{model, 24};
  // Bytes and a few merges: ids fit the small model's vocabulary.
  Tokenizer tokenizer = [] {
    BpeTrainerOptions options;
    options.vocab_size = 280;
    return train_bpe("the red boat and the blue boat and the red gull", options);
  }();

  // Hidden states of a text, in double.
  std::vector<std::vector<double>> hidden(const std::vector<int32_t>& ids) {
    Rows rows;
    rows.add(ids);
    const ArenaScope scope(ctx.saved);
    const Batch batch = rows.batch();
    const Var h = transformer.forward(ctx, batch);
    std::vector<std::vector<double>> out;
    for (int64_t r = 0; r < h.t.rows(); ++r) out.emplace_back(h.t.f32() + r * h.t.cols(), h.t.f32() + (r + 1) * h.t.cols());
    return out;
  }
};

TEST_F(EmbedderTest, IsTheMeanOfHiddenStatesByDefault) {
  ASSERT_LE(tokenizer.vocab_size(), model.config.vocab_size);
  const std::string text = "the red gull";
  const std::vector<float> got = Embedder(transformer, ctx, tokenizer).embed({text})[0];
  const auto h = hidden(tokenizer.encode(text));
  ASSERT_EQ(got.size(), h[0].size());
  for (size_t c = 0; c < got.size(); ++c) {
    double sum = 0;
    for (const auto& row : h) sum += row[c];
    EXPECT_NEAR(got[c], sum / double(h.size()), 1e-6);
  }
}

TEST_F(EmbedderTest, EveryPoolingByHand) {
  const std::vector<int32_t> ids = {5, 17, 60, 2, 90};
  const auto h = hidden(ids);
  const size_t n = h.size(), width = h[0].size();
  for (const int64_t prompt : {0, 2, 9}) {
    const auto skip = static_cast<size_t>(std::min<int64_t>(prompt, 4));  // the last token always stays
    const auto by_hand = [&](Pooling p, size_t c) {
      double sum = 0, positions = 0, largest = -1e30;
      for (size_t i = skip; i < n; ++i) {
        sum += p == Pooling::weighted_mean ? double(i + 1) * h[i][c] : h[i][c];
        positions += double(i + 1);
        largest = std::max(largest, h[i][c]);
      }
      switch (p) {
        case Pooling::cls: return h[0][c];
        case Pooling::last_token: return h[n - 1][c];
        case Pooling::max: return largest;
        case Pooling::weighted_mean: return sum / positions;
        case Pooling::mean_sqrt_len: return sum / std::sqrt(double(n - skip));
        case Pooling::mean: break;
      }
      return sum / double(n - skip);
    };
    for (const std::string name : {"cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken", "cls+max+mean", "mean+lasttoken"}) {
      EmbedRecipe recipe;
      recipe.pooling = parse_pooling(name, "test");
      const Embedder embedder(transformer, ctx, tokenizer, recipe);
      ASSERT_EQ(embedder.dimensions(), static_cast<int64_t>(recipe.pooling.size() * width));
      TokenText one;
      one.ids = ids;
      one.prompt = prompt;
      const std::vector<float> got = embedder.embed_ids({one})[0];
      for (size_t p = 0; p < recipe.pooling.size(); ++p)
        for (size_t c = 0; c < width; ++c) ASSERT_NEAR(got[p * width + c], by_hand(recipe.pooling[p], c), 2e-6) << name << ", prompt of " << prompt;
    }
  }
  expect_error(ErrorCode::usage, "\"median\"", [] { parse_pooling("mean+median", "--pooling"); });
  expect_error(ErrorCode::usage, "--pooling", [] { parse_pooling("", "--pooling"); });
}

TEST_F(EmbedderTest, DenseAndNormalizeInOrder) {
  const std::vector<int32_t> ids = {5, 17, 60};
  const auto h = hidden(ids);
  const size_t width = h[0].size(), out = 3;
  EmbedRecipe recipe;
  EmbedStep dense;
  dense.dense.in = static_cast<int64_t>(width);
  dense.dense.out = out;
  for (size_t i = 0; i < out * width; ++i) dense.dense.weight.push_back(static_cast<float>(double(i % 7) * 0.1 - 0.3));
  dense.dense.bias = {0.5f, -0.25f, 0.125f};
  dense.dense.tanh = true;
  recipe.steps = {{true, {}}, dense, {true, {}}};
  const std::vector<float> got = Embedder(transformer, ctx, tokenizer, recipe).embed_ids({{ids, {}, 0}})[0];
  std::vector<double> mean(width), y(out);
  double squares = 0;
  for (size_t c = 0; c < width; ++c) {
    for (const auto& row : h) mean[c] += row[c] / double(h.size());
    squares += mean[c] * mean[c];
  }
  double length = 0;
  for (size_t o = 0; o < out; ++o) {
    y[o] = double{dense.dense.bias[o]};
    for (size_t c = 0; c < width; ++c) y[o] += double{dense.dense.weight[o * width + c]} * mean[c] / std::sqrt(squares);
    y[o] = std::tanh(y[o]);
    length += y[o] * y[o];
  }
  ASSERT_EQ(got.size(), out);
  for (size_t o = 0; o < out; ++o) EXPECT_NEAR(got[o], y[o] / std::sqrt(length), 1e-6);
  recipe.steps[1].dense.in = 5;
  expect_error(ErrorCode::input, "Dense", [&] { Embedder(transformer, ctx, tokenizer, recipe); });
}

TEST_F(EmbedderTest, DoesNotDependOnNeighboursBatchesOrThreads) {
  const std::vector<std::string> texts{"the red gull", "a", "", std::string(200, 'z'), "the blue boat and the red gull", "the red gull"};
  const auto together = Embedder(transformer, ctx, tokenizer).embed(texts);
  EXPECT_EQ(Embedder(transformer, ctx, tokenizer, {}, 1).embed(texts), together);
  Context many{kernels, 3, nullptr};
  EXPECT_EQ(Embedder(transformer, many, tokenizer, {}, 9).embed(texts), together);
  EXPECT_EQ(together[0], together[5]);
  EXPECT_NE(together[0], together[4]);
  // An empty text is what the tokenizer adds to it; a long one is cut to what the model takes.
  ASSERT_EQ(tokenizer.encode("").size(), 1u);
  EXPECT_EQ(together[2].size(), together[0].size());
  const std::vector<int32_t> ids = tokenizer.encode(texts[3]);
  EXPECT_GT(static_cast<int64_t>(ids.size()), transformer.max_tokens());
  EXPECT_NE(together[3], together[2]);
  EXPECT_TRUE(Embedder(transformer, ctx, tokenizer).embed({}).empty());
}

// The end of a long text is cut, the special tokens around it are not.
TEST_F(EmbedderTest, TextsAreCutInsideTheirSpecialTokens) {
  const Embedder embedder(transformer, ctx, tokenizer);
  const std::vector<int32_t> whole = tokenizer.encode(std::string(200, 'z')), got = embedder.tokenize(std::string(200, 'z')).ids;
  ASSERT_EQ(static_cast<int64_t>(got.size()), transformer.max_tokens());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), whole.begin()));
  EmbedRecipe stripping;
  stripping.strip = stripping.lower_case = true;
  const Embedder other(transformer, ctx, tokenizer, stripping);
  EXPECT_EQ(other.tokenize(" \t\u00a0The RED gull\n").ids, tokenizer.encode("the red gull"));
  EXPECT_EQ(other.tokenize(" \n").ids, tokenizer.encode(""));
  EXPECT_EQ(embedder.tokenize("gull", "the red ").ids, tokenizer.encode("the red gull"));
  EXPECT_THROW(other.tokenize("\xff"), Error);
  EXPECT_THROW(embedder.embed({"fine", "\xff"}), Error);
}

// BERT's tokens around a text stay where its end is cut.
TEST_F(EmbedderTest, BertTextsKeepTheirSeparator) {
  const std::string path = shared("oracle/tok/bert_uncased");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << path;
  const Embedder embedder(transformer, ctx, Tokenizer::load(path));
  std::string words;
  for (int i = 0; i < 40; ++i) words += "boat ";
  const std::vector<int32_t> ids = embedder.tokenize(words).ids;
  ASSERT_EQ(static_cast<int64_t>(ids.size()), transformer.max_tokens());
  EXPECT_EQ(ids.front(), 101);
  EXPECT_EQ(ids.back(), 102);
  EXPECT_EQ(ids[1], ids[22]);
  EXPECT_EQ(embedder.tokenize("boat").ids, (std::vector<int32_t>{101, ids[1], 102}));
  EXPECT_EQ(embedder.tokenize("").ids, (std::vector<int32_t>{101, 102}));
}

// A prompt that is read but not pooled leaves the mean of the other rows.
TEST_F(EmbedderTest, PromptsMayBeLeftOutOfTheMean) {
  EmbedRecipe recipe;
  recipe.include_prompt = false;
  const Embedder embedder(transformer, ctx, tokenizer, recipe);
  const TokenText t = embedder.tokenize("gull", "the red ");
  const auto prompt = static_cast<int64_t>(tokenizer.encode("the red ").size());
  EXPECT_EQ(t.prompt, prompt);
  const auto h = hidden(t.ids);
  const std::vector<float> got = embedder.embed({"gull"}, "the red ")[0];
  for (size_t c = 0; c < got.size(); ++c) {
    double sum = 0;
    for (size_t i = static_cast<size_t>(prompt); i < h.size(); ++i) sum += h[i][c];
    EXPECT_NEAR(got[c], sum / double(h.size() - static_cast<size_t>(prompt)), 1e-6);
  }
  EXPECT_EQ(embedder.tokenize("gull").prompt, 0);
}

class RecipeTest : public ::testing::Test {
 protected:
  ScratchDir dir;
  void put(const std::string& name, const nlohmann::json& json) {
    std::filesystem::create_directories(std::filesystem::path(dir / name).parent_path());
    write_json(dir / name, json);
  }
  void modules(const std::vector<std::pair<std::string, std::string>>& list) {
    nlohmann::json json = nlohmann::json::array();
    for (const auto& [type, path] : list)
      json.push_back({{"idx", json.size()}, {"name", std::to_string(json.size())}, {"path", path}, {"type", "sentence_transformers.models." + type}});
    put("modules.json", json);
  }
};

TEST_F(RecipeTest, SentenceTransformers) {
  modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"Dense", "2_Dense"}, {"Normalize", "3_Normalize"}});
  put("1_Pooling/config.json", {{"word_embedding_dimension", 4}, {"pooling_mode_cls_token", true}, {"pooling_mode_mean_tokens", true},
                                {"pooling_mode_weightedmean_tokens", false}, {"include_prompt", false}});
  put("2_Dense/config.json", {{"in_features", 8}, {"out_features", 2}, {"bias", false}, {"activation_function", "torch.nn.modules.linear.Identity"}});
  const std::vector<float> weight(16, 0.5f);
  write_safetensors(dir / "2_Dense/model.safetensors", {{"linear.weight", SafetensorsDtype::f32, {2, 8}, weight.data()}});
  put("sentence_roberta_config.json", {{"max_seq_length", 128}, {"do_lower_case", true}});
  put("config_sentence_transformers.json", {{"prompts", {{"query", "query: "}, {"passage", "passage: "}}}, {"default_prompt_name", "query"}});
  const EmbedRecipe r = read_embed_recipe(dir.path());
  EXPECT_EQ(describe(r), "cls+mean, dense 2, normalize");
  EXPECT_EQ(r.source, "sentence-transformers");
  EXPECT_EQ(r.max_tokens, 128);
  EXPECT_TRUE(r.lower_case && r.strip && !r.include_prompt && r.normalizes());
  EXPECT_EQ(r.prompts.at("passage"), "passage: ");
  EXPECT_EQ(r.default_prompt, "query");
  EXPECT_EQ(r.steps[0].dense.weight, weight);
  EXPECT_TRUE(r.steps[0].dense.bias.empty());
  EXPECT_EQ(r.model_path, dir.path());

  put("2_Dense/config.json", {{"in_features", 8}, {"out_features", 3}, {"bias", false}, {"activation_function", "torch.nn.modules.activation.Tanh"}});
  expect_error(ErrorCode::input, "linear.weight", [&] { read_embed_recipe(dir.path()); });
  put("2_Dense/config.json", {{"in_features", 8}, {"out_features", 2}, {"activation_function", "torch.nn.modules.activation.ReLU"}});
  expect_error(ErrorCode::unsupported, "ReLU", [&] { read_embed_recipe(dir.path()); });
  modules({{"Transformer", "0_BERT"}, {"Pooling", "1_Pooling"}});
  put("1_Pooling/config.json", {{"pooling_mode", "lasttoken"}});
  EXPECT_EQ(describe(read_embed_recipe(dir.path())), "lasttoken");
  EXPECT_EQ(read_embed_recipe(dir.path()).model_path, dir / "0_BERT");
}

// What files of older versions leave out.
TEST_F(RecipeTest, Defaults) {
  modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"Dropout", "2_Dropout"}, {"Normalize", "3_Normalize"}});
  put("1_Pooling/config.json", {{"word_embedding_dimension", 4}});
  put("tokenizer_config.json", {{"model_max_length", 256}});
  EmbedRecipe r = read_embed_recipe(dir.path());
  EXPECT_EQ(describe(r), "mean, normalize");
  EXPECT_EQ(r.max_tokens, 256);
  put("1_Pooling/config.json", {{"pooling_mode_cls_token", true}});
  put("tokenizer_config.json", {{"model_max_length", 1e30}});
  r = read_embed_recipe(dir.path());
  EXPECT_EQ(describe(r), "cls+mean, normalize");
  EXPECT_EQ(r.max_tokens, 0);
  put("sentence_bert_config.json", {{"max_seq_length", 7}});
  EXPECT_EQ(read_embed_recipe(dir.path()).max_tokens, 7);
}

TEST_F(RecipeTest, WhatIsRefused) {
  const auto pooling = [&](const nlohmann::json& json) { put("1_Pooling/config.json", json); };
  modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}});
  pooling({{"pooling_mode_mean_tokens", false}});
  expect_error(ErrorCode::input, "pooling_mode", [&] { read_embed_recipe(dir.path()); });
  pooling({{"pooling_mode_mean_tokens", true}, {"pooling_mode_attention", true}});
  expect_error(ErrorCode::unsupported, "pooling_mode_attention", [&] { read_embed_recipe(dir.path()); });
  pooling({{"pooling_mode", "median"}});
  expect_error(ErrorCode::unsupported, "median", [&] { read_embed_recipe(dir.path()); });
  pooling({{"pooling_mode_mean_tokens", "yes"}});
  expect_error(ErrorCode::input, "pooling_mode_mean_tokens", [&] { read_embed_recipe(dir.path()); });
  pooling({{"pooling_mode_mean_tokens", true}});
  put("config_sentence_transformers.json", {{"prompts", {{"query", "q"}}}, {"default_prompt_name", "document"}});
  expect_error(ErrorCode::input, "default_prompt_name", [&] { read_embed_recipe(dir.path()); });
  put("config_sentence_transformers.json", {{"prompts", {{"query", 7}}}});
  expect_error(ErrorCode::input, "query", [&] { read_embed_recipe(dir.path()); });
  std::filesystem::remove(dir / "config_sentence_transformers.json");
  modules({{"Transformer", ""}, {"Pooling", "../1_Pooling"}});
  expect_error(ErrorCode::input, "path", [&] { read_embed_recipe(dir.path()); });
  modules({{"Transformer", ""}, {"Normalize", "1_Normalize"}});
  expect_error(ErrorCode::unsupported, "Pooling", [&] { read_embed_recipe(dir.path()); });
  modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"LSTM", "2_LSTM"}});
  expect_error(ErrorCode::unsupported, "LSTM", [&] { read_embed_recipe(dir.path()); });
  modules({{"BoW", ""}});
  expect_error(ErrorCode::unsupported, "BoW", [&] { read_embed_recipe(dir.path()); });
  put("modules.json", nlohmann::json::object());
  expect_error(ErrorCode::input, "modules.json", [&] { read_embed_recipe(dir.path()); });
}

TEST_F(RecipeTest, StaticDirectories) {
  put("config.json", {{"model_type", "model2vec"}, {"normalize", true}, {"seq_length", 77}});
  EmbedRecipe r = read_embed_recipe(dir.path());
  EXPECT_TRUE(r.is_static && r.normalizes());
  EXPECT_EQ(r.max_tokens, 77);
  EXPECT_EQ(r.source, "model2vec");
  modules({{"StaticEmbedding", "."}, {"Normalize", "1_Normalize"}});
  r = read_embed_recipe(dir.path());
  EXPECT_EQ(r.steps.size(), 1u);  // said twice, done once
  std::filesystem::remove(dir / "config.json");
  EXPECT_FALSE(read_embed_recipe(dir.path()).strip) << "only transformers' texts are stripped";
  EXPECT_EQ(read_embed_recipe(dir / "nothing").source, "default");
}

class StaticTest : public RecipeTest {
 protected:
  // Four rows of two; token i is row mapping[i] times weights[i].
  const std::vector<float> table = {1, 2, -3, 0.5f, 4, 4, 0, -8};
  const std::vector<double> weights = {1, 0.5, 2, -1, 0.25};
  const std::vector<int32_t> mapping = {0, 1, 2, 3, 1};
  std::vector<NamedTensor> tensors() const {
    return {{"embeddings", SafetensorsDtype::f32, {4, 2}, table.data()},
            {"weights", SafetensorsDtype::f64, {5}, weights.data()},
            {"mapping", SafetensorsDtype::i32, {5}, mapping.data()}};
  }
  std::vector<float> mean(const std::vector<int32_t>& ids) const {
    const StaticEmbedding s(dir.path());
    std::vector<float> out(static_cast<size_t>(s.dimensions()));
    s.mean(ids.data(), static_cast<int64_t>(ids.size()), out.data());
    return out;
  }
};

TEST_F(StaticTest, MeansByHand) {
  write_safetensors(dir / "model.safetensors", tensors());
  // (1 (1, 2) + 0.25 (-3, 0.5) + 2 (4, 4)) / 3
  const std::vector<float> got = mean({0, 4, 2});
  EXPECT_FLOAT_EQ(got[0], static_cast<float>((1 - 0.75 + 8) / 3));
  EXPECT_FLOAT_EQ(got[1], static_cast<float>((2 + 0.125 + 8) / 3));
  EXPECT_EQ(mean({}), (std::vector<float>{0, 0}));
  const StaticEmbedding s(dir.path());
  EXPECT_EQ(s.token_count(), 5);
  EXPECT_TRUE(s.drops_unknown());
  EXPECT_EQ(s.description(), "4 x 2 F32, 5 tokens, mapped, weighted");

  // Plain tables in other types: no weights, a token per row.
  const int8_t small[] = {1, 2, -3, 5};
  write_safetensors(dir / "model.safetensors", {{"embeddings", SafetensorsDtype::i8, {2, 2}, small}});
  EXPECT_EQ(mean({0, 1}), (std::vector<float>{-1, 3.5f}));
  const uint16_t half[] = {0x3C00, 0xC000, 0x3800, 0x4400};  // 1, -2, 0.5, 4
  write_safetensors(dir / "model.safetensors", {{"embedding.weight", SafetensorsDtype::f16, {2, 2}, half}});
  EXPECT_EQ(mean({0, 1}), (std::vector<float>{0.75f, 1}));
  EXPECT_FALSE(StaticEmbedding(dir.path()).drops_unknown());
}

TEST_F(StaticTest, DamagedTables) {
  const auto refuse = [&](const std::vector<NamedTensor>& list, const std::string& part) {
    write_safetensors(dir / "model.safetensors", list);
    expect_error(ErrorCode::input, part, [&] { StaticEmbedding{dir.path()}; });
  };
  refuse({{"weights", SafetensorsDtype::f64, {5}, weights.data()}}, "embeddings");
  refuse({{"embeddings", SafetensorsDtype::f32, {8}, table.data()}}, "matrix");
  std::vector<NamedTensor> list = tensors();
  list[1].shape = {4};
  refuse(list, "weights");
  const std::vector<int32_t> beyond = {0, 1, 4, 0, 0}, negative = {0, -1, 0, 0, 0};
  list = tensors();
  list[2].data = beyond.data();
  refuse(list, "mapping");
  list[2].data = negative.data();
  refuse(list, "-1");
  list = tensors();
  list.push_back({"extra", SafetensorsDtype::f32, {2}, table.data()});
  refuse(list, "extra");
}

// A whole static embedder: directory, tokenizer, normalization, and a text without known tokens.
TEST_F(StaticTest, FromTextToVector) {
  const Tokenizer tokenizer = train_bpe("abc", {});
  tokenizer.save(dir.path());
  const auto n = static_cast<size_t>(tokenizer.vocab_size());
  std::vector<float> rows(n * 2);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(double(i * 7 % 11) - 5);
  write_safetensors(dir / "model.safetensors", {{"embeddings", SafetensorsDtype::f32, {static_cast<int64_t>(n), 2}, rows.data()}});
  put("config.json", {{"model_type", "model2vec"}, {"normalize", true}, {"seq_length", 3}});
  Engine engine(best_tier(), 2);
  const Embedder embedder = Embedder::open(dir.path(), *engine.ctx);
  EXPECT_EQ(embedder.dimensions(), 2);
  EXPECT_EQ(embedder.max_tokens(), 3);
  ASSERT_NE(embedder.static_table(), nullptr);
  EXPECT_EQ(embedder.model(), nullptr);
  EncodeOptions plain;
  plain.add_special = false;
  std::vector<int32_t> ids = tokenizer.encode("a cab", plain);
  ids.resize(std::min<size_t>(ids.size(), 3));
  double x = 0, y = 0;
  for (const int32_t id : ids) {
    x += double{rows[size_t(id) * 2]};
    y += double{rows[size_t(id) * 2 + 1]};
  }
  const auto got = embedder.embed({"a cab", "", "b"});
  EXPECT_NEAR(got[0][0], x / std::hypot(x, y), 1e-6);
  EXPECT_NEAR(got[0][1], y / std::hypot(x, y), 1e-6);
  EXPECT_EQ(got[1], (std::vector<float>{0, 0}));
  EXPECT_EQ(embedder.embed({"b"})[0], got[2]);
  EmbedderOptions raw;
  raw.normalize = false;
  raw.max_tokens = 1;
  const std::vector<float> one = Embedder::open(dir.path(), *engine.ctx, raw).embed({"a cab"})[0];
  EXPECT_EQ(one, (std::vector<float>{rows[size_t(ids[0]) * 2], rows[size_t(ids[0]) * 2 + 1]}));
  raw.pooling = "cls";
  expect_error(ErrorCode::usage, "--pooling", [&] { Embedder::open(dir.path(), *engine.ctx, raw); });
  expect_error(ErrorCode::usage, "\"query\"", [&] { embedder.prompt_text("query"); });
  TokenText beyond;
  beyond.ids = {static_cast<int32_t>(n)};
  expect_error(ErrorCode::input, "out of range", [&] { embedder.embed_ids({beyond}); });
}

// model2vec reads as many characters as its longest text would have with tokens of the median length, then counts tokens;
// an unknown piece is left out when the model names it, which Unigram does not.
TEST_F(StaticTest, Model2vecReadsSoMuch) {
  const std::vector<float> rows = {100, 1, 10, 1000};
  write_safetensors(dir / "model.safetensors", {{"embeddings", SafetensorsDtype::f32, {4, 1}, rows.data()}});
  put("config.json", {{"model_type", "model2vec"}, {"normalize", false}, {"seq_length", 1000000}});
  put("tokenizer.json", {{"version", "1.0"},
                         {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                         {"model", {{"type", "WordLevel"}, {"unk_token", "u"}, {"vocab", {{"u", 0}, {"aaaa", 1}, {"bb", 2}, {"ccccc", 3}}}}}});
  Engine engine(best_tier(), 2);
  EmbedderOptions two;
  two.max_tokens = 2;  // pieces of 1, 2, 4 and 5 characters: six characters are read
  EXPECT_EQ(Embedder::open(dir.path(), *engine.ctx, two).embed({"aaaa ccccc", "bb bb bb", "? bb bb"}),
            (Embedder::Vectors{{1}, {10}, {10}}));
  const Embedder whole = Embedder::open(dir.path(), *engine.ctx);
  EXPECT_EQ(whole.max_tokens(), 512);
  EXPECT_EQ(whole.embed({"aaaa ? ccccc"})[0], (std::vector<float>{500.5f}));
  // The tokenizer's own truncation counts unknown pieces.
  nlohmann::json cut = nlohmann::json::parse(read_file(dir / "tokenizer.json"));
  cut["truncation"] = {{"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  put("tokenizer.json", cut);
  EXPECT_EQ(Embedder::open(dir.path(), *engine.ctx).embed({"bb ? aaaa"})[0], (std::vector<float>{10}));
  cut["truncation"]["direction"] = "Left";
  put("tokenizer.json", cut);
  EXPECT_EQ(Embedder::open(dir.path(), *engine.ctx).embed({"bb ? aaaa"})[0], (std::vector<float>{1}));
  put("tokenizer.json", {{"version", "1.0"},
                         {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                         {"model",
                          {{"type", "Unigram"},
                           {"unk_id", 0},
                           {"vocab", nlohmann::json::parse(R"([["u", 0], ["a", -1], ["b", -1], ["c", -1]])")}}}});
  EXPECT_EQ(Embedder::open(dir.path(), *engine.ctx).embed({"a ?"})[0], (std::vector<float>{50.5f}));
}

// A published embedder (vector-quantized table, mapped and weighted tokens, Unigram pieces): what the engine computes against
// the files read by hand, and texts about the same thing nearer than others.
TEST(RealEmbedder, AgreesWithItsFilesAndRanksByMeaning) {
  const std::string path = shared("data/embed/model2vec_bge_base_vq64");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << path;
  Engine engine(best_tier(), 2);
  const Embedder embedder = Embedder::open(path, *engine.ctx);
  EXPECT_EQ(embedder.dimensions(), 64);
  EXPECT_EQ(embedder.recipe().steps.size(), 1u);

  const SafetensorsFile file(path + "/model.safetensors");
  std::vector<float> table(128 * 64);
  std::vector<double> weights(29524);
  std::vector<int64_t> mapping(29524);
  file.read_f32(*file.find("embeddings"), table.data());
  file.read_f64(*file.find("weights"), weights.data());
  file.read_i64(*file.find("mapping"), mapping.data());
  const std::string text = "A small red boat sailed over the blue sea.";
  const std::vector<int32_t> ids = embedder.tokenize(text).ids;
  ASSERT_GT(ids.size(), 5u);
  EXPECT_EQ(embedder.tokenizer().decode(ids).find("[CLS]"), std::string::npos);
  std::vector<double> sum(64);
  for (const int32_t id : ids) {
    EXPECT_NE(embedder.tokenizer().token(id), "[UNK]");
    for (size_t c = 0; c < 64; ++c) sum[c] += weights[size_t(id)] * double{table[size_t(mapping[size_t(id)]) * 64 + c]};
  }
  double squares = 0;
  for (const double x : sum) squares += x * x;
  const std::vector<float> got = embedder.embed({text})[0];
  for (size_t c = 0; c < 64; ++c) EXPECT_NEAR(got[c], sum[c] / std::sqrt(squares), 1e-6);

  const std::vector<std::vector<std::string>> topics = {
      {"The cat sleeps on the sofa.", "A kitten is napping on the couch.", "Our cat loves to sleep all day."},
      {"The bank raised its interest rates.", "Central banks increase rates against inflation.", "The loan has a high interest rate."},
      {"The team won the football match.", "Our players scored three goals in the game.", "The goalkeeper saved a penalty in the final match."},
      {"Bake the bread in a hot oven.", "Mix flour, butter and sugar for the dough.", "This recipe makes a cake with chocolate."}};
  std::vector<std::string> texts;
  for (const auto& topic : topics) texts.insert(texts.end(), topic.begin(), topic.end());
  const auto v = embedder.embed(texts);
  int right = 0;
  double inside = 0, outside = 0;
  for (size_t i = 0; i < v.size(); ++i) {
    size_t best = i == 0 ? 1 : 0;
    double score = -2;
    for (size_t j = 0; j < v.size(); ++j) {
      if (j == i) continue;
      double dot = 0;
      for (size_t c = 0; c < 64; ++c) dot += double{v[i][c]} * double{v[j][c]};
      (i / 3 == j / 3 ? inside : outside) += dot / (i / 3 == j / 3 ? 24 : 108);
      if (dot > score) {
        score = dot;
        best = j;
      }
    }
    right += best / 3 == i / 3;
  }
  EXPECT_GE(right, 10) << "of 12 texts whose nearest one is about the same thing";
  EXPECT_GT(inside, outside + 0.2);
}

}  // namespace
}  // namespace thimble::models_test
