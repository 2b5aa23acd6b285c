// thimble lab: experiments. A plan in YAML becomes cells, each is run once in a process of its own, and a report says
// what they mean.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "tensor/env.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/read_input.h"
#include "tools/lab/report.h"
#include "tools/lab/runner.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

std::atomic<bool> g_stop{false};

void install_handlers() {
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop.store(true); };
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
}

struct LabOptions {
  CommonOptions common;
  std::string plan, out, dir, hash, cells;
  int jobs = 1, claim_fd = -1;
  bool retry_failed = false, quick = false, no_report = false, slurm = false, parallel = false;
  const CLI::App* command = nullptr;
};

bool given(const LabOptions& o, const std::string& option) { return o.command->count(option) > 0; }

lab::PlanOverrides overrides_of(const LabOptions& o) {
  lab::PlanOverrides v;
  if (!o.common.ram.empty()) v.ram = parse_bytes(o.common.ram, "--ram");
  if (given(o, "--threads")) v.threads = o.common.threads;
  if (given(o, "--precision")) v.precision = o.common.precision;
  v.seed = o.common.seed;
  return v;
}

// What the plan's device, the command line and the machine allow.
int threads_of(const Session& session, const lab::Plan& plan) { return plan.device.threads > 0 ? plan.device.threads : session.threads(); }

lab::Estimator estimator_of(const Session& session, int threads) {
  const KernelTable& kernels = session.kernels();
  return [&kernels, threads](const lab::CellConfig& config) {
    if (g_stop.load()) throw Error(ErrorCode::interrupted, "interrupted while costs were measured", "run the same command again to continue");
    MemoryBudget unlimited;
    lab::CellEnvironment environment;
    environment.kernels = &kernels;
    environment.threads = threads;
    environment.budget = &unlimited;
    return lab::estimate_cell(config, environment);
  };
}

std::string seconds_text(double s) {
  if (s < 99.5) return fmt::format("{:.1f} s", s);
  if (s < 5970) return fmt::format("{:.0f} min", s / 60);
  return fmt::format("{:.1f} h", s / 3600);
}

template <class T>
std::string list_text(const std::vector<T>& values, const char* separator = "|") {
  std::string text;
  for (const T& v : values) text += (text.empty() ? "" : separator) + fmt::format("{}", v);
  return text;
}

std::string method_text(const Json& config) {
  const lab::CellConfig c = lab::CellConfig::from_json(config);
  const lab::MethodSpec& m = c.method;
  std::string text = m.name;
  const bool retrieves = m.name.find("rag") != std::string::npos, lora = m.name.find("lora") != std::string::npos;
  if (retrieves) text += fmt::format(" {} k{}", m.retriever, list_text(m.k));
  if (lora) text += fmt::format(" r{} a{:g}", m.rank, m.alpha);
  if (m.name == "prompt" || m.name == "prefix") text += fmt::format(" {}", m.n_virtual);
  return text;
}

std::string task_text(const lab::TaskSpec& t) {
  if (!t.is_world) return fmt::format("{} {} {}", t.lamp_task, t.split, t.part);
  const lab::WorldDials &w = t.world, d;
  std::string text = fmt::format("{} h{}", w.task, w.history);
  if (w.keys != d.keys) text += fmt::format(" keys {}", w.keys);
  if (w.key != d.key) text += " " + w.key;
  if (w.classes != d.classes) text += fmt::format(" classes {}", w.classes);
  if (w.noise != d.noise) text += fmt::format(" noise {:g}", w.noise);
  if (w.person != d.person) text += fmt::format(" person {:g}", w.person);
  if (w.overlap != d.overlap) text += " " + w.overlap;
  if (w.drift != d.drift) text += fmt::format(" drift {:g}", w.drift);
  return text;
}

// Rows under a header, columns as wide as they need.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      widths.resize(std::max(widths.size(), row.size()));
      widths[i] = std::max(widths[i], row[i].size());
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}", row[i], i + 1 < row.size() ? widths[i] + 2 : 0);
    while (!line.empty() && line.back() == ' ') line.pop_back();
    text += line + "\n";
  }
  return text;
}

lab::ResolveOptions resolve_options(const LabOptions& o, const Session& session, int threads, Progress& progress) {
  lab::ResolveOptions r;
  if (!o.quick) r.estimator = estimator_of(session, threads);
  r.estimate_all = !o.quick;
  r.progress = [&progress](size_t done, size_t) { progress.update(static_cast<int64_t>(done)); };
  return r;
}

size_t combinations(const lab::Plan& plan) {
  size_t n = 0;
  for (const lab::PlanGrid& g : plan.grids) n += g.cells.size();
  return n;
}

int run_plan(const LabOptions& o) {
  install_handlers();
  const Session session(o.common);
  const lab::Plan plan = lab::read_plan(o.plan, overrides_of(o));
  const int threads = threads_of(session, plan);
  lab::MachineFile machine(o.out.empty() ? std::string() : join_path(o.out, "machine.json"));
  machine.set_isa(tier_name(session.kernels().tier));
  machine.set_threads(threads);
  Progress progress(o.common, "measuring", static_cast<int64_t>(combinations(plan)), "cells");
  lab::ResolveOptions options = resolve_options(o, session, threads, progress);
  lab::Plan shown = plan;
  shown.device.skip_over = true;  // the table comes first, the refusal after it
  const lab::ResolvedPlan resolved = lab::resolve_plan(shown, machine, options);

  double total = 0;
  size_t measured = 0, infeasible = 0;
  Json cells = Json::array();
  std::vector<std::vector<std::string>> rows = {{"cell", "model", "compression", "method", "history", "steps", "task", "seed", "RAM", "time"}};
  std::vector<std::vector<std::string>> grids_of(resolved.cells.size());
  for (const lab::ResolvedGrid& g : resolved.grids)
    for (const size_t i : g.cells) grids_of[i].push_back(g.name);
  for (size_t i = 0; i < resolved.cells.size(); ++i) {
    const lab::ResolvedCell& c = resolved.cells[i];
    const Json config = c.config.to_json();
    std::string steps = c.config.steps.empty() ? "-" : list_text(c.config.steps);
    if (c.seconds > 0) steps = fmt::format("{} ({:g} s)", c.config.steps.empty() ? "?" : steps, c.seconds);
    Json predicted = nullptr;
    if (c.estimate) {
      predicted = {{"peak_bytes", c.estimate->peak_bytes}, {"budget_bytes", c.estimate->budget_bytes}, {"seconds", c.estimate->total_s()}, {"step_s", c.estimate->step_s}};
      if (c.infeasible.empty()) total += c.estimate->total_s();
      ++measured;
    }
    infeasible += c.infeasible.empty() ? 0 : 1;
    rows.push_back({c.hash.empty() ? "?" : c.hash, c.config.model, c.config.compression, method_text(config),
                    c.config.history == 0 ? "all" : std::to_string(c.config.history), steps, task_text(c.config.task), std::to_string(c.config.seed),
                    c.estimate ? lab::memory_text(c.estimate->budget_bytes) + (c.infeasible.empty() ? "" : " (too much)") : "-",
                    c.estimate ? seconds_text(c.estimate->total_s()) : "-"});
    Json row = {{"hash", c.hash.empty() ? Json(nullptr) : Json(c.hash)}, {"grids", grids_of[i]}, {"config", config}, {"predicted", predicted}};
    if (c.seconds > 0) row["seconds"] = c.seconds;
    if (!c.no_estimate.empty()) row["no_estimate"] = c.no_estimate;
    if (!c.infeasible.empty()) row["infeasible"] = c.infeasible;
    cells.push_back(row);
  }
  progress.update(static_cast<int64_t>(combinations(plan)));
  if (infeasible > 0 && !plan.device.skip_over && !o.common.json) {
    write_stdout(table(rows));
  }
  if (infeasible > 0 && !plan.device.skip_over) lab::resolve_plan(plan, machine, options);  // refuses, with the lines
  if (o.common.json) {
    Json json = {{"schema", "thimble.lab_plan/1"},
                 {"name", plan.name},
                 {"device", {{"ram", plan.device.ram}, {"threads", threads}, {"profile", plan.device.profile}}},
                 {"cells", cells},
                 {"merged", resolved.merged},
                 {"infeasible", infeasible},
                 {"total_s", measured > 0 ? Json(total) : Json(nullptr)}};
    json["grids"] = Json::array();
    for (const lab::ResolvedGrid& g : resolved.grids) json["grids"].push_back({{"name", g.name}, {"cells", g.cells.size()}, {"factors", g.factors}});
    print_json(json);
    return 0;
  }
  std::string text = table(rows) + "\n";
  for (const lab::ResolvedGrid& g : resolved.grids)
    text += fmt::format("grid {}: {} cells; varies {}\n", g.name, g.cells.size(), g.factors.empty() ? "nothing" : list_text(g.factors, ", "));
  text += fmt::format("{} cells", resolved.cells.size() - infeasible);
  if (resolved.merged > 0) text += fmt::format(", {} combinations were equal to another", resolved.merged);
  if (infeasible > 0) text += fmt::format(", {} do not fit into RAM and are left out", infeasible);
  if (measured > 0) text += fmt::format("; about {} with {} threads", seconds_text(total), threads);
  write_stdout(text + "\n");
  for (const lab::ResolvedCell& c : resolved.cells)
    if (!c.no_estimate.empty()) warn(fmt::format("{}: not measured: {}", c.hash, c.no_estimate));
  return 0;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find(',', at), text.size());
    if (end > at) parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

lab::RunnerOptions runner_options(const LabOptions& o, const Session& session, int threads) {
  lab::RunnerOptions r;
  r.jobs = o.jobs;
  r.threads = threads;
  r.retry_failed = o.retry_failed;
  r.only = split(o.cells);
  r.child = {"/proc/self/exe", "lab", "cell"};
  if (!o.common.isa.empty()) r.child.insert(r.child.end(), {"--isa", o.common.isa});
  r.isa = tier_name(session.kernels().tier);
  r.estimator = estimator_of(session, threads);
  r.stop = [] { return g_stop.load(); };
  r.say = [&o](const std::string& line) { say(o.common, line); };
  return r;
}

std::string absolute(const std::string& path) { return std::filesystem::absolute(path).lexically_normal().string(); }

std::string report_path(const std::string& dir) { return absolute(join_path(dir, "report/report.html")); }

int run_run(const LabOptions& o) {
  install_handlers();
  const Session session(o.common);
  const lab::PlanOverrides overrides = overrides_of(o);
  const lab::Plan plan = lab::read_plan(o.plan, overrides);
  const int threads = threads_of(session, plan);
  lab::RunnerOptions options = runner_options(o, session, threads);
  lab::PreparedRun run;
  {
    Progress progress(o.common, "looking at costs", static_cast<int64_t>(combinations(plan)), "cells");
    options.measuring = [&progress](size_t done, size_t) { progress.update(static_cast<int64_t>(done)); };
    run = lab::prepare_run(plan, overrides, o.out, options);
    options.measuring = nullptr;
  }
  say(o.common, fmt::format("{}: {} cells{}{}", o.out, run.hashes.size(), run.merged > 0 ? fmt::format(" ({} combinations were equal to another)", run.merged) : "",
                            run.infeasible > 0 ? fmt::format(", {} left out that do not fit into RAM", run.infeasible) : ""));
  lab::RunSummary summary;
  {
    Progress progress(o.common, "cells", static_cast<int64_t>(run.hashes.size()), "cells");
    options.progress = [&progress](size_t done, size_t, double left, const std::string& what) {
      progress.update(static_cast<int64_t>(done), left > 0 ? fmt::format("about {} by measured costs, {}", seconds_text(left), what) : what);
    };
    summary = lab::run_cells(run, options);
  }
  std::string report;
  if (!o.no_report) {
    lab::record_samples_per_hour(run);
    lab::write_report(o.out);
    report = report_path(o.out);
  }
  for (const Json& f : summary.failures) warn(fmt::format("cell {} failed: {}", f["hash"].get<std::string>(), f["reason"].get<std::string>()));
  if (o.common.json) {
    print_json({{"schema", "thimble.lab_run/1"},
                {"dir", absolute(o.out)},
                {"cells", summary.cells},
                {"done", summary.done},
                {"failed", summary.failed},
                {"infeasible", run.infeasible},
                {"ran", summary.ran},
                {"reused", summary.reused},
                {"elsewhere", summary.elsewhere},
                {"added", run.added},
                {"seconds", summary.seconds},
                {"failures", summary.failures},
                {"report", report.empty() ? Json(nullptr) : Json(report)}});
  } else {
    say(o.common, fmt::format("{} cells done, {} failed; {} were run now in {}", summary.done, summary.failed, summary.ran, seconds_text(summary.seconds)));
    if (!report.empty()) write_stdout("report: " + report + "\n");
  }
  return summary.failed > 0 ? static_cast<int>(ErrorCode::partial) : 0;
}

int run_status(const LabOptions& o) {
  const Json status = lab::experiment_status(o.dir);
  if (o.common.json) {
    print_json(status);
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {{"cell", "state", "model", "compression", "method", "history", "steps", "seed", "reason"}};
  for (const Json& c : status["list"]) {
    std::vector<std::string> row;
    for (const char* key : {"hash", "state", "model", "compression", "method", "history", "steps", "seed", "reason"})
      row.push_back(!c.contains(key) ? "" : c[key].is_string() ? c[key].get<std::string>() : c[key].dump());
    rows.push_back(row);
  }
  std::string text = table(rows) + "\n";
  text += fmt::format("{}: {} cells: {} done, {} failed, {} running, {} pending", status["name"].get<std::string>(), status["cells"].get<size_t>(),
                      status["done"].get<size_t>(), status["failed"].get<size_t>(), status["running"].get<size_t>(), status["pending"].get<size_t>());
  if (status["infeasible"].get<size_t>() > 0) text += fmt::format(", {} do not fit into RAM", status["infeasible"].get<size_t>());
  if (status["running"].get<size_t>() + status["pending"].get<size_t>() > 0)
    text += status["eta_s"].is_null() ? "; nothing measured yet" : "; about " + seconds_text(status["eta_s"].get<double>()) + " for one runner";
  write_stdout(text + "\n");
  return 0;
}

int run_report(const LabOptions& o) {
  lab::write_report(o.dir);
  const std::string path = report_path(o.dir);
  if (o.common.json) {
    const std::string folder = absolute(join_path(o.dir, "report"));
    print_json({{"schema", "thimble.lab_report/1"}, {"dir", absolute(o.dir)}, {"report", path}, {"data", folder + "/report.json"}, {"cells", folder + "/cells.csv"}});
  } else {
    write_stdout("report: " + path + "\n");
  }
  return 0;
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

// A name that scheduler and shell take without quotes.
std::string plain_name(const std::string& name) {
  std::string plain;
  for (const unsigned char c : name) plain += std::isalnum(c) ? static_cast<char>(c) : '-';
  return plain;
}

int run_export(const LabOptions& o) {
  install_handlers();
  if (o.slurm == o.parallel) throw Error(ErrorCode::usage, "lab export: give exactly one of --slurm and --parallel");
  const Session session(o.common);
  const lab::PlanOverrides overrides = overrides_of(o);
  const lab::Plan plan = lab::read_plan(o.plan, overrides);
  const int threads = threads_of(session, plan);
  std::vector<std::string> hashes;
  std::string out = o.out;
  if (!out.empty()) {
    hashes = lab::prepare_run(plan, overrides, out, runner_options(o, session, threads)).hashes;
  } else {
    lab::MachineFile machine{std::string()};
    const lab::ResolvedPlan resolved = lab::resolve_plan(plan, machine, {});
    for (const lab::ResolvedCell& c : resolved.cells) {
      if (c.hash.empty())
        throw Error(ErrorCode::usage, lab::plan_place(o.plan, c.at) + "a time budget becomes steps by a calibration that all jobs must share",
                    "give --out DIR: the folder is prepared and the calibration stored in it");
      hashes.push_back(c.hash);
    }
    out = "lab-" + plain_name(plan.name);
  }
  // Models and data of a plan may be relative paths.
  const std::string here = fmt::format("cd {} && ", shell_quoted(absolute(".")));
  std::string command = fmt::format("thimble lab run {} --out {} --threads {} --no-report --quiet", shell_quoted(absolute(o.plan)), shell_quoted(absolute(out)),
                                    o.slurm ? "\"${SLURM_CPUS_PER_TASK:-" + std::to_string(threads) + "}\"" : std::to_string(threads));
  if (overrides.ram) command += fmt::format(" --ram {}", *overrides.ram);
  if (overrides.precision) command += " --precision " + *overrides.precision;
  if (overrides.seed) command += fmt::format(" --seed {}", overrides.seed);
  if (!o.common.isa.empty()) command += " --isa " + o.common.isa;
  std::string script;
  if (o.slurm) {
    script = fmt::format(
        "#!/bin/sh\n"
        "#SBATCH --job-name=thimble-{}\n"
        "#SBATCH --array=1-{}\n"
        "#SBATCH --cpus-per-task={}\n"
        "# One cell per task. Submit with sbatch; when all have ended: thimble lab report {}\n"
        "set -eu\n"
        "cell=$(sed -n \"${{SLURM_ARRAY_TASK_ID}}p\" <<'CELLS'\n",
        plain_name(plan.name), hashes.size(), threads, shell_quoted(absolute(out)));
    for (const std::string& hash : hashes) script += hash + "\n";
    script += "CELLS\n)\n" + here + "exec " + command + " --cells \"$cell\"\n";
  } else {
    for (const std::string& hash : hashes) script += here + command + " --cells " + hash + "\n";
  }
  if (o.common.json) {
    print_json({{"schema", "thimble.lab_export/1"}, {"kind", o.slurm ? "slurm" : "parallel"}, {"out", absolute(out)}, {"cells", hashes}, {"script", script}});
    return 0;
  }
  write_stdout(script);
  if (o.parallel) say(o.common, fmt::format("run the lines with: parallel -j 1; when all have ended: thimble lab report {}", shell_quoted(absolute(out))));
  return 0;
}

// The process of one cell; whoever starts it holds the cell's claim.
int run_cell_verb(const LabOptions& o) {
  const Session session(o.common);
  return lab::run_cell_process(o.dir, o.hash, session.kernels(), session.threads(),
                               [](const lab::CellConfig& c, const lab::CellEnvironment& e) { return lab::run_cell(c, e); });
}

}  // namespace

void add_lab(CLI::App& app, Run* run) {
  CLI::App* lab = app.add_subcommand("lab", "experiments: plan, run, status, report, export");
  lab->require_subcommand(1);
  lab->footer(
      "Examples:\n"
      "  thimble lab plan plans/quick.yaml\n"
      "  thimble lab run plans/quick.yaml --out results --jobs 2\n"
      "  thimble lab status results\n"
      "Plans are described in tools/lab/README.md.");
  const auto add = [&](const char* name, const char* about, int (*work)(const LabOptions&)) {
    auto o = std::make_shared<LabOptions>();
    CLI::App* command = lab->add_subcommand(name, about);
    o->command = command;
    command->callback([o, run, work] { *run = [o, work] { return work(*o); }; });
    return std::make_pair(command, o);
  };
  {
    const auto [command, o] = add("plan", "show the cells of a plan, their predicted RAM and time", run_plan);
    command->add_option("PLAN", o->plan, "YAML file")->required();
    command->add_option("--out", o->out, "experiment folder whose calibration is used; default: measure now");
    command->add_flag("--quick", o->quick, "measure nothing: no RAM, no time, time budgets stay seconds");
    command->footer("Example: thimble lab plan plans/quick.yaml --quick");
    add_common_options(*command, o->common);
  }
  {
    const auto [command, o] = add("run", "run every cell that is not published yet, then write the report", run_run);
    command->add_option("PLAN", o->plan, "YAML file")->required();
    command->add_option("--out", o->out, "experiment folder; an existing one is continued")->required();
    command->add_option("--jobs", o->jobs, "cells at once, threads divided among them; default 1")->check(CLI::Range(1, 256));
    command->add_option("--cells", o->cells, "only cells whose hashes begin with these, separated by commas");
    command->add_flag("--retry-failed", o->retry_failed, "run failed cells again");
    command->add_flag("--no-report", o->no_report, "do not write the report");
    command->footer(
        "Example: thimble lab run plans/quick.yaml --out results --jobs 2\n"
        "Killed or interrupted, the same command continues: what was published is never computed again. Several\n"
        "processes may run one folder at once. --threads, --ram, --precision take the place of the plan's, --seed is added\n"
        "to its seeds. The last line on stdout names the report.");
    add_common_options(*command, o->common);
  }
  {
    const auto [command, o] = add("status", "what an experiment folder holds", run_status);
    command->add_option("DIR", o->dir, "experiment folder")->required();
    command->footer("Example: thimble lab status results --json");
    add_common_options(*command, o->common);
  }
  {
    const auto [command, o] = add("report", "write the report of what is there", run_report);
    command->add_option("DIR", o->dir, "experiment folder")->required();
    command->footer("Example: thimble lab report results");
    add_common_options(*command, o->common);
  }
  {
    const auto [command, o] = add("export", "print a job script for a scheduler", run_export);
    command->add_option("PLAN", o->plan, "YAML file")->required();
    command->add_option("--out", o->out, "experiment folder that the jobs share; it is prepared");
    command->add_flag("--slurm", o->slurm, "an array job");
    command->add_flag("--parallel", o->parallel, "one command per line, for GNU parallel");
    command->footer("Example: thimble lab export plans/full.yaml --slurm --out results > job.sh && sbatch job.sh");
    add_common_options(*command, o->common);
  }
  {
    const auto [command, o] = add("cell", "run one cell and publish it", run_cell_verb);
    command->group("");
    command->add_option("--dir", o->dir, "experiment folder")->required();
    command->add_option("--hash", o->hash, "of the cell")->required();
    command->footer("Example: thimble lab cell --dir results --hash 0123456789abcdef");
    add_common_options(*command, o->common);
  }
}

}  // namespace thimble::cli
