// Whole models of random weights, which cost what trained ones cost: prefill, decode, and training steps. Without
// --shape a Llama shape of 134M parameters in a few formats; with it any shape of models/shapes. Items are tokens.
// Decode is judged by a plain read of all stored weights, interleaved; prefill and training by the peak of their
// arithmetic.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "models/random_model.h"
#include "tensor/trace.h"
#include "tools/cli/machine.h"
#include "train/workload.h"

namespace thimble::bench {
namespace {

constexpr int64_t kPrompt = 256, kDecode = 32;
constexpr const char* kDefaultShape = "llama-134m";

enum class ModelWork { prefill, decode, lora, full };

struct Variant {
  ModelWork work;
  StoredFormat format;
  Precision precision;
};

const char* work_name(ModelWork w) {
  return w == ModelWork::prefill  ? "prefill"
         : w == ModelWork::decode ? "decode"
         : w == ModelWork::lora   ? "lora"
                                  : "train";
}

// One at a time, kept between the benches of a format: filling takes longer than a decode step. A model that learns in
// all weights is not kept.
std::shared_ptr<Model> model_of(const std::string& shape, const StoredFormat& format, bool keep) {
  static std::shared_ptr<Model> kept;
  static std::string kept_name;
  const std::string name = shape + "/" + stored_format_name(format);
  if (keep && kept && kept_name == name) return kept;
  kept.reset();
  auto made = std::make_shared<Model>(random_model(shape, shape_config(shape), format));
  if (keep) {
    kept = made;
    kept_name = name;
  }
  return made;
}

// The highest resident size since the last call with reset. 0 where /proc is not as expected.
double peak_rss_bytes(bool reset) {
  if (reset) std::ofstream("/proc/self/clear_refs") << "5";
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    double kib = 0;
    if (key == "VmHWM:" && status >> kib) return kib * 1024;
    status.ignore(1 << 12, '\n');
  }
  return 0;
}

void run_model(benchmark::State& state, const Run& run, const std::string& shape, const Variant& v) {
  const KernelTable table = run.table();
  peak_rss_bytes(true);
  const std::shared_ptr<Model> model = model_of(shape, v.format, v.work != ModelWork::full);
  MemoryBudget budget;
  Context ctx(table, run.threads, &budget);
  ctx.precision = v.precision;
  WorkOptions options;
  options.kind = v.work == ModelWork::prefill  ? WorkKind::prefill
                 : v.work == ModelWork::decode ? WorkKind::decode
                                               : WorkKind::train;
  options.prompt_tokens = std::min(kPrompt, model->config.max_positions / 2);
  options.tokens = kDecode;
  options.full = v.work == ModelWork::full;
  Workload load(*model, ctx, options);
  const bool decode = v.work == ModelWork::decode;
  const double stored = static_cast<double>(model->stored_bytes());
  std::optional<PlainRead> plain;
  if (decode) plain.emplace(table, run.threads, stored, 1, 8);

  // Untimed, and counted: flops and bytes of a run do not change.
  Trace trace;
  load.prepare();
  trace.start();
  load.run();
  trace.stop();
  double flops = 0, bytes = 0;
  for (const ZoneRow& row : trace.rows()) {
    flops += row.flops;
    bytes += row.bytes;
  }
  std::vector<double> runs, reads;
  for (auto _ : state) {
    double seconds = 0;
    for (int64_t i = 0; i < (decode ? kDecode : 1); ++i) {
      load.prepare();
      runs.push_back(time_of([&] { load.run(); }));
      seconds += runs.back();
      if (plain) reads.push_back(time_of([&] { plain->read(0); }));
    }
    state.SetIterationTime(seconds / static_cast<double>(decode ? kDecode : 1));
  }
  state.counters["tokens/s"] = static_cast<double>(load.tokens_per_run()) / median(runs);
  state.counters["flops"] = flops;
  state.counters["bytes"] = bytes;
  state.counters["peak_rss"] = peak_rss_bytes(false) - (plain ? static_cast<double>(plain->resident_bytes()) : 0.0);
  if (plain) {
    state.counters["read_GB/s"] = plain->bytes() / median(reads) / 1e9;
    state.counters["roof_fraction"] = median(reads) / median(runs);
  } else {
    const Peak kind = v.precision == Precision::int8_act ? kPeakInt8
                      : v.precision == Precision::bf16   ? kPeakBf16
                                                         : kPeakF32;
    state.counters["roof_fraction"] =
        flops / median(runs) / 1e9 / (run.peak_gflops[kind][static_cast<size_t>(run.cap)] * run.threads);
  }
  state.SetLabel(shape + ", " + std::to_string(static_cast<int64_t>(stored / 1e6)) + " MB of weights");
}

void add(const Run& run, const std::string& shape, bool named, const Variant& v) {
  const std::string name = std::string("model_") + work_name(v.work) + (named ? "/" + shape : "") + "/" +
                           stored_format_name(v.format) + "/" + precision_name(v.precision) +
                           "/threads=" + std::to_string(run.threads);
  benchmark::RegisterBenchmark(name.c_str(), [run, shape, v](benchmark::State& s) { run_model(s, run, shape, v); })
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->MinTime(v.work == ModelWork::decode ? 0.1 : 1.0);
}

}  // namespace

void register_model(const Run& run) {
  const StoredFormat f32{WeightFormat::f32, 0}, bf16{WeightFormat::bf16, 0}, q8{WeightFormat::q8, 128},
      q4{WeightFormat::q4, 128};
  const bool named = is_model_shape(run.shape);
  const std::string shape = named ? run.shape : kDefaultShape;
  struct Product {
    StoredFormat format;
    Precision precision;
  };
  std::vector<Product> products = {{f32, Precision::f32},
                                   {q8, Precision::f32},
                                   {q8, Precision::int8_act},
                                   {q4, Precision::f32},
                                   {q4, Precision::int8_act}};
  if (named) {
    products.insert(products.begin() + 1, {bf16, Precision::bf16});
    products.push_back({{WeightFormat::q4, 32}, Precision::int8_act});
  }
  const ModelConfig config = shape_config(shape).config;
  const int64_t there = describe_machine().memory_available_bytes;
  const auto fits = [&](const StoredFormat& format, int64_t times) {
    return random_model_bytes(config, format) * times < there / 10 * 9;
  };
  for (const Product& p : products)
    for (const ModelWork work :
         {ModelWork::prefill, ModelWork::decode})  // decode reads as many bytes again beside the weights
      if (fits(p.format, work == ModelWork::decode ? 2 : 1)) add(run, shape, named, {work, p.format, p.precision});
  if (!named) return;
  for (const StoredFormat& format : {bf16, q8, q4})
    if (fits(format, 2)) add(run, shape, named, {ModelWork::lora, format, Precision::bf16});
  for (const Precision precision : {Precision::f32, Precision::bf16})
    if (fits(f32, 5))
      add(run, shape, named, {ModelWork::full, f32, precision});  // gradients and two moments; activations
}

}  // namespace thimble::bench
