// The lab's runner with cells that compute nothing: what they publish is a pure function of their configuration, so that
// tests can kill runners and compare folders.
//   fake_runner run PLAN OUT JOBS [retry]
// history: milliseconds that a cell takes. rag's k: 7 fails with an error, 8 aborts, 9 kills itself, 10 fails once only.
// Every execution adds the cell's hash as a line to OUT/executions.
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/lab/runner.h"

namespace {

using namespace thimble;
using Json = nlohmann::ordered_json;

std::atomic<bool> g_stop{false};

void sleep_ms(int64_t ms) {
  struct timespec left {ms / 1000, ms % 1000 * 1000000};
  while (::nanosleep(&left, &left) != 0) {
  }
}

lab::CellResult execute(const std::string& dir, const lab::CellConfig& config) {
  sleep_ms(config.history);
  const std::string hash = config.hash(), line = hash + "\n", log = dir + "/executions";
  const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  write_fully(fd, line.data(), line.size(), log);
  ::close(fd);
  const int64_t k = config.method.k[0];
  if (k == 7) throw Error(ErrorCode::unsupported, "k 7 is not for us", "take another");
  if (k == 8) ::abort();
  if (k == 9) ::raise(SIGKILL);
  if (k == 10 && !file_exists(dir + "/failed_once")) {
    write_file(dir + "/failed_once", "");
    throw Error(ErrorCode::input, "the first time fails");
  }
  lab::CellResult r;
  std::string text = config.to_json().dump();
  for (int i = 0; i < 100; ++i) {
    text = sha256_hex(text);
    r.predictions.push_back({{"id", std::to_string(i)}, {"user_id", "u"}, {"gold", "1"}, {"pred", text}, {"scores", nullptr}, {"seed", config.seed}});
  }
  r.curve.push_back({{"step", 0}, {"score", 0.5}, {"heldout", false}});
  r.metrics = {{"schema", "thimble.cell_metrics/1"}, {"digest", sha256_hex(text)}};
  r.cost = {{"samples_per_hour", 1000.0}, {"train_s", 0.1}};
  return r;
}

int run(const std::vector<std::string>& args) {
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop.store(true); };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  lab::RunnerOptions options;
  options.jobs = std::stoi(args.at(4));
  options.threads = options.jobs;
  options.retry_failed = args.size() > 5;
  options.child = {"/proc/self/exe", "cell"};
  options.isa = "ref";
  options.stop = [] { return g_stop.load(); };
  options.say = [](const std::string& line) { std::cerr << line << "\n"; };
  // What an estimate is made of stands in the plan: rank = KB of RAM, batch = milliseconds of a step.
  options.estimator = [](const lab::CellConfig& c) {
    lab::CellEstimate e;
    e.peak_bytes = e.budget_bytes = c.method.rank * 1024;
    e.step_s = double(c.method.batch) / 1000;
    e.steps = c.steps.empty() ? 0 : c.steps.back();
    return e;
  };
  const lab::Plan plan = lab::read_plan(args.at(2));
  const lab::PreparedRun prepared = lab::prepare_run(plan, {}, args.at(3), options);
  const lab::RunSummary s = lab::run_cells(prepared, options);
  lab::record_samples_per_hour(prepared);
  std::cout << Json{{"cells", s.cells}, {"ran", s.ran}, {"reused", s.reused}, {"elsewhere", s.elsewhere}, {"done", s.done},
                    {"failed", s.failed}, {"added", prepared.added}, {"infeasible", prepared.infeasible}, {"failures", s.failures}}.dump() << std::endl;
  return s.failed > 0 ? 8 : 0;
}

int cell(const std::vector<std::string>& args) {
  std::string dir, hash;
  for (size_t i = 2; i + 1 < args.size(); i += 2) {
    if (args[i] == "--dir") dir = args[i + 1];
    if (args[i] == "--hash") hash = args[i + 1];
  }
  const KernelTable table = build_kernel_table(Tier::ref);
  return lab::run_cell_process(dir, hash, table, 1, [&](const lab::CellConfig& c, const lab::CellEnvironment&) { return execute(dir, c); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv, argv + argc);
  try {
    return args.at(1) == "cell" ? cell(args) : run(args);
  } catch (const Error& e) {
    std::cerr << "error: " << e.what() << "\nhint: " << e.hint() << "\n";
    return static_cast<int>(e.code());
  }
}
