// What attention promises beyond its values: the bits of a row depend neither on the rows beside it nor on keys that it
// does not see, whatever those hold; decoding gives the bits of prefill; empty rows and long key axes are defined.
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {
namespace {

struct Sequence {
  int64_t tq, tk, group, head_dim;
  std::vector<float> q, k, v, o, lse, scratch;
  AttentionArgs args{};

  Sequence(int64_t tq_in, int64_t tk_in, int64_t group_in, int64_t head_dim_in)
      : tq(tq_in), tk(tk_in), group(group_in), head_dim(head_dim_in) {
    Random random(9);
    q.resize(static_cast<size_t>(tq * group * head_dim));
    k.resize(static_cast<size_t>(tk * head_dim));
    v.resize(static_cast<size_t>(tk * head_dim));
    o.resize(q.size());
    lse.resize(static_cast<size_t>(tq * group));
    scratch.resize(static_cast<size_t>(attention_scratch_floats(head_dim)));
    for (auto* buffer : {&q, &k, &v}) {
      for (float& x : *buffer) x = random.normal();
    }
    args.q_row = args.o_row = group * head_dim;
    args.q_head = args.o_head = args.k_row = args.v_row = head_dim;
    args.tq = args.lse_head = tq;
    args.tk = tk;
    args.group = group;
    args.head_dim = head_dim;
    args.q_pos0 = tk - tq;
    args.causal = 1;
    args.scale = 0.3f;
  }
  void run(AttentionFn fn) {
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    args.o = o.data();
    args.lse = lse.data();
    args.scratch = scratch.data();
    fn(args);
  }
};

template <class Body>
void on_simd_tiers(const Body& body) {
  for (const Tier tier : {Tier::ref, Tier::avx2, Tier::avx512, Tier::avx512_bf16}) {
    if (!tier_supported(tier)) continue;
    const KernelTable table = build_kernel_table(tier);
    for (const AttentionFn fn : {table.attention, table.attention_bf16}) {
      SCOPED_TRACE(std::string(tier_name(tier)) + (fn == table.attention ? "" : ", bf16 products"));
      body(fn);
    }
  }
}

bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

TEST(Attention, RowAloneHasTheBitsOfTheBlock) {
  on_simd_tiers([](AttentionFn fn) {
    const int64_t shapes[][3] = {{64, 1, 64}, {64, 1, 80}, {70, 4, 6}, {64, 8, 40}, {200, 1, 33}};
    for (const auto& s : shapes) {
      for (const int64_t window : {0, 20}) {
        Sequence all(s[0], s[0] + 100, s[1], s[2]);
        all.args.window = window;
        all.run(fn);
        const int64_t row = s[1] * s[2];
        for (int64_t t = 0; t < s[0]; t += 7) {
          Sequence one(1, s[0] + 100, s[1], s[2]);
          one.k = all.k;
          one.v = all.v;
          one.q.assign(all.q.begin() + t * row, all.q.begin() + (t + 1) * row);
          one.args.q_pos0 = all.args.q_pos0 + t;
          one.args.window = window;
          one.run(fn);
          ASSERT_TRUE(same_bits(one.o.data(), all.o.data() + t * row, row)) << "t " << t << " D " << s[2];
          for (int64_t g = 0; g < s[1]; ++g) {
            ASSERT_EQ(one.lse[static_cast<size_t>(g)], all.lse[static_cast<size_t>(g * s[0] + t)]);
          }
          // As in decoding: the keys that come later do not exist yet.
          one.args.tk = one.args.q_pos0 + 1;
          one.run(fn);
          ASSERT_TRUE(same_bits(one.o.data(), all.o.data() + t * row, row)) << "t " << t << " without later keys";
        }
      }
    }
  });
}

TEST(Attention, UnseenKeysMayHoldAnything) {
  on_simd_tiers([](AttentionFn fn) {
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    for (const int64_t group : {1, 2}) {
      for (const int64_t head_dim : {16, 37}) {
        Sequence clean(40, 150, group, head_dim);
        clean.args.window = 60;
        clean.run(fn);
        Sequence dirty(40, 150, group, head_dim);
        dirty.args.window = 60;
        // Key 130 is seen by the rows from position 130 on; keys below 51 by none. First row: position 110.
        for (int64_t d = 0; d < head_dim; ++d) {
          dirty.k[static_cast<size_t>(130 * head_dim + d)] = d % 2 ? nan : infinity;
          dirty.v[static_cast<size_t>(130 * head_dim + d)] = d % 2 ? infinity : nan;
          dirty.k[static_cast<size_t>(50 * head_dim + d)] = nan;
          dirty.v[static_cast<size_t>(50 * head_dim + d)] = nan;
        }
        dirty.run(fn);
        const int64_t row = group * head_dim;
        EXPECT_TRUE(same_bits(clean.o.data(), dirty.o.data(), 20 * row));
        for (int64_t t = 20; t < 40; ++t) EXPECT_TRUE(std::isnan(dirty.o[static_cast<size_t>(t * row)])) << t;
      }
    }
  });
}

TEST(Attention, RowWithoutKeys) {
  on_simd_tiers([](AttentionFn fn) {
    Sequence s(3, 0, 2, 10);
    s.args.q_pos0 = 0;
    for (const int32_t one : {0, 1}) {
      s.args.softmax_one = one;
      s.run(fn);
      for (const float x : s.o) EXPECT_EQ(x, 0.0f);
      for (const float x : s.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
    }
  });
}

// More rows than the kernel keeps sums for at a time.
TEST(Attention, ManyRows) {
  on_simd_tiers([](AttentionFn fn) {
    Sequence all(2100, 2100, 1, 4);
    all.args.window = 30;
    all.run(fn);
    Sequence one(1, 2100, 1, 4);
    one.k = all.k;
    one.v = all.v;
    one.args.window = 30;
    for (const int64_t t : {0, 511, 512, 2047, 2048, 2099}) {
      one.q.assign(all.q.begin() + t * 4, all.q.begin() + (t + 1) * 4);
      one.args.q_pos0 = t;
      one.run(fn);
      EXPECT_TRUE(same_bits(one.o.data(), all.o.data() + t * 4, 4)) << t;
    }
  });
}

// Scores of several hundred must not overflow: the maximum is subtracted, also across blocks.
TEST(Attention, LargeScores) {
  on_simd_tiers([](AttentionFn fn) {
    Sequence s(4, 300, 1, 8);
    s.args.scale = 60.0f;
    s.run(fn);
    for (const float x : s.o) EXPECT_TRUE(std::isfinite(x));
    for (const float x : s.lse) EXPECT_TRUE(std::isfinite(x));
  });
}

}  // namespace
}  // namespace thimble::testing
