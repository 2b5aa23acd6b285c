// Attention of one token over a key/value cache, as the attention op runs it: MHA (one query head per key/value head) and
// GQA with eight, in every type of cache. Sequences rotate so that no cache holds them, and a plain read of as many bytes
// runs interleaved; ratios are of medians.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "tensor/ops.h"

namespace thimble::bench {
namespace {

constexpr int64_t kKvHeads = 8, kHeadDim = 64;

void decode(benchmark::State& state, const Run& run, int64_t group, KvType type, int64_t keys, int threads) {
  Context ctx(build_kernel_table(run.cap), threads, nullptr);
  KvLayout layout;
  layout.type = type;
  layout.n_kv_heads = kKvHeads;
  layout.head_dim = kHeadDim;
  layout.capacity = keys;
  const int64_t cols = group * kKvHeads * kHeadDim, kv_cols = kKvHeads * kHeadDim;
  const int64_t scale_bytes = type == KvType::int8 ? 4 : 0;
  const double bytes = 2.0 * double(keys * kKvHeads * (kHeadDim * layout.element_bytes() + scale_bytes));
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
  spec.head_dim = kHeadDim;
  spec.n_seqs = 1;
  spec.cu_seqlens = cu;
  spec.scale = 0.125f;
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
  state.SetLabel("cold, 8 key/value heads of 64, roof: a plain read in the same run");
}

}  // namespace

void register_attention(const Run& run) {
  std::vector<int> thread_counts = {1};
  if (run.threads > 1) thread_counts.push_back(run.threads);
  for (const int threads : thread_counts)
    for (const int64_t group : {1, 8})
      for (const KvType type : {KvType::f32, KvType::f16, KvType::int8})
        for (const int64_t keys : {512, 2048, 8192}) {
          const std::string name = std::string("driver_attention_decode/") + (group == 1 ? "mha" : "gqa8") + "/" +
                                   kv_type_name(type) + "/" + std::to_string(keys) + "/threads=" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { decode(s, run, group, type, keys, threads); })
              ->UseManualTime()->Unit(benchmark::kMicrosecond);
        }
}

}  // namespace thimble::bench
