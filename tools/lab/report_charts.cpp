// The pictures of the report, as data.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "tools/dashboard/text.h"
#include "tools/lab/report_data.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;
using dashboard::fixed;
using dashboard::join;
using dashboard::plural;

using Conditions = std::vector<const Condition*>;

constexpr size_t kMaxSeries = 6;   // of one panel; more cannot be told apart
constexpr size_t kMaxPanels = 24;  // of one section

const char* const kMethods[] = {"none", "prompt", "prefix", "ia3", "lora", "full", "rag", "rag+lora"};

Json finite(double x) { return std::isfinite(x) ? Json(x) : Json(); }

void put_effect(Json& j, const char* key, const Effect& e) {
  j[key] = finite(e.mean);
  j["lo"] = finite(e.lo);
  j["hi"] = finite(e.hi);
}

std::string sample_note(const Effect& e) {
  return plural(e.people, "person", "people") + ", " + plural(e.seeds, "seed");
}

std::string history_label(int64_t history) { return history == 0 ? "whole history" : plural(history, "item"); }

Json chart(const char* id, const char* title, const char* reading) {
  return {{"id", id}, {"title", title}, {"reading", reading}, {"notes", Json::array()}, {"panels", Json::array()}};
}

void push(Json& charts, Json section) {
  Json& panels = section["panels"];
  if (panels.empty()) return;
  if (panels.size() > kMaxPanels) {
    section["notes"].push_back(
        fmt::format("{} of {} panels are drawn; all scores are in cells.csv.", kMaxPanels, panels.size()));
    panels.erase(panels.begin() + static_cast<std::ptrdiff_t>(kMaxPanels), panels.end());
  }
  charts.push_back(std::move(section));
}

Json marks_of(const std::vector<const Cell*>& cells, bool baselines) {
  Json marks = Json::array();
  const auto add = [&](const char* label, std::optional<double> value) {
    if (value) marks.push_back({{"label", label}, {"value", *value}});
  };
  if (baselines) {
    add("most frequent", baseline_points(cells, "majority"));
    add("own usual", baseline_points(cells, "user_majority"));
    add("own mean", baseline_points(cells, "user_mean"));
    add("nearest item", baseline_points(cells, "nearest"));
  }
  add("best possible", possible_points(cells, "history"));
  return marks;
}

// Labels that are short and still differ: the method alone, else with its settings, else with all that distinguishes.
// x: what the series run over ("history", "steps"), which therefore names none of them.
std::vector<std::string> series_labels(const Experiment& e, const Conditions& conditions, const std::string& x) {
  const std::vector<std::function<std::string(const CellConfig&)>> parts = {
      [&](const CellConfig& c) { return e.compressions.at(c.compression); },
      [&](const CellConfig& c) { return x == "history" ? std::string() : history_label(c.history); },
      [](const CellConfig& c) { return model_label(c.model); },
      [&](const CellConfig& c) {
        std::vector<std::string> steps;
        if (x == "steps") return std::string();
        for (int64_t s : c.steps) steps.push_back(std::to_string(s));
        return steps.empty() ? std::string() : join(steps, "/") + " steps";
      }};
  std::vector<std::string> out;
  std::set<std::string> names;
  for (const Condition* c : conditions) names.insert(c->config.method.name);
  for (const Condition* c : conditions) {
    size_t same = 0;
    std::set<std::string> labels;
    for (const Condition* d : conditions)
      if (d->config.method.name == c->config.method.name) {
        ++same;
        labels.insert(method_label(d->config.method));
      }
    std::string label = labels.size() > 1 ? method_label(c->config.method) : method_title(c->config.method.name);
    std::vector<std::string> more;
    for (const auto& part : parts) {
      std::set<std::string> values;
      for (const Condition* d : conditions)
        if (!part(d->config).empty()) values.insert(part(d->config));
      if (values.size() > 1 && !part(c->config).empty()) more.push_back(part(c->config));
    }
    if (names.size() == 1 && labels.size() == 1 && !more.empty())
      label = join(more, ", ");
    else if (!more.empty())
      label += ", " + join(more, ", ");
    out.push_back(label);
  }
  return out;
}

// One colour per method while methods differ; else one per series.
void colour(Json& series, const Conditions& conditions) {
  std::set<std::string> names;
  for (const Condition* c : conditions) names.insert(c->config.method.name);
  const bool by_method = names.size() == conditions.size();
  for (size_t i = 0; i < series.size(); ++i) {
    series[i]["series"] = by_method ? method_series(conditions[i]->config.method.name) : static_cast<int>(1 + i % 7);
    series[i]["shape"] = by_method ? method_shape(conditions[i]->config.method.name) : static_cast<int>(i % 6);
  }
}

// Which models, histories, ... a panel is about, where the experiment has several.
std::string panel_context(const Experiment& e, const CellConfig& config, bool with_compression, bool with_history) {
  std::set<std::string> models, compressions;
  std::set<int64_t> histories;
  for (const Condition& c : e.conditions) {
    models.insert(c.config.model);
    compressions.insert(c.config.compression);
    if (c.config.method.name != "none") histories.insert(c.config.history);
  }
  std::vector<std::string> parts;
  if (models.size() > 1) parts.push_back(model_label(config.model));
  if (with_compression && compressions.size() > 1 && config.compression != "none")
    parts.push_back(e.compressions.at(config.compression));
  if (with_history && histories.size() > 1) parts.push_back(history_label(config.history));
  return join(parts, ", ");
}

// ---- score by method and task

Json methods_chart(const Experiment& e) {
  Json section =
      chart("methods", "Score by method and task",
            "Each dot is the mean score of 100 over all people and questions; its line is the 95 % interval. Dashed "
            "lines need no model (baselines) or no one can pass them (best possible). Tasks run from the one that "
            "the base model finds most natural to the one that surprises it most.");
  // the setting (model, compression, ...) in which most methods meet most tasks
  std::map<std::string, std::map<std::string, Conditions>> settings;
  std::map<std::string, std::set<std::string>> reach;
  for (const Condition& c : e.conditions) {
    const std::string setting = context_key(c.config, {"method", "history", "task"});
    settings[setting][c.task].push_back(&c);
    reach[setting].insert(c.task + c.config.method.name);
  }
  const std::string* chosen = nullptr;
  for (const auto& entry : settings)
    if (!chosen || reach[entry.first].size() > reach[*chosen].size()) chosen = &entry.first;
  if (!chosen) return section;
  std::vector<std::pair<double, Json>> panels;
  for (const auto& [task, all] : settings[*chosen]) {
    std::map<int64_t, std::set<std::string>> methods;
    for (const Condition* c : all) methods[history_order(c->config.history)].insert(c->config.method.name);
    int64_t history = methods.rbegin()->first;
    for (const auto& [h, names] : methods)
      if (names.size() >= methods[history].size() && (names.size() > methods[history].size() || h > history))
        history = h;
    std::map<std::string, Conditions> by_method;
    Conditions used;
    for (const Condition* c : all)
      if (history_order(c->config.history) == history || c->config.method.name == "none") {
        by_method[c->config.method.name].push_back(c);
        used.push_back(c);
      }
    Json panel = {{"type", "forest"}, {"title", e.tasks.at(task).label}, {"rows", Json::array()}};
    double best = -1;
    std::string best_name;
    for (const char* name : kMethods) {
      const auto at = by_method.find(name);
      if (at == by_method.end()) continue;
      std::vector<Scores> variants;
      std::set<std::string> labels;
      for (const Condition* c : at->second) variants.push_back(c->scores());
      const auto fit = cross_fit(variants);
      if (!fit) continue;
      for (size_t i : fit->chosen) labels.insert(method_label(at->second[i]->config.method));
      const Effect effect = score_points(fit->scores);
      Json row = {{"label", method_title(name)}, {"series", method_series(name)}, {"shape", method_shape(name)}};
      put_effect(row, "value", effect);
      row["text"] = fixed(effect.mean, 1);
      std::string note = join({labels.begin(), labels.end()}, " / ");
      if (variants.size() > 1)
        note += fmt::format(", of {} variants, chosen on the other half of the people", variants.size());
      row["note"] = note + "\n" + sample_note(effect);
      if (effect.mean > best) {
        best = effect.mean;
        best_name = method_title(name);
      }
      panel["rows"].push_back(std::move(row));
    }
    if (panel["rows"].empty()) continue;
    const auto cells = cells_of(used);
    panel["marks"] = marks_of(cells, true);
    std::string subtitle = fmt::format("highest: {} {:.1f}", best_name, best);
    if (const auto possible = possible_points(cells, "history"))
      if (*possible > 0) subtitle += fmt::format(", {:.0f} % of what is possible", 100 * best / *possible);
    panel["subtitle"] = subtitle;
    panel["min"] = 0;
    panels.push_back({mean_metric(cells, {"difficulty", "base_nll"}).value_or(0), std::move(panel)});
  }
  std::stable_sort(panels.begin(), panels.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& p : panels) section["panels"].push_back(std::move(p.second));
  const Json key = Json::parse(*chosen);
  section["notes"].push_back(
      fmt::format("Model {}, {}; the largest history on which most methods ran.", model_label(key.value("model", "")),
                  key.value("compression", "none") == "none" ? "uncompressed" : key.value("compression", "")));
  return section;
}

// ---- RAG's lead against difficulty

Json difficulty_chart(const std::vector<Verdict>& verdicts) {
  Json section =
      chart("difficulty", "What decides between retrieving and learning",
            "Each dot is a task: above zero RAG is better, below zero learning is. Far right in the first panel are "
            "tasks whose answer can be copied from the most similar item; far left, those that follow a rule.");
  for (const Verdict& v : verdicts) {
    if (v.id != "C1" || !v.extra.contains("difficulty")) continue;
    for (const Json& d : v.extra["difficulty"]) {
      if (d["points"].size() < 3) continue;
      std::set<double> distinct;
      for (const Json& p : d["points"]) distinct.insert(p["x"].get<double>());
      if (distinct.size() < 2) continue;
      Json panel = {{"type", "scatter"},
                    {"title", d["meaning"]},
                    {"x_label", d["number"]},
                    {"zero", true},
                    {"points", Json::array()}};
      if (d.contains("spearman"))
        panel["subtitle"] =
            fmt::format("rank correlation {}, p {:.3f}, {} tasks", fixed(d["spearman"].get<double>(), 2),
                        d["p"].get<double>(), d["points"].size());
      for (const Json& p : d["points"]) {
        const double effect = p["effect"].is_number() ? p["effect"].get<double>() : 0;
        Json point = {{"label", p["task"]}, {"x", p["x"]}, {"y", effect}, {"lo", p["lo"]}, {"hi", p["hi"]}};
        point["series"] = effect >= 0 ? method_series("rag") : method_series("lora");
        point["shape"] = effect >= 0 ? method_shape("rag") : method_shape("lora");
        point["note"] = fmt::format("{} {}", d["number"].get<std::string>(), dashboard::compact(p["x"].get<double>()));
        panel["points"].push_back(std::move(point));
      }
      section["panels"].push_back(std::move(panel));
    }
  }
  return section;
}

// ---- lines: one panel per context, one series per condition group

struct LineGroup {
  const Condition* condition = nullptr;  // stands for the series' label
  std::map<int64_t, Scores> at;
};

// groups: by panel, then by series.
void line_panels(const Experiment& e, Json& section,
                 const std::map<std::string, std::map<std::string, LineGroup>>& groups, const char* x_part,
                 const char* x_label, size_t least_points, bool compression_in_title, bool history_in_title,
                 const std::function<std::string(int64_t, const CellConfig&)>& x_name) {
  for (const auto& entry : groups) {
    Conditions conditions;
    std::vector<const LineGroup*> series;
    for (const auto& s : entry.second)
      if (s.second.at.size() >= least_points) {
        conditions.push_back(s.second.condition);
        series.push_back(&s.second);
      }
    if (series.empty()) continue;
    // grid order, so that an experiment's own first choices are drawn
    std::vector<size_t> order(series.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return conditions[a] < conditions[b]; });
    const size_t drawn = std::min(order.size(), kMaxSeries);
    Conditions drawn_conditions;
    for (size_t i = 0; i < drawn; ++i) drawn_conditions.push_back(conditions[order[i]]);
    const std::vector<std::string> labels = series_labels(e, drawn_conditions, x_part);
    const CellConfig& config = drawn_conditions[0]->config;
    Json panel = {{"type", "line"},
                  {"title", e.tasks.at(drawn_conditions[0]->task).label},
                  {"x_label", x_label},
                  {"log_x", true}};
    std::string subtitle = panel_context(e, config, compression_in_title, history_in_title);
    if (labels.size() == 1) subtitle += (subtitle.empty() ? "" : ", ") + method_label(config.method);
    if (order.size() > drawn)
      subtitle += fmt::format("{}{} of {} series drawn", subtitle.empty() ? "" : ", ", drawn, order.size());
    panel["subtitle"] = subtitle;
    panel["x_names"] = Json::object();
    panel["series"] = Json::array();
    for (size_t i = 0; i < drawn; ++i) {
      const LineGroup& group = *series[order[i]];
      Json line = {{"label", labels[i]}, {"points", Json::array()}};
      for (const auto& [x, scores] : group.at) {
        const Effect effect = score_points(scores);
        const std::string name = x_name(x, group.condition->config);
        double position = static_cast<double>(x);
        if (x == history_order(0)) {  // "all" stands one step behind the largest number
          const bool known = group.condition->config.task.is_world;
          int64_t largest = 1;
          for (const auto& s : entry.second)
            for (const auto& p : s.second.at)
              if (p.first != x) largest = std::max(largest, p.first);
          const int64_t items = group.condition->config.task.world.history;
          position = static_cast<double>(known && items > largest ? items : largest * 2);
        }
        Json point = {{"x", position}};
        if (std::string(x_part) == "history") point["history"] = x == history_order(0) ? 0 : x;
        put_effect(point, "y", effect);
        point["note"] = sample_note(effect);
        if (!name.empty()) panel["x_names"][fmt::format("{:g}", position)] = name;
        line["points"].push_back(std::move(point));
      }
      panel["series"].push_back(std::move(line));
    }
    colour(panel["series"], drawn_conditions);
    panel["marks"] = Json::array();
    if (std::string(x_part) == "history") {  // what is possible grows with the history
      std::map<double, double> possible;
      for (const Condition& c : e.conditions) {
        if (c.task != drawn_conditions[0]->task) continue;
        const auto best = possible_points(cells_of({&c}), "history");
        if (!best) continue;
        for (const Json& line : panel["series"])
          for (const Json& p : line["points"])
            if (p.value("history", int64_t{-1}) == c.config.history) possible[p["x"].get<double>()] = *best;
      }
      Json line = {{"label", "best possible"}, {"series", 0}, {"dashed", true}, {"points", Json::array()}};
      for (const auto& [x, y] : possible) line["points"].push_back({{"x", x}, {"y", y}});
      if (possible.size() > 1) panel["series"].push_back(std::move(line));
    } else {
      for (const Json& m : marks_of(cells_of({drawn_conditions[0]}), false)) panel["marks"].push_back(m);
    }
    Conditions untouched;
    for (const Condition& c : e.conditions)
      if (c.task == drawn_conditions[0]->task && c.config.method.name == "none" && c.config.model == config.model &&
          c.config.compression == config.compression)
        untouched.push_back(&c);
    if (!untouched.empty())
      panel["marks"].push_back({{"label", "no personalization"}, {"value", score_points(untouched[0]->scores()).mean}});
    section["panels"].push_back(std::move(panel));
  }
}

// Panels follow the names of their tasks.
std::string panel_key(const Experiment& e, const Condition& c, const std::vector<std::string>& without) {
  return e.tasks.at(c.task).label + '\n' + context_key(c.config, without);
}

Json history_chart(const Experiment& e) {
  Json section =
      chart("history", "Score by size of the history",
            "How much of each person's history the method may use (latest items first). A line that is flat to the "
            "right says that a limited history is enough. Bars are 95 % intervals.");
  std::map<std::string, std::map<std::string, LineGroup>> groups;
  for (const Condition& c : e.conditions) {
    if (c.config.method.name == "none") continue;
    LineGroup& g = groups[panel_key(e, c, {"method", "compression", "history"})][context_key(c.config, {"history"})];
    if (!g.condition) g.condition = &c;
    g.at[history_order(c.config.history)] = c.scores();
  }
  line_panels(e, section, groups, "history", "history items", 2, false, false,
              [](int64_t h, const CellConfig&) { return h == history_order(0) ? std::string("all") : std::string(); });
  return section;
}

Json curve_chart(const Experiment& e) {
  Json section =
      chart("time", "Score by time spent learning",
            "Score on the questions after so many optimizer steps per person. A line that bends down says that tuning "
            "longer costs score. The steps at which the score is read were fixed beforehand.");
  std::map<std::string, std::map<std::string, LineGroup>> groups;
  for (const Condition& c : e.conditions) {
    if (method_series(c.config.method.name) == 0 || c.config.method.name == "rag") continue;
    LineGroup& g = groups[panel_key(e, c, {"method", "compression", "history"})][context_key(c.config, {"steps"})];
    if (!g.condition) g.condition = &c;
    for (const auto& [key, cell] : c.runs) {
      for (const CurvePoint& p : cell->curve)
        if (p.step > 0) g.at[p.step].runs[key] = {cell->config.task_sha256, cell->users, p.per_person};
      if (cell->config.steps.size() == 1 && cell->config.steps[0] > 0)
        g.at[cell->config.steps[0]].runs[key] = {cell->config.task_sha256, cell->users, cell->scores};
    }
  }
  line_panels(e, section, groups, "steps", "optimizer steps per person", 3, false, false,
              [](int64_t, const CellConfig&) { return std::string(); });
  return section;
}

Json rank_chart(const Experiment& e) {
  Json section =
      chart("rank", "LoRA's rank and alpha",
            "Score at equal steps and rates. A row or line without a trend says that the small setting is enough.");
  std::map<std::string, Conditions> contexts;
  for (const Condition& c : e.conditions)
    if (c.config.method.name == "lora") contexts[panel_key(e, c, {"rank", "alpha"})].push_back(&c);
  for (const auto& [key, list] : contexts) {
    std::set<int64_t> ranks;
    std::set<double> alphas;
    for (const Condition* c : list) {
      ranks.insert(c->config.method.rank);
      alphas.insert(c->config.method.alpha);
    }
    if (list.size() < 2) continue;
    const CellConfig& config = list[0]->config;
    Json panel = {{"title", e.tasks.at(list[0]->task).label}, {"subtitle", panel_context(e, config, true, true)}};
    if (ranks.size() > 1 && alphas.size() > 1 && list.size() >= 6 && 2 * list.size() >= ranks.size() * alphas.size()) {
      panel["type"] = "heat";
      panel["x_label"] = "rank";
      panel["y_label"] = "alpha";
      panel["columns"] = panel["rows"] = panel["cells"] = Json::array();
      for (int64_t r : ranks) panel["columns"].push_back(std::to_string(r));
      for (double a : alphas) {
        panel["rows"].push_back(fmt::format("{:g}", a));
        Json row = Json::array();
        for (int64_t r : ranks) {
          Json cell;
          for (const Condition* c : list)
            if (c->config.method.rank == r && c->config.method.alpha == a) {
              cell = Json::object();
              put_effect(cell, "value", score_points(c->scores()));
            }
          row.push_back(std::move(cell));
        }
        panel["cells"].push_back(std::move(row));
      }
    } else {
      const bool by_rank = ranks.size() > 1;
      panel["type"] = "line";
      panel["log_x"] = true;
      panel["x_label"] = by_rank ? "rank" : "alpha";
      std::map<double, std::map<double, const Condition*>> series;  // by the ratio that stays
      for (const Condition* c : list) {
        const double r = static_cast<double>(c->config.method.rank), a = c->config.method.alpha;
        series[by_rank ? (alphas.size() > 1 ? a / r : a) : 0][by_rank ? r : a] = c;
      }
      panel["series"] = Json::array();
      int index = 0;
      for (const auto& [ratio, points] : series) {
        Json line = {{"label", !by_rank            ? fmt::format("rank {}", *ranks.begin())
                               : alphas.size() > 1 ? fmt::format("alpha = {:g} rank", ratio)
                                                   : fmt::format("alpha {:g}", ratio)},
                     {"series", 1 + index % 7},
                     {"shape", index % 6},
                     {"points", Json::array()}};
        ++index;
        for (const auto& [x, c] : points) {
          Json point = {{"x", x}};
          const Effect effect = score_points(c->scores());
          put_effect(point, "y", effect);
          point["note"] = method_label(c->config.method) + "\n" + sample_note(effect);
          line["points"].push_back(std::move(point));
        }
        panel["series"].push_back(std::move(line));
      }
    }
    section["panels"].push_back(std::move(panel));
  }
  return section;
}

Json retrieval_chart(const Experiment& e) {
  Json section = chart("retrieval", "Retriever and number of examples",
                       "Score by k, the number of history items in the prompt, for each way of finding them.");
  std::map<std::string, Conditions> contexts;
  for (const Condition& c : e.conditions)
    if (c.config.method.name == "rag") contexts[panel_key(e, c, {"k", "retriever", "embedder"})].push_back(&c);
  for (const auto& [key, list] : contexts) {
    if (list.size() < 2) continue;
    std::set<int64_t> ks;
    bool single = true;
    std::map<std::string, Conditions> retrievers;
    for (const Condition* c : list) {
      single = single && c->config.method.k.size() == 1;
      if (c->config.method.k.size() == 1) ks.insert(c->config.method.k[0]);
      retrievers[retriever_label(c->config.method)].push_back(c);
    }
    Json panel = {{"title", e.tasks.at(list[0]->task).label},
                  {"subtitle", panel_context(e, list[0]->config, true, true)}};
    if (single && ks.size() > 1) {
      panel["type"] = "line";
      panel["log_x"] = *ks.begin() > 0;
      panel["x_label"] = "examples (k)";
      panel["series"] = Json::array();
      int index = 0;
      for (auto& [retriever, conditions] : retrievers) {
        std::stable_sort(conditions.begin(), conditions.end(), [](const Condition* a, const Condition* b) {
          return a->config.method.k < b->config.method.k;
        });
        Json line = {{"label", retriever}, {"series", 1 + index % 7}, {"shape", index % 6}, {"points", Json::array()}};
        ++index;
        for (const Condition* c : conditions) {
          Json point = {{"x", c->config.method.k[0]}};
          const Effect effect = score_points(c->scores());
          put_effect(point, "y", effect);
          point["note"] = sample_note(effect);
          line["points"].push_back(std::move(point));
        }
        panel["series"].push_back(std::move(line));
      }
    } else {
      panel["type"] = "forest";
      panel["rows"] = Json::array();
      int index = 0;
      for (const Condition* c : list) {
        const Effect effect = score_points(c->scores());
        Json row = {{"label", method_label(c->config.method).substr(4)},
                    {"series", 1 + index % 7},
                    {"shape", index % 6},
                    {"text", fixed(effect.mean, 1)}};
        ++index;
        put_effect(row, "value", effect);
        row["note"] = sample_note(effect);
        panel["rows"].push_back(std::move(row));
      }
    }
    section["panels"].push_back(std::move(panel));
  }
  return section;
}

Json memory_chart(const Experiment& e) {
  Json section = chart(
      "memory", "Model size and compression at equal memory",
      "Each dot is a model as it is stored: left is smaller, up is better. The stepped line is the best score that "
      "fits into so many bytes. Colours are models; labels name the compression.");
  std::map<std::string, Conditions> contexts;
  std::map<std::string, int> colours;
  for (const Condition& c : e.conditions) {
    contexts[panel_key(e, c, {"model", "compression"})].push_back(&c);
    colours.emplace(c.config.model, static_cast<int>(1 + colours.size() % 7));
  }
  std::vector<std::pair<std::string, Json>> panels;
  for (const auto& [key, list] : contexts) {
    Json panel = {{"type", "scatter"},
                  {"title", e.tasks.at(list[0]->task).label},
                  {"x_label", "model bytes"},
                  {"x_format", "bytes"},
                  {"log_x", true},
                  {"frontier", true},
                  {"points", Json::array()}};
    std::set<std::string> models;
    for (const Condition* c : list) models.insert(c->config.model);
    for (const Condition* c : list) {
      const Cell* cell = c->runs.begin()->second;
      if (!cell->cost.is_object() || !cell->cost.contains("model_bytes") || !cell->cost["model_bytes"].is_number())
        continue;
      const double bytes = cell->cost["model_bytes"];
      if (bytes <= 0) continue;
      const Effect effect = score_points(c->scores());
      const std::string& compression = e.compressions.at(c->config.compression);
      Json point = {{"label", models.size() > 1 ? model_label(c->config.model) + " " + compression : compression},
                    {"x", bytes}};
      put_effect(point, "y", effect);
      point["series"] = colours[c->config.model];
      point["shape"] = c->config.compression == "none" ? 1 : 0;
      point["note"] = dashboard::bytes_text(bytes) + "\n" + sample_note(effect);
      panel["points"].push_back(std::move(point));
    }
    if (panel["points"].size() < 2) continue;
    panel["subtitle"] = method_label(list[0]->config.method) +
                        (list[0]->config.method.name == "none" ? "" : ", " + history_label(list[0]->config.history));
    panels.push_back({key, std::move(panel)});
  }
  std::stable_sort(panels.begin(), panels.end(),
                   [](const auto& a, const auto& b) { return a.second["points"].size() > b.second["points"].size(); });
  if (panels.size() > 12) {
    section["notes"].push_back(fmt::format("The 12 of {} comparisons with most models are drawn.", panels.size()));
    panels.resize(12);
  }
  std::stable_sort(panels.begin(), panels.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& p : panels) section["panels"].push_back(std::move(p.second));
  return section;
}

// ---- shares of variance

struct NamedLevels {
  std::string name;
  std::vector<int> level;
};

Json variance_chart(const Experiment& e) {
  Json section = chart(
      "variance", "Which factor matters most",
      "Share of all differences between people's scores in a grid that goes with each factor. Interplay: what "
      "depends on factors together. People and chance: differences between people in the same condition, which no "
      "factor explains.");
  const std::vector<std::pair<const char*, std::function<std::string(const CellConfig&)>>> factors = {
      {"task",
       [&](const CellConfig& c) {
         Json t = c.to_json()["task"];
         if (t.contains("world")) t["world"].erase("seed");
         return t.dump();
       }},
      {"method", [](const CellConfig& c) { return c.method.name; }},
      {"model", [](const CellConfig& c) { return c.model; }},
      {"compression", [](const CellConfig& c) { return c.compression; }},
      {"history", [](const CellConfig& c) { return c.method.name == "none" ? "-" : std::to_string(c.history); }},
      {"steps", [](const CellConfig& c) { return Json(c.steps).dump(); }},
      {"rank",
       [](const CellConfig& c) {
         return c.method.name.find("lora") == std::string::npos ? "-" : std::to_string(c.method.rank);
       }},
      {"alpha",
       [](const CellConfig& c) {
         return c.method.name.find("lora") == std::string::npos ? "-" : fmt::format("{}", c.method.alpha);
       }},
      {"retriever",
       [](const CellConfig& c) { return c.method.name.find("rag") == std::string::npos ? "-" : retriever_label(c.method); }},
      {"k",
       [](const CellConfig& c) {
         return c.method.name.find("rag") == std::string::npos ? "-" : Json(c.method.k).dump();
       }},
      {"other settings",
       [](const CellConfig& c) {
         return fmt::format("{} {} {} {} {} {} {} {}", c.method.n_virtual, c.method.dropout, c.method.targets,
                            Json(c.method.lr).dump(), c.method.batch, c.method.prompt_tokens, c.precision, c.ram);
       }},
      {"seed", [](const CellConfig& c) { return std::to_string(c.seed); }}};
  for (const Grid& g : e.grids) {
    std::vector<const Cell*> cells;
    for (size_t i : g.cells)
      if (e.cells[i].state == Cell::State::done) cells.push_back(&e.cells[i]);
    if (cells.size() < 4) continue;
    std::vector<NamedLevels> named;
    for (const auto& [name, value] : factors) {
      std::map<std::string, int> seen;
      NamedLevels f{name, {}};
      for (const Cell* cell : cells)
        f.level.push_back(seen.emplace(value(cell->config), static_cast<int>(seen.size())).first->second);
      if (seen.size() < 2 || seen.size() == cells.size()) continue;
      // what an earlier factor settles (the rank, of methods that have one) adds nothing of its own; two settings that
      // always change together cannot be told apart and share a bar
      const auto settles = std::find_if(named.begin(), named.end(), [&](const NamedLevels& n) {
        std::map<int, int> image;
        for (size_t c = 0; c < f.level.size(); ++c)
          if (image.emplace(n.level[c], f.level[c]).first->second != f.level[c]) return false;
        return true;
      });
      if (settles == named.end())
        named.push_back(std::move(f));
      else if (settles->level == f.level && settles->name != "method" && f.name != "other settings")
        settles->name += " = " + f.name;
    }
    if (named.empty()) continue;
    std::vector<Factor> use;
    for (size_t i = 0; i < named.size() && i < static_cast<size_t>(kMaxFactors); ++i)
      use.push_back({named[i].name, named[i].level});
    std::vector<std::vector<double>> scores;
    for (const Cell* cell : cells) scores.push_back(cell->scores);
    const Variance v = decompose(use, scores);
    std::vector<Variance::Share> shares = v.factors;
    std::stable_sort(shares.begin(), shares.end(), [](const auto& a, const auto& b) { return a.share > b.share; });
    Json panel = {{"type", "bars"}, {"title", g.name}, {"rows", Json::array()}};
    const auto bar = [&](const std::string& name, double share, int series, const std::string& note) {
      panel["rows"].push_back({{"label", name},
                               {"value", 100 * share},
                               {"text", fixed(100 * share, 1) + " %"},
                               {"series", series},
                               {"note", note}});
    };
    for (const auto& s : shares) bar(s.name, s.share, 1, "main effect, averaged over all orders of entry");
    std::string pairs;
    for (size_t i = 0; i < v.pairs.size() && i < 3; ++i)
      pairs += fmt::format("{}{} {} %", i ? "\n" : "", v.pairs[i].name, fixed(100 * v.pairs[i].share, 1));
    if (use.size() > 1)
      bar("interplay", v.interplay, 3, "between conditions, beyond main effects" + (pairs.empty() ? "" : "\n" + pairs));
    bar("people and chance", v.people, 0, "between people of the same cell");
    const size_t planned = g.cells.size();
    panel["subtitle"] = fmt::format("{} of {} cells, {} scores", cells.size(), planned, v.rows);
    if (cells.size() < planned)
      panel["subtitle"] = panel["subtitle"].get<std::string>() + "; shares may change when the rest is done";
    panel["pairs"] = Json::array();
    for (const auto& s : v.pairs) panel["pairs"].push_back({{"name", s.name}, {"share", s.share}});
    section["panels"].push_back(std::move(panel));
  }
  return section;
}

}  // namespace

Json report_charts(const Experiment& e, const std::vector<Verdict>& verdicts) {
  Json charts = Json::array();
  push(charts, methods_chart(e));
  push(charts, difficulty_chart(verdicts));
  push(charts, curve_chart(e));
  push(charts, history_chart(e));
  push(charts, rank_chart(e));
  push(charts, retrieval_chart(e));
  push(charts, memory_chart(e));
  push(charts, variance_chart(e));
  return charts;
}

}  // namespace thimble::lab
