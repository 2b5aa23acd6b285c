// The world: a synthetic population with latent preferences that reads and writes short English-like texts. Because the
// preferences are known, so is the best possible score of every task, and because everyone is drawn from a seed, base
// models can be trained on other people than those that the lab examines.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/lab/task.h"

namespace thimble::lab {

struct WorldDials {
  std::string task = "LaMP_3";
  int64_t people = 24, queries = 16, history = 32;
  // How many different things an answer depends on. LaMP_1 and 2: topics (key: topic) or names (key: name) in use;
  // LaMP_3: attributes per review (1..4); texts: 1 = one fixed style, 2 = the style follows the topic.
  int64_t keys = 0;               // 0: the task's default
  std::string key = "topic";      // LaMP_2: topic (a rule) or name (a fact)
  int64_t classes = 16;           // LaMP_2: tags in the list (2..16)
  double noise = 0;               // probability that an answer is replaced by a random other one
  double person = 0.7;            // share of keys on which the person differs from everybody's habit
  std::string overlap = "lexical";  // lexical, or latent: history and queries share no topic words
  double drift = 0;               // share of the person's rules that change in the middle of the history
  uint64_t seed = 0;              // of the population
};

nlohmann::ordered_json dials_json(const WorldDials& dials);

// Best scores that anyone could reach, per metric: from the query alone, from this history too, and knowing the person.
struct Possible {
  std::string metric;
  double query = 0, history = 0, latent = 0;
};

struct WorldTask {
  TaskData data;
  std::vector<Possible> possible;
};

// Everybody's histories, questions and answers. Deterministic. Throws usage for dials out of range.
TaskData make_people(const WorldDials& dials);
// The same with what can be reached, which takes longer. visible: the best scores from the history are those from its latest
// so many items; 0: from all of it. The data are the same for any of them.
WorldTask make_world(const WorldDials& dials, int64_t visible = 0);
// What TaskData::sha256 of that world is, without making it.
std::string world_sha256(const WorldDials& dials);

}  // namespace thimble::lab
