// How the base models that ship with thimble are made: a recipe is a configuration, a mix of the world's texts, a training
// run, and the gate that it must pass. `thimble pretrain --recipe FILE --out DIR` follows it from nothing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "models/transformer.h"
#include "tools/lab/world/mix.h"
#include "train/trainer.h"

namespace thimble::lab {

// What a base must be able to do before conclusions may be drawn from it: without rules of known people in its weights,
// and without copying from an example, learning and retrieval would be compared on a model that can do neither.
struct GateLimits {
  double known_rating = 0.95;       // accuracy on known people's ratings, at one and at three attributes
  double fact_below_neighbour = 0.03;  // how far copying from one example may fall short of the nearest neighbour
  double known_tag = 0.8;           // accuracy on known people's tags of topics
};

struct GateScores {
  double known_rating_1 = 0, known_rating_3 = 0, known_tag = 0, fact = 0, neighbour = 0;
  double citation = 0;              // with four examples; reported, not required
  double stranger_rating = 0, stranger_tag = 0;  // zero-shot; reported
  int64_t questions = 0;
  bool passes(const GateLimits& limits) const;
  nlohmann::ordered_json to_json() const;
  std::string words() const;
};

struct ZooRecipe {
  std::string name;
  nlohmann::ordered_json config;    // config.json in Hugging Face's keys; vocab_size is the tokenizer's
  MixOptions mix;
  uint64_t seed = 1;
  std::string precision = "bf16";
  TrainOptions train;               // without out
  GateLimits gate, decay_gate;      // of the finished model; before the learning rate may decay
  int64_t gate_questions = 256, held_out = 128;
  std::string sha256;               // of the file
};

// Errors (input) name file and field; unknown keys are refused.
ZooRecipe load_recipe(const std::string& path);

// Answers `questions` of each kind with the model as it is.
GateScores measure_gate(Transformer& transformer, Context& ctx, const PretrainMix& mix, int64_t questions);

// Sequences that training never draws.
Dataset held_out_sequences(const PretrainMix& mix, int64_t n);

}  // namespace thimble::lab
