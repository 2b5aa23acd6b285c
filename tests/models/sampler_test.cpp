// The sampler's distribution, its cuts at their edges, and that a seed is a sequence.
#include "models/sampler.h"

#include <algorithm>
#include <map>

#include "tensor/rng.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

const KernelTable& kernels() {
  static const KernelTable table = build_kernel_table(best_tier());
  return table;
}

std::vector<float> logits_for(const std::vector<double>& probabilities) {
  std::vector<float> l;
  for (double p : probabilities) l.push_back(static_cast<float>(std::log(p)));
  return l;
}

std::map<int32_t, int> draw(const SamplerOptions& options, const std::vector<float>& logits, int n) {
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.next(kernels(), logits.data())];
  return counts;
}

SamplerOptions options(double temperature, int64_t top_k = 0, double top_p = 1, double min_p = 0, uint64_t seed = 1) {
  SamplerOptions o;
  o.temperature = temperature;
  o.top_k = top_k;
  o.top_p = top_p;
  o.min_p = min_p;
  o.seed = seed;
  return o;
}

// Pearson's statistic against n draws from `want`.
double chi_square(const std::map<int32_t, int>& counts, const std::vector<double>& want, int n) {
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const auto found = counts.find(static_cast<int32_t>(i));
    const double d = (found == counts.end() ? 0 : found->second) - n * want[i];
    if (want[i] > 0) sum += d * d / (n * want[i]);
    if (want[i] == 0 && d != 0) return INFINITY;
  }
  return sum;
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  const std::vector<float> logits = {0, 3, -1, 3, 2};
  EXPECT_EQ(argmax(logits.data(), 5), 1);
  Sampler sampler({}, 5);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(sampler.next(kernels(), logits.data()), 1);
}

TEST(Sampler, FollowsTheSoftmax) {
  const std::vector<double> p = {0.05, 0.4, 0.15, 0.1, 0.3};
  constexpr int kDraws = 20000;
  // 4 degrees of freedom: above 23.5 once in ten thousand seeds; the seed is fixed.
  EXPECT_LT(chi_square(draw(options(1), logits_for(p), kDraws), p, kDraws), 23.5);
  // Temperature 0.5 squares the probabilities, 2 takes their roots.
  for (double t : {0.5, 2.0}) {
    std::vector<double> q;
    double total = 0;
    for (double x : p) {
      q.push_back(std::pow(x, 1 / t));
      total += q.back();
    }
    for (double& x : q) x /= total;
    EXPECT_LT(chi_square(draw(options(t), logits_for(p), kDraws), q, kDraws), 23.5) << "temperature " << t;
  }
}

TEST(Sampler, CutsKeepWhatTheySay) {
  const std::vector<double> p = {0.05, 0.4, 0.15, 0.1, 0.3};
  const std::vector<float> logits = logits_for(p);
  constexpr int kDraws = 5000;
  const auto expect_kept = [&](const SamplerOptions& o, const std::vector<int>& kept) {
    std::vector<double> want(5);
    double total = 0;
    for (int i : kept) total += p[size_t(i)];
    for (int i : kept) want[size_t(i)] = p[size_t(i)] / total;
    EXPECT_LT(chi_square(draw(o, logits, kDraws), want, kDraws), 23.5);
  };
  expect_kept(options(1, 1), {1});
  expect_kept(options(1, 2), {1, 4});
  expect_kept(options(1, 3), {1, 4, 2});
  expect_kept(options(1, 5), {0, 1, 2, 3, 4});
  expect_kept(options(1, 500), {0, 1, 2, 3, 4});
  expect_kept(options(1, 0, 1e-9), {1});      // never empty
  expect_kept(options(1, 0, 0.39), {1});
  expect_kept(options(1, 0, 0.5), {1, 4});    // the smallest set with at least this
  expect_kept(options(1, 0, 0.8), {1, 4, 2});
  expect_kept(options(1, 0, 1, 1), {1});
  expect_kept(options(1, 0, 1, 0.7), {1, 4});
  expect_kept(options(1, 0, 1, 0.2), {1, 4, 2, 3});
  expect_kept(options(1, 3, 0.8), {1, 4});    // top-p of what top-k left: 0.7 of 0.85 is more than 0.8
  expect_kept(options(1, 4, 1, 0.3), {1, 4, 2});
}

TEST(Sampler, EqualLogitsKeepTheLowestIds) {
  const std::vector<float> logits(6, 1.0f);
  const std::map<int32_t, int> counts = draw(options(1, 2), logits, 400);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_EQ(counts.count(0) + counts.count(1), 2u);
}

// The definition, with a sort of everything.
int32_t next_by_sorting(const SamplerOptions& o, Philox& rng, const std::vector<float>& logits) {
  const size_t n = logits.size();
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> p(n);
  for (size_t i = 0; i < n; ++i) p[i] = static_cast<float>(std::max(-1e4, (double(logits[i]) - double(largest)) / o.temperature));
  kernels().softmax({1, static_cast<int64_t>(n), p.data(), p.data(), 1.0f});
  std::vector<int32_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p[size_t(a)] != p[size_t(b)] ? p[size_t(a)] > p[size_t(b)] : a < b; });
  size_t kept = o.top_k > 0 ? std::min(n, static_cast<size_t>(o.top_k)) : n;
  const auto sum_of = [&](size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += double(p[size_t(order[i])]);
    return sum;
  };
  if (o.top_p < 1) {
    const double wanted = o.top_p * sum_of(kept);
    size_t i = 0;
    double sum = 0;
    while (i < kept && sum < wanted) sum += double(p[size_t(order[i++])]);
    kept = std::max<size_t>(1, i);
  }
  while (kept > 1 && double(p[size_t(order[kept - 1])]) < o.min_p * double(p[size_t(order[0])])) --kept;
  double left = rng.uniform() * sum_of(kept);
  for (size_t i = 0; i < kept; ++i) {
    left -= double(p[size_t(order[i])]);
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

TEST(Sampler, DrawsAreThoseOfAFullSort) {
  Philox noise(3, 4);
  for (const size_t n : {2u, 17u, 1000u, 32000u})
    for (const double spread : {0.0, 0.5, 4.0, 60.0}) {
      std::vector<float> logits(n);
      for (float& l : logits) l = static_cast<float>(spread * (noise.uniform() + noise.uniform() + noise.uniform()));
      if (n > 20)
        for (size_t i = 0; i < n; i += 3) logits[i] = logits[1];  // equals, across any cut
      for (const SamplerOptions& o : {options(1), options(0.7, 40), options(1, 0, 0.9), options(1.3, 0, 0.999), options(1, 0, 1, 0.05), options(1, 50, 0.95, 0.02),
                                      options(1, 0, 0.5, 0.3), options(1, 1), options(2, 0, 1e-9), options(1, static_cast<int64_t>(n) - 1, 1, 1e-9)}) {
        Sampler sampler(o, static_cast<int64_t>(n));
        Philox rng(o.seed, 0x73616d706c65);
        for (int i = 0; i < (n > 1000 ? 4 : 60); ++i)
          ASSERT_EQ(sampler.next(kernels(), logits.data()), next_by_sorting(o, rng, logits))
              << n << " tokens, spread " << spread << ", top_k " << o.top_k << ", top_p " << o.top_p << ", min_p " << o.min_p << ", draw " << i;
      }
    }
}

TEST(Sampler, LargeLogitsAndOneEntry) {
  const std::map<int32_t, int> always_first = {{0, 50}};
  EXPECT_EQ(draw(options(0.01), {3e38f, -3e38f, 0}, 50), always_first);
  EXPECT_EQ(draw(options(1e-300), {2, 1, 0}, 50), always_first);
  EXPECT_EQ(draw(options(1), {INFINITY, 1, 2}, 50), always_first);
  EXPECT_EQ(draw(options(1), {1, NAN, NAN}, 50), always_first);
  std::vector<float> broken(1000, NAN);  // no sense in it, but an answer within the vocabulary
  for (const auto& [id, count] : draw(options(1), broken, 20)) EXPECT_TRUE(id >= 0 && id < 1000) << count;
  EXPECT_EQ(draw(options(1), {-INFINITY, 1, -INFINITY}, 50), (std::map<int32_t, int>{{1, 50}}));
  EXPECT_EQ(draw(options(1, 3, 0.5, 0.5), {7}, 20), (std::map<int32_t, int>{{0, 20}}));
}

TEST(Sampler, ASeedIsASequence) {
  Philox rng(4, 4);
  std::vector<float> logits(500);
  for (float& l : logits) l = static_cast<float>(rng.normal());
  const auto sequence = [&](uint64_t seed) {
    Sampler s(options(0.9, 100, 0.9, 0.01, seed), 500);
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; ++i) ids.push_back(s.next(kernels(), logits.data()));
    return ids;
  };
  EXPECT_EQ(sequence(3), sequence(3));
  EXPECT_NE(sequence(3), sequence(4));
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  for (const SamplerOptions& o : {options(-1), options(NAN), options(INFINITY), options(1, -1), options(1, 0, 0), options(1, 0, 1.1),
                                  options(1, 0, NAN), options(1, 0, 1, -0.1), options(1, 0, 1, 2)}) {
    try {
      Sampler s(o, 10);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::usage);
      EXPECT_FALSE(e.hint().empty());
    }
  }
}

}  // namespace
}  // namespace thimble::models_test
