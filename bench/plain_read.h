// What memory-bound work is judged by: plain reads of as many bytes on as many threads, copies of those that the work
// stores, and sign flips of those that it changes in place, run in the same loop, because the bandwidth of a shared
// machine drifts by more than the differences of interest. Without stores it is a plain read.
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
  // bytes: all of one run, `written` of them stored elsewhere; `updated` bytes are read and stored in place, and count
  // twice in `bytes`. copies: blocks that take turns, as the copies of the work do.
  PlainRead(const KernelTable& table, int threads, double bytes, size_t copies, uint64_t seed, double written = 0, double updated = 0)
      : table_(table),
        threads_(threads),
        read_(static_cast<int64_t>(bytes - written - 2 * updated) / 4 / threads),
        written_(static_cast<int64_t>(written) / 4 / threads),
        updated_(static_cast<int64_t>(updated) / 4 / threads),
        from_(random_floats(std::max<int64_t>(1, static_cast<int64_t>(copies) * read_ * threads), seed)),
        to_(random_floats(std::max<int64_t>(1, static_cast<int64_t>(copies) * written_ * threads), seed)),
        in_place_(random_floats(std::max<int64_t>(1, static_cast<int64_t>(copies) * updated_ * threads), seed)) {}

  void read(size_t copy) const {
    parallel_for(threads_, threads_, [&](int64_t t, int) {
      const int64_t block = static_cast<int64_t>(copy) * threads_ + t;
      const float* from = from_.f32() + block * read_;
      float* to = to_.f32() + block * written_;
      const int64_t copied = std::min(read_, written_);
      if (copied > 0) table_.probe_copy({copied, from, to});
      // More is stored than read: the rest comes out of the first-level cache.
      for (int64_t at = copied; at < written_ && read_ > 0; at += kCached)
        table_.probe_copy({std::min({kCached, read_, written_ - at}), from, to + at});
      float sum = 0;
      if (read_ > copied) table_.probe_read({read_ - copied, from + copied, &sum});
      benchmark::DoNotOptimize(sum);
      float* changed = in_place_.f32() + block * updated_;
      if (updated_ > 0) table_.scale({updated_, -1.0f, changed, changed});
    });
  }
  double bytes() const { return static_cast<double>((read_ + written_ + 2 * updated_) * threads_) * 4; }  // of one read
  size_t resident_bytes() const { return from_.bytes() + to_.bytes() + in_place_.bytes(); }

 private:
  static constexpr int64_t kCached = 2048;  // floats

  KernelTable table_;
  int threads_;
  int64_t read_, written_, updated_;  // floats per thread and run
  Buffer from_, to_, in_place_;
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
