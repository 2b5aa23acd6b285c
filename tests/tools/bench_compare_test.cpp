// The statistics behind bench compare, against values computed by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tensor/error.h"
#include "tests/tools/bench_record.h"
#include "tools/bench/compare.h"
#include "tools/bench/rank_test.h"

namespace thimble::bench_tools {
namespace {

using tools_test::FakeRecord;
using tools_test::Json;
using tools_test::kNine;
using tools_test::times;

Row row_of(const std::string& name, std::vector<double> seconds) {
  Row r;
  r.name = name;
  r.seconds = std::move(seconds);
  return r;
}

ErrorCode code_of(const std::function<void()>& work, std::string* message = nullptr) {
  try {
    work();
  } catch (const Error& e) {
    if (message) *message = e.what() + std::string(" / ") + e.hint();
    return e.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::internal;
}

TEST(RankTests, WilcoxonIsExact) {
  EXPECT_DOUBLE_EQ(wilcoxon_p({1, 2, 3, 4, 5, 6}), 2.0 / 64);  // only +++++ + and its mirror image are as far out
  // W+ = 1 + 3 = 4 of 6; sums of subsets of {1, 2, 3} are 0 1 2 3 3 4 5 6: all but the two threes are as far from 3.
  EXPECT_DOUBLE_EQ(wilcoxon_p({1, -2, 3}), 6.0 / 8);
  EXPECT_DOUBLE_EQ(wilcoxon_p({1, 1, -1}), 1.0);           // shared ranks 2 2 2: every sum is at least as far out
  EXPECT_DOUBLE_EQ(wilcoxon_p({0, 0, 1, 2, 3}), 2.0 / 8);  // zeros are left out
  EXPECT_DOUBLE_EQ(wilcoxon_p({0, 0}), 1.0);
  EXPECT_DOUBLE_EQ(wilcoxon_p({}), 1.0);
  EXPECT_DOUBLE_EQ(wilcoxon_p({1, -2, 3}), wilcoxon_p({-1, 2, -3}));
}

TEST(RankTests, MannWhitneyIsExact) {
  EXPECT_DOUBLE_EQ(mann_whitney_p({1, 2, 3}, {4, 5, 6}), 2.0 / 20);
  EXPECT_DOUBLE_EQ(mann_whitney_p({4, 5, 6}, {1, 2, 3}), 2.0 / 20);
  // Ranks 1 + 3 + 5 = 9, mean 10.5. Three of six: 7 of the 20 sums are at most 9 and 7 at least 12.
  EXPECT_DOUBLE_EQ(mann_whitney_p({1, 3, 5}, {2, 4, 6}), 14.0 / 20);
  EXPECT_DOUBLE_EQ(mann_whitney_p({1, 1}, {1, 2}), 1.0);  // ranks 2 2 2 4: sums are 4 or 6, both one away from 5
  EXPECT_DOUBLE_EQ(mann_whitney_p({1, 1, 1}, {1, 1, 1}), 1.0);
  EXPECT_DOUBLE_EQ(mann_whitney_p({1}, {}), 1.0);
}

TEST(RankTests, ApproximationsMeetTheExactValues) {
  std::vector<double> differences, a, b;
  for (int i = 0; i < static_cast<int>(kExactValues); ++i) differences.push_back((i % 3 ? 1 : -1) * (1 + 0.37 * i));
  const double exact = wilcoxon_p(differences);
  differences.push_back(0.9);  // one more: the approximation
  EXPECT_NEAR(wilcoxon_p(differences), exact, 0.25 * exact);
  for (int i = 0; i < 30; ++i) {
    a.push_back(i);
    b.push_back(i + 8.5);
  }
  const double few = mann_whitney_p(a, b);
  a.push_back(14.2);
  EXPECT_NEAR(mann_whitney_p(a, b), few, 0.25 * few);
  EXPECT_GT(few, 1e-4);
  EXPECT_LT(few, 0.05);
}

TEST(RankTests, LeastAttainablePs) {
  EXPECT_DOUBLE_EQ(least_wilcoxon_p(6), 2.0 / 64);
  EXPECT_DOUBLE_EQ(least_wilcoxon_p(0), 1.0);
  EXPECT_NEAR(least_mann_whitney_p(4, 4), 2.0 / 70, 1e-12);
  EXPECT_NEAR(least_mann_whitney_p(9, 9), 2.0 / 48620, 1e-12);
}

TEST(Compare, PairsGiveTheMedianOfTheirRatios) {
  const ComparedRow r = compare_rows(row_of("x", kNine), row_of("x", times(kNine, 1.2)), {});
  EXPECT_TRUE(r.paired);
  EXPECT_NEAR(r.ratio, 1.2, 1e-12);  // every pair has this ratio
  EXPECT_NEAR(r.lo, 1.2, 1e-12);
  EXPECT_NEAR(r.hi, 1.2, 1e-12);
  EXPECT_DOUBLE_EQ(r.p, 2.0 / 512);
  EXPECT_NEAR(r.noise_a, 1.4826 * 1 / 100, 1e-12);
  EXPECT_NEAR(r.noise_b, 1.4826 * 1 / 100, 1e-12);
  EXPECT_DOUBLE_EQ(r.threshold, 0.05);  // noise is below the floor
  EXPECT_EQ(r.verdict, Verdict::slower);
  const ComparedRow back = compare_rows(row_of("x", times(kNine, 1.2)), row_of("x", kNine), {});
  EXPECT_NEAR(back.ratio, 1 / 1.2, 1e-12);
  EXPECT_EQ(back.verdict, Verdict::faster);
  EXPECT_EQ(compare_rows(row_of("x", kNine), row_of("x", times(kNine, 1.04)), {}).verdict, Verdict::same);
  EXPECT_EQ(compare_rows(row_of("x", kNine), row_of("x", kNine), {}).verdict, Verdict::same);
}

TEST(Compare, TheThresholdGrowsWithTheNoise) {
  const std::vector<double> noisy = {80, 85, 90, 95, 100, 105, 110, 115, 120};  // median absolute deviation 10
  const ComparedRow r = compare_rows(row_of("x", noisy), row_of("x", times(noisy, 1.15)), {});
  EXPECT_NEAR(r.threshold, std::sqrt(2.0) * 0.14826, 1e-9);
  EXPECT_NEAR(r.ratio, 1.15, 1e-12);
  EXPECT_EQ(r.verdict, Verdict::same);
  EXPECT_EQ(compare_rows(row_of("x", noisy), row_of("x", times(noisy, 1.3)), {}).verdict, Verdict::slower);
  CompareOptions strict;
  strict.floor = 0.5;
  EXPECT_EQ(compare_rows(row_of("x", noisy), row_of("x", times(noisy, 1.3)), strict).verdict, Verdict::same);
}

TEST(Compare, DifferentCountsUseTheMedians) {
  const ComparedRow r = compare_rows(row_of("x", {1, 2, 3, 4, 5}), row_of("x", {6, 6, 6, 9}), {});
  EXPECT_FALSE(r.paired);
  EXPECT_DOUBLE_EQ(r.ratio, 2.0);  // 6 / 3
  EXPECT_NEAR(r.p, 2.0 / 126, 1e-12);
  EXPECT_GE(r.lo, 6.0 / 5);
  EXPECT_LE(r.hi, 9.0 / 1);
  EXPECT_LT(r.lo, r.ratio);
  EXPECT_GT(r.hi, r.ratio);
  CompareOptions unpaired;
  unpaired.paired = false;
  const ComparedRow nine = compare_rows(row_of("x", kNine), row_of("x", times(kNine, 1.2)), unpaired);
  EXPECT_FALSE(nine.paired);
  EXPECT_NEAR(nine.p, 2.0 / 48620, 1e-12);
  EXPECT_NEAR(nine.ratio, 1.2, 1e-12);
  EXPECT_LT(nine.lo, 1.2);
  EXPECT_EQ(nine.verdict, Verdict::slower);
}

TEST(Compare, TooFewRunsHaveNoVerdict) {
  EXPECT_EQ(compare_rows(row_of("x", {1}), row_of("x", {9}), {}).verdict, Verdict::too_few_runs);
  EXPECT_EQ(compare_rows(row_of("x", {1, 1, 1, 1, 1}), row_of("x", {9, 9, 9, 9, 9}), {}).verdict,
            Verdict::too_few_runs);  // least p 2 / 32
  EXPECT_EQ(compare_rows(row_of("x", {1, 1, 1, 1, 1, 1}), row_of("x", {9, 9, 9, 9, 9, 9}), {}).verdict,
            Verdict::slower);
  EXPECT_EQ(compare_rows(row_of("x", {1}), row_of("x", kNine), {}).verdict, Verdict::too_few_runs);
}

// The median ratio is 1, but the interval includes both a third and three times the time.
TEST(Compare, NoiseBeyondTheThresholdOnBothSidesIsNoVerdictEither) {
  const std::vector<double> a = {1, 1, 1, 1, 1, 1, 1, 1, 1}, b = {0.2, 0.2, 0.2, 0.2, 1, 5, 5, 5, 5};
  const ComparedRow r = compare_rows(row_of("x", a), row_of("x", b), {});
  EXPECT_DOUBLE_EQ(r.ratio, 1);
  EXPECT_DOUBLE_EQ(r.lo, 0.2);
  EXPECT_DOUBLE_EQ(r.hi, 5);
  EXPECT_NEAR(r.threshold, 1.4826 * 0.8, 1e-12);
  EXPECT_EQ(r.verdict, Verdict::too_few_runs);
}

// Of 400 pairs of records of one program, hardly any row may be called changed.
TEST(Compare, EqualProgramsAreRarelyCalledDifferent) {
  uint64_t state = 1;
  const auto uniform = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) / 9007199254740992.0;
  };
  int changed = 0;
  for (int i = 0; i < 400; ++i) {
    std::vector<double> a, b;
    for (int k = 0; k < 9; ++k) {
      a.push_back(100 * std::exp(0.1 * (uniform() + uniform() + uniform() + uniform() - 2)));
      b.push_back(100 * std::exp(0.1 * (uniform() + uniform() + uniform() + uniform() - 2)));
    }
    for (const bool paired : {true, false}) {
      CompareOptions o;
      o.paired = paired;
      const Verdict v = compare_rows(row_of("x", a), row_of("x", b), o).verdict;
      changed += v == Verdict::slower || v == Verdict::faster;
    }
  }
  EXPECT_LE(changed, 8);  // one percent
}

TEST(Compare, RowsAreMatchedByNameAndHolmCountsThem) {
  FakeRecord a, b;
  a.rows = {{"one/ref", kNine}, {"two/ref", kNine}, {"gone/ref", kNine}};
  b.rows = {{"new/ref", kNine}, {"two/ref", times(kNine, 1.5)}, {"one/ref", times(kNine, 1.1)}};
  const Record ra = parse_record(a.text(), "a.json"), rb = parse_record(b.text(), "b.json");
  Comparison c = compare(ra, rb, {});
  ASSERT_EQ(c.rows.size(), 2u);
  EXPECT_EQ(c.rows[0].name, "one/ref");
  EXPECT_NEAR(c.rows[0].ratio, 1.1, 1e-12);
  EXPECT_EQ(c.only_a, std::vector<std::string>{"gone/ref"});
  EXPECT_EQ(c.only_b, std::vector<std::string>{"new/ref"});
  EXPECT_DOUBLE_EQ(c.rows[0].p, 2.0 / 512);
  EXPECT_DOUBLE_EQ(c.rows[0].p_holm, 4.0 / 512);
  EXPECT_NEAR(c.drift.median_ratio, 1.3, 1e-12);
  EXPECT_DOUBLE_EQ(c.drift.f32, 1.0);
  EXPECT_TRUE(c.warnings.empty());
  CompareOptions holm;
  holm.holm = true;
  holm.alpha = 0.005;  // between 2 / 512 and 4 / 512
  EXPECT_EQ(compare(ra, rb, holm).count(Verdict::slower), 0u);
  holm.holm = false;
  EXPECT_EQ(compare(ra, rb, holm).count(Verdict::slower), 2u);
  CompareOptions filtered;
  filtered.filter = "^two";
  EXPECT_EQ(compare(ra, rb, filtered).rows.size(), 1u);
  EXPECT_DOUBLE_EQ(compare(ra, rb, filtered).rows[0].lo, c.rows[1].lo);  // a row's draws are its own
  filtered.filter = "-two";
  EXPECT_EQ(compare(ra, rb, filtered).rows[0].name, "one/ref");
  filtered.filter = "nothing";
  EXPECT_EQ(code_of([&] { compare(ra, rb, filtered); }), ErrorCode::usage);
  filtered.filter = "(";
  EXPECT_EQ(code_of([&] { compare(ra, rb, filtered); }), ErrorCode::usage);
  b.rows = {{"new/ref", kNine}};
  EXPECT_EQ(code_of([&] { compare(ra, parse_record(b.text(), "b.json"), {}); }), ErrorCode::input);
}

TEST(Compare, AnotherMachineAndDriftAreSaid) {
  FakeRecord a, b;
  for (const char* name : {"r1", "r2", "r3", "r4", "r5"}) {
    a.rows.push_back({name, kNine});
    b.rows.push_back({name, times(kNine, 1.2)});
  }
  b.fingerprint = "other";
  Json json = b.json();
  json["context"]["peaks_avx512"] = R"([{"threads": 1, "f32_gflops": 130, "read_gbs": 29}])";
  json["context"]["thimble_build_type"] = "Debug";
  const Comparison c = compare(parse_record(a.text(), "a"), parse_record(json.dump(), "b"), {});
  const auto said = [&](const std::string& words) {
    return std::any_of(c.warnings.begin(), c.warnings.end(),
                       [&](const std::string& w) { return w.find(words) != std::string::npos; });
  };
  EXPECT_TRUE(said("two machines"));
  EXPECT_TRUE(said("f32 peak differs by -50 %"));
  EXPECT_TRUE(said("build type"));
  EXPECT_TRUE(said("median row takes +20 %"));
  EXPECT_FALSE(said("read bandwidth"));
}

TEST(BenchRecord, IsReadWithContextAndUnits) {
  FakeRecord f;
  f.rows = {{"softmax/avx512/rows=8/manual_time", {2.5, 3.5}, 100, 200}};
  Json json = f.json();
  json["benchmarks"].push_back({{"name", "s"}, {"run_type", "iteration"}, {"real_time", 2}, {"time_unit", "ms"}});
  json["benchmarks"].push_back(
      {{"name", "bad"}, {"run_type", "iteration"}, {"error_occurred", true}, {"error_message", "no"}});
  const Record r = parse_record(json.dump(), "x.json");
  ASSERT_EQ(r.rows.size(), 2u);
  EXPECT_DOUBLE_EQ(r.rows[0].seconds.at(0), 2.5e-6);
  EXPECT_DOUBLE_EQ(r.rows[0].median_seconds(), 3e-6);
  EXPECT_DOUBLE_EQ(r.rows[1].seconds.at(0), 2e-3);
  EXPECT_DOUBLE_EQ(r.rows[0].bytes, 200);
  EXPECT_EQ(r.failed, std::vector<std::string>{"bad"});
  EXPECT_EQ(r.time, 1767323045);  // date -d 2026-01-02T03:04:05Z +%s
  EXPECT_EQ(r.l1d_bytes, 49152);
  ASSERT_NE(r.peaks_of("", 2), nullptr);
  EXPECT_DOUBLE_EQ(r.peaks_of("", 2)->read_gbs, 40);
  EXPECT_DOUBLE_EQ(r.peaks_of("ref", 1)->f32_gflops, 6);
  EXPECT_EQ(r.peaks_of("ref", 2), nullptr);
  json["context"]["date"] = "2026-01-02T04:04:05+01:00";
  EXPECT_EQ(parse_record(json.dump(), "x").time, r.time);
}

TEST(BenchRecord, NamesAreTakenApart) {
  const RowName slot = parse_row_name("gemv_q4/avx512_vnni/n=64,k=128/manual_time");
  EXPECT_EQ(slot.kernel, "gemv_q4");
  EXPECT_EQ(slot.family, "gemm");
  EXPECT_EQ(slot.tier, "avx512_vnni");
  EXPECT_EQ(slot.shape, "n=64,k=128");
  const RowName driver = parse_row_name("driver_prefill_q4_g128/int8_act/threads=2/min_time:0.100/manual_time");
  EXPECT_EQ(driver.family, "driver");
  EXPECT_EQ(driver.threads, 2);
  EXPECT_EQ(driver.shape, "int8_act/threads=2");
  EXPECT_EQ(parse_row_name("model_decode/f32/f32/threads=4").family, "model");
  EXPECT_EQ(parse_row_name("BM_Foo/1024").family, "other");
  EXPECT_EQ(parse_row_name("").kernel, "");
}

// Each names the file, and the field or the place.
TEST(BenchRecord, HostileInputIsRefusedWithItsField) {
  FakeRecord good;
  good.rows = {{"x", {1, 2}}};
  struct Case {
    std::function<void(Json&)> spoil;
    const char* field;
  };
  const Case cases[] = {
      {[](Json& j) { j.erase("benchmarks"); }, "benchmarks"},
      {[](Json& j) { j["benchmarks"] = 3; }, "benchmarks"},
      {[](Json& j) { j["benchmarks"] = Json::array(); }, "benchmarks"},
      {[](Json& j) { j["benchmarks"][0] = "x"; }, "benchmarks[0]"},
      {[](Json& j) { j["benchmarks"][0].erase("name"); }, "benchmarks[0].name"},
      {[](Json& j) { j["benchmarks"][1]["run_name"] = 7; }, "benchmarks[1].run_name"},
      {[](Json& j) { j["benchmarks"][1]["run_name"] = ""; }, "benchmarks[1].run_name"},
      {[](Json& j) { j["benchmarks"][0].erase("real_time"); }, "benchmarks[0].real_time"},
      {[](Json& j) { j["benchmarks"][0]["real_time"] = 0; }, "benchmarks[0].real_time"},
      {[](Json& j) { j["benchmarks"][0]["real_time"] = -1; }, "benchmarks[0].real_time"},
      {[](Json& j) { j["benchmarks"][0]["real_time"] = 1e300; }, "benchmarks[0].real_time"},
      {[](Json& j) { j["benchmarks"][0]["real_time"] = "1"; }, "benchmarks[0].real_time"},
      {[](Json& j) { j["benchmarks"][0]["time_unit"] = "h"; }, "benchmarks[0].time_unit"},
      {[](Json& j) { j["benchmarks"][0]["run_type"] = "other"; }, "benchmarks[0].run_type"},
      {[](Json& j) { j["benchmarks"][0]["flops"] = -5; }, "benchmarks[0].flops"},
      {[](Json& j) { j["context"] = 1; }, "context"},
      {[](Json& j) { j["context"]["threads"] = "two"; }, "context.threads"},
      {[](Json& j) { j["context"]["l1d_bytes"] = "99999999999999999999"; }, "context.l1d_bytes"},
      {[](Json& j) { j["context"]["peaks_ref"] = "["; }, "context.peaks_ref"},
      {[](Json& j) { j["context"]["peaks_ref"] = "{}"; }, "context.peaks_ref"},
      {[](Json& j) { j["context"]["peaks_ref"] = R"([{"threads": 0}])"; }, "context.peaks_ref"},
  };
  for (const Case& c : cases) {
    Json json = good.json();
    c.spoil(json);
    std::string message;
    EXPECT_EQ(code_of([&] { parse_record(json.dump(), "dir/f.json"); }, &message), ErrorCode::input) << c.field;
    EXPECT_NE(message.find("dir/f.json"), std::string::npos) << message;
    EXPECT_NE(message.find(c.field), std::string::npos) << message;
  }
  for (const char* text : {"", "[]", "{", "nonsense", "{\"benchmarks\": [{\"real_time\": NaN}]}"})
    EXPECT_EQ(code_of([&] { parse_record(text, "f"); }), ErrorCode::input) << text;
}

TEST(BenchRecord, AggregatesAloneGetAdvice) {
  FakeRecord f;
  f.rows = {{"x", {1, 2}}};
  Json json = f.json();
  json["benchmarks"].erase(0);
  json["benchmarks"].erase(0);
  std::string message;
  EXPECT_EQ(code_of([&] { parse_record(json.dump(), "f.json"); }, &message), ErrorCode::input);
  EXPECT_NE(message.find("--benchmark_report_aggregates_only"), std::string::npos) << message;
}

}  // namespace
}  // namespace thimble::bench_tools
