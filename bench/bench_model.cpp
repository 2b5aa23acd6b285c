// Prefill and decode of a whole model of random weights: a Llama shape of 134M parameters (hidden 768, ffn 2048, 12 layers,
// 12 heads, vocabulary 32000), in f32, q8 and q4 with groups of 128. Random weights cost what trained ones cost.
// Items are tokens. Decode is judged by a plain read of all stored weights, interleaved.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>

#include "bench/bench.h"
#include "bench/random_weights.h"
#include "models/generator.h"
#include "models/transformer.h"
#include "tensor/parallel.h"

namespace thimble::bench {
namespace {

constexpr int64_t kPrefill = 256, kDecode = 32, kCapacity = kPrefill + kDecode + 1;

ModelConfig llama_134m() {
  ModelConfig c;
  c.family = "llama";
  c.vocab_size = 32000;
  c.hidden = c.embed_dim = 768;
  c.intermediate = 2048;
  c.n_layers = 12;
  c.n_heads = c.n_kv_heads = 12;
  c.head_dim = 64;
  c.max_positions = 2048;
  c.rope.dims = 64;
  return c;
}

struct RandomModel {
  Model model;
  std::vector<std::unique_ptr<RandomWeight>> matrices;
  std::vector<Buffer> vectors;

  RandomModel(const KernelTable& kernels, WeightFormat format, int64_t group) {
    model.config = llama_134m();
    model.weights.layers.resize(static_cast<size_t>(model.config.n_layers));
    for (int r = 0; r < kRoleCount; ++r) {
      const auto role = static_cast<Role>(r);
      const RoleShape shape = role_shape(model.config, role);
      if (shape.rows == 0) continue;
      const int64_t layers = role_is_layer(role) ? model.config.n_layers : 1;
      for (int64_t l = 0; l < layers; ++l) model.weights.at(role, l) = make(kernels, shape, format, group);
    }
  }

 private:
  Weight make(const KernelTable& kernels, const RoleShape& shape, WeightFormat format, int64_t group) {
    if (!shape.vector) {
      matrices.push_back(std::make_unique<RandomWeight>(kernels, format, shape.rows, shape.cols, group, matrices.size()));
      return matrices.back()->weight;
    }
    vectors.emplace_back(static_cast<size_t>(shape.cols) * sizeof(float));  // norms: ones
    std::fill_n(vectors.back().f32(), shape.cols, 1.0f);
    Weight w;
    w.rows = 1;
    w.cols = shape.cols;
    w.data = vectors.back().data();
    return w;
  }
};

// One at a time, kept between the benches of a format: packing takes longer than a decode step.
RandomModel& model_of(const KernelTable& kernels, WeightFormat format, int64_t group) {
  static std::unique_ptr<RandomModel> kept;
  static WeightFormat kept_format = WeightFormat::f32;
  if (!kept || kept_format != format) {
    kept.reset();
    kept = std::make_unique<RandomModel>(kernels, format, group);
    kept_format = format;
  }
  return *kept;
}

std::vector<int32_t> random_ids(int64_t n, int64_t vocab) {
  FastRandom random(9);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.next() % static_cast<uint64_t>(vocab));
  return ids;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

void run_model(benchmark::State& state, const Run& run, WeightFormat format, bool int8_act, bool decode) {
  const KernelTable table = build_kernel_table(run.cap);
  RandomModel& random = model_of(table, format, is_tiled(format) ? 128 : 0);
  MemoryBudget budget;
  Context ctx(table, run.threads, &budget);
  ctx.precision = int8_act ? Precision::int8_act : Precision::f32;
  Transformer transformer(random.model, kCapacity);
  const std::vector<int32_t> ids = random_ids(kPrefill + kDecode, random.model.config.vocab_size);
  const double stored = static_cast<double>(random.model.stored_bytes());
  Buffer plain;
  const int64_t share = static_cast<int64_t>(stored) / 4 / run.threads;
  if (decode) plain = random_floats(share * run.threads, 8);
  std::vector<double> prefills, steps, reads;
  for (auto _ : state) {
    Generator generator(transformer, ctx, kCapacity);
    double start = now();
    generator.feed(ids.data(), kPrefill);
    prefills.push_back(now() - start);
    if (!decode) {
      state.SetIterationTime(prefills.back());
      continue;
    }
    double seconds = 0;
    for (int64_t i = 0; i < kDecode; ++i) {
      start = now();
      generator.feed(&ids[static_cast<size_t>(kPrefill + i)], 1);
      steps.push_back(now() - start);
      seconds += steps.back();
      start = now();
      parallel_for(run.threads, run.threads, [&](int64_t t, int) {
        float sum;
        table.probe_read({share, plain.f32() + t * share, &sum});
        benchmark::DoNotOptimize(sum);
      });
      reads.push_back(now() - start);
    }
    state.SetIterationTime(seconds / static_cast<double>(kDecode));
  }
  if (decode) {
    state.counters["tokens/s"] = 1.0 / median(steps);
    state.counters["bytes"] = stored;
    state.counters["read_GB/s"] = static_cast<double>(share * run.threads) * 4 / median(reads) / 1e9;
    state.counters["roof_fraction"] = median(reads) / median(steps);
  } else {
    const int64_t head = random.model.config.vocab_size * random.model.config.hidden;
    // The head runs for the last token only; the embedding is a lookup.
    const double flops = 2.0 * static_cast<double>(kPrefill) * static_cast<double>(random.model.parameters() - 2 * head);
    const double peak = run.peak_gflops[int8_act ? kPeakInt8 : kPeakF32][static_cast<size_t>(run.cap)] * run.threads;
    state.counters["tokens/s"] = static_cast<double>(kPrefill) / median(prefills);
    state.counters["flops"] = flops;
    state.counters["roof_fraction"] = flops / median(prefills) / 1e9 / peak;
  }
  state.SetLabel("llama 134M, " + std::to_string(static_cast<int64_t>(stored / 1e6)) + " MB of weights");
}

}  // namespace

void register_model(const Run& run) {
  struct Variant {
    WeightFormat format;
    bool int8_act;
    const char* name;
  };
  for (const Variant& v : {Variant{WeightFormat::f32, false, "f32/f32"}, Variant{WeightFormat::q8, false, "q8_g128/f32"},
                           Variant{WeightFormat::q8, true, "q8_g128/int8_act"}, Variant{WeightFormat::q4, false, "q4_g128/f32"},
                           Variant{WeightFormat::q4, true, "q4_g128/int8_act"}}) {
    for (const bool decode : {false, true}) {
      const std::string name = std::string(decode ? "model_decode/" : "model_prefill/") + v.name + "/threads=" + std::to_string(run.threads);
      benchmark::RegisterBenchmark(name.c_str(), [run, v, decode](benchmark::State& s) { run_model(s, run, v.format, v.int8_act, decode); })
          ->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(decode ? 0.1 : 1.0);
    }
  }
}

}  // namespace thimble::bench
