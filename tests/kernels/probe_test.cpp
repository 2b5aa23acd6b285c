// Every probe on every supported tier against its closed form: a probe that skipped work would report a peak that no
// kernel can reach.
#include <gtest/gtest.h>

#include "tests/kernels/problems_probe.h"

namespace thimble::testing {
namespace {

TEST(Probe, DoesAllTheWorkThatItsPeakIsComputedFrom) {
  const SlotId probes[] = {SlotId::probe_fma_f32, SlotId::probe_int8, SlotId::probe_bf16, SlotId::probe_read, SlotId::probe_copy};
  for (int i = 0; i < kTierCount; ++i) {
    if (!tier_supported(static_cast<Tier>(i))) continue;
    const KernelTable t = build_kernel_table(static_cast<Tier>(i));
    const ProbeFn functions[] = {t.probe_fma_f32, t.probe_int8, t.probe_bf16, t.probe_read, t.probe_copy};
    for (int p = 0; p < 5; ++p) {
      const SlotInfo slot{probes[p], slot_name(probes[p]), slot_kind(probes[p])};
      EXPECT_STREQ(slot.kind, "probe");
      for (const Shape& shape : Problem<ProbeFn>::test_shapes(slot)) {
        SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + slot.name + " " + shape.label);
        Problem<ProbeFn> problem(slot, shape, 7, 1);
        problem.run(functions[p]);
        EXPECT_EQ(problem.outputs()[0].values, problem.closed_form());
        EXPECT_TRUE(problem.guards_intact());
      }
    }
  }
}

}  // namespace
}  // namespace thimble::testing
