// thimble doctor, and the machine record behind it.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/tools/run_command.h"
#include "tools/cli/cli.h"
#include "tools/cli/machine.h"

namespace thimble::cli {
namespace {

using tools_test::RunOptions;
using tools_test::RunResult;
using tools_test::thimble;

TEST(Doctor, JsonListsEverySlotWithItsOriginAmongTheAvailableTiers) {
  const RunResult r = thimble({"doctor", "--json", "--no-roofline"});
  ASSERT_EQ(r.status, 0);
  const auto json = nlohmann::json::parse(r.out);
  EXPECT_EQ(json["schema"], "thimble.doctor/1");
  EXPECT_FALSE(json["cpu"]["model"].get<std::string>().empty());
  EXPECT_EQ(json["tiers"].size() + json["tiers_missing"].size(), static_cast<size_t>(kTierCount));
  EXPECT_EQ(json["tiers"][0], "ref");
  std::set<std::string> slots;
  for (const auto& slot : json["slots"]) {
    slots.insert(slot["name"].get<std::string>());
    const auto available = slot["available"].get<std::vector<std::string>>();
    EXPECT_EQ(available.at(0), "ref") << slot;
    EXPECT_NE(std::find(available.begin(), available.end(), slot["origin"]), available.end()) << slot;
  }
  EXPECT_EQ(slots.size(), static_cast<size_t>(kSlotCount));
  EXPECT_NE(json["blas"]["path"].get<std::string>().find("openblas"), std::string::npos);
  EXPECT_FALSE(json["blas"]["flavour"].get<std::string>().empty());
  EXPECT_FALSE(json["blas"]["core"].get<std::string>().empty());
  EXPECT_TRUE(json["openmp"].is_array());
  EXPECT_TRUE(json["roofline"].is_null());
}

TEST(Doctor, TheCapIsObeyedAndAnUnknownTierIsAUsageError) {
  const RunResult r = thimble({"doctor", "--json", "--no-roofline", "--isa", "ref"});
  ASSERT_EQ(r.status, 0);
  const nlohmann::json report = nlohmann::json::parse(r.out);
  for (const auto& slot : report["slots"]) EXPECT_EQ(slot["origin"], "ref");
  EXPECT_EQ(thimble({"doctor", "--no-roofline", "--isa", "avx9"}).status, 2);
  RunOptions tier, pin;
  tier.env["THIMBLE_ISA"] = "avx9";
  EXPECT_EQ(thimble({"doctor", "--no-roofline"}, tier).status, 2);
  pin.env["THIMBLE_KERNEL"] = "no_such_slot:ref";
  EXPECT_EQ(thimble({"doctor", "--no-roofline"}, pin).status, 2);
  EXPECT_EQ(thimble({"doctor", "--no-such-option"}).status, 2);
}

TEST(Doctor, TextNamesTheTiersAndTheLibrary) {
  const RunResult r = thimble({"doctor", "--no-roofline"});
  ASSERT_EQ(r.status, 0);
  for (int t = 0; t < kTierCount; ++t) EXPECT_NE(r.out.find(tier_name(static_cast<Tier>(t))), std::string::npos);
  EXPECT_NE(r.out.find("OpenBLAS"), std::string::npos);
  EXPECT_NE(r.out.find("gemm_f32"), std::string::npos);
}

TEST(Machine, EveryTierIsEitherSupportedOrHasAReason) {
  const Machine m = describe_machine();
  for (int t = 0; t < kTierCount; ++t) {
    const auto tier = static_cast<Tier>(t);
    const bool listed = std::find(m.tiers.begin(), m.tiers.end(), tier) != m.tiers.end();
    EXPECT_EQ(listed, tier_missing_reason(tier).empty()) << tier_name(tier);
  }
  EXPECT_GE(m.threads, 1);
  EXPECT_GT(m.memory_bytes, 0);
}

TEST(Machine, RooflineOfTheReferenceTierIsPositive) {
  const Roofline r = measure_roofline(build_kernel_table(Tier::ref), 1);
  EXPECT_EQ(r.threads, 1);
  for (const double value : {r.f32_gflops, r.bf16_gflops, r.int8_gops, r.read_gbs, r.copy_gbs}) {
    EXPECT_GT(value, 0.01);
    EXPECT_LT(value, 1e5);
  }
}

}  // namespace
}  // namespace thimble::cli
