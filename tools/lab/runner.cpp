#include "tools/lab/runner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <set>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::lab {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
constexpr double kSaveSeconds = 5;

void pause_ms(long ms) {
  const struct timespec t {ms / 1000, ms % 1000 * 1000000};
  ::nanosleep(&t, nullptr);
}

Json read_json(const std::string& path) {
  parse_json_file(path);  // strict, with line and column; the ordered copy keeps the order of cells
  return Json::parse(read_file(path));
}

bool is_hash(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool asked_for(const std::string& hash, const std::vector<std::string>& only) {
  if (only.empty()) return true;
  return std::any_of(only.begin(), only.end(), [&](const std::string& start) { return hash.compare(0, start.size(), start) == 0; });
}

std::string label(const Json& config) {
  return fmt::format("{} {} {}", config["model"].get<std::string>(), config["compression"].get<std::string>(),
                     config["method"]["name"].get<std::string>());
}

// Cells that cost about the same.
std::string kind(const Json& config) {
  const Json& task = config["task"];
  Json t = task.contains("world") ? task["world"] : task;
  t.erase("seed");
  return fmt::format("{} {} {} {} {}", label(config), config["steps"].dump(), config["history"].dump(), config["method"].dump(), t.dump());
}

// Seconds that cells of a kind took; a coarser mean stands in where a kind was not measured.
class Costs {
 public:
  void add(const Json& config, double seconds) {
    for (const std::string& key : keys(config)) {
      Sum& s = sums_[key];
      s.seconds += seconds;
      s.n += 1;
    }
  }
  // < 0: nothing is known.
  double of(const Json& config) const {
    for (const std::string& key : keys(config))
      if (const auto it = sums_.find(key); it != sums_.end()) return it->second.seconds / it->second.n;
    return -1;
  }

 private:
  struct Sum {
    double seconds = 0, n = 0;
  };
  static std::vector<std::string> keys(const Json& config) { return {kind(config), label(config), config["model"].get<std::string>(), ""}; }
  std::map<std::string, Sum> sums_;
};

Costs measured_costs(const Store& store, const Json& cells) {
  Costs costs;
  for (const auto& item : cells.items()) {
    const Json cost = store.cost(item.key());
    if (cost.is_object() && cost.contains("wall_s") && cost["wall_s"].is_number()) costs.add(item.value(), cost["wall_s"].get<double>());
  }
  return costs;
}

// A cell's process while it runs.
struct Child {
  pid_t pid = -1;
  std::string hash;
  Claim claim;
};

pid_t spawn(const std::vector<std::string>& command, const std::string& log, int claim_fd) {
  std::vector<char*> argv;
  for (const std::string& a : command) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const int in = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (out < 0 || in < 0) {
    const int error = errno;
    if (out >= 0) ::close(out);
    throw Error(error == ENOSPC || error == EDQUOT ? ErrorCode::budget : ErrorCode::input, log + ": cannot be written: " + std::strerror(error));
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {  // only calls that are safe after a fork of a process with threads
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(out, 2);
    ::fcntl(claim_fd, F_SETFD, 0);  // the claim lives as long as either of us
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  const int error = errno;
  ::close(out);
  ::close(in);
  if (pid < 0) throw Error(ErrorCode::budget, std::string("no process can be started: ") + std::strerror(error), "use fewer --jobs");
  return pid;
}

// The error that a process printed, else its last line.
std::string last_words(const std::string& path) {
  std::string text;
  try {
    text = read_file(path, size_t{64} << 20);
  } catch (const Error&) {
    return {};
  }
  const size_t error = text.compare(0, 7, "error: ") == 0 ? 0 : text.rfind("\nerror: ");
  if (error != std::string::npos) text = text.substr(error == 0 ? 0 : error + 1, text.find('\n', error + 1) - error);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(std::min(text.size(), text.rfind('\n') + 1)).substr(0, 400);
}

// Why a process ended that published nothing.
std::string why_it_ended(int status, const std::string& log) {
  std::string reason;
  if (WIFSIGNALED(status)) {
    reason = fmt::format("its process was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (WTERMSIG(status) == SIGKILL) reason += "; perhaps the machine ran out of memory";
  } else {
    reason = fmt::format("its process ended with status {} and published nothing", WEXITSTATUS(status));
  }
  const std::string line = last_words(log);
  return line.empty() ? reason : reason + ": " + line;
}

// A temporary of a dead process's write_file in the folder itself; every live one is made under the folder's lock.
void remove_stale_temporaries(const std::string& dir) {
  std::error_code error;
  std::vector<fs::path> stale;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    for (const char* of : {"plan.json.tmp.", "plan.yaml.tmp.", "machine.json.tmp."})
      if (name.compare(0, std::strlen(of), of) == 0) stale.push_back(it->path());
  }
  for (const fs::path& p : stale) fs::remove(p, error);
}

// The earlier plan.json with the new one's cells added. Grids of one name join.
void join_plans(Json& plan, const Json& earlier, size_t* added) {
  Json cells = earlier.at("cells");
  *added = 0;
  for (const auto& item : plan["cells"].items())
    if (!cells.contains(item.key())) {
      cells[item.key()] = item.value();
      ++*added;
    }
  plan["cells"] = cells;
  for (const char* key : {"infeasible", "conversions"}) {
    if (!earlier.contains(key)) continue;
    for (const auto& item : earlier[key].items())
      if (!plan[key].contains(item.key()) && (std::string(key) != "infeasible" || !cells.contains(item.key()))) plan[key][item.key()] = item.value();
  }
  Json grids = earlier.at("grids");
  for (const Json& g : plan["grids"]) {
    auto it = std::find_if(grids.begin(), grids.end(), [&](const Json& e) { return e.at("name") == g.at("name"); });
    if (it == grids.end()) {
      grids.push_back(g);
      continue;
    }
    std::set<std::string> there;
    for (const Json& h : it->at("cells")) there.insert(h.get<std::string>());
    for (const Json& h : g.at("cells"))
      if (there.insert(h.get<std::string>()).second) it->at("cells").push_back(h);
  }
  for (Json& g : grids) {
    std::vector<CellConfig> configs;
    for (const Json& h : g.at("cells")) configs.push_back(CellConfig::from_json(cells.at(h.get<std::string>())));
    std::vector<const CellConfig*> pointers;
    for (const CellConfig& c : configs) pointers.push_back(&c);
    g["factors"] = varying_factors(pointers);
  }
  plan["grids"] = grids;
}

std::string free_name(const std::string& dir) {
  for (int i = 1;; ++i) {
    const std::string name = fmt::format("{}/plan.{}.yaml", dir, i);
    if (!file_exists(name)) return name;
  }
}

}  // namespace

PreparedRun read_prepared(const std::string& dir) {
  const std::string path = join_path(dir, "plan.json");
  if (!file_exists(path))
    throw Error(ErrorCode::input, path + ": no such file", "give the folder that `thimble lab run PLAN --out DIR` wrote");
  PreparedRun run;
  run.dir = dir;
  run.plan = read_json(path);
  try {
    for (const auto& item : run.plan.at("cells").items()) {
      if (!is_hash(item.key()))
        throw Error(ErrorCode::input, fmt::format("{}: {} is not the hash of a cell", path, quote_for_message(item.key())));
      CellConfig::from_json(item.value());
      run.hashes.push_back(item.key());
    }
    run.infeasible = run.plan.at("infeasible").size();
    for (const auto& grid : run.plan.at("grids"))
      for (const auto& hash : grid.at("cells"))
        if (!run.plan["cells"].contains(hash.get<std::string>()))
          throw Error(ErrorCode::input, fmt::format("{}: grid {} names a cell that \"cells\" lacks", path, grid.at("name").dump()));
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::input, path + ": a field is missing or of the wrong type: " + json_syntax_message(e.what()), "run the plan into a new folder");
  }
  return run;
}

PreparedRun prepare_run(const Plan& plan, const PlanOverrides& overrides, const std::string& dir, const RunnerOptions& options) {
  const std::string json_path = join_path(dir, "plan.json"), yaml_path = join_path(dir, "plan.yaml");
  const auto check_folder = [&] {
    if (file_exists(json_path) || !file_exists(dir)) return;
    if (!is_directory(dir)) throw Error(ErrorCode::input, dir + ": is not a folder", "choose another --out");
    std::error_code error;
    static const std::set<std::string> ours = {"cells", "logs", "claims", "machine.json", "plan.yaml"};
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (!ours.count(name) && name.find(".tmp.") == std::string::npos)
        throw Error(ErrorCode::input, fmt::format("{}: holds {} and no plan.json: it is not an experiment's folder", dir, name), "choose another --out");
    }
  };
  check_folder();
  ResolveOptions resolve;
  resolve.estimator = options.estimator;
  resolve.estimate_all = options.estimate_all;
  resolve.progress = options.measuring;
  if (!options.only.empty()) resolve.wanted = [&](const std::string& hash) { return asked_for(hash, options.only); };
  const std::string machine_path = join_path(dir, "machine.json");
  const auto open_machine = [&] {
    MachineFile m(machine_path);
    m.set_isa(options.isa);
    m.set_threads(options.threads);
    return m;
  };
  MachineFile machine = open_machine();
  // Whatever needs no measuring is refused before the folder exists, and a plan that is refused leaves none behind.
  const bool fresh = !file_exists(dir);
  if (fresh) {
    ResolveOptions unmeasured = resolve;
    unmeasured.estimator = nullptr;
    unmeasured.progress = nullptr;
    resolve_plan(plan, machine, unmeasured);
  }
  const Store store(dir);
  const Claim lock = store.lock_folder(options.stop);
  remove_stale_temporaries(dir);
  if (file_exists(machine_path)) machine = open_machine();
  // Measuring a large plan takes minutes: what is known is kept on the way.
  double saved = now_s();
  resolve.progress = [&](size_t done, size_t all) {
    if (options.measuring) options.measuring(done, all);
    if (now_s() - saved < kSaveSeconds) return;
    machine.save();
    saved = now_s();
  };
  const ResolvedPlan resolved = [&] {
    try {
      return resolve_plan(plan, machine, resolve);
    } catch (const Error& e) {
      std::error_code ignored;
      if (e.code() == ErrorCode::interrupted)
        machine.save();
      else if (fresh)
        fs::remove_all(dir, ignored);
      throw;
    }
  }();
  PreparedRun run;
  run.dir = dir;
  run.plan = resolved.to_json();
  run.merged = resolved.merged;
  run.plan["overrides"] = overrides.to_json();
  run.added = run.plan["cells"].size();
  machine.save();
  if (file_exists(json_path)) {
    const Json earlier = read_prepared(dir).plan;
    const bool same = file_exists(yaml_path) && read_file(yaml_path) == plan.text && earlier.value("overrides", Json::object()) == run.plan["overrides"];
    join_plans(run.plan, earlier, &run.added);
    if (!same) {
      if (options.say)
        options.say(fmt::format("{}: the plan differs from the one that was run there: {} new cells are added to {}", dir, run.added,
                                earlier["cells"].size()));
      if (file_exists(yaml_path) && read_file(yaml_path) != plan.text) write_file(free_name(dir), read_file(yaml_path));
    }
  }
  write_file(yaml_path, plan.text);
  write_file(json_path, run.plan.dump(1) + "\n");
  run.infeasible = run.plan["infeasible"].size();
  for (const auto& item : run.plan["cells"].items()) run.hashes.push_back(item.key());
  return run;
}

RunSummary run_cells(const PreparedRun& run, const RunnerOptions& options) {
  const Store store(run.dir);
  const Json& cells = run.plan.at("cells");
  const double start = now_s();
  RunSummary summary;
  std::vector<std::string> asked, open;
  for (const std::string& hash : run.hashes)
    if (asked_for(hash, options.only)) asked.push_back(hash);
  if (asked.empty() && !options.only.empty())
    throw Error(ErrorCode::usage, "--cells: the plan has no such cell", "see `thimble lab plan PLAN` for their hashes");
  summary.cells = asked.size();
  store.clean_all();
  for (const std::string& hash : asked) {
    if (options.retry_failed && store.state(hash) == CellState::failed)
      if (const auto claim = store.claim(hash)) store.forget_failure(hash);
    if (store.published(hash))
      ++summary.reused;
    else
      open.push_back(hash);
  }
  Costs costs = measured_costs(store, cells);
  const int jobs = std::max(1, options.jobs), threads = std::max(1, options.threads / jobs);
  std::vector<Child> running;
  const auto report = [&] {
    if (!options.progress) return;
    double left = 0;
    for (const std::string& hash : open) left += std::max(0.0, costs.of(cells[hash]));
    for (const Child& c : running) left += std::max(0.0, costs.of(cells[c.hash])) / 2;
    std::string what;
    for (const Child& c : running) what += (what.empty() ? "" : "; ") + label(cells[c.hash]);
    options.progress(asked.size() - open.size() - running.size(), asked.size(), left / jobs, what);
  };
  const auto stop_children = [&] {
    const double patience = now_s() + 5;
    for (const Child& c : running) ::kill(c.pid, SIGTERM);
    for (Child& c : running) {
      int status = 0;
      // Again and again: before its exec a child still has our handlers, and would only take note.
      for (int i = 1; ::waitpid(c.pid, &status, WNOHANG) == 0; ++i) {
        if (i % 10 == 0) ::kill(c.pid, now_s() > patience ? SIGKILL : SIGTERM);
        pause_ms(5);
      }
      if (!store.published(c.hash)) store.clean(c.hash);
    }
    running.clear();
  };
  try {
    while (!open.empty() || !running.empty()) {
      if (options.stop && options.stop()) {
        const size_t left = open.size() + running.size();
        stop_children();
        throw Error(ErrorCode::interrupted, fmt::format("{}: interrupted with {} cells to go", run.dir, left), "run the same command again to continue");
      }
      for (size_t i = 0; i < running.size();) {
        Child& c = running[i];
        int status = 0;
        const pid_t ended = ::waitpid(c.pid, &status, WNOHANG);
        if (ended == 0 || (ended < 0 && errno == EINTR)) {
          ++i;
          continue;
        }
        if (!store.published(c.hash)) {
          // Control-C reaches the child directly and perhaps first.
          const bool asked_to_end = WIFSIGNALED(status) && WTERMSIG(status) == SIGINT;
          if (asked_to_end || (options.stop && options.stop())) {
            store.clean(c.hash);
            open.push_back(c.hash);
            running.erase(running.begin() + static_cast<long>(i));
            const size_t left = open.size() + running.size();
            stop_children();
            throw Error(ErrorCode::interrupted, fmt::format("{}: interrupted with {} cells to go", run.dir, left), "run the same command again to continue");
          }
          store.clean(c.hash);
          store.publish_failed(c.hash, CellConfig::from_json(cells[c.hash]), static_cast<int>(ErrorCode::internal),
                               why_it_ended(status, store.log_path(c.hash)), "its log: " + store.log_path(c.hash));
        }
        ++summary.ran;
        const Json cost = store.cost(c.hash);
        if (cost.is_object() && cost.contains("wall_s") && cost["wall_s"].is_number()) costs.add(cells[c.hash], cost["wall_s"].get<double>());
        running.erase(running.begin() + static_cast<long>(i));
      }
      for (size_t i = 0; i < open.size() && running.size() < static_cast<size_t>(jobs);) {
        const std::string hash = open[i];
        auto claim = store.claim(hash);
        if (!claim) {
          ++i;  // another runner has it
          continue;
        }
        open.erase(open.begin() + static_cast<long>(i));
        if (store.published(hash)) {
          ++summary.elsewhere;
          continue;
        }
        store.clean(hash);
        Child child;
        child.hash = hash;
        child.claim = std::move(*claim);
        std::vector<std::string> command = options.child;
        command.insert(command.end(), {"--dir", run.dir, "--hash", hash, "--threads", std::to_string(threads)});
        child.pid = spawn(command, store.log_path(hash), child.claim.fd());
        running.push_back(std::move(child));
      }
      report();
      if (!running.empty() || !open.empty()) pause_ms(running.empty() ? 50 : 4);
    }
  } catch (const Error& e) {
    if (!running.empty()) stop_children();
    throw;
  }
  summary.failures = Json::array();
  for (const std::string& hash : asked) {
    const Json status = store.status(hash);
    const bool done = status.is_object() && status.value("state", "") == "done";
    ++(done ? summary.done : summary.failed);
    if (!done)
      summary.failures.push_back({{"hash", hash},
                                  {"reason", status.is_object() ? status.value("reason", Json("")) : Json("")},
                                  {"error_code", status.is_object() ? status.value("error_code", Json(1)) : Json(1)}});
  }
  summary.seconds = now_s() - start;
  return summary;
}

int run_cell_process(const std::string& dir, const std::string& hash, const KernelTable& kernels, int threads, const Executor& execute) {
  const double start = now_s();
  if (!is_hash(hash)) throw Error(ErrorCode::usage, "--hash: " + quote_for_message(hash) + " is not the hash of a cell");
  const PreparedRun run = read_prepared(dir);
  if (!run.plan.at("cells").contains(hash)) throw Error(ErrorCode::usage, fmt::format("{}: the plan has no cell {}", dir, hash));
  const CellConfig config = CellConfig::from_json(run.plan["cells"][hash]);
  const Store store(dir);
  const auto failed = [&](ErrorCode code, const std::string& reason, const std::string& hint) {
    store.publish_failed(hash, config, static_cast<int>(code), reason, hint);
    return 0;
  };
  CellResult result;
  try {
    MemoryBudget budget(config.ram);
    CellEnvironment environment;
    environment.kernels = &kernels;
    environment.threads = threads;
    environment.budget = &budget;
    result = execute(config, environment);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::interrupted) throw;
    return failed(e.code(), e.what(), e.hint());
  } catch (const std::bad_alloc&) {
    return failed(ErrorCode::budget, "out of memory", "use a smaller model, batch or more --jobs one after the other");
  } catch (const std::exception& e) {
    return failed(ErrorCode::internal, std::string("internal error: ") + e.what(), "this is a bug in thimble; please report it");
  }
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  if (!result.cost.is_object()) result.cost = Json::object();
  if (!result.cost.contains("peak_rss_bytes")) result.cost["peak_rss_bytes"] = int64_t{usage.ru_maxrss} * 1024;
  if (!result.cost.contains("threads")) result.cost["threads"] = threads;
  result.cost["wall_s"] = now_s() - start;
  store.publish_done(hash, config, result);
  return 0;
}

Json experiment_status(const std::string& dir) {
  const PreparedRun run = read_prepared(dir);
  const Store store(dir);
  const Json& cells = run.plan.at("cells");
  const Costs costs = measured_costs(store, cells);
  std::map<std::string, size_t> counts = {{"done", 0}, {"failed", 0}, {"running", 0}, {"pending", 0}};
  Json list = Json::array(), failures = Json::array();
  double eta = 0;
  bool known = true;
  for (const std::string& hash : run.hashes) {
    const Json& config = cells[hash];
    const CellState state = store.state(hash);
    ++counts[cell_state_name(state)];
    Json row = {{"hash", hash},
                {"state", cell_state_name(state)},
                {"model", config["model"]},
                {"compression", config["compression"]},
                {"method", config["method"]["name"]},
                {"history", config["history"]},
                {"steps", config["steps"]},
                {"seed", config["seed"]}};
    if (state == CellState::failed) {
      const Json status = store.status(hash);
      row["reason"] = status.value("reason", Json(""));
      row["error_code"] = status.value("error_code", Json(1));
      failures.push_back(row);
    }
    if (state == CellState::pending || state == CellState::running) {
      const double seconds = costs.of(config);
      known = known && seconds >= 0;
      eta += std::max(0.0, seconds);
    }
    list.push_back(row);
  }
  Json json = {{"schema", "thimble.lab_status/1"}, {"dir", fs::absolute(dir).lexically_normal().string()}, {"name", run.plan.value("name", Json(""))}, {"cells", run.hashes.size()}};
  for (const char* state : {"done", "failed", "running", "pending"}) json[state] = counts[state];
  json["infeasible"] = run.infeasible;
  json["eta_s"] = known ? Json(eta) : Json(nullptr);
  json["failures"] = failures;
  json["list"] = list;
  return json;
}

void record_samples_per_hour(const PreparedRun& run) {
  const Store store(run.dir);
  std::map<std::string, std::pair<Json, std::vector<double>>> groups;
  for (const auto& item : run.plan.at("cells").items()) {
    const Json cost = store.cost(item.key());
    if (!cost.is_object() || !cost.contains("samples_per_hour") || !cost["samples_per_hour"].is_number()) continue;
    auto& group = groups[label(item.value())];
    group.first = item.value();
    group.second.push_back(cost["samples_per_hour"].get<double>());
  }
  Json rows = Json::array();
  for (auto& entry : groups) {
    auto& [config, values] = entry.second;
    std::sort(values.begin(), values.end());
    rows.push_back({{"model", config["model"]},
                    {"compression", config["compression"]},
                    {"method", config["method"]["name"]},
                    {"cells", values.size()},
                    {"samples_per_hour", values[values.size() / 2]}});
  }
  const Claim lock = store.lock_folder();
  MachineFile machine(store.path("machine.json"));
  machine.set_samples_per_hour(rows);
  machine.save();
}

}  // namespace thimble::lab
