// Tiers, names, and the table as a value: caps, origins and pins.
#include "kernels/isa.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

#include "kernels/kernel_table.h"

namespace thimble {
namespace {

TEST(Isa, Tree) {
  EXPECT_EQ(tier_parent(Tier::avx512_bf16), Tier::avx512_vnni);
  EXPECT_EQ(tier_parent(Tier::avx512_vnni), Tier::avx512);
  EXPECT_EQ(tier_parent(Tier::avx512), Tier::avx2);
  EXPECT_EQ(tier_parent(Tier::avx2_vnni), Tier::avx2);
  EXPECT_EQ(tier_parent(Tier::ref), Tier::ref);
  EXPECT_TRUE(tier_includes(Tier::avx512_bf16, Tier::avx2));
  EXPECT_TRUE(tier_includes(Tier::avx2, Tier::avx2));
  EXPECT_FALSE(tier_includes(Tier::avx512_bf16, Tier::avx2_vnni));
  EXPECT_FALSE(tier_includes(Tier::avx2, Tier::avx512));
}

TEST(Isa, Names) {
  for (int i = 0; i < kTierCount; ++i) {
    Tier tier;
    ASSERT_TRUE(tier_from_name(tier_name(static_cast<Tier>(i)), &tier));
    EXPECT_EQ(tier, static_cast<Tier>(i));
  }
  Tier tier;
  EXPECT_FALSE(tier_from_name("avx1024", &tier));
}

TEST(Isa, SupportIsClosedUpwards) {
  EXPECT_TRUE(tier_supported(Tier::ref));
  EXPECT_TRUE(tier_supported(best_tier()));
  for (int i = 0; i < kTierCount; ++i) {
    if (tier_supported(static_cast<Tier>(i))) {
      EXPECT_TRUE(tier_supported(tier_parent(static_cast<Tier>(i))));
    }
  }
}

TEST(Isa, CpuInfoIsPlausible) {
  const CpuInfo& c = cpu_info();
  EXPECT_GT(std::strlen(c.vendor), 0u);
  EXPECT_TRUE(c.l2_bytes == 0 || c.l1d_bytes <= c.l2_bytes);
  EXPECT_TRUE(c.avx512f || !c.avx512_bf16);
}

TEST(KernelTable, NamesAreUniqueAndFound) {
  std::set<std::string> names;
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<SlotId>(i);
    EXPECT_TRUE(names.insert(slot_name(slot)).second) << slot_name(slot);
    SlotId found;
    ASSERT_TRUE(slot_from_name(slot_name(slot), &found));
    EXPECT_EQ(found, slot);
    EXPECT_GT(std::strlen(slot_kind(slot)), 0u);
  }
  SlotId found;
  EXPECT_FALSE(slot_from_name("gemm_f64", &found));
}

TEST(KernelTable, OriginsStayBelowTheCap) {
  for (int i = 0; i < kTierCount; ++i) {
    const Tier cap = static_cast<Tier>(i);
    if (!tier_supported(cap)) continue;
    const KernelTable t = build_kernel_table(cap);
    EXPECT_EQ(t.tier, cap);
    EXPECT_EQ(t.gemm_nr % 16, 0);
    EXPECT_GT(t.gemm_nr, 0);
    EXPECT_GT(t.gemm_mr, 0);
    EXPECT_EQ(t.gemm_kc % 128, 0);
    for (const Tier origin : t.origin) EXPECT_TRUE(tier_includes(cap, origin));
#define SLOT(field, type, name, kind) EXPECT_NE(t.field, nullptr) << name;
#include "kernels/kernel_slots.def"
#undef SLOT
  }
}

TEST(KernelTable, PinsReplaceSingleSlots) {
  const Tier best = best_tier();
  if (best == Tier::ref) GTEST_SKIP() << "only the reference tier is supported here";
  const KernelPin pins[] = {{SlotId::softmax, Tier::ref}, {SlotId::gemm_f32, Tier::avx2}};
  const KernelTable pinned = build_kernel_table(best, pins, 2), plain = build_kernel_table(best);
  const KernelTable ref = build_kernel_table(Tier::ref), avx2 = build_kernel_table(Tier::avx2);
  EXPECT_EQ(pinned.softmax, ref.softmax);
  EXPECT_EQ(pinned.gemm_f32, avx2.gemm_f32);
  EXPECT_EQ(pinned.origin[static_cast<int>(SlotId::softmax)], Tier::ref);
  EXPECT_EQ(pinned.origin[static_cast<int>(SlotId::gemm_f32)], Tier::avx2);
  EXPECT_EQ(pinned.rope, plain.rope);
  EXPECT_EQ(pinned.tier, best);
}

}  // namespace
}  // namespace thimble
