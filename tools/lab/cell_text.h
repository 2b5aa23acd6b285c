// Prompts and answers as token sequences. Prompt and completion are encoded as one text, in training and in examination
// alike: what a completion begins with may join the end of its prompt in one token, and that token then belongs to the
// completion.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/tokenizer/tokenizer.h"
#include "tools/lab/task.h"

namespace thimble::lab {

class PromptCodec {
 public:
  // context: tokens of a sequence at most, virtual ones not counted.
  PromptCodec(const Tokenizer& tokenizer, int64_t context, AnswerFormat format = {});

  // A pair to train on: BOS where the tokenizer adds one, prompt, answer prefix, completion, suffix, EOS where there is
  // one. What does not fit is cut: the prompt from its left, a completion that alone is too long from its right.
  struct Sequence {
    std::vector<int32_t> ids;
    int32_t learn_from = 0;  // the first token of the completion
    bool truncated = false;
  };
  Sequence pair(const std::string& prompt, const std::string& completion) const;

  // A question: the tokens that all answers share, and what follows them for each answer, its suffix included (no EOS).
  // reserve: tokens that must fit behind the prompt besides.
  struct Question {
    std::vector<int32_t> prompt;
    std::vector<std::vector<int32_t>> answers;
    bool truncated = false;
  };
  Question question(const std::string& prompt, const std::vector<std::string>& answers, int64_t reserve) const;

  int64_t count(const std::string& text) const;  // tokens of a text, without special ones
  const Tokenizer& tokenizer() const { return tokenizer_; }
  int64_t context() const { return context_; }
  // Whether this token ends an answer: EOS, or it holds the suffix.
  bool ends_answer(int32_t id) const { return ends_[static_cast<size_t>(id)] != 0; }
  // Answer tokens as text: up to the suffix, stripped of white space.
  std::string answer_text(const std::vector<int32_t>& ids) const;

 private:
  // prompt + answer prefix + answer + suffix for every answer, and how many tokens at the start all share.
  struct Joined {
    std::vector<std::vector<int32_t>> whole;
    size_t common = 0;
  };
  Joined join(const std::string& prompt, const std::vector<std::string>& answers) const;

  const Tokenizer& tokenizer_;
  int64_t context_;
  AnswerFormat format_;
  bool bos_ = false;
  std::vector<char> ends_;
};

}  // namespace thimble::lab
