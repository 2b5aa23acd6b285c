// An experiment folder with invented scores, for tests of the report: people differ, methods have known strengths, the
// structure is that of a real plan. Nothing here is a result.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "tensor/file.h"
#include "tensor/rng.h"
#include "tools/lab/cell.h"

namespace thimble::lab::testing {

using Json = nlohmann::ordered_json;

inline WorldDials fake_task(const std::string& lamp, int64_t keys, int64_t history, const std::string& key = "topic",
                            double noise = 0) {
  WorldDials d;
  d.task = lamp;
  d.keys = keys;
  d.history = history;
  d.key = key;
  d.noise = noise;
  return d;
}

// How a fake cell scores: probability that a typical person's question is answered well.
using FakeScore = std::function<double(const CellConfig&, int64_t step)>;

// 0 (pure rule) to 1 (pure fact to copy), and how hard the task is at all.
inline double copyable(const WorldDials& d) {
  if (d.task == "LaMP_2" && d.key == "name") return 0.95;
  if (d.task == "LaMP_5") return d.keys > 1 ? 0.45 : 0.9;
  if (d.task == "LaMP_2") return 0.35;
  return 0.15;
}

inline double default_fake_score(const CellConfig& c, int64_t step) {
  const WorldDials& d = c.task.world;
  const double copy = copyable(d), items = static_cast<double>(c.history ? c.history : d.history);
  const double data = std::log2(1 + items) / std::log2(1 + 128.0);
  const double best = (1 - d.noise) * 0.97,
               zero = 0.22 - 0.02 * static_cast<double>(d.keys > 8) + (d.task == "LaMP_3" ? 0.12 : 0);
  const bool large = c.model.find("2m") != std::string::npos;
  double gain = 0;
  const std::string& m = c.method.name;
  const double s = static_cast<double>(step);
  const double learned =
      (1 - copy * 0.55) * data * (1 - std::exp(-s / 18)) - (items < 16 || d.noise > 0 ? 0.0014 * s : 0);
  const double k = c.method.k.empty() ? 4 : static_cast<double>(c.method.k[0]);
  const double recalled = (0.15 + 0.85 * copy) * std::min(1.0, data * 1.15) * (1 - 0.012 * (k - 1)) *
                          (c.method.retriever == "random"    ? 0.2
                           : c.method.retriever == "recency" ? 0.3
                           : c.method.retriever == "dense"   ? 0.9
                                                             : 1);
  if (m == "rag") gain = recalled;
  if (m == "lora") gain = learned * (c.method.rank == 1 ? 0.97 : 1) * (c.method.alpha > 32 ? 0.9 : 1);
  if (m == "full") gain = learned * 0.95;
  if (m == "prompt") gain = learned * 0.35;
  if (m == "prefix") gain = learned * 0.5;
  if (m == "ia3") gain = learned * 0.6;
  if (m == "rag+lora") gain = std::max(recalled, learned) * 0.98 + 0.02;
  double p = zero + (best - zero) * std::clamp(gain + (large ? 0.08 : 0), 0.0, 1.0);
  if (c.compression.find("int2") != std::string::npos) p -= 0.09;
  if (c.compression.find("int4") != std::string::npos) p -= 0.005;
  if (c.compression.find("wanda") != std::string::npos) p -= 0.03;
  return std::clamp(p, 0.02, 0.99);
}

struct FakePlan {
  std::string name = "fake";
  std::vector<std::pair<std::string, std::vector<CellConfig>>> grids;

  // Adds the condition under every seed; each seed has its own people.
  void add(CellConfig c, const std::vector<uint64_t>& seeds) {
    for (uint64_t seed : seeds) {
      c.seed = seed;
      c.task.world.seed = seed;
      c.task_sha256 = "t" + std::to_string(std::hash<std::string>()(c.to_json()["task"].dump()) % 100000);
      grids.back().second.push_back(c);
    }
  }
};

inline CellConfig fake_cell(const WorldDials& task, const std::string& method,
                            const std::string& model = "zoo:llama-0.4m", const std::string& compression = "none") {
  CellConfig c;
  c.model = model;
  c.model_sha256 = "m";
  c.compression = compression;
  c.method.name = method;
  c.task.world = task;
  if (method != "none" && method != "rag") {
    c.steps = {80};
    c.curve = {5, 10, 20, 40, 80};
    c.method.lr = {0.003};
  }
  return c;
}

// A plan as the real ones are: methods x tasks, time, history, rank, compression, memory, retrieval.
inline FakePlan fake_plan(const std::vector<uint64_t>& seeds) {
  FakePlan plan;
  plan.name = "Fake experiment (invented numbers)";
  const std::vector<WorldDials> tasks = {fake_task("LaMP_2", 64, 128, "name"),
                                         fake_task("LaMP_2", 16, 32),
                                         fake_task("LaMP_2", 16, 32, "topic", 0.2),
                                         fake_task("LaMP_3", 1, 32),
                                         fake_task("LaMP_3", 3, 128),
                                         fake_task("LaMP_3", 1, 8),
                                         fake_task("LaMP_5", 1, 8),
                                         fake_task("LaMP_5", 2, 32)};
  plan.grids.push_back({"E1 method x task", {}});
  for (const WorldDials& t : tasks)
    for (const char* m : {"none", "prompt", "prefix", "ia3", "lora", "full", "rag", "rag+lora"})
      plan.add(fake_cell(t, m), seeds);
  plan.grids.push_back({"E2 rank and alpha", {}});
  for (size_t t : {size_t{1}, size_t{4}})
    for (int64_t r : {1, 2, 4, 8, 16, 32})
      for (double a : {4.0, 16.0, 64.0}) {
        CellConfig c = fake_cell(tasks[t], "lora");
        c.curve = {};
        c.method.rank = r;
        c.method.alpha = a;
        plan.add(c, seeds);
      }
  plan.grids.push_back({"E4 history", {}});
  for (size_t t : {size_t{0}, size_t{4}})
    for (const char* m : {"rag", "lora"})
      for (int64_t h : {2, 8, 32, 64, 0}) {
        CellConfig c = fake_cell(tasks[t], m);
        c.history = h;
        plan.add(c, seeds);
      }
  plan.grids.push_back({"E6 compression x history", {}});
  for (const char* compression : {"none", "gptq:int4-g64-asym", "rtn:int2-g32-asym", "wanda:0.5"})
    for (size_t t : {size_t{1}, size_t{3}})
      for (int64_t h : {4, 0}) {
        CellConfig c = fake_cell(tasks[t], "lora", "zoo:llama-0.4m", compression);
        c.history = h;
        plan.add(c, seeds);
      }
  plan.grids.push_back({"E5 memory", {}});
  for (const char* model : {"zoo:llama-0.4m", "zoo:llama-2m"})
    for (const char* compression : {"none", "gptq:int4-g64-asym", "rtn:int8-g64-sym"})
      for (size_t t : {size_t{0}, size_t{3}})
        for (const char* m : {"rag", "lora"}) plan.add(fake_cell(tasks[t], m, model, compression), seeds);
  plan.grids.push_back({"E7 retrieval", {}});
  for (const char* retriever : {"bm25", "dense", "recency", "random"})
    for (int64_t k : {1, 2, 4, 8, 16})
      for (size_t t : {size_t{0}, size_t{1}}) {
        CellConfig c = fake_cell(tasks[t], "rag");
        c.method.retriever = retriever;
        c.method.k = {k};
        plan.add(c, seeds);
      }
  return plan;
}

struct FakeOptions {
  FakeScore score = default_fake_score;
  int64_t questions = 16;
  double person_sd = 0.12;
  std::function<bool(const CellConfig&, size_t index)> missing, failed;
};

// Without the fsync of write_file(): hundreds of small files.
inline void put(const std::string& path, const std::string& content) { std::ofstream(path) << content; }

// Writes plan.json, machine.json and the folders of cells; returns the number of cells.
inline size_t write_fake_experiment(const std::string& dir, const FakePlan& plan, const FakeOptions& options = {}) {
  Json grids = Json::array(), cells = Json::object();
  std::set<std::string> written;
  size_t index = 0;
  for (const auto& [grid, configs] : plan.grids) {
    std::set<std::string> in_grid;
    Json hashes = Json::array();
    for (const CellConfig& c : configs) {
      const std::string hash = c.hash();
      if (in_grid.insert(hash).second) hashes.push_back(hash);
      if (!written.insert(hash).second) continue;
      cells[hash] = c.to_json();
      const size_t i = index++;
      if (options.missing && options.missing(c, i)) continue;
      const std::string folder = dir + "/cells/" + hash;
      make_directories(folder);
      put(folder + "/config.json", c.to_json().dump());
      if (options.failed && options.failed(c, i)) {
        put(folder + "/status.json", Json({{"state", "failed"},
                                           {"reason", "predicted to need 212 MB, more than the device's 64 MB"},
                                           {"error_code", 4}})
                                         .dump());
        continue;
      }
      put(folder + "/status.json", Json({{"state", "done"}}).dump());
      const WorldDials& d = c.task.world;
      // people are the task's and the seed's, so that conditions can be paired
      Philox people(std::hash<std::string>()(c.to_json()["task"].dump()), 7), chance(std::stoull(hash, nullptr, 16), 8);
      std::vector<double> person;
      for (int64_t p = 0; p < d.people; ++p) person.push_back(options.person_sd * people.normal());
      const auto exam = [&](int64_t step) {
        std::vector<double> scores;
        for (int64_t p = 0; p < d.people; ++p) {
          const double probability = std::clamp(options.score(c, step) + person[static_cast<size_t>(p)], 0.0, 1.0);
          int64_t right = 0;
          for (int64_t q = 0; q < options.questions; ++q) right += chance.uniform() < probability;
          scores.push_back(static_cast<double>(right) / static_cast<double>(options.questions));
        }
        return scores;
      };
      const auto mean = [](const std::vector<double>& v) {
        double sum = 0;
        for (double x : v) sum += x;
        return sum / static_cast<double>(v.size());
      };
      const int64_t steps = c.steps.empty() ? 0 : c.steps.back();
      const std::vector<double> scores = exam(steps);
      std::string curve;
      for (int64_t step : c.curve) {
        const std::vector<double> at = step == steps ? scores : exam(step);
        curve += Json({{"step", step},
                       {"samples", step * 8},
                       {"train_loss", 2.0 / std::sqrt(1.0 + static_cast<double>(step))},
                       {"score", mean(at)},
                       {"per_person", at},
                       {"heldout", false}})
                     .dump() +
                 "\n";
      }
      put(folder + "/curve.jsonl", curve);
      const std::string primary = d.task == "LaMP_5" ? "rouge1" : "accuracy";
      Json m = {{"schema", "thimble.cell_metrics/1"},
                {"task", d.task},
                {"primary", primary},
                {"people", d.people},
                {"n", d.people * options.questions}};
      m["metrics"] = {{primary, mean(scores)}};
      if (d.task == "LaMP_3") m["metrics"]["mae"] = 1.6 * (1 - mean(scores));
      m["per_person"] = Json::array();
      for (size_t p = 0; p < scores.size(); ++p)
        m["per_person"].push_back(
            {{"user_id", "u" + std::to_string(p)}, {"n", options.questions}, {"score", scores[p]}});
      const double copy = copyable(d);
      m["baselines"] = Json::object();
      if (d.task != "LaMP_5") {
        m["baselines"]["majority"] = {{primary, 0.21}};
        m["baselines"][d.task == "LaMP_3" ? "user_mean" : "user_majority"] = {{primary, 0.3}};
      }
      m["baselines"]["nearest"] = {{primary, 0.15 + 0.7 * copy * std::min(1.0, static_cast<double>(d.history) / 64)}};
      m["difficulty"] = {{"label_entropy_bits", d.task == "LaMP_5" ? 0.0 : 3.0 - (d.task == "LaMP_3")},
                         {"classes", d.task == "LaMP_3"   ? 5
                                     : d.task == "LaMP_5" ? 240
                                                          : 16},
                         {"majority", d.task == "LaMP_5" ? 0 : 0.21},
                         {"neighbour", m["baselines"]["nearest"][primary]},
                         {"answer_words", d.task == "LaMP_5" ? 4.2 : 1.0},
                         {"base_nll", 1.2 + 0.4 * static_cast<double>(d.keys % 7) + d.noise}};
      m["possible"] = Json::array(
          {{{"metric", primary}, {"query", 0.3}, {"history", (1 - d.noise) * 0.93}, {"latent", 1 - d.noise}}});
      m["chosen"] = {{"k", 4}, {"steps", steps}, {"lr", 0.003}};
      put(folder + "/metrics.json", m.dump());
      const bool large = c.model.find("2m") != std::string::npos;
      const double bits = c.compression.find("int4") != std::string::npos   ? 5.2
                          : c.compression.find("int8") != std::string::npos ? 9.1
                          : c.compression.find("int2") != std::string::npos ? 3.4
                                                                            : 32;
      const double bytes = (large ? 1.85e6 : 0.48e6) * bits / 8;
      put(folder + "/cost.json", Json({{"load_s", bytes * 4e-9},
                                       {"ttft_s", large ? 0.011 : 0.0041},
                                       {"prefill_tok_s", large ? 9100 : 31000},
                                       {"decode_tok_s", large ? 610 : 1720},
                                       {"train_s", steps * 0.09},
                                       {"answer_s", 2.4},
                                       {"samples_per_hour", steps ? 310000 : 0},
                                       {"step_s", steps ? 0.09 : 0},
                                       {"peak_rss_bytes", bytes * 5 + 4e7},
                                       {"model_bytes", bytes},
                                       {"bits_per_weight", bits},
                                       {"adapter_bytes", steps ? 61440 : 0},
                                       {"optimizer_bytes", steps ? 122880 : 0},
                                       {"kv_bytes", 2e6},
                                       {"threads", 2},
                                       {"isa", "avx512"}})
                                     .dump());
    }
    grids.push_back({{"name", grid}, {"factors", Json::array()}, {"cells", hashes}});
  }
  make_directories(dir);
  put(dir + "/plan.json", Json({{"name", plan.name}, {"grids", grids}, {"cells", cells}}).dump());
  put(dir + "/machine.json", Json({{"machine",
                                    {{"cpu", "Imaginary CPU"},
                                     {"threads_available", 2},
                                     {"memory_bytes", 8000000000},
                                     {"os", "Linux"},
                                     {"commit", "0123456789ab"}}}})
                                 .dump());
  return index;
}

}  // namespace thimble::lab::testing
