// What the zones cost. On: pairs of the same work without and with a running trace, interleaved; the counter is the
// median of the pairs' ratios minus one, with its quartiles, and `noise` is the same for pairs without a trace on
// either side; `cpu_on` and `cpu_noise` are those of CPU time, which a busy machine disturbs less. Off: nothing can be
// left out of a built program, so one inactive zone is timed by itself, and its share of the work follows from the
// number of zones that the work opens. on_zones is the same estimate for zones of a running trace.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <memory>

#include "bench/bench.h"
#include "models/random_model.h"
#include "tensor/trace.h"
#include "train/workload.h"

namespace thimble::bench {
namespace {

constexpr int kPairs = 20;

double cpu_seconds() {
  struct timespec t {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Seconds that a zone with its work count takes: the best of several windows.
double zone_seconds() {
  constexpr int64_t kZones = 100'000;
  double best = 1;
  for (int window = 0; window < 50; ++window) {
    const double start = now();
    for (int64_t i = 0; i < kZones; ++i) {
      THIMBLE_ZONE(norm);
      if (tracing()) trace_work(1, 1);
      benchmark::ClobberMemory();
    }
    best = std::min(best, (now() - start) / static_cast<double>(kZones));
  }
  return best;
}

void run_trace(benchmark::State& state, const Run& run, const char* shape, WorkKind kind) {
  Model model = random_model(shape, shape_config(shape), {WeightFormat::q4, 32});
  MemoryBudget budget;
  const KernelTable table = run.table();
  Context ctx(table, run.threads, &budget);
  ctx.precision = Precision::int8_act;
  WorkOptions options;
  options.kind = kind;
  options.prompt_tokens = 128;
  options.tokens = 64;
  Workload load(model, ctx, options);
  // A measurement is long enough for the clock and short enough that a neighbour rarely strikes one half of a pair
  // only.
  int64_t repeats = 1;
  struct Seconds {
    double wall, cpu;
  };
  const auto measure = [&](Trace* trace) {
    const double start = now(), cpu = cpu_seconds();
    if (trace) trace->start();
    for (int64_t i = 0; i < repeats; ++i) {
      load.prepare();
      load.run();
    }
    if (trace) trace->stop();
    return Seconds{now() - start, cpu_seconds() - cpu};
  };
  measure(nullptr);
  while (measure(nullptr).wall < 0.02 && repeats < 4096) repeats *= 2;

  Trace trace(size_t{1} << 16);
  std::vector<double> on, noise, cpu_on, cpu_noise, off_seconds;
  int64_t measured = 0;
  for (auto _ : state) {
    for (int pair = 0; pair < kPairs; ++pair) {
      const Seconds first = measure(nullptr), traced = measure(&trace), second = measure(nullptr);
      on.push_back(traced.wall / (0.5 * (first.wall + second.wall)) - 1);
      noise.push_back(second.wall / first.wall - 1);
      cpu_on.push_back(traced.cpu / (0.5 * (first.cpu + second.cpu)) - 1);
      cpu_noise.push_back(second.cpu / first.cpu - 1);
      off_seconds.push_back(first.wall);
      ++measured;
    }
    state.SetIterationTime(median(off_seconds));
  }
  int64_t zones = 0;
  for (const ZoneRow& row : trace.rows()) zones += row.calls;
  const double zones_per_measure = static_cast<double>(zones) / static_cast<double>(measured);
  state.counters["on"] = median(on);
  state.counters["on_q1"] = quantile(on, 0.25);
  state.counters["on_q3"] = quantile(on, 0.75);
  state.counters["noise"] = median(noise);
  state.counters["noise_iqr"] = quantile(noise, 0.75) - quantile(noise, 0.25);
  state.counters["cpu_on"] = median(cpu_on);
  state.counters["cpu_noise"] = median(cpu_noise);
  state.counters["cpu_noise_iqr"] = quantile(cpu_noise, 0.75) - quantile(cpu_noise, 0.25);
  const double fastest = *std::min_element(off_seconds.begin(), off_seconds.end()), inactive = zone_seconds();
  Trace busy(size_t{1} << 16);
  busy.start();
  const double active = zone_seconds();
  busy.stop();
  state.counters["off"] = inactive * zones_per_measure / fastest;
  state.counters["off_zone_ns"] = inactive * 1e9;
  state.counters["on_zones"] = active * zones_per_measure / fastest;
  state.counters["on_zone_ns"] = active * 1e9;
  state.counters["zones/run"] = zones_per_measure / static_cast<double>(repeats);
}

}  // namespace

void register_trace(const Run& run) {
  struct Case {
    const char* name;
    const char* shape;
    WorkKind kind;
  };
  // The smallest model has the most zones per second.
  for (const Case& c : {Case{"trace_cost/decode/stories260k", "stories260k", WorkKind::decode},
                        Case{"trace_cost/decode/llama-134m", "llama-134m", WorkKind::decode},
                        Case{"trace_cost/prefill/stories15m", "stories15m", WorkKind::prefill}})
    benchmark::RegisterBenchmark(c.name, [run, c](benchmark::State& s) { run_trace(s, run, c.shape, c.kind); })
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1);
}

}  // namespace thimble::bench
