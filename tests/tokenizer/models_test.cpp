// WordPiece, Unigram and WordLevel against their slow twins and on words worked out by hand.
#include <cmath>
#include <map>

#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

Json wordpiece_json(const std::vector<std::string>& vocab) {
  Json json = bpe_json(vocab);
  json["model"] = {{"type", "WordPiece"}, {"unk_token", "[UNK]"}, {"vocab", json["model"]["vocab"]}};
  json["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
  return json;
}

TEST(WordPiece, LongestFirstOrUnknownAsAWhole) {
  const Json json = wordpiece_json({"[UNK]", "un", "##aff", "##able", "##a", "##b", "a", ",", "##f"});
  const Tokenizer t = load_json(json);
  EXPECT_EQ(pieces(t, "unaffable"), (std::vector<std::string>{"un", "##aff", "##able"}));
  EXPECT_EQ(pieces(t, "unaf, a"), (std::vector<std::string>{"un", "##a", "##f", ",", "a"}));
  EXPECT_EQ(pieces(t, "unax a"), (std::vector<std::string>{"[UNK]", "a"})) << "a rest without piece spoils the word";
  EXPECT_EQ(pieces(t, "un" + std::string(98, 'a')).size(), 99U);
  EXPECT_EQ(pieces(t, "un" + std::string(99, 'a')), std::vector<std::string>{"[UNK]"}) << "above 100 characters";
}

TEST(WordPiece, OptionsAndTheirErrors) {
  Json json = wordpiece_json({"?", "ab", "@c", "c"});
  json["model"]["unk_token"] = "?";
  json["model"]["continuing_subword_prefix"] = "@";
  json["model"]["max_input_chars_per_word"] = 4;
  EXPECT_EQ(pieces(load_json(json), "abcc abccc"), (std::vector<std::string>{"ab", "@c", "@c", "?"}));
  const Tokenizer t = load_json(json);
  TempDir dir;
  t.save(dir.path());
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("abcc abccc"), t.encode("abcc abccc"));
  json["model"]["unk_token"] = "[UNK]";
  EXPECT_NE(error_of([&] { load_json(json); }, ErrorCode::input).find("model.unk_token"), std::string::npos);
}

TEST(WordPiece, AgreesWithTheDefinition) {
  Random random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::string> vocab = {"[UNK]"};
    std::map<std::string, int32_t> ids;
    for (int i = 0; i < 30; ++i) {
      std::string piece = random.below(2) == 0 ? "" : "##";
      for (size_t n = 1 + random.below(4); n > 0; --n)
        piece += random.below(9) == 0 ? "\xC3\xA9" : std::string(1, static_cast<char>('a' + random.below(3)));
      if (std::find(vocab.begin(), vocab.end(), piece) == vocab.end()) vocab.push_back(piece);
    }
    for (size_t id = 0; id < vocab.size(); ++id) ids[vocab[id]] = static_cast<int32_t>(id);
    const Tokenizer t = load_json(wordpiece_json(vocab));
    for (int w = 0; w < 40; ++w) {
      std::string word;
      for (size_t n = 1 + random.below(12); n > 0; --n)
        word += random.below(9) == 0 ? "\xC3\xA9" : std::string(1, static_cast<char>('a' + random.below(3)));
      Ids want;
      for (size_t start = 0; start < word.size();) {
        size_t end = word.size();
        for (; end > start; --end) {
          if (ids.count((start > 0 ? "##" : "") + word.substr(start, end - start)) > 0) break;
        }
        if (end == start) {
          want = {0};
          break;
        }
        want.push_back(ids[(start > 0 ? "##" : "") + word.substr(start, end - start)]);
        start = end;
      }
      ASSERT_EQ(t.encode(word), want) << word;
      ASSERT_EQ(t.encode(word), want) << "from the cache";
    }
  }
}

Json unigram_json(const std::vector<std::pair<std::string, double>>& vocab, int unk_id = 0) {
  Json list = Json::array();
  for (const auto& [piece, score] : vocab) list.push_back({piece, score});
  return {{"version", "1.0"}, {"model", {{"type", "Unigram"}, {"unk_id", unk_id}, {"vocab", list}}}};
}

TEST(Unigram, BestSumWins) {
  const Tokenizer t =
      load_json(unigram_json({{"<unk>", 0}, {"ab", -1.5}, {"a", -1}, {"b", -1}, {"bc", -1.2}, {"c", -3}}));
  EXPECT_EQ(t.encode("ab"), Ids{1}) << "-1.5 against -2";
  EXPECT_EQ(t.encode("abc"), (Ids{2, 4})) << "-2.2 against -4.5";
  EXPECT_EQ(t.encode("axyb"), (Ids{2, 0, 3})) << "unknown neighbours are one";
  EXPECT_EQ(t.kind(), "Unigram (tokenizer.json)");
}

TEST(Unigram, FirstFoundOfEqualSumsStays) {
  // a|bc and ab|c both give -3. The cut that ends in the piece found earlier, from the smaller start, stays.
  EXPECT_EQ(load_json(unigram_json({{"<unk>", 0}, {"a", -1}, {"bc", -2}, {"ab", -2}, {"c", -1}})).encode("abc"),
            (Ids{1, 2}));
}

TEST(Unigram, OfEqualPiecesTheLastCounts) {
  EXPECT_EQ(load_json(unigram_json({{"<unk>", 0}, {"ab", -1}, {"a", -2}, {"b", -2}, {"ab", -5}})).encode("ab"), (Ids{2, 3}));
  EXPECT_EQ(load_json(unigram_json({{"<unk>", 0}, {"ab", -9}, {"a", -2}, {"b", -2}, {"ab", -1}})).encode("ab"), Ids{4});
}

TEST(Unigram, UnknownCharactersCostTenMoreThanTheWorstPiece) {
  // "a" has no piece of its own and costs -15 - 10; abb as a|bb would be -25 - 1, as abb -15.
  const Tokenizer t = load_json(unigram_json({{"<unk>", 0}, {"bb", -1}, {"abb", -15}}));
  EXPECT_EQ(t.encode("abb"), Ids{2});
  EXPECT_EQ(load_json(unigram_json({{"<unk>", 0}, {"bb", -1}, {"b", -14}, {"abb", -27}})).encode("abb"), Ids{3})
      << "-27 against -37 - 1";
}

TEST(Unigram, ByteFallback) {
  Json json = unigram_json({{"<unk>", 0}, {"a", -1}, {"<0xC3>", -9}, {"<0xA9>", -9}});
  EXPECT_EQ(load_json(json).encode("a\xC3\xA9"), (Ids{1, 0}));
  json["model"]["byte_fallback"] = true;
  EXPECT_EQ(load_json(json).encode("a\xC3\xA9"), (Ids{1, 2, 3}));
  EXPECT_EQ(load_json(json).encode("a\xC3\xA8"), (Ids{1, 0})) << "a byte without piece";
  EXPECT_EQ(load_json(json).encode("\xC3\xA8\xC3\xA9"), Ids{0}) << "all bytes of the unknown run, or none";
}

TEST(Unigram, MalformedModels) {
  const auto message = [](Json json, ErrorCode code = ErrorCode::input) {
    return error_of([&] { load_json(json); }, code);
  };
  EXPECT_NE(message(unigram_json({{"a", 0}}, 1)).find("model.unk_id"), std::string::npos);
  EXPECT_NE(message(unigram_json({})).find("model.vocab"), std::string::npos);
  Json json = unigram_json({{"a", 0}});
  json["model"]["vocab"][0] = {"a", "b"};
  EXPECT_NE(message(json).find("model.vocab[0]"), std::string::npos);
  json = unigram_json({{"a", 0}});
  json["model"].erase("unk_id");
  EXPECT_EQ(load_json(json).encode("a"), Ids{0});
  error_of([&] { load_json(json).encode("b"); }, ErrorCode::input);
}

// The best of all ways to cut.
double best_sum(const std::map<std::string, double>& vocab, const std::string& text, size_t pos) {
  if (pos == text.size()) return 0;
  double best = -INFINITY;
  for (size_t end = pos + 1; end <= text.size(); ++end) {
    const auto found = vocab.find(text.substr(pos, end - pos));
    if (found != vocab.end()) best = std::max(best, found->second + best_sum(vocab, text, end));
  }
  return best;
}

TEST(Unigram, AgreesWithTryingAllCuts) {
  Random random(9);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::pair<std::string, double>> list = {{"<unk>", 0}, {"a", -8}, {"b", -9}, {"c", -7}};
    std::map<std::string, double> vocab = {{"a", -8}, {"b", -9}, {"c", -7}};
    for (int i = 0; i < 14; ++i) {
      std::string piece;
      for (size_t n = 2 + random.below(3); n > 0; --n) piece += static_cast<char>('a' + random.below(3));
      const double score = -0.5 - static_cast<double>(random.next() >> 11) * 0x1p-53 * 20;
      if (vocab.emplace(piece, score).second) list.emplace_back(piece, score);
    }
    const Tokenizer t = load_json(unigram_json(list));
    for (int w = 0; w < 30; ++w) {
      std::string text, joined;
      for (size_t n = 1 + random.below(12); n > 0; --n) text += static_cast<char>('a' + random.below(3));
      double sum = 0;
      for (const std::string& piece : pieces(t, text)) {
        joined += piece;
        sum += vocab.at(piece);
      }
      ASSERT_EQ(joined, text);
      ASSERT_NEAR(sum, best_sum(vocab, text, 0), 1e-9) << text;
    }
  }
}

TEST(Unigram, SavedAndReloadedIsTheSame) {
  Json json = unigram_json({{"<unk>", 0}, {"ab", -1.25}, {"a", -1.1}, {"b", -1.7}});
  TempDir dir;
  load_json(json).save(dir.path());
  EXPECT_EQ(Json::parse(read_file(dir.file("tokenizer.json")))["model"]["vocab"], json["model"]["vocab"]);
}

TEST(WordLevel, KnowsWordsOrNot) {
  Json json = bpe_json({"[UNK]", "hello", "world"});
  json["model"] = {{"type", "WordLevel"}, {"unk_token", "[UNK]"}, {"vocab", json["model"]["vocab"]}};
  json["pre_tokenizer"] = {{"type", "Whitespace"}};
  EXPECT_EQ(load_json(json).encode("hello big world"), (Ids{1, 0, 2}));
  json["model"]["unk_token"] = "absent";
  const Tokenizer t = load_json(json);
  EXPECT_NE(error_of([&] { t.encode("hello big"); }, ErrorCode::input).find("big"), std::string::npos);
  TempDir dir;
  t.save(dir.path());
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("hello world"), (Ids{1, 2}));
}

}  // namespace
}  // namespace thimble
