// How sure a number is: bootstrap intervals over people and seeds, sign-flip tests, Holm's correction, rank correlation
// and shares of variance. Everything is a pure function of its arguments: the draws come from a fixed seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thimble::lab {

// One number per person and seed: a score, or a difference of two conditions (then the comparison is paired).
struct Sample {
  std::vector<std::vector<double>> values;  // [seeds][people of that seed]
  bool same_people = false;                 // every seed examines the same people, in the same order

  int64_t units() const;  // people: same_people counts each once
  double mean() const;    // of all values
};

struct Effect {
  double mean = 0, lo = 0, hi = 0;  // 95 % unless asked otherwise
  double p = 1;                     // two-sided, sign-flip; meaningful for differences only
  double d_z = 0;                   // mean / standard deviation over people (0 where that is 0)
  int64_t people = 0, seeds = 0;
};

inline constexpr int kResamples = 10000;

// The mean over strata (tasks) of the mean of each, with a bootstrap interval and a sign-flip p.
// Resampled: in each stratum, seeds with replacement, then the people of each drawn seed with replacement; where
// same_people, seeds and people are drawn independently and the drawn people are taken from each drawn seed. Strata are
// fixed and drawn independently. The percentiles are widened by Student's t with units - strata degrees of freedom
// (Hesterberg's expanded percentile interval), because plain percentiles are too narrow for two dozen people.
// One unit per stratum or fewer: lo and hi are -inf and inf.
// Signs are flipped per person (same_people: of the person's mean over seeds), within all strata at once.
Effect estimate(const std::vector<Sample>& strata, double level = 0.95, int resamples = kResamples);
Effect estimate(const Sample& sample, double level = 0.95, int resamples = kResamples);

// P(|sum of randomly signed values| >= |sum|): all 2^n signs for up to 14 values, else 10,000 draws with the observed
// one counted in.
double sign_flip_p(const std::vector<double>& values);

// Adjusted p of each, in the order given.
std::vector<double> holm(const std::vector<double>& p);

// Linear between order statistics; sorted ascending, at least one value.
double quantile(const std::vector<double>& sorted, double q);
double median(std::vector<double> values);  // NaN of nothing
// From 1, ties averaged.
std::vector<double> ranks(const std::vector<double>& x);

// Of ranks, ties averaged; 0 when one side is constant.
double spearman(const std::vector<double>& x, const std::vector<double>& y);
// P(|rho| >= observed) over orders of y: all of them for up to 8 values, else 10,000 draws.
double spearman_p(const std::vector<double>& x, const std::vector<double>& y);

// Quantile of Student's t (p in (0, 1), df >= 1).
double student_quantile(double p, double df);

struct Factor {
  std::string name;
  std::vector<int> level;  // of each cell, from 0
};

struct Variance {
  struct Share {
    std::string name;
    double share = 0;
  };
  int64_t cells = 0, rows = 0;  // rows: people in cells
  double total = 0;             // sum of squares around the grand mean
  std::vector<Share> factors;   // main effects, in the order given
  double interplay = 0;         // between cells, beyond main effects
  double people = 0;            // within cells: people and chance
  std::vector<Share> pairs;     // "a x b": what the pair adds to all main effects, alone; overlapping, largest first
};

// Shares of the sum of squares of scores[cell][person]. A factor's share is its R^2 averaged over all orders in which
// factors can enter a linear model of the cells' means (LMG, Shapley), weighted by people: it does not depend on
// an order, adds up, and splits what unbalanced grids leave ambiguous evenly. At most kMaxFactors factors.
inline constexpr int kMaxFactors = 10;
Variance decompose(const std::vector<Factor>& factors, const std::vector<std::vector<double>>& scores);

}  // namespace thimble::lab
