// Properties of the matrix product kernels beyond agreement with the reference: weights against values computed by hand,
// packing against hand-made tiles, gemv against panel + tile bit for bit, rows that do not depend on their neighbours.
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problems_gemm.h"

namespace thimble::testing {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::q8,
                                     WeightFormat::q4, WeightFormat::q2};
constexpr GroupKind kKinds[] = {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum};

std::vector<KernelTable> supported_tables() {
  std::vector<KernelTable> tables;
  for (int i = 0; i < kTierCount; ++i) {
    const Tier tier = static_cast<Tier>(i);
    if (tier_supported(tier)) tables.push_back(build_kernel_table(tier));
  }
  return tables;
}

template <class Fn>
Fn by_format(WeightFormat f, Fn f32, Fn f16, Fn bf16, Fn q8, Fn q4, Fn q2) {
  return f == WeightFormat::f32 ? f32 : f == WeightFormat::f16 ? f16 : f == WeightFormat::bf16 ? bf16
       : f == WeightFormat::q8 ? q8 : f == WeightFormat::q4 ? q4 : q2;
}
PanelFn panel_t(const KernelTable& t, WeightFormat f) {
  return by_format(f, t.panel_t_f32, t.panel_t_f16, t.panel_t_bf16, t.panel_t_q8, t.panel_t_q4, t.panel_t_q2);
}
PanelFn panel_n(const KernelTable& t, WeightFormat f) {
  return by_format(f, t.panel_n_f32, t.panel_n_f16, t.panel_n_bf16, t.panel_n_q8, t.panel_n_q4, t.panel_n_q2);
}
GemvFn gemv(const KernelTable& t, WeightFormat f) {
  return by_format(f, t.gemv_f32, t.gemv_f16, t.gemv_bf16, t.gemv_q8, t.gemv_q4, t.gemv_q2);
}
EmbedFn embed(const KernelTable& t, WeightFormat f) {
  return by_format(f, t.embed_f32, t.embed_f16, t.embed_bf16, t.embed_q8, t.embed_q4, t.embed_q2);
}

std::vector<std::pair<int64_t, GroupKind>> groups_and_kinds(WeightFormat f) {
  if (!is_tiled(f)) return {{0, GroupKind::zero_points}};
  std::vector<std::pair<int64_t, GroupKind>> all;
  for (const GroupKind kind : kKinds)
    for (const int64_t group : {16, 32, 128, 0}) all.emplace_back(group, kind);
  return all;
}

TEST(Gemm, PanelsAndEmbedGiveTheValuesComputedByHand) {
  Random random(1);
  for (const WeightFormat f : kFormats) {
    for (const auto& [group, kind] : groups_and_kinds(f)) {
      const int64_t rows = 45, cols = 203;
      const WeightData w(f, rows, cols, group, group == 0, random, 1, kind);
      for (const KernelTable& t : supported_tables()) {
        SCOPED_TRACE(std::string(format_name(f)) + " " + tier_name(t.tier));
        std::vector<float> pt(static_cast<size_t>(cols * 48)), pn(static_cast<size_t>(rows * 208));
        panel_t(t, f)({w.view, 0, rows, 0, cols, 48, pt.data()});
        panel_n(t, f)({w.view, 0, rows, 0, cols, 208, pn.data()});
        std::vector<float> row(static_cast<size_t>(cols));
        for (int32_t r = 0; r < rows; ++r) {
          embed(t, f)({w.view, 1, &r, row.data(), cols});
          for (int64_t c = 0; c < cols; ++c) {
            const float expected = w.dense[static_cast<size_t>(r * cols + c)];
            ASSERT_EQ(pt[static_cast<size_t>(c * 48 + r)], expected) << r << " " << c;
            ASSERT_EQ(pn[static_cast<size_t>(r * 208 + c)], expected) << r << " " << c;
            ASSERT_EQ(row[static_cast<size_t>(c)], expected) << r << " " << c;
          }
        }
      }
    }
  }
}

TEST(Gemm, PackingGivesTheTilesMadeByHandAndUnpackingUndoesIt) {
  Random random(2);
  const KernelTable t = build_kernel_table(best_tier());
  for (const WeightFormat f : {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2}) {
    for (const auto& [group, kind] : groups_and_kinds(f)) {
      const WeightData w(f, 37, 53, group, false, random, 0, kind);
      const TileGeometry& g = w.geometry;
      std::vector<uint8_t> tiles(g.code_bytes, 0xEE), codes(w.row_codes.size());
      by_format<PackCodesFn>(f, nullptr, nullptr, nullptr, t.pack_q8, t.pack_q4, t.pack_q2)(
          {37, 53, w.row_codes.data(), w.view.zeros, g.group, g.groups, g.steps, w.view.zero, tiles.data()});
      EXPECT_TRUE(std::equal(tiles.begin(), tiles.end(), w.codes.data()));
      by_format<UnpackCodesFn>(f, nullptr, nullptr, nullptr, t.unpack_q8, t.unpack_q4, t.unpack_q2)({w.view, codes.data()});
      EXPECT_EQ(codes, w.row_codes);
    }
  }
}

TEST(Gemm, GemvHasTheBitsOfPanelAndTile) {
  Random random(3);
  for (const WeightFormat f : kFormats) {
    for (const auto& [group, kind] : groups_and_kinds(f)) {
      const int64_t rows = 150, cols = 331, nr = 160;
      const WeightData w(f, rows, cols, group, group == 0, random, 0, kind);
      std::vector<float> x(static_cast<size_t>(kGemvMaxRows * cols)), y0(static_cast<size_t>(kGemvMaxRows * rows));
      for (float& v : x) v = random.normal();
      for (float& v : y0) v = random.normal();
      for (const KernelTable& t : supported_tables()) {
        for (int64_t m = 1; m <= kGemvMaxRows; ++m) {
          for (const int32_t accumulate : {0, 1}) {
            std::vector<float> panel(static_cast<size_t>(cols * nr)), a = y0, b = y0;
            panel_t(t, f)({w.view, 0, rows, 0, cols, nr, panel.data()});
            t.gemm_f32({m, rows, cols, x.data(), cols, 1, panel.data(), nr, a.data(), rows, accumulate});
            gemv(t, f)({w.view, 0, rows, x.data(), cols, m, b.data(), rows, accumulate});
            ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0)
                << format_name(f) << " " << tier_name(t.tier) << " m=" << m << " accumulate=" << accumulate;
          }
        }
      }
    }
  }
}

TEST(Gemm, TileRowsDoNotDependOnTheirNeighbours) {
  Random random(4);
  const int64_t n = 75, k = 130, nr = 80, max_m = 13;
  std::vector<float> a(static_cast<size_t>(max_m * k)), b(static_cast<size_t>(k * nr));
  for (float& v : a) v = random.normal();
  for (float& v : b) v = random.normal();
  for (const KernelTable& t : supported_tables()) {
    std::vector<float> all(static_cast<size_t>(max_m * n));
    t.gemm_f32({max_m, n, k, a.data(), k, 1, b.data(), nr, all.data(), n, 0});
    for (int64_t m = 1; m < max_m; ++m) {
      std::vector<float> some(static_cast<size_t>(m * n));
      t.gemm_f32({m, n, k, a.data(), k, 1, b.data(), nr, some.data(), n, 0});
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << tier_name(t.tier) << " m=" << m;
    }
    std::vector<float> halves(static_cast<size_t>(max_m * n));  // the chain goes on through memory
    t.gemm_f32({max_m, n, 64, a.data(), k, 1, b.data(), nr, halves.data(), n, 0});
    t.gemm_f32({max_m, n, k - 64, a.data() + 64, k, 1, b.data() + 64 * nr, nr, halves.data(), n, 1});
    EXPECT_EQ(halves, all) << tier_name(t.tier);
  }
}

TEST(Gemm, QuantizedActivationsClampAndIgnoreNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x = {1.0f, -2.0f, nan, 2.0f, 0.0f, -0.0f, 1e-3f, 0.5f, 1e-44f, -1e-44f};
  for (const KernelTable& t : supported_tables()) {
    std::vector<int8_t> codes(16, 7);
    float scale = 0;
    int32_t sum = 0;
    t.quantize_i8({1, 10, 10, x.data(), 16, 1, 16, codes.data(), &scale, &sum});
    EXPECT_EQ(scale, 2.0f / 127.0f);
    const std::vector<int8_t> expected = {64, -127, -127, 127, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0};
    EXPECT_EQ(codes, expected) << tier_name(t.tier);
    EXPECT_EQ(sum, 64 - 127 - 127 + 127 + 32);
    t.quantize_i8({1, 2, 2, x.data() + 8, 8, 1, 8, codes.data(), &scale, &sum});  // too small for a scale
    EXPECT_EQ(scale, 0.0f);
    EXPECT_EQ(sum, 0);
    EXPECT_EQ(codes[0], 0);
  }
}

}  // namespace
}  // namespace thimble::testing
