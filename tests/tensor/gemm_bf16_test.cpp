// The bf16 products: against double precision on the rounded operands within the rounding of one chain, and on the given
// operands within the rounding of both operands; rows that depend neither on the rows beside them nor on the threads; slices of
// the depth; equal bits wherever vdpbf16ps is not used; weights of every format; the ops that follow the policy.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/isa.h"
#include "tensor/gemm.h"
#include "tensor/ops_internal.h"
#include "tests/kernels/problems_bf16.h"

namespace thimble {
namespace {

using testing::bf16_rounded;
using testing::Random;
using testing::WeightData;

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::q8,
                                     WeightFormat::q4, WeightFormat::q2};

std::vector<KernelTable> supported_tables() {
  std::vector<KernelTable> tables;
  for (int i = 0; i < kTierCount; ++i)
    if (tier_supported(static_cast<Tier>(i))) tables.push_back(build_kernel_table(static_cast<Tier>(i)));
  return tables;
}

std::vector<float> random_floats(Random& random, int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = random.normal();
  return v;
}

// Scratch of exactly the promised size at an odd address, with a guard behind it.
struct Scratch {
  explicit Scratch(size_t n) : bytes(n + 65, 0xA5), size(n) {}
  void* data() { return bytes.data() + 1; }
  bool intact() const {
    return std::all_of(bytes.begin() + 1 + static_cast<std::ptrdiff_t>(size), bytes.end(),
                       [](uint8_t b) { return b == 0xA5; });
  }
  std::vector<uint8_t> bytes;
  size_t size;
};

using Floats = std::vector<float>;

Floats output(int64_t n, const Floats* start) { return start ? *start : Floats(static_cast<size_t>(n), 99.0f); }

Floats nt(const KernelTable& t, int threads, int64_t m, const Floats& x, WeightFormat f, const WeightView& v,
          const Floats* start = nullptr) {
  Floats y = output(m * v.rows, start);
  Scratch scratch(gemm_nt_bf16_scratch_bytes(t, threads, m, v));
  gemm_nt_bf16({&t, threads, scratch.data(), scratch.size}, m, x.data(), v.cols, f, v, y.data(), v.rows, start != nullptr);
  EXPECT_TRUE(scratch.intact());
  return y;
}

Floats nn(const KernelTable& t, int threads, int64_t m, const Floats& dy, WeightFormat f, const WeightView& v,
          const Floats* start = nullptr) {
  Floats dx = output(m * v.cols, start);
  Scratch scratch(gemm_nn_bf16_scratch_bytes(t, threads, m, v));
  gemm_nn_bf16({&t, threads, scratch.data(), scratch.size}, m, dy.data(), v.rows, f, v, dx.data(), v.cols, start != nullptr);
  EXPECT_TRUE(scratch.intact());
  return dx;
}

Floats tn(const KernelTable& t, int threads, int64_t m, int64_t n, int64_t k, const Floats& dy, const Floats& x,
          const Floats* start = nullptr) {
  Floats dw = output(n * k, start);
  Scratch scratch(gemm_tn_bf16_scratch_bytes(t, threads, m, n, k));
  gemm_tn_bf16({&t, threads, scratch.data(), scratch.size}, m, dy.data(), n, n, x.data(), k, k, dw.data(), k,
               start != nullptr);
  EXPECT_TRUE(scratch.intact());
  return dw;
}

// Rounded operands a', b': |c - (c0 + sum a' b')| <= 2 (depth + 2) 2^-24 (|c0| + sum |a' b'|). And a' = a (1 + e) with
// |e| <= 2^-8 (eight significant bits, to nearest), so a' b' differs from a b by at most (2^-7 + 2^-16) |a b|.
template <class A, class B>
void expect_product(const Floats& c, const Floats* c0, int64_t m, int64_t n, int64_t depth, const A& a, const B& b) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const size_t at = static_cast<size_t>(i * n + j);
      const double start = c0 ? (*c0)[at] : 0.0;
      double rounded = start, given = start, rounded_size = std::fabs(start), given_size = 0;
      for (int64_t p = 0; p < depth; ++p) {
        const double x = a(i, p), y = b(p, j);
        const double product = static_cast<double>(bf16_rounded(a(i, p))) * bf16_rounded(b(p, j));
        rounded += product;
        rounded_size += std::fabs(product);
        given += x * y;
        given_size += std::fabs(x * y);
      }
      const double sum = testing::sum_tolerance(depth, rounded_size);
      ASSERT_NEAR(c[at], rounded, sum) << i << " " << j;
      ASSERT_NEAR(c[at], given, sum + (0x1p-7 + 0x1p-16) * given_size) << i << " " << j;
    }
  }
}

TEST(GemmBf16, AgreesWithDoublePrecisionInEveryDirectionAndFormat) {
  Random random(1);
  struct Case {
    int64_t m, rows, cols, group;
  };
  const Case cases[] = {{1, 37, 53, 16}, {4, 70, 301, 32}, {5, 37, 53, 0}, {13, 130, 150, 64}, {101, 75, 91, 128}};
  for (const KernelTable& t : supported_tables()) {
    for (const Case& c : cases) {
      for (const WeightFormat f : kFormats) {
        SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + format_name(f) + " m=" + std::to_string(c.m));
        const WeightData w(f, c.rows, c.cols, c.group, c.m % 2 != 0, random, 0);
        const Floats x = random_floats(random, c.m * c.cols), dy = random_floats(random, c.m * c.rows);
        const Floats y0 = random_floats(random, c.m * c.rows), dx0 = random_floats(random, c.m * c.cols);
        const auto weight = [&](int64_t r, int64_t k) { return w.dense[static_cast<size_t>(r * c.cols + k)]; };
        const auto x_at = [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * c.cols + k)]; };
        const auto dy_at = [&](int64_t i, int64_t r) { return dy[static_cast<size_t>(i * c.rows + r)]; };
        const auto weight_t = [&](int64_t k, int64_t r) { return weight(r, k); };
        const auto dy_t = [&](int64_t r, int64_t i) { return dy_at(i, r); };
        expect_product(nt(t, 2, c.m, x, f, w.view), nullptr, c.m, c.rows, c.cols, x_at, weight_t);
        expect_product(nt(t, 2, c.m, x, f, w.view, &y0), &y0, c.m, c.rows, c.cols, x_at, weight_t);
        expect_product(nn(t, 2, c.m, dy, f, w.view), nullptr, c.m, c.cols, c.rows, dy_at, weight);
        expect_product(nn(t, 2, c.m, dy, f, w.view, &dx0), &dx0, c.m, c.cols, c.rows, dy_at, weight);
        if (f != WeightFormat::f32) continue;
        expect_product(tn(t, 2, c.m, c.rows, c.cols, dy, x), nullptr, c.rows, c.cols, c.m, dy_t, x_at);
        expect_product(tn(t, 2, c.m, c.rows, c.cols, dy, x, &w.dense), &w.dense, c.rows, c.cols, c.m, dy_t, x_at);
      }
    }
  }
}

TEST(GemmBf16, ARowDoesNotDependOnTheOthersNorOnThreads) {
  Random random(2);
  const int64_t rows = 83, cols = 299, max_m = 64;
  const Floats x = random_floats(random, max_m * cols), dy = random_floats(random, max_m * rows);
  for (const KernelTable& t : supported_tables()) {
    for (const WeightFormat f : kFormats) {
      SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + format_name(f));
      const WeightData w(f, rows, cols, 32, false, random, 0);
      const Floats y = nt(t, 1, max_m, x, f, w.view), dx = nn(t, 1, max_m, dy, f, w.view);
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 13, 64}) {
        for (const int threads : {1, 2, 3}) {
          const Floats some = nt(t, threads, m, x, f, w.view), some_dx = nn(t, threads, m, dy, f, w.view);
          ASSERT_TRUE(std::equal(some.begin(), some.end(), y.begin())) << "m=" << m << " threads=" << threads;
          ASSERT_TRUE(std::equal(some_dx.begin(), some_dx.end(), dx.begin())) << "m=" << m << " threads=" << threads;
        }
      }
    }
    EXPECT_EQ(tn(t, 1, max_m, rows, rows, dy, dy), tn(t, 3, max_m, rows, rows, dy, dy));
  }
}

TEST(GemmBf16, SlicesOfTheDepthContinueTheChain) {
  Random random(3);
  for (const KernelTable& t : supported_tables()) {
    if (t.tier == Tier::ref) continue;  // seconds of work
    for (const int64_t depth : {2 * t.gemm_kc - 1, 2 * t.gemm_kc, 2 * t.gemm_kc + 1, 4 * t.gemm_kc + 17}) {
      const int64_t m = 9, n = 34;
      const WeightData w(WeightFormat::f32, n, depth, 0, false, random, 0);
      const WeightData w_t(WeightFormat::f32, depth, n, 0, false, random, 0);
      const Floats x = random_floats(random, m * depth), y0 = random_floats(random, m * n);
      const Floats dy = random_floats(random, depth * m), xs = random_floats(random, depth * n);
      KernelTable whole = t;
      whole.gemm_kc = 1 << 14;
      EXPECT_EQ(nt(t, 2, m, x, w.format, w.view, &y0), nt(whole, 2, m, x, w.format, w.view, &y0));
      EXPECT_EQ(nn(t, 2, m, x, w_t.format, w_t.view), nn(whole, 2, m, x, w_t.format, w_t.view));
      EXPECT_EQ(tn(t, 2, depth, m, n, dy, xs), tn(whole, 3, depth, m, n, dy, xs));
    }
  }
}

TEST(GemmBf16, ChunksOfManyRowsAndColumnsFitTogether) {
  Random random(4);
  const KernelTable t = build_kernel_table(best_tier());
  const int64_t m = 850, rows = 1700, cols = 41;
  const WeightData w(WeightFormat::f32, rows, cols, 0, false, random, 0);
  const Floats x = random_floats(random, m * cols), dy = random_floats(random, m * rows);
  expect_product(nt(t, 2, m, x, w.format, w.view), nullptr, m, rows, cols,
                 [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * cols + k)]; },
                 [&](int64_t k, int64_t r) { return w.dense[static_cast<size_t>(r * cols + k)]; });
  const Floats dw = tn(t, 2, m, rows, cols, dy, x);
  EXPECT_EQ(dw, tn(t, 1, m, rows, cols, dy, x));
  expect_product(dw, nullptr, rows, cols, m, [&](int64_t r, int64_t i) { return dy[static_cast<size_t>(i * rows + r)]; },
                 [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * cols + k)]; });
}

// Products of two bf16 are exact, so a chain of multiplications and additions is a chain of fma: all tiers without
// vdpbf16ps have the bits of the f32 product of the rounded operands.
TEST(GemmBf16, TiersWithoutTheInstructionHaveTheBitsOfRoundedF32Products) {
  Random random(5);
  const int64_t m = 21, rows = 45, cols = 131;
  const WeightData w(WeightFormat::f32, rows, cols, 0, false, random, 0);
  const Floats x = random_floats(random, m * cols);
  Floats rounded_x = x, rounded_w = w.dense;
  for (float& v : rounded_x) v = bf16_rounded(v);
  for (float& v : rounded_w) v = bf16_rounded(v);
  Floats expected(static_cast<size_t>(m * rows));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      float acc = 0;
      for (int64_t c = 0; c < cols; ++c)
        acc = std::fma(rounded_x[static_cast<size_t>(i * cols + c)], rounded_w[static_cast<size_t>(r * cols + c)], acc);
      expected[static_cast<size_t>(i * rows + r)] = acc;
    }
  }
  for (const KernelTable& t : supported_tables()) {
    if (t.origin[static_cast<int>(SlotId::gemm_bf16)] == Tier::avx512_bf16) continue;
    EXPECT_EQ(nt(t, 2, m, x, w.format, w.view), expected) << tier_name(t.tier);
  }
}

TEST(GemmBf16, CodesGiveTheBitsOfTheDequantizedMatrix) {
  Random random(6);
  for (const KernelTable& t : supported_tables()) {
    for (const WeightFormat f : {WeightFormat::f16, WeightFormat::bf16, WeightFormat::q8, WeightFormat::q4, WeightFormat::q2}) {
      for (const int64_t group : {16, 32, 64, 128, 0}) {
        const int64_t m = 7, rows = 83, cols = 203;
        const WeightData w(f, rows, cols, group, group == 64, random, 0);
        const Floats dy = random_floats(random, m * rows), x = random_floats(random, m * cols);
        WeightView dense{};
        dense.data = w.dense.data();
        dense.rows = rows;
        dense.cols = dense.ld = cols;
        EXPECT_EQ(nn(t, 2, m, dy, f, w.view), nn(t, 2, m, dy, WeightFormat::f32, dense)) << tier_name(t.tier);
        EXPECT_EQ(nt(t, 2, m, x, f, w.view), nt(t, 2, m, x, WeightFormat::f32, dense)) << tier_name(t.tier);
      }
    }
  }
}

// The functions under linear, the loss head and the adapters: the policy of the context decides in all three directions.
TEST(GemmBf16, ProductsOfWeightsFollowThePrecisionOfTheContext) {
  Random random(8);
  const int64_t m = 9, rows = 35, cols = 51;
  Floats values = random_floats(random, rows * cols), x = random_floats(random, m * cols), dy = random_floats(random, m * rows);
  for (const KernelTable& t : supported_tables()) {
    SCOPED_TRACE(tier_name(t.tier));
    const auto run = [&](Precision precision, Floats* y, Floats* dx, Floats* dw) {
      MemoryBudget budget(0);
      Context ctx(t, 2, &budget);
      ctx.precision = precision;
      Weight w;
      w.rows = rows;
      w.cols = cols;
      w.data = values.data();
      y->assign(static_cast<size_t>(m * rows), 0);
      dx->assign(static_cast<size_t>(m * cols), 0);
      dw->assign(static_cast<size_t>(rows * cols), 0);
      w.grad = dw->data();
      const ForwardProduct product{m, x.data(), &w, y->data()};
      weight_forward(ctx, &product, 1);
      weight_dx(ctx, m, dy.data(), w, dx->data(), false);
      weight_dw(ctx, m, dy.data(), x.data(), &w);
    };
    WeightView view{};
    view.data = values.data();
    view.rows = rows;
    view.cols = view.ld = cols;
    Floats y, dx, dw, y_f32, dx_f32, dw_f32;
    run(Precision::bf16, &y, &dx, &dw);
    run(Precision::f32, &y_f32, &dx_f32, &dw_f32);
    EXPECT_EQ(y, nt(t, 1, m, x, WeightFormat::f32, view));
    EXPECT_EQ(dx, nn(t, 1, m, dy, WeightFormat::f32, view));
    EXPECT_EQ(dw, tn(t, 1, m, rows, cols, dy, x));
    EXPECT_NE(y, y_f32);
    EXPECT_NE(dx, dx_f32);
    EXPECT_NE(dw, dw_f32);
  }
}

TEST(GemmBf16, EmptyProducts) {
  Random random(7);
  const KernelTable t = build_kernel_table(best_tier());
  const WeightData w(WeightFormat::f32, 20, 30, 0, false, random, 0);
  EXPECT_TRUE(nt(t, 2, 0, {}, w.format, w.view).empty());
  EXPECT_TRUE(nn(t, 2, 0, {}, w.format, w.view).empty());
  const Floats start(600, 3.0f);
  EXPECT_EQ(tn(t, 2, 0, 20, 30, {}, {}, &start), start);  // a sum of nothing is added
  EXPECT_EQ(tn(t, 2, 0, 20, 30, {}, {}), Floats(600, 0.0f));
}

}  // namespace
}  // namespace thimble
