// What the zoo's base models are trained on: the world's other people. A sequence is one of
// - turns: several questions to one person in a row, each with its answer;
// - packed: one question behind retrieved examples of the person's history, in LaMP's prompt;
// - single: one question, as a personalized model will be asked it;
// - pair: a training pair of LaMP's recipes that is no question (abstracts, tweets).
// Some people are known: their name stands in front, so that personal rules exist as something that weights can hold. The
// others are drawn anew for every sequence. People of the lab come from other random streams and never appear.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "models/tokenizer/tokenizer.h"
#include "tools/lab/task.h"
#include "tools/lab/world/population.h"
#include "train/dataset.h"

namespace thimble::lab {

struct MixOptions {
  // Shares of the tasks, of any sum.
  std::map<std::string, double> tasks = {{"LaMP_1", 0.12}, {"LaMP_2", 0.26}, {"LaMP_3", 0.38}, {"LaMP_4", 0.06},
                                         {"LaMP_5", 0.05}, {"LaMP_6", 0.05}, {"LaMP_7", 0.08}};
  double known = 0.5;                // share of sequences with a known person
  double turns = 0.35, packed = 0.35, single = 0.25, pair = 0.05;
  // Ratings and tags by topic: that weights can hold a person's rule is learned late and suddenly, from many answers of
  // known people.
  double rule_known = 0.7, rule_turns = 0.65, rule_packed = 0.15, rule_single = 0.2;
  double names = 0.4;                // share of tags that depend on names: facts to be copied
  double name_turns = 0.35, name_packed = 0.35, name_single = 0.3;
  double text_weight = 0.1;          // of the loss on everything but answers
  double answer_weight = 1;          // of the loss on an answer's tokens; texts: half of it
  double random_examples = 0.2;      // share of packed sequences with random instead of retrieved examples
  std::string retriever = "bm25";
  std::vector<std::pair<int, double>> k = {{1, 0.2}, {2, 0.2}, {4, 0.4}, {8, 0.2}};
  int64_t ctx = 512;
};

// A question with what is known before it, for gates and held-out losses.
struct MixQuestion {
  std::string prompt;  // with the answer's prefix
  std::string gold;
  std::vector<std::string> labels;
};

class PretrainMix {
 public:
  PretrainMix(Tokenizer tokenizer, MixOptions options, uint64_t seed);

  // Sequence number k: a pure function of (options, seed, k). At most ctx tokens.
  void make(int64_t k, WeightedSequence& out) const;
  // The same as text, answers marked, for people to look at.
  std::string show(int64_t k) const;

  // Questions of the gate, number i of each:
  MixQuestion known_rating(int attributes, int64_t i) const;        // a known person's rating, without examples
  MixQuestion fact(int64_t history, int k, int64_t i, bool* neighbour_right) const;  // a stranger's tag of a name, with k examples
  MixQuestion known_tag(int64_t i) const;                           // a known person's tag of a topic, without examples
  MixQuestion citation(int k, int64_t i) const;                     // a stranger's citation, with k examples
  MixQuestion stranger(const std::string& task, int64_t i) const;   // zero-shot
  const Tokenizer& tokenizer() const { return tokenizer_; }
  const MixOptions& options() const { return options_; }

 private:
  struct Piece {
    std::string text;
    float weight;
  };
  std::vector<Piece> pieces(int64_t k) const;
  Tokenizer tokenizer_;
  MixOptions options_;
  uint64_t seed_;
  std::vector<Rules> known_;  // of the people with a name
};

}  // namespace thimble::lab
