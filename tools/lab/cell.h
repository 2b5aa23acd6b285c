// A cell is one condition of an experiment: a model, a compression, a method, a history size, a budget, a task and a seed.
// Everyone of its people is personalized and examined in it. Its configuration is resolved (nothing is left to defaults
// of the program) and names it: the cell's folder is the hash of it.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/arena.h"
#include "tools/lab/world.h"

namespace thimble::lab {

// Lists with more than one entry are candidates: the cell chooses among them on held-out history (the latest quarter of
// each person's), never on the queries, once for all its people, and says what it chose.
struct MethodSpec {
  std::string name = "none";     // a row of all_methods(): none, rag, lora, full, prompt, prefix, ia3, rag+lora
  int64_t rank = 8;              // lora
  double alpha = 16;             // lora
  double dropout = 0;            // lora
  std::string targets = "all-linear";  // lora
  int64_t n_virtual = 8;         // prompt, prefix
  std::vector<double> lr;        // empty: the method's default
  int64_t batch = 8;             // pairs per step and person
  std::string retriever = "bm25";  // rag: bm25, bm25_okapi, dense, recency, random
  std::string embedder;          // rag with dense: the model that makes vectors; empty: the base itself
  std::string embedder_sha256;
  std::vector<int64_t> k = {4};  // rag: examples in the prompt
  int64_t prompt_tokens = 448;   // rag: budget of the packer

  bool operator==(const MethodSpec&) const = default;
};

struct TaskSpec {
  bool is_world = true;
  WorldDials world;              // is_world
  std::string lamp_dir;          // else
  std::string lamp_task, split = "time", part = "dev";
  int64_t people = 0;            // of a LaMP directory: the first so many; 0: all
  int64_t queries = 0;           // per person at most; 0: all
};

struct CellConfig {
  std::string model;             // "zoo:llama-0.4m" or a path
  std::string model_sha256;      // of config and weights
  std::string compression = "none";  // a row of all_compressions() with its spec: "gptq:int4-g64-asym", "wanda:0.5"
  MethodSpec method;
  int64_t history = 0;           // the latest so many items; 0: all
  std::vector<int64_t> steps;    // optimizer steps of a learning method; empty for the others
  std::vector<int64_t> curve;    // steps at which the queries are answered as well, for score over time
  TaskSpec task;
  std::string task_sha256;
  uint64_t seed = 0;
  std::string precision = "f32";
  int64_t ram = 0;               // bytes; 0: no limit

  nlohmann::ordered_json to_json() const;
  static CellConfig from_json(const nlohmann::ordered_json& json);
  std::string hash() const;      // 16 hexadecimal digits: the name of its folder
};

struct CellEnvironment {
  const KernelTable* kernels = nullptr;
  int threads = 1;
  MemoryBudget* budget = nullptr;
  std::function<void(const std::string& phase, int64_t done, int64_t total)> progress;
};

// What a cell publishes. All but cost is a pure function of the configuration.
struct CellResult {
  // {id, user_id, gold, pred, scores, seed}
  std::vector<nlohmann::ordered_json> predictions;
  // {step, samples, train_loss, metric, score, per_person: [..]}: on the queries; {step, heldout_score, ...} where the cell chose
  std::vector<nlohmann::ordered_json> curve;
  nlohmann::ordered_json metrics, cost;
};

CellResult run_cell(const CellConfig& config, const CellEnvironment& environment);

// Seconds of one optimizer step of this cell (all people), and predicted peak bytes, without running it to the end.
struct CellEstimate {
  int64_t peak_bytes = 0;    // of the process
  int64_t budget_bytes = 0;  // of these what a MemoryBudget counts, and what RAM limits: not the program itself
  double load_s = 0, step_s = 0, answer_s = 0;  // measured on a few steps and queries
  double total_s() const;
  int64_t steps = 0, queries = 0;
};
CellEstimate estimate_cell(const CellConfig& config, const CellEnvironment& environment);

}  // namespace thimble::lab
