// Attention as the op runs it. One token over a key/value cache: MHA (one query head per key/value head) and GQA with
// eight, in every type of cache; sequences rotate so that no cache holds them, and a plain read of as many bytes runs
// interleaved; ratios are of medians. Whole sequences, forward and backward: by the arithmetic of the pairs that see one
// another, against the peak of the precision.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "tensor/ops_internal.h"

namespace thimble::bench {
namespace {

constexpr int64_t kKvHeads = 8;

void decode(benchmark::State& state, const Run& run, int64_t group, KvType type, int64_t keys, int64_t head_dim, int threads) {
  Context ctx(run.table(), threads, nullptr);
  KvLayout layout;
  layout.type = type;
  layout.n_kv_heads = kKvHeads;
  layout.head_dim = head_dim;
  layout.capacity = keys;
  const int64_t cols = group * kKvHeads * head_dim, kv_cols = kKvHeads * head_dim;
  const int64_t scale_bytes = type == KvType::int8 ? 4 : 0;
  const double bytes = 2.0 * double(keys * kKvHeads * (head_dim * layout.element_bytes() + scale_bytes));
  const int64_t copies = std::max<int64_t>(2, static_cast<int64_t>(4.0 * double(run.cache_bytes) / bytes) + 1);
  const Buffer store(static_cast<size_t>(copies * layout.sequence_bytes()));
  std::vector<std::byte*> sequences;
  const Buffer k = random_floats(keys * kv_cols, 1), v = random_floats(keys * kv_cols, 2), q = random_floats(cols, 3);
  for (int64_t i = 0; i < copies; ++i) {
    sequences.push_back(static_cast<std::byte*>(store.data()) + i * layout.sequence_bytes());
    kv_store(ctx, layout, sequences.back(), 0, keys, k.f32(), v.f32());
  }
  const PlainRead plain(ctx.kernels, threads, bytes, static_cast<size_t>(copies), 4);

  const int32_t cu[2] = {0, 1}, length = static_cast<int32_t>(keys - 1);
  AttentionSpec spec;
  spec.n_heads = group * kKvHeads;
  spec.n_kv_heads = kKvHeads;
  spec.head_dim = head_dim;
  spec.n_seqs = 1;
  spec.cu_seqlens = cu;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  spec.cache = &layout;
  spec.cache_len = &length;
  Var query;
  query.t = Tensor::matrix(q.f32(), 1, cols);
  std::vector<double> times, reads;
  size_t next = 0;
  for (auto _ : state) {
    spec.cache_seqs = &sequences[next];
    times.push_back(time_of([&] {
      const ArenaScope scope(ctx.saved);
      benchmark::DoNotOptimize(attention(ctx, query, Var{}, Var{}, &spec).t.data);
    }));
    reads.push_back(time_of([&] { plain.read(next); }));
    state.SetIterationTime(times.back());
    next = (next + 1) % sequences.size();
  }
  report_against_read(state, bytes, plain, times, reads);
  state.SetLabel("cold, 8 key/value heads, roof: a plain read in the same run");
}

// Whole sequences of `tokens`.
struct Whole {
  const char* name;
  int64_t tokens, heads, kv_heads, head_dim;
  int64_t window = 0;
  float softcap = 0;
  bool alibi = false, causal = true;
};
const Whole kWhole[] = {
    {"128", 128, 8, 8, 64},
    {"512", 512, 8, 8, 64},
    {"2048", 2048, 8, 8, 64},
    {"8192", 8192, 2, 2, 64},
    {"2048/heads=1", 2048, 1, 1, 64},
    {"512/gqa8", 512, 16, 2, 64},
    {"2048/gqa8", 2048, 16, 2, 64},
    {"512/d80", 512, 8, 8, 80},
    {"2048/d80", 2048, 8, 8, 80},
    {"512/d96", 512, 8, 8, 96},
    {"2048/d96", 2048, 8, 8, 96},
    {"512/d128", 512, 8, 8, 128},
    {"2048/d128", 2048, 8, 8, 128},
    {"512/d256", 512, 4, 4, 256},
    {"2048/d256", 2048, 4, 4, 256},
    {"2048/window256", 2048, 8, 8, 64, 256},
    {"8192/window1024", 8192, 2, 2, 64, 1024},
    {"2048/softcap", 2048, 8, 8, 64, 0, 50.0f},
    {"2048/alibi", 2048, 8, 8, 64, 0, 0.0f, true},
    {"512/bidirectional", 512, 8, 8, 64, 0, 0.0f, false, false},
};

void whole(benchmark::State& state, const Run& run, const Whole& w, Precision precision, bool backward, int threads) {
  Context ctx(run.table(), threads, nullptr);
  ctx.precision = precision;
  Tape tape;
  if (backward) ctx.tape = &tape;
  const int64_t cols = w.heads * w.head_dim, kv_cols = w.kv_heads * w.head_dim;
  const Buffer q = random_floats(w.tokens * cols, 1), k = random_floats(w.tokens * kv_cols, 2),
               v = random_floats(w.tokens * kv_cols, 3), dy = random_floats(w.tokens * cols, 4);
  const int32_t cu[2] = {0, static_cast<int32_t>(w.tokens)};
  std::vector<float> slopes(static_cast<size_t>(w.heads));
  for (int64_t h = 0; h < w.heads; ++h) slopes[static_cast<size_t>(h)] = 0.25f / static_cast<float>(h + 1);
  AttentionSpec spec;
  spec.n_heads = w.heads;
  spec.n_kv_heads = w.kv_heads;
  spec.head_dim = w.head_dim;
  spec.n_seqs = 1;
  spec.cu_seqlens = cu;
  spec.scale = 3.0f / std::sqrt(static_cast<float>(w.head_dim));  // uniform inputs have a third of the usual variance
  spec.window = w.window;
  spec.softcap = w.softcap;
  spec.causal = w.causal;
  spec.alibi = w.alibi ? slopes.data() : nullptr;
  double pairs = 0;
  for (int64_t t = 0; t < w.tokens; ++t) {
    const int64_t seen = w.causal ? t + 1 : w.tokens;
    pairs += static_cast<double>(w.window > 0 ? std::min(seen, w.window) : seen);
  }
  const double flops = (backward ? 10.0 : 4.0) * pairs * static_cast<double>(cols);
  std::vector<double> times;
  for (auto _ : state) {
    const ArenaScope saved(ctx.saved), grads(ctx.grads);
    tape.clear();
    Var in[3];
    in[0].t = Tensor::matrix(q.f32(), w.tokens, cols);
    in[1].t = Tensor::matrix(k.f32(), w.tokens, kv_cols);
    in[2].t = Tensor::matrix(v.f32(), w.tokens, kv_cols);
    for (Var& x : in)
      if (backward) x.id = tape.add_value(x.t);
    Var y;
    double seconds = time_of([&] { y = attention(ctx, in[0], in[1], in[2], &spec); });
    benchmark::DoNotOptimize(y.t.data);
    if (backward) {
      grad_share(ctx, y.id, dy.f32());
      seconds = time_of([&] { attention_backward(ctx, tape.node(0)); });
    }
    times.push_back(seconds);
    state.SetIterationTime(seconds);
  }
  const double peak =
      run.peak_gflops[precision == Precision::bf16 ? kPeakBf16 : kPeakF32][static_cast<int>(run.cap)] * 1e9 * threads;
  state.counters["flops"] = flops;
  state.counters["FLOP/s"] = flops / median(times);
  state.counters["roof_fraction"] = flops / peak / median(times);
  state.counters["roof_best"] = flops / peak / *std::min_element(times.begin(), times.end());
}

}  // namespace

void register_attention(const Run& run) {
  const std::vector<int> thread_counts = run.thread_counts();
  const auto add = [](const std::string& name, int threads, const auto& body) {
    benchmark::RegisterBenchmark((name + "/threads=" + std::to_string(threads)).c_str(), body)
        ->UseManualTime()->Unit(benchmark::kMicrosecond);
  };
  for (const int threads : thread_counts) {
    for (const int64_t group : {1, 8})
      for (const KvType type : {KvType::f32, KvType::f16, KvType::int8})
        for (const int64_t keys : {512, 2048, 8192})
          for (const int64_t dim : {64, 80, 96, 128, 256}) {
            if (dim != 64 && keys != 2048) continue;
            const std::string name = std::string("driver_attention_decode/") + (group == 1 ? "mha" : "gqa8") + "/" +
                                     kv_type_name(type) + "/" + std::to_string(keys) +
                                     (dim == 64 ? "" : "/d" + std::to_string(dim));
            add(name, threads, [=](benchmark::State& s) { decode(s, run, group, type, keys, dim, threads); });
          }
    for (const bool backward : {false, true})
      for (const Precision precision : {Precision::f32, Precision::bf16})
        for (const Whole& w : kWhole) {
          const std::string name = std::string("driver_attention_") + (backward ? "backward/" : "prefill/") +
                                   (precision == Precision::f32 ? "f32/" : "bf16/") + w.name;
          add(name, threads, [=](benchmark::State& s) { whole(s, run, w, precision, backward, threads); });
        }
  }
}

}  // namespace thimble::bench
