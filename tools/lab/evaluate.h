// Questions answered by a model, many in one pass: labels by the likelihood of each candidate behind the prompt, which
// is read once; texts by greedy decoding. Questions of different people share a batch, each with its person's adapter,
// and an answer does not depend on the others in it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/lab/cell_text.h"
#include "tools/lab/cell_workers.h"

namespace thimble::lab {

struct Question {
  int64_t person = 0;
  std::vector<int32_t> prompt;                // tokens
  std::vector<std::string> labels;            // candidates; empty: the answer is generated
  std::vector<std::vector<int32_t>> choices;  // tokens that are scored: of each label; or of the gold answer only
  int64_t gold = -1;                          // the choice that is the gold answer; -1: none is
  bool generate = false;
  bool truncated = false;  // the prompt lost tokens from its left
};

struct Answer {
  std::string text;
  std::vector<double> logprobs;  // in nats, of each choice: the sum over its tokens, the closing quote included
};

struct AnswerOptions {
  int64_t max_new_tokens = 32;  // of a generated answer
  int64_t batch_rows = 2048;    // prompt tokens of one pass at most; at least one question
  int64_t cache_bytes = int64_t{64} << 20;
};

// Answers questions[begin, end) into answers (of the same index). adapters: by person, null or missing: the base.
void answer_questions(Worker& worker, const PromptCodec& codec, const std::vector<Question>& questions, size_t begin,
                      size_t end, const std::vector<Adapter*>& adapters, const AnswerOptions& options,
                      std::vector<Answer>& answers);

}  // namespace thimble::lab
