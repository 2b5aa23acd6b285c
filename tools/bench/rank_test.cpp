// Ranks are doubled, so that shared ranks (x.5) are whole numbers, and the distribution of a rank sum under the null
// hypothesis is built value by value.
#include "tools/bench/rank_test.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "tools/lab/stats.h"

namespace thimble::bench_tools {
namespace {

std::vector<int> doubled_ranks(const std::vector<double>& values) {
  std::vector<int> out;
  for (const double r : lab::ranks(values)) out.push_back(static_cast<int>(std::lround(2 * r)));
  return out;
}

double normal_two_sided(double z) { return std::erfc(std::max(0.0, z) / std::sqrt(2.0)); }

// Sum over groups of equal ranks of t^3 - t.
double tie_term(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  double sum = 0;
  for (size_t i = 0; i < ranks.size();) {
    size_t j = i;
    while (j < ranks.size() && ranks[j] == ranks[i]) ++j;
    const double t = static_cast<double>(j - i);
    sum += t * t * t - t;
    i = j;
  }
  return sum;
}

// Share of the distribution at least as far from its mean as `observed`.
double both_tails(const std::vector<double>& weight, double mean, double observed) {
  double total = 0, tail = 0;
  const double distance = std::abs(observed - mean) - 1e-9;
  for (size_t s = 0; s < weight.size(); ++s) {
    total += weight[s];
    if (std::abs(static_cast<double>(s) - mean) >= distance) tail += weight[s];
  }
  return std::min(1.0, tail / total);
}

}  // namespace

double wilcoxon_p(const std::vector<double>& differences) {
  std::vector<double> size;
  std::vector<bool> positive;
  for (const double d : differences) {
    if (d == 0) continue;
    size.push_back(std::abs(d));
    positive.push_back(d > 0);
  }
  if (size.empty()) return 1;
  const std::vector<int> rank = doubled_ranks(size);
  int total = 0, observed = 0;
  for (size_t i = 0; i < rank.size(); ++i) {
    total += rank[i];
    if (positive[i]) observed += rank[i];
  }
  const double mean = 0.5 * total, n = static_cast<double>(rank.size());
  if (rank.size() > kExactValues) {
    const double variance = n * (n + 1) * (2 * n + 1) / 24 - tie_term(rank) / 48;
    return normal_two_sided((std::abs(observed - mean) / 2 - 0.5) / std::sqrt(variance));
  }
  std::vector<double> weight(static_cast<size_t>(total) + 1, 0.0);
  weight[0] = 1;
  for (const int r : rank)  // each value is on either side with probability one half
    for (size_t s = weight.size(); s-- > 0;)
      weight[s] = 0.5 * (weight[s] + (s >= static_cast<size_t>(r) ? weight[s - static_cast<size_t>(r)] : 0.0));
  return both_tails(weight, mean, observed);
}

double mann_whitney_p(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.empty() || b.empty()) return 1;
  std::vector<double> all = a;
  all.insert(all.end(), b.begin(), b.end());
  const std::vector<int> rank = doubled_ranks(all);
  int total = 0, observed = 0;
  for (size_t i = 0; i < rank.size(); ++i) {
    total += rank[i];
    if (i < a.size()) observed += rank[i];
  }
  const double n = static_cast<double>(a.size()), m = static_cast<double>(b.size()), count = n + m;
  const double mean = total * n / count;
  if (all.size() > kExactValues) {
    const double variance = n * m / 12 * ((count + 1) - tie_term(rank) / (count * (count - 1)));
    if (variance <= 0) return 1;
    return normal_two_sided((std::abs(observed - mean) / 2 - 0.5) / std::sqrt(variance));
  }
  // ways[k][s]: subsets of k values with rank sum s. C(60, 30) is about 1e17: doubles count it well enough for a p.
  const size_t width = static_cast<size_t>(total) + 1;
  std::vector<std::vector<double>> ways(a.size() + 1, std::vector<double>(width, 0.0));
  ways[0][0] = 1;
  for (const int r : rank)
    for (size_t k = a.size(); k > 0; --k)
      for (size_t s = width; s-- > static_cast<size_t>(r);) ways[k][s] += ways[k - 1][s - static_cast<size_t>(r)];
  return both_tails(ways[a.size()], mean, observed);
}

double least_wilcoxon_p(size_t n) {
  return n == 0 ? 1 : std::min(1.0, std::ldexp(1.0, 1 - static_cast<int>(std::min<size_t>(n, 1000))));
}

double least_mann_whitney_p(size_t n, size_t m) {
  const double a = static_cast<double>(n), b = static_cast<double>(m);
  return std::min(1.0, 2 * std::exp(std::lgamma(a + 1) + std::lgamma(b + 1) - std::lgamma(a + b + 1)));
}

}  // namespace thimble::bench_tools
