// Examples and a question in one prompt of limited length, as LaMP packs them (arXiv 2304.11406): the question keeps its
// tokens, at most `reserve` of the budget; the rest is shared equally over the examples, and what one leaves unused rolls
// over to the next. Each example's long text is cut to its share. Where no share is left for some text, the question's
// reserve drops in steps of 0.1 down to 0.
//
// LaMP then cuts the end of what is still too long, which is the question. Here examples are dropped instead, the
// least similar first; a prompt with examples never exceeds the budget, and the plain question is returned as it is.
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

struct Packed {
  std::string prompt;
  int64_t tokens = 0;      // of the prompt
  int64_t examples = 0;    // in it; the best so many of those offered
  int64_t cut = 0;         // of these, with a cut text
  double reserve = 0;      // the share of the budget that was reserved for the question at most
};

// texts: the long text of each example, best first. max_tokens: of the whole prompt.
Packed pack_prompt(const std::vector<std::string>& texts, int64_t max_tokens, const Packing& packing, double reserve = 0.6);

// The longest beginning of `text` that ends at a word and has at most `tokens` tokens; empty where not even one word has.
std::string cut_at_word(const std::string& text, int64_t tokens, const std::function<int64_t(std::string_view)>& count);

}  // namespace thimble
