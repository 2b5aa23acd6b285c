// Bootstrap, permutation tests and variance shares. Draws start from a fixed seed: equal input, equal output.
#include "tools/lab/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "tensor/error.h"
#include "tools/lab/draws.h"

namespace thimble::lab {
namespace {

constexpr uint64_t kSeed = 20240607;

// Sums of one stratum's resampled values, divided by how many were drawn: one mean per resample.
std::vector<double> resampled_means(const Sample& s, uint64_t stream, int resamples) {
  Draws random(kSeed, stream);
  const size_t seeds = s.values.size();
  std::vector<double> means(static_cast<size_t>(resamples));
  std::vector<uint32_t> people;
  for (double& mean : means) {
    double sum = 0;
    size_t count = 0;
    if (s.same_people) {
      people.resize(s.values[0].size());
      for (uint32_t& p : people) p = random.below(people.size());
    }
    for (size_t i = 0; i < seeds; ++i) {
      const std::vector<double>& v = s.values[seeds == 1 ? 0 : random.below(seeds)];
      if (s.same_people)
        for (uint32_t p : people) sum += v[p];
      else
        for (size_t j = 0; j < v.size(); ++j) sum += v[random.below(v.size())];
      count += v.size();
    }
    mean = sum / static_cast<double>(count);
  }
  return means;
}

// One value per person.
std::vector<double> unit_values(const Sample& s) {
  std::vector<double> out;
  if (s.same_people && !s.values.empty()) {
    out.assign(s.values[0].size(), 0);
    for (const auto& seed : s.values)
      for (size_t i = 0; i < out.size(); ++i) out[i] += seed[i] / static_cast<double>(s.values.size());
  } else {
    for (const auto& seed : s.values) out.insert(out.end(), seed.begin(), seed.end());
  }
  return out;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// By bisection: called once per interval.
double normal_quantile(double p) {
  double lo = -40, hi = 40;
  for (int i = 0; i < 200 && hi - lo > 1e-14; ++i) {
    const double mid = 0.5 * (lo + hi);
    (normal_cdf(mid) < p ? lo : hi) = mid;
  }
  return 0.5 * (lo + hi);
}

// Continued fraction of the incomplete beta function (Lentz), for the distribution of t.
double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(b, a, 1 - x);
  const double tiny = 1e-300;
  double c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::abs(d) < tiny ? tiny : d);
  double f = d;
  for (int m = 1; m < 500; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double step = 1;
    for (double term : {even, odd}) {
      d = 1 + term * d;
      d = 1 / (std::abs(d) < tiny ? tiny : d);
      c = 1 + term / c;
      if (std::abs(c) < tiny) c = tiny;
      step = c * d;
      f *= step;
    }
    if (std::abs(step - 1) < 1e-15) break;
  }
  return std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x)) * f / a;
}

double student_cdf(double t, double df) {
  const double tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t));
  return t > 0 ? 1 - tail : tail;
}

double correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const double n = static_cast<double>(x.size());
  if (x.empty()) return 0;
  const double mx = std::accumulate(x.begin(), x.end(), 0.0) / n, my = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xx = 0, yy = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mx) * (x[i] - mx);
    yy += (y[i] - my) * (y[i] - my);
    xy += (x[i] - mx) * (y[i] - my);
  }
  return xx <= 0 || yy <= 0 ? 0 : xy / std::sqrt(xx * yy);
}

template <class T>
void shuffle(std::vector<T>& v, Draws& random) {
  for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[random.below(i)]);
}

// Explained sums of squares of weighted linear models on the cells' means, by Gram-Schmidt, which
// skips columns that depend on earlier ones.
class CellModel {
 public:
  CellModel(std::vector<double> weights, std::vector<double> response)
      : weights_(std::move(weights)), response_(std::move(response)) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      sum += weights_[i] * response_[i];
      total += weights_[i];
    }
    mean_ = sum / total;
    for (double& r : response_) r -= mean_;
  }
  double total() const {
    double ss = 0;
    for (size_t i = 0; i < weights_.size(); ++i) ss += weights_[i] * response_[i] * response_[i];
    return ss;
  }
  // groups: the columns of each factor in the model.
  double explained(const std::vector<const std::vector<std::vector<double>>*>& groups) const {
    std::vector<std::vector<double>> basis;  // orthonormal under the weights
    const double sum_w = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    basis.push_back(std::vector<double>(weights_.size(), 1 / std::sqrt(sum_w)));
    double ss = 0;
    for (const auto* group : groups)
      for (const auto& column : *group) {
        std::vector<double> v = column;
        const double before = dot(v, v);
        for (int pass = 0; pass < 2; ++pass)  // twice is enough (Kahan, Parlett)
          for (const auto& b : basis) {
            const double c = dot(v, b);
            for (size_t i = 0; i < v.size(); ++i) v[i] -= c * b[i];
          }
        const double after = dot(v, v);
        if (after <= 1e-10 * before) continue;
        for (double& x : v) x /= std::sqrt(after);
        const double c = dot(v, response_);
        ss += c * c;
        basis.push_back(std::move(v));
      }
    return ss;
  }

 private:
  double dot(const std::vector<double>& a, const std::vector<double>& b) const {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += weights_[i] * a[i] * b[i];
    return sum;
  }
  std::vector<double> weights_, response_;
  double mean_ = 0;
};

std::vector<std::vector<double>> indicator_columns(const std::vector<int>& level) {
  const int levels = level.empty() ? 0 : *std::max_element(level.begin(), level.end()) + 1;
  std::vector<std::vector<double>> columns;
  for (int l = 1; l < levels; ++l) {
    std::vector<double> c(level.size());
    for (size_t i = 0; i < level.size(); ++i) c[i] = level[i] == l;
    columns.push_back(std::move(c));
  }
  return columns;
}

std::vector<int> crossed_levels(const std::vector<int>& a, const std::vector<int>& b) {
  std::map<std::pair<int, int>, int> seen;
  std::vector<int> out;
  for (size_t i = 0; i < a.size(); ++i)
    out.push_back(seen.emplace(std::pair(a[i], b[i]), static_cast<int>(seen.size())).first->second);
  return out;
}

}  // namespace

double quantile(const std::vector<double>& sorted, double q) {
  THIMBLE_CHECK(!sorted.empty());
  if (sorted.size() == 1) return sorted[0];
  const double at = std::clamp(q, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), sorted.size() - 2);
  return sorted[i] + (at - static_cast<double>(i)) * (sorted[i + 1] - sorted[i]);
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  return quantile(values, 0.5);
}

std::vector<double> ranks(const std::vector<double>& x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> out(x.size());
  for (size_t i = 0; i < order.size();) {
    size_t j = i;
    while (j < order.size() && x[order[j]] == x[order[i]]) ++j;
    for (size_t k = i; k < j; ++k) out[order[k]] = 0.5 * static_cast<double>(i + j + 1);
    i = j;
  }
  return out;
}

int64_t Sample::units() const {
  if (values.empty()) return 0;
  if (same_people) return static_cast<int64_t>(values[0].size());
  int64_t n = 0;
  for (const auto& seed : values) n += static_cast<int64_t>(seed.size());
  return n;
}

double Sample::mean() const {
  double sum = 0, n = 0;
  for (const auto& seed : values) {
    sum += std::accumulate(seed.begin(), seed.end(), 0.0);
    n += static_cast<double>(seed.size());
  }
  return n > 0 ? sum / n : 0;
}

double student_quantile(double p, double df) {
  double lo = -1e3, hi = 1e3;
  if (df > 1e6) return normal_quantile(p);
  while (student_cdf(lo, df) > p && lo > -1e15) lo *= 2;
  while (student_cdf(hi, df) < p && hi < 1e15) hi *= 2;
  for (int i = 0; i < 200 && hi - lo > 1e-12 * std::max(1.0, std::abs(lo)); ++i) {
    const double mid = 0.5 * (lo + hi);
    (student_cdf(mid, df) < p ? lo : hi) = mid;
  }
  return 0.5 * (lo + hi);
}

Effect estimate(const std::vector<Sample>& strata, double level, int resamples) {
  THIMBLE_CHECK(!strata.empty() && resamples > 1);
  Effect e;
  std::vector<double> means(static_cast<size_t>(resamples), 0.0), flips;
  double squares = 0, freedom = 0;
  const double share = 1.0 / static_cast<double>(strata.size());
  for (size_t i = 0; i < strata.size(); ++i) {
    const Sample& s = strata[i];
    THIMBLE_CHECK(s.units() > 0);
    e.mean += share * s.mean();
    e.people += s.units();
    e.seeds = std::max(e.seeds, static_cast<int64_t>(s.values.size()));
    const std::vector<double> m = resampled_means(s, i, resamples);
    for (size_t b = 0; b < means.size(); ++b) means[b] += share * m[b];
    const std::vector<double> units = unit_values(s);
    const double n = static_cast<double>(units.size()), mean = std::accumulate(units.begin(), units.end(), 0.0) / n;
    for (double u : units) {
      flips.push_back(share * u / n);
      squares += (u - mean) * (u - mean);
    }
    freedom += n - 1;
  }
  e.p = sign_flip_p(flips);
  if (freedom < 1) {
    e.lo = -std::numeric_limits<double>::infinity();
    e.hi = -e.lo;
    return e;
  }
  const double sd = std::sqrt(squares / freedom);
  e.d_z = sd > 0 ? e.mean / sd : 0;
  std::sort(means.begin(), means.end());
  const double n = freedom + static_cast<double>(strata.size());
  const double tail = normal_cdf(std::sqrt(n / freedom) * student_quantile((1 - level) / 2, freedom));
  e.lo = quantile(means, tail);
  e.hi = quantile(means, 1 - tail);
  return e;
}

Effect estimate(const Sample& sample, double level, int resamples) {
  return estimate(std::vector<Sample>{sample}, level, resamples);
}

double sign_flip_p(const std::vector<double>& values) {
  std::vector<double> v;
  double scale = 0;
  for (double x : values)
    if (x != 0) {  // the sign of a zero changes nothing
      v.push_back(x);
      scale += std::abs(x);
    }
  if (v.empty()) return 1;
  const double observed = std::abs(std::accumulate(v.begin(), v.end(), 0.0)) - 1e-12 * scale;
  int64_t hits = 0;
  if (v.size() <= 14) {
    const uint32_t all = 1u << v.size();
    for (uint32_t signs = 0; signs < all; ++signs) {
      double sum = 0;
      for (size_t i = 0; i < v.size(); ++i) sum += (signs >> i & 1) ? v[i] : -v[i];
      hits += std::abs(sum) >= observed;
    }
    return static_cast<double>(hits) / all;
  }
  Draws random(kSeed, 1u << 20);
  for (int b = 0; b < kResamples; ++b) {
    double sum = 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < v.size(); ++i, bits >>= 1) {
      if (i % 32 == 0) bits = random.next_u32();
      sum += (bits & 1) ? v[i] : -v[i];
    }
    hits += std::abs(sum) >= observed;
  }
  return static_cast<double>(hits + 1) / (kResamples + 1);
}

std::vector<double> holm(const std::vector<double>& p) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] < p[b]; });
  std::vector<double> out(p.size());
  double running = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    running = std::max(running, std::min(1.0, p[order[i]] * static_cast<double>(p.size() - i)));
    out[order[i]] = running;
  }
  return out;
}

double spearman(const std::vector<double>& x, const std::vector<double>& y) {
  THIMBLE_CHECK(x.size() == y.size());
  return correlation(ranks(x), ranks(y));
}

double spearman_p(const std::vector<double>& x, const std::vector<double>& y) {
  const std::vector<double> rx = ranks(x);
  std::vector<double> ry = ranks(y);
  const double observed = std::abs(correlation(rx, ry)) - 1e-12;
  int64_t hits = 0, all = 0;
  if (x.size() <= 8) {
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::vector<double> permuted(x.size());
    do {
      for (size_t i = 0; i < order.size(); ++i) permuted[i] = ry[order[i]];
      hits += std::abs(correlation(rx, permuted)) >= observed;
      ++all;
    } while (std::next_permutation(order.begin(), order.end()));
    return static_cast<double>(hits) / static_cast<double>(all);
  }
  Draws random(kSeed, 2u << 20);
  for (; all < kResamples; ++all) {
    shuffle(ry, random);
    hits += std::abs(correlation(rx, ry)) >= observed;
  }
  return static_cast<double>(hits + 1) / static_cast<double>(all + 1);
}

Variance decompose(const std::vector<Factor>& factors, const std::vector<std::vector<double>>& scores) {
  THIMBLE_CHECK(factors.size() <= static_cast<size_t>(kMaxFactors));
  Variance out;
  out.cells = static_cast<int64_t>(scores.size());
  std::vector<double> weights, means;
  double within = 0;
  for (const auto& cell : scores) {
    THIMBLE_CHECK(!cell.empty());
    const double n = static_cast<double>(cell.size()), mean = std::accumulate(cell.begin(), cell.end(), 0.0) / n;
    for (double x : cell) within += (x - mean) * (x - mean);
    weights.push_back(n);
    means.push_back(mean);
    out.rows += static_cast<int64_t>(cell.size());
  }
  if (scores.empty()) return out;
  const CellModel model(weights, means);
  const double between = model.total();
  out.total = between + within;
  for (const Factor& f : factors) out.factors.push_back({f.name, 0});
  if (out.total <= 0) return out;
  out.people = within / out.total;

  const size_t n = factors.size();
  std::vector<std::vector<std::vector<double>>> columns;
  for (const Factor& f : factors) columns.push_back(indicator_columns(f.level));
  std::vector<double> explained(size_t{1} << n);
  for (size_t set = 1; set < explained.size(); ++set) {
    std::vector<const std::vector<std::vector<double>>*> groups;
    for (size_t i = 0; i < n; ++i)
      if (set >> i & 1) groups.push_back(&columns[i]);
    explained[set] = model.explained(groups);
  }
  std::vector<double> factorial(n + 1, 1.0);
  for (size_t i = 1; i <= n; ++i) factorial[i] = factorial[i - 1] * static_cast<double>(i);
  for (size_t i = 0; i < n; ++i)
    for (size_t set = 0; set < explained.size(); ++set)
      if (!(set >> i & 1)) {
        const size_t k = static_cast<size_t>(__builtin_popcountll(set));
        out.factors[i].share += factorial[k] * factorial[n - 1 - k] / factorial[n] *
                                (explained[set | size_t{1} << i] - explained[set]) / out.total;
      }
  const double main = explained.back();
  out.interplay = std::max(0.0, between - main) / out.total;
  std::vector<const std::vector<std::vector<double>>*> all;
  for (const auto& c : columns) all.push_back(&c);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i + 1; j < n; ++j) {
      const auto pair = indicator_columns(crossed_levels(factors[i].level, factors[j].level));
      auto with = all;
      with.push_back(&pair);
      out.pairs.push_back(
          {factors[i].name + " x " + factors[j].name, std::max(0.0, model.explained(with) - main) / out.total});
    }
  std::stable_sort(out.pairs.begin(), out.pairs.end(),
                   [](const Variance::Share& a, const Variance::Share& b) { return a.share > b.share; });
  return out;
}

}  // namespace thimble::lab
