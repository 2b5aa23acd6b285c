// thimble lab from plan to report, with real cells over a small random model.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <thread>

#include "tests/lab/cell_support.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

using Json = nlohmann::ordered_json;

class LabTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new ScratchDir;
    lab_test::write_model(*shared_ / "zoo/tiny");
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  std::string plan(const std::string& grid, const std::string& top = "") {
    put_file(scratch_ / "plan.yaml", "name: a test\n" + top + "people: 3\nqueries: 2\ngrids:\n  - name: g\n    model: zoo:tiny\n    task: {world: {task: LaMP_3, history: 8}}\n" + grid);
    return scratch_ / "plan.yaml";
  }
  static RunResult lab(std::vector<std::string> args) {
    args.insert(args.begin(), "lab");
    RunOptions options;
    options.env = {{"THIMBLE_ZOO", *shared_ / "zoo"}};
    options.timeout_s = 120;
    return thimble(std::move(args), options);
  }
  static std::string clean(const std::string& path) { return std::filesystem::path(path).lexically_normal().string(); }
  static std::map<std::string, std::string> published(const std::string& out) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(out + "/cells"))
      if (entry.is_regular_file() && entry.path().filename() != "cost.json")
        files[std::filesystem::relative(entry.path(), out + "/cells").string()] = get_file(entry.path().string());
    return files;
  }

  static ScratchDir* shared_;
  ScratchDir scratch_;
};
ScratchDir* LabTest::shared_ = nullptr;

const char* const kMethods = "    method: [none, {name: rag, k: 2}, {name: lora, rank: 2, batch: 2}]\n    budget: {steps: 3, curve: [1]}\n";

TEST_F(LabTest, FromPlanToReport) {
  const std::string p = plan(kMethods), out = scratch_ / "out", other = scratch_ / "other";
  const nlohmann::json planned = expect_json(lab({"plan", p, "--json"}), "thimble.lab_plan/1");
  ASSERT_EQ(planned["cells"].size(), 3u);
  for (const auto& cell : planned["cells"]) {
    EXPECT_GT(cell["predicted"]["budget_bytes"].get<int64_t>(), 0);
    EXPECT_GT(cell["predicted"]["peak_bytes"].get<int64_t>(), cell["predicted"]["budget_bytes"].get<int64_t>());
    EXPECT_GT(cell["predicted"]["seconds"].get<double>(), 0);
  }
  const RunResult run = lab({"run", p, "--out", out});
  ASSERT_EQ(run.status, 0) << run.err;
  const std::string report = clean(out + "/report/report.html");
  EXPECT_EQ(run.out, "report: " + report + "\n");
  EXPECT_TRUE(std::filesystem::exists(out + "/report/report.html"));
  const auto files = published(out);
  EXPECT_EQ(files.size(), 3u * 5);
  for (const auto& cell : planned["cells"]) {
    const std::string hash = cell["hash"];
    ASSERT_EQ(files.count(hash + "/metrics.json"), 1u);
    EXPECT_EQ(Json::parse(files.at(hash + "/metrics.json"))["people"], 3);
    const Json cost = Json::parse(get_file(out + "/cells/" + hash + "/cost.json"));
    EXPECT_GT(cost["peak_rss_bytes"].get<int64_t>(), 1 << 20);
    EXPECT_GT(cost["wall_s"].get<double>(), 0);
  }
  // Other jobs and threads, the same bytes; and nothing is done twice.
  const nlohmann::json second = expect_json(lab({"run", p, "--out", other, "--jobs", "2", "--threads", "3", "--json"}), "thimble.lab_run/1");
  EXPECT_EQ(second["ran"], 3);
  EXPECT_EQ(second["report"], clean(other + "/report/report.html"));
  EXPECT_EQ(published(other), files);
  EXPECT_EQ(expect_json(lab({"run", p, "--out", out, "--json"}), "thimble.lab_run/1")["reused"], 3);

  const nlohmann::json status = expect_json(lab({"status", out, "--json"}), "thimble.lab_status/1");
  EXPECT_EQ(status["done"], 3);
  EXPECT_EQ(status["pending"], 0);
  EXPECT_NE(lab({"status", out}).out.find("3 done, 0 failed"), std::string::npos);
  EXPECT_EQ(lab({"report", out}).out, "report: " + report + "\n");
  EXPECT_EQ(expect_json(lab({"report", out, "--json"}), "thimble.lab_report/1")["report"], report);
  EXPECT_NE(get_file(out + "/machine.json").find("samples_per_hour"), std::string::npos);
}

TEST_F(LabTest, ExportedJobsRunTheirCell) {
  const std::string p = plan(kMethods), out = scratch_ / "out";
  const RunResult jobs = lab({"export", p, "--parallel", "--out", out});
  ASSERT_EQ(jobs.status, 0) << jobs.err;
  EXPECT_EQ(std::count(jobs.out.begin(), jobs.out.end(), '\n'), 3);
  const nlohmann::json slurm = expect_json(lab({"export", p, "--slurm", "--out", out, "--json"}), "thimble.lab_export/1");
  EXPECT_EQ(slurm["cells"].size(), 3u);
  RunOptions options;
  options.env = {{"THIMBLE_ZOO", *shared_ / "zoo"}};
  const std::string path = "PATH=" + std::string(THIMBLE_BINARY_DIR) + "/bin:$PATH; export PATH; ";
  const RunResult task = run_command({"/bin/sh", "-c", path + "SLURM_ARRAY_TASK_ID=2; export SLURM_ARRAY_TASK_ID; " + slurm["script"].get<std::string>()}, options);
  EXPECT_EQ(task.status, 0) << task.err;
  const RunResult line = run_command({"/bin/sh", "-c", path + jobs.out.substr(0, jobs.out.find('\n'))}, options);
  EXPECT_EQ(line.status, 0) << line.err;
  const nlohmann::json status = expect_json(lab({"status", out, "--json"}), "thimble.lab_status/1");
  EXPECT_EQ(status["done"], 2);
  EXPECT_EQ(status["list"][0]["state"], "done");
  EXPECT_EQ(status["list"][1]["state"], "done");
  expect_failure(lab({"export", p}), 2, {"--slurm", "--parallel"});
  expect_failure(lab({"export", plan("    method: lora\n    budget: {seconds: 2}\n"), "--slurm"}), 2, {"plan.yaml:5:5", "--out"});
}

TEST_F(LabTest, ProblemsAreFoundBeforeAnythingRuns) {
  const std::string out = scratch_ / "out";
  for (const std::string verb : {"plan", "run"}) {
    std::vector<std::string> args = {verb, plan("    metod: none\n")};
    const auto with_out = [&](const std::string& path) {
      std::vector<std::string> a = {verb, path};
      if (verb == "run") a.insert(a.end(), {"--out", out});
      return a;
    };
    expect_failure(lab(with_out(plan("    metod: none\n"))), 2, {"plan.yaml:8:5: ", "metod", "method"});
    expect_failure(lab(with_out(plan("    method: none\n    history: x\n"))), 3, {"plan.yaml:9:14: ", "integer"});
    put_file(scratch_ / "missing.yaml", "name: t\ngrids:\n  - name: g\n    model: zoo:huge\n    task: {world: {}}\n    method: none\n");
    expect_failure(lab(with_out(scratch_ / "missing.yaml")), 3, {"missing.yaml:4:12: ", "zoo:huge", "tiny"});
    expect_failure(lab(with_out(scratch_ / "none.yaml")), 3, {"none.yaml"});
    const RunResult small = lab(with_out(plan(kMethods, "device: {ram: 20K}\n")));
    EXPECT_EQ(small.status, 4) << small.err;
    for (const char* word : {"plan.yaml:6:5: ", "20 KB", "over: skip"}) EXPECT_NE(small.err.find(word), std::string::npos) << word << small.err;
    EXPECT_FALSE(std::filesystem::exists(out));
  }
  expect_failure(lab({"status", out}), 3, {"plan.json"});
  expect_failure(lab({"report", out}), 3, {"plan.json"});
  expect_failure(lab({"run", plan(kMethods)}), 2, {"--out"});
  expect_failure(lab({"run", plan(kMethods), "--out", out, "--jobs", "0"}), 2, {"--jobs"});
  expect_failure(lab({}), 2, {});
  for (const std::string verb : {"plan", "run", "status", "report", "export"}) EXPECT_NE(lab({verb, "--help"}).out.find("Example"), std::string::npos) << verb;
}

TEST_F(LabTest, AFailedCellEndsWithEight) {
  // The weights are damaged after the plan was prepared, so its processes fail and say why.
  std::filesystem::copy(*shared_ / "zoo/tiny", scratch_ / "model", std::filesystem::copy_options::recursive);
  put_file(scratch_ / "plan.yaml", "name: t\npeople: 2\nqueries: 1\ngrids:\n  - name: g\n    model: " + (scratch_ / "model") + "\n    task: {world: {}}\n    method: none\n");
  put_file(scratch_ / "model/model.safetensors", "damaged");
  const std::string out = scratch_ / "out";
  const RunResult r = lab({"run", scratch_ / "plan.yaml", "--out", out, "--json", "--no-report"});
  EXPECT_EQ(r.status, 8) << r.err;
  const nlohmann::json json = nlohmann::json::parse(r.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << r.out;
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["failures"][0]["error_code"], 3);
  EXPECT_NE(json["failures"][0]["reason"].get<std::string>().find("model.safetensors"), std::string::npos);
}

TEST_F(LabTest, TerminatedItEndsWithSixAndContinues) {
  const std::string p = plan("    method: {name: lora, rank: [1, 2], batch: 2}\n    budget: {steps: 20000}\n"), out = scratch_ / "out";
  const std::string program = std::string(THIMBLE_BINARY_DIR) + "/bin/thimble", zoo = "THIMBLE_ZOO=" + (*shared_ / "zoo");
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int null = ::open("/dev/null", O_RDWR);
    ::dup2(null, 1);
    ::dup2(null, 2);
    ::execl("/usr/bin/env", "env", zoo.c_str(), program.c_str(), "lab", "run", p.c_str(), "--out", out.c_str(), nullptr);
    ::_exit(127);
  }
  for (int i = 0; i < 600 && (!std::filesystem::exists(out + "/logs") || std::filesystem::is_empty(out + "/logs")); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ::kill(pid, SIGTERM);
  int status = 0;
  ::waitpid(pid, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 6);
  const nlohmann::json after = expect_json(lab({"status", out, "--json"}), "thimble.lab_status/1");
  EXPECT_EQ(after["running"], 0);
  EXPECT_EQ(after["pending"], 2);
  EXPECT_TRUE(std::filesystem::is_empty(out + "/cells"));
}

}  // namespace
}  // namespace thimble::tools_test
