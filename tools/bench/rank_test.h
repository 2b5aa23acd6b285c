// Rank tests for few repetitions: two-sided, exact (ties and all) up to kExactValues values in total, the normal
// approximation with corrections for ties and continuity beyond.
#pragma once

#include <cstddef>
#include <vector>

namespace thimble::bench_tools {

inline constexpr size_t kExactValues = 60;

// Wilcoxon's signed-rank test: is the median of these differences zero? Zeros are left out, equal magnitudes share
// ranks.
double wilcoxon_p(const std::vector<double>& differences);
// Mann-Whitney's U: are values of a and b exchangeable?
double mann_whitney_p(const std::vector<double>& a, const std::vector<double>& b);

// The smallest p that the tests can give for so many values without ties.
double least_wilcoxon_p(size_t n);
double least_mann_whitney_p(size_t n, size_t m);

}  // namespace thimble::bench_tools
