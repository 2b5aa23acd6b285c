// The ops that are bound by memory, as models and the trainer call them: 8192 x 1024 floats that are in no cache, against
// plain reads, copies and in-place changes of as many bytes on as many threads in the same loop.
#include <benchmark/benchmark.h>

#include "bench/bench.h"
#include "bench/plain_read.h"
#include "tensor/ops.h"
#include "tensor/rng.h"
#include "train/optimizer.h"

namespace thimble::bench {
namespace {

constexpr int64_t kRows = 8192, kCols = 1024, kNumel = kRows * kCols, kVocab = 32000, kHeads = 16;

struct Traffic {  // bytes per element
  double read, written, updated;
};

struct Data {
  Context ctx;
  Buffer a = random_floats(kNumel, 1), b = random_floats(kNumel, 2), dy = random_floats(kNumel, 3);
  Buffer gain = random_floats(kCols, 4), gain_grad = random_floats(kCols, 5), table = random_floats(kRows * kCols / kHeads, 6);
  RandomWeight embedding{WeightFormat::bf16, kVocab, kCols, 0, 7};
  Buffer embedding_grad = random_floats(kVocab * kCols, 8);
  Weight w;
  std::vector<int32_t> ids, positions;
  Tape tape;

  Data(const KernelTable& kernels, int threads) : ctx(kernels, threads, nullptr) {
    w.rows = 1;
    w.cols = kCols;
    w.data = gain.data();
    w.grad = gain_grad.f32();
    Philox rng(3, 1);
    for (int64_t i = 0; i < kRows; ++i) {
      ids.push_back(static_cast<int32_t>(rng.below(kVocab)));
      positions.push_back(static_cast<int32_t>(i));
    }
  }
  Var value(const Buffer& of) {
    Var x;
    x.t = Tensor::matrix(of.f32(), kRows, kCols);
    if (ctx.tape) x.id = ctx.tape->add_value(x.t);
    return x;
  }
};

using Op = Var (*)(Data&);

// chill() empties the caches; what stands before it is not timed.
template <class Chill>
double forward(Data& d, Op op, const Chill& chill) {
  const ArenaScope saved(d.ctx.saved);
  d.ctx.tape = nullptr;
  chill();
  return time_of([&] { benchmark::DoNotOptimize(op(d).t.data); });
}

template <class Chill>
double backward_of(Data& d, Op op, const Chill& chill) {
  const ArenaScope saved(d.ctx.saved), grads(d.ctx.grads);
  d.ctx.tape = &d.tape;
  d.tape.clear();
  const Var y = op(d);
  d.tape.value(y.id).grad = d.dy.f32();
  d.tape.value(y.id).written = true;
  chill();
  return time_of([&] { run_backward(d.ctx, 0); });
}

Var embed_bf16(Data& d) { return embed(d.ctx, &d.embedding.weight, d.ids.data(), kRows); }
// The gradient of an embedding in f32, whose rows the forward does not need here.
Var embed_grad(Data& d) {
  d.embedding.weight.grad = d.embedding_grad.f32();
  d.embedding.weight.grad_written = true;
  return embed_bf16(d);
}
Var rms(Data& d) { return rms_norm(d.ctx, d.value(d.a), &d.w, 1e-5f); }
Var layer(Data& d) { return layer_norm(d.ctx, d.value(d.a), &d.w, nullptr, 1e-5f); }
Var silu_gated(Data& d) { return gated(d.ctx, d.value(d.a), d.value(d.b), Activation::silu); }
Var gelu(Data& d) { return activation(d.ctx, d.value(d.a), Activation::gelu_tanh); }
Var sum(Data& d) { return add(d.ctx, d.value(d.a), d.value(d.b)); }
Var rotate(Data& d) {
  return rope(d.ctx, d.value(d.a), kHeads, kCols / kHeads, kCols / kHeads, false, d.table.f32(), d.table.f32() + kRows * kCols / kHeads / 2,
              d.positions.data());
}

template <class Body>
void measure(benchmark::State& state, const Run& run, int threads, const Traffic& t, const Body& body) {
  const KernelTable table = run.table();
  Data data(table, threads);
  const double n = double(kNumel), bytes = n * (t.read + t.written + 2 * t.updated);
  const PlainRead plain(table, threads, bytes, 1, 5, n * t.written, n * t.updated), rest(table, threads, 2.0 * double(run.cache_bytes), 1, 6);
  const auto chill = [&] { rest.read(0); };
  std::vector<double> times, reads;
  for (auto _ : state) {
    times.push_back(body(data, chill));
    chill();
    reads.push_back(time_of([&] { plain.read(0); }));
    state.SetIterationTime(times.back());
  }
  report_against_read(state, bytes, plain, times, reads);
  state.SetLabel("cold, 8192 x 1024, roof: reads and copies of as many bytes in the same run");
}

}  // namespace

void register_ops(const Run& run) {
  const std::vector<int> thread_counts = run.thread_counts();
  const auto add_row = [&](const char* name, const Traffic& traffic, auto body) {
    for (const int threads : thread_counts) {
      const std::string full = std::string("driver_op_") + name + "/threads=" + std::to_string(threads);
      benchmark::RegisterBenchmark(full.c_str(), [=](benchmark::State& s) { measure(s, run, threads, traffic, body); })
          ->UseManualTime()
          ->Iterations(30)
          ->Unit(benchmark::kMicrosecond);
    }
  };
  const auto forward_row = [&](const char* name, const Traffic& traffic, Op op) {
    add_row(name, traffic, [op](Data& d, const auto& chill) { return forward(d, op, chill); });
  };
  const auto backward_row = [&](const char* name, const Traffic& traffic, Op op) {
    add_row(name, traffic, [op](Data& d, const auto& chill) { return backward_of(d, op, chill); });
  };
  forward_row("rms_norm", {4, 4, 0}, rms);
  forward_row("layer_norm", {4, 4, 0}, layer);
  forward_row("silu_gated", {8, 4, 0}, silu_gated);
  forward_row("gelu_tanh", {4, 4, 0}, gelu);
  forward_row("add", {8, 4, 0}, sum);
  forward_row("rope", {0.25, 0, 4}, rotate);
  forward_row("embed_bf16", {2, 4, 0}, embed_bf16);
  backward_row("rms_norm_bwd", {8, 4, 0}, rms);
  backward_row("layer_norm_bwd", {8, 4, 0}, layer);
  backward_row("silu_gated_bwd", {12, 8, 0}, silu_gated);
  backward_row("gelu_tanh_bwd", {8, 4, 0}, gelu);
  backward_row("embed_bwd", {4, 0, 4}, embed_grad);
  const auto optimizer_row = [&](const char* name, const Traffic& traffic, Moments moments) {
    add_row(name, traffic, [moments](Data& d, const auto& chill) {
      Weight& w = d.w;
      w.rows = kRows;
      w.data = d.a.data();
      w.grad = d.b.f32();
      Adamw adamw({Parameter{"w", &w, false}}, nullptr, moments);
      adamw.step(d.ctx, {}, 1e-3, 1);  // the moments exist
      w.grad_written = true;
      chill();
      return time_of([&] { adamw.step(d.ctx, {}, 1e-3, 1); });
    });
  };
  optimizer_row("adamw", {4, 0, 12}, Moments::f32);
  optimizer_row("adamw_q8", {4, 0, 6}, Moments::q8);
}

}  // namespace thimble::bench
