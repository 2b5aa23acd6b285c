#include "rag/packer.h"

#include <algorithm>
#include <optional>

#include "tensor/error.h"

namespace thimble {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The first k examples within `room` tokens; nothing where a text would vanish.
std::optional<std::vector<std::string>> fill(const std::vector<std::string>& texts, size_t k, int64_t room, const Packing& packing,
                                             int64_t* cut) {
  const int64_t share = room / static_cast<int64_t>(k);
  if (share <= 0) return std::nullopt;
  std::vector<std::string> examples;
  int64_t saved = 0;
  *cut = 0;
  for (size_t i = 0; i < k; ++i) {
    const int64_t allowed = share + saved;
    std::string example = packing.example(i, texts[i]);
    int64_t used = packing.count(example);
    if (used > allowed) {
      const int64_t around = packing.count(packing.example(i, ""));
      const std::string text = cut_at_word(texts[i], allowed - around, packing.count);
      if (text.empty()) return std::nullopt;
      example = packing.example(i, text);
      used = packing.count(example);
      ++*cut;
    }
    saved = allowed - used;
    examples.push_back(std::move(example));
  }
  return examples;
}

}  // namespace

std::string cut_at_word(const std::string& text, int64_t tokens, const std::function<int64_t(std::string_view)>& count) {
  std::vector<size_t> ends;  // of words
  for (size_t i = 1; i <= text.size(); ++i)
    if (!is_space(text[i - 1]) && (i == text.size() || is_space(text[i]))) ends.push_back(i);
  size_t low = 0, high = ends.size();  // words that fit; words that may
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    if (count(std::string_view(text).substr(0, ends[middle - 1])) <= tokens)
      low = middle;
    else
      high = middle - 1;
  }
  return low == 0 ? std::string() : text.substr(0, ends[low - 1]);
}

Packed pack_prompt(const std::vector<std::string>& texts, int64_t max_tokens, const Packing& packing, PackRule rule) {
  THIMBLE_CHECK(packing.count && packing.example && packing.compose);
  const std::string plain = packing.compose({});
  const int64_t question = packing.count(plain);
  // The prompt with the best k examples, beside a question that keeps this many tokens; nothing where they do not fit.
  const auto pack = [&](size_t k, int64_t kept) -> std::optional<Packed> {
    // What joins k examples and the question, measured on examples without any text.
    const int64_t joints = packing.count(packing.compose(std::vector<std::string>(k))) - question;
    Packed packed;
    const auto examples = fill(texts, k, max_tokens - kept - joints, packing, &packed.cut);
    if (!examples) return std::nullopt;
    packed.examples = static_cast<int64_t>(k);
    packed.prompt = packing.compose(*examples);
    packed.tokens = packing.count(packed.prompt);
    return packed;
  };
  Packed packed;
  packed.prompt = plain;
  packed.tokens = question;
  if (rule == PackRule::whole_question) {
    for (size_t k = texts.size(); k > 0; --k)
      if (const auto fitting = pack(k, question); fitting && fitting->tokens <= max_tokens) return *fitting;
    return packed;
  }
  for (int tenths = 6; tenths >= 0 && !texts.empty(); --tenths)
    if (const auto fitting = pack(texts.size(), std::min(question, max_tokens * tenths / 10))) {
      packed = *fitting;
      break;
    }
  if (packed.tokens > max_tokens) {
    packed.prompt = cut_at_word(packed.prompt, max_tokens, packing.count);
    packed.tokens = packing.count(packed.prompt);
    packed.question_cut = true;
  }
  return packed;
}

}  // namespace thimble
