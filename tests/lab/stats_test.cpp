// Statistics against hand-computed cases and against their promises on simulated data.
#include "tools/lab/stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/rng.h"

namespace thimble::lab {
namespace {

TEST(Stats, StudentQuantilesAreTheTables) {
  EXPECT_NEAR(student_quantile(0.975, 1), 12.7062, 1e-3);
  EXPECT_NEAR(student_quantile(0.975, 10), 2.228139, 1e-5);
  EXPECT_NEAR(student_quantile(0.025, 23), -2.068658, 1e-5);
  EXPECT_NEAR(student_quantile(0.995, 30), 2.749996, 1e-5);
  EXPECT_NEAR(student_quantile(0.975, 1e7), 1.959964, 1e-5);
  EXPECT_NEAR(student_quantile(0.5, 7), 0.0, 1e-6);
}

TEST(Stats, OrderStatistics) {
  EXPECT_DOUBLE_EQ(quantile({1, 2, 4}, 0.25), 1.5);
  EXPECT_DOUBLE_EQ(quantile({1, 2, 4}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({7}, 0.3), 7);
  EXPECT_DOUBLE_EQ(median({4, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_TRUE(std::isnan(median({})));
  EXPECT_EQ(ranks({30, 10, 20, 10}), (std::vector<double>{4, 1.5, 3, 1.5}));
}

TEST(Stats, SignFlipsAreCountedExactlyForFewValues) {
  // 2^3 signs; |sum| >= 6 only for +++ and ---
  EXPECT_DOUBLE_EQ(sign_flip_p({1, 2, 3}), 2.0 / 8);
  // |1 - 2 + 3| = 2: reached by +++ ---, ++- --+ (0: no), +-+ -+-, -++ +-- (4)
  EXPECT_DOUBLE_EQ(sign_flip_p({1, -2, 3}), 6.0 / 8);
  EXPECT_DOUBLE_EQ(sign_flip_p({0, 0, 0}), 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p({}), 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p({5}), 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>(14, 0.1)), 2.0 / 16384);
}

TEST(Stats, SampledSignFlipsAgreeWithTheBinomial) {
  // 20 equal values, 15 positive: P(|heads - 10| >= 5) of 20 coins = 0.041389
  std::vector<double> v(20, 1.0);
  for (int i = 0; i < 5; ++i) v[static_cast<size_t>(i)] = -1.0;
  EXPECT_NEAR(sign_flip_p(v), 0.041389, 0.008);
}

TEST(Stats, HolmStepsDown) {
  const std::vector<double> p = holm({0.01, 0.04, 0.03, 0.005});
  EXPECT_DOUBLE_EQ(p[3], 0.02);
  EXPECT_DOUBLE_EQ(p[0], 0.03);
  EXPECT_DOUBLE_EQ(p[2], 0.06);
  EXPECT_DOUBLE_EQ(p[1], 0.06);  // never less than the one before
  EXPECT_DOUBLE_EQ(holm({0.9, 0.8})[0], 1.0);
  EXPECT_TRUE(holm({}).empty());
}

TEST(Stats, SpearmanIsOfRanksWithTies) {
  EXPECT_DOUBLE_EQ(spearman({1, 2, 3, 4}, {10, 100, 1000, 10000}), 1.0);
  EXPECT_DOUBLE_EQ(spearman({1, 2, 3}, {3, 2, 1}), -1.0);
  EXPECT_DOUBLE_EQ(spearman({1, 2, 3}, {5, 5, 5}), 0.0);
  EXPECT_NEAR(spearman({1, 2, 2, 3}, {1, 2, 3, 4}), 0.9486833, 1e-6);
  // of 24 orders only the two monotone ones reach |rho| = 1
  EXPECT_DOUBLE_EQ(spearman_p({1, 2, 3, 4}, {1, 2, 3, 4}), 2.0 / 24);
}

TEST(Stats, EstimateOfAConstantHasNoWidth) {
  const Effect e = estimate(Sample{{{2, 2, 2, 2}, {2, 2, 2, 2}}, false});
  EXPECT_DOUBLE_EQ(e.mean, 2);
  EXPECT_DOUBLE_EQ(e.lo, 2);
  EXPECT_DOUBLE_EQ(e.hi, 2);
  EXPECT_DOUBLE_EQ(e.d_z, 0);
  EXPECT_EQ(e.people, 8);
  EXPECT_EQ(e.seeds, 2);
}

TEST(Stats, OnePersonSaysNothingAboutOthers) {
  const Effect e = estimate(Sample{{{3}}, false});
  EXPECT_EQ(e.lo, -std::numeric_limits<double>::infinity());
  EXPECT_EQ(e.hi, std::numeric_limits<double>::infinity());
}

TEST(Stats, EffectSizeIsMeanOverStandardDeviation) {
  // mean 3, standard deviation sqrt(((-2)^2 + 0 + 2^2) / 2) = 2
  EXPECT_DOUBLE_EQ(estimate(Sample{{{1, 3, 5}}, false}).d_z, 1.5);
  // the same people twice: each person's mean over seeds counts once
  const Effect e = estimate(Sample{{{0, 2, 6}, {2, 4, 4}}, true});
  EXPECT_EQ(e.people, 3);
  EXPECT_DOUBLE_EQ(e.mean, 3);
  EXPECT_DOUBLE_EQ(e.d_z, 1.5);
}

TEST(Stats, StrataWeighEqually) {
  const Effect e = estimate({Sample{{{0, 0, 0, 0, 0, 0}}, false}, Sample{{{1, 1}}, false}});
  EXPECT_DOUBLE_EQ(e.mean, 0.5);
  EXPECT_EQ(e.people, 8);
}

TEST(Stats, EqualInputGivesEqualOutput) {
  const Sample s{{{0.1, 0.5, 0.2, 0.9}, {0.3, 0.3, 0.8, 0.1}}, false};
  const Effect a = estimate(s), b = estimate(s);
  EXPECT_EQ(a.lo, b.lo);
  EXPECT_EQ(a.hi, b.hi);
  EXPECT_EQ(a.p, b.p);
}

TEST(Stats, HigherLevelsAreWider) {
  const Sample s{{{0.1, 0.5, 0.2, 0.9, 0.4, 0.6, 0.2, 0.7}}, false};
  const Effect a = estimate(s, 0.95), b = estimate(s, 0.995);
  EXPECT_LT(b.lo, a.lo);
  EXPECT_GT(b.hi, a.hi);
}

// Share of simulated experiments whose interval holds the true mean.
double coverage(size_t seeds, size_t people, double seed_sd, bool same_people, int experiments) {
  int hits = 0;
  for (int i = 0; i < experiments; ++i) {
    Philox random(99, static_cast<uint64_t>(i));
    Sample s;
    s.same_people = same_people;
    std::vector<double> fixed(people);
    for (double& x : fixed) x = random.normal();
    for (size_t k = 0; k < seeds; ++k) {
      const double shift = seed_sd * random.normal();
      std::vector<double> v(people);
      for (size_t p = 0; p < people; ++p)
        v[p] = 1.5 + shift + (same_people ? fixed[p] + 0.5 * random.normal() : random.normal());
      s.values.push_back(v);
    }
    const Effect e = estimate(s, 0.95, 1000);
    hits += e.lo <= 1.5 && 1.5 <= e.hi;
  }
  return static_cast<double>(hits) / experiments;
}

TEST(Stats, IntervalsCoverAsOftenAsTheySay) {
  const double one_seed = coverage(1, 12, 0, false, 1000);  // standard error of these shares: 0.007
  EXPECT_GT(one_seed, 0.93);
  EXPECT_LT(one_seed, 0.97);
  // two levels are cautious where seeds do not matter
  const double nested = coverage(3, 12, 0, false, 500);
  EXPECT_GT(nested, 0.95);
  const double crossed = coverage(3, 12, 0, true, 500);
  EXPECT_GT(crossed, 0.93);
}

TEST(Stats, SeedsThatMatterWidenIntervals) {
  // Resampling people alone would cover about a fifth of the time here; seeds resampled from five cover most of the
  // time.
  EXPECT_GT(coverage(5, 30, 1, false, 400), 0.80);
}

TEST(Stats, SharesOfABalancedGridAreTheClassicalOnes) {
  // cell means: a adds 0 or 2, b adds 0, 1 or 2; two people at +-1 around each mean
  Factor a{"a", {}}, b{"b", {}};
  std::vector<std::vector<double>> scores;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) {
      a.level.push_back(i);
      b.level.push_back(j);
      scores.push_back({2.0 * i + j - 1, 2.0 * i + j + 1});
    }
  const Variance v = decompose({a, b}, scores);
  // sums of squares: a: 12 * 1 = 12; b: 4 * (1 + 0 + 1) = 8; people: 12 * 1 = 12
  EXPECT_NEAR(v.total, 32, 1e-9);
  EXPECT_NEAR(v.factors[0].share, 12.0 / 32, 1e-9);
  EXPECT_NEAR(v.factors[1].share, 8.0 / 32, 1e-9);
  EXPECT_NEAR(v.interplay, 0, 1e-9);
  EXPECT_NEAR(v.people, 12.0 / 32, 1e-9);
}

TEST(Stats, InterplayIsWhatMainEffectsMiss) {
  const Factor a{"a", {0, 0, 1, 1}}, b{"b", {0, 1, 0, 1}};
  const Variance v = decompose({a, b}, {{1}, {0}, {0}, {1}});
  EXPECT_NEAR(v.factors[0].share, 0, 1e-12);
  EXPECT_NEAR(v.interplay, 1, 1e-12);
  ASSERT_EQ(v.pairs.size(), 1u);
  EXPECT_EQ(v.pairs[0].name, "a x b");
  EXPECT_NEAR(v.pairs[0].share, 1, 1e-12);
}

TEST(Stats, UnbalancedSharesAddUpAndSplitWhatIsShared) {
  // the second factor is a copy of the first: each gets half
  const Factor a{"a", {0, 0, 1, 1, 1}};
  const Variance v = decompose({a, {"copy", a.level}}, {{0, 1}, {1}, {3, 4}, {5}, {4, 4, 4}});
  EXPECT_NEAR(v.factors[0].share, v.factors[1].share, 1e-9);
  EXPECT_NEAR(v.factors[0].share + v.factors[1].share + v.interplay + v.people, 1, 1e-9);
  EXPECT_GT(v.factors[0].share, 0.3);
}

TEST(Stats, GridsWithoutDifferencesHaveNoShares) {
  const Variance v = decompose({{"a", {0, 1}}}, {{0.5, 0.5}, {0.5}});
  EXPECT_EQ(v.total, 0);
  EXPECT_EQ(v.factors[0].share, 0);
}

}  // namespace
}  // namespace thimble::lab
