// tiktoken ranks, BERT's vocab.txt, the vocabularies of GGUF files, and tokens that only configs name; written here.
#include <cstring>

#include "models/tokenizer/base64.h"
#include "tests/tokenizer/charsmap_blob.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

const std::string kMark = "\xE2\x96\x81";

std::string ranks_file(const std::vector<std::string>& more) {
  std::string out;
  int rank = 0;
  for (int b = 0; b < 256; ++b)
    out += encode_base64(std::string(1, static_cast<char>(b))) + " " + std::to_string(rank++) + "\n";
  for (const std::string& token : more) out += encode_base64(token) + " " + std::to_string(rank++) + "\n";
  return out;
}

TEST(Base64, BothWays) {
  for (const std::string bytes : {"", "f", "fo", "foo", "foob", "fooba", "foobar"}) {
    std::string back;
    EXPECT_TRUE(decode_base64(encode_base64(bytes), back));
    EXPECT_EQ(back, bytes);
  }
  EXPECT_EQ(encode_base64("foob"), "Zm9vYg==");
  std::string out;
  for (const char* bad : {"Zm9v!", "Z", "Zm9=v", "Zm9vYh=="}) EXPECT_FALSE(decode_base64(bad, out)) << bad;
}

TEST(Tiktoken, MergesByRank) {
  TempDir dir;
  dir.write(
      "tokenizer_config.json",
      R"({"pat_str": "\\p{L}+|[^\\p{L}]", "added_tokens_decoder": {"300": {"content": "<|end|>", "special": true}}})");
  // 256 "ab", 257 "bc", 258 "abc", 259 "cab"
  const Tokenizer t = Tokenizer::load(dir.write("x.tiktoken", ranks_file({"ab", "bc", "abc", "cab"})));
  EXPECT_EQ(t.encode("abc"), Ids{258}) << "a whole piece that has a rank";
  EXPECT_EQ(t.encode("abcc"), (Ids{258, 'c'}));
  EXPECT_EQ(t.encode("bcab"), (Ids{257, 256})) << "ab (256) first, then bc (257)";
  EXPECT_EQ(t.encode("cabx"), (Ids{259, 'x'})) << "ab merges, then c with it";
  EXPECT_EQ(t.encode("\xC3\xA9 "), (Ids{0xC3, 0xA9, ' '}));
  EXPECT_EQ(t.encode("a<|end|>", {true, true}), (Ids{'a', 300}));
  EXPECT_EQ(t.encode("a<|end|>").size(), 8U);
  EXPECT_EQ(t.decode({258, 0xC3, 0xA9, 300}), "abc\xC3\xA9<|end|>");
  EXPECT_EQ(t.vocab_size(), 301);
  t.save(dir.file("saved"));
  EXPECT_EQ(Tokenizer::load(dir.file("saved")).encode("abcc bcab"), t.encode("abcc bcab"));
  // The same under the name that Llama 3 uses, and in a directory.
  EXPECT_EQ(Tokenizer::load(dir.write("tokenizer.model", ranks_file({"ab"}))).encode("ab"), Ids{256});
  EXPECT_EQ(Tokenizer::load(dir.path()).kind(), "BPE (tiktoken)");
}

TEST(Tiktoken, UnknownCutAndDamageAreNamed) {
  TempDir dir;
  const auto fails = [&](const std::string& content, ErrorCode code) {
    const std::string path = dir.write("x.tiktoken", content);
    return error_of([&] { Tokenizer::load(path); }, code);
  };
  EXPECT_NE(fails(ranks_file({"ab"}), ErrorCode::unsupported).find("257 ranks"), std::string::npos);
  EXPECT_NE(fails("", ErrorCode::input).find("no ranks"), std::string::npos);
  EXPECT_NE(fails("YQ== 0\nYg== x\n", ErrorCode::input).find(":2"), std::string::npos);
  EXPECT_NE(fails("!! 0\n", ErrorCode::input).find(":1"), std::string::npos);
  EXPECT_NE(fails("YQ== 0\nYg== 0\n", ErrorCode::input).find("occurs twice"), std::string::npos);
  EXPECT_NE(fails("YQ== 0\nYQ== 1\n", ErrorCode::input).find("occurs twice"), std::string::npos);
  EXPECT_NE(fails("YQ== 900000000\n", ErrorCode::input).find("proportion"), std::string::npos);
  EXPECT_NE(fails("YQ== 0\n", ErrorCode::input).find("has no rank"), std::string::npos);
}

TEST(BertVocabulary, OptionsComeFromTheConfig) {
  TempDir dir;
  const std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nab\n##c\nAb\n\xC3\xA9\ne\n";
  const std::string path = dir.write("vocab.txt", vocab);
  const Tokenizer t = Tokenizer::load(path);
  EXPECT_EQ(t.kind(), "WordPiece (vocab.txt)");
  EXPECT_EQ(t.encode("Abc \xC3\x89"), (Ids{2, 5, 6, 9, 3})) << "lower case, no accents";
  EXPECT_EQ(t.encode("[MASK] ab", {false, true}), (Ids{4, 5}));
  EXPECT_EQ(t.decode(t.encode("abc ab"), {true}), "abc ab");
  dir.write("tokenizer_config.json", R"({"do_lower_case": false, "strip_accents": null})");
  EXPECT_EQ(Tokenizer::load(path).encode("Abc \xC3\xA9", {false, false}), (Ids{7, 6, 8}));
  dir.write("tokenizer_config.json", R"({"do_lower_case": true, "strip_accents": false})");
  EXPECT_EQ(Tokenizer::load(path).encode("\xC3\x89", {false, false}), Ids{8});
  t.save(dir.file("saved"));
  EXPECT_EQ(Tokenizer::load(dir.file("saved")).encode("Abc \xC3\x89"), t.encode("Abc \xC3\x89"));
  EXPECT_NE(error_of([&] { Tokenizer::load(dir.write("vocab.txt", "a\nb\n")); }, ErrorCode::input).find("unk_token"),
            std::string::npos);
}

TEST(VocabMerges, TokensThatOnlyConfigsName) {
  TempDir dir;
  dir.write("vocab.json", R"({"a": 0, "b": 1, "ab": 2})");
  dir.write("merges.txt", "#version: 0.2\na b\n");
  dir.write("added_tokens.json", R"({"<x>": 5, "a": 7})");
  dir.write("tokenizer_config.json",
            R"({"added_tokens_decoder": {"4": {"content": "<|y|>", "special": true, "rstrip": true}}})");
  const Tokenizer t = Tokenizer::load(dir.path());
  EXPECT_EQ(t.encode("ab<x><|y|> a", {true, true}), (Ids{2, 5, 4, 0}));
  EXPECT_TRUE(t.is_special(4));
  EXPECT_FALSE(t.is_special(5));
}

TEST(VocabMerges, RobertaStandsBetweenItsTokens) {
  TempDir dir;
  dir.write("vocab.json", R"({"<s>": 0, "</s>": 1, "a": 2})");
  dir.write("merges.txt", "#version: 0.2\n");
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("a"), Ids{2});
  dir.write("tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizer"})");
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("a"), (Ids{0, 2, 1}));
}

// A GGUF header with metadata only.
class GgufWriter {
 public:
  GgufWriter& add(const std::string& key, const std::string& value) { return entry(key, 8, string(value)); }
  GgufWriter& add(const std::string& key, uint32_t value) { return entry(key, 4, plain(value)); }
  GgufWriter& flag(const std::string& key, bool value) { return entry(key, 7, std::string(1, value ? '\1' : '\0')); }
  GgufWriter& list(const std::string& key, const std::vector<std::string>& values) {
    std::string body = plain(uint32_t{8}) + plain(static_cast<uint64_t>(values.size()));
    for (const std::string& value : values) body += string(value);
    return entry(key, 9, body);
  }
  template <typename T>
  GgufWriter& list(const std::string& key, uint32_t type, const std::vector<T>& values) {
    std::string body = plain(type) + plain(static_cast<uint64_t>(values.size()));
    for (const T value : values) body += plain(value);
    return entry(key, 9, body);
  }
  std::string bytes() const { return "GGUF" + plain(uint32_t{3}) + plain(uint64_t{0}) + plain(count_) + body_; }

 private:
  template <typename T>
  static std::string plain(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }
  static std::string string(const std::string& text) { return plain(static_cast<uint64_t>(text.size())) + text; }
  GgufWriter& entry(const std::string& key, uint32_t type, const std::string& value) {
    body_ += string(key) + plain(type) + value;
    ++count_;
    return *this;
  }
  std::string body_;
  uint64_t count_ = 0;
};

const std::string kKey = "tokenizer.ggml.";

std::vector<std::string> byte_pieces() {
  std::vector<std::string> out;
  for (int b = 0; b < 256; ++b) {
    // The byte-level alphabet, from its definition.
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    static int spare;
    if (b == 0) spare = 256;
    const int c = printable ? b : spare++;
    std::string text;
    if (c < 0x80) text += static_cast<char>(c);
    if (c >= 0x80) text += static_cast<char>(0xC0 | c >> 6), text += static_cast<char>(0x80 | (c & 63));
    out.push_back(text);
  }
  return out;
}

GgufWriter bpe_gguf(const std::string& pre) {
  std::vector<std::string> tokens = byte_pieces();
  tokens.insert(tokens.end(), {"ab", "abc", "12", "<|s|>", "<user>",
                               "\xC4\xA0"
                               "a"});
  std::vector<int32_t> types(tokens.size(), 1);
  types[259] = 3;
  types[260] = 4;
  GgufWriter out;
  out.add(kKey + "model", "gpt2")
      .add(kKey + "pre", pre)
      .list(kKey + "tokens", tokens)
      .list(kKey + "token_type", 5, types);
  out.list(kKey + "merges", {"a b", "ab c", "1 2", "\xC4\xA0 a"})
      .add(kKey + "bos_token_id", 259U)
      .add(kKey + "eos_token_id", 259U);
  return out;
}

TEST(GgufVocabulary, BytePairsWithNamedPreTokenizers) {
  TempDir dir;
  const auto load = [&](const GgufWriter& writer) { return Tokenizer::load(dir.write("m.gguf", writer.bytes())); };
  const Tokenizer gpt2 = load(bpe_gguf("gpt-2"));
  EXPECT_EQ(gpt2.kind(), "BPE (GGUF)");
  EXPECT_EQ(gpt2.encode("abc a12"), (Ids{257, 261, 258})) << "\"12\" stands apart from \" a\"";
  EXPECT_EQ(gpt2.bos_id(), 259);
  EXPECT_EQ(gpt2.encode("a<user>a<|s|>", {false, false}).size(), 8U)
      << "user-defined is always cut out, control when parsed";
  EXPECT_EQ(gpt2.encode("<|s|>a", {false, true}), (Ids{259, 'a'}));
  EXPECT_EQ(gpt2.decode({257, 261, 258}), "abc a12");
  EXPECT_EQ(load(bpe_gguf("starcoder")).encode("12", {false, false}), (Ids{'1', '2'})) << "digit by digit";
  EXPECT_EQ(load(bpe_gguf("llama-bpe")).encode("12"), (Ids{259, 258})) << "BOS without being asked";
  GgufWriter declined = bpe_gguf("llama-bpe");
  declined.flag(kKey + "add_bos_token", false);
  EXPECT_EQ(load(declined).encode("12"), Ids{258});
  GgufWriter overruled = bpe_gguf("gemma4");
  overruled.flag(kKey + "add_bos_token", false);
  EXPECT_EQ(load(overruled).encode("12").front(), 259) << "as llama.cpp does for this family";
  // Every name loads and gives back what it was given.
  for (const char* pre :
       {"",       "default",   "gpt-2",  "llama-bpe", "qwen2",     "deepseek-llm", "deepseek-coder", "deepseek-v3",
        "falcon", "starcoder", "refact", "command-r", "stablelm2", "olmo",         "dbrx",           "smollm",
        "mpt",    "bloom",     "viking", "tekken",    "gpt-4o",    "chameleon",    "bailingmoe",     "seed-coder",
        "qwen35", "minicpm5",  "exaone",  "youtu",     "jais-2",    "exaone-moe",   "tiny_aya",       "openpangu"}) {
    const Tokenizer t = load(bpe_gguf(pre));
    const std::string text = "Don't\tabc 12345 \xC3\xA9\xE6\x97\xA5\xE3\x81\xA9, x_y\r\n\n  end.  ";
    EXPECT_EQ(t.decode(t.encode(text, {false, false})), text) << pre;
  }
  const std::string path = dir.write("m.gguf", bpe_gguf("unheard-of").bytes());
  EXPECT_NE(error_of([&] { Tokenizer::load(path); }, ErrorCode::unsupported).find("unheard-of"), std::string::npos);
}

TEST(GgufVocabulary, ScoredPieces) {
  TempDir dir;
  GgufWriter out;
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "<0x0A>", kMark + "a", "bc",
                                     kMark,   "a",   "b",    "c",      "<|u|>"};
  out.add("general.name", "Phi-3 mini").add(kKey + "model", "llama").list(kKey + "tokens", tokens);
  out.list(kKey + "scores", 6, std::vector<float>{0, 0, 0, 0, -1, -2, -4, -5, -6, -7, 0});
  out.list(kKey + "token_type", 5, std::vector<int32_t>{2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 4});
  const Tokenizer t = Tokenizer::load(dir.write("m.gguf", out.bytes()));
  EXPECT_EQ(t.encode("abc"), (Ids{1, 4, 5}));
  EXPECT_EQ(t.encode("a<|u|>  a", {false, false}), (Ids{4, 10, 4}))
      << "this family's tokens swallow the spaces behind them";
  EXPECT_EQ(t.decode({1, 4, 5}, {true}), "abc");
  out.flag(kKey + "add_space_prefix", false).flag(kKey + "add_eos_token", true);
  EXPECT_EQ(Tokenizer::load(dir.write("m.gguf", out.bytes())).encode("abc"), (Ids{1, 7, 5, 2}));
}

TEST(GgufVocabulary, WordsWithPhantomSpaces) {
  TempDir dir;
  GgufWriter out;
  out.add(kKey + "model", "bert")
      .list(kKey + "tokens", {"[PAD]", "[UNK]", "[CLS]", "[SEP]", kMark + "un", "able", kMark + "a", kMark + "."});
  out.list(kKey + "token_type", 5, std::vector<int32_t>{3, 3, 3, 3, 1, 1, 1, 1});
  out.add(kKey + "unknown_token_id", 1U).add(kKey + "cls_token_id", 2U).add(kKey + "seperator_token_id", 3U);
  const Tokenizer t = Tokenizer::load(dir.write("m.gguf", out.bytes()));
  EXPECT_EQ(t.encode("Unable a. b"), (Ids{2, 4, 5, 6, 7, 1, 3}));
  EXPECT_EQ(t.encode("able", {false, false}), Ids{1}) << "\"able\" only continues words";
  EXPECT_EQ(t.decode({4, 5, 6}), "unable a");
  t.save(dir.file("saved"));
  EXPECT_EQ(Tokenizer::load(dir.file("saved")).encode("Unable a. b"), t.encode("Unable a. b"));
}

TEST(GgufVocabulary, Unigram) {
  TempDir dir;
  GgufWriter out;
  out.add(kKey + "model", "t5").list(kKey + "tokens", {"<pad>", "</s>", "<unk>", kMark + "a", "bc", kMark, "b", "c"});
  out.list(kKey + "scores", 6, std::vector<float>{0, 0, 0, -1, -2, -4, -6, -7});
  out.list(kKey + "token_type", 5, std::vector<int32_t>{3, 3, 2, 1, 1, 1, 1, 1});
  out.flag(kKey + "add_space_prefix", true).flag(kKey + "remove_extra_whitespaces", true);
  const std::string table = charsmap_blob({{"X", "b"}});
  out.list(kKey + "precompiled_charsmap", 0, std::vector<uint8_t>(table.begin(), table.end()));
  const Tokenizer t = Tokenizer::load(dir.write("m.gguf", out.bytes()));
  EXPECT_EQ(t.encode(" aXc  a "), (Ids{3, 4, 3, 1}));
  EXPECT_EQ(t.encode("q", {false, false}), (Ids{5, 2}));
}

TEST(GgufVocabulary, DamageIsNamed) {
  TempDir dir;
  const auto fails = [&](const GgufWriter& writer, ErrorCode code = ErrorCode::input) {
    const std::string path = dir.write("m.gguf", writer.bytes());
    return error_of([&] { Tokenizer::load(path); }, code);
  };
  GgufWriter none;
  none.add("general.name", "x");
  EXPECT_NE(fails(none).find("tokenizer.ggml.model"), std::string::npos);
  GgufWriter kind;
  kind.add(kKey + "model", "rwkv").list(kKey + "tokens", {"a"});
  EXPECT_NE(fails(kind, ErrorCode::unsupported).find("rwkv"), std::string::npos);
  GgufWriter twice;
  twice.add(kKey + "model", "gpt2").add(kKey + "pre", "gpt-2").list(kKey + "tokens", {"a", "a"});
  EXPECT_NE(fails(twice).find("occurs twice"), std::string::npos);
  GgufWriter merge;
  merge.add(kKey + "model", "gpt2").list(kKey + "tokens", {"a", "b"}).list(kKey + "merges", {"a b"});
  EXPECT_NE(fails(merge).find("tokenizer.ggml.merges"), std::string::npos);
  GgufWriter scores;
  scores.add(kKey + "model", "llama").list(kKey + "tokens", {"a", "b"}).list(kKey + "scores", 6, std::vector<float>{0});
  EXPECT_NE(fails(scores).find("tokenizer.ggml.scores"), std::string::npos);
}

TEST(GgufVocabulary, SurvivesDamage) {
  TempDir dir;
  const std::string good = bpe_gguf("llama-bpe").bytes();
  Random random(17);
  int loaded = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string bad = good;
    for (size_t n = 1 + random.below(3); n > 0; --n)
      bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    if (i % 5 == 0) bad.resize(random.below(bad.size()));
    const std::string path = dir.write("m.gguf", bad);
    try {
      const Tokenizer t = Tokenizer::load(path);
      t.decode(t.encode("abc 12\n"));
      ++loaded;
    } catch (const Error& error) {
      ASSERT_TRUE(error.code() == ErrorCode::input || error.code() == ErrorCode::unsupported) << error.what();
    }
  }
  EXPECT_GT(loaded, 50);
}

}  // namespace
}  // namespace thimble
