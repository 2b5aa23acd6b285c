// What memory-bound work is judged by: a plain read of as many bytes on as many threads, run in the same loop, because the
// bandwidth of a shared machine drifts by more than the differences of interest.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "bench/bench.h"
#include "bench/random_weights.h"
#include "tensor/parallel.h"

namespace thimble::bench {

class PlainRead {
 public:
  // copies: blocks of `bytes` that take turns, as the copies of the work do.
  PlainRead(const KernelTable& table, int threads, double bytes, size_t copies, uint64_t seed)
      : table_(table),
        threads_(threads),
        share_(static_cast<int64_t>(bytes) / 4 / threads),
        data_(random_floats(static_cast<int64_t>(copies) * share_ * threads, seed)) {}

  void read(size_t copy) const {
    const float* from = data_.f32() + static_cast<int64_t>(copy) * share_ * threads_;
    parallel_for(threads_, threads_, [&](int64_t t, int) {
      float sum;
      table_.probe_read({share_, from + t * share_, &sum});
      benchmark::DoNotOptimize(sum);
    });
  }
  double bytes() const { return static_cast<double>(share_ * threads_) * 4; }  // of one read
  size_t resident_bytes() const { return data_.bytes(); }

 private:
  KernelTable table_;
  int threads_;
  int64_t share_;
  Buffer data_;
};

// Counters of work that moves `bytes`: seconds of its runs, and of the reads between them.
inline void report_against_read(benchmark::State& state, double bytes, const PlainRead& plain, const std::vector<double>& times,
                                const std::vector<double>& reads) {
  const double seconds = median(times), read = median(reads);
  state.counters["bytes"] = bytes;
  state.counters["GB/s"] = bytes / seconds / 1e9;
  state.counters["read_GB/s"] = plain.bytes() / read / 1e9;
  state.counters["roof_fraction"] = read / seconds;
  state.counters["roof_best"] = *std::min_element(reads.begin(), reads.end()) / *std::min_element(times.begin(), times.end());
}

}  // namespace thimble::bench
