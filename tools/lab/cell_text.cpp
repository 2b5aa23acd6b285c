#include "tools/lab/cell_text.h"

#include <algorithm>

#include "tensor/error.h"

namespace thimble::lab {
namespace {

constexpr EncodeOptions kPlain{false, false};

std::string stripped(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? std::string() : text.substr(first, last + 1 - first);
}

size_t shared_tokens(const std::vector<int32_t>& a, const std::vector<int32_t>& b, size_t limit) {
  size_t n = 0;
  while (n < limit && n < a.size() && n < b.size() && a[n] == b[n]) ++n;
  return n;
}

}  // namespace

PromptCodec::PromptCodec(const Tokenizer& tokenizer, int64_t context, AnswerFormat format)
    : tokenizer_(tokenizer), context_(context), format_(std::move(format)) {
  if (tokenizer.bos_id() >= 0) {
    const std::vector<int32_t> ids = tokenizer.encode("a");
    bos_ = !ids.empty() && ids.front() == tokenizer.bos_id();
  }
  ends_.assign(static_cast<size_t>(tokenizer.vocab_size()), 0);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (id == tokenizer.eos_id() || tokenizer.decode({id}).find(format_.suffix) != std::string::npos)
      ends_[static_cast<size_t>(id)] = 1;
}

int64_t PromptCodec::count(const std::string& text) const {
  return static_cast<int64_t>(tokenizer_.encode(text, kPlain).size());
}

PromptCodec::Joined PromptCodec::join(const std::string& prompt, const std::vector<std::string>& answers) const {
  Joined j;
  const std::vector<int32_t> alone = tokenizer_.encode(prompt + format_.prefix, kPlain);
  j.common = alone.size();
  // Where the answer prefix starts tokens of its own, the prompt need not be encoded again for every answer.
  const std::vector<int32_t> prefix = tokenizer_.encode(format_.prefix, kPlain);
  const bool separate =
      answers.size() > 1 && prefix.size() < alone.size() &&
      std::equal(prefix.begin(), prefix.end(), alone.end() - static_cast<std::ptrdiff_t>(prefix.size()));
  for (const std::string& answer : answers) {
    std::vector<int32_t> whole;
    if (separate) {
      whole.assign(alone.begin(), alone.end() - static_cast<std::ptrdiff_t>(prefix.size()));
      const std::vector<int32_t> tail = tokenizer_.encode(format_.prefix + answer + format_.suffix, kPlain);
      whole.insert(whole.end(), tail.begin(), tail.end());
    } else {
      whole = tokenizer_.encode(prompt + format_.prefix + answer + format_.suffix, kPlain);
    }
    j.common = shared_tokens(alone, whole, j.common);
    if (j.common == whole.size() && j.common > 0) --j.common;  // an answer has at least one token
    j.whole.push_back(std::move(whole));
  }
  return j;
}

PromptCodec::Sequence PromptCodec::pair(const std::string& prompt, const std::string& completion) const {
  const Joined j = join(prompt, {completion});
  Sequence s;
  const std::vector<int32_t>& whole = j.whole[0];
  const bool eos = tokenizer_.eos_id() >= 0;
  const int64_t fixed = (bos_ ? 1 : 0) + (eos ? 1 : 0);
  const int64_t answer = static_cast<int64_t>(whole.size() - j.common), room = context_ - fixed;
  const int64_t keep_answer = std::min(answer, room - 1);
  const int64_t keep_prompt = std::min(static_cast<int64_t>(j.common), room - keep_answer);
  s.truncated = keep_answer < answer || keep_prompt < static_cast<int64_t>(j.common);
  if (bos_) s.ids.push_back(tokenizer_.bos_id());
  const auto from = whole.begin() + static_cast<std::ptrdiff_t>(j.common);
  s.ids.insert(s.ids.end(), from - static_cast<std::ptrdiff_t>(keep_prompt), from);
  s.learn_from = static_cast<int32_t>(s.ids.size());
  s.ids.insert(s.ids.end(), from, from + static_cast<std::ptrdiff_t>(keep_answer));
  if (eos) s.ids.push_back(tokenizer_.eos_id());
  return s;
}

PromptCodec::Question PromptCodec::question(const std::string& prompt, const std::vector<std::string>& answers,
                                            int64_t reserve) const {
  const Joined j = join(prompt, answers);
  Question q;
  int64_t longest = reserve;
  const std::vector<int32_t> alone =
      answers.empty() ? tokenizer_.encode(prompt + format_.prefix, kPlain) : std::vector<int32_t>();
  const std::vector<int32_t>& first = answers.empty() ? alone : j.whole[0];
  for (const std::vector<int32_t>& whole : j.whole) {
    q.answers.emplace_back(whole.begin() + static_cast<std::ptrdiff_t>(j.common), whole.end());
    longest = std::max(longest, static_cast<int64_t>(q.answers.back().size()));
  }
  const int64_t room = context_ - (bos_ ? 1 : 0);
  if (longest > room - 1) {
    longest = room - 1;
    for (std::vector<int32_t>& a : q.answers)
      if (static_cast<int64_t>(a.size()) > longest) a.resize(static_cast<size_t>(longest));
    q.truncated = true;
  }
  const int64_t keep = std::min(static_cast<int64_t>(j.common), room - longest);
  q.truncated = q.truncated || keep < static_cast<int64_t>(j.common);
  if (bos_) q.prompt.push_back(tokenizer_.bos_id());
  const auto end = first.begin() + static_cast<std::ptrdiff_t>(j.common);
  q.prompt.insert(q.prompt.end(), end - static_cast<std::ptrdiff_t>(keep), end);
  return q;
}

std::string PromptCodec::answer_text(const std::vector<int32_t>& ids) const {
  std::vector<int32_t> kept;
  for (const int32_t id : ids)
    if (id != tokenizer_.eos_id()) kept.push_back(id);
  const std::string text = tokenizer_.decode(kept);
  return stripped(text.substr(0, text.find(format_.suffix)));
}

}  // namespace thimble::lab
