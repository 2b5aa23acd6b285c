// Medians, bootstrap and rank tests of two records.
#include "tools/bench/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>

#include "tensor/error.h"
#include "tools/bench/rank_test.h"
#include "tools/lab/draws.h"
#include "tools/lab/stats.h"

namespace thimble::bench_tools {
namespace {

constexpr uint64_t kSeed = 20250117;
constexpr int kResamples = 2000;  // medians of a dozen values take few different values

// A row's draws depend on its name only: neither filters nor other rows change its interval (FNV-1a).
uint64_t stream_of(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

// Median of as many draws as there are values; scratch has the same size.
double resampled_median(const std::vector<double>& values, lab::Draws& draws, std::vector<double>& scratch) {
  const size_t n = values.size(), half = n / 2;
  scratch.resize(n);
  for (double& x : scratch) x = values[draws.below(n)];
  std::nth_element(scratch.begin(), scratch.begin() + static_cast<std::ptrdiff_t>(half), scratch.end());
  const double upper = scratch[half];
  if (n % 2) return upper;
  return 0.5 * (upper + *std::max_element(scratch.begin(), scratch.begin() + static_cast<std::ptrdiff_t>(half)));
}

void percentiles(std::vector<double>& samples, double alpha, double* lo, double* hi) {
  std::sort(samples.begin(), samples.end());
  *lo = lab::quantile(samples, alpha / 2);
  *hi = lab::quantile(samples, 1 - alpha / 2);
}

// 1.4826 makes the median absolute deviation the standard deviation of a normal distribution.
double relative_noise(const std::vector<double>& seconds) {
  const double middle = lab::median(seconds);
  std::vector<double> off;
  for (const double s : seconds) off.push_back(std::abs(s - middle));
  return 1.4826 * lab::median(off) / middle;
}

void decide(ComparedRow& row, const CompareOptions& o) {
  const double least = row.paired ? least_wilcoxon_p(row.runs_a) : least_mann_whitney_p(row.runs_a, row.runs_b);
  const double p = o.holm ? row.p_holm : row.p;
  if (row.runs_a < 2 || row.runs_b < 2 || least > o.alpha)
    row.verdict = Verdict::too_few_runs;
  else if (row.lo > 1 + row.threshold && p <= o.alpha)
    row.verdict = Verdict::slower;
  else if (row.hi < 1 / (1 + row.threshold) && p <= o.alpha)
    row.verdict = Verdict::faster;
  else if (row.lo < 1 / (1 + row.threshold) && row.hi > 1 + row.threshold)
    row.verdict = Verdict::too_few_runs;
  else
    row.verdict = Verdict::same;
}

void compare_machines(const Record& a, const Record& b, Comparison& c) {
  const auto differ = [&c](const char* what, const std::string& x, const std::string& y) {
    if (!x.empty() && !y.empty() && x != y)
      c.warnings.push_back(fmt::format("the {} differs: {} against {}", what, x, y));
  };
  if (a.fingerprint != b.fingerprint)
    c.warnings.push_back(fmt::format("records of two machines ({} {} against {} {}): ratios say nothing about the code",
                                     a.fingerprint, a.cpu.empty() ? a.host : a.cpu, b.fingerprint,
                                     b.cpu.empty() ? b.host : b.cpu));
  differ("build type", a.build_type, b.build_type);
  differ("compiler", a.compiler, b.compiler);
  differ("governor", a.governor, b.governor);
  const Peaks* pa = a.peaks_of(a.tier, 1);
  const Peaks* pb = pa ? b.peaks_of(pa->tier, 1) : nullptr;
  if (pa && pb) {
    c.drift.tier = pa->tier;
    if (pa->f32_gflops > 0 && pb->f32_gflops > 0) c.drift.f32 = pb->f32_gflops / pa->f32_gflops;
    if (pa->read_gbs > 0 && pb->read_gbs > 0) c.drift.read = pb->read_gbs / pa->read_gbs;
  }
  const auto moved = [](double ratio) { return ratio > 0 && (ratio > 1.1 || ratio < 1 / 1.1); };
  if (moved(c.drift.f32))
    c.warnings.push_back(fmt::format("the machine's measured f32 peak differs by {:+.0f} %", 100 * (c.drift.f32 - 1)));
  if (moved(c.drift.read))
    c.warnings.push_back(
        fmt::format("the machine's measured read bandwidth differs by {:+.0f} %", 100 * (c.drift.read - 1)));
  if (c.rows.size() >= 5 && (c.drift.median_ratio > 1.05 || c.drift.median_ratio < 1 / 1.05))
    c.warnings.push_back(fmt::format(
        "the median row takes {:+.0f} % time: a change that all rows share is rather the machine's than the code's",
        100 * (c.drift.median_ratio - 1)));
}

}  // namespace

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::faster:
      return "faster";
    case Verdict::slower:
      return "slower";
    case Verdict::same:
      return "same";
    case Verdict::too_few_runs:
      return "too few runs";
  }
  return "";
}

ComparedRow compare_rows(const Row& a, const Row& b, const CompareOptions& o) {
  ComparedRow row;
  row.name = a.name;
  row.runs_a = a.seconds.size();
  row.runs_b = b.seconds.size();
  row.paired = o.paired && row.runs_a == row.runs_b && row.runs_a > 1;
  row.seconds_a = a.median_seconds();
  row.seconds_b = b.median_seconds();
  row.noise_a = relative_noise(a.seconds);
  row.noise_b = relative_noise(b.seconds);
  row.threshold = std::max(o.floor, std::hypot(row.noise_a, row.noise_b));
  lab::Draws draws(kSeed, stream_of(a.name));
  std::vector<double> samples(kResamples), scratch;
  if (row.paired) {
    std::vector<double> ratios, logs;
    for (size_t i = 0; i < row.runs_a; ++i) {
      ratios.push_back(b.seconds[i] / a.seconds[i]);
      logs.push_back(std::log(ratios.back()));
    }
    row.ratio = lab::median(ratios);
    row.p = wilcoxon_p(logs);
    for (double& s : samples) s = resampled_median(ratios, draws, scratch);
    percentiles(samples, o.alpha, &row.lo, &row.hi);
  } else {
    row.ratio = row.lo = row.hi = row.seconds_b / row.seconds_a;
    row.p = mann_whitney_p(a.seconds, b.seconds);
    if (row.runs_a > 1 && row.runs_b > 1) {
      for (double& s : samples) {
        const double below = resampled_median(a.seconds, draws, scratch);
        s = resampled_median(b.seconds, draws, scratch) / below;
      }
      percentiles(samples, o.alpha, &row.lo, &row.hi);
    }
  }
  row.p_holm = row.p;
  decide(row, o);
  return row;
}

size_t Comparison::count(Verdict verdict) const {
  return static_cast<size_t>(
      std::count_if(rows.begin(), rows.end(), [verdict](const ComparedRow& r) { return r.verdict == verdict; }));
}

Comparison compare(const Record& a, const Record& b, const CompareOptions& o) {
  const NameFilter filter(o.filter);
  Comparison c;
  std::unordered_map<std::string, const Row*> of_b;
  for (const Row& row : b.rows) of_b.emplace(row.name, &row);
  std::set<std::string> common;
  std::vector<double> p, ratios;
  for (const Row& row : a.rows) {
    const auto other = of_b.find(row.name);
    if (other != of_b.end()) common.insert(row.name);
    if (!filter.keeps(row.name)) continue;
    if (other == of_b.end()) {
      c.only_a.push_back(row.name);
      continue;
    }
    c.rows.push_back(compare_rows(row, *other->second, o));
    p.push_back(c.rows.back().p);
    ratios.push_back(c.rows.back().ratio);
  }
  for (const Row& row : b.rows)
    if (common.count(row.name) == 0 && filter.keeps(row.name)) c.only_b.push_back(row.name);
  if (common.empty())
    throw Error(ErrorCode::input, fmt::format("{} and {}: no benchmark is in both", a.path, b.path),
                "record both with the same --filter");
  if (c.rows.empty())
    throw Error(ErrorCode::usage, fmt::format("--filter: none of {} common benchmarks matches", common.size()),
                "for example " + *common.begin());
  const std::vector<double> corrected = lab::holm(p);
  for (size_t i = 0; i < c.rows.size(); ++i) {
    c.rows[i].p_holm = corrected[i];
    decide(c.rows[i], o);
  }
  c.drift.median_ratio = lab::median(ratios);
  compare_machines(a, b, c);
  return c;
}

Interval median_interval(const Row& row, double alpha) {
  Interval out;
  out.median = out.lo = out.hi = row.median_seconds();
  if (row.seconds.size() < 2) return out;
  lab::Draws draws(kSeed, stream_of(row.name));
  std::vector<double> samples(kResamples), scratch;
  for (double& s : samples) s = resampled_median(row.seconds, draws, scratch);
  percentiles(samples, alpha, &out.lo, &out.hi);
  return out;
}

}  // namespace thimble::bench_tools
