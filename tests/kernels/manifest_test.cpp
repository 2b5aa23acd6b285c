// Every slot of the manifest, on every supported tier, against the reference: odd shapes, several misalignments,
// derived tolerances, guard bytes around all buffers. And: no slot silently stays on the reference.
#include <gtest/gtest.h>

#include <set>

#include "kernels/isa.h"
#include "kernels/kernel_table.h"
#include "tests/kernels/problems_bf16.h"
#include "tests/kernels/problems_attention.h"
#include "tests/kernels/problems_gemm.h"
#include "tests/kernels/problems_probe.h"
#include "tests/kernels/problems_rows.h"
#include "tests/kernels/problems_scan.h"

namespace thimble::testing {
namespace {

void compare(const Output& expected, const Output& got) {
  ASSERT_EQ(expected.values.size(), got.values.size());
  ASSERT_TRUE(expected.tolerance.size() == 1 || expected.tolerance.size() == expected.values.size()) << expected.name;
  int failures = 0;
  for (size_t i = 0; i < expected.values.size() && failures < 3; ++i) {
    const double e = expected.values[i], g = got.values[i];
    const double tolerance = expected.tolerance[expected.tolerance.size() == 1 ? 0 : i];
    if (e == g || (std::isnan(e) && std::isnan(g)) || std::abs(e - g) <= tolerance) continue;
    ++failures;
    ADD_FAILURE() << expected.name << "[" << i << "]: expected " << e << ", got " << g << ", difference "
                  << std::abs(e - g) << ", allowed " << tolerance;
  }
}

template <class Fn>
void check_slot(const SlotInfo& slot, Fn KernelTable::*field) {
  const KernelTable ref = build_kernel_table(Tier::ref);
  for (const Shape& shape : Problem<Fn>::test_shapes(slot)) {
    for (const int64_t misalign : {0, 1, 3}) {
      Problem<Fn> problem(slot, shape, 17, misalign);
      problem.run(ref.*field);
      ASSERT_TRUE(problem.guards_intact()) << slot.name << " ref " << shape.label;
      const std::vector<Output> expected = problem.outputs();
      Fn previous = ref.*field;
      for (int i = 1; i < kTierCount; ++i) {
        const Tier tier = static_cast<Tier>(i);
        if (!tier_supported(tier)) continue;
        const Fn fn = build_kernel_table(tier).*field;
        if (fn == ref.*field || fn == previous) continue;
        previous = fn;
        SCOPED_TRACE(std::string(slot.name) + " on " + tier_name(tier) + ", " + shape.label + ", misaligned by " +
                     std::to_string(misalign));
        problem.run(fn);
        EXPECT_TRUE(problem.guards_intact());
        const std::vector<Output> got = problem.outputs();
        ASSERT_EQ(expected.size(), got.size());
        for (size_t o = 0; o < got.size(); ++o) compare(expected[o], got[o]);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

#define SLOT(field, type, name, kind) \
  TEST(Manifest, field) { check_slot<type>(SlotInfo{SlotId::field, name, #kind}, &KernelTable::field); }
#include "kernels/kernel_slots.def"
#undef SLOT

// Packing is offline work that runs once per weight.
const std::set<std::string> kReferenceIsEnough = {"pack_q8", "pack_q4", "pack_q2", "unpack_q8", "unpack_q4", "unpack_q2"};

TEST(Manifest, NoSlotStaysOnTheReference) {
  for (int i = 1; i < kTierCount; ++i) {
    const Tier tier = static_cast<Tier>(i);
    if (!tier_supported(tier)) continue;
    const KernelTable table = build_kernel_table(tier);
    for (int s = 0; s < kSlotCount; ++s) {
      const std::string name = slot_name(static_cast<SlotId>(s));
      if (kReferenceIsEnough.count(name) != 0) continue;
      EXPECT_NE(table.origin[s], Tier::ref) << name << " at cap " << tier_name(tier);
      if (tier == Tier::avx512) {
        EXPECT_EQ(table.origin[s], Tier::avx512) << name;
      }
    }
  }
}

}  // namespace
}  // namespace thimble::testing
