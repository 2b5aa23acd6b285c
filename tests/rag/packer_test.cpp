// The packer with words as tokens: budgets, shares, roll-over, cuts, and what happens when nothing fits.
#include "rag/packer.h"

#include <gtest/gtest.h>

#include "rag/bm25.h"

namespace thimble {
namespace {

int64_t words(std::string_view text) { return static_cast<int64_t>(split_whitespace(text).size()); }

std::string text_of(int n, const std::string& word) {
  std::string t;
  for (int i = 0; i < n; ++i) t += (i ? " " : "") + word + std::to_string(i);
  return t;
}

// "TEXT is L" with joiner "and" and a full stop in front of the question.
Packing packing(const std::string& question) {
  Packing p;
  p.count = words;
  p.example = [](size_t i, const std::string& text) { return text + " is L" + std::to_string(i); };
  p.compose = [question](const std::vector<std::string>& examples) {
    std::string out;
    for (size_t i = 0; i < examples.size(); ++i) out += (i ? " and " : "") + examples[i];
    return examples.empty() ? question : out + " . " + question;
  };
  return p;
}

TEST(Packer, KeepsEverythingThatFits) {
  const Packed p = pack_prompt({"a b", "c"}, 20, packing("the question"));
  EXPECT_EQ(p.prompt, "a b is L0 and c is L1 . the question");
  EXPECT_EQ(p.tokens, words(p.prompt));
  EXPECT_EQ(p.examples, 2);
  EXPECT_EQ(p.cut, 0);
}

TEST(Packer, CutsToTheShare) {
  // 30 tokens, 4 for the question, 2 joints: 24 for two examples, 12 each, 2 of them for "is L".
  const Packed p = pack_prompt({text_of(30, "a"), text_of(30, "b")}, 30, packing("q q q q"));
  EXPECT_EQ(p.prompt, text_of(10, "a") + " is L0 and " + text_of(10, "b") + " is L1 . q q q q");
  EXPECT_EQ(p.tokens, 30);
  EXPECT_EQ(p.cut, 2);
}

TEST(Packer, UnusedTokensRollOver) {
  const Packed p = pack_prompt({"a", text_of(30, "b")}, 30, packing("q q q q"));
  EXPECT_EQ(p.prompt, "a is L0 and " + text_of(19, "b") + " is L1 . q q q q");
  EXPECT_EQ(p.tokens, 30);
  // Only forward, as in LaMP: the first is cut although the second leaves room.
  const Packed q = pack_prompt({text_of(30, "a"), "b"}, 30, packing("q q q q"));
  EXPECT_EQ(q.prompt, text_of(10, "a") + " is L0 and b is L1 . q q q q");
}

TEST(Packer, DropsTheLeastSimilarWhenTheQuestionIsLong) {
  // 6 tokens are left: less than two joints and two examples of at least three words, but enough for one.
  const std::string question = text_of(24, "q");
  const Packed p = pack_prompt({text_of(9, "a"), text_of(9, "b")}, 30, packing(question));
  EXPECT_EQ(p.prompt, "a0 a1 a2 is L0 . " + question);
  EXPECT_EQ(p.examples, 1);
  EXPECT_EQ(p.tokens, 30);
  EXPECT_FALSE(p.question_cut);
}

TEST(Packer, LampCutsTheQuestionInstead) {
  // 0.6 of 30 are kept for the question: 10 for two examples, 5 each. What is too long loses its end.
  const Packed p = pack_prompt({text_of(9, "a"), text_of(9, "b")}, 30, packing(text_of(24, "q")), PackRule::lamp);
  EXPECT_EQ(p.prompt, "a0 a1 a2 is L0 and b0 b1 b2 is L1 . " + text_of(18, "q"));
  EXPECT_EQ(p.tokens, 30);
  EXPECT_TRUE(p.question_cut);
  // Four examples need 12 + 4 tokens of 20: the reserve drops from 12 to 4.
  const Packed q = pack_prompt({"a b", "c d", "e f", "g h"}, 20, packing(text_of(12, "q")), PackRule::lamp);
  EXPECT_EQ(q.examples, 4);
  EXPECT_EQ(q.prompt, "a is L0 and c is L1 and e is L2 and g is L3 . " + text_of(4, "q"));
  // Nothing fits: the plain question, cut as LaMP's tokenizer would.
  EXPECT_EQ(pack_prompt({"a", "b", "c"}, 4, packing(text_of(6, "q")), PackRule::lamp).prompt, text_of(4, "q"));
  // Short questions: the same as by the other rule.
  for (const int64_t budget : {20, 25, 40})
    EXPECT_EQ(pack_prompt({text_of(9, "a"), "b"}, budget, packing("q q q"), PackRule::lamp).prompt,
              pack_prompt({text_of(9, "a"), "b"}, budget, packing("q q q")).prompt);
}

TEST(Packer, ThePlainQuestionWhenNothingFits) {
  for (const int64_t budget : {0, 1, 5, 8, 10}) {
    const Packed p = pack_prompt({"a", "b"}, budget, packing(text_of(10, "q")));
    EXPECT_EQ(p.prompt, text_of(10, "q"));
    EXPECT_EQ(p.examples, 0);
    EXPECT_EQ(p.tokens, 10);
  }
  EXPECT_EQ(pack_prompt({}, 100, packing("q")).prompt, "q");
}

TEST(Packer, NeverExceedsTheBudgetAndKeepsTheBestExamples) {
  for (int budget = 1; budget < 80; ++budget)
    for (int length = 1; length < 40; length += 3)
      for (size_t k = 1; k < 6; ++k) {
        std::vector<std::string> texts;
        for (size_t i = 0; i < k; ++i) texts.push_back(text_of(int((i * 7 + 3) % 11) + 1, "t"));
        const std::string question = text_of(length, "q");
        const Packed p = pack_prompt(texts, budget, packing(question));
        EXPECT_EQ(p.tokens, words(p.prompt));
        if (p.examples > 0) {
          EXPECT_LE(p.tokens, budget);
          for (int64_t i = 0; i < p.examples; ++i) EXPECT_NE(p.prompt.find("is L" + std::to_string(i)), std::string::npos);
        }
        EXPECT_EQ(p.prompt.substr(p.prompt.size() - question.size()), question);
      }
}

TEST(Packer, CutsAtWords) {
  const auto count = [](std::string_view t) { return static_cast<int64_t>(t.size()); };
  EXPECT_EQ(cut_at_word("red boat sails", 14, count), "red boat sails");
  EXPECT_EQ(cut_at_word("red boat sails", 13, count), "red boat");
  EXPECT_EQ(cut_at_word("red boat sails", 3, count), "red");
  EXPECT_EQ(cut_at_word("red boat sails", 2, count), "");
  EXPECT_EQ(cut_at_word("red", -5, count), "");
  EXPECT_EQ(cut_at_word("", 5, count), "");
  EXPECT_EQ(cut_at_word("   ", 5, count), "");
}

}  // namespace
}  // namespace thimble
