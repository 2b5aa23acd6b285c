// The rules that turn cells into verdicts. No rule may pick what it judges by the scores it judges with: sides with
// several variants are cross-fitted over people (tools/lab/experiment.h), everything else is fixed in advance.
#include "tools/lab/verdicts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;
using State = Verdict::State;

// One side of a comparison in one context: conditions among which nothing has been chosen yet.
using Side = std::vector<const Condition*>;

struct Contrast {
  std::string task;  // key
  Scores first, second;
  std::string first_label, second_label;
  std::vector<std::string> cells;
};

void add_cells(const Side& side, std::vector<std::string>& cells) {
  for (const Condition* c : side)
    for (const auto& run : c->runs) cells.push_back(run.second->hash);
}

std::string join(const std::vector<std::string>& parts, const char* between) {
  std::string out;
  for (const std::string& p : parts) out += (out.empty() ? "" : between) + p;
  return out;
}

// "RAG k 4", or "RAG k 4 / RAG k 8" where the halves of the people chose differently.
std::string chosen_label(const std::vector<std::string>& labels, const std::vector<size_t>& chosen) {
  std::set<std::string> seen;
  std::vector<std::string> out;
  for (size_t i : chosen)
    if (seen.insert(labels[i]).second) out.push_back(labels[i]);
  return join(out, " / ");
}

std::optional<Contrast> contrast(const Side& first, const Side& second,
                                 const std::function<std::string(const Condition&)>& label) {
  Contrast out;
  out.task = first.at(0)->task;
  for (auto [side, scores, text] :
       {std::tuple(&first, &out.first, &out.first_label), std::tuple(&second, &out.second, &out.second_label)}) {
    std::vector<Scores> variants;
    std::vector<std::string> labels;
    for (const Condition* c : *side) {
      variants.push_back(c->scores());
      labels.push_back(label(*c));
    }
    const std::optional<CrossFit> fit = cross_fit(variants);
    if (!fit) return std::nullopt;
    *scores = fit->scores;
    *text = chosen_label(labels, fit->chosen);
    add_cells(*side, out.cells);
  }
  if (!difference(out.first, out.second)) return std::nullopt;
  return out;
}

// Contrasts of one task are averaged person by person (they examine the same people); tasks are strata.
std::vector<Sample> strata_of(const std::vector<const Contrast*>& contrasts,
                              const std::function<std::optional<Scores>(const Contrast&)>& values) {
  std::map<std::string, std::vector<Scores>> by_task;
  for (const Contrast* c : contrasts)
    if (auto v = values(*c)) by_task[c->task].push_back(std::move(*v));
  std::vector<Sample> strata;
  for (auto& entry : by_task) {
    std::vector<Scores> parts;
    if (auto mean = average(entry.second))
      parts.push_back(std::move(*mean));
    else
      parts = entry.second;  // nothing in common: each stands for itself
    for (Scores& p : parts) {
      Sample s = p.sample();
      for (auto& seed : s.values)
        for (double& x : seed) x *= 100;
      strata.push_back(std::move(s));
    }
  }
  return strata;
}

double mean_of(const std::vector<Sample>& strata) {
  double sum = 0;
  for (const Sample& s : strata) sum += s.mean() / static_cast<double>(strata.size());
  return sum;
}

Comparison compare(std::string group, std::string label, const std::vector<const Contrast*>& contrasts) {
  Comparison row;
  row.group = std::move(group);
  row.label = std::move(label);
  const auto paired = [](const Contrast& c) { return difference(c.first, c.second); };
  row.effect = estimate(strata_of(contrasts, paired));
  row.lo_family = row.effect.lo;
  row.hi_family = row.effect.hi;
  // means over the people that both sides have, so that they differ by the effect
  row.second_mean = mean_of(strata_of(contrasts, [&](const Contrast& c) -> std::optional<Scores> {
    const auto d = difference(c.first, c.second);
    if (!d) return std::nullopt;
    auto both = average({c.first, c.second});
    return difference(*both, [&] {
      Scores half = *d;
      for (auto& run : half.runs)
        for (double& v : run.second.values) v /= 2;
      return half;
    }());
  }));
  row.first_mean = row.second_mean + row.effect.mean;
  std::set<std::string> first, second, cells;
  for (const Contrast* c : contrasts) {
    first.insert(c->first_label);
    second.insert(c->second_label);
    cells.insert(c->cells.begin(), c->cells.end());
  }
  const auto sides = [](const std::set<std::string>& labels) {
    if (labels.size() > 3) return fmt::format("{} variants", labels.size());
    return join({labels.begin(), labels.end()}, "; ");
  };
  row.first = sides(first);
  row.second = sides(second);
  row.cells.assign(cells.begin(), cells.end());
  return row;
}

// Any of these rows can decide: widen their deciding intervals to hold together, and correct their p.
void make_family(std::vector<Comparison*> rows, const std::vector<std::vector<const Contrast*>>& contrasts) {
  std::vector<double> p;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto paired = [](const Contrast& c) { return difference(c.first, c.second); };
    const Effect wide = estimate(strata_of(contrasts[i], paired), 1 - 0.05 / static_cast<double>(rows.size()));
    rows[i]->lo_family = wide.lo;
    rows[i]->hi_family = wide.hi;
    p.push_back(rows[i]->effect.p);
  }
  const std::vector<double> adjusted = holm(p);
  for (size_t i = 0; i < rows.size(); ++i) rows[i]->p_holm = adjusted[i];
}

std::vector<const Contrast*> pointers(const std::vector<Contrast>& contrasts) {
  std::vector<const Contrast*> out;
  for (const Contrast& c : contrasts) out.push_back(&c);
  return out;
}

// Rows per task behind a pooled row, for the reader; they decide nothing.
void add_task_rows(const Experiment& e, const std::vector<Contrast>& contrasts, std::vector<Comparison>& rows,
                   const std::function<std::string(const Effect&)>& reading, const std::string& group = "by task") {
  std::map<std::string, std::vector<const Contrast*>> by_task;
  for (const Contrast& c : contrasts) by_task[e.tasks.at(c.task).label].push_back(&c);
  std::vector<Comparison> added;
  std::vector<double> p;
  for (const auto& [label, list] : by_task) {
    Comparison row = compare(group, label, list);
    row.reading = reading(row.effect);
    p.push_back(row.effect.p);
    added.push_back(std::move(row));
  }
  const std::vector<double> adjusted = holm(p);
  for (size_t i = 0; i < added.size(); ++i) {
    added[i].p_holm = adjusted[i];
    rows.push_back(std::move(added[i]));
  }
}

bool above(double lo, double line) { return lo > line; }
bool below(double hi, double line) { return hi < line; }

// first - second where the first side is the modest one ("small suffices").
std::string suffices_reading(const Effect& e, const char* better, const char* enough, const char* worse) {
  if (above(e.lo, kMargin)) return better;
  if (above(e.lo, -kMargin)) return enough;
  if (below(e.hi, -kMargin)) return worse;
  return "unclear";
}

State suffices_state(const Effect& e) {
  if (above(e.lo, -kMargin)) return State::supported;
  if (below(e.hi, -kMargin)) return State::refuted;
  return State::inconclusive;
}

std::string superiority_reading(const Effect& e, const char* better, const char* worse) {
  if (above(e.lo, kMargin)) return better;
  if (below(e.hi, -kMargin)) return worse;
  if (above(e.lo, -kMargin) && below(e.hi, kMargin)) return "practically equal";
  return "unclear";
}

std::string count_text(size_t n, const char* one, const char* many) {
  return fmt::format("{} {}", n, n == 1 ? one : many);
}

bool plan_has(const Experiment& e, const std::function<bool(const CellConfig&)>& wanted) {
  return std::any_of(e.cells.begin(), e.cells.end(), [&](const Cell& c) { return wanted(c.config); });
}

size_t plan_values(const Experiment& e, const std::function<std::string(const CellConfig&)>& value) {
  std::set<std::string> seen;
  for (const Cell& c : e.cells) {
    const std::string v = value(c.config);
    if (!v.empty()) seen.insert(v);
  }
  return seen.size();
}

// A claim without a single comparison: because nobody asked, or because the cells are not done.
void nothing_to_compare(Verdict& v, bool planned, const std::string& needed) {
  v.state = planned ? State::inconclusive : State::no_data;
  v.headline = planned ? "not enough cells done" : "no such cells in the plan";
  v.sentence = planned ? "The plan asks for this comparison, but the cells that it needs are not done: " + needed + "."
                       : "The plan has nothing to compare here. It would need " + needed + ".";
}

std::string history_text(int64_t history) { return history == 0 ? "whole history" : fmt::format("{} items", history); }

// ---- C1

// Mean over done cells of a number that metrics.json states about the task.
std::optional<double> difficulty_number(const std::vector<const Condition*>& conditions, const char* key) {
  double sum = 0, n = 0;
  for (const Condition* c : conditions)
    for (const auto& run : c->runs) {
      const Json& m = run.second->metrics;
      if (!m.contains("difficulty") || !m["difficulty"].is_object()) continue;
      const Json& d = m["difficulty"];
      if (!d.contains(key) || !d[key].is_number()) continue;
      sum += d[key].get<double>();
      ++n;
    }
  if (n == 0) return std::nullopt;
  return sum / n;
}

Verdict judge_method_by_task(const Experiment& e) {
  Verdict v;
  v.id = "C1";
  v.claim = "Whether to retrieve (RAG) or to learn depends on the task's difficulty";
  v.contrast = "RAG − learning: right of zero, retrieval is better";
  v.rule =
      "Per task, RAG minus learning in points. Supported: at least one task where RAG is better and one where learning "
      "is "
      "better, each by an interval wholly beyond 1 point that holds for all tasks together (1 − 0.05/tasks). Refuted: "
      "two tasks or more, and the same side is better by more than a point in every one (95 % intervals). Else "
      "inconclusive.";
  // the setting (model, compression, precision, memory) in which most tasks can be compared
  std::map<std::string, std::vector<Contrast>> settings;
  std::map<std::string, std::map<std::string, Side>> conditions_of;
  const auto label = [](const Condition& c) { return method_label(c.config.method); };
  std::map<std::string, std::map<std::string, std::map<int64_t, std::pair<Side, Side>>>> sides;
  for (const Condition& c : e.conditions) {
    const std::string setting = context_key(c.config, {"method", "history", "task"});
    auto& at = sides[setting][c.task][history_order(c.config.history)];
    if (c.config.method.name == "rag") at.first.push_back(&c);
    if (is_learning(c.config.method.name)) at.second.push_back(&c);
  }
  for (const auto& [setting, tasks] : sides)
    for (const auto& [task, histories] : tasks)
      for (auto h = histories.rbegin(); h != histories.rend(); ++h) {
        const auto& [rag, learn] = h->second;
        if (rag.empty() || learn.empty()) continue;
        auto c = contrast(rag, learn, label);
        if (!c) continue;
        Side& all = conditions_of[setting][task];
        all.insert(all.end(), rag.begin(), rag.end());
        all.insert(all.end(), learn.begin(), learn.end());
        settings[setting].push_back(std::move(*c));
        break;  // the largest history that both sides have
      }
  const bool planned = plan_has(e, [](const CellConfig& c) { return c.method.name == "rag"; }) &&
                       plan_has(e, [](const CellConfig& c) { return is_learning(c.method.name); });
  const std::string* chosen = nullptr;
  for (const auto& entry : settings)
    if (!chosen || entry.second.size() > settings[*chosen].size()) chosen = &entry.first;
  if (!chosen) {
    nothing_to_compare(v, planned, "RAG and a learning method on the same tasks, with the same model");
    return v;
  }
  const std::vector<Contrast>& contrasts = settings[*chosen];
  std::vector<std::vector<const Contrast*>> lists;
  for (const Contrast& c : contrasts) {
    lists.push_back({&c});
    Comparison row = compare("by task", e.tasks.at(c.task).label, lists.back());
    row.decides = true;
    v.rows.push_back(std::move(row));
  }
  std::vector<Comparison*> family;
  for (Comparison& r : v.rows) family.push_back(&r);
  make_family(family, lists);
  size_t rag = 0, learn = 0, rag_all = 0, learn_all = 0;
  const Comparison *most_rag = nullptr, *most_learn = nullptr;
  for (Comparison& r : v.rows) {
    rag += above(r.lo_family, kMargin);
    learn += below(r.hi_family, -kMargin);
    rag_all += above(r.effect.lo, kMargin);
    learn_all += below(r.effect.hi, -kMargin);
    r.reading = above(r.lo_family, kMargin)                                   ? "RAG better"
                : below(r.hi_family, -kMargin)                                ? "learning better"
                : above(r.effect.lo, -kMargin) && below(r.effect.hi, kMargin) ? "practically equal"
                                                                              : "unclear";
    if (!most_rag || r.effect.mean > most_rag->effect.mean) most_rag = &r;
    if (!most_learn || r.effect.mean < most_learn->effect.mean) most_learn = &r;
  }
  const size_t n = v.rows.size();
  v.state = rag > 0 && learn > 0                         ? State::supported
            : n >= 2 && (rag_all == n || learn_all == n) ? State::refuted
                                                         : State::inconclusive;
  v.headline = fmt::format("RAG better on {}, learning better on {}, undecided on {} of {}", rag, learn,
                           n - rag - learn, count_text(n, "task", "tasks"));
  if (v.state == State::supported)
    v.sentence =
        fmt::format("The winner changes with the task: RAG leads by {:.1f} points on “{}”, learning by {:.1f} on “{}”.",
                    most_rag->effect.mean, most_rag->label, -most_learn->effect.mean, most_learn->label);
  else if (v.state == State::refuted)
    v.sentence =
        fmt::format("{} is better by more than a point on every task tried.", rag_all == n ? "RAG" : "Learning");
  else if (n == 1)
    v.sentence = "One task only: whether the winner changes with the task cannot be seen.";
  else if (rag + learn == 0)
    v.sentence = "No task shows a clear winner; more people or seeds would narrow the intervals.";
  else
    v.sentence = fmt::format("{} wins where a winner is clear, but no task shows the opposite clearly.",
                             rag ? "RAG" : "Learning");

  // which difficulty number goes with RAG's lead
  v.extra["difficulty"] = Json::array();
  for (auto [key, name] :
       {std::pair{"neighbour", "score of copying the most similar item (copyable facts high, rules low)"},
        std::pair{"majority", "score of the most frequent answer"},
        std::pair{"label_entropy_bits", "entropy of the answers, bits"}, std::pair{"classes", "distinct answers"},
        std::pair{"answer_words", "words of an answer"},
        std::pair{"base_nll", "surprise of the answer to the base model, nats"}}) {
    std::vector<double> x, y;
    Json points = Json::array();
    for (size_t i = 0; i < n; ++i) {
      const auto d = difficulty_number(conditions_of[*chosen][contrasts[i].task], key);
      if (!d) continue;
      x.push_back(*d);
      y.push_back(v.rows[i].effect.mean);
      points.push_back({{"task", v.rows[i].label},
                        {"x", *d},
                        {"effect", v.rows[i].effect.mean},
                        {"lo", v.rows[i].effect.lo},
                        {"hi", v.rows[i].effect.hi}});
    }
    Json entry = {{"number", key}, {"meaning", name}, {"points", points}};
    if (x.size() >= 4) {
      entry["spearman"] = spearman(x, y);
      entry["p"] = spearman_p(x, y);
    }
    if (!x.empty()) v.extra["difficulty"].push_back(entry);
  }
  if (settings.size() > 1)
    v.notes.push_back(
        fmt::format("Compared in the one of {} settings (model, compression) that has most tasks.", settings.size()));
  return v;
}

// ---- C2

Verdict judge_time(const Experiment& e) {
  Verdict v;
  v.id = "C2";
  v.claim = "Tuning longer does not necessarily help";
  v.contrast = "stopping early − longest: right of zero, stopping early is better";
  v.rule =
      "LoRA (other learning methods where the plan has no LoRA), per task and history size, averaged over models, "
      "compressions "
      "and ranks: an earlier checkpoint (no more than half of the longest budget; which one is "
      "chosen "
      "on the other half of the people) minus the longest. Supported: in at least one condition the longest gains less "
      "than "
      "a point, or loses (interval wholly above −1, holding for all conditions together). Refuted: in every condition "
      "the "
      "longest gains more than a point (95 % intervals). Else inconclusive.";
  struct Trajectory {
    const Condition* condition = nullptr;
    std::map<int64_t, Scores> at;
    std::vector<std::string> cells;
  };
  std::map<std::string, Trajectory> trajectories;
  const auto has_time = [](const CellConfig& c) {
    return is_learning(c.method.name) && (!c.curve.empty() || c.steps.size() == 1);
  };
  const bool lora = plan_has(e, [&](const CellConfig& c) { return c.method.name == "lora" && has_time(c); });
  for (const Condition& c : e.conditions) {
    if (lora ? c.config.method.name != "lora" : !is_learning(c.config.method.name)) continue;
    Trajectory& t = trajectories[context_key(c.config, {"steps"})];
    if (!t.condition) t.condition = &c;
    for (const auto& [key, cell] : c.runs) {
      for (const CurvePoint& p : cell->curve)
        if (p.step > 0) t.at[p.step].runs[key] = {cell->config.task_sha256, cell->users, p.per_person};
      if (cell->config.steps.size() == 1)
        t.at[cell->config.steps[0]].runs[key] = {cell->config.task_sha256, cell->users, cell->scores};
      t.cells.push_back(cell->hash);
    }
  }
  std::map<std::string, std::vector<Contrast>> groups;
  std::map<std::string, std::string> labels;
  for (const auto& entry : trajectories) {
    const Trajectory& t = entry.second;
    if (t.at.size() < 2) continue;
    const auto longest = std::prev(t.at.end());
    std::vector<Scores> earlier;
    std::vector<std::string> names;
    for (auto it = t.at.begin(); it != longest && it->first * 2 <= longest->first; ++it) {
      earlier.push_back(it->second);
      names.push_back(fmt::format("{} steps", it->first));
    }
    const auto fit = cross_fit(earlier);
    if (!fit || !difference(fit->scores, longest->second)) continue;
    Contrast c;
    c.task = t.condition->task;
    c.first = fit->scores;
    c.second = longest->second;
    c.first_label = chosen_label(names, fit->chosen);
    c.second_label = fmt::format("{} steps", longest->first);
    c.cells = t.cells;
    const CellConfig& config = t.condition->config;
    const std::string group = context_key(config, {"method", "model", "compression"});
    groups[group].push_back(std::move(c));
    labels[group] = e.tasks.at(t.condition->task).label +
                    (config.history == 0 ? "" : fmt::format(" · {} items used", config.history));
  }
  const bool planned =
      plan_has(e, [](const CellConfig& c) { return is_learning(c.method.name) && !c.curve.empty(); }) ||
      plan_values(e, [](const CellConfig& c) {
        return is_learning(c.method.name) && c.steps.size() == 1 ? std::to_string(c.steps[0]) : "";
      }) > 1;
  if (groups.empty()) {
    nothing_to_compare(v, planned, "a learning method with scores at several budgets");
    return v;
  }
  std::vector<std::vector<const Contrast*>> lists;
  std::vector<const Contrast*> everything;
  for (const auto& [group, contrasts] : groups) {
    lists.push_back(pointers(contrasts));
    everything.insert(everything.end(), lists.back().begin(), lists.back().end());
    Comparison row = compare("by task and history", labels[group], lists.back());
    row.decides = true;
    row.reading = suffices_reading(row.effect, "longer hurts", "longer gains under a point", "longer helps");
    v.rows.push_back(std::move(row));
  }
  std::vector<Comparison*> family;
  for (Comparison& r : v.rows) family.push_back(&r);
  make_family(family, lists);
  size_t enough = 0, hurts = 0, helps = 0;
  const Comparison* best = nullptr;
  for (const Comparison& r : v.rows) {
    enough += above(r.lo_family, -kMargin);
    hurts += above(r.lo_family, kMargin);
    helps += below(r.effect.hi, -kMargin);
    if (!best || r.effect.lo > best->effect.lo) best = &r;
  }
  const size_t n = v.rows.size();
  v.state = enough > 0 ? State::supported : helps == n ? State::refuted : State::inconclusive;
  Comparison pooled = compare("pooled", "all tasks", everything);
  pooled.reading = suffices_reading(pooled.effect, "longer hurts", "longer gains under a point", "longer helps");
  v.headline = fmt::format("Stopping early changes the score by {} on average", effect_text(pooled.effect));
  if (v.state == State::supported)
    v.sentence = fmt::format(
        "The longest budget brings less than a point in {} of {}{}; clearest: “{}”. It helps by more than a point in "
        "{}.",
        enough, count_text(n, "condition", "conditions"),
        hurts ? fmt::format(" and costs more than a point in {}", hurts) : "", best->label, helps);
  else if (v.state == State::refuted)
    v.sentence = "The longest budget gains more than a point in every condition tried.";
  else
    v.sentence = fmt::format(
        "No condition shows for certain that the longest budget is not worth a point; it helps by more than a point in "
        "{} of {}.",
        helps, n);
  v.rows.insert(v.rows.begin(), std::move(pooled));
  return v;
}

// ---- C3

Verdict judge_compression(const Experiment& e) {
  Verdict v;
  v.id = "C3";
  v.claim = "A compressed model learns better from little personal data than the uncompressed one";
  v.contrast = "compressed − uncompressed, both after learning: right of zero, the compressed model is better";
  v.rule =
      "Compressed minus uncompressed, both after learning from the smallest limited history that each task, model and "
      "method has for both (whole histories only "
      "where the plan has no limited one), mean over tasks. "
      "Supported: "
      "some compression is better by an interval wholly above +1 that holds for all compressions together. Refuted: "
      "every "
      "compression is worse (95 % intervals wholly below −1). Else inconclusive.";
  struct Cells {
    std::map<int64_t, const Condition*> at;  // by history
  };
  std::map<std::string, std::map<std::string, Cells>> contexts, bases;
  for (const Condition& c : e.conditions) {
    if (is_learning(c.config.method.name))
      contexts[context_key(c.config, {"compression", "history"})][c.config.compression]
          .at[history_order(c.config.history)] = &c;
    if (c.config.method.name == "none")
      bases[context_key(c.config, {"compression", "history"})][c.config.compression]
          .at[history_order(c.config.history)] = &c;
  }
  struct Parts {
    std::vector<Contrast> small, large, interaction, before;
    std::set<int64_t> small_histories;
  };
  std::map<std::string, Parts> parts;  // by compression
  const auto label = [&](const Condition& c) { return e.compressions.at(c.config.compression); };
  // whole histories are little data only where the plan has nothing smaller
  const bool limited = plan_has(
      e, [](const CellConfig& c) { return is_learning(c.method.name) && c.compression != "none" && c.history != 0; });
  for (const auto& context : contexts) {
    const auto none = context.second.find("none");
    if (none == context.second.end()) continue;
    for (const auto& [compression, cells] : context.second) {
      if (compression == "none") continue;
      std::vector<std::pair<const Condition*, const Condition*>> pairs;  // by history
      for (const auto& [history, condition] : cells.at) {
        const auto other = none->second.at.find(history);
        if (other != none->second.at.end()) pairs.push_back({condition, other->second});
      }
      if (pairs.empty() || (limited && pairs.front().first->config.history == 0)) continue;
      auto small = contrast({pairs.front().first}, {pairs.front().second}, label);
      if (!small) continue;
      Parts& p = parts[compression];
      p.small_histories.insert(pairs.front().first->config.history);
      if (pairs.size() > 1)
        if (auto large = contrast({pairs.back().first}, {pairs.back().second}, label)) {
          const auto d_small = difference(small->first, small->second),
                     d_large = difference(large->first, large->second);
          Contrast both = *small;
          both.first = *d_small;
          both.second = *d_large;
          both.first_label = "little data";
          both.second_label = "much data";
          both.cells.insert(both.cells.end(), large->cells.begin(), large->cells.end());
          if (difference(both.first, both.second)) p.interaction.push_back(std::move(both));
          p.large.push_back(std::move(*large));
        }
      p.small.push_back(std::move(*small));
    }
  }
  for (const auto& context : bases) {
    const auto none = context.second.find("none");
    if (none == context.second.end()) continue;
    for (const auto& [compression, cells] : context.second) {
      if (compression == "none" || !parts.count(compression)) continue;
      if (auto c = contrast({cells.at.begin()->second}, {none->second.at.begin()->second}, label))
        parts[compression].before.push_back(std::move(*c));
    }
  }
  const bool planned =
      plan_has(e, [](const CellConfig& c) { return is_learning(c.method.name) && c.compression != "none"; }) &&
      plan_has(e, [](const CellConfig& c) { return is_learning(c.method.name) && c.compression == "none"; });
  if (parts.empty()) {
    nothing_to_compare(v, planned,
                       "a learning method on a compressed and on the uncompressed model, with the same history");
    return v;
  }
  std::vector<std::vector<const Contrast*>> lists;
  const auto reading = [](const Effect& x) { return superiority_reading(x, "compressed better", "compressed worse"); };
  bool whole = true;
  for (const auto& [compression, p] : parts) {
    lists.push_back(pointers(p.small));
    std::vector<std::string> sizes;
    for (int64_t h : p.small_histories) sizes.push_back(history_text(h));
    for (int64_t h : p.small_histories) whole = whole && h == 0;
    Comparison row = compare("smallest history",
                             fmt::format("{} ({})", e.compressions.at(compression), join(sizes, ", ")), lists.back());
    row.decides = true;
    row.reading = reading(row.effect);
    v.rows.push_back(std::move(row));
  }
  std::vector<Comparison*> family;
  for (Comparison& r : v.rows) family.push_back(&r);
  make_family(family, lists);
  const std::vector<Comparison> decisive = v.rows;
  for (const auto& [compression, p] : parts) {
    if (!p.large.empty()) {
      Comparison row = compare("largest history", e.compressions.at(compression), pointers(p.large));
      row.reading = reading(row.effect);
      v.rows.push_back(std::move(row));
    }
    if (!p.interaction.empty()) {
      Comparison row = compare("does little data favour it?", e.compressions.at(compression), pointers(p.interaction));
      row.reading = superiority_reading(row.effect, "more with little data", "less with little data");
      v.rows.push_back(std::move(row));
    }
    if (!p.before.empty()) {
      Comparison row = compare("before learning", e.compressions.at(compression), pointers(p.before));
      row.reading = reading(row.effect);
      v.rows.push_back(std::move(row));
    }
  }
  for (const auto& [compression, p] : parts)
    add_task_rows(e, p.small, v.rows, reading, "by task: " + e.compressions.at(compression));

  size_t better = 0, worse = 0, equal = 0;
  const Comparison* best = nullptr;
  for (const Comparison& r : decisive) {
    better += above(r.lo_family, kMargin);
    worse += below(r.effect.hi, -kMargin);
    equal += r.reading == "practically equal";
    if (!best || r.effect.mean > best->effect.mean) best = &r;
  }
  const size_t n = decisive.size();
  v.state = better > 0 ? State::supported : worse == n ? State::refuted : State::inconclusive;
  v.headline = fmt::format("{}: {}", best->label, effect_text(best->effect));
  v.sentence = v.state == State::supported
                   ? fmt::format("{} learns better than the uncompressed model from this little data.", best->label)
               : v.state == State::refuted
                   ? "Every compression tried learns worse than the uncompressed model from this little data."
                   : fmt::format(
                         "No compression is surely better: of {} tried, {} practically equal to no compression, {} "
                         "worse, {} unclear.",
                         n, equal, worse, n - equal - worse);
  if (whole) v.notes.push_back("Only whole histories were compared: the plan has no smaller one.");
  return v;
}

// ---- C4

Verdict judge_rank(const Experiment& e) {
  Verdict v;
  v.id = "C4";
  v.claim = "A small LoRA rank and alpha suffice";
  v.contrast = "small − large rank and alpha: right of −1, small is enough";
  v.rule =
      "LoRA at equal steps and rates: settings whose rank and alpha are at most the geometric middle of those tried, "
      "minus the "
      "others (each side's setting is chosen on the other half of the people), mean over tasks. Supported: small loses "
      "less than a point (interval wholly above −1). Refuted: it loses more (wholly below −1). Else inconclusive.";
  std::map<std::string, Side> contexts;
  for (const Condition& c : e.conditions)
    if (c.config.method.name == "lora") contexts[context_key(c.config, {"rank", "alpha"})].push_back(&c);
  std::vector<Contrast> contrasts;
  const auto label = [](const Condition& c) {
    return fmt::format("r {} α {:g}", c.config.method.rank, c.config.method.alpha);
  };
  double r_lo = 1e30, r_hi = 0;
  bool one_rate = true;
  for (const auto& entry : contexts) {
    double rank_min = 1e30, rank_max = 0, alpha_min = 1e30, alpha_max = 0;
    for (const Condition* c : entry.second) {
      rank_min = std::min(rank_min, static_cast<double>(c->config.method.rank));
      rank_max = std::max(rank_max, static_cast<double>(c->config.method.rank));
      alpha_min = std::min(alpha_min, c->config.method.alpha);
      alpha_max = std::max(alpha_max, c->config.method.alpha);
    }
    if (rank_min == rank_max && alpha_min == alpha_max) continue;
    Side small, large;
    for (const Condition* c : entry.second) {
      const double r = static_cast<double>(c->config.method.rank), a = c->config.method.alpha;
      const bool is_small = (rank_min == rank_max || r * r <= rank_min * rank_max) &&
                            (alpha_min == alpha_max || a * a <= alpha_min * alpha_max);
      (is_small ? small : large).push_back(c);
    }
    if (small.empty() || large.empty()) continue;
    if (auto c = contrast(small, large, label)) {
      contrasts.push_back(std::move(*c));
      one_rate = one_rate && entry.second[0]->config.method.lr.size() <= 1;
      r_lo = std::min(r_lo, rank_min);
      r_hi = std::max(r_hi, rank_max);
    }
  }
  const bool planned = plan_values(e, [](const CellConfig& c) {
                         return c.method.name == "lora" ? fmt::format("{} {}", c.method.rank, c.method.alpha) : "";
                       }) > 1;
  if (contrasts.empty()) {
    nothing_to_compare(v, planned, "LoRA with several ranks or alphas and everything else equal");
    return v;
  }
  Comparison pooled = compare("pooled", "all tasks", pointers(contrasts));
  pooled.decides = true;
  const auto reading = [](const Effect& x) {
    return suffices_reading(x, "small better", "small is enough", "small too small");
  };
  pooled.reading = reading(pooled.effect);
  pooled.p_holm = pooled.effect.p;
  v.state = suffices_state(pooled.effect);
  v.headline = "Small − large: " + effect_text(pooled.effect);
  v.sentence =
      v.state == State::supported
          ? fmt::format("Between rank {:g} and {:g}, the smaller half loses less than a point against the larger half.",
                        r_lo, r_hi)
      : v.state == State::refuted
          ? fmt::format("Between rank {:g} and {:g}, the smaller half costs more than a point.", r_lo, r_hi)
          : "The interval reaches to both sides of one point lost: small settings may or may not cost a point.";
  v.rows.push_back(std::move(pooled));
  add_task_rows(e, contrasts, v.rows, reading);
  if (one_rate) v.notes.push_back("One learning rate for all ranks and alphas: alpha/rank scales the steps as well.");
  return v;
}

// ---- C5

Verdict judge_history(const Experiment& e) {
  Verdict v;
  v.id = "C5";
  v.claim = "A limited history suffices for RAG";
  v.contrast = "limited − all: right of −1, the limited one is enough";
  v.rule =
      "RAG (retriever other than random), in two parts: (history) at most half of the history minus all of it, at "
      "equal k; "
      "(k) numbers of examples up to the geometric middle of those tried minus larger ones, at equal history. Which "
      "size "
      "stands for a side is chosen on the other half of the people; mean over tasks. A part is supported if the "
      "limited side "
      "loses less than a point (interval wholly above −1), refuted if more (wholly below −1). The claim is supported "
      "(refuted) if every part with data is; else inconclusive.";
  std::map<std::string, Side> by_history, by_k;
  for (const Condition& c : e.conditions) {
    if (c.config.method.name != "rag" || c.config.method.retriever == "random") continue;
    by_history[context_key(c.config, {"history"})].push_back(&c);
    if (c.config.method.k.size() == 1) by_k[context_key(c.config, {"k"})].push_back(&c);
  }
  std::vector<Contrast> history, k;
  for (const auto& entry : by_history) {
    int64_t largest = 0;
    for (const Condition* c : entry.second) largest = std::max(largest, history_order(c->config.history));
    // "all" of a world is as long as its dial says, so that half of it is a number
    const CellConfig& any = entry.second[0]->config;
    const int64_t items = largest == history_order(0) && any.task.is_world ? any.task.world.history : largest;
    Side limited, all;
    for (const Condition* c : entry.second) {
      if (history_order(c->config.history) == largest)
        all.push_back(c);
      else if (c->config.history <= items / 2)
        limited.push_back(c);
    }
    if (limited.empty()) continue;
    if (auto c = contrast(limited, all, [](const Condition& x) { return history_text(x.config.history); }))
      history.push_back(std::move(*c));
  }
  for (const auto& entry : by_k) {
    int64_t lo = INT64_MAX, hi = 0;
    for (const Condition* c : entry.second) {
      lo = std::min(lo, c->config.method.k[0]);
      hi = std::max(hi, c->config.method.k[0]);
    }
    if (lo == hi || lo <= 0) continue;
    Side few, many;
    for (const Condition* c : entry.second) {
      const double x = static_cast<double>(c->config.method.k[0]);
      (x * x <= static_cast<double>(lo) * static_cast<double>(hi) ? few : many).push_back(c);
    }
    if (few.empty() || many.empty()) continue;
    if (auto c = contrast(few, many, [](const Condition& x) { return fmt::format("k {}", x.config.method.k[0]); }))
      k.push_back(std::move(*c));
  }
  const auto is_rag = [](const CellConfig& c) { return c.method.name == "rag" && c.method.retriever != "random"; };
  const bool planned =
      plan_values(e, [&](const CellConfig& c) { return is_rag(c) ? std::to_string(c.history) : ""; }) > 1 ||
      plan_values(e, [&](const CellConfig& c) {
        return is_rag(c) && c.method.k.size() == 1 ? std::to_string(c.method.k[0]) : "";
      }) > 1;
  if (history.empty() && k.empty()) {
    nothing_to_compare(v, planned, "RAG with several history sizes or several numbers of examples");
    return v;
  }
  const auto reading = [](const Effect& x) {
    return suffices_reading(x, "limited better", "limited is enough", "limited is worse");
  };
  std::vector<State> states;
  std::vector<std::string> heads, says;
  for (auto [list, name] : {std::pair{&history, "history"}, std::pair{&k, "k"}}) {
    if (list->empty()) continue;
    const bool is_history = list == &history;
    Comparison pooled =
        compare("pooled", is_history ? "at most half of the history" : "few examples (small k)", pointers(*list));
    pooled.decides = true;
    pooled.reading = reading(pooled.effect);
    pooled.p_holm = pooled.effect.p;
    states.push_back(suffices_state(pooled.effect));
    heads.push_back(fmt::format("{}: {}", is_history ? "History" : "k", effect_text(pooled.effect)));
    const char* what = is_history ? "at most half of the history" : "few examples in the prompt";
    says.push_back(states.back() == State::supported ? fmt::format("{} costs less than a point", what)
                   : states.back() == State::refuted ? fmt::format("{} costs more than a point", what)
                                                     : fmt::format("whether {} costs a point is unclear", what));
    v.rows.push_back(std::move(pooled));
  }
  for (auto [list, name] : {std::pair{&history, "by task: history"}, std::pair{&k, "by task: k"}})
    if (!list->empty()) add_task_rows(e, *list, v.rows, reading, name);
  v.state = states[0];
  if (states.size() == 2 && states[1] != states[0]) v.state = State::inconclusive;
  v.headline = join(heads, "; ");
  v.sentence = join(says, "; ") + ".";
  v.sentence[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(v.sentence[0])));
  if (states.size() == 2 && states[0] != states[1]) v.sentence += " The two parts disagree.";
  return v;
}

// ---- C6

struct Footprint {
  double bytes = 0, parameters = 0;
};

std::optional<Footprint> footprint(const Condition& c) {
  for (const auto& run : c.runs) {
    const Json& cost = run.second->cost;
    if (!cost.is_object()) continue;
    const double bytes =
        cost.contains("model_bytes") && cost["model_bytes"].is_number() ? cost["model_bytes"].get<double>() : 0;
    const double bits = cost.contains("bits_per_weight") && cost["bits_per_weight"].is_number()
                            ? cost["bits_per_weight"].get<double>()
                            : 0;
    if (bytes > 0 && bits > 0) return Footprint{bytes, bytes * 8 / bits};
  }
  return std::nullopt;
}

Verdict judge_memory(const Experiment& e) {
  Verdict v;
  v.id = "C6";
  v.claim = "At equal memory, the larger quantized model beats the smaller uncompressed one";
  v.contrast = "larger quantized − smaller uncompressed: right of zero, the quantized model is better";
  v.rule =
      "For each uncompressed model, the compressed model with most parameters whose stored bytes are at most 1.1 times "
      "its own "
      "(most bytes among equals), same method, history and task; mean over tasks. Supported: better by an interval "
      "wholly "
      "above +1. Refuted: worse (wholly below −1). Else inconclusive.";
  std::map<std::string, Side> contexts;
  for (const Condition& c : e.conditions) contexts[context_key(c.config, {"model", "compression"})].push_back(&c);
  std::map<std::string, std::vector<Contrast>> pairs;
  std::vector<Contrast> all;
  const auto label = [&](const Condition& c) {
    return model_label(c.config.model) +
           (c.config.compression == "none" ? "" : " " + e.compressions.at(c.config.compression));
  };
  size_t without_cost = 0;
  for (const auto& entry : contexts)
    for (const Condition* small : entry.second) {
      if (small->config.compression != "none") continue;
      const auto own = footprint(*small);
      if (!own) {
        ++without_cost;
        continue;
      }
      const Condition* best = nullptr;
      Footprint best_size;
      for (const Condition* other : entry.second) {
        if (other->config.compression == "none" || other->config.model == small->config.model) continue;
        const auto size = footprint(*other);
        if (!size || size->bytes > 1.1 * own->bytes || size->parameters < 1.05 * own->parameters) continue;
        const bool same_size = best && std::abs(size->parameters - best_size.parameters) < 0.05 * best_size.parameters;
        if (!best || (same_size ? size->bytes > best_size.bytes : size->parameters > best_size.parameters)) {
          best = other;
          best_size = *size;
        }
      }
      if (!best) continue;
      if (auto c = contrast({best}, {small}, label)) {
        all.push_back(*c);
        pairs[fmt::format("{} ({:.1f} MB) against {} ({:.1f} MB)", label(*best), best_size.bytes / 1e6, label(*small),
                          own->bytes / 1e6)]
            .push_back(std::move(*c));
      }
    }
  const bool planned = plan_values(e, [](const CellConfig& c) { return c.model; }) > 1 &&
                       plan_has(e, [](const CellConfig& c) { return c.compression != "none"; }) &&
                       plan_has(e, [](const CellConfig& c) { return c.compression == "none"; });
  if (all.empty()) {
    nothing_to_compare(
        v, planned,
        "a compressed model that stores no more bytes than a smaller uncompressed one, with the same method and task");
    if (without_cost) v.notes.push_back(fmt::format("{} conditions have no recorded model size.", without_cost));
    return v;
  }
  const auto reading = [](const Effect& x) { return superiority_reading(x, "quantized better", "quantized worse"); };
  Comparison pooled = compare("pooled", "all pairs and tasks", pointers(all));
  pooled.decides = true;
  pooled.reading = reading(pooled.effect);
  pooled.p_holm = pooled.effect.p;
  v.state = above(pooled.effect.lo, kMargin)    ? State::supported
            : below(pooled.effect.hi, -kMargin) ? State::refuted
                                                : State::inconclusive;
  v.headline = "Larger quantized − smaller: " + effect_text(pooled.effect);
  v.sentence = v.state == State::supported
                   ? "In the same memory, the larger model with fewer bits per weight scores higher."
               : v.state == State::refuted ? "In the same memory, the smaller model at full precision scores higher."
               : pooled.reading == "practically equal" ? "In the same memory, the two are within a point of each other."
                                                       : "The interval does not lie beyond one point on either side.";
  v.rows.push_back(std::move(pooled));
  std::vector<double> p;
  const size_t first = v.rows.size();
  for (const auto& [name, list] : pairs) {
    Comparison row = compare("by pair", name, pointers(list));
    row.reading = reading(row.effect);
    p.push_back(row.effect.p);
    v.rows.push_back(std::move(row));
  }
  const std::vector<double> adjusted = holm(p);
  for (size_t i = 0; i < p.size(); ++i) v.rows[first + i].p_holm = adjusted[i];
  add_task_rows(e, all, v.rows, reading);
  return v;
}

}  // namespace

const char* verdict_name(State state) {
  switch (state) {
    case State::supported:
      return "supported";
    case State::refuted:
      return "refuted";
    case State::inconclusive:
      return "inconclusive";
    default:
      return "no data";
  }
}

std::vector<Verdict> judge(const Experiment& e) {
  return {judge_method_by_task(e), judge_time(e),    judge_compression(e),
          judge_rank(e),           judge_history(e), judge_memory(e)};
}

std::string method_title(const std::string& name) {
  if (name == "none") return "No personalization";
  if (name == "rag") return "RAG";
  if (name == "lora") return "LoRA";
  if (name == "rag+lora") return "RAG + LoRA";
  if (name == "full") return "All weights";
  if (name == "prompt") return "Prompt tuning";
  if (name == "prefix") return "Prefix tuning";
  if (name == "ia3") return "IA3";
  return name;
}

std::string method_label(const MethodSpec& m) {
  const auto list = [](const std::vector<int64_t>& values) {
    std::vector<std::string> parts;
    for (int64_t x : values) parts.push_back(std::to_string(x));
    return join(parts, " or ");
  };
  std::string out = method_title(m.name);
  if (m.name == "lora" || m.name == "rag+lora") out += fmt::format(" r {} α {:g}", m.rank, m.alpha);
  if (m.name == "prompt" || m.name == "prefix") out += fmt::format(" {} tokens", m.n_virtual);
  if (m.name == "rag" || m.name == "rag+lora") out += fmt::format(" k {} {}", list(m.k), retriever_label(m));
  return out;
}

std::string retriever_label(const MethodSpec& method) {
  return method.embedder.empty() ? method.retriever : method.retriever + " " + model_label(method.embedder);
}

std::string model_label(const std::string& model) {
  if (model.rfind("zoo:", 0) == 0) return model.substr(4);
  const size_t end = model.find_last_not_of('/');
  if (end == std::string::npos) return model;
  const size_t slash = model.find_last_of('/', end);
  return model.substr(slash == std::string::npos ? 0 : slash + 1,
                      end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

std::string signed_number(double points) {
  if (!std::isfinite(points)) return points > 0 ? "∞" : "−∞";
  const std::string digits = fmt::format("{:.1f}", std::abs(points));
  if (digits == "0.0") return digits;
  return (points < 0 ? "−" : "+") + digits;
}

std::string effect_text(const Effect& e) {
  return fmt::format("{} points ({} to {})", signed_number(e.mean), signed_number(e.lo), signed_number(e.hi));
}

}  // namespace thimble::lab
