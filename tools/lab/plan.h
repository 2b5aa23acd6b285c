// A plan: which conditions an experiment compares, written by hand in YAML (tools/lab/README.md is its reference), read
// into cells. Every error opens with file:line:column.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/lab/cell.h"
#include "tools/lab/device.h"

namespace thimble::lab {

// Where something stands in the plan; both from 1.
struct PlanMark {
  int line = 1, column = 1;
};

// One combination of a grid's factors. Model and data have no digests yet, and a time budget is not yet a number of steps.
struct PlanCell {
  CellConfig config;
  double seconds = 0;  // > 0: config.steps is empty until the budget is converted
  PlanMark model_at, task_at, cell_at;
};

struct PlanGrid {
  std::string name;
  PlanMark at;
  std::vector<PlanCell> cells;
};

struct Plan {
  std::string path;  // what errors call it
  std::string text;  // byte for byte
  std::string name;
  Device device;
  std::vector<std::string> metrics;  // empty: all of each task
  std::vector<PlanGrid> grids;
};

// What the command line sets over the plan.
struct PlanOverrides {
  std::optional<int64_t> ram;
  std::optional<int> threads;
  std::optional<std::string> precision;
  uint64_t seed = 0;  // added to every seed

  nlohmann::ordered_json to_json() const;  // only what is set
};

inline constexpr size_t kMaxPlanCells = 100000;  // before equal ones are merged

// Errors: usage for an unknown key or value, with the valid ones; input for YAML that does not parse, a wrong type, an
// empty list, a missing key. Neither models nor data are looked for yet.
Plan parse_plan(const std::string& text, const std::string& path, const PlanOverrides& overrides = {});
Plan read_plan(const std::string& path, const PlanOverrides& overrides = {});

// "plan.yaml:12:5: "
std::string plan_place(const std::string& path, PlanMark mark);

// Names of the settings in which these cells differ, as paths into config.json ("method.rank", "task.world.noise"), each
// judged only among the cells to which it applies; digests and seeds of worlds are left out.
std::vector<std::string> varying_factors(const std::vector<const CellConfig*>& cells);

}  // namespace thimble::lab
