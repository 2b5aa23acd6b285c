// An experiment folder in memory: cells, the conditions that they repeat under several seeds, and scores that can be
// paired person by person.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/lab/cell.h"
#include "tools/lab/stats.h"

namespace thimble::lab {

// Answers at one step of learning, on the queries.
struct CurvePoint {
  int64_t step = 0;
  double train_loss = 0, score = 0;
  std::vector<double> per_person;
};

struct Cell {
  enum class State : uint8_t { missing, done, failed };
  std::string hash;
  CellConfig config;
  std::vector<std::string> grids;  // names
  State state = State::missing;
  std::string reason, error_code;        // of a failure
  nlohmann::ordered_json metrics, cost;  // of a done cell; cost is null where it was not recorded
  std::vector<std::string> users;        // of a done cell
  std::vector<double> scores;            // mean unit score of each person, 0..1
  std::vector<CurvePoint> curve;
};

struct Grid {
  std::string name;
  std::vector<std::string> factors;
  std::vector<size_t> cells;  // of Experiment::cells
};

// One condition's (or a difference's) numbers per person in every repetition.
struct Scores {
  struct Run {
    std::string people;  // equal where the same people are examined (the task's hash)
    std::vector<std::string> users;
    std::vector<double> values;
  };
  std::map<std::string, Run> runs;  // by repetition

  Sample sample() const;
};

// Cells that differ in nothing but the seed (and in how often they look at the queries on the way).
struct Condition {
  std::string task;                         // of Experiment::tasks
  CellConfig config;                        // of the first cell
  std::map<std::string, const Cell*> runs;  // by repetition

  Scores scores() const;
};

struct TaskInfo {
  std::string key, label, lamp,
      title;                      // label: short and unique in the experiment; lamp: LaMP_3; title: product rating
  const Cell* example = nullptr;  // a done cell of it, or null
};

struct Experiment {
  std::string dir, name;
  nlohmann::ordered_json machine, device;                       // null where unknown
  std::vector<Cell> cells;                                      // by hash
  std::vector<std::pair<std::string, std::string>> infeasible;  // hash and reason of cells that the device cannot run
  std::vector<Grid> grids;
  std::vector<Condition> conditions;                // of done cells, in order of their first cell in the grids
  std::map<std::string, TaskInfo> tasks;            // by key
  std::map<std::string, std::string> compressions;  // "gptq:int4-g64-asym" to "gptq int4" where that names only one

  int64_t count(Cell::State state) const;
};

// Throws input, naming file and field. A cell of the plan without a folder, or without status.json, is missing.
Experiment read_experiment(const std::string& dir);

// The configuration as text without the named parts, so that conditions which differ only in these fall together.
// Parts: model, compression, method, rank, alpha, retriever, k, n_virtual, lr, history, steps. Seeds and curve are
// always left out.
std::string context_key(const CellConfig& config, const std::vector<std::string>& without);

bool is_learning(const std::string& method);  // lora, full, prompt, prefix, ia3: parameters only
// History items that the condition may use; 0 (all) becomes a large number.
int64_t history_order(int64_t history);

// Values of a person under the variant that scored best on the other half of the people (every second one of the list),
// so that choosing among variants cannot flatter them. Only repetitions that every variant has.
struct CrossFit {
  Scores scores;
  std::vector<size_t> chosen;  // for either half
};
std::optional<CrossFit> cross_fit(const std::vector<Scores>& variants);

// a - b, for people and repetitions in both; nothing when there are none.
std::optional<Scores> difference(const Scores& a, const Scores& b);
// Mean of several, for people and repetitions in all.
std::optional<Scores> average(const std::vector<Scores>& parts);

}  // namespace thimble::lab
