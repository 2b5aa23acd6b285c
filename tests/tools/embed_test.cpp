// thimble embed, and what else works on models that make vectors: model info, model diff, rag with an embedder, parity.
#include <cmath>
#include <cstring>
#include <map>

#include "models/tokenizer/bpe_trainer.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

std::vector<std::string> with(std::vector<std::string> args, const std::vector<std::string>& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// Deterministic values in [-spread, spread].
std::vector<float> values(size_t n, uint64_t seed, double spread) {
  std::vector<float> v(n);
  uint64_t z = seed * 0x9E3779B97F4A7C15u + 1;
  for (float& x : v) {
    z = z * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<float>((double(z >> 40) / double(1 << 24) * 2 - 1) * spread);
  }
  return v;
}

// A static embedder whose tokens are the pieces of sample_tokenizer().
void write_static(const std::string& dir, int64_t width, uint64_t seed, bool normalize) {
  std::filesystem::create_directories(dir);
  const Tokenizer tokenizer = sample_tokenizer();
  tokenizer.save(dir);
  const std::vector<float> table = values(size_t(tokenizer.vocab_size() * width), seed, 1);
  write_safetensors(dir + "/model.safetensors", {{"embeddings", SafetensorsDtype::f32, {tokenizer.vocab_size(), width}, table.data()}});
  put_file(dir + "/config.json", nlohmann::json({{"model_type", "model2vec"}, {"normalize", normalize}}).dump());
}

// A random BERT in sentence-transformers' layout, with prompts.
void write_encoder(const std::string& dir, uint64_t seed) {
  std::filesystem::create_directories(dir + "/1_Pooling");
  const Tokenizer tokenizer = sample_tokenizer();
  tokenizer.save(dir);
  constexpr int64_t kHidden = 32, kInner = 48;
  const nlohmann::json config = {{"model_type", "bert"}, {"vocab_size", tokenizer.vocab_size()}, {"hidden_size", kHidden}, {"intermediate_size", kInner},
                                 {"num_hidden_layers", 2}, {"num_attention_heads", 4}, {"max_position_embeddings", 40}};
  put_file(dir + "/config.json", config.dump());
  put_file(dir + "/modules.json", R"([{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
    {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
    {"idx":2,"name":"2","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}])");
  put_file(dir + "/1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false})");
  put_file(dir + "/sentence_bert_config.json", R"({"max_seq_length": 24, "do_lower_case": false})");
  put_file(dir + "/config_sentence_transformers.json", R"({"prompts": {"query": "Once upon a time ", "document": ""}})");
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {{"embeddings.word_embeddings.weight", {tokenizer.vocab_size(), kHidden}},
                                                                      {"embeddings.position_embeddings.weight", {40, kHidden}},
                                                                      {"embeddings.token_type_embeddings.weight", {2, kHidden}},
                                                                      {"embeddings.LayerNorm.weight", {kHidden}},
                                                                      {"embeddings.LayerNorm.bias", {kHidden}}};
  for (int l = 0; l < 2; ++l) {
    const std::string p = "encoder.layer." + std::to_string(l) + ".";
    for (const char* name : {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
      shapes.insert(shapes.end(), {{p + name + ".weight", {kHidden, kHidden}}, {p + name + ".bias", {kHidden}}});
    shapes.insert(shapes.end(), {{p + "attention.output.LayerNorm.weight", {kHidden}}, {p + "attention.output.LayerNorm.bias", {kHidden}},
                                 {p + "intermediate.dense.weight", {kInner, kHidden}}, {p + "intermediate.dense.bias", {kInner}},
                                 {p + "output.dense.weight", {kHidden, kInner}}, {p + "output.dense.bias", {kHidden}},
                                 {p + "output.LayerNorm.weight", {kHidden}}, {p + "output.LayerNorm.bias", {kHidden}}});
  }
  std::vector<std::vector<float>> data;
  std::vector<NamedTensor> tensors;
  for (const auto& [name, shape] : shapes) {
    size_t n = 1;
    for (const int64_t d : shape) n *= static_cast<size_t>(d);
    data.push_back(values(n, seed + data.size(), 0.4));
    if (name.find("LayerNorm.weight") != std::string::npos)
      for (float& x : data.back()) x += 1;
  }
  for (size_t i = 0; i < shapes.size(); ++i) tensors.push_back({shapes[i].first, SafetensorsDtype::f32, shapes[i].second, data[i].data()});
  write_safetensors(dir + "/model.safetensors", tensors);
}

std::vector<std::vector<float>> embeddings(const nlohmann::json& j) { return j.at("embeddings").get<std::vector<std::vector<float>>>(); }

class EmbedTest : public ::testing::Test {
 protected:
  EmbedTest() {
    write_static(table, 3, 5, true);
    write_encoder(encoder, 9);
    std::filesystem::create_directories(decoder);
    write_small_model(decoder);
  }
  ScratchDir dir;
  std::string table = dir / "static", encoder = dir / "encoder", decoder = dir / "decoder";

  nlohmann::json embed(const std::vector<std::string>& args) { return expect_json(thimble(with({"embed", "--json"}, args)), "thimble.embed/1"); }
};

TEST_F(EmbedTest, EveryKindOfModel) {
  const struct {
    std::string path, kind, pooling;
    size_t dimensions;
    bool normalized;
  } kinds[] = {{table, "static", "mean, normalize", 3, true}, {encoder, "encoder", "mean, normalize", 32, true}, {decoder, "decoder", "mean", 32, false}};
  for (const auto& k : kinds) {
    const nlohmann::json j = embed({"--model", k.path, "--text", "the red boat", "--text", "a gull", "--text", "the red boat"});
    EXPECT_EQ(j.at("kind"), k.kind);
    EXPECT_EQ(j.at("pooling"), k.pooling);
    EXPECT_EQ(j.at("normalized"), k.normalized);
    EXPECT_EQ(j.at("dimensions"), k.dimensions);
    const auto v = embeddings(j);
    ASSERT_EQ(v.size(), 3u);
    EXPECT_EQ(v[0].size(), k.dimensions);
    EXPECT_EQ(v[0], v[2]);
    EXPECT_NE(v[0], v[1]);
    double squares = 0, dot = 0, other = 0;
    for (size_t i = 0; i < v[0].size(); ++i) {
      squares += double{v[0][i]} * double{v[0][i]};
      other += double{v[1][i]} * double{v[1][i]};
      dot += double{v[0][i]} * double{v[1][i]};
    }
    if (k.normalized) {
      EXPECT_NEAR(squares, 1, 1e-6);
    }
    EXPECT_NEAR(j.at("similarity")[0][1].get<double>(), dot / std::sqrt(squares * other), 1e-6);
    EXPECT_NEAR(j.at("similarity")[0][2].get<double>(), 1, 1e-6);
    // No result depends on threads, the batch or what stands beside a text.
    EXPECT_EQ(embeddings(embed({"--model", k.path, "--text", "a gull", "--threads", "1", "--batch-rows", "1"}))[0], v[1]);
    const nlohmann::json raw = embed({"--model", k.path, "--text", "a gull", "--no-normalize"});
    EXPECT_EQ(raw.at("normalized"), false);
    EXPECT_EQ(embed({"--model", k.path, "--text", "a gull", "--normalize"}).at("normalized"), true);
  }
  EXPECT_EQ(embed({"--model", decoder, "--text", "a", "--pooling", "lasttoken+max"}).at("dimensions"), 64);
}

TEST_F(EmbedTest, Prompts) {
  const auto v = [&](const std::vector<std::string>& more) { return embeddings(embed(with({"--model", encoder, "--text", "the red boat"}, more)))[0]; };
  const std::vector<float> plain = v({}), query = v({"--prompt-name", "query"});
  EXPECT_EQ(v({"--prompt-name", "document"}), plain);
  EXPECT_NE(query, plain);
  EXPECT_EQ(v({"--prompt", "Once upon a time "}), query);
  EXPECT_EQ(embeddings(embed({"--model", encoder, "--text", "Once upon a time the red boat"}))[0], query);
  expect_failure(thimble({"embed", "--model", encoder, "--text", "a", "--prompt-name", "song"}), 2, {"song", "query"});
}

TEST_F(EmbedTest, Files) {
  put_file(dir / "t.txt", "the red boat\r\n\na gull\n");
  put_file(dir / "t.jsonl", "{\"title\": \"the red boat\"}\n\n{\"title\": \"\"}\n{\"title\": \"a gull\"}\n");
  const auto v = embeddings(embed({"--model", encoder, "--file", dir / "t.txt"}));
  ASSERT_EQ(v.size(), 3u);
  EXPECT_EQ(embeddings(embed({"--model", encoder, "--file", dir / "t.jsonl", "--field", "title"})), v);
  RunOptions piped;
  piped.input = "the red boat\n\na gull";
  EXPECT_EQ(embeddings(expect_json(thimble({"embed", "--json", "--model", encoder, "--file", "-"}, piped), "thimble.embed/1")), v);
  const RunResult lines = thimble({"embed", "--model", encoder, "--file", dir / "t.txt"});
  EXPECT_EQ(lines.err, "");
  std::vector<std::vector<float>> printed;
  for (size_t at = 0; at < lines.out.size(); at = lines.out.find('\n', at) + 1)
    printed.push_back(nlohmann::json::parse(lines.out.substr(at, lines.out.find('\n', at) - at)).get<std::vector<float>>());
  EXPECT_EQ(printed, v);

  const auto write = [&](const std::string& name) {
    const RunResult r = thimble({"embed", "--model", encoder, "--file", dir / "t.txt", "--out", dir / name});
    EXPECT_EQ(r.status, 0) << r.err;
    return get_file(dir / name);
  };
  const std::string npy = write("v.npy");
  ASSERT_EQ(npy.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const size_t header = 10 + static_cast<unsigned char>(npy[8]) + 256u * static_cast<unsigned char>(npy[9]);
  EXPECT_EQ(header % 64, 0u);
  EXPECT_NE(npy.find("'descr': '<f4', 'fortran_order': False, 'shape': (3, 32), }"), std::string::npos);
  ASSERT_EQ(npy.size(), header + 3 * 32 * sizeof(float));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(std::memcmp(npy.data() + header + i * 128, v[i].data(), 128), 0);
  const std::string rows = write("v.jsonl");
  const nlohmann::json first = nlohmann::json::parse(rows.substr(0, rows.find('\n')));
  EXPECT_EQ(first.at("text"), "the red boat");
  EXPECT_EQ(first.at("embedding").get<std::vector<float>>(), v[0]);
  write("v.safetensors");
  const SafetensorsFile tensors(dir / "v.safetensors");
  std::vector<float> all(96);
  tensors.read_f32(*tensors.find("embeddings"), all.data());
  EXPECT_TRUE(std::equal(v[2].begin(), v[2].end(), all.begin() + 64));
  EXPECT_EQ(tensors.metadata().at("pooling"), "mean, normalize");
}

TEST_F(EmbedTest, Refusals) {
  expect_failure(thimble({"embed", "--model", encoder}), 2, {"--text"});
  expect_failure(thimble({"embed", "--model", encoder, "--text", "a", "--file", "b"}), 2, {"--text"});
  expect_failure(thimble({"embed", "--text", "a"}), 2, {"--model"});
  expect_failure(thimble({"embed", "--model", encoder, "--text", "a", "--out", dir / "v.csv"}), 2, {".npy"});
  expect_failure(thimble({"embed", "--model", encoder, "--text", "a", "--pooling", "median"}), 2, {"median", "weightedmean"});
  expect_failure(thimble({"embed", "--model", table, "--text", "a", "--pooling", "cls"}), 2, {"--pooling"});
  expect_failure(thimble({"embed", "--model", encoder, "--text", "\xff"}), 3, {"UTF-8"});
  expect_failure(thimble({"embed", "--model", dir / "none", "--text", "a"}), 3, {"none"});
  put_file(dir / "rows.jsonl", "{\"text\": \"a\"}\n{\"title\": \"b\"}\n");
  expect_failure(thimble({"embed", "--model", encoder, "--file", dir / "rows.jsonl"}), 3, {"line 2", "text"});
  put_file(dir / "empty.txt", "");
  expect_failure(thimble({"embed", "--model", encoder, "--file", dir / "empty.txt"}), 3, {"no texts"});
  // An encoder continues nothing, and says so.
  expect_failure(thimble({"generate", "--model", encoder, "--prompt", "a"}), 5, {"encoder", "thimble embed"});
  put_file(dir / "long.txt", sample_text());
  expect_failure(thimble({"eval", "--model", encoder, "--ppl", dir / "long.txt", "--ctx", "16", "--stride", "8"}), 5, {"output matrix"});
}

TEST_F(EmbedTest, RagWithAnEmbedder) {
  put_file(dir / "t.txt", "the red boat\nwhat is a gull\nsoup of the day\n");
  for (const std::string& path : {table, encoder}) {
    const std::string index = path + ".index";
    ASSERT_EQ(thimble({"rag", "index", "--input", dir / "t.txt", "--retriever", "dense", "--cosine", "--embedder", path, "--out", index}).status, 0);
    const auto hits = [&](const std::string& query) {
      return expect_json(thimble({"rag", "query", "--index", index, "--query", query, "--k", "3", "--json"}), "thimble.rag_query/1").at("hits");
    };
    // The encoder's queries have a prompt, the static embedder's are compared as they are.
    EXPECT_EQ(hits("what is a gull").size(), 3u);
    if (path == table) {
      EXPECT_EQ(hits("what is a gull")[0].at("id"), "2");
      EXPECT_NEAR(hits("what is a gull")[0].at("score").get<double>(), 1, 1e-5);
    }
    const auto query = embeddings(embed({"--model", path, "--text", "boat", "--prompt", path == encoder ? "Once upon a time " : ""}))[0];
    const auto document = embeddings(embed({"--model", path, "--text", "the red boat"}))[0];
    double dot = 0;
    for (size_t i = 0; i < query.size(); ++i) dot += double{query[i]} * double{document[i]};
    for (const auto& hit : hits("boat")) {
      if (hit.at("id") == "1") {
        EXPECT_NEAR(hit.at("score").get<double>(), dot, 1e-5);
      }
    }
  }
}

TEST_F(EmbedTest, ModelInfoOfEveryKind) {
  const auto info = [&](const std::string& path, const std::vector<std::string>& more = {}) {
    return expect_json(thimble(with({"model", "info", path, "--json"}, more)), "thimble.model/1");
  };
  nlohmann::json j = info(encoder);
  EXPECT_EQ(j.at("kind"), "encoder");
  EXPECT_EQ(j.at("container"), "safetensors");
  EXPECT_EQ(j.at("embedding").at("pooling"), "mean, normalize");
  EXPECT_EQ(j["embedding"].at("dimensions"), 32);
  EXPECT_EQ(j["embedding"].at("max_tokens"), 24);
  EXPECT_EQ(j["embedding"].at("prompts").at("query"), "Once upon a time ");
  EXPECT_EQ(j.at("config").at("bidirectional"), true);
  EXPECT_EQ(j["config"].at("token_types"), 2);
  EXPECT_EQ(j["config"].at("pooler"), false);
  EXPECT_GT(j.at("tokenizer").at("vocab_size").get<int>(), 256);
  EXPECT_TRUE(j.at("chat_templates").empty());
  j = info(decoder);
  EXPECT_EQ(j.at("kind"), "decoder");
  EXPECT_TRUE(j.at("embedding").is_null());
  put_file(decoder + "/chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(info(decoder).at("chat_templates"), nlohmann::json::array({"default"}));
  j = info(table, {"--tensors"});
  EXPECT_EQ(j.at("kind"), "static embedder");
  EXPECT_EQ(j.at("embedding").at("dimensions"), 3);
  EXPECT_EQ(j.at("tensors").size(), 1u);
  EXPECT_EQ(j.at("parameters"), j["tensors"][0]["shape"][0].get<int64_t>() * 3);
  const std::string adapter = std::string(THIMBLE_SOURCE_DIR) + "/tests/data/peft/llama_lora";
  j = info(adapter, {"--tensors"});
  EXPECT_EQ(j.at("kind"), "adapter");
  EXPECT_EQ(j.at("adapter").at("kind"), "LORA");
  EXPECT_EQ(j["adapter"].at("r"), 4);
  EXPECT_EQ(j["adapter"].at("target_modules"), nlohmann::json::array({"q_proj", "v_proj"}));
  EXPECT_TRUE(j["adapter"].contains("base"));
  int64_t parameters = 0;
  for (const auto& t : j.at("tensors")) parameters += t["shape"][0].get<int64_t>() * t["shape"][1].get<int64_t>();
  EXPECT_EQ(j.at("parameters"), parameters);
  for (const std::string& path : {encoder, decoder, table, adapter}) {
    const RunResult text = thimble({"model", "info", path, "--tensors"});
    EXPECT_EQ(text.status, 0) << text.err;
    EXPECT_NE(text.out.find("container"), std::string::npos) << text.out;
    EXPECT_NE(text.out.find("shape"), std::string::npos);
  }
  std::filesystem::create_directories(dir / "half");
  put_file(dir / "half/adapter_config.json", R"({"peft_type": "LORA"})");
  expect_failure(thimble({"model", "info", dir / "half"}), 3, {"adapter_model.safetensors"});
  expect_failure(thimble({"model", "info", dir / "none"}), 3, {"none"});
}

// An encoder keeps its pooling on the way through GGUF; normalization has no place there.
TEST_F(EmbedTest, ThroughGguf) {
  const std::string file = dir / "encoder.gguf";
  put_file(encoder + "/1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  ASSERT_EQ(thimble({"convert", "--model", encoder, "--out", file, "--to", "gguf-f32", "--quiet"}).status, 0);
  const nlohmann::json j = expect_json(thimble({"model", "info", file, "--json"}), "thimble.model/1");
  EXPECT_EQ(j.at("kind"), "encoder");
  EXPECT_EQ(j.at("container"), "gguf v3");
  EXPECT_EQ(j.at("embedding").at("pooling"), "cls");
  EXPECT_EQ(j["embedding"].at("source"), "gguf");
  const auto here = embeddings(embed({"--model", encoder, "--text", "the red boat"}))[0];
  EXPECT_EQ(embeddings(embed({"--model", file, "--text", "the red boat", "--normalize", "--tokenizer", encoder}))[0], here);
  put_file(encoder + "/1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": true})");
  expect_failure(thimble({"convert", "--model", encoder, "--out", dir / "two.gguf", "--to", "gguf-f32"}), 5, {"cls+max"});

  const std::string adapter = std::string(THIMBLE_SOURCE_DIR) + "/tests/data/peft/llama_lora", base = std::string(THIMBLE_SOURCE_DIR) + "/tests/data/oracle/llama_gqa_untied";
  ASSERT_EQ(thimble({"model", "adapter", adapter, "--model", base, "--out", dir / "a.gguf", "--quiet"}).status, 0);
  const nlohmann::json a = expect_json(thimble({"model", "info", dir / "a.gguf", "--tensors", "--json"}), "thimble.model/1");
  EXPECT_EQ(a.at("kind"), "adapter");
  EXPECT_EQ(a.at("adapter").at("r"), 4);
  EXPECT_EQ(a["adapter"].at("target_modules"), nlohmann::json::array({"attn_q", "attn_v"}));
  EXPECT_EQ(a.at("parameters"), 1792);
}

TEST_F(EmbedTest, ModelDiff) {
  write_encoder(dir / "same", 9);
  write_encoder(dir / "other", 77);
  put_file(dir / "t.txt", "the red boat\nwhat is a gull\nsoup of the day\nthe blue sea\n");
  const auto diff = [&](const std::string& a, const std::string& b) {
    return expect_json(thimble({"model", "diff", a, b, "--text", dir / "t.txt", "--json"}), "thimble.diff/1");
  };
  nlohmann::json j = diff(encoder, dir / "same");
  EXPECT_EQ(j.at("metric"), "embeddings");
  EXPECT_NEAR(j.at("cosine_mean").get<double>(), 1, 1e-6);
  EXPECT_EQ(j.at("same_nearest"), 1.0);
  EXPECT_LT(diff(encoder, dir / "other").at("cosine_min").get<double>(), 0.99);
  EXPECT_TRUE(diff(encoder, table).at("cosine_mean").is_null());  // 32 and 3 dimensions
  expect_failure(thimble({"model", "diff", encoder, decoder, "--text", dir / "t.txt"}), 3, {"vectors", "tokens"});
  expect_failure(thimble({"model", "diff", encoder, dir / "same"}), 2, {"--text"});
  expect_failure(thimble({"model", "diff", encoder, dir / "same", "--text", dir / "t.txt", "--max-kl", "1"}), 2, {"--max-kl"});
  expect_failure(thimble({"model", "diff", decoder, std::string(THIMBLE_SOURCE_DIR) + "/tests/data/peft/llama_lora"}), 5, {"adapter", "merge"});
  // One more token, and the same number of entries with one in another place.
  std::filesystem::create_directories(dir / "retold");
  write_small_model(dir / "retold");
  nlohmann::json tokenizer = nlohmann::json::parse(get_file(dir / "retold/tokenizer.json"));
  auto& vocab = tokenizer["model"]["vocab"];
  const int a = vocab.at("a"), b = vocab.at("b");
  vocab["a"] = b;
  vocab["b"] = a;
  put_file(dir / "retold/tokenizer.json", tokenizer.dump());
  expect_failure(thimble({"model", "diff", decoder, dir / "retold", "--tokens", "64"}), 3, {"different tokenizers"});
  EXPECT_EQ(thimble({"model", "diff", decoder, dir / "retold", "--tokens", "64", "--tokenizer", decoder}).status, 0);
}

TEST(EncoderParity, TheStoredCasePassesAndNoticesChanges) {
  const std::string stored = shared("oracle/hf/bert_minilm");
  SKIP_WITHOUT(stored);
  std::string digest;
  for (const char* threads : {"1", "3"}) {
    const nlohmann::json j = expect_json(thimble({"parity", stored, "--json", "--threads", threads}), "thimble.parity/1");
    EXPECT_EQ(j.at("pass"), true);
    EXPECT_EQ(j.at("compared"), j.at("in_file"));
    if (digest.empty()) digest = j.at("digest");
    EXPECT_EQ(j.at("digest"), digest);
  }
  const ScratchDir dir;
  std::filesystem::create_directories(dir / "case/1_Pooling");
  for (const char* name : {"config.json", "model.safetensors", "modules.json", "expected.safetensors"})
    put_file(dir / ("case/" + std::string(name)), get_file(stored + "/" + name));
  put_file(dir / "case/1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  const RunResult r = thimble({"parity", dir / "case", "--json"});
  EXPECT_EQ(r.status, 7);
  for (const auto& check : nlohmann::json::parse(r.out).at("checks")) {
    const std::string name = check.at("name");
    if (name == "last_hidden_state" || name == "mean_pooled" || name == "pooler_output") {
      EXPECT_EQ(check.at("pass"), true) << check;
    } else if (name == "embeddings") {
      EXPECT_EQ(check.at("pass"), false) << check;
    }
  }
}

}  // namespace
}  // namespace thimble::tools_test
