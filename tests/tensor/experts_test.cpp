// Routing and experts beyond gradients: which experts are chosen, that a row's result depends on nothing but the row, and
// that weights of every format and precision act as linear() does.
#include <cmath>
#include <cstring>

#include "tests/tensor/expert_cases.h"

namespace thimble::ops_test {
namespace {

Var view(std::vector<float>& data, int64_t rows, int64_t cols) {
  Var v;
  v.t = Tensor::matrix(data.data(), rows, cols);
  return v;
}

TEST(Experts, TheLargestAreChosenAndOfEqualOnesTheFirst) {
  Context ctx(build_kernel_table(best_tier()), 2, nullptr);
  std::vector<float> logits = {1, 3, 2, 0, /**/ 5, 5, 5, 5, /**/ -1, 2, -1, 2, /**/ -1000, 0, 1000, 0};
  const Routing r = route(ctx, view(logits, 4, 4), 2);
  const std::vector<int32_t> chosen(r.chosen, r.chosen + 8), want = {1, 2, 0, 1, 1, 3, 2, 1};
  EXPECT_EQ(chosen, want);
  const std::vector<int32_t> begin(r.begin, r.begin + 5), slots_of = {0, 1, 5, 7, 8};
  EXPECT_EQ(begin, slots_of);
  for (int64_t row = 0; row < 4; ++row) {
    double all = 0, both = 0;
    const float* x = &logits[size_t(row * 4)];
    for (int e = 0; e < 4; ++e) all += std::exp(double(x[e]) - double(x[want[size_t(row * 2)]]));
    for (int i = 0; i < 2; ++i) both += std::exp(double(x[want[size_t(row * 2 + i)]]) - double(x[want[size_t(row * 2)]])) / all;
    for (int i = 0; i < 2; ++i) {
      const double p = std::exp(double(x[want[size_t(row * 2 + i)]]) - double(x[want[size_t(row * 2)]])) / all;
      EXPECT_NEAR(double(r.weights.t.f32()[row * 2 + i]), p / both, 1e-7);
    }
  }
  for (int64_t e = 0; e < 4; ++e)
    for (int32_t s = r.begin[e]; s < r.begin[e + 1]; ++s) {
      EXPECT_EQ(r.chosen[r.pair[s]], e);
      EXPECT_EQ(r.slot[r.pair[s]], s);
      if (s > r.begin[e]) {
        EXPECT_LT(r.pair[s - 1] / 2, r.pair[s] / 2);
      }
    }
}

TEST(Experts, ANumberThatIsNoneFillsEveryPlaceOnce) {
  Context ctx(build_kernel_table(best_tier()), 1, nullptr);
  std::vector<float> logits(8, std::nanf(""));
  logits[5] = 1;
  const Routing r = route(ctx, view(logits, 2, 4), 3);
  for (int64_t row = 0; row < 2; ++row) {
    std::set<int32_t> seen(r.chosen + row * 3, r.chosen + row * 3 + 3);
    EXPECT_EQ(seen.size(), 3u);
    for (int32_t e : seen) EXPECT_TRUE(e >= 0 && e < 4);
  }
}

// A second run of a block takes the experts of the first, even where its logits would choose others.
TEST(Experts, AKnownChoiceIsKept) {
  Context ctx(build_kernel_table(best_tier()), 1, nullptr);
  std::vector<float> logits = {1, 3, 2, 0}, others = {9, 3, 2, 0};
  int32_t kept[2];
  ExpertChoice choice{kept, false};
  route(ctx, view(logits, 1, 4), 2, &choice);
  const Routing r = route(ctx, view(others, 1, 4), 2, &choice);
  EXPECT_EQ(r.chosen[0], 1);
  EXPECT_EQ(r.chosen[1], 2);
  EXPECT_NEAR(r.weights.t.f32()[0], 1 / (1 + std::exp(-1.0)), 1e-6);
}

// Experts with weights of every format, in every precision: the bits of a row in a batch are those of the row alone, and
// those of linear() with the expert's weight; no thread count changes them.
TEST(Experts, RowsAreIndependentInEveryFormatAndPrecision) {
  constexpr int64_t kRows = 37, kExperts = 4, kK = 2, kCols = 64, kInner = 48;
  const KernelTable kernels = build_kernel_table(best_tier());
  std::vector<float> x = uniform(1, kRows * kCols), logits = spread_logits(3, kRows, kExperts);
  std::vector<std::vector<float>> dense;
  for (uint64_t e = 0; e < 2 * kExperts; ++e) dense.push_back(uniform(20 + e, kInner * kCols));
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::q8, WeightFormat::q4}) {
    std::vector<Weight> weights(2 * kExperts);
    std::vector<std::vector<uint16_t>> halves(weights.size());
    std::vector<TileStorage> tiles(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      Weight& w = weights[i];
      w.rows = i < kExperts ? kInner : kCols;
      w.cols = i < kExperts ? kCols : kInner;
      w.format = format;
      w.data = dense[i].data();
      halves[i].resize(dense[i].size());
      if (format == WeightFormat::f16) kernels.f32_to_f16({w.numel(), dense[i].data(), halves[i].data()});
      if (format == WeightFormat::bf16) kernels.f32_to_bf16({w.numel(), dense[i].data(), halves[i].data()});
      if (format == WeightFormat::f16 || format == WeightFormat::bf16) w.data = halves[i].data();
      if (is_tiled(format)) {
        std::vector<uint8_t> codes(dense[i].size());
        Philox rng(i, 6);
        for (uint8_t& code : codes) code = static_cast<uint8_t>(rng.below(16));
        std::vector<float> scales(static_cast<size_t>(w.rows), 0.05f);
        const std::vector<uint8_t> zeros(static_cast<size_t>(w.rows), 8);
        tiles[i] = pack_tiles(kernels, format, w.rows, w.cols, 0, codes.data(), zeros.data(), nullptr, scales.data(), nullptr);
        w = tiles[i].weight;
      }
    }
    std::vector<Weight*> up, down;
    for (size_t e = 0; e < kExperts; ++e) {
      up.push_back(&weights[e]);
      down.push_back(&weights[kExperts + e]);
    }
    for (Precision precision : {Precision::f32, Precision::bf16, Precision::int8_act}) {
      const auto run = [&](int64_t first, int64_t count, int threads) {
        Context ctx(kernels, threads, nullptr);
        ctx.precision = precision;
        std::vector<float> in(x.begin() + first * kCols, x.begin() + (first + count) * kCols);
        std::vector<float> scores(logits.begin() + first * kExperts, logits.begin() + (first + count) * kExperts);
        const Routing r = route(ctx, view(scores, count, kExperts), kK);
        const Var h = expert_linear(ctx, expert_gather(ctx, view(in, count, kCols), r), r, up.data());
        const Var y = expert_combine(ctx, expert_linear(ctx, h, r, down.data()), r);
        return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
      };
      const std::vector<float> together = run(0, kRows, 1);
      EXPECT_EQ(together, run(0, kRows, 3)) << format_name(format);
      std::vector<float> single;
      for (int64_t row = 0; row < kRows; ++row) {
        const std::vector<float> one = run(row, 1, 2);
        single.insert(single.end(), one.begin(), one.end());
      }
      EXPECT_EQ(together, single) << format_name(format) << " in precision " << int(precision);
      // Row 5 by hand.
      Context ctx(kernels, 1, nullptr);
      ctx.precision = precision;
      std::vector<float> row(x.begin() + 5 * kCols, x.begin() + 6 * kCols), want(kCols);
      std::vector<float> scores(logits.begin() + 5 * kExperts, logits.begin() + 6 * kExperts);
      const Routing r = route(ctx, view(scores, 1, kExperts), kK);
      for (int64_t i = 0; i < kK; ++i) {
        const auto e = static_cast<size_t>(r.chosen[i]);
        const Var y = linear(ctx, linear(ctx, view(row, 1, kCols), up[e], nullptr), down[e], nullptr);
        for (size_t c = 0; c < kCols; ++c) want[c] += r.weights.t.f32()[i] * y.t.f32()[c];
      }
      for (size_t c = 0; c < kCols; ++c)
        EXPECT_NEAR(together[5 * kCols + c], want[c], 2e-6 * (1 + std::fabs(want[c]))) << format_name(format);
    }
  }
}

}  // namespace
}  // namespace thimble::ops_test
