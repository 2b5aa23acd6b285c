// The trainer against a slow twin that recounts everything after each merge; round trips; what is saved.
#include "models/tokenizer/bpe_trainer.h"

#include <map>

#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

// Words of lower-case letters only, so that a word is a space and its letters.
std::string generated_text(uint64_t seed, size_t words) {
  Random random(seed);
  std::vector<std::string> stems;
  for (int i = 0; i < 40; ++i) {
    std::string stem;
    for (size_t n = 2 + random.below(6); n > 0; --n) stem += static_cast<char>('a' + random.below(9));
    stems.push_back(stem);
  }
  std::string text;
  for (size_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    text += stems[std::min(random.below(40), random.below(40))];
    if (random.below(3) == 0) text += stems[random.below(40)].substr(0, 2);
  }
  return text;
}

// Pieces in the order they are learnt, by full recounts.
std::vector<std::string> naive_training(const std::string& text, size_t merges, int64_t min_frequency) {
  std::map<std::vector<std::string>, int64_t> words;
  for (size_t from = 0; from <= text.size();) {
    const size_t end = std::min(text.find(' ', from), text.size());
    std::vector<std::string> symbols = {" "};
    for (size_t i = from; i < end; ++i) symbols.emplace_back(1, text[i]);
    ++words[symbols];
    from = end + 1;
  }
  std::vector<std::string> learnt;
  while (learnt.size() < merges) {
    std::map<std::pair<std::string, std::string>, int64_t> counts;  // ordered, so the first of equals is the smallest
    for (const auto& [word, count] : words) {
      for (size_t i = 1; i < word.size(); ++i) counts[{word[i - 1], word[i]}] += count;
    }
    std::pair<std::string, std::string> best;
    int64_t most = 0;
    for (const auto& [pair, count] : counts) {
      if (count > most) most = count, best = pair;
    }
    if (most < min_frequency) break;
    const std::string piece = best.first + best.second;
    if (std::find(learnt.begin(), learnt.end(), piece) == learnt.end()) learnt.push_back(piece);
    std::map<std::vector<std::string>, int64_t> next;
    for (const auto& [word, count] : words) {
      std::vector<std::string> merged;
      for (size_t i = 0; i < word.size(); ++i) {
        if (i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second) {
          merged.push_back(piece);
          ++i;
        } else {
          merged.push_back(word[i]);
        }
      }
      next[merged] += count;
    }
    words.swap(next);
  }
  return learnt;
}

TEST(Trainer, LearnsWhatFullRecountsLearn) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const std::string text = generated_text(seed, 600);
    BpeTrainerOptions options;
    options.vocab_size = 259 + 10 + 120;  // ten characters: nine letters and the space
    const Tokenizer t = train_bpe(text, options);
    const std::vector<std::string> want = naive_training(text, 120, options.min_frequency);
    std::vector<std::string> got;
    for (int32_t id = 269; id < t.vocab_size(); ++id) got.push_back(t.token(id));
    EXPECT_EQ(got, want) << "seed " << seed;
  }
}

TEST(Trainer, RoundTripsAnyText) {
  const Tokenizer t = train_bpe(generated_text(1, 2000) + " don't 12 34\n\nthe end. \xC3\xA9\xE2\x96\x81", {});
  Random random(5);
  for (int round = 0; round < 400; ++round) {
    std::string text;
    for (size_t n = random.below(30); n > 0; --n) {
      switch (random.below(6)) {
        case 0: text += ' '; break;
        case 1: text += '\n'; break;
        case 2: text += static_cast<char>(random.below(128)); break;
        case 3: text += "\xE2\x96\x81"; break;
        case 4: text += random.below(2) == 0 ? "<s>" : "<0x41>"; break;
        default: {
          char32_t c = static_cast<char32_t>(random.below(0x110000));
          if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;
          if (c < 0x800) {
            if (c < 0x80) c += 0x80;
            text += static_cast<char>(0xC0 | c >> 6);
          } else if (c < 0x10000) {
            text += static_cast<char>(0xE0 | c >> 12);
            text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
          } else {
            text += static_cast<char>(0xF0 | c >> 18);
            text += static_cast<char>(0x80 | (c >> 12 & 0x3F));
            text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
          }
          text += static_cast<char>(0x80 | (c & 0x3F));
        }
      }
    }
    ASSERT_EQ(t.decode(t.encode(text), {true}), text) << Json(text).dump();
    ASSERT_EQ(t.decode(t.encode(text, {false, false})), text) << Json(text).dump();
  }
}

TEST(Trainer, SavedFileIsTheSameTokenizer) {
  const std::string text = generated_text(2, 3000);
  BpeTrainerOptions options;
  options.vocab_size = 600;
  const Tokenizer t = train_bpe(text, options);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_TRUE(t.is_special(0) && t.is_special(1) && t.is_special(2));
  TempDir dir;
  t.save(dir.path());
  const Tokenizer copy = Tokenizer::load(dir.path());
  EXPECT_EQ(copy.vocab_size(), t.vocab_size());
  EXPECT_EQ(copy.encode(text), t.encode(text));
  EXPECT_EQ(copy.encode(text)[0], 1);
  EXPECT_EQ(copy.eos_id(), 2);
  TempDir again;
  train_bpe(text, options).save(again.path());
  EXPECT_EQ(read_file(dir.file("tokenizer.json")), read_file(again.file("tokenizer.json"))) << "deterministic";
}

TEST(Trainer, MergesStayInsideWordsAndNeverSpellASpecialToken) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "end. The s's dog's unk 123abc\n";
  BpeTrainerOptions options;
  options.specials = {"unk", "<s>", "</s>"};
  const Tokenizer t = train_bpe(text, options);
  for (int32_t id = 259; id < t.vocab_size(); ++id) {
    const std::string& piece = t.token(id);
    EXPECT_EQ(piece.find(' ', 1), std::string::npos) << piece;
    EXPECT_TRUE(piece.find('\n') == std::string::npos || piece == "\n") << piece;
    EXPECT_TRUE(piece.find('.') == std::string::npos || piece == ".") << piece;
    EXPECT_TRUE(piece.find('3') == std::string::npos || piece.find('a') == std::string::npos) << piece;
    EXPECT_NE(piece, "unk");
  }
  EXPECT_GE(t.find_token("'s"), 0);
  EXPECT_GE(t.find_token(" The"), 0);
}

TEST(Trainer, RefusesWhatCannotWork) {
  error_of([] { train_bpe(""); }, ErrorCode::input);
  error_of([] { train_bpe("a\xFF"); }, ErrorCode::input);
  BpeTrainerOptions options;
  options.vocab_size = 259;
  error_of([&] { train_bpe("abc", options); }, ErrorCode::usage);
  options.vocab_size = 300;
  options.specials = {"<unk>", "<s>"};
  error_of([&] { train_bpe("abc", options); }, ErrorCode::usage);
  options.specials = {"<unk>", "<s>", "<s>"};
  error_of([&] { train_bpe("abc", options); }, ErrorCode::usage);
}

TEST(Trainer, RealText) {
  SKIP_WITHOUT("data/text/tinyshakespeare");
  const std::string text = read_file(shared_path("data/text/tinyshakespeare/input.txt"));
  const Tokenizer t = train_bpe(text);
  EXPECT_EQ(t.vocab_size(), 4096);
  const Ids ids = t.encode(text);
  EXPECT_TRUE(t.decode(ids, {true}) == text);
  EXPECT_GT(static_cast<double>(text.size()) / static_cast<double>(ids.size()), 3.0) << "bytes per token";
}

}  // namespace
}  // namespace thimble
