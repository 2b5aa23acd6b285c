#include "tools/lab/resolve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "tensor/error.h"
#include "tools/lab/method.h"
#include "tools/lab/world.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

template <class F>
auto placed(const Plan& plan, PlanMark at, F&& f) {
  try {
    return f();
  } catch (const Error& e) {
    throw Error(e.code(), plan_place(plan.path, at) + e.what(), e.hint());
  }
}

// Digests of models and tasks; each is looked for once.
class Digests {
 public:
  Digests(const Plan& plan, MachineFile& machine) : plan_(plan), machine_(machine) {}

  void fill(const PlanCell& cell, CellConfig& config) {
    auto& model = models_[config.model];
    if (model.empty())
      model = placed(plan_, cell.model_at, [&] { return model_sha256(resolve_model(config.model), machine_.hashes); });
    config.model_sha256 = model;
    if (const std::string& path = config.method.embedder; !path.empty()) {
      auto& embedder = models_[path];
      if (embedder.empty())
        embedder = placed(plan_, cell.model_at, [&] { return model_sha256(resolve_model(path), machine_.hashes); });
      config.method.embedder_sha256 = embedder;
    }
    const std::string spec = config.to_json()["task"].dump();
    auto& task = tasks_[spec];
    if (task.empty())
      task = placed(plan_, cell.task_at, [&] {
        if (config.task.is_world) check_dials(config.task.world);
        return task_sha256(config.task, machine_.hashes);
      });
    config.task_sha256 = task;
  }

 private:
  // The generator knows its dials; one person is enough to ask it.
  void check_dials(WorldDials world) {
    world.seed = 0;
    world.people = world.queries = 1;
    TaskSpec one;
    one.world = world;
    CellConfig c;
    c.task = one;
    if (checked_.insert(c.to_json()["task"].dump()).second) make_world(world);
  }

  const Plan& plan_;
  MachineFile& machine_;
  std::map<std::string, std::string> models_, tasks_;
  std::set<std::string> checked_;
};

std::string describe(const CellConfig& c) {
  return fmt::format("{} {} {}", c.model, c.compression, c.method.name);
}

}  // namespace

Json ResolvedPlan::to_json() const {
  Json json = {{"schema", "thimble.lab_plan_resolved/1"},
               {"name", name},
               {"device", {{"ram", device.ram}, {"threads", device.threads}, {"profile", device.profile}, {"over", device.skip_over ? "skip" : "refuse"}}},
               {"metrics", metrics}};
  json["grids"] = Json::array();
  for (const ResolvedGrid& g : grids) {
    Json hashes = Json::array();
    for (const size_t i : g.cells)
      if (cells[i].infeasible.empty()) hashes.push_back(cells[i].hash);
    json["grids"].push_back({{"name", g.name}, {"cells", hashes}, {"factors", g.factors}});
  }
  json["cells"] = json["infeasible"] = json["conversions"] = Json::object();
  for (const ResolvedCell& c : cells) {
    if (c.infeasible.empty())
      json["cells"][c.hash] = c.config.to_json();
    else
      json["infeasible"][c.hash] = {{"reason", c.infeasible}, {"config", c.config.to_json()}};
    if (c.seconds > 0)
      json["conversions"][c.hash] = {{"seconds", c.seconds}, {"step_s", c.estimate ? c.estimate->step_s : 0.0}, {"steps", c.config.steps}};
  }
  return json;
}

ResolvedPlan resolve_plan(const Plan& plan, MachineFile& machine, const ResolveOptions& options) {
  ResolvedPlan resolved;
  resolved.name = plan.name;
  resolved.device = plan.device;
  resolved.metrics = plan.metrics;
  Digests digests(plan, machine);
  // Everything is looked for before anything is measured.
  std::vector<std::vector<CellConfig>> configs;
  for (const PlanGrid& grid : plan.grids) {
    auto& list = configs.emplace_back();
    for (const PlanCell& cell : grid.cells) {
      list.push_back(cell.config);
      digests.fill(cell, list.back());
    }
  }

  std::unordered_map<std::string, size_t> known;
  for (size_t g = 0; g < plan.grids.size(); ++g) {
    ResolvedGrid grid;
    grid.name = plan.grids[g].name;
    for (size_t i = 0; i < configs[g].size(); ++i) {
      const PlanCell& source = plan.grids[g].cells[i];
      ResolvedCell cell;
      cell.config = std::move(configs[g][i]);
      cell.at = source.cell_at;
      cell.seconds = source.seconds;
      std::string key;
      if (cell.seconds > 0) {
        CellConfig sample = cell.config;
        sample.steps = {1};
        const auto e = machine.estimate(sample, options.estimator, &cell.no_estimate);
        if (e) {
          if (!(e->step_s > 0))
            throw Error(ErrorCode::internal, plan_place(plan.path, cell.at) + describe(cell.config) + ": the measured time of a step is 0");
          const auto steps = static_cast<int64_t>(std::min(1e8, std::max(1.0, std::floor(cell.seconds / e->step_s))));
          cell.config.steps = {steps};
          auto& curve = cell.config.curve;
          curve.erase(std::upper_bound(curve.begin(), curve.end(), steps), curve.end());
        } else if (options.estimator) {
          throw Error(ErrorCode::input,
                      plan_place(plan.path, cell.at) + describe(cell.config) + ": its time budget cannot become steps: " + cell.no_estimate,
                      "give steps, or repair the cause");
        } else {
          key = fmt::format("{:a} s ", cell.seconds);
        }
      }
      const bool open = !key.empty();
      cell.hash = cell.config.hash();
      key += cell.hash;
      if (open) cell.hash.clear();
      const auto [place, fresh] = known.emplace(key, resolved.cells.size());
      if (!fresh) {
        ++resolved.merged;
        auto& cells = grid.cells;
        if (std::find(cells.begin(), cells.end(), place->second) == cells.end()) cells.push_back(place->second);
        continue;
      }
      grid.cells.push_back(resolved.cells.size());
      resolved.cells.push_back(std::move(cell));
    }
    std::vector<const CellConfig*> of_grid;
    for (const size_t i : grid.cells) of_grid.push_back(&resolved.cells[i].config);
    grid.factors = varying_factors(of_grid);
    resolved.grids.push_back(std::move(grid));
  }

  std::string refused;
  size_t n_refused = 0, looked_at = 0;
  for (ResolvedCell& c : resolved.cells) {
    if (options.progress) options.progress(looked_at++, resolved.cells.size());
    if (options.wanted && !options.wanted(c.hash)) continue;
    if (c.hash.empty() || (!options.estimate_all && c.config.ram == 0 && c.seconds == 0)) continue;
    c.estimate = machine.estimate(c.config, options.estimator, &c.no_estimate);
    if (!c.estimate || c.config.ram == 0 || c.estimate->budget_bytes <= c.config.ram) continue;
    c.infeasible = fmt::format("{} with history {} is predicted to need {}, more than the device's {}", describe(c.config),
                               c.config.history == 0 ? "all" : std::to_string(c.config.history), memory_text(c.estimate->budget_bytes),
                               memory_text(c.config.ram));
    if (resolved.device.skip_over) continue;
    if (++n_refused <= 5) refused += (refused.empty() ? "" : "\n") + plan_place(plan.path, c.at) + c.infeasible;
  }
  if (n_refused > 5) refused += fmt::format("\nand {} more cells", n_refused - 5);
  if (n_refused > 0)
    throw Error(ErrorCode::budget, refused, "choose a stronger compression, a smaller model or more RAM; device: {over: skip} leaves such cells out");
  return resolved;
}

}  // namespace thimble::lab
