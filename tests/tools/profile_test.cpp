// thimble profile: the zones add up, the flops are those of the shape, the timeline is a valid file, and what is wrong
// is said in words.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "models/random_model.h"
#include "tests/tools/run_command.h"
#include "tests/tools/small_model.h"
#include "tools/cli/cli.h"
#include "tools/cli/counters.h"
#include "tools/cli/profile_report.h"

namespace thimble::cli {
namespace {

using tools_test::expect_failure;
using tools_test::expect_json;
using tools_test::get_file;
using tools_test::RunResult;
using tools_test::ScratchDir;
using tools_test::thimble;

nlohmann::json profile(std::vector<std::string> args) {
  args.insert(args.begin(), {"profile", "--json", "--quiet"});
  return expect_json(thimble(args), "thimble.profile/1");
}

std::map<std::string, nlohmann::json> zones_of(const nlohmann::json& report) {
  std::map<std::string, nlohmann::json> zones;
  for (const auto& z : report["zones"]) zones[z["name"].get<std::string>()] = z;
  return zones;
}

// gflops is per second of the zone's own time.
double flops_of(const nlohmann::json& zone) {
  return zone["gflops"].get<double>() * zone["seconds"].get<double>() * 1e9;
}

void expect_shares(const nlohmann::json& report) {
  double shares = 0, seconds = 0, last = 1e9;
  for (const auto& z : report["zones"]) {
    const double share = z["share"], own = z["seconds"];
    EXPECT_GE(share, 0) << z;
    EXPECT_LE(own, last) << "most expensive first: " << z;
    last = own;
    shares += share;
    seconds += own;
  }
  EXPECT_NEAR(shares, 1.0, 1e-6);
  EXPECT_NEAR(seconds, report["seconds"].get<double>(), 1e-6 * report["seconds"].get<double>() + 1e-9);
}

TEST(Profile, PrefillCountsTheFlopsOfTheShape) {
  const nlohmann::json report = profile({"prefill", "--shape", "stories260k", "--prompt-tokens", "48", "--steps", "2"});
  expect_shares(report);
  const auto zones = zones_of(report);
  ASSERT_TRUE(zones.count("linear/gemm/f32/f32") && zones.count("attention") && zones.count("head/gemv/f32/f32") &&
              zones.count("other"));
  // hidden 64, kv 32, intermediate 172, 5 layers, 8 heads of 8
  const double layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 172, passes = 2, rows = 48;
  EXPECT_NEAR(flops_of(zones.at("linear/gemm/f32/f32")), passes * 5 * 2 * rows * layer, 1e3);
  EXPECT_NEAR(flops_of(zones.at("attention")), passes * 5 * 4 * 64 * (rows * (rows + 1) / 2), 1e3);
  EXPECT_NEAR(flops_of(zones.at("head/gemv/f32/f32")), passes * 2 * 64 * 512, 1e2);
  EXPECT_EQ(zones.at("attention")["calls"], 10);
  // q, k and v, o, gate and up, down
  EXPECT_EQ(zones.at("linear/gemm/f32/f32")["calls"], 2 * 5 * 4);
  EXPECT_TRUE(zones.at("other")["roof_fraction"].is_null());
  EXPECT_GT(zones.at("attention")["roof_fraction"].get<double>(), 0);
  EXPECT_EQ(report["model"]["name"], "stories260k");
  EXPECT_EQ(report["steps"], 2);
  EXPECT_GT(report["roofline"]["f32_gflops"].get<double>(), 0);
  EXPECT_GT(report["peak_rss_bytes"].get<int64_t>(), 0);
  EXPECT_GT(report["counters"]["software"]["task_clock_s"].get<double>(), 0);
  EXPECT_EQ(report["counters"]["hardware"].is_null(), report["counters"].contains("missing"));
}

TEST(Profile, DecodeTellsFormatsAndActivationsApart) {
  const nlohmann::json report = profile({"decode", "--shape", "stories260k", "--format", "q4_g32", "--precision",
                                         "int8_act", "--prompt-tokens", "8", "--tokens", "5"});
  expect_shares(report);
  const auto zones = zones_of(report);
  ASSERT_TRUE(zones.count("linear/gemv/q4_g32/int8_act") && zones.count("quantize_activations"));
  EXPECT_EQ(zones.at("linear/gemv/q4_g32/int8_act")["calls"], 5 * 5 * 4);
  EXPECT_EQ(zones.at("quantize_activations")["calls"], 5 * (5 * 4 + 1));
  EXPECT_EQ(report["tokens"], 5);
  EXPECT_EQ(report["model"]["format"], "q4_g32");
}

TEST(Profile, TrainingHasBackwardLossAndOptimizer) {
  const nlohmann::json full =
      profile({"train", "--shape", "stories260k", "--method", "full", "--prompt-tokens", "16", "--steps", "1"});
  expect_shares(full);
  auto zones = zones_of(full);
  for (const char* name : {"linear/gemm/f32/f32", "linear_bwd/dw/f32/f32", "linear_bwd/dx/f32/f32", "loss/dw/f32/f32",
                           "attention_bwd", "norm_bwd", "activation_bwd", "optimizer", "loss"})
    EXPECT_TRUE(zones.count(name)) << name;
  // Forward and both backward products of the linears do the same work.
  EXPECT_NEAR(flops_of(zones["linear_bwd/dw/f32/f32"]) / flops_of(zones["linear/gemm/f32/f32"]), 1.0, 1e-6);
  // Thin products of small ranks stay in f32.
  const nlohmann::json lora = profile({"train", "--shape", "stories260k", "--format", "q8_row", "--precision", "bf16",
                                       "--prompt-tokens", "16", "--steps", "1"});
  zones = zones_of(lora);
  for (const char* name : {"lora/gemm/f32/f32", "lora_bwd/dw/f32/f32", "linear_bwd/dx/q8_row/bf16"})
    EXPECT_TRUE(zones.count(name)) << name;
  EXPECT_FALSE(zones.count("linear_bwd/dw/f32/bf16"));
  EXPECT_EQ(lora["method"], "lora");
}

TEST(Profile, ALoadedModelAndText) {
  const ScratchDir dir;
  tools_test::write_small_model(dir.path());
  const nlohmann::json report =
      profile({"decode", "--model", dir.path(), "--format", "q8_g32", "--prompt-tokens", "4", "--tokens", "2"});
  EXPECT_TRUE(zones_of(report).count("linear/gemv/q8_g32/f32"));
  const RunResult r = thimble({"profile", "prefill", "--model", dir.path(), "--prompt-tokens", "8", "--steps", "1"});
  ASSERT_EQ(r.status, 0) << r.err;
  for (const char* word : {"prefill of", "of roof", "linear/gemm/f32/f32", "###", "task clock", "GB/s read"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word << " in " << r.out;
}

TEST(Profile, TheTimelineIsValidJsonInTheOrderOfTime) {
  const ScratchDir dir;
  const std::string path = dir.path() + "/trace.json";
  const nlohmann::json report =
      profile({"decode", "--shape", "stories260k", "--prompt-tokens", "4", "--tokens", "3", "--trace", path});
  const nlohmann::json trace = nlohmann::json::parse(get_file(path));
  EXPECT_EQ(trace["otherData"]["dropped_events"], 0);
  double last = 0;
  int64_t events = 0;
  std::vector<std::pair<double, double>> open;  // begin, end
  for (const auto& e : trace["traceEvents"]) {
    if (e["ph"] == "M") continue;
    ASSERT_EQ(e["ph"], "X");
    const double begin = e["ts"], duration = e["dur"];
    EXPECT_GE(begin, last);
    EXPECT_GE(duration, 0);
    last = begin;
    ++events;
    while (!open.empty() && open.back().second <= begin) open.pop_back();
    if (!open.empty()) {
      EXPECT_LE(begin + duration, open.back().second + 0.005) << "zones nest: " << e;
    }
    open.emplace_back(begin, begin + duration);
  }
  EXPECT_EQ(events, report["trace"]["events"].get<int64_t>());
  EXPECT_GT(events, 3 * 5 * 10);
}

TEST(Profile, UsageErrorsListWhatIsValid) {
  const auto fails = [](std::vector<std::string> args, int status, const std::vector<std::string>& words) {
    args.insert(args.begin(), "profile");
    expect_failure(thimble(args), status, words);
  };
  fails({}, 2, {"prefill, decode or train"});
  fails({"prefill"}, 2, {"--shape", "tinyllama-1.1b"});
  fails({"prefill", "--shape", "tinylama-1.1b"}, 2, {"did you mean tinyllama-1.1b?", "gpt2"});
  fails({"prefill", "--shape", "gpt2", "--model", "x"}, 2, {"exclude"});
  fails({"prefill", "--shape", "gpt2", "--format", "q5"}, 2, {"q5", "q4_g128"});
  fails({"train", "--shape", "gpt2", "--format", "q4", "--method", "full"}, 2, {"--method full", "lora"});
  fails({"prefill", "--shape", "gpt2", "--prompt-tokens", "2000"}, 2, {"1024"});
  fails({"sleep", "--shape", "gpt2"}, 2, {"WHAT"});
  fails({"prefill", "--model", "no_such_dir"}, 3, {"no_such_dir"});
  fails({"prefill", "--shape", "tinyllama-1.1b", "--ram", "100M"}, 4, {"tinyllama-1.1b", "--ram"});
  fails({"--kernel", "no_such_slot", "--asm"}, 2, {"no_such_slot", "gemm_f32"});
  fails({"--kernel", "softmax"}, 2, {"--asm"});
  fails({"--asm"}, 2, {"--kernel"});
  fails({"--kernel", "softmax", "--asm", "--shape", "gpt2"}, 2, {"--shape"});
}

TEST(Profile, TheMachineCodeOfAKernelOrAHint) {
  const RunResult missing =
      tools_test::run_command({"/usr/bin/env", "PATH=/nonexistent", std::string(THIMBLE_BINARY_DIR) + "/bin/thimble",
                               "profile", "--kernel", "softmax", "--isa", "ref", "--asm"});
  expect_failure(missing, 5, {"objdump", "binutils"});
  const RunResult r = thimble({"profile", "--kernel", "softmax", "--isa", "ref", "--asm", "--json"});
  if (r.status == 5) GTEST_SKIP() << "no objdump here";
  const nlohmann::json report = expect_json(r, "thimble.profile/1");
  EXPECT_EQ(report["origin"], "ref");
  EXPECT_NE(report["functions"][0]["symbol"].get<std::string>().find("softmax"), std::string::npos)
      << report["functions"][0]["symbol"];
  EXPECT_NE(report["functions"][0]["asm"].get<std::string>().find("ret"), std::string::npos);
}

TEST(Profile, IsCompletedWithItsKindsAndShapes) {
  const RunResult r = thimble({"completion", "bash"});
  ASSERT_EQ(r.status, 0);
  for (const char* word : {"profile) words=", "prefill decode train", "tinyllama-1.1b", "--prompt-tokens"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST(Counters, ARecordedReadingIsToldInWords) {
  CounterReading reading;
  reading.hardware = {{"cycles", 2e9}, {"instructions", 5e9}, {"llc_misses", 1e6}, {"branch_misses", 2e6}};
  reading.software = {{"task_clock_s", 1.5}, {"page_faults", 12}, {"context_switches", 3}};
  RecordedCounters source(reading);
  source.start();
  const CounterReading got = source.stop();
  EXPECT_EQ(hardware_text(got),
            "cycles 2e+09, instructions 5e+09 (2.50 per cycle), llc_misses 1e+06 (0.2 per 1000 instructions), "
            "branch_misses 2e+06 (0.4 per 1000 instructions)");
  EXPECT_EQ(software_text(got, 1.0), "task clock 1.500 s (1.50 CPUs busy), page faults 12, context switches 3");
  reading.hardware.clear();
  reading.missing = "this machine offers none";
  EXPECT_EQ(hardware_text(reading), "no hardware counters: this machine offers none");
}

TEST(Counters, TheProcessAlwaysHasSoftwareCountersAndElseAReason) {
  ProcessCounters source;
  source.start();
  volatile double sink = 0;
  const double start = seconds_now();
  while (seconds_now() - start < 0.03) sink = sink + 1;
  const CounterReading r = source.stop();
  ASSERT_EQ(r.software.size(), 3u);
  EXPECT_GT(r.software[0].value, 0.0);
  EXPECT_EQ(r.hardware.empty(), !r.missing.empty());
  for (const Counter& c : r.hardware) EXPECT_GE(c.value, 0) << c.name;
}

TEST(ProfileReport, SharesAddUpAndTheRoofIsThatOfTheArithmetic) {
  Trace trace;
  trace.start();
  {
    const ZoneScope product(ZoneKey{Zone::linear, Product::gemm, Arithmetic::int8, WeightFormat::q4, 128});
    trace_work(1e6, 10);
    const double start = seconds_now();
    while (seconds_now() - start < 0.005) {
    }
  }
  trace.stop();
  Roofline peaks;
  peaks.f32_gflops = 1;
  peaks.bf16_gflops = 2;
  peaks.int8_gops = 4;
  peaks.read_gbs = 1;
  const std::vector<ProfileRow> rows = profile_rows(trace, peaks);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].name, "linear/gemm/q4_g128/int8_act");
  EXPECT_EQ(rows[1].name, "other");
  EXPECT_NEAR(rows[0].share + rows[1].share, 1, 1e-9);
  EXPECT_NEAR(rows[0].roof_fraction, rows[0].gflops / 4, 1e-9);
}

}  // namespace
}  // namespace thimble::cli
