// From a plan to cells with names: models and data are looked for, time budgets become steps, equal cells fall together,
// and what does not fit into RAM is found before anything runs.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tools/lab/machine_file.h"
#include "tools/lab/plan.h"

namespace thimble::lab {

struct ResolvedCell {
  std::string hash;  // empty: its time budget has not become steps (only without estimator)
  CellConfig config;
  PlanMark at;
  double seconds = 0;                    // the time budget that config.steps come from; 0: steps were given
  std::optional<CellEstimate> estimate;  // for this cell's steps
  std::string no_estimate;               // why measuring failed
  std::string infeasible;                // why it cannot run on the device; empty: it can
};

struct ResolvedGrid {
  std::string name;
  std::vector<size_t> cells;         // of ResolvedPlan::cells
  std::vector<std::string> factors;  // see varying_factors()
};

struct ResolvedPlan {
  std::string name;
  Device device;
  std::vector<std::string> metrics;
  std::vector<ResolvedGrid> grids;
  std::vector<ResolvedCell> cells;  // every one once, in the order of the plan
  size_t merged = 0;                // combinations that were equal to another

  // plan.json: {"schema", "name", "device", "metrics", "grids": [{"name", "cells": [hash], "factors"}],
  // "cells": {hash: config}, "infeasible": {hash: {"reason", "config"}}, "conversions": {hash: {"seconds", "step_s", "steps"}}}.
  // Cells that cannot run stand under "infeasible" only.
  nlohmann::ordered_json to_json() const;
};

struct ResolveOptions {
  Estimator estimator;                 // empty: no costs; time budgets stay open, RAM is not predicted
  bool estimate_all = false;           // also cells without RAM limit or time budget
  std::function<bool(const std::string& hash)> wanted;  // only these cells are checked against RAM; empty: all
  std::function<void(size_t done, size_t total)> progress;
};

// Errors name the place in the plan: input for models and data that are missing; usage for dials out of range; budget
// when a cell is predicted to need more than its RAM and the device does not say skip.
ResolvedPlan resolve_plan(const Plan& plan, MachineFile& machine, const ResolveOptions& options);

}  // namespace thimble::lab
