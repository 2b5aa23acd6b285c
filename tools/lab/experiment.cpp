// Reads an experiment folder and groups its cells into conditions.
#include "tools/lab/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/lab/task.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kAgain[] = "delete the cell's folder and run the plan again";

Json read_object(const std::string& path) {
  Json json(parse_json_file(path));
  if (!json.is_object()) throw Error(ErrorCode::input, path + ": expected a JSON object", kAgain);
  return json;
}

template <class T>
T field(const Json& json, const std::string& path, const char* key) {
  try {
    return json.at(key).get<T>();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorCode::input, fmt::format("{}: field \"{}\" is missing or of the wrong type", path, key), kAgain);
  }
}

double finite_field(const Json& json, const std::string& path, const char* key) {
  const double x = field<double>(json, path, key);
  if (!std::isfinite(x))
    throw Error(ErrorCode::input, fmt::format("{}: field \"{}\" is not finite", path, key), kAgain);
  return x;
}

// Names become paths, so they must be what CellConfig::hash() makes.
bool is_hash(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

void read_curve(const std::string& path, Cell& cell) {
  if (!file_exists(path)) return;
  const std::string text = read_file(path);
  const Json& metrics = cell.metrics;
  const Json chosen = metrics.contains("chosen") && metrics["chosen"].is_object() ? metrics["chosen"] : Json::object();
  std::map<int64_t, CurvePoint> points;
  size_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string where = fmt::format("{}:{}", path, ++line);
    const std::string_view row_text = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (row_text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const Json row(parse_json(row_text, where));
    if (!row.is_object()) throw Error(ErrorCode::input, where + ": expected a JSON object", kAgain);
    if (row.value("heldout", false)) continue;
    bool other_candidate = false;  // the queries of a candidate that was not chosen are no result
    for (const char* key : {"k", "lr"})
      if (row.contains(key) && row[key].is_number() && chosen.contains(key) && chosen[key] != row[key])
        other_candidate = true;
    if (other_candidate) continue;
    CurvePoint p;
    p.step = field<int64_t>(row, where, "step");
    p.score = finite_field(row, where, "score");
    if (row.contains("train_loss") && row["train_loss"].is_number()) p.train_loss = row["train_loss"];
    p.per_person = field<std::vector<double>>(row, where, "per_person");
    if (p.per_person.size() != cell.users.size())
      throw Error(ErrorCode::input, where + ": \"per_person\" has another number of people than metrics.json", kAgain);
    points[p.step] = std::move(p);
  }
  for (auto& entry : points) cell.curve.push_back(std::move(entry.second));
}

void read_cell(const std::string& dir, Cell& cell) {
  const std::string folder = join_path(dir, "cells/" + cell.hash), status_path = folder + "/status.json";
  if (!file_exists(status_path)) return;
  const Json status = read_object(status_path);
  const std::string state = field<std::string>(status, status_path, "state");
  if (state == "failed") {
    cell.state = Cell::State::failed;
    for (auto [key, value] : {std::pair{"reason", &cell.reason}, std::pair{"error_code", &cell.error_code}})
      if (status.contains(key)) *value = status[key].is_string() ? status[key].get<std::string>() : status[key].dump();
    return;
  }
  if (state != "done") return;
  cell.state = Cell::State::done;
  const std::string path = folder + "/metrics.json";
  cell.metrics = read_object(path);
  field<std::string>(cell.metrics, path, "primary");
  if (!field<Json>(cell.metrics, path, "metrics").is_object())
    throw Error(ErrorCode::input, path + ": field \"metrics\" is not an object", kAgain);
  const Json people = field<Json>(cell.metrics, path, "per_person");
  if (!people.is_array() || people.empty())
    throw Error(ErrorCode::input, path + ": field \"per_person\" is not a list of people", kAgain);
  for (const Json& person : people) {
    cell.users.push_back(field<std::string>(person, path, "user_id"));
    cell.scores.push_back(finite_field(person, path, "score"));
  }
  if (std::set<std::string>(cell.users.begin(), cell.users.end()).size() != cell.users.size())
    throw Error(ErrorCode::input, path + ": field \"per_person\" names a person twice", kAgain);
  if (file_exists(folder + "/cost.json")) cell.cost = read_object(folder + "/cost.json");
  read_curve(folder + "/curve.jsonl", cell);
}

Json task_json(const CellConfig& config) {
  Json task = config.to_json().at("task");
  if (task.contains("world")) task["world"].erase("seed");
  return task;
}

std::string repetition(const CellConfig& config) {
  return fmt::format("{:020} {:020} {}", config.seed, config.task.is_world ? config.task.world.seed : 0,
                     config.task_sha256);
}

std::string plural(int64_t n, const char* word) { return fmt::format("{} {}{}", n, word, n == 1 ? "" : "s"); }

// What distinguishes a world task from its siblings, in words; dials on which all siblings agree are left out.
std::string dial_label(const WorldDials& d, const std::vector<WorldDials>& siblings) {
  const auto varies = [&](auto member) {
    return std::any_of(siblings.begin(), siblings.end(), [&](const WorldDials& s) { return s.*member != d.*member; });
  };
  std::vector<std::string> parts;
  if (varies(&WorldDials::key)) parts.push_back(d.key == "name" ? "facts" : d.key == "topic" ? "rules" : d.key);
  if (varies(&WorldDials::keys)) parts.push_back(d.keys == 0 ? "default keys" : plural(d.keys, "key"));
  if (varies(&WorldDials::classes)) parts.push_back(fmt::format("{} tags", d.classes));
  if (varies(&WorldDials::history)) parts.push_back(plural(d.history, "item"));
  if (varies(&WorldDials::noise)) parts.push_back(d.noise == 0 ? "" : fmt::format("noise {:g}", d.noise));
  if (varies(&WorldDials::person)) parts.push_back(fmt::format("person {:g}", d.person));
  if (varies(&WorldDials::overlap)) parts.push_back(d.overlap == "latent" ? "no shared words" : "");
  if (varies(&WorldDials::drift)) parts.push_back(d.drift == 0 ? "" : fmt::format("drift {:g}", d.drift));
  if (varies(&WorldDials::people)) parts.push_back(fmt::format("{} people", d.people));
  if (varies(&WorldDials::queries)) parts.push_back(fmt::format("{} questions", d.queries));
  std::string out;
  for (const std::string& p : parts)
    if (!p.empty()) out += (out.empty() ? "" : ", ") + p;
  return out;
}

void name_compressions(Experiment& e) {
  std::map<std::string, std::set<std::string>> uses;
  const auto brief = [](const std::string& name) {
    const size_t colon = name.find(':');
    if (colon == std::string::npos) return name;
    std::string out = name.substr(0, name.find('-', colon));
    out[colon] = ' ';
    return out;
  };
  for (const Cell& c : e.cells) uses[brief(c.config.compression)].insert(c.config.compression);
  for (const Cell& c : e.cells) {
    const std::string& name = c.config.compression;
    e.compressions[name] = name == "none" ? "uncompressed" : uses[brief(name)].size() == 1 ? brief(name) : name;
  }
}

std::string task_title(const TaskSpec& task) {
  const std::string& name = task.is_world ? task.world.task : task.lamp_task;
  try {
    return find_task(name).title;
  } catch (const Error&) {  // a report can be older or newer than the program's tasks
    return name;
  }
}

void name_tasks(Experiment& e) {
  std::map<std::string, std::vector<WorldDials>> worlds;  // by LaMP task
  std::map<std::string, const CellConfig*> configs;
  for (const Cell& cell : e.cells) {
    const std::string key = task_json(cell.config).dump();
    if (!configs.emplace(key, &cell.config).second) continue;
    if (cell.config.task.is_world) worlds[cell.config.task.world.task].push_back(cell.config.task.world);
  }
  // "tagging" for "movie tagging" while no other task ends in the same word
  const auto last_word = [](const std::string& title) { return title.substr(title.find_last_of(' ') + 1); };
  std::map<std::string, std::set<std::string>> endings;
  for (const auto& entry : configs) {
    const std::string title = task_title(entry.second->task);
    endings[last_word(title)].insert(title);
  }
  std::set<std::string> used;
  for (const auto& [key, config] : configs) {
    TaskInfo t;
    t.key = key;
    t.lamp = config->task.is_world ? config->task.world.task : config->task.lamp_task;
    std::string detail;
    t.title = task_title(config->task);
    if (config->task.is_world) {
      detail = dial_label(config->task.world, worlds[t.lamp]);
    } else {
      const std::string& dir = config->task.lamp_dir;
      const size_t end = dir.find_last_not_of('/');
      const size_t slash = end == std::string::npos ? end : dir.find_last_of('/', end);
      detail = end == std::string::npos ? dir : dir.substr(slash == std::string::npos ? 0 : slash + 1, end - slash);
    }
    const std::string word = last_word(t.title);
    t.label = (endings[word].size() == 1 ? word : t.title) + (detail.empty() ? "" : ": " + detail);
    const std::string base = t.label;
    for (int i = 2; !used.insert(t.label).second; ++i) t.label = fmt::format("{} ({})", base, i);
    e.tasks[key] = t;
  }
}

void group_conditions(Experiment& e) {
  std::map<std::string, size_t> index;
  std::vector<size_t> order;  // as the grids list them
  std::set<size_t> listed;
  for (const Grid& g : e.grids)
    for (size_t c : g.cells)
      if (listed.insert(c).second) order.push_back(c);
  for (size_t i = 0; i < e.cells.size(); ++i)
    if (listed.insert(i).second) order.push_back(i);
  for (size_t i : order) {
    const Cell& cell = e.cells[i];
    if (cell.state != Cell::State::done) continue;
    const auto [at, is_new] = index.emplace(context_key(cell.config, {}), e.conditions.size());
    if (is_new) {
      Condition c;
      c.config = cell.config;
      c.task = task_json(cell.config).dump();
      e.conditions.push_back(std::move(c));
    }
    const Cell*& run = e.conditions[at->second].runs[repetition(cell.config)];
    if (!run || run->curve.size() < cell.curve.size()) run = &cell;
    TaskInfo& task = e.tasks.at(e.conditions[at->second].task);
    if (!task.example) task.example = &cell;
  }
}

}  // namespace

int64_t Experiment::count(Cell::State state) const {
  return std::count_if(cells.begin(), cells.end(), [&](const Cell& c) { return c.state == state; });
}

Experiment read_experiment(const std::string& dir) {
  Experiment e;
  e.dir = dir;
  const std::string path = join_path(dir, "plan.json");
  if (!file_exists(path))
    throw Error(ErrorCode::input, path + ": no such file",
                "give the folder that `thimble lab run PLAN --out DIR` wrote");
  const Json plan = read_object(path);
  e.name = field<std::string>(plan, path, "name");
  if (file_exists(join_path(dir, "machine.json"))) e.machine = read_object(join_path(dir, "machine.json"));

  if (plan.contains("device")) e.device = plan["device"];
  if (plan.contains("infeasible") && plan["infeasible"].is_object())
    for (const auto& [hash, cell] : plan["infeasible"].items())
      e.infeasible.push_back({hash, cell.is_object() ? cell.value("reason", std::string()) : std::string()});

  const Json configs = field<Json>(plan, path, "cells");
  if (!configs.is_object()) throw Error(ErrorCode::input, path + ": field \"cells\" is not an object", kAgain);
  std::map<std::string, CellConfig> sorted;
  for (const auto& [hash, config] : configs.items()) {
    if (!is_hash(hash))
      throw Error(ErrorCode::input, fmt::format("{}: {} is not the hash of a cell", path, quote_for_message(hash)),
                  kAgain);
    sorted[hash] = CellConfig::from_json(config);
  }
  std::map<std::string, size_t> index;
  for (auto& [hash, config] : sorted) {
    index[hash] = e.cells.size();
    Cell cell;
    cell.hash = hash;
    cell.config = config;
    read_cell(dir, cell);
    e.cells.push_back(std::move(cell));
  }
  const Json grids = field<Json>(plan, path, "grids");
  if (!grids.is_array()) throw Error(ErrorCode::input, path + ": field \"grids\" is not a list", kAgain);
  for (const Json& g : grids) {
    Grid grid;
    grid.name = field<std::string>(g, path, "name");
    if (g.contains("factors")) grid.factors = field<std::vector<std::string>>(g, path, "factors");
    for (const std::string& hash : field<std::vector<std::string>>(g, path, "cells")) {
      const auto at = index.find(hash);
      if (at == index.end())
        throw Error(ErrorCode::input,
                    fmt::format("{}: grid {} names a cell that \"cells\" lacks", path, quote_for_message(grid.name)),
                    kAgain);
      grid.cells.push_back(at->second);
      e.cells[at->second].grids.push_back(grid.name);
    }
    e.grids.push_back(std::move(grid));
  }
  name_tasks(e);
  name_compressions(e);
  group_conditions(e);
  return e;
}

std::string context_key(const CellConfig& config, const std::vector<std::string>& without) {
  Json json = config.to_json();
  json.erase("seed");
  json.erase("curve");
  json.erase("task_sha256");
  json.erase("model_sha256");
  json["method"].erase("embedder_sha256");
  json["task"] = task_json(config);
  for (const std::string& part : without) {
    if (part == "method") json.erase("steps");
    json.erase(part);
    if (json.contains("method")) json["method"].erase(part);
  }
  return json.dump();
}

bool is_learning(const std::string& method) {
  return method == "lora" || method == "full" || method == "prompt" || method == "prefix" || method == "ia3";
}

int64_t history_order(int64_t history) { return history == 0 ? std::numeric_limits<int64_t>::max() : history; }

Sample Scores::sample() const {
  Sample s;
  s.same_people = runs.size() > 1;
  for (const auto& entry : runs) {
    const Run& run = entry.second;
    const Run& first = runs.begin()->second;
    if (run.people != first.people || run.users != first.users) s.same_people = false;
    s.values.push_back(run.values);
  }
  return s;
}

Scores Condition::scores() const {
  Scores s;
  for (const auto& [key, cell] : runs) s.runs[key] = {cell->config.task_sha256, cell->users, cell->scores};
  return s;
}

std::optional<Scores> average(const std::vector<Scores>& parts) {
  Scores out;
  if (parts.empty()) return std::nullopt;
  for (const auto& [key, first] : parts[0].runs) {
    std::vector<std::map<std::string, double>> others;
    bool everywhere = true;
    for (size_t i = 1; i < parts.size(); ++i) {
      const auto at = parts[i].runs.find(key);
      if (at == parts[i].runs.end()) {
        everywhere = false;
        break;
      }
      std::map<std::string, double>& values = others.emplace_back();
      for (size_t j = 0; j < at->second.users.size(); ++j) values[at->second.users[j]] = at->second.values[j];
    }
    if (!everywhere) continue;
    Scores::Run run;
    run.people = first.people;
    for (size_t j = 0; j < first.users.size(); ++j) {
      double sum = first.values[j];
      bool present = true;
      for (const auto& values : others) {
        const auto at = values.find(first.users[j]);
        if (at == values.end()) {
          present = false;
          break;
        }
        sum += at->second;
      }
      if (!present) continue;
      run.users.push_back(first.users[j]);
      run.values.push_back(sum / static_cast<double>(parts.size()));
    }
    if (!run.users.empty()) out.runs[key] = std::move(run);
  }
  if (out.runs.empty()) return std::nullopt;
  return out;
}

std::optional<Scores> difference(const Scores& a, const Scores& b) {
  Scores minus = b;
  for (auto& entry : minus.runs)
    for (double& v : entry.second.values) v = -v;
  std::optional<Scores> half = average({a, minus});
  if (half)
    for (auto& entry : half->runs)
      for (double& v : entry.second.values) v *= 2;
  return half;
}

std::optional<CrossFit> cross_fit(const std::vector<Scores>& variants) {
  std::optional<Scores> common = average(variants);
  if (!common) return std::nullopt;
  CrossFit out;
  out.scores = *common;
  // values of the variants on the common people
  std::vector<Scores> aligned;
  for (const Scores& v : variants) {
    Scores a = *common;
    for (auto& [key, run] : a.runs) {
      const Scores::Run& source = v.runs.at(key);
      std::map<std::string, double> values;
      for (size_t i = 0; i < source.users.size(); ++i) values[source.users[i]] = source.values[i];
      for (size_t i = 0; i < run.users.size(); ++i) run.values[i] = values.at(run.users[i]);
    }
    aligned.push_back(std::move(a));
  }
  for (size_t half = 0; half < 2; ++half) {
    size_t best = 0;
    double best_mean = -std::numeric_limits<double>::infinity();
    for (size_t v = 0; v < aligned.size(); ++v) {
      double sum = 0, n = 0;
      for (const auto& entry : aligned[v].runs)
        for (size_t i = 1 - half; i < entry.second.values.size(); i += 2) {
          sum += entry.second.values[i];
          ++n;
        }
      if (n > 0 && sum / n > best_mean) {
        best_mean = sum / n;
        best = v;
      }
    }
    out.chosen.push_back(best);
    for (auto& [key, run] : out.scores.runs)
      for (size_t i = half; i < run.values.size(); i += 2) run.values[i] = aligned[best].runs.at(key).values[i];
  }
  return out;
}

}  // namespace thimble::lab
