// Exact retrieval: one query against 100,000 vectors of 384 components in every stored precision: the whole search, from
// the floats of the query to its ten best scored in double, with nothing of the index in a cache, and a plain read of as
// many bytes as the scan reads in the same loop.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "rag/vector_index.h"

namespace thimble::bench {
namespace {

constexpr int64_t kVectors = 100000, kWidth = 384, kHits = 10;

VectorSet random_vectors(uint64_t seed) {
  VectorSet set;
  set.count = kVectors;
  set.width = kWidth;
  const Buffer values = random_floats(kVectors * kWidth, seed);
  set.values.assign(values.f32(), values.f32() + kVectors * kWidth);
  normalize(set);
  return set;
}

// Of the ten best by f32, the share that candidates of this precision and a second scoring with the floats find.
double recall(const KernelTable& table, VectorPrecision precision, int threads) {
  VectorSet set = random_vectors(1);
  const VectorIndex exact(set, table, threads);
  compress(set, table, precision, true);
  const VectorIndex index(std::move(set), table, threads);
  constexpr int64_t kQueries = 20;
  const Buffer queries = random_floats(kQueries * kWidth, 77);
  const auto want = exact.search(queries.f32(), kQueries, kHits, kVectors), got = index.search(queries.f32(), kQueries, kHits, kVectors);
  double found = 0;
  for (size_t q = 0; q < want.size(); ++q)
    for (const Hit& a : want[q]) found += static_cast<double>(std::count_if(got[q].begin(), got[q].end(), [&](const Hit& b) { return a.index == b.index; }));
  return found / double(kHits * kQueries);
}

void scan(benchmark::State& state, const Run& run, VectorPrecision precision, int threads) {
  const KernelTable table = run.table();
  std::vector<std::unique_ptr<VectorIndex>> indexes;
  for (uint64_t seed : {1, 2}) {
    VectorSet set = random_vectors(seed);
    compress(set, table, precision, true);
    indexes.push_back(std::make_unique<VectorIndex>(std::move(set), table, threads));
  }
  const double bytes = double(indexes[0]->scanned_bytes());
  const PlainRead plain(table, threads, bytes, indexes.size(), 5), rest(table, threads, 2.0 * double(run.cache_bytes), 1, 7);
  const Buffer query = random_floats(kWidth, 6);
  std::vector<double> times, reads;
  size_t next = 0;
  for (auto _ : state) {
    rest.read(0);  // leaves nothing else in the cache
    times.push_back(time_of([&] { benchmark::DoNotOptimize(indexes[next]->search(query.f32(), 1, kHits, kVectors)); }));
    rest.read(0);
    reads.push_back(time_of([&] { plain.read(next); }));
    state.SetIterationTime(times.back());
    next = (next + 1) % indexes.size();
  }
  indexes.clear();
  report_against_read(state, bytes, plain, times, reads);
  state.counters["recall"] = recall(table, precision, threads);
  state.SetLabel("cold, roof: a plain read in the same run");
}

}  // namespace

void register_scan(const Run& run) {
  const std::vector<int> thread_counts = run.thread_counts();
  for (const VectorPrecision precision : {VectorPrecision::f32, VectorPrecision::int8, VectorPrecision::binary})
    for (const int threads : thread_counts) {
      const std::string name = std::string("driver_scan_") + vector_precision_name(precision) + "/100000x384/threads=" + std::to_string(threads);
      benchmark::RegisterBenchmark(name.c_str(), [run, precision, threads](benchmark::State& s) { scan(s, run, precision, threads); })
          ->UseManualTime()
          ->Iterations(60)  // data of hundreds of megabytes are made once
          ->Unit(benchmark::kMicrosecond);
    }
}

}  // namespace thimble::bench
