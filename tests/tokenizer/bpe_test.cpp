// The BPE model against its slow twin (scan all pairs, merge the best, repeat), and each of its options.
#include <map>
#include <thread>

#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

// Straight from the definition: lowest rank, leftmost.
std::vector<std::string> naive_bpe(const std::vector<std::pair<std::string, std::string>>& merges,
                                   std::vector<std::string> symbols) {
  std::map<std::pair<std::string, std::string>, size_t> rank;
  for (size_t i = 0; i < merges.size(); ++i) rank[merges[i]] = i;
  while (true) {
    size_t best = SIZE_MAX, at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = rank.find({symbols[i], symbols[i + 1]});
      if (found != rank.end() && found->second < best) best = found->second, at = i;
    }
    if (best == SIZE_MAX) return symbols;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(Bpe, AgreesWithTheNaiveAlgorithm) {
  Random random(7);
  for (int round = 0; round < 60; ++round) {
    const size_t letters = 2 + random.below(4);
    std::vector<std::string> vocab;
    for (size_t i = 0; i < letters; ++i) vocab.emplace_back(1, static_cast<char>('a' + i));
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 25; ++i) {
      const std::string left = vocab[random.below(vocab.size())], right = vocab[random.below(vocab.size())];
      if (left.size() + right.size() > 8) continue;
      if (std::find(merges.begin(), merges.end(), std::make_pair(left, right)) != merges.end()) continue;
      merges.emplace_back(left, right);
      if (std::find(vocab.begin(), vocab.end(), left + right) == vocab.end()) vocab.push_back(left + right);
    }
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges) lines.push_back(left + " " + right);
    const Tokenizer tokenizer = load_json(bpe_json(vocab, lines));
    for (int word = 0; word < 40; ++word) {
      std::string text;
      std::vector<std::string> symbols;
      const size_t length = 1 + random.below(60);
      for (size_t i = 0; i < length; ++i) {
        text += static_cast<char>('a' + random.below(letters));
        symbols.emplace_back(1, text.back());
      }
      ASSERT_EQ(pieces(tokenizer, text), naive_bpe(merges, symbols)) << Json(lines).dump() << " on " << text;
      ASSERT_EQ(pieces(tokenizer, text), naive_bpe(merges, symbols)) << "the second time comes from the cache";
    }
  }
}

TEST(Bpe, UnknownCharacters) {
  Json json = bpe_json({"?", "a", "b"});
  EXPECT_EQ(load_json(json).encode("axxb"), (Ids{1, 2})) << "without unk they vanish";
  json["model"]["unk_token"] = "?";
  EXPECT_EQ(load_json(json).encode("axxb"), (Ids{1, 0, 0, 2}));
  json["model"]["fuse_unk"] = true;
  EXPECT_EQ(load_json(json).encode("axxbx"), (Ids{1, 0, 2, 0}));
}

TEST(Bpe, ByteFallbackNeedsAllBytesOfTheCharacter) {
  Json json = bpe_json({"?", "a", "<0xC3>", "<0xA9>", "<0x0A>"});
  json["model"]["unk_token"] = "?";
  json["model"]["byte_fallback"] = true;
  EXPECT_EQ(load_json(json).encode("a\xC3\xA9\n"), (Ids{1, 2, 3, 4}));
  EXPECT_EQ(load_json(json).encode("\xC3\xA8"), Ids{0});
}

TEST(Bpe, PrefixAndSuffix) {
  Json json = bpe_json({"a", "b", "##b", "##c", "a##", "ab", "##c</w>", "abc</w>", "b</w>", "##b</w>", "a</w>"},
                       {"a ##b", "ab ##c</w>"});
  json["model"]["continuing_subword_prefix"] = "##";
  json["model"]["end_of_word_suffix"] = "</w>";
  EXPECT_EQ(pieces(load_json(json), "abc"), std::vector<std::string>{"abc</w>"});
  EXPECT_EQ(pieces(load_json(json), "bb"), (std::vector<std::string>{"b", "##b</w>"}));
  EXPECT_EQ(pieces(load_json(json), "a"), std::vector<std::string>{"a</w>"});
}

TEST(Bpe, IgnoreMergesTakesWholeWordsFirst) {
  Json json = bpe_json({"a", "b", "c", "ab", "abc"}, {"a b"});
  EXPECT_EQ(pieces(load_json(json), "abc"), (std::vector<std::string>{"ab", "c"}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(pieces(load_json(json), "abc"), std::vector<std::string>{"abc"});
}

TEST(Bpe, MergesAsPairsMayHoldSpaces) {
  Json json = bpe_json({"a", " ", " a", " a a"});
  json["model"]["merges"] = Json::array({Json::array({" ", "a"})});
  EXPECT_EQ(pieces(load_json(json), "a a"), (std::vector<std::string>{"a", " a"}));
  const Tokenizer tokenizer = load_json(json);
  TempDir dir;
  tokenizer.save(dir.path());
  EXPECT_EQ(Tokenizer::load(dir.path()).encode("a a a"), tokenizer.encode("a a a"));
}

TEST(Bpe, LongRunsAreNotQuadratic) {
  // A megabyte that no border cuts; the quadratic algorithm would take hours.
  const Tokenizer tokenizer = load_json(bpe_json({"a", "aa", "aaaa"}, {"a a", "aa aa"}));
  EXPECT_EQ(tokenizer.encode(std::string(1000003, 'a')).size(), 250000U + 2U);
}

TEST(Bpe, SharedBetweenThreads) {
  const Tokenizer tokenizer = load_json(bpe_json({"a", "b", "ab", "ba", "abab"}, {"a b", "b a", "ab ab"}));
  const std::string text = "abbabaabababbaabab";
  const Ids want = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) wrong[t] += tokenizer.encode(text) != want;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace thimble
