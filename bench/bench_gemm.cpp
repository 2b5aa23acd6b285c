// The driver of matrix products, all packing included: f32 against OpenBLAS, prefill on quantized weights, sweeps of the
// number of rows, and gemv on cold weights against a plain read. What is compared runs interleaved in one loop, because clocks and memory bandwidth
// of a shared machine drift by more than the differences of interest; ratios are of medians.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "models/random_model.h"
#include "tensor/blas.h"
#include "tensor/context.h"
#include "tensor/gemm.h"

namespace thimble::bench {
namespace {

// The threads of two libraries spin for a while after their work; let them fall asleep before the other is timed.
void settle() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }

void gemm_f32(benchmark::State& state, const Run& run, int64_t size, int threads) {
  const KernelTable table = run.table();
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

// The three products of a training step over a dense weight [n, k]: fwd y = x Wᵀ, dx = dy W, dw = dyᵀ x.
enum class Step { fwd, dx, dw };

struct ProductShape {
  int64_t m, n, k;
};

void product(benchmark::State& state, const Run& run, Step step, bool bf16, ProductShape s, int threads) {
  const KernelTable table = run.table();
  const Buffer x = random_floats(s.m * s.k, 1), dy = random_floats(s.m * s.n, 2), weight = random_floats(s.n * s.k, 3);
  const Buffer out(static_cast<size_t>(std::max({s.m * s.n, s.m * s.k, s.n * s.k})) * sizeof(float));
  Weight w;
  w.rows = s.n;
  w.cols = s.k;
  w.data = weight.data();
  const WeightFormat f32 = WeightFormat::f32;
  const WeightView view = w.view();
  size_t bytes = 0;
  switch (step) {
    case Step::fwd:
      bytes = bf16 ? gemm_nt_bf16_scratch_bytes(table, threads, s.m, view)
                   : gemm_nt_scratch_bytes(table, threads, s.m, f32, view);
      break;
    case Step::dx:
      bytes = bf16 ? gemm_nn_bf16_scratch_bytes(table, threads, s.m, view)
                   : gemm_nn_scratch_bytes(table, threads, s.m, f32, view);
      break;
    case Step::dw:
      bytes = (bf16 ? gemm_tn_bf16_scratch_bytes : gemm_tn_scratch_bytes)(table, threads, s.m, s.n, s.k);
      break;
  }
  const Buffer scratch(bytes);
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  const auto multiply = [&] {
    switch (step) {
      case Step::fwd:
        if (bf16) return gemm_nt_bf16(exec, s.m, x.f32(), s.k, f32, view, out.f32(), s.n, false);
        return gemm_nt(exec, s.m, x.f32(), s.k, f32, view, out.f32(), s.n, false);
      case Step::dx:
        return (bf16 ? gemm_nn_bf16 : gemm_nn)(exec, s.m, dy.f32(), s.n, f32, view, out.f32(), s.k, false);
      case Step::dw:
        return (bf16 ? gemm_tn_bf16 : gemm_tn)(exec, s.m, dy.f32(), s.n, s.n, x.f32(), s.k, s.k, out.f32(), s.k, false);
    }
  };
  multiply();
  std::vector<double> times;
  for (auto _ : state) {
    times.push_back(time_of(multiply));
    state.SetIterationTime(times.back());
  }
  const double flops = 2.0 * double(s.m) * double(s.n) * double(s.k), seconds = median(times);
  state.counters["flops"] = flops;
  state.counters["GFLOP/s"] = flops / seconds / 1e9;
  state.counters["roof_fraction"] =
      flops / seconds / 1e9 / (run.peak_gflops[bf16 ? kPeakBf16 : kPeakF32][size_t(run.cap)] * threads);
}

void prefill(benchmark::State& state, const Run& run, const StoredFormat& stored, bool int8_act, int threads) {
  const int64_t m = 256, rows = 5632, cols = 2048;
  const KernelTable table = run.table();
  const WeightFormat format = stored.format;
  const RandomWeight w(format, rows, cols, stored.group, 3, stored.kind);
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

// y[m, 2048] = x[m, 2048] Wᵀ for m = 1..64, 128, 512, interleaved. One more row should cost about a row's share:
// `worst_step` is the largest time(m + 1) / time(m) beyond (m + 1) / m, at m = `worst_step_m` (above 1: a cliff);
// `worst_drop` the largest time(m) / time(m + 1), at `worst_drop_m` (above 1: more rows take less time);
// us_m1, us_m8 ... times per call, and roof_m8 ... the share of the peak there.
void sweep(benchmark::State& state, const Run& run, const StoredFormat& stored, Precision precision, int threads) {
  const int64_t rows = 2048, cols = 2048, max_m = 512;
  const KernelTable table = run.table();
  const WeightFormat format = stored.format;
  const bool int8_act = precision == Precision::int8_act, bf16 = precision == Precision::bf16;
  const RandomWeight w(format, rows, cols, stored.group, 3, stored.kind);
  const WeightView view = w.weight.view();
  const Buffer x = random_floats(max_m * cols, 4), y(static_cast<size_t>(max_m * rows) * 4);
  size_t bytes = 0;
  std::vector<int64_t> counts;
  for (int64_t m = 1; m <= 64; ++m) counts.push_back(m);
  counts.push_back(128);
  counts.push_back(512);
  for (const int64_t m : counts)
    bytes = std::max(bytes, bf16 ? gemm_nt_bf16_scratch_bytes(table, threads, m, view)
                                 : gemm_nt_scratch_bytes(table, threads, m, format, view, int8_act));
  const Buffer scratch(bytes);
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  const auto product = [&](int64_t m) {
    if (bf16) {
      gemm_nt_bf16(exec, m, x.f32(), cols, format, view, y.f32(), rows, false);
    } else {
      gemm_nt(exec, m, x.f32(), cols, format, view, y.f32(), rows, false, int8_act);
    }
  };
  std::vector<std::vector<double>> times(counts.size());
  for (auto _ : state) {
    const double start = now();
    for (size_t i = 0; i < counts.size(); ++i) {
      product(counts[i]);  // after many rows nothing of W is in a cache, after few rows all of it
      times[i].push_back(time_of([&] { product(counts[i]); }));
    }
    state.SetIterationTime(now() - start);
  }
  const double peak = run.peak_gflops[int8_act ? kPeakInt8 : bf16 ? kPeakBf16 : kPeakF32][size_t(run.cap)] * threads * 1e9;
  double worst_step = 0, worst_drop = 0, step_m = 0, drop_m = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double t = median(times[i]), m = double(counts[i]);
    if (i + 1 < counts.size() && counts[i + 1] == counts[i] + 1) {
      const double next = median(times[i + 1]), step = next / t * m / (m + 1), drop = t / next;
      if (step > worst_step) worst_step = step, step_m = m;
      if (drop > worst_drop) worst_drop = drop, drop_m = m;
    }
    const bool wanted = counts[i] <= 8 || counts[i] == 12 || counts[i] == 16 || counts[i] == 24 || counts[i] == 32 || counts[i] >= 64;
    if (!wanted) continue;
    state.counters["us_m" + std::to_string(counts[i])] = t * 1e6;
    state.counters["roof_m" + std::to_string(counts[i])] = 2.0 * m * double(rows * cols) / t / peak;
  }
  state.counters["worst_step"] = worst_step;
  state.counters["worst_step_m"] = step_m;
  state.counters["worst_drop"] = worst_drop;
  state.counters["worst_drop_m"] = drop_m;
  state.SetLabel("m=1..64,128,512 n=2048 k=2048");
}

// Weights that together exceed the last-level cache several times, one after another, and a plain read of as many bytes.
void gemv_cold(benchmark::State& state, const Run& run, WeightFormat format, int64_t group, bool int8_act, int threads) {
  const int64_t rows = 5632, cols = 2048;
  const KernelTable table = run.table();
  std::vector<std::unique_ptr<RandomWeight>> weights;
  double stored = 0;
  while (stored < 4.0 * double(run.cache_bytes)) {
    weights.push_back(std::make_unique<RandomWeight>(format, rows, cols, group, weights.size()));
    stored += double(weights.back()->weight.stored_bytes());
  }
  const double bytes = double(weights[0]->weight.stored_bytes());
  const PlainRead plain(table, threads, bytes, weights.size(), 5);
  const Buffer x = random_floats(cols, 6), y(static_cast<size_t>(rows) * 4);
  const Buffer scratch(gemm_nt_scratch_bytes(table, threads, 1, format, weights[0]->weight.view(), int8_act));
  const GemmExec exec{&table, threads, scratch.data(), scratch.bytes()};
  std::vector<double> times, reads;
  size_t next = 0;
  for (auto _ : state) {
    const WeightView w = weights[next]->weight.view();
    times.push_back(time_of([&] { gemm_nt(exec, 1, x.f32(), cols, format, w, y.f32(), rows, false, int8_act); }));
    reads.push_back(time_of([&] { plain.read(next); }));
    state.SetIterationTime(times.back());
    next = (next + 1) % weights.size();
  }
  report_against_read(state, bytes, plain, times, reads);
  state.SetLabel("cold, n=5632 k=2048, roof: a plain read in the same run");
}

// f32, and every tile format in every group and kind.
std::vector<StoredFormat> stored_formats() {
  std::vector<StoredFormat> all{{WeightFormat::f32, 0}};
  for (const WeightFormat format : {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2})
    for (const int64_t group : {128, 64, 32, 0})
      for (const GroupKind kind : {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum})
        all.push_back({format, group, kind});
  return all;
}

}  // namespace

void register_gemm(const Run& run) {
  const std::vector<int> thread_counts = run.thread_counts();
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  for (const int threads : thread_counts) {
    const std::string at = "/threads=" + std::to_string(threads);
    for (const int64_t size : {512, 768, 1024, 1536, 2048})
      add("driver_gemm_f32/" + std::to_string(size) + at, [run, size, threads](benchmark::State& s) { gemm_f32(s, run, size, threads); });
    for (const bool bf16 : {false, true})
      for (const Step step : {Step::fwd, Step::dx, Step::dw}) {
        const char* const name = step == Step::fwd ? "fwd/" : step == Step::dx ? "dx/" : "dw/";
        const auto one = [&](int64_t m, int64_t n, int64_t k) {
          add(std::string("driver_product_") + (bf16 ? "bf16/" : "f32/") + name + std::to_string(m) + "x" +
                  std::to_string(n) + "x" + std::to_string(k) + at,
              [=](benchmark::State& s) { product(s, run, step, bf16, {m, n, k}, threads); });
        };
        one(1024, 768, 768);
        one(1024, 2048, 768);
        one(1024, 768, 2048);
        one(256, 2048, 2048);
        one(256, 5632, 2048);
        one(256, 2048, 5632);
        for (const int64_t m : {1, 2, 4, 5, 8, 15, 16, 17, 24, 31, 32, 48, 63, 64, 128, 512}) one(m, 2048, 2048);
      }
    for (const StoredFormat& stored : stored_formats()) {
      for (const bool int8_act : {false, true}) {
        if (int8_act && !is_tiled(stored.format)) continue;
        const std::string how = stored_format_name(stored) + (int8_act ? "/int8_act" : "/f32");
        add("driver_prefill_" + how + at, [=](benchmark::State& s) { prefill(s, run, stored, int8_act, threads); });
        if (stored.kind != GroupKind::zero_points) continue;
        add("driver_gemv_" + how + "/cold" + at,
            [=](benchmark::State& s) { gemv_cold(s, run, stored.format, stored.group, int8_act, threads); });
      }
    }
    const StoredFormat f32{WeightFormat::f32, 0}, bf16{WeightFormat::bf16, 0}, q8{WeightFormat::q8, 128}, q4{WeightFormat::q4, 128},
        q2{WeightFormat::q2, 128}, q4_g32{WeightFormat::q4, 32};
    const std::pair<StoredFormat, Precision> sweeps[] = {
        {f32, Precision::f32}, {bf16, Precision::f32}, {q8, Precision::f32}, {q4, Precision::f32}, {q2, Precision::f32},
        {f32, Precision::bf16}, {bf16, Precision::bf16}, {q4, Precision::bf16},
        {q8, Precision::int8_act}, {q4, Precision::int8_act}, {q2, Precision::int8_act}, {q4_g32, Precision::int8_act}};
    for (const auto& product : sweeps) {
      const StoredFormat stored = product.first;
      const Precision precision = product.second;
      add("driver_sweep_" + stored_format_name(stored) + "/" + precision_name(precision) + at,
          [=](benchmark::State& s) { sweep(s, run, stored, precision, threads); });
    }
  }
}

}  // namespace thimble::bench
