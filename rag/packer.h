// Examples and a question in one prompt of limited length, as LaMP packs them (arXiv 2304.11406): what the question
// leaves of the budget is shared equally over the examples, each example's long text is cut to its share, and what one
// leaves unused rolls over to the next ones.
//
// LaMP (PackRule::lamp) reserves at most 0.6 of the budget for the question; where some example then has no room for any
// of its text, the share drops in steps of 0.1 down to 0, and the end of what is too long, the question, is cut off.
// A cut question is a bad question, so the default (PackRule::whole_question) keeps it whole and leaves out the least
// similar examples until the rest fit. For questions of at most 0.6 of the budget the two differ only where LaMP would cut
// the question.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace thimble {

struct Packing {
  // Tokens of a text. Called a few times per example.
  std::function<int64_t(std::string_view text)> count;
  // Example number i with this text (whole or cut) in the place of its long one.
  std::function<std::string(size_t i, const std::string& text)> example;
  // Examples, best first, and the question. No examples: the question alone.
  std::function<std::string(const std::vector<std::string>& examples)> compose;
};

enum class PackRule { whole_question, lamp };

struct Packed {
  std::string prompt;
  int64_t tokens = 0;      // of the prompt
  int64_t examples = 0;    // in it; the best so many of those offered
  int64_t cut = 0;         // of these, with a cut text
  bool question_cut = false;  // PackRule::lamp only
};

// texts: the long text of each example, best first. max_tokens: of the whole prompt. Where no example fits: the plain
// question, whole even when it alone exceeds the budget (lamp: cut).
Packed pack_prompt(const std::vector<std::string>& texts, int64_t max_tokens, const Packing& packing,
                   PackRule rule = PackRule::whole_question);

// The longest beginning of `text` that ends at a word and has at most `tokens` tokens; empty where not even one word has.
std::string cut_at_word(const std::string& text, int64_t tokens, const std::function<int64_t(std::string_view)>& count);

}  // namespace thimble
