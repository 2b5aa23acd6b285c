// The report as data: summary, verdicts, charts, tables.
#include "tools/lab/report_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tools/dashboard/text.h"
#include "tools/lab/stats.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;
using dashboard::plural;

Json finite(double x) { return std::isfinite(x) ? Json(x) : Json(); }

const Json* find_path(const Json& json, const std::vector<std::string>& path) {
  const Json* at = &json;
  for (const std::string& key : path) {
    if (!at->is_object() || !at->contains(key)) return nullptr;
    at = &(*at)[key];
  }
  return at;
}

std::string cell_label(const Experiment& e, const CellConfig& c) {
  std::string task = c.task.is_world ? c.task.world.task : c.task.lamp_task;
  Json key = c.to_json()["task"];
  if (key.contains("world")) key["world"].erase("seed");
  const auto at = e.tasks.find(key.dump());
  if (at != e.tasks.end()) task = at->second.label;
  return fmt::format("{} · {} · {}{}", task, method_label(c.method), model_label(c.model),
                     c.compression == "none" ? "" : " " + c.compression);
}

Json effect_json(const Effect& e) {
  return {{"mean", finite(e.mean)}, {"lo", finite(e.lo)}, {"hi", finite(e.hi)}, {"p", e.p},
          {"d_z", finite(e.d_z)},   {"people", e.people}, {"seeds", e.seeds}};
}

Json verdict_json(const Verdict& v) {
  Json j = {{"id", v.id},
            {"claim", v.claim},
            {"verdict", verdict_name(v.state)},
            {"headline", v.headline},
            {"sentence", v.sentence},
            {"contrast", v.contrast},
            {"rule", v.rule},
            {"margin_points", kMargin}};
  j["rows"] = Json::array();
  for (const Comparison& r : v.rows)
    j["rows"].push_back({{"group", r.group},
                         {"label", r.label},
                         {"first", r.first},
                         {"second", r.second},
                         {"first_mean", finite(r.first_mean)},
                         {"second_mean", finite(r.second_mean)},
                         {"effect", effect_json(r.effect)},
                         {"lo_family", finite(r.lo_family)},
                         {"hi_family", finite(r.hi_family)},
                         {"p_holm", r.p_holm},
                         {"decides", r.decides},
                         {"reading", r.reading},
                         {"cells", r.cells}});
  j["notes"] = v.notes;
  for (const auto& [key, value] : v.extra.items()) j[key] = value;
  return j;
}

// Columns: key in cost.json, heading, kind of number ("bytes", "seconds", "number"), and which direction is better.
struct CostColumn {
  const char *key, *label, *kind, *better;
};

Json cost_table(const Experiment& e, const std::vector<CostColumn>& columns, bool by_method) {
  std::map<std::vector<std::string>, std::vector<const Cell*>> groups;
  for (const Cell& c : e.cells) {
    if (c.state != Cell::State::done || !c.cost.is_object()) continue;
    std::vector<std::string> key = {model_label(c.config.model), e.compressions.at(c.config.compression)};
    if (by_method) {
      if (!is_learning(c.config.method.name) && c.config.method.name != "rag+lora") continue;
      key.push_back(method_title(c.config.method.name));
    }
    groups[key].push_back(&c);
  }
  Json table = {{"columns", Json::array()}, {"rows", Json::array()}};
  for (const CostColumn& c : columns)
    table["columns"].push_back({{"key", c.key}, {"label", c.label}, {"kind", c.kind}, {"better", c.better}});
  for (const auto& [key, cells] : groups) {
    Json row = {{"model", key[0]}, {"compression", key[1]}};
    if (by_method) row["method"] = key[2];
    row["cells"] = cells.size();
    for (const CostColumn& c : columns) {
      std::vector<double> values;
      for (const Cell* cell : cells)
        if (cell->cost.contains(c.key) && cell->cost[c.key].is_number()) {
          const double x = cell->cost[c.key];
          if (std::isfinite(x) && x > 0) values.push_back(x);
        }
      row[c.key] = finite(median(values));
    }
    table["rows"].push_back(std::move(row));
  }
  return table;
}

Json task_table(const Experiment& e) {
  Json rows = Json::array();
  for (const auto& entry : e.tasks) {
    const TaskInfo& t = entry.second;
    std::vector<const Cell*> cells;
    std::set<std::string> replicates;
    for (const Condition& c : e.conditions)
      if (c.task == t.key)
        for (const auto& run : c.runs) {
          cells.push_back(run.second);
          replicates.insert(run.first);
        }
    Json row = {
        {"task", t.label}, {"lamp", t.lamp}, {"title", t.title}, {"cells", cells.size()}, {"seeds", replicates.size()}};
    if (!cells.empty()) {
      row["metric"] = cells[0]->metrics["primary"];
      row["people"] = cells[0]->users.size();
      row["questions"] = cells[0]->metrics.contains("n") ? cells[0]->metrics["n"] : Json();
      for (const char* key : {"label_entropy_bits", "classes", "majority", "neighbour", "answer_words", "base_nll"}) {
        const auto x = mean_metric(cells, {"difficulty", key});
        row[key] = x ? Json(*x) : Json();
      }
      for (const char* name : {"majority", "user_majority", "user_mean", "nearest"}) {
        const auto x = baseline_points(cells, name);
        row[std::string("baseline_") + name] = x ? Json(*x) : Json();
      }
      for (const char* from : {"query", "history", "latent"}) {
        const auto x = possible_points(cells, from);
        row[std::string("possible_") + from] = x ? Json(*x) : Json();
      }
    }
    rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Json& a, const Json& b) { return a["task"] < b["task"]; });
  return rows;
}

Json condition_table(const Experiment& e) {
  Json out = Json::array();
  for (const Condition& c : e.conditions) {
    const Effect effect = score_points(c.scores());
    const auto cells = cells_of({&c});
    Json row = {{"task", e.tasks.at(c.task).label},
                {"model", model_label(c.config.model)},
                {"compression", c.config.compression},
                {"method", c.config.method.name},
                {"label", method_label(c.config.method)},
                {"history", c.config.history},
                {"steps", c.config.steps},
                {"score", effect_json(effect)}};
    row["metrics"] = Json::object();
    for (const auto& [name, value] : cells[0]->metrics["metrics"].items())
      if (const auto x = mean_metric(cells, {"metrics", name})) row["metrics"][name] = *x;
    row["cells"] = Json::array();
    for (const Cell* cell : cells) row["cells"].push_back(cell->hash);
    out.push_back(std::move(row));
  }
  return out;
}

Json cell_rows(const Experiment& e) {
  Json out = Json::array();
  for (const Cell& c : e.cells) {
    Json row = {{"hash", c.hash},
                {"state", c.state == Cell::State::done     ? "done"
                          : c.state == Cell::State::failed ? "failed"
                                                           : "missing"},
                {"grids", c.grids}};
    Json key = c.config.to_json()["task"];
    if (key.contains("world")) key["world"].erase("seed");
    row["task"] = e.tasks.at(key.dump()).label;
    row["model"] = model_label(c.config.model);
    row["compression"] = c.config.compression;
    row["method"] = method_label(c.config.method);
    row["history"] = c.config.history;
    row["steps"] = c.config.steps;
    row["seed"] = c.config.seed;
    if (c.state == Cell::State::done) {
      double sum = 0;
      for (double s : c.scores) sum += s;
      row["score"] = 100 * sum / static_cast<double>(c.scores.size());
      row["metrics"] = c.metrics["metrics"];
      if (c.metrics.contains("chosen")) row["chosen"] = c.metrics["chosen"];
      row["cost"] = c.cost;
    }
    out.push_back(std::move(row));
  }
  return out;
}

Json summary(const Experiment& e) {
  std::set<std::string> models, compressions, methods;
  std::set<uint64_t> seeds;
  std::set<size_t> people;
  int64_t questions = 0;
  for (const Cell& c : e.cells) {
    models.insert(model_label(c.config.model));
    compressions.insert(c.config.compression);
    methods.insert(c.config.method.name);
    seeds.insert(c.config.seed);
    if (c.state != Cell::State::done) continue;
    people.insert(c.users.size());
    if (c.metrics.contains("n") && c.metrics["n"].is_number_integer()) questions += c.metrics["n"].get<int64_t>();
  }
  Json s = {{"cells", e.cells.size()},
            {"done", e.count(Cell::State::done)},
            {"failed", e.count(Cell::State::failed)},
            {"missing", e.count(Cell::State::missing)},
            {"infeasible", e.infeasible.size()},
            {"conditions", e.conditions.size()},
            {"tasks", e.tasks.size()},
            {"models", models},
            {"compressions", compressions},
            {"methods", methods},
            {"seeds", seeds.size()},
            {"answers", questions}};
  s["people_least"] = people.empty() ? Json() : Json(*people.begin());
  s["people_most"] = people.empty() ? Json() : Json(*people.rbegin());
  s["grids"] = Json::array();
  for (const Grid& g : e.grids) {
    int64_t done = 0;
    for (size_t i : g.cells) done += e.cells[i].state == Cell::State::done;
    s["grids"].push_back({{"name", g.name}, {"factors", g.factors}, {"cells", g.cells.size()}, {"done", done}});
  }
  return s;
}

Json method_notes() {
  return Json::array(
      {"Scores are the task's primary metric times 100: accuracy for labels and ratings, ROUGE-1 for texts. "
       "Differences are in points.",
       "Every comparison is paired: the same people answer the same questions under both conditions, and only their "
       "differences count.",
       "Intervals are 95 % bootstrap intervals from 10,000 resamples with a fixed seed. Resampled are the seeds, with "
       "replacement, and "
       "then the people of each drawn seed, with replacement; where every seed examines the same people, people and "
       "seeds are drawn "
       "independently of each other. Means over tasks weigh tasks equally; tasks are not resampled, so nothing is said "
       "about tasks "
       "that were not run. The percentiles are widened for few people (Student's t).",
       "With one seed only people are resampled: such intervals say nothing about other runs. With fewer than about "
       "five seeds the part "
       "of the uncertainty that comes from seeds is itself uncertain.",
       "One pretrained base model per size: intervals do not cover how another pretraining run would have come out.",
       "p is a sign-flip permutation test of no difference, over people. Holm's correction is made within each group "
       "of rows. d_z is "
       "the mean difference divided by its standard deviation over people.",
       "A verdict needs an interval beyond a line one point from zero; anything else is inconclusive, which means that "
       "this experiment "
       "cannot tell, not that there is no effect. Where any of m rows could decide, their deciding intervals are "
       "widened to 1 − 0.05/m.",
       "Where a side has several variants (ranks, numbers of examples, methods), the variant is chosen on half of the "
       "people and "
       "scored on the other half, both ways round, so that the choice cannot flatter it.",
       "Shares of variance: R² of each factor in a linear model of the cells' means, averaged over all orders in which "
       "factors can "
       "enter (LMG), weighted by people; unbalanced grids are thereby shared out evenly, not attributed to whichever "
       "factor comes first.",
       "Best possible: the best score that anyone could reach from this history (synthetic tasks, where it can be "
       "computed).",
       "Everything but times and memory is a pure function of the plan, the models and the data."});
}

Json in_short(const Experiment& e, const std::vector<Verdict>& verdicts) {
  Json out = Json::array();
  std::map<std::string, std::vector<std::string>> by_state;
  for (const Verdict& v : verdicts) by_state[verdict_name(v.state)].push_back(v.id);
  std::vector<std::string> parts;
  for (const char* state : {"supported", "refuted", "inconclusive", "no data"})
    if (by_state.count(state))
      parts.push_back(fmt::format("{} {} ({})", by_state[state].size(), state, dashboard::join(by_state[state], ", ")));
  out.push_back(fmt::format("Of six claims: {}.", dashboard::join(parts, "; ")));
  const int64_t open = e.count(Cell::State::missing), failed = e.count(Cell::State::failed);
  if (open + failed > 0)
    out.push_back(fmt::format(
        "{} of {} are not done ({} missing, {} failed): every figure below rests on the cells that are done.",
        open + failed, plural(static_cast<int64_t>(e.cells.size()), "cell"), open, failed));
  return out;
}

}  // namespace

int method_series(const std::string& name) {
  const char* const order[] = {"none", "rag", "lora", "rag+lora", "full", "prompt", "prefix", "ia3"};
  for (int i = 0; i < 8; ++i)
    if (name == order[i]) return i;
  return 0;
}

int method_shape(const std::string& name) {
  const int shapes[] = {5, 1, 0, 2, 3, 4, 6, 7};
  return shapes[method_series(name)];
}

Effect score_points(const Scores& scores) {
  Sample s = scores.sample();
  for (auto& seed : s.values)
    for (double& x : seed) x *= 100;
  return estimate(s);
}

std::optional<double> mean_metric(const std::vector<const Cell*>& cells, const std::vector<std::string>& path) {
  double sum = 0, n = 0;
  for (const Cell* cell : cells) {
    const Json* at = find_path(cell->metrics, path);
    if (!at || !at->is_number()) continue;
    sum += at->get<double>();
    ++n;
  }
  if (n == 0) return std::nullopt;
  return sum / n;
}

std::optional<double> baseline_points(const std::vector<const Cell*>& cells, const std::string& baseline) {
  if (cells.empty()) return std::nullopt;
  const std::string primary = cells[0]->metrics["primary"];
  auto x = mean_metric(cells, {"baselines", baseline, primary});
  if (!x) x = mean_metric(cells, {"baselines", baseline, "metrics", primary});
  if (x) *x *= 100;
  return x;
}

std::optional<double> possible_points(const std::vector<const Cell*>& cells, const std::string& from) {
  double sum = 0, n = 0;
  for (const Cell* cell : cells) {
    const Json* list = find_path(cell->metrics, {"possible"});
    if (!list || !list->is_array()) continue;
    for (const Json& p : *list)
      if (p.is_object() && p.value("metric", Json()) == cell->metrics["primary"] && p.contains(from) &&
          p[from].is_number()) {
        sum += p[from].get<double>();
        ++n;
      }
  }
  if (n == 0) return std::nullopt;
  return 100 * sum / n;
}

std::vector<const Cell*> cells_of(const std::vector<const Condition*>& conditions) {
  std::vector<const Cell*> out;
  for (const Condition* c : conditions)
    for (const auto& run : c->runs) out.push_back(run.second);
  return out;
}

Json cost_tables(const Experiment& e) {
  return {{"models", cost_table(e,
                                {{"model_bytes", "stored", "bytes", "low"},
                                 {"bits_per_weight", "bits per weight", "number", "low"},
                                 {"peak_rss_bytes", "peak memory", "bytes", "low"},
                                 {"load_s", "load", "seconds", "low"},
                                 {"ttft_s", "first token", "seconds", "low"},
                                 {"prefill_tok_s", "prefill tokens/s", "number", "high"},
                                 {"decode_tok_s", "decode tokens/s", "number", "high"}},
                                false)},
          {"methods", cost_table(e,
                                 {{"train_s", "learning, per cell", "seconds", "low"},
                                  {"step_s", "one step", "seconds", "low"},
                                  {"samples_per_hour", "samples/hour", "number", "high"},
                                  {"peak_rss_bytes", "peak memory", "bytes", "low"},
                                  {"adapter_bytes", "adapter", "bytes", "low"},
                                  {"optimizer_bytes", "optimizer", "bytes", "low"},
                                  {"answer_s", "answering, per cell", "seconds", "low"}},
                                 true)}};
}

Json report_data(const Experiment& e) {
  const std::vector<Verdict> verdicts = judge(e);
  Json r = {{"schema", "thimble.lab_report/1"}, {"name", e.name}, {"summary", summary(e)}};
  r["machine"] = e.machine.is_object() && e.machine.contains("machine") ? e.machine["machine"] : e.machine;
  r["device"] = e.device;
  r["in_short"] = in_short(e, verdicts);
  r["verdicts"] = Json::array();
  for (const Verdict& v : verdicts) r["verdicts"].push_back(verdict_json(v));
  r["charts"] = report_charts(e, verdicts);
  r["tables"] = cost_tables(e);
  r["tables"]["tasks"] = task_table(e);
  r["conditions"] = condition_table(e);
  r["cells"] = cell_rows(e);
  r["failed"] = r["missing"] = r["infeasible"] = Json::array();
  for (const Cell& c : e.cells) {
    if (c.state == Cell::State::failed)
      r["failed"].push_back({{"hash", c.hash},
                             {"label", cell_label(e, c.config)},
                             {"seed", c.config.seed},
                             {"reason", c.reason},
                             {"error_code", c.error_code}});
    if (c.state == Cell::State::missing)
      r["missing"].push_back({{"hash", c.hash}, {"label", cell_label(e, c.config)}, {"seed", c.config.seed}});
  }
  for (const auto& [hash, reason] : e.infeasible) r["infeasible"].push_back({{"hash", hash}, {"reason", reason}});
  r["method_notes"] = method_notes();
  return r;
}

}  // namespace thimble::lab
