// Runners that are killed, stopped and raced: published cells stay, are never computed again, and are the same bytes as
// those of a run that nothing disturbed.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tests/scratch_dir.h"
#include "tests/tools/run_command.h"
#include "tools/lab/runner.h"

namespace thimble::lab {
namespace {

namespace fs = std::filesystem;
using testing::ScratchDir;
using tools_test::RunResult;
using Json = nlohmann::ordered_json;

// A runner in the background.
class Process {
 public:
  explicit Process(std::vector<std::string> args) {
    args.insert(args.begin(), THIMBLE_FAKE_RUNNER);
    std::vector<char*> argv;
    for (std::string& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::setpgid(0, 0);
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(null, 1);
      ::dup2(null, 2);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::setpgid(pid_, pid_);
  }
  ~Process() {
    if (pid_ <= 0) return;
    ::kill(-pid_, SIGKILL);
    wait();
  }
  void signal(int number) const { ::kill(pid_, number); }
  void signal_group(int number) const { ::kill(-pid_, number); }
  // Exit status; minus the signal that ended it.
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
};

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class RunnerTest : public ::testing::Test {
 protected:
  RunnerTest() {
    make_directories(scratch_ / "model");
    write_file(scratch_ / "model/config.json", "{}");
    write_file(scratch_ / "model/model.safetensors", "weights");
  }
  // A plan of one grid: method, budget and whatever else the test wants to vary.
  std::string plan(const std::string& grid, const std::string& top = "", const std::string& name = "plan.yaml") {
    const std::string text = "name: test\n" + top + "people: 1\nqueries: 1\ngrids:\n  - name: g\n    model: " + (scratch_ / "model") +
                             "\n    task: {world: {task: LaMP_3}}\n" + grid;
    write_file(scratch_ / name, text);
    return scratch_ / name;
  }
  static RunResult run(const std::string& plan, const std::string& out, int jobs = 2, bool retry = false) {
    std::vector<std::string> args = {THIMBLE_FAKE_RUNNER, "run", plan, out, std::to_string(jobs)};
    if (retry) args.push_back("retry");
    return tools_test::run_command(args);
  }
  static Json summary(const RunResult& r) {
    const Json json = Json::parse(r.out, nullptr, false);
    EXPECT_TRUE(json.is_object()) << r.out << r.err;
    return json;
  }
  // Name -> bytes of everything under cells/ but cost.json.
  static std::map<std::string, std::string> published(const std::string& out) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(out + "/cells"))
      if (entry.is_regular_file() && entry.path().filename() != "cost.json")
        files[fs::relative(entry.path(), out + "/cells").string()] = read_file(entry.path().string());
    return files;
  }
  static std::map<std::string, ino_t> inodes(const std::string& out) {
    std::map<std::string, ino_t> list;
    if (!fs::exists(out + "/cells")) return list;
    for (const auto& entry : fs::directory_iterator(out + "/cells")) {
      struct stat info {};
      const std::string name = entry.path().filename().string();
      if (name[0] != '.' && ::stat((entry.path() / "status.json").c_str(), &info) == 0) list[name] = info.st_ino;
    }
    return list;
  }
  static size_t unfinished(const std::string& out) {
    size_t n = 0;
    for (const auto& entry : fs::directory_iterator(out + "/cells")) n += entry.path().filename().string()[0] == '.';
    return n;
  }
  static std::map<std::string, int> executions(const std::string& out) {
    std::map<std::string, int> count;
    std::istringstream in(read_file(out + "/executions"));
    for (std::string line; std::getline(in, line);) ++count[line];
    return count;
  }

  ScratchDir scratch_;
};

TEST_F(RunnerTest, EveryCellIsPublishedOnceAndAFinishedFolderRunsNothing) {
  const std::string p = plan("    method: [none, {name: rag, k: [1, 2, 3]}]\n    history: [1, 2]\n", "seeds: 3\n");
  const std::string out = scratch_ / "out";
  RunResult r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(summary(r)["ran"], 24);
  EXPECT_EQ(summary(r)["done"], 24);
  EXPECT_EQ(executions(out).size(), 24u);
  const auto before = published(out);
  EXPECT_EQ(before.size(), 24u * 5);
  for (const auto& [hash, n] : executions(out)) {
    EXPECT_EQ(n, 1) << hash;
    const Json config = Json::parse(before.at(hash + "/config.json"));
    EXPECT_EQ(CellConfig::from_json(config).hash(), hash);
    EXPECT_EQ(Json::parse(before.at(hash + "/status.json")), Json({{"state", "done"}}));
  }
  r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(summary(r)["ran"], 0);
  EXPECT_EQ(summary(r)["reused"], 24);
  EXPECT_EQ(published(out), before);
  const Json machine = Json::parse(read_file(out + "/machine.json"));
  EXPECT_FALSE(machine["machine"]["cpu"].get<std::string>().empty());
  EXPECT_EQ(machine["samples_per_hour"].size(), 2u);
  // One job or four, the same bytes.
  const std::string other = scratch_ / "other";
  ASSERT_EQ(run(p, other, 4).status, 0);
  EXPECT_EQ(published(other), before);
}

TEST_F(RunnerTest, KilledAtRandomMomentsItResumesToTheSameBytes) {
  const std::string p = plan("    method: [none, {name: rag, k: [1, 2, 3, 4]}]\n    history: [3, 6, 9]\n", "seeds: 4\n");
  const std::string whole = scratch_ / "whole", out = scratch_ / "out";
  ASSERT_EQ(run(p, whole).status, 0);
  const auto expected = published(whole);
  ASSERT_EQ(expected.size(), 60u * 5);

  std::mt19937 random(20260101);
  std::map<std::string, ino_t> seen;
  int kills = 0;
  for (; kills < 12; ++kills) {
    Process runner({"run", p, out, "2"});
    // On a busy machine a runner may not get far: sometimes let it publish a few cells, sometimes none.
    const size_t enough = inodes(out).size() + random() % 6;
    for (int i = 0; i < 5000 && inodes(out).size() < std::min<size_t>(enough, 50); ++i) sleep_ms(2);
    sleep_ms(static_cast<int>(random() % 60));
    runner.signal(SIGKILL);
    if (runner.wait() == 0) break;
    for (const auto& [hash, inode] : inodes(out)) seen.emplace(hash, inode);
  }
  EXPECT_GT(kills, 0);
  const RunResult r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(published(out), expected);
  EXPECT_EQ(unfinished(out), 0u);
  EXPECT_GT(seen.size(), 0u);
  const auto now = inodes(out);
  for (const auto& [hash, inode] : seen) EXPECT_EQ(now.at(hash), inode) << hash << " was published twice";
  // Each kill can cost the two cells that were running.
  int executed = 0;
  for (const auto& [hash, n] : executions(out)) executed += n;
  EXPECT_LE(executed, 60 + 2 * kills);
  RecordProperty("kills", kills);
  RecordProperty("executed", executed);
}

TEST_F(RunnerTest, TwoRunnersOneStoppedPublishEveryCellExactlyOnce) {
  const std::string p = plan("    method: [none, {name: rag, k: [1, 2, 3, 4]}]\n    history: [4, 8]\n", "seeds: 12\n");
  const std::string out = scratch_ / "out";
  Process first({"run", p, out, "1"}), second({"run", p, out, "1"});
  std::mt19937 random(7);
  for (int i = 0; i < 5; ++i) {
    sleep_ms(30 + static_cast<int>(random() % 60));
    first.signal_group(SIGSTOP);
    sleep_ms(60 + static_cast<int>(random() % 60));
    first.signal_group(SIGCONT);
  }
  EXPECT_EQ(first.wait(), 0);
  EXPECT_EQ(second.wait(), 0);
  const auto count = executions(out);
  EXPECT_EQ(count.size(), 120u);
  for (const auto& [hash, n] : count) EXPECT_EQ(n, 1) << hash;
  EXPECT_EQ(inodes(out).size(), 120u);
  EXPECT_EQ(unfinished(out), 0u);
}

TEST_F(RunnerTest, TerminatedItEndsWithSixAndPublishesNothingHalf) {
  const std::string p = plan("    method: {name: rag, k: [1, 2, 3, 4]}\n    history: 300\n", "seeds: 2\n");
  for (const int number : {SIGTERM, SIGINT}) {
    const std::string out = scratch_ / ("out" + std::to_string(number));
    Process runner({"run", p, out, "2"});
    sleep_ms(450);
    if (number == SIGINT)
      runner.signal_group(number);  // as a terminal does
    else
      runner.signal(number);
    EXPECT_EQ(runner.wait(), 6);
    EXPECT_EQ(unfinished(out), 0u);
    EXPECT_LT(inodes(out).size(), 8u);
    for (const auto& entry : inodes(out)) EXPECT_EQ(Json::parse(read_file(out + "/cells/" + entry.first + "/status.json"))["state"], "done");
    const Json status = experiment_status(out);
    EXPECT_EQ(status["running"], 0);
    EXPECT_EQ(status["done"].get<int>() + status["pending"].get<int>(), 8);
  }
}

TEST_F(RunnerTest, FailuresArePublishedWithTheirReasonAndRunAgainOnlyWhenAsked) {
  const std::string p = plan("    method: {name: rag, k: [1, 7, 8, 9, 10]}\n    history: 1\n");
  const std::string out = scratch_ / "out";
  RunResult r = run(p, out, 1);
  EXPECT_EQ(r.status, 8) << r.err;
  Json s = summary(r);
  EXPECT_EQ(s["done"], 1);
  EXPECT_EQ(s["failed"], 4);
  std::string reasons = s["failures"].dump();
  for (const char* word : {"k 7 is not for us", "signal 6", "signal 9", "the first time fails"}) EXPECT_NE(reasons.find(word), std::string::npos) << word << reasons;
  EXPECT_NE(reasons.find("\"error_code\":5"), std::string::npos) << reasons;
  r = run(p, out, 1);
  EXPECT_EQ(r.status, 8);
  EXPECT_EQ(summary(r)["ran"], 0);
  r = run(p, out, 1, true);
  EXPECT_EQ(r.status, 8);
  s = summary(r);
  EXPECT_EQ(s["ran"], 4);
  EXPECT_EQ(s["done"], 2);
  EXPECT_EQ(s["failed"], 3);
  const Json status = experiment_status(out);
  EXPECT_EQ(status["failed"], 3);
  EXPECT_EQ(status["eta_s"], 0.0);
}

TEST_F(RunnerTest, AnotherPlanAddsItsCells) {
  const std::string out = scratch_ / "out";
  ASSERT_EQ(run(plan("    method: none\n    history: [1, 2]\n"), out).status, 0);
  const auto before = published(out);
  const RunResult r = run(plan("    method: none\n    history: [2, 3]\n", "", "second.yaml"), out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("1 new cells are added to 2"), std::string::npos) << r.err;
  EXPECT_EQ(summary(r)["added"], 1);
  EXPECT_EQ(summary(r)["ran"], 1);
  EXPECT_EQ(summary(r)["cells"], 3);
  for (const auto& [name, bytes] : before) EXPECT_EQ(published(out).at(name), bytes);
  EXPECT_TRUE(file_exists(out + "/plan.1.yaml"));
  const Json resolved = Json::parse(read_file(out + "/plan.json"));
  ASSERT_EQ(resolved["grids"].size(), 1u);
  EXPECT_EQ(resolved["grids"][0]["cells"].size(), 3u);
  EXPECT_EQ(resolved["grids"][0]["factors"], Json({"history"}));
}

TEST_F(RunnerTest, WhatCannotRunIsRefusedWithItsLineBeforeAnythingRuns) {
  const std::string out = scratch_ / "out";
  const auto refused = [&](const std::string& p, int status, const std::vector<std::string>& words) {
    const RunResult r = run(p, out);
    EXPECT_EQ(r.status, status) << r.err;
    for (const std::string& word : words) EXPECT_NE(r.err.find(word), std::string::npos) << "missing " << word << " in: " << r.err;
    EXPECT_FALSE(file_exists(out)) << "something was written";
  };
  refused(plan("    method: none\n    histroy: 3\n"), 2, {"plan.yaml:9:5: ", "unknown key \"histroy\"", "history"});
  std::string missing = read_file(plan("    method: none\n"));
  missing.replace(missing.find(scratch_ / "model"), (scratch_ / "model").size(), scratch_ / "nowhere");
  write_file(scratch_ / "plan.yaml", missing);
  refused(scratch_ / "plan.yaml", 3, {"plan.yaml:6:12: ", "nowhere", "no such model"});
  // rank is KB of RAM in the fake.
  const std::string lora = "    method: {name: lora, rank: [1, 64]}\n    budget: {steps: 5}\n    history: 1\n";
  refused(plan(lora, "device: {ram: 16K}\n"), 4, {"plan.yaml:6:5: ", "64 KB", "16 KB", "over: skip"});
  const RunResult r = run(plan(lora, "device: {ram: 16K, over: skip}\n"), out);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(summary(r)["infeasible"], 1);
  EXPECT_EQ(summary(r)["done"], 1);
  EXPECT_EQ(experiment_status(out)["infeasible"], 1);
  EXPECT_EQ(Json::parse(read_file(out + "/plan.json"))["infeasible"].size(), 1u);
}

TEST_F(RunnerTest, AFolderOfSomethingElseIsLeftAlone) {
  make_directories(scratch_ / "home");
  write_file(scratch_ / "home/letter.txt", "dear");
  const RunResult r = run(plan("    method: none\n"), scratch_ / "home");
  EXPECT_EQ(r.status, 3);
  EXPECT_NE(r.err.find("letter.txt"), std::string::npos) << r.err;
  EXPECT_FALSE(file_exists(scratch_ / "home/cells"));
}

TEST_F(RunnerTest, TimeBudgetsBecomeStepsOnceAndKeepTheirNames) {
  const std::string out = scratch_ / "out";
  // batch is milliseconds of a step in the fake: 2 s are 200 steps of 10 ms.
  const std::string grid = "    method: {name: lora, batch: 10}\n    budget: {seconds: [0.5, 2], curve: [10, 100, 1000]}\n    history: 1\n";
  const std::string p = plan(grid);
  RunResult r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  const Json resolved = Json::parse(read_file(out + "/plan.json"));
  std::set<std::string> budgets;
  for (const auto& item : resolved["cells"].items()) budgets.insert(item.value()["steps"].dump() + item.value()["curve"].dump());
  EXPECT_EQ(budgets, (std::set<std::string>{"[50][10]", "[200][10,100]"}));
  EXPECT_EQ(resolved["conversions"].size(), 2u);
  for (const auto& item : resolved["conversions"].items()) EXPECT_EQ(item.value()["step_s"], 0.01);
  // The machine became twice as fast; the stored calibration still names the cells.
  Json machine = Json::parse(read_file(out + "/machine.json"));
  ASSERT_EQ(machine["calibration"].size(), 1u);
  for (auto& item : machine["calibration"]) item["step_s"] = 0.005;
  const auto before = published(out);
  r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(summary(r)["ran"], 0);
  EXPECT_EQ(published(out), before);
  write_file(out + "/machine.json", machine.dump());
  r = run(p, out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(summary(r)["ran"], 2) << "a changed calibration gives other cells";
}

TEST_F(RunnerTest, ADamagedFolderIsNamed) {
  const std::string out = scratch_ / "out", p = plan("    method: none\n    history: 1\n");
  ASSERT_EQ(run(p, out).status, 0);
  const std::string good = read_file(out + "/plan.json");
  for (const std::string& bad : {std::string("{"), std::string("[]"), std::string("{\"cells\": {\"../x\": {}}, \"grids\": [], \"infeasible\": {}}"), good.substr(0, good.size() / 2)}) {
    write_file(out + "/plan.json", bad);
    try {
      experiment_status(out);
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input) << e.what();
      EXPECT_NE(std::string(e.what()).find("plan.json"), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace thimble::lab
