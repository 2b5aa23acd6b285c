// Time in proportion to the length on texts that make careless tokenizers quadratic.
#include <ctime>

#include "models/tokenizer/bpe_trainer.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

double best_time(const Tokenizer& t, const std::string& text, int times) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const std::clock_t start = std::clock();  // of the processor: others may be at work
    t.encode(text);
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

void expect_linear(const Tokenizer& t, const std::string& name, bool round_trip) {
  for (const char* unit :
       {"a", " ", "\n", "ab", " a", " \n", "\t ", "\xC3\xA9", "\xF0\x9F\x98\x80", "'", "1", "<", "aA", "\xCC\x81"}) {
    const auto repeated = [&](size_t bytes) {
      std::string text;
      while (text.size() < bytes) text += unit;
      return text;
    };
    const std::string small = repeated(20000), large = repeated(1000000);
    const double before = best_time(t, small, 3), after = best_time(t, large, 1);
    // Linear is 50, quadratic 2500; caches and a busy machine cost their share.
    EXPECT_LT(after, 300 * before + 0.05) << name << " on a million bytes of " << Json(unit).dump();
    if (round_trip) {
      EXPECT_TRUE(t.decode(t.encode(large), {true}) == large) << name << " " << Json(unit).dump();
    }
  }
}

TEST(Linear, TrainedVocabulary) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "aaaa abab aaab    \n\n 1111 \xC3\xA9\xC3\xA9 '' << aAaA\t \n";
  BpeTrainerOptions options;
  options.vocab_size = 400;
  expect_linear(train_bpe(text, options), "trained", true);
}

TEST(Linear, PublishedVocabularies) {
  SKIP_WITHOUT("data/tokenizers");
  SKIP_WITHOUT("oracle/tok");
  const auto load = [](const char* name) { return Tokenizer::load(shared_path(name)); };
  expect_linear(load("data/tokenizers/gpt2/tokenizer.json"), "gpt2", true);
  expect_linear(load("oracle/tok/llama3_trunc12k"), "llama3", true);
  expect_linear(load("data/tokenizers/llama2/tokenizer.json"), "llama2", true);
  expect_linear(load("data/tokenizers/llama2/tokenizer.model"), "llama2.model", true);
  expect_linear(load("data/tokenizers/gpt_neox_20b/20B_tokenizer.json"), "neox", false);
  expect_linear(load("oracle/tok/bert_uncased"), "bert", false);
}

TEST(Linear, UnigramAndWordPiece) {
  Json json = {{"version", "1.0"}, {"model", {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", Json::array()}}}};
  for (const auto& [piece, score] :
       {std::pair("<unk>", 0), {"a", -2}, {"aa", -3}, {"aaaa", -4}, {" ", -2}, {"ab", -2}}) {
    json["model"]["vocab"].push_back(Json::array({piece, score}));
  }
  expect_linear(load_json(json), "unigram", false);
  json = bpe_json({"?", "a", "##a", "##aa", "##aaaa", "##b"});
  json["model"] = {{"type", "WordPiece"},
                   {"unk_token", "?"},
                   {"max_input_chars_per_word", 10000000},
                   {"vocab", json["model"]["vocab"]}};
  expect_linear(load_json(json), "wordpiece", false);
}

}  // namespace
}  // namespace thimble
