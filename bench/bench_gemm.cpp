// The driver of matrix products, all packing included: f32 against OpenBLAS, prefill on quantized weights, and gemv on
// cold weights against a plain read. What is compared runs interleaved in one loop, because clocks and memory bandwidth
// of a shared machine drift by more than the differences of interest; ratios are of medians.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "tensor/blas.h"
#include "tensor/gemm.h"

namespace thimble::bench {
namespace {

// The threads of two libraries spin for a while after their work; let them fall asleep before the other is timed.
void settle() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }

void gemm_f32(benchmark::State& state, const Run& run, int64_t size, int threads) {
  const KernelTable table = build_kernel_table(run.cap);
  const Buffer a = random_floats(size * size, 1), b = random_floats(size * size, 2), c(static_cast<size_t>(size * size) * 4);
  Weight w;
  w.rows = w.cols = size;
  w.data = b.data();
  const Buffer scratch(gemm_nt_scratch_bytes(table, threads, size, WeightFormat::f32, w.view()));
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  const auto ours = [&] { gemm_nt(exec, size, a.f32(), size, WeightFormat::f32, w.view(), c.f32(), size, false); };
  const auto blas = [&] { blas_sgemm_nt(threads, size, size, size, a.f32(), size, b.f32(), size, c.f32(), size); };
  ours();
  blas();
  std::vector<double> our_times, blas_times;
  for (auto _ : state) {
    settle();
    our_times.push_back(time_of(ours));
    settle();
    blas_times.push_back(time_of(blas));
    state.SetIterationTime(our_times.back());
  }
  const double flops = 2.0 * double(size) * double(size) * double(size), mine = median(our_times), theirs = median(blas_times);
  state.counters["flops"] = flops;
  state.counters["GFLOP/s"] = flops / mine / 1e9;
  state.counters["openblas_GFLOP/s"] = flops / theirs / 1e9;
  state.counters["ratio"] = theirs / mine;
  state.counters["roof_fraction"] = flops / mine / 1e9 / (run.peak_gflops[kPeakF32][size_t(run.cap)] * threads);
  state.SetLabel("against OpenBLAS " + blas_info().core);
}

void prefill(benchmark::State& state, const Run& run, WeightFormat format, int64_t group, bool int8_act, int threads) {
  const int64_t m = 256, rows = 5632, cols = 2048;
  const KernelTable table = build_kernel_table(run.cap);
  const RandomWeight w(format, rows, cols, group, 3);
  const Buffer x = random_floats(m * cols, 4), y(static_cast<size_t>(m * rows) * 4);
  const Buffer scratch(gemm_nt_scratch_bytes(table, threads, m, format, w.weight.view(), int8_act));
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  std::vector<double> times;
  for (auto _ : state) {
    times.push_back(time_of([&] { gemm_nt(exec, m, x.f32(), cols, format, w.weight.view(), y.f32(), rows, false, int8_act); }));
    state.SetIterationTime(times.back());
  }
  const double flops = 2.0 * double(m) * double(rows) * double(cols), seconds = median(times);
  state.counters["flops"] = flops;
  state.counters["GFLOP/s"] = flops / seconds / 1e9;
  state.counters["roof_fraction"] = flops / seconds / 1e9 / (run.peak_gflops[int8_act ? kPeakInt8 : kPeakF32][size_t(run.cap)] * threads);
  state.SetLabel("m=256 n=5632 k=2048");
}

// Weights that together exceed the last-level cache several times, one after another, and a plain read of as many bytes.
void gemv_cold(benchmark::State& state, const Run& run, WeightFormat format, int64_t group, int threads) {
  const int64_t rows = 5632, cols = 2048;
  const KernelTable table = build_kernel_table(run.cap);
  std::vector<std::unique_ptr<RandomWeight>> weights;
  double stored = 0;
  while (stored < 4.0 * double(run.cache_bytes)) {
    weights.push_back(std::make_unique<RandomWeight>(format, rows, cols, group, weights.size()));
    stored += double(weights.back()->weight.stored_bytes());
  }
  const double bytes = double(weights[0]->weight.stored_bytes());
  const PlainRead plain(table, threads, bytes, weights.size(), 5);
  const Buffer x = random_floats(cols, 6), y(static_cast<size_t>(rows) * 4);
  const Buffer scratch(gemm_nt_scratch_bytes(table, threads, 1, format, weights[0]->weight.view()));
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  std::vector<double> times, reads;
  size_t next = 0;
  for (auto _ : state) {
    times.push_back(time_of([&] { gemm_nt(exec, 1, x.f32(), cols, format, weights[next]->weight.view(), y.f32(), rows, false); }));
    reads.push_back(time_of([&] { plain.read(next); }));
    state.SetIterationTime(times.back());
    next = (next + 1) % weights.size();
  }
  report_against_read(state, bytes, plain, times, reads);
  state.SetLabel("cold, n=5632 k=2048, roof: a plain read in the same run");
}

}  // namespace

void register_gemm(const Run& run) {
  std::vector<int> thread_counts = {1};
  if (run.threads > 1) thread_counts.push_back(run.threads);
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  for (const int threads : thread_counts) {
    const std::string at = "/threads=" + std::to_string(threads);
    for (const int64_t size : {512, 768, 1024, 1536, 2048})
      add("driver_gemm_f32/" + std::to_string(size) + at, [run, size, threads](benchmark::State& s) { gemm_f32(s, run, size, threads); });
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::q8, WeightFormat::q4}) {
      const std::string name = format_name(format);
      const std::vector<int64_t> groups = is_tiled(format) ? std::vector<int64_t>{128, 32} : std::vector<int64_t>{0};
      for (const int64_t group : groups) {
        const std::string full = name + (group ? "_g" + std::to_string(group) : "");
        for (const bool int8_act : {false, true}) {
          if (int8_act && !is_tiled(format)) continue;
          add("driver_prefill_" + full + (int8_act ? "/int8_act" : "/f32") + at,
              [=](benchmark::State& s) { prefill(s, run, format, group, int8_act, threads); });
        }
        add("driver_gemv_" + full + "/cold" + at, [=](benchmark::State& s) { gemv_cold(s, run, format, group, threads); });
      }
    }
  }
}

}  // namespace thimble::bench
