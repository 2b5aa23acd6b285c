// What the parts of thimble_bench share: the options of the run, the measured peaks, the clock.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "bench/variants.h"
#include "kernels/kernel_table.h"

namespace thimble::bench {

struct Run {
  std::vector<Tier> tiers;                // to compare: supported, at or above the cap
  Tier cap = Tier::ref;
  void (*variant)(KernelTable&) = nullptr;  // a candidate that drivers and models run with (--variant)
  std::string shape;                      // of the model benches (models/shapes.h); other words: the small default
  int threads = 1;                        // of the driver and model benches; slots run on one
  double peak_gflops[3][kTierCount] = {};  // [Peak][tier], one thread
  double read_gbs[kTierCount] = {};       // one thread
  int64_t cache_bytes = 0;                // last level; what is cold must exceed it
  int64_t l2_bytes = 0;                   // of one core; what fits runs warm

  // The kernels of drivers and models.
  KernelTable table() const {
    KernelTable t = build_kernel_table(cap);
    if (variant) variant(t);
    return t;
  }
  // What drivers run on: one thread, and all of them.
  std::vector<int> thread_counts() const { return threads > 1 ? std::vector<int>{1, threads} : std::vector<int>{1}; }
};
enum Peak { kPeakF32, kPeakBf16, kPeakInt8 };

void register_slots(const Run& run);
void register_gemm(const Run& run);
void register_attention(const Run& run);
void register_model(const Run& run);
void register_trace(const Run& run);
void register_scan(const Run& run);
void register_ops(const Run& run);
void register_tokenize();

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Work>
double time_of(const Work& work) {
  const double start = now();
  work();
  return now() - start;
}

// The value at share q of the sorted ones, 0 of none.
inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}
inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

}  // namespace thimble::bench
