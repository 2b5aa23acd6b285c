// Runs the cells of an experiment, each in a process of its own, several at once if asked, together with other runners
// of the same folder if there are any. Whatever is killed, published cells stay and are never computed again.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/lab/resolve.h"
#include "tools/lab/store.h"

namespace thimble::lab {

using Executor = std::function<CellResult(const CellConfig&, const CellEnvironment&)>;

struct RunnerOptions {
  int jobs = 1;
  int threads = 1;            // of all jobs together
  bool retry_failed = false;
  std::vector<std::string> only;   // beginnings of hashes; empty: all
  std::vector<std::string> child;  // command of a cell's process; --dir, --hash and --threads are added
  std::string isa;                 // recorded; the child gets it through its command
  Estimator estimator;
  bool estimate_all = false;
  std::function<bool()> stop;      // asked between cells and while waiting
  std::function<void(const std::string& line)> say;  // words for people
  std::function<void(size_t done, size_t total)> measuring;  // while prepare_run looks at costs
  std::function<void(size_t done, size_t total, double remaining_s, const std::string& now)> progress;
};

// DIR after prepare(): what is to be run.
struct PreparedRun {
  std::string dir;
  nlohmann::ordered_json plan;  // plan.json
  std::vector<std::string> hashes;  // of plan.json's cells, in its order
  size_t added = 0;             // cells that an earlier plan of this folder did not have
  size_t infeasible = 0, merged = 0;
};

// Writes plan.yaml, plan.json and machine.json; nothing is run. An existing folder with the same plan keeps its cells
// and calibration; with another plan, its cells are added to those that there are, and the earlier plan.yaml is kept
// as plan.<n>.yaml. Errors: those of resolve_plan; input: DIR holds something that is no experiment.
PreparedRun prepare_run(const Plan& plan, const PlanOverrides& overrides, const std::string& dir, const RunnerOptions& options);

struct RunSummary {
  size_t cells = 0;             // asked for
  size_t ran = 0;               // published by this call
  size_t reused = 0;            // found published at the start
  size_t elsewhere = 0;         // published meanwhile by other runners
  size_t done = 0, failed = 0;  // of those asked for, at the end
  double seconds = 0;
  nlohmann::ordered_json failures;  // [{hash, reason, error_code}]
};

// Returns when every cell asked for is published. Errors: interrupted, after the children have ended; input and budget when
// nothing can be published (a full disk).
RunSummary run_cells(const PreparedRun& run, const RunnerOptions& options);

// The work of a cell's process: computes and publishes. Returns the exit status: 0 when something was published (a
// failure too).
int run_cell_process(const std::string& dir, const std::string& hash, const KernelTable& kernels, int threads, const Executor& execute);

// What a folder holds: {"schema": "thimble.lab_status/1", dir, name, cells, done, failed, running, pending, infeasible,
// eta_s (one runner; null where nothing was measured), failures: [..], list: [{hash, state, model, ...}]}.
nlohmann::ordered_json experiment_status(const std::string& dir);

// Samples per hour of each (model, compression, method), the median of done cells, into machine.json.
void record_samples_per_hour(const PreparedRun& run);

// Reads DIR/plan.json. Errors (input): there is none, or it is malformed.
PreparedRun read_prepared(const std::string& dir);

}  // namespace thimble::lab
