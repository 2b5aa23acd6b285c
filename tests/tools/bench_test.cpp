// thimble bench, bench compare, bench roofline and dashboard bench as people run them.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/scratch_dir.h"
#include "tests/tools/bench_record.h"
#include "tests/tools/run_command.h"

namespace thimble::tools_test {
namespace {

namespace fs = std::filesystem;
using testing::ScratchDir;

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}
std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
size_t occurrences(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

FakeRecord sample(double factor = 1) {
  FakeRecord f;
  f.rows = {{"softmax/avx512/rows=8,cols=4096/manual_time", times(kNine, factor), 1e5, 2.6e5},
            {"softmax/ref/rows=8,cols=4096/manual_time", times(kNine, 9), 1e5, 2.6e5},
            {"gemm_f32/avx512/m=6,n=64/manual_time", kNine, 2e7, 1e5},
            {"f32_to_f16/avx512/n=1000/manual_time", kNine, 0, 6e5},
            {"driver_prefill_q4/int8_act/threads=2/manual_time", kNine, 9e7, 0},
            {"<script>alert(1)</script>&/shape", kNine, 5, 5},
            {"nothing_counted/x", kNine, 0, 0}};
  return f;
}

TEST(BenchCommand, HelpTeaches) {
  const RunResult r = thimble({"bench", "--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* words : {"Examples:", "--filter", "--isa", "--shape", "--threads", "--json", "compare", "roofline",
                            "--benchmark_repetitions=9"})
    EXPECT_NE(r.out.find(words), std::string::npos) << words;
  for (const char* verb : {"compare", "roofline"}) {
    const RunResult help = thimble({"bench", verb, "--help"});
    EXPECT_EQ(help.status, 0);
    EXPECT_NE(help.out.find("Example"), std::string::npos);
  }
  EXPECT_NE(thimble({"completion", "bash"}).out.find("compare"), std::string::npos);
  EXPECT_NE(thimble({"dashboard", "bench", "--help"}).out.find("Examples:"), std::string::npos);
}

// The program beside this one is replaced by a script that says how it was called.
TEST(BenchCommand, RunsTheProgramBesideItself) {
  const ScratchDir dir;
  const std::string self = dir / "thimble", program = dir / "thimble_bench";
  fs::copy_file(std::string(THIMBLE_BINARY_DIR) + "/bin/thimble", self);
  const RunResult missing = run_command({self, "bench", "--filter", "x"});
  EXPECT_EQ(missing.status, 5);
  EXPECT_NE(missing.err.find("/thimble_bench: not there"), std::string::npos) << missing.err;
  EXPECT_NE(missing.err.find("hint: cmake --build"), std::string::npos);
  EXPECT_EQ(run_command({self, "bench", "--no-such"}).status, 2);
  EXPECT_EQ(run_command({self, "bench", "no_such_verb"}).status, 2);
  EXPECT_EQ(run_command({self, "bench", "--threads", "0"}).status, 2);

  write(program, "#!/bin/sh\nprintf '[%s]' \"$@\"\nexit 42\n");
  ::chmod(program.c_str(), 0755);
  const RunResult r = run_command({self, "bench", "--filter", "^soft max", "--isa", "avx2", "--shape", "n=8",
                                   "--threads", "3", "--json", "o.json", "--benchmark_repetitions=9"});
  EXPECT_EQ(r.status, 42);
  EXPECT_EQ(r.out,
            "[--filter=^soft max][--isa=avx2][--shape=n=8][--threads=3][--json=o.json][--benchmark_repetitions=9]");
  RunOptions environment;
  environment.env["THIMBLE_ISA"] = "ref";
  EXPECT_EQ(run_command({self, "bench", "--benchmark_list_tests"}, environment).out,
            "[--isa=ref][--benchmark_list_tests]");
}

TEST(BenchCompare, StatusSevenWhenSomethingIsSlower) {
  const ScratchDir dir;
  const std::string a = dir / "a.json", slow = dir / "slow.json";
  write(a, sample().text());
  write(slow, sample(1.5).text());
  const RunResult same = thimble({"bench", "compare", a, a});
  EXPECT_EQ(same.status, 0);
  EXPECT_NE(same.out.find("0 slower, 0 faster, 7 same"), std::string::npos) << same.out;
  EXPECT_EQ(same.err, "");
  const RunResult worse = thimble({"bench", "compare", a, slow});
  EXPECT_EQ(worse.status, 7);
  EXPECT_NE(worse.out.find("slower"), std::string::npos);
  EXPECT_NE(worse.out.find("1.500"), std::string::npos);
  EXPECT_EQ(thimble({"bench", "compare", slow, a}).status, 0);  // faster is no failure
  EXPECT_EQ(thimble({"bench", "compare", a, slow, "--filter", "gemm"}).status, 0);
  EXPECT_EQ(thimble({"bench", "compare", a, slow, "--floor", "0.6"}).status, 0);

  const RunResult json = thimble({"bench", "compare", a, slow, "--json"});
  EXPECT_EQ(json.status, 7);
  const auto j = nlohmann::json::parse(json.out);
  EXPECT_EQ(j["schema"], "thimble.bench_compare/1");
  EXPECT_EQ(j["slower"], 1);
  EXPECT_EQ(j["too_few_runs"], 0);
  EXPECT_TRUE(j["same_machine"].get<bool>());
  const auto& row = j["rows"][0];
  EXPECT_EQ(row["verdict"], "slower");
  EXPECT_NEAR(row["ratio"].get<double>(), 1.5, 1e-9);
  EXPECT_NEAR(row["p"].get<double>(), 2.0 / 512, 1e-12);
  for (const char* key : {"lo", "hi", "threshold", "p_holm", "seconds_a", "seconds_b"})
    EXPECT_TRUE(row[key].is_number()) << key;
  EXPECT_EQ(thimble({"bench", "compare", a, slow, "--json"}).out, json.out);  // every draw is fixed
}

TEST(BenchCompare, OtherMachinesWarnAndBadFilesAreNamed) {
  const ScratchDir dir;
  const std::string a = dir / "a.json", other = dir / "other.json", bad = dir / "bad.json";
  FakeRecord f = sample();
  write(a, f.text());
  f.fingerprint = "000000000000";
  write(other, f.text());
  const RunResult r = thimble({"bench", "compare", a, other});
  EXPECT_EQ(r.status, 0);
  EXPECT_NE(r.err.find("warning: records of two machines"), std::string::npos) << r.err;
  EXPECT_EQ(thimble({"bench", "compare", a, other, "--quiet"}).err, "");

  Json json = f.json();
  json["benchmarks"][0]["real_time"] = -1;
  write(bad, json.dump());
  const RunResult refused = thimble({"bench", "compare", a, bad});
  EXPECT_EQ(refused.status, 3);
  EXPECT_EQ(refused.out, "");
  EXPECT_NE(refused.err.find(bad), std::string::npos);
  EXPECT_NE(refused.err.find("benchmarks[0].real_time"), std::string::npos);
  Json aggregates = f.json();
  Json kept = Json::array();
  for (const auto& row : aggregates["benchmarks"])
    if (row["run_type"] == "aggregate") kept.push_back(row);
  aggregates["benchmarks"] = kept;
  write(bad, aggregates.dump());
  const RunResult advice = thimble({"bench", "compare", a, bad});
  EXPECT_EQ(advice.status, 3);
  EXPECT_NE(advice.err.find("--benchmark_report_aggregates_only"), std::string::npos);
  EXPECT_EQ(thimble({"bench", "compare", a, dir / "none.json"}).status, 3);
  EXPECT_EQ(thimble({"bench", "compare", a}).status, 2);
  EXPECT_EQ(thimble({"bench", "compare", a, a, "--filter", "["}).status, 2);
  EXPECT_EQ(thimble({"bench", "compare", a, a, "--filter", "no such row"}).status, 2);
  EXPECT_EQ(thimble({"bench", "compare", a, a, "--alpha", "2"}).status, 2);
}

TEST(BenchRoofline, DrawsEveryKernelAndRoof) {
  const ScratchDir dir;
  const std::string record = dir / "r.json", out = dir / "r.svg";
  write(record, sample().text());
  const RunResult r = thimble({"bench", "roofline", record, "--out", out});
  ASSERT_EQ(r.status, 0) << r.err;
  const std::string svg = read(out);
  EXPECT_EQ(svg.rfind("<svg xmlns=", 0), 0u);
  for (const FakeRow& row : sample().rows) {
    if ((row.flops == 0 && row.bytes == 0) || row.name[0] == '<') continue;
    EXPECT_NE(svg.find(row.name), std::string::npos) << row.name;
  }
  EXPECT_NE(svg.find("&lt;script&gt;alert"), std::string::npos);
  EXPECT_EQ(svg.find("<script"), std::string::npos);
  for (const char* words : {"f32 260 Gop/s", "bf16 520 Gop/s", "int8 1.04 Top/s", "read 30 GB/s",
                            "2 threads: f32 520 Gop/s", "1 row without counts", "norms, softmax"})
    EXPECT_NE(svg.find(words), std::string::npos) << words;
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(thimble({"bench", "roofline", record}).out, svg);  // the same bytes, on stdout

  const auto json = nlohmann::json::parse(thimble({"bench", "roofline", record, "--json"}).out);
  EXPECT_EQ(json["points"].size(), 6u);
  EXPECT_EQ(json["roofs"].size(), 2u);
  EXPECT_EQ(json["without_counts"][0], "nothing_counted/x");
  EXPECT_EQ(thimble({"bench", "roofline", record, "--isa", "ref"}).status, 0);
  EXPECT_EQ(thimble({"bench", "roofline", record, "--isa", "neon"}).status, 2);
  EXPECT_EQ(thimble({"bench", "roofline", record, "--filter", "nothing at all"}).status, 2);
  FakeRecord bare = sample();
  bare.peaks = false;
  write(record, bare.text());
  const RunResult roofless = thimble({"bench", "roofline", record});
  EXPECT_EQ(roofless.status, 0);
  EXPECT_NE(roofless.err.find("no measured peaks"), std::string::npos);
}

TEST(BenchDashboard, ShowsEveryBenchmarkPerMachineAndTheRegression) {
  const ScratchDir dir;
  for (int i = 0; i < 4; ++i) {
    FakeRecord f = sample(i < 2 ? 1 : 1.5);
    f.date = "2026-01-0" + std::to_string(4 - i) + "T00:00:00+00:00";  // files against the order of time
    f.commit = "c0ffee" + std::to_string(i);
    write(dir / ("records/deep/r" + std::to_string(i) + ".json"), f.text());
  }
  FakeRecord other = sample();
  other.fingerprint = "aaaaaaaaaaaa";
  other.cpu = "Second CPU";
  write(dir / "records/other.json", other.text());
  write(dir / "records/broken.json", "{\"benchmarks\": [");
  write(dir / "records/unrelated.json", "{}");
  const RunResult r = thimble({"dashboard", "bench", dir / "records", "--out", dir / "page.html"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, "page: " + (dir / "page.html") + "\n");
  EXPECT_NE(r.err.find("broken.json"), std::string::npos);
  const std::string page = read(dir / "page.html");
  for (const char* words :
       {">softmax/avx512/rows=8,<wbr>cols=4096<", ">softmax/ref/rows=8,<wbr>cols=4096<",
        ">gemm_f32/avx512/m=6,<wbr>n=64<", ">f32_to_f16/avx512/n=1000<", "driver_prefill_q4/int8_act/threads=2",
        "nothing_counted/x", "Second CPU", "c0ffee3", "unrelated.json", "feedfeedfeed"})
    EXPECT_NE(page.find(words), std::string::npos) << words;
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_NE(page.find("Test CPU &lt;1&gt;"), std::string::npos);
  EXPECT_EQ(page.find("://"), std::string::npos);  // nothing to fetch
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(occurrences(page, "id=\"m0-changes\""), 1u);
  // Files 3 and 2 are the slow, older ones: the newest step of the machine is none, the step before is an improvement.
  EXPECT_NE(page.find("badge faster"), std::string::npos);
  EXPECT_EQ(page.find("badge slower"), std::string::npos);

  const RunResult again = thimble({"dashboard", "bench", dir / "records", "--out", dir / "again.html", "--json"});
  EXPECT_EQ(read(dir / "again.html"), page);
  const auto json = nlohmann::json::parse(again.out);
  EXPECT_EQ(json["schema"], "thimble.dashboard_bench/1");
  ASSERT_EQ(json["machines"].size(), 2u);
  EXPECT_EQ(json["machines"][0]["records"][0]["commit"], "c0ffee3");
  EXPECT_EQ(json["machines"][0]["series"].size(), 7u);
  EXPECT_EQ(json["skipped"].size(), 2u);
  for (const auto& s : json["machines"][0]["series"]) {
    if (s["name"].get<std::string>().rfind("softmax/avx512", 0) != 0) continue;
    EXPECT_EQ(s["points"].size(), 4u);
    EXPECT_EQ(s["points"][1]["change"]["verdict"], "same");
    EXPECT_EQ(s["points"][2]["change"]["verdict"], "faster");
    EXPECT_EQ(s["since_first"]["verdict"], "faster");
  }
}

TEST(BenchDashboard, RefusesFoldersWithoutRecords) {
  const ScratchDir dir;
  write(dir / "records/unrelated.json", "{}");
  EXPECT_EQ(thimble({"dashboard", "bench", dir / "records"}).status, 3);
  EXPECT_EQ(thimble({"dashboard", "bench", dir / "none"}).status, 3);
  EXPECT_EQ(thimble({"dashboard", "bench"}).status, 2);
  EXPECT_EQ(thimble({"dashboard"}).status, 2);
  write(dir / "records/one.json", sample().text());
  EXPECT_EQ(thimble({"dashboard", "bench", dir / "records", "--filter", "no such"}).status, 2);
  const RunResult r = thimble({"dashboard", "bench", dir / "records", "--quiet"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  EXPECT_TRUE(fs::exists(dir / "records/bench.html"));
}

}  // namespace
}  // namespace thimble::tools_test
