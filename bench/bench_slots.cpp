// Every slot of the manifest x every supported tier with a kernel of its own x the bench shapes of its Problem, on one
// thread, as slot/tier/shape. A new slot of a known signature appears here without an edit.
//
// Memory-bound work runs on rotating copies of the problem that together exceed the last-level cache: the same small
// set again and again would measure the cache. It is judged by plain reads and copies of as many bytes between its runs.
// A problem that fits into the second-level cache runs warm, and so do the reads and copies. The problems are kept
// between the tiers of one shape.
//
// Candidates of bench/variants run the same problems as variant/NAME/slot/tier/shape, call by call in turn with the slot's
// own kernel, whose results they must give.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "tensor/error.h"
#include "tests/kernels/problems_bf16.h"
#include "tests/kernels/problems_attention.h"
#include "tests/kernels/problems_gemm.h"
#include "tests/kernels/problems_probe.h"
#include "tests/kernels/problems_rows.h"
#include "tests/kernels/problems_scan.h"

namespace thimble::bench {
namespace {

using testing::Problem;
using testing::Shape;
using testing::SlotInfo;

// The peak that a slot is judged by: that of the unit which does its multiplications.
Peak peak_of(const std::string& slot) {
  if (slot == "probe_int8" || (slot.find("gemm_q") == 0 && slot.find("_i8") != std::string::npos)) return kPeakInt8;
  const bool attention = slot.rfind("attention_", 0) == 0 && slot.find("_bf16") != std::string::npos;
  return slot == "probe_bf16" || slot == "gemm_bf16" || attention ? kPeakBf16 : kPeakF32;
}

// One set at a time: the benches of a shape run one after another.
template <class Fn>
std::vector<std::unique_ptr<Problem<Fn>>>& problems(const SlotInfo& slot, const Shape& shape, bool cold, int64_t cache_bytes) {
  static std::vector<std::unique_ptr<Problem<Fn>>> set;
  static std::string key;
  const std::string wanted = std::string(slot.name) + shape.label + (cold ? " cold" : "");
  if (key == wanted) return set;
  set.clear();
  key = wanted;
  set.push_back(std::make_unique<Problem<Fn>>(slot, shape, 1, 0));
  const double bytes = std::max(1.0, set[0]->bytes());
  const int64_t copies = cold ? std::clamp<int64_t>(static_cast<int64_t>(2.0 * static_cast<double>(cache_bytes) / bytes) + 1, 1, 4096) : 1;
  for (int64_t i = 1; i < copies; ++i) set.push_back(std::make_unique<Problem<Fn>>(slot, shape, static_cast<uint64_t>(i) + 1, 0));
  return set;
}

template <class Fn>
double written_bytes(const Problem<Fn>& problem) {
  if constexpr (requires { problem.written(); }) return problem.written();
  else return 0;
}

template <class Fn>
double updated_bytes(const Problem<Fn>& problem) {
  if constexpr (requires { problem.updated(); }) return problem.updated();
  else return 0;
}

template <class Fn>
void call(Problem<Fn>& problem, Fn fn) {
  if constexpr (requires { problem.call(fn); }) problem.call(fn);
  else problem.run(fn);
  benchmark::ClobberMemory();
}

// Throws unless both kernels write the same within the slot's tolerance.
template <class Fn>
void check_against(const SlotInfo& slot, const Shape& shape, Fn fn, Fn expected) {
  Problem<Fn> problem(slot, shape, 17, 0);
  problem.run(expected);
  const std::vector<testing::Output> want = problem.outputs();
  problem.run(fn);
  const std::vector<testing::Output> got = problem.outputs();
  for (size_t o = 0; o < want.size(); ++o)
    for (size_t i = 0; i < want[o].values.size(); ++i) {
      const double tolerance = want[o].tolerance[want[o].tolerance.size() == 1 ? 0 : i];
      if (want[o].values[i] == got[o].values[i] || std::abs(want[o].values[i] - got[o].values[i]) <= tolerance) continue;
      throw Error(ErrorCode::input, fmt::format("{} {}: {}[{}] is {}: expected {} within {}", slot.name, shape.label, want[o].name, i, got[o].values[i], want[o].values[i], tolerance),
                  "the candidate is wrong, or breaks the order of its sums");
    }
  if (!problem.guards_intact()) throw Error(ErrorCode::input, fmt::format("{} {}: the candidate writes outside its outputs", slot.name, shape.label), "check its tails");
}

// Flops at their peak where that takes longer than the bytes; the rest of the roofline is measured between the runs.
template <class Fn>
void run_slot(benchmark::State& state, const Run& run, const SlotInfo& slot, const Shape& shape, Tier tier, Fn fn, Fn rival = nullptr) {
  const double peak = run.peak_gflops[peak_of(slot.name)][static_cast<size_t>(tier)] * 1e9;
  double flops, bytes, written, updated;
  {
    const Problem<Fn> sample(slot, shape, 1, 0);
    flops = sample.flops();
    bytes = sample.bytes();
    written = written_bytes(sample);
    updated = updated_bytes(sample);
  }
  // Judged by the peaks of the cap, so that every tier meets the same data in the same state.
  const auto cap = static_cast<size_t>(run.cap);
  const bool by_memory = flops * run.read_gbs[cap] < bytes * run.peak_gflops[peak_of(slot.name)][cap];
  const bool cold = by_memory && bytes > 0.75 * static_cast<double>(run.l2_bytes);
  auto& set = problems<Fn>(slot, shape, cold, run.cache_bytes);
  std::unique_ptr<PlainRead> plain;
  if (by_memory) plain = std::make_unique<PlainRead>(build_kernel_table(run.cap), 1, bytes, set.size(), 5, written, updated);
  // What is too short for the clock runs several times.
  call(*set[0], fn);
  const double once = time_of([&] { call(*set[0], fn); });
  const int64_t repeats = cold ? 1 : std::clamp<int64_t>(static_cast<int64_t>(2e-5 / once), 1, 1000);
  size_t next = 0;
  std::vector<double> times, reads, rivals, ratios;
  const auto timed = [&](Fn f) { return time_of([&] { for (int64_t i = 0; i < repeats; ++i) call(*set[next], f); }); };
  while (state.KeepRunningBatch(repeats)) {
    const bool first = rival && times.size() % 2 == 1;
    double other = first ? timed(rival) : 0;
    // Both meet a problem that the other has not just touched.
    if (first && ++next == set.size()) next = 0;
    const double seconds = timed(fn);
    if (rival && !first) {
      if (++next == set.size()) next = 0;
      other = timed(rival);
    }
    if (rival) {
      rivals.push_back(other / double(repeats));
      ratios.push_back(other / seconds);
    }
    state.SetIterationTime(seconds);
    times.push_back(seconds / double(repeats));
    if (plain) reads.push_back(time_of([&] { for (int64_t i = 0; i < repeats; ++i) plain->read(next); }) / double(repeats));
    if (++next == set.size()) next = 0;
  }
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["flops"] = flops;
  state.counters["FLOP/s"] = benchmark::Counter(flops, rate);
  state.counters["B/s"] = benchmark::Counter(bytes, rate);
  if (plain) {
    report_against_read(state, bytes, *plain, times, reads);
  } else {
    state.counters["bytes"] = bytes;
    if (peak > 0) {
      state.counters["roof_fraction"] = flops / peak / median(times);
      state.counters["roof_best"] = flops / peak / *std::min_element(times.begin(), times.end());
    }
  }
  if (rival) {
    state.counters["ratio"] = median(rivals) / median(times);
    state.counters["ratio_q1"] = quantile(ratios, 0.25);
    state.counters["ratio_q3"] = quantile(ratios, 0.75);
  }
  state.SetLabel(cold ? "cold, " + std::to_string(set.size()) + " copies" : plain ? "in cache" : "warm");
}

template <class Fn>
void register_slot(const Run& run, const SlotInfo& slot, Fn KernelTable::*field) {
  for (const Shape& shape : Problem<Fn>::bench_shapes(slot)) {
    std::string label = shape.label;
    std::replace(label.begin(), label.end(), ' ', ',');
    for (const Variant& v : variants()) {
      if (std::find(run.tiers.begin(), run.tiers.end(), v.tier) == run.tiers.end()) continue;
      const KernelTable own = build_kernel_table(v.tier);
      KernelTable table = own;
      v.init(table);
      if (table.*field == own.*field) continue;
      const std::string name = "variant/" + v.name + "/" + slot.name + "/" + tier_name(v.tier) + "/" + label;
      benchmark::RegisterBenchmark(name.c_str(), [run, slot, shape, tier = v.tier, fn = table.*field, rival = own.*field](benchmark::State& state) {
        check_against<Fn>(slot, shape, fn, rival);
        run_slot<Fn>(state, run, slot, shape, tier, fn, rival);
      })->UseManualTime()->Unit(benchmark::kMicrosecond);
    }
    for (const Tier tier : run.tiers) {
      const KernelTable table = build_kernel_table(tier);
      if (table.origin[static_cast<size_t>(slot.id)] != tier) continue;  // the kernel of an ancestor: measured there
      const std::string name = std::string(slot.name) + "/" + tier_name(tier) + "/" + label;
      benchmark::RegisterBenchmark(name.c_str(), [run, slot, shape, tier, fn = table.*field](benchmark::State& state) {
        run_slot<Fn>(state, run, slot, shape, tier, fn);
      })->UseManualTime()->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace

void register_slots(const Run& run) {
#define SLOT(field, type, name, kind) register_slot<type>(run, {SlotId::field, name, #kind}, &KernelTable::field);
#include "kernels/kernel_slots.def"
#undef SLOT
}

}  // namespace thimble::bench
