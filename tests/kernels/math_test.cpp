// The accuracy that kernels/simd/math.h states, over all of its domain, through the kernels that use it.
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {
namespace {

double ulp_of(double x) {
  const float f = static_cast<float>(std::abs(x));
  return static_cast<double>(std::nextafter(f, std::numeric_limits<float>::infinity())) - static_cast<double>(f);
}

template <class Body>
void on_simd_tiers(const Body& body) {
  for (const Tier tier : {Tier::avx2, Tier::avx512}) {
    if (!tier_supported(tier)) continue;
    SCOPED_TRACE(tier_name(tier));
    body(build_kernel_table(tier));
  }
}

// softmax of a row (0, -x) when exp(-x) is added to 1 shows exp; gelu shows Phi; silu shows 1 / (1 + exp).
TEST(Math, ExpThroughSoftmax) {
  on_simd_tiers([](const KernelTable& t) {
    for (float x = 0; x < 110; x += 0.0137f) {
      const float row[2] = {0, -x};
      float y[2];
      t.softmax({1, 2, row, y, 1.0f});
      const double e = std::exp(-static_cast<double>(x)), expected = e / (1 + e);
      ASSERT_NEAR(y[1], expected, 3 * ulp_of(expected)) << x;
    }
    const float infinity = std::numeric_limits<float>::infinity();
    const float row[4] = {0, -infinity, 0, -infinity};
    float y[4];
    t.softmax({1, 4, row, y, 1.0f});
    EXPECT_EQ(y[0], 0.5f);  // exp(0) is exactly 1
    EXPECT_EQ(y[1], 0.0f);  // exp(-inf) is exactly 0
  });
}

TEST(Math, NormalThroughGelu) {
  on_simd_tiers([](const KernelTable& t) {
    double worst = 0;
    for (float x = -13; x < 13; x += 0.00137f) {
      float y;
      t.gelu_erf({1, &x, &y});
      const double wide = x, expected = 0.5 * wide * std::erfc(-wide * std::sqrt(0.5));
      ASSERT_NEAR(y, expected, 1e-6) << x;
      // An ulp of the product with x may be half as large as one of Phi, relative to the value.
      const double allowed = x >= 0 ? 9.0 : 6.0 + wide * wide;
      ASSERT_NEAR(y, expected, allowed * ulp_of(expected) + 1e-37) << x;
      worst = std::max(worst, std::abs(y - expected));
    }
    EXPECT_LT(worst, 1e-6);
  });
}

TEST(Math, ActivationsAtTheEnds) {
  on_simd_tiers([](const KernelTable& t) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float x[6] = {-infinity, infinity, std::numeric_limits<float>::quiet_NaN(), -1e30f, 1e30f, 0.0f};
    for (const UnaryFn fn : {t.gelu_erf, t.gelu_tanh, t.relu, t.silu}) {
      float y[6];
      fn({6, x, y});
      EXPECT_EQ(y[0], 0.0f);
      EXPECT_EQ(y[1], infinity);
      EXPECT_TRUE(std::isnan(y[2]));
      EXPECT_EQ(y[3], 0.0f);
      EXPECT_EQ(y[4], 1e30f);
      EXPECT_EQ(y[5], 0.0f);
    }
    const float dy[6] = {1, 1, 1, 1, 1, 1};
    for (const UnaryBwdFn fn : {t.gelu_erf_bwd, t.gelu_tanh_bwd, t.relu_bwd, t.silu_bwd}) {
      float dx[6];
      fn({6, x, dy, dx, 0});
      EXPECT_EQ(dx[0], 0.0f);
      EXPECT_EQ(dx[1], 1.0f);
      EXPECT_EQ(dx[3], 0.0f);
      EXPECT_EQ(dx[4], 1.0f);
    }
  });
}

TEST(Math, TanhThroughSoftcap) {
  on_simd_tiers([](const KernelTable& t) {
    // One query and one key of one dimension: lse is the score itself, 1 * tanh(q k).
    for (float q = -12; q < 12; q += 0.0113f) {
      const float one = 1;
      float o, lse;
      std::vector<float> scratch(static_cast<size_t>(attention_scratch_floats(1)));
      AttentionArgs a{};
      a.q = &q;
      a.k = a.v = &one;
      a.o = &o;
      a.lse = &lse;
      a.q_row = a.q_head = a.k_row = a.v_row = a.o_row = a.o_head = a.lse_head = 1;
      a.tq = a.tk = a.group = a.head_dim = 1;
      a.scale = 1;
      a.softcap = 1;
      a.scratch = scratch.data();
      t.attention(a);
      const double expected = std::tanh(static_cast<double>(q));
      ASSERT_NEAR(lse, expected, 3 * ulp_of(expected)) << q;
    }
  });
}

}  // namespace
}  // namespace thimble::testing
