// The other file formats, written here byte by byte: llama2.c, SentencePiece, vocab.json with merges.txt; and
// streaming.
#include <cstdio>
#include <cstring>
#include <limits>

#include "models/tokenizer/check.h"
#include "tests/tokenizer/charsmap_blob.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string llama2c_file(const std::vector<std::pair<std::string, float>>& tokens) {
  std::string out;
  put(out, int32_t{8});
  for (const auto& [text, score] : tokens) {
    put(out, score);
    put(out, static_cast<int32_t>(text.size()));
    out += text;
  }
  return out;
}

std::vector<std::pair<std::string, float>> llama2c_tokens(bool bytes) {
  std::vector<std::pair<std::string, float>> tokens = {{"<unk>", 0}, {"\n<s>\n", 0}, {"\n</s>\n", 0}};
  if (bytes) {
    for (int b = 0; b < 256; ++b) {
      char text[8];
      std::snprintf(text, sizeof(text), "<0x%02X>", b);
      tokens.emplace_back(text, 0.F);
    }
  }
  const std::vector<std::pair<std::string, float>> rest = {{" a", -1}, {"bc", -2}, {" ab", -3}, {" ", -4},
                                                           {"a", -5},  {"b", -6},  {"c", -7}};
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  return tokens;
}

TEST(Llama2c, MergesTheBestScoreAndFallsBackToBytes) {
  TempDir dir;
  const Tokenizer t = Tokenizer::load(dir.write("tok266.bin", llama2c_file(llama2c_tokens(true))));
  EXPECT_EQ(t.vocab_size(), 266);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.encode(""), Ids{1}) << "no space before nothing";
  EXPECT_EQ(pieces(t, "abc", {false, false}), (std::vector<std::string>{" a", "bc"})) << "' a' -1, then 'bc' -2";
  EXPECT_EQ(t.encode("\n", {false, false}), (Ids{262, 3 + 10}));
  EXPECT_EQ(t.encode("\xC3\xA9", {false, false}), (Ids{262, 3 + 0xC3, 3 + 0xA9}));
  for (const char* text : {"abc", " a", "  a", "\n", "\xC3\xA9 \xF0\x9F\x98\x80", "<s>"}) {
    EXPECT_EQ(t.decode(t.encode(text), {true}), text);
    EXPECT_EQ(t.decode(t.encode(text, {false, false})), text);
  }
  EXPECT_EQ(t.decode({1, 259, 1, 259}), "\n<s>\na\n<s>\na") << "one space is dropped behind every BOS";
  // A directory works too, and what is saved gives the same ids.
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("abc"), t.encode("abc"));
  t.save(dir.file("saved"));
  const Tokenizer saved = Tokenizer::load(dir.file("saved"));
  EXPECT_EQ(saved.encode("abc\n a"), t.encode("abc\n a"));
  EXPECT_EQ(saved.decode(saved.encode(" abc"), {true}), " abc");
  EXPECT_EQ(saved.bos_id(), 1);
}

TEST(Llama2c, WithoutByteTokensUnknownIsUnk) {
  TempDir dir;
  const Tokenizer t = Tokenizer::load(dir.write("tok10.bin", llama2c_file(llama2c_tokens(false))));
  EXPECT_EQ(t.encode("ax\xC3\xA9"
                     "b",
                     {false, false}),
            (Ids{3, 0, 8}));
}

TEST(Llama2c, DamagedFilesAreNamed) {
  TempDir dir;
  const auto load = [&](const std::string& content) {
    const std::string path = dir.write("tok.bin", content);
    return error_of([&] { Tokenizer::load(path); }, ErrorCode::input);
  };
  const std::string good = llama2c_file(llama2c_tokens(false));
  EXPECT_NE(load("").find("max_token_length"), std::string::npos);
  EXPECT_NE(load(good.substr(0, good.size() - 1)).find("token 9 length"), std::string::npos);
  EXPECT_NE(load(good.substr(0, 6)).find("token 0 score"), std::string::npos);
  std::string bad = good;
  const int32_t huge = INT32_MAX, negative = -1;
  std::memcpy(&bad[8], &huge, 4);
  EXPECT_NE(load(bad).find("token 0 length"), std::string::npos);
  std::memcpy(&bad[8], &negative, 4);
  EXPECT_NE(load(bad).find("found -1"), std::string::npos);
  auto twice = llama2c_tokens(false);
  twice.push_back(twice[5]);
  EXPECT_NE(load(llama2c_file(twice)).find("occurs twice"), std::string::npos);
  auto nan = llama2c_tokens(false);
  nan[5].second = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(load(llama2c_file(nan)).find("finite score"), std::string::npos);
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_bytes(std::string& out, int field, const std::string& bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

void put_number(std::string& out, int field, uint64_t value) {
  put_varint(out, static_cast<uint64_t>(field) << 3);
  put_varint(out, value);
}

struct SpOptions {
  uint64_t model_type = 2;
  bool dummy_prefix = true, remove_extra = false;
  std::string charsmap;
  bool user_defined = false;
};

std::string sentencepiece_file(const SpOptions& options) {
  const std::string mark = "\xE2\x96\x81";
  std::string out;
  const auto piece = [&](const std::string& text, float score, int type) {
    std::string message;
    put_bytes(message, 1, text);
    message += static_cast<char>(2 << 3 | 5);
    put(message, score);
    if (type != 1) put_number(message, 3, static_cast<uint64_t>(type));
    put_bytes(out, 1, message);
  };
  piece("<unk>", 0, 2);
  piece("<s>", 0, 3);
  piece("</s>", 0, 3);
  piece(mark + "a", -1, 1);
  piece("bc", -2, 1);
  piece(mark, -4, 1);
  piece("a", -5, 1);
  piece("b", -6, 1);
  piece("c", -7, 1);
  if (options.user_defined) piece("cab", 0, 4);
  std::string trainer, normalizer;
  put_number(trainer, 3, options.model_type);
  put_bytes(out, 2, trainer);
  if (!options.charsmap.empty()) put_bytes(normalizer, 2, options.charsmap);
  put_number(normalizer, 3, options.dummy_prefix);
  put_number(normalizer, 4, options.remove_extra);
  put_bytes(out, 3, normalizer);
  return out;
}

TEST(SentencePiece, OptionsOfTheNormalizer) {
  TempDir dir;
  const auto load = [&](const SpOptions& options) {
    return Tokenizer::load(dir.write("tokenizer.model", sentencepiece_file(options)));
  };
  const EncodeOptions plain{false, false};
  const std::string mark = "\xE2\x96\x81";
  const Tokenizer standard = load({});
  EXPECT_EQ(standard.encode("abc"), (Ids{1, 3, 4})) << "BOS goes first";
  EXPECT_EQ(standard.encode("a  x", plain), (Ids{3, 5, 5, 0})) << "no byte tokens: unk";
  EXPECT_EQ(standard.encode("<s>", plain), (Ids{5, 0})) << "text, though fused to one unk";
  EXPECT_EQ(standard.encode("<s>a", {false, true}), (Ids{1, 3}));
  EXPECT_EQ(standard.decode({1, 3, 4}, {true}), "abc");
  SpOptions options;
  options.dummy_prefix = false;
  EXPECT_EQ(load(options).encode("abc", plain), (Ids{6, 4}));
  EXPECT_EQ(load(options).decode({3}), " a");
  options = {};
  options.remove_extra = true;
  EXPECT_EQ(load(options).encode("  a   a  ", plain), (Ids{3, 3}));
  options = {};
  options.user_defined = true;
  EXPECT_EQ(load(options).encode("bcab", plain), (Ids{5, 7, 9})) << "a user-defined piece is cut out first";
}

TEST(SentencePiece, OtherKindsAreUnsupportedByName) {
  TempDir dir;
  for (const auto& [type, name] : {std::pair<uint64_t, const char*>{3, "word"}, {4, "char"}}) {
    SpOptions options;
    options.model_type = type;
    const std::string path = dir.write("tokenizer.model", sentencepiece_file(options));
    const std::string message = error_of([&] { Tokenizer::load(path); }, ErrorCode::unsupported);
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
}

TEST(SentencePiece, Unigram) {
  TempDir dir;
  SpOptions options;
  options.model_type = 1;
  const auto load = [&] { return Tokenizer::load(dir.write("tokenizer.model", sentencepiece_file(options))); };
  const EncodeOptions plain{false, false};
  // _a -1, bc -2, _ -4, a -5, b -6, c -7: "_abc" is best cut as _a bc; "_ab" as _a b.
  EXPECT_EQ(load().encode("abc", plain), (Ids{3, 4}));
  EXPECT_EQ(load().encode("ab", plain), (Ids{3, 7}));
  EXPECT_EQ(load().encode("xyb a", plain), (Ids{5, 0, 7, 3})) << "unknown neighbours are one unk";
  EXPECT_EQ(load().encode("<s>", plain), (Ids{5, 0})) << "control pieces are no text";
  EXPECT_EQ(load().kind(), "Unigram (SentencePiece)");
  options.user_defined = true;  // cab: 3 bytes at the best score (-1) each, less 0.1
  EXPECT_EQ(load().encode("cab", plain), (Ids{5, 9}));
  options.remove_extra = true;
  const Tokenizer t = load();
  EXPECT_EQ(t.encode("  a   bc ", plain), (Ids{3, 5, 4}));
  EXPECT_EQ(t.encode("   ", plain), Ids{});
  EXPECT_EQ(t.decode({1, 3, 5, 4}, {true}), "a bc");
  t.save(dir.file("saved"));
  EXPECT_EQ(Tokenizer::load(dir.file("saved")).encode("  a   bc "), t.encode("  a   bc "));
}

TEST(SentencePiece, CharacterTable) {
  TempDir dir;
  SpOptions options;
  // U+FB01 and the two letters X Y become what the pieces know; the longest entry wins.
  options.charsmap = charsmap_blob({{"X", "b"}, {"XY", "bc"}, {"\xEF\xAC\x81", "a"}, {"\t", " "}});
  for (const uint64_t type : {1, 2}) {
    options.model_type = type;
    const Tokenizer t = Tokenizer::load(dir.write("tokenizer.model", sentencepiece_file(options)));
    const EncodeOptions plain{false, false};
    EXPECT_EQ(t.encode("\xEF\xAC\x81", plain), Ids{3});
    EXPECT_EQ(t.encode("aXY", plain), (Ids{3, 4}));
    EXPECT_EQ(t.encode("aXX", plain), (Ids{3, 7, 7}));
    EXPECT_EQ(t.encode("a\ta", plain), (Ids{3, 3}));
  }
  options.charsmap = "xyz";
  const std::string path = dir.write("tokenizer.model", sentencepiece_file(options));
  EXPECT_NE(error_of([&] { Tokenizer::load(path); }, ErrorCode::input).find("precompiled_charsmap"), std::string::npos);
}

TEST(SentencePiece, SurvivesDamage) {
  TempDir dir;
  const std::string good = sentencepiece_file({});
  Random random(3);
  int loaded = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = good;
    if (i % 3 == 0) bad.resize(random.below(bad.size()));
    for (size_t n = random.below(4); n > 0 && !bad.empty(); --n) {
      bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    }
    const std::string path = dir.write("tokenizer.model", bad);
    try {
      const Tokenizer t = Tokenizer::load(path);
      t.decode(t.encode("abc a"));
      ++loaded;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(loaded, 0);
}

TEST(VocabMerges, IsByteLevelBpe) {
  TempDir dir;
  dir.write("vocab.json", R"({"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120ab": 4, "<|endoftext|>": 5})");
  dir.write("merges.txt", "#version: 0.2\na b\n\xC4\xA0 ab\n");
  const Tokenizer t = Tokenizer::load(dir.path());
  EXPECT_EQ(t.encode("ab ab"), (Ids{2, 4}));
  EXPECT_EQ(t.decode({2, 4}), "ab ab");
  EXPECT_EQ(t.eos_id(), 5);
  EXPECT_TRUE(t.is_special(5));
  EXPECT_EQ(Tokenizer::load(dir.file("vocab.json")).encode("ab"), Ids{2});
  dir.write("merges.txt", "a b c\n");
  EXPECT_NE(error_of([&] { Tokenizer::load(dir.path()); }, ErrorCode::input).find("merges.txt:1"), std::string::npos);
  dir.write("merges.txt", "a c\n");
  error_of([&] { Tokenizer::load(dir.path()); }, ErrorCode::input);
  dir.write("merges.txt", "a b</w>\n");
  error_of([&] { Tokenizer::load(dir.path()); }, ErrorCode::unsupported);
}

TEST(Load, SaysWhatIsMissing) {
  TempDir dir;
  EXPECT_NE(error_of([&] { Tokenizer::load(dir.path()); }, ErrorCode::input).find("no tokenizer"), std::string::npos);
  error_of([&] { Tokenizer::load(dir.file("absent.json")); }, ErrorCode::input);
  error_of([&] { Tokenizer::load(dir.write("vocab.txt", "a\n")); }, ErrorCode::input);
  error_of([&] { Tokenizer::load(dir.write("m.gguf", "GGUF")); }, ErrorCode::input);
  error_of([&] { Tokenizer::load(dir.write("m.xyz", "?")); }, ErrorCode::input);
}

TEST(Stream, EqualsDecodeAndNeverSplitsACharacter) {
  TempDir dir;
  std::vector<Tokenizer> tokenizers;
  tokenizers.push_back(Tokenizer::load(dir.write("tok266.bin", llama2c_file(llama2c_tokens(true)))));
  Json json = bpe_json({"\xC3\x83", "\xC2\xA9", "a", "\xC4\xA0", "\xC3\xB0", "\xC5\x81", "\xC4\xBA", "\xC4\xA2", "X"});
  json["decoder"] = {{"type", "ByteLevel"}};
  json["added_tokens"] = {{{"id", 8}, {"content", "X"}, {"special", true}}};
  tokenizers.push_back(load_json(json));
  json["decoder"] = {{"type", "BPEDecoder"}, {"suffix", "a"}};
  tokenizers.push_back(load_json(json));
  json.erase("decoder");
  tokenizers.push_back(load_json(json));
  Random random(11);
  for (const Tokenizer& t : tokenizers) {
    for (int round = 0; round < 300; ++round) {
      Ids ids;
      for (size_t n = random.below(20); n > 0; --n) {
        ids.push_back(static_cast<int32_t>(random.below(static_cast<size_t>(t.vocab_size()))));
      }
      const DecodeOptions options{round % 2 == 0};
      DecodeStream stream(t, options);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string now = stream.push(id);
        EXPECT_TRUE(Json(now).dump().size() > 0) << "throws when not UTF-8";
        joined += now;
      }
      joined += stream.finish();
      ASSERT_EQ(joined, t.decode(ids, options));
    }
  }
  DecodeStream stream(tokenizers[1]);
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(1), "\xC3\xA9");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(2),
            "\xEF\xBF\xBD"
            "a")
      << "known to be broken as soon as the next byte is there";
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST(Check, ReportsWhatDiffers) {
  TempDir dir;
  const Tokenizer t = load_json(bpe_json({"a", "b"}));
  const std::string path = dir.write("cases.jsonl",
                                     "{\"text\":\"ab\",\"ids\":[0,1],\"ids_nospecial\":[0,1],\"decoded\":\"a b\"}\n\n"
                                     "{\"text\":\"ab\",\"ids\":[1,0]}\n"
                                     "{\"text\":\"a\",\"ids\":[0],\"decoded\":\"b\",\"decoded_skip_special\":\"a\"}\n"
                                     "{\"text\":\"a\",\"ids_nospecial\":[7],\"decoded\":\"a\"}");
  const CheckReport report = check_cases(t, path);
  EXPECT_EQ(report.lines, 4);
  EXPECT_EQ(report.failed, 3);
  ASSERT_EQ(report.first.size(), 4U);
  EXPECT_EQ(report.first[0].line, 3);
  EXPECT_EQ(report.first[0].field, "ids");
  EXPECT_EQ(report.first[0].want, "[1,0]");
  EXPECT_EQ(report.first[0].got, "[0,1]");
  EXPECT_EQ(report.first[1].field, "decoded");
  EXPECT_EQ(report.first[3].got, "(no token has id 7)");
  for (const char* bad : {"{\"text\":\"a\"}\n{\"text\":\n", "{\"text\":\"a\"}\n{\"ids\":[1]}", "{\"text\":\"a\"}\n[]",
                          "{\"text\":\"a\"}\n{\"text\":\"a\",\"ids\":[-1]}"}) {
    const std::string broken = dir.write("broken.jsonl", bad);
    const std::string message = error_of([&] { check_cases(t, broken); }, ErrorCode::input);
    EXPECT_NE(message.find("broken.jsonl:2"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace thimble
