// Is B slower than A? One rule for bench compare and the dashboard. Times of shared machines are skewed and drift, so
// only medians and ranks are used, and a change counts when its whole interval lies beyond a threshold that grows with
// the noise of the two records themselves.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/record.h"

namespace thimble::bench_tools {

enum class Verdict { faster, slower, same, too_few_runs };
const char* verdict_name(Verdict verdict);  // faster, slower, same, too few runs

struct CompareOptions {
  std::string filter;   // see NameFilter
  double alpha = 0.05;  // of the rank test; the interval has level 1 - alpha
  double floor = 0.05;  // least threshold: what two records of one program differ by on a shared machine
  bool paired = true;   // repetition i of A belongs to repetition i of B wherever both have as many
  bool holm = false;    // verdicts ask for the corrected p
};

// ratio: time of B / time of A, so 1.10 is ten percent slower.
//   paired    median of the ratios of repetitions; Wilcoxon's signed-rank test of their logarithms
//   unpaired  ratio of the medians; Mann-Whitney's U
// lo, hi: percentiles of 2,000 bootstrap samples of repetitions; equal to ratio where one side has a single repetition.
// noise: 1.4826 MAD / median of one side's repetitions. threshold: max(floor, sqrt(noise_a^2 + noise_b^2)).
// slower: lo > 1 + threshold and p <= alpha. faster: hi < 1 / (1 + threshold) and p <= alpha. too few runs: so few
// repetitions that no p could reach alpha, or so much noise that the interval reaches beyond the threshold on both sides.
// same: everything else; no change beyond the threshold was shown.
struct ComparedRow {
  std::string name;
  size_t runs_a = 0, runs_b = 0;
  bool paired = false;
  double seconds_a = 0, seconds_b = 0;  // medians
  double noise_a = 0, noise_b = 0;
  double ratio = 1, lo = 1, hi = 1;
  double p = 1, p_holm = 1;  // p_holm: corrected for the number of rows compared
  double threshold = 0;
  Verdict verdict = Verdict::same;
};

ComparedRow compare_rows(const Row& a, const Row& b, const CompareOptions& options);

// How the machine itself differed, B / A; 0 where not recorded by both. One tier, one thread.
struct Drift {
  double median_ratio = 0;  // of all compared rows: what they share is rather the machine than the code
  std::string tier;
  double f32 = 0, read = 0;  // measured peaks
};

struct Comparison {
  std::vector<ComparedRow> rows;  // in the order of A
  std::vector<std::string> only_a, only_b;
  Drift drift;
  std::vector<std::string> warnings;  // why the two might not be comparable
  size_t count(Verdict verdict) const;
};

// Throws usage when the filter keeps no common row, input when there is none to begin with.
Comparison compare(const Record& a, const Record& b, const CompareOptions& options);

// Bootstrap interval of the median of one row's seconds; lo = hi = the value where there is one repetition.
struct Interval {
  double median = 0, lo = 0, hi = 0;
};
Interval median_interval(const Row& row, double alpha = 0.05);

}  // namespace thimble::bench_tools
