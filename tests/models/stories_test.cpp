// Third-party models beside the repository: greedy text byte for byte, and every stored activation of a small GPT. Skipped
// where the data is missing.
#include <map>
#include <set>

#include "models/tokenizer/tokenizer.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The file holds the text of so many greedy tokens after BOS, and a newline.
void expect_greedy_text(const std::string& dir, const std::string& model_file, const std::string& tokenizer_file,
                        const std::string& text_file, int64_t n) {
  if (!std::filesystem::exists(shared(dir))) GTEST_SKIP() << "not here: " << shared(dir);
  const std::string want = read_text(shared(dir + "/" + text_file));
  const Tokenizer tokenizer = Tokenizer::load(shared(dir + "/" + tokenizer_file));
  for (Tier tier : tiers()) {
    Engine engine(tier);
    Model model = load_model(shared(dir + "/" + model_file), engine.kernels);
    Transformer transformer(model, n + 1);
    Generator generator(transformer, *engine.ctx, n + 1);
    std::vector<int32_t> ids = {tokenizer.bos_id()};
    const float* logits = generator.feed(ids.data(), 1);
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(argmax(logits, model.config.vocab_size));
      if (ids.back() == tokenizer.bos_id()) {
        ids.pop_back();
        break;
      }
      logits = generator.feed(&ids.back(), 1);
    }
    DecodeOptions options;
    options.skip_special = true;
    EXPECT_EQ(tokenizer.decode(ids, options) + "\n", want) << tier_name(tier);
  }
}

TEST(Stories, Stories260K) { expect_greedy_text("data/models/stories260K", "stories260K.bin", "tok512.bin", "greedy_n200.txt", 200); }
TEST(Stories, Babyllama) {
  expect_greedy_text("data/models/babyllama_tok105", "model5000.bin", "tok105.bin", "greedy_n256.txt", 256);
}

struct StoredTensor {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

StoredTensor decode_tensor(const nlohmann::json& json) {
  const auto text = json.at("data").get<std::string>();
  StoredTensor t{json.at("shape").get<std::vector<int64_t>>(), {}};
  std::string bytes;
  uint32_t word = 0;
  int held = 0;
  for (char c : text) {
    if (c == '=') break;
    const int v = c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : 63;
    word = word << 6 | static_cast<uint32_t>(v);
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes.push_back(static_cast<char>(word >> held & 0xff));
    }
  }
  t.data.resize(bytes.size() / 4);
  std::memcpy(t.data.data(), bytes.data(), t.data.size() * 4);
  return t;
}

// The JSON as a Hugging Face GPT-2 directory: linear weights are [out, in] here and [in, out] there; the head is its own.
void convert_gpt_nano(const nlohmann::json& source, const std::string& dir) {
  const nlohmann::json& c = source.at("config");
  write_json(dir + "/config.json", {{"model_type", "gpt2"},
                                    {"vocab_size", c.at("vocab_size")},
                                    {"n_embd", c.at("n_embd")},
                                    {"n_layer", c.at("n_layer")},
                                    {"n_head", c.at("n_head")},
                                    {"n_positions", c.at("block_size")},
                                    {"activation_function", "gelu_new"},
                                    {"layer_norm_epsilon", 1e-5},
                                    {"tie_word_embeddings", false}});
  std::vector<std::pair<std::string, StoredTensor>> kept;
  for (const auto& [name, value] : source.items()) {
    if (name == "config") continue;
    StoredTensor t = decode_tensor(value);
    const bool linear = t.shape.size() == 2 && name.find(".h.") != std::string::npos;
    if (linear) {
      StoredTensor turned{{t.shape[1], t.shape[0]}, std::vector<float>(t.data.size())};
      for (int64_t o = 0; o < t.shape[0]; ++o)
        for (int64_t i = 0; i < t.shape[1]; ++i) turned.data[size_t(i * t.shape[0] + o)] = t.data[size_t(o * t.shape[1] + i)];
      t = std::move(turned);
    }
    kept.emplace_back(name, std::move(t));
  }
  std::vector<NamedTensor> tensors;
  for (const auto& [name, t] : kept) tensors.push_back({name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(dir + "/model.safetensors", tensors);
}

// The scores and probabilities of attention (att, attSm) are in the file but never exist in full here, by design: block
// attention keeps one tile of them. Everything else that is stored is compared.
TEST(GptNano, EveryStoredActivation) {
  const std::string dir = shared("data/models/gpt_nano_sort");
  if (!std::filesystem::exists(dir)) GTEST_SKIP() << "not here: " << dir;
  const nlohmann::json partials = read_json(dir + "/gpt-nano-sort-t0-partials.json");
  const ScratchDir hf;
  convert_gpt_nano(read_json(dir + "/gpt-nano-sort-model.json"), hf.path());
  std::map<std::string, StoredTensor> stored;
  for (const auto& [name, value] : partials.items())
    if (name != "config") stored[name] = decode_tensor(value);
  const StoredTensor& idx = stored.at("idx");
  const int64_t n_seqs = idx.shape[0], length = idx.shape[1], n = n_seqs * length;
  Rows rows;
  for (int64_t s = 0; s < n_seqs; ++s) rows.add(std::vector<int32_t>(idx.data.begin() + s * length, idx.data.begin() + (s + 1) * length));

  for (Tier tier : tiers()) {
    Engine engine(tier);
    Model model = load_model(hf.path(), engine.kernels);
    const int64_t heads = model.config.n_heads, head_dim = model.config.head_dim, hidden = model.config.hidden;
    Transformer transformer(model, length);
    std::map<std::string, std::vector<float>> seen;
    engine.ctx->observer.user = &seen;
    engine.ctx->observer.on_value = [](void* user, const char* name, int layer, const Tensor& t) {
      (*static_cast<std::map<std::string, std::vector<float>>*>(user))[std::string(name) + " " + std::to_string(layer)]
          .assign(t.f32(), t.f32() + t.numel());
    };
    const std::vector<float> logits = logits_of(transformer, *engine.ctx, rows);
    std::set<std::string> compared = {"idx", "att", "attSm"};
    const auto expect = [&](const std::string& name, const std::vector<float>& got) {
      ASSERT_TRUE(stored.count(name)) << name;
      const std::vector<float>& want = stored.at(name).data;
      ASSERT_EQ(got.size(), want.size()) << name;
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::fabs(double(got[i]) - double(want[i])) / (1 + std::fabs(double(want[i]))));
      EXPECT_LE(worst, 1e-5) << name << " on " << tier_name(tier);
      compared.insert(name);
    };
    // The stored split by heads is [sequence, head, token, head_dim]; rows here are [token, head * head_dim].
    const auto by_heads = [&](const std::vector<float>& v) {
      std::vector<float> out;
      for (int64_t s = 0; s < n_seqs; ++s)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t t = 0; t < length; ++t)
            for (int64_t d = 0; d < head_dim; ++d) out.push_back(v[size_t((s * length + t) * hidden + h * head_dim + d)]);
      return out;
    };
    std::vector<float> qkv;
    for (int64_t r = 0; r < n; ++r)
      for (const char* part : {"q 0", "k 0", "v 0"}) {
        const std::vector<float>& v = seen.at(part);
        qkv.insert(qkv.end(), v.begin() + r * hidden, v.begin() + (r + 1) * hidden);
      }
    std::vector<float> token_rows, position_rows(model.weights.pos_embed.f32(), model.weights.pos_embed.f32() + length * hidden);
    for (int32_t id : rows.ids) {
      const float* row = model.weights.token_embed.f32() + id * hidden;
      token_rows.insert(token_rows.end(), row, row + hidden);
    }
    expect("tok_emb", token_rows);
    expect("pos_emb", position_rows);
    expect("x", seen.at("embedding -1"));
    expect("ln1", seen.at("norm1 0"));
    expect("q", by_heads(seen.at("q 0")));
    expect("k", by_heads(seen.at("k 0")));
    expect("v", by_heads(seen.at("v 0")));
    expect("qkv", qkv);
    expect("y", seen.at("attention 0"));
    expect("yProj", seen.at("attention_out 0"));
    expect("attnResid", seen.at("attention_residual 0"));
    expect("ln2", seen.at("norm2 0"));
    expect("fc", seen.at("up 0"));
    expect("gelu", seen.at("activation 0"));
    expect("mlp", seen.at("mlp_out 0"));
    expect("mlpResid", seen.at("block 0"));
    for (const char* layer : {"0", "1", "2"}) expect(std::string("block") + layer, seen.at(std::string("block ") + layer));
    expect("ln_f", seen.at("final_norm -1"));
    expect("lm_head", logits);
    std::vector<float> probabilities(logits.size());
    engine.kernels.softmax({n, model.config.vocab_size, logits.data(), probabilities.data(), 1.0f});
    expect("probs", probabilities);
    for (const auto& [name, value] : stored) EXPECT_TRUE(compared.count(name)) << name << " is stored but not compared";
  }
}

}  // namespace
}  // namespace thimble::models_test
