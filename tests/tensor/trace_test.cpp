// Zones: what they count, how they nest, and that shapes give the flops that a hand count gives.
#include "tensor/trace.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>

#include "tensor/context.h"
#include "tensor/ops.h"
#include "tensor/tape.h"

namespace thimble {
namespace {

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

const ZoneRow* find_row(const std::vector<ZoneRow>& rows, const std::string& name) {
  for (const ZoneRow& r : rows)
    if (zone_row_name(r.key) == name) return &r;
  return nullptr;
}

TEST(Trace, CountsOnlyWhileItRuns) {
  Trace trace;
  { THIMBLE_ZONE(norm); }
  EXPECT_TRUE(trace.rows().empty());
  trace.start();
  for (int i = 0; i < 3; ++i) {
    THIMBLE_ZONE(norm);
    trace_work(10, 100);
    wait_ms(2);
  }
  trace.stop();
  EXPECT_FALSE(tracing());
  { THIMBLE_ZONE(norm); }
  const std::vector<ZoneRow> rows = trace.rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(zone_row_name(rows[0].key), "norm");
  EXPECT_EQ(rows[0].calls, 3);
  EXPECT_EQ(rows[0].flops, 30);
  EXPECT_EQ(rows[0].bytes, 300);
  EXPECT_GE(rows[0].nanoseconds, 6'000'000);
  EXPECT_LE(rows[0].nanoseconds, trace.nanoseconds());
}

TEST(Trace, NestedZonesKeepTheirOwnTimeAndWork) {
  Trace trace;
  trace.start();
  {
    THIMBLE_ZONE(loss);
    trace_work(1, 0);
    wait_ms(4);
    {
      THIMBLE_ZONE(norm);
      trace_work(2, 0);
      wait_ms(8);
    }
    {
      const ZoneScope product(ZoneKey{Zone::linear, Product::dx, Arithmetic::bf16, WeightFormat::q4, 64});
      trace_work(4, 0);
      wait_ms(8);
    }
  }
  trace.stop();
  const std::vector<ZoneRow> rows = trace.rows();
  const ZoneRow *loss = find_row(rows, "loss"), *norm = find_row(rows, "norm"),
                *dx = find_row(rows, "loss/dx/q4_g64/bf16");
  ASSERT_TRUE(loss && norm && dx);
  EXPECT_EQ(loss->flops, 1);
  EXPECT_EQ(norm->flops, 2);
  EXPECT_EQ(dx->flops, 4);
  // Sleeps last at least as long as they are told: without the inner 16 ms the outer zone keeps the rest.
  const int64_t sum = loss->nanoseconds + norm->nanoseconds + dx->nanoseconds;
  EXPECT_GE(norm->nanoseconds, 8'000'000);
  EXPECT_GE(dx->nanoseconds, 8'000'000);
  EXPECT_GE(loss->nanoseconds, 4'000'000);
  EXPECT_LE(sum, trace.nanoseconds());
  EXPECT_GE(sum, 20'000'000);
}

TEST(Trace, NamesAreDistinctAndSayFormatAndArithmetic) {
  std::set<std::string> names;
  for (int z = 0; z < kZoneCount; ++z) names.insert(zone_name(static_cast<Zone>(z)));
  EXPECT_EQ(names.size(), static_cast<size_t>(kZoneCount));
  EXPECT_STREQ(zone_name(Zone::embed), "embed");
  EXPECT_STREQ(zone_name(Zone::attention_bwd), "attention_bwd");
  EXPECT_STREQ(zone_name(Zone::sample), "sample");
  EXPECT_EQ(zone_row_name({Zone::attention, Product::none, Arithmetic::bf16}), "attention/bf16");
  EXPECT_EQ(zone_row_name({Zone::head, Product::gemv, Arithmetic::int8, WeightFormat::q8, 128}),
            "head/gemv/q8_g128/int8_act");
  EXPECT_EQ(zone_row_name({Zone::linear, Product::gemm, Arithmetic::f32, WeightFormat::q4, 0}),
            "linear/gemm/q4_row/f32");
  EXPECT_EQ(zone_row_name({Zone::loss, Product::dw, Arithmetic::bf16, WeightFormat::f32, 0}), "loss/dw/f32/bf16");
}

TEST(Trace, ProductsOutsideOfZonesBelongToTheOutermostOwner) {
  const ZoneKey key{Zone::count, Product::gemm, Arithmetic::f32, WeightFormat::f32, 0};
  Trace trace;
  trace.start();
  {
    const ZoneOwner head(Zone::head);
    const ZoneOwner linear(Zone::linear);
    const ZoneScope product(key);
  }
  {
    const ZoneOwner linear(Zone::linear_bwd);
    const ZoneScope product(key);
  }
  {
    THIMBLE_ZONE(loss);
    const ZoneOwner linear(Zone::linear);
    const ZoneScope product(key);
  }
  { const ZoneScope product(key); }
  trace.stop();
  std::vector<std::string> names;
  for (const ZoneRow& r : trace.rows()) names.push_back(zone_row_name(r.key));
  EXPECT_EQ(names, (std::vector<std::string>{"linear/gemm/f32/f32", "linear_bwd/gemm/f32/f32", "head/gemm/f32/f32",
                                             "loss", "loss/gemm/f32/f32"}));
}

TEST(Trace, MoreKindsOfProductsThanRowsAreCountedWithTheirZone) {
  Trace trace;
  trace.start();
  for (int group = 0; group < 400; ++group) {
    THIMBLE_ZONE(linear);
    const ZoneScope product(
        ZoneKey{Zone::linear, Product::gemm, Arithmetic::f32, WeightFormat::q4, static_cast<uint16_t>(group)});
    trace_work(1, 0);
  }
  trace.stop();
  double flops = 0;
  int64_t calls = 0;
  for (const ZoneRow& r : trace.rows()) {
    flops += r.flops;
    calls += r.calls;
  }
  EXPECT_EQ(flops, 400);
  EXPECT_EQ(calls, 800);
}

TEST(Trace, KeepsTheNewestEventsAndSaysHowManyItDropped) {
  Trace trace(10);
  trace.start();
  for (int i = 0; i < 12; ++i) {
    THIMBLE_ZONE(rope);
    THIMBLE_ZONE(add);
    trace_work(double(i), 0);
  }
  trace.stop();
  const std::vector<Trace::Event> events = trace.events();
  ASSERT_EQ(events.size(), 10u);
  EXPECT_EQ(trace.dropped(), 14);
  int64_t last = 0;
  for (const Trace::Event& e : events) {
    EXPECT_GE(e.start_ns, last);
    last = e.start_ns;
  }
  EXPECT_EQ(trace.event_name(events[0]), "rope");  // an outer zone comes before the one inside it
  EXPECT_EQ(trace.event_name(events[1]), "add");
  EXPECT_EQ(events[1].flops, 7);
  EXPECT_EQ(events[9].flops, 11);
}

TEST(Trace, BelongsToTheThreadThatStartedIt) {
  Trace here, there;
  here.start();
  std::thread other([&] {
    EXPECT_FALSE(tracing());
    there.start();
    { THIMBLE_ZONE(norm); }
    there.stop();
  });
  other.join();
  { THIMBLE_ZONE(add); }
  here.stop();
  ASSERT_EQ(here.rows().size(), 1u);
  ASSERT_EQ(there.rows().size(), 1u);
  EXPECT_EQ(zone_row_name(here.rows()[0].key), "add");
  EXPECT_EQ(zone_row_name(there.rows()[0].key), "norm");
}

// x [3, 8] through w [16, 8], forward and backward.
TEST(Trace, OpsCountFlopsAndBytesFromTheirShapes) {
  MemoryBudget budget;
  Context ctx(build_kernel_table(Tier::ref), 1, &budget);
  Tape tape;
  ctx.tape = &tape;
  std::vector<float> values(16 * 8, 0.5f), gradient(16 * 8), input(3 * 8, 0.25f), head(4 * 16, 0.125f);
  Weight w, h;
  w.rows = 16;
  w.cols = 8;
  w.data = values.data();
  w.grad = gradient.data();
  h.rows = 4;
  h.cols = 16;
  h.data = head.data();
  Var x;
  x.t = Tensor::matrix(input.data(), 3, 8);
  const int32_t labels[3] = {0, 1, 2};
  Trace trace;
  trace.start();
  const Var y = linear(ctx, x, &w, nullptr);
  linear_cross_entropy(ctx, y, &h, nullptr, labels, 3);
  backward(ctx);
  trace.stop();
  const std::vector<ZoneRow> rows = trace.rows();
  const ZoneRow* forward = find_row(rows, "linear/gemv/f32/f32");
  ASSERT_TRUE(forward);
  EXPECT_EQ(forward->flops, 2 * 3 * 16 * 8);
  EXPECT_EQ(forward->bytes, 4 * (16 * 8 + 3 * 8 + 3 * 16));
  const ZoneRow* dw = find_row(rows, "linear_bwd/dw/f32/f32");
  ASSERT_TRUE(dw);
  EXPECT_EQ(dw->flops, 2 * 3 * 16 * 8);
  EXPECT_EQ(dw->bytes, 4 * (3 * 16 + 3 * 8 + 16 * 8));
  EXPECT_FALSE(find_row(rows, "linear_bwd/dx/f32/f32"));  // nobody wants the gradient of x
  const ZoneRow *logits = find_row(rows, "loss/gemv/f32/f32"), *d_hidden = find_row(rows, "loss/dx/f32/f32");
  ASSERT_TRUE(logits && d_hidden);
  EXPECT_EQ(logits->flops, 2 * 3 * 4 * 16);
  EXPECT_EQ(d_hidden->flops, 2 * 3 * 4 * 16);
  EXPECT_FALSE(find_row(rows, "loss/dw/f32/f32"));
}

// Two sequences of 5 and 2 rows, 2 heads of 4 over 1 kv head.
TEST(Trace, AttentionCountsThePairsThatSeeOneAnother) {
  MemoryBudget budget;
  Context ctx(build_kernel_table(Tier::ref), 1, &budget);
  std::vector<float> data(7 * 8, 0.1f);
  Var q, kv;
  q.t = Tensor::matrix(data.data(), 7, 8);
  kv.t = Tensor::matrix(data.data(), 7, 4);
  const int32_t cu[3] = {0, 5, 7};
  AttentionSpec spec;
  spec.n_heads = 2;
  spec.n_kv_heads = 1;
  spec.head_dim = 4;
  spec.n_seqs = 2;
  spec.cu_seqlens = cu;
  const auto flops = [&] {
    Trace trace;
    trace.start();
    const ArenaScope scope(ctx.saved);
    attention(ctx, q, kv, kv, &spec);
    trace.stop();
    return trace.rows().at(0).flops;
  };
  const double per_pair = 2 * 2 * 4 * 2;  // two products, a multiply-add is two, head_dim, heads
  EXPECT_EQ(flops(), per_pair * (1 + 2 + 3 + 4 + 5 + 1 + 2));
  spec.window = 2;
  EXPECT_EQ(flops(), per_pair * (1 + 2 + 2 + 2 + 2 + 1 + 2));
  spec.window = 0;
  spec.causal = false;
  EXPECT_EQ(flops(), per_pair * (25 + 4));
}

}  // namespace
}  // namespace thimble
