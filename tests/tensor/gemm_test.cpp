// The product driver: results against double precision within the rounding of one chain, rows that depend neither on the
// number of rows in the call nor on the threads, accumulation, depths beyond one slice, gradients through codes.
#include "tensor/gemm.h"

#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problems_gemm.h"

namespace thimble {
namespace {

using testing::Random;
using testing::WeightData;

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::q8,
                                     WeightFormat::q4, WeightFormat::q2};
constexpr WeightFormat kTileFormats[] = {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2};
constexpr GroupKind kKinds[] = {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum};

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

std::vector<float> nt(const KernelTable& t, int threads, int64_t m, const std::vector<float>& x, const WeightData& w,
                      bool int8_act, const std::vector<float>* start = nullptr) {
  const WeightView& v = w.view;
  std::vector<float> y = start ? *start : std::vector<float>(static_cast<size_t>(m * v.rows), 99.0f);
  Scratch scratch(gemm_nt_scratch_bytes(t, threads, m, w.format, v, int8_act));
  gemm_nt({&t, threads, scratch.data(), scratch.size}, m, x.data(), v.cols, w.format, v, y.data(), v.rows, start != nullptr,
          int8_act);
  EXPECT_TRUE(scratch.intact());
  return y;
}

std::vector<float> nn(const KernelTable& t, int threads, int64_t m, const std::vector<float>& dy, WeightFormat f,
                      const WeightView& v, const std::vector<float>* start = nullptr) {
  std::vector<float> dx = start ? *start : std::vector<float>(static_cast<size_t>(m * v.cols), 99.0f);
  Scratch scratch(gemm_nn_scratch_bytes(t, threads, m, f, v));
  gemm_nn({&t, threads, scratch.data(), scratch.size}, m, dy.data(), v.rows, f, v, dx.data(), v.cols, start != nullptr);
  EXPECT_TRUE(scratch.intact());
  return dx;
}

std::vector<float> tn(const KernelTable& t, int threads, int64_t m, int64_t n, int64_t k, const std::vector<float>& dy,
                      const std::vector<float>& x, const std::vector<float>* start = nullptr) {
  std::vector<float> dw = start ? *start : std::vector<float>(static_cast<size_t>(n * k), 99.0f);
  Scratch scratch(gemm_tn_scratch_bytes(t, threads, m, n, k));
  gemm_tn({&t, threads, scratch.data(), scratch.size}, m, dy.data(), n, n, x.data(), k, k, dw.data(), k, start != nullptr);
  EXPECT_TRUE(scratch.intact());
  return dw;
}

// |c - (c0 + sum_p a(i, p) b(p, j))| <= (depth + 2) 2^-24 (|c0| + sum |a b|), times two for the ref tier's extra rounding.
template <class A, class B>
void expect_product(const std::vector<float>& c, const std::vector<float>* c0, int64_t m, int64_t n, int64_t depth,
                    const A& a, const B& b) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const size_t at = static_cast<size_t>(i * n + j);
      double sum = c0 ? (*c0)[at] : 0.0, absolute = std::fabs(sum);
      for (int64_t p = 0; p < depth; ++p) {
        const double product = static_cast<double>(a(i, p)) * b(p, j);
        sum += product;
        absolute += std::fabs(product);
      }
      ASSERT_NEAR(c[at], sum, testing::sum_tolerance(depth, absolute)) << i << " " << j;
    }
  }
}

TEST(GemmDriver, AgreesWithDoublePrecisionInEveryDirectionAndFormat) {
  Random random(1);
  struct Case {
    int64_t m, rows, cols, group;
  };
  const Case cases[] = {{1, 37, 53, 16}, {4, 70, 301, 32}, {5, 37, 53, 0}, {13, 130, 150, 64}, {100, 75, 90, 128}};
  for (const KernelTable& t : supported_tables()) {
    for (const Case& c : cases) {
      for (const WeightFormat f : kFormats) {
        SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + format_name(f) + " m=" + std::to_string(c.m));
        const WeightData w(f, c.rows, c.cols, c.group, c.m % 2 != 0, random, 0);
        const auto x = random_floats(random, c.m * c.cols), dy = random_floats(random, c.m * c.rows);
        const auto y0 = random_floats(random, c.m * c.rows), dx0 = random_floats(random, c.m * c.cols);
        const auto weight = [&](int64_t r, int64_t k) { return w.dense[static_cast<size_t>(r * c.cols + k)]; };
        const auto x_at = [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * c.cols + k)]; };
        const auto dy_at = [&](int64_t i, int64_t r) { return dy[static_cast<size_t>(i * c.rows + r)]; };
        const auto weight_t = [&](int64_t k, int64_t r) { return weight(r, k); };
        const auto dy_t = [&](int64_t r, int64_t i) { return dy_at(i, r); };
        expect_product(nt(t, 2, c.m, x, w, false), nullptr, c.m, c.rows, c.cols, x_at, weight_t);
        expect_product(nt(t, 2, c.m, x, w, false, &y0), &y0, c.m, c.rows, c.cols, x_at, weight_t);
        expect_product(nn(t, 2, c.m, dy, f, w.view), nullptr, c.m, c.cols, c.rows, dy_at, weight);
        expect_product(nn(t, 2, c.m, dy, f, w.view, &dx0), &dx0, c.m, c.cols, c.rows, dy_at, weight);
        if (f != WeightFormat::f32) continue;
        expect_product(tn(t, 2, c.m, c.rows, c.cols, dy, x), nullptr, c.rows, c.cols, c.m, dy_t, x_at);
        expect_product(tn(t, 2, c.m, c.rows, c.cols, dy, x, &w.dense), &w.dense, c.rows, c.cols, c.m, dy_t, x_at);
      }
    }
  }
}

TEST(GemmDriver, ARowDoesNotDependOnTheOthersNorOnThreads) {
  Random random(2);
  const int64_t rows = 83, cols = 299, max_m = 64;
  const auto x = random_floats(random, max_m * cols), dy = random_floats(random, max_m * rows);
  for (const KernelTable& t : supported_tables()) {
    for (const WeightFormat f : kFormats) {
      for (const bool int8_act : {false, true}) {
        if (int8_act && !is_tiled(f)) continue;
        for (const int64_t group : {16, 32, 128, 0}) {
          if (!is_tiled(f) && group != 0) continue;
          SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + format_name(f) + (int8_act ? " int8" : ""));
          const WeightData w(f, rows, cols, group, group == 32, random, 0, kKinds[group / 16 % 3]);
          const auto y = nt(t, 1, max_m, x, w, int8_act), dx = nn(t, 1, max_m, dy, f, w.view);
          for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 64}) {
            for (const int threads : {1, 2, 3}) {
              const auto some = nt(t, threads, m, x, w, int8_act);
              ASSERT_TRUE(std::equal(some.begin(), some.end(), y.begin())) << "m=" << m << " threads=" << threads;
              if (int8_act || threads == 2) continue;
              const auto some_dx = nn(t, threads, m, dy, f, w.view);
              ASSERT_TRUE(std::equal(some_dx.begin(), some_dx.end(), dx.begin())) << "m=" << m << " threads=" << threads;
            }
          }
        }
      }
    }
  }
}

// Products of different sizes, some with the input of the one before, some of rows enough for packing, one of none: more of
// them than run in one loop.
TEST(GemmDriver, SeveralProductsGiveTheBitsOfEach) {
  Random random(12);
  struct Part {
    int64_t m, rows, cols;
    bool same_input;
  };
  const Part kinds[] = {{1, 83, 299, false}, {1, 40, 299, true}, {3, 16, 64, false}, {3, 129, 64, true}, {0, 20, 64, true},
                        {40, 50, 64, false}, {2, 7, 130, false}, {1, 300, 33, false}};
  std::vector<Part> parts;
  for (int i = 0; i < 5; ++i) parts.insert(parts.end(), std::begin(kinds), std::end(kinds));
  for (const KernelTable& t : supported_tables()) {
    for (const WeightFormat f : kFormats) {
      for (const bool int8_act : {false, true}) {
        if (int8_act && !is_tiled(f)) continue;
        SCOPED_TRACE(std::string(tier_name(t.tier)) + " " + format_name(f) + (int8_act ? " int8" : ""));
        std::vector<std::vector<float>> inputs, wanted;
        std::vector<WeightData> weights;
        for (const Part& p : parts) {
          weights.emplace_back(f, p.rows, p.cols, is_tiled(f) ? 32 : 0, false, random, 0);
          inputs.push_back(p.same_input ? std::vector<float>{} : random_floats(random, p.m * p.cols));
        }
        const auto input = [&](size_t i) -> const std::vector<float>& { return inputs[parts[i].same_input ? i - 1 : i]; };
        for (size_t i = 0; i < parts.size(); ++i) wanted.push_back(nt(t, 1, parts[i].m, input(i), weights[i], int8_act));
        for (const int threads : {1, 3}) {
          std::vector<std::vector<float>> got;
          for (const Part& p : parts) got.emplace_back(static_cast<size_t>(p.m * p.rows), 99.0f);
          std::vector<GemmProduct> products;
          for (size_t i = 0; i < parts.size(); ++i)
            products.push_back({parts[i].m, input(i).data(), parts[i].cols, weights[i].view, got[i].data(), parts[i].rows, false});
          const int count = static_cast<int>(products.size());
          Scratch scratch(gemm_nt_scratch_bytes(t, threads, f, products.data(), count, int8_act));
          gemm_nt({&t, threads, scratch.data(), scratch.size}, f, products.data(), count, int8_act);
          EXPECT_TRUE(scratch.intact());
          EXPECT_EQ(got, wanted) << "threads=" << threads;
        }
      }
    }
  }
}

TEST(GemmDriver, SlicesOfTheDepthContinueTheChain) {
  Random random(3);
  for (KernelTable t : supported_tables()) {
    if (t.tier == Tier::ref) continue;  // seconds of work, and one rounding more
    for (const int64_t depth : {t.gemm_kc - 1, t.gemm_kc, t.gemm_kc + 1, 2 * t.gemm_kc + 17}) {
      const int64_t m = 9, n = 34;
      const WeightData w(WeightFormat::f32, n, depth, 0, false, random, 0);
      const WeightData w_t(WeightFormat::f32, depth, n, 0, false, random, 0);
      const auto x = random_floats(random, m * depth), y0 = random_floats(random, m * n);
      const auto dy = random_floats(random, depth * m), xs = random_floats(random, depth * n);
      KernelTable whole = t;
      whole.gemm_kc = 1 << 14;
      EXPECT_EQ(nt(t, 2, m, x, w, false, &y0), nt(whole, 2, m, x, w, false, &y0));
      EXPECT_EQ(nt(t, 2, 4, x, w, false), [&] {  // gemv has no slices
        auto all = nt(t, 2, m, x, w, false);
        all.resize(static_cast<size_t>(4 * n));
        return all;
      }());
      EXPECT_EQ(nn(t, 2, m, x, WeightFormat::f32, w_t.view), nn(whole, 2, m, x, WeightFormat::f32, w_t.view));
      EXPECT_EQ(tn(t, 2, depth, m, n, dy, xs), tn(whole, 3, depth, m, n, dy, xs));
    }
  }
}

TEST(GemmDriver, ChunksOfManyRowsAndColumnsFitTogether) {
  Random random(4);
  const KernelTable t = build_kernel_table(best_tier());
  const int64_t m = 450, rows = 1700, cols = 40;
  const WeightData w(WeightFormat::f32, rows, cols, 0, false, random, 0);
  const auto x = random_floats(random, m * cols), dy = random_floats(random, m * rows);
  expect_product(nt(t, 2, m, x, w, false), nullptr, m, rows, cols,
                 [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * cols + k)]; },
                 [&](int64_t k, int64_t r) { return w.dense[static_cast<size_t>(r * cols + k)]; });
  const auto dw = tn(t, 2, m, rows, cols, dy, x), one = tn(t, 1, m, rows, cols, dy, x);
  EXPECT_EQ(dw, one);
  expect_product(dw, nullptr, rows, cols, m, [&](int64_t r, int64_t i) { return dy[static_cast<size_t>(i * rows + r)]; },
                 [&](int64_t i, int64_t k) { return x[static_cast<size_t>(i * cols + k)]; });
}

TEST(GemmDriver, GradientsThroughCodesEqualThoseThroughTheDequantizedMatrix) {
  Random random(5);
  for (const KernelTable& t : supported_tables()) {
    for (const WeightFormat f : kTileFormats) {
      for (const int64_t group : {16, 32, 64, 128, 0}) {
        const int64_t m = 7, rows = 83, cols = 203;
        const WeightData w(f, rows, cols, group, group == 64, random, 0, kKinds[(group / 16 + 1) % 3]);
        const auto dy = random_floats(random, m * rows), x = random_floats(random, m * cols);
        WeightView dense{};
        dense.data = w.dense.data();
        dense.rows = rows;
        dense.cols = dense.ld = cols;
        EXPECT_EQ(nn(t, 2, m, dy, f, w.view), nn(t, 2, m, dy, WeightFormat::f32, dense)) << tier_name(t.tier);
        WeightData plain;
        plain.view = dense;
        EXPECT_EQ(nt(t, 2, m, x, w, false), nt(t, 2, m, x, plain, false)) << tier_name(t.tier);
      }
    }
  }
}

// With int8 activations the result is the exact product of the rounded activations: |x - code scale| <= scale / 2.
TEST(GemmDriver, Int8ActivationsStayWithinTheirRounding) {
  Random random(6);
  const int64_t m = 11, rows = 50, cols = 200, group = 32;
  for (const KernelTable& t : supported_tables()) {
    for (int i = 0; i < 9; ++i) {
      const WeightFormat f = kTileFormats[i / 3];
      const WeightData w(f, rows, cols, group, false, random, 0, kKinds[i % 3]);
      const auto x = random_floats(random, m * cols);
      const auto y = nt(t, 2, m, x, w, true);
      for (int64_t row = 0; row < m; ++row) {
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0, tolerance = 0;
          for (int64_t g = 0; g < cols; g += group) {
            double absmax = 0;
            for (int64_t c = g; c < std::min(cols, g + group); ++c)
              absmax = std::max(absmax, std::fabs(double{x[static_cast<size_t>(row * cols + c)]}));
            for (int64_t c = g; c < std::min(cols, g + group); ++c) {
              const double weight = w.dense[static_cast<size_t>(r * cols + c)];
              sum += weight * x[static_cast<size_t>(row * cols + c)];
              tolerance += std::fabs(weight) * absmax * (0.5001 / 127);
            }
          }
          ASSERT_NEAR(y[static_cast<size_t>(row * rows + r)], sum, tolerance) << tier_name(t.tier) << " " << row << " " << r;
        }
      }
    }
  }
}

TEST(GemmDriver, EmptyProducts) {
  Random random(7);
  const KernelTable t = build_kernel_table(best_tier());
  const WeightData w(WeightFormat::f32, 20, 30, 0, false, random, 0);
  EXPECT_TRUE(nt(t, 2, 0, {}, w, false).empty());
  EXPECT_TRUE(nn(t, 2, 0, {}, w.format, w.view).empty());
  const std::vector<float> start(600, 3.0f);
  EXPECT_EQ(tn(t, 2, 0, 20, 30, {}, {}, &start), start);  // a sum of nothing is added
  EXPECT_EQ(tn(t, 2, 0, 20, 30, {}, {}), std::vector<float>(600, 0.0f));
}

}  // namespace
}  // namespace thimble
