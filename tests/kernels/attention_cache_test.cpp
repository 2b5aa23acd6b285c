// What attention over a cache promises beyond its values: an f32 cache gives the bits of attention on rows; the bits of a
// row are the same alone or in a block, in one call or in merged parts, whatever lies behind the keys that it sees; and
// the error of an int8 cache is bounded by its scales.
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problems_attention.h"

namespace thimble::testing {
namespace {

using Type = CacheData::Type;

// The slots of one precision.
struct Slots {
  AttentionFn attention;
  AttentionCacheFn cache[3];  // by Type
  AttentionMergeFn attention_merge;
};

template <class Body>
void on_simd_tiers(const Body& body) {
  for (const Tier tier : {Tier::ref, Tier::avx2, Tier::avx512, Tier::avx512_bf16}) {
    if (!tier_supported(tier)) continue;
    const KernelTable t = build_kernel_table(tier);
    SCOPED_TRACE(tier_name(tier));
    body(Slots{t.attention, {t.attention_cache_f32, t.attention_cache_f16, t.attention_cache_i8}, t.attention_merge});
    SCOPED_TRACE("bf16 products");
    body(Slots{t.attention_bf16,
               {t.attention_cache_f32_bf16, t.attention_cache_f16_bf16, t.attention_cache_i8_bf16},
               t.attention_merge});
  }
}

AttentionCacheFn kernel(const Slots& t, Type type) { return t.cache[static_cast<int>(type)]; }

Shape shape(int64_t tq, int64_t tk, int64_t group, int64_t head_dim, int64_t window = 0, int64_t prefix = 0,
            int64_t softcap = 0, int64_t alibi = 0, int64_t one = 0) {
  return AttentionData::shape(tq, tk, group, head_dim, 1, window, prefix, softcap, alibi, one);
}

// One part, several, windows that begin in a later chunk, prefixes, odd widths, few and many rows.
std::vector<Shape> shapes() {
  return {shape(1, 40, 1, 64),         shape(1, 1100, 8, 64),     shape(1, 1500, 5, 33, 700), shape(3, 1030, 2, 80),
          shape(20, 600, 3, 16, 0, 7), shape(70, 530, 1, 24),     shape(70, 1200, 2, 20, 90), shape(2, 700, 1, 12, 0, 0, 5, 1, 1),
          shape(70, 140, 1, 40, 0, 130, 0, 0, 1)};
}

struct Case {
  AttentionData data;
  CacheData cache;
  Case(const Shape& s, Type type) : data(s, 5, 0, attention_scratch_floats(s.dims[3])), cache(type, data, 0) {}
};

std::vector<float> results(const AttentionData& d) {
  std::vector<float> all = copy_of(d.o);
  all.insert(all.end(), d.lse.data(), d.lse.data() + d.lse.size());
  return all;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST(AttentionCache, F32HasTheBitsOfRows) {
  on_simd_tiers([](const Slots& t) {
    for (const Shape& s : shapes()) {
      Case c(s, Type::f32);
      t.attention(c.data.args);
      const std::vector<float> rows = results(c.data);
      std::fill_n(c.data.o.data(), c.data.o.size(), 0.0f);
      kernel(t, Type::f32)(c.cache.args());
      EXPECT_TRUE(same(rows, results(c.data))) << s.label;
    }
  });
}

TEST(AttentionCache, MergedPartsHaveTheBitsOfTheWhole) {
  on_simd_tiers([](const Slots& t) {
    for (const Type type : {Type::f32, Type::f16, Type::int8}) {
      for (const Shape& s : shapes()) {
        Case c(s, type);
        kernel(t, type)(c.cache.args());
        const std::vector<float> whole = results(c.data);
        AttentionCacheArgs a = c.cache.args();
        const int64_t rows = a.f.tq * a.f.group * (a.f.head_dim + 2);
        std::vector<int64_t> numbers;
        if (a.f.n_prefix > 0) numbers.push_back(kAttentionPrefixPart);
        for (int64_t p = 0; p * kAttentionChunkK < a.f.tk; ++p) numbers.push_back(p);
        const auto n_parts = static_cast<int64_t>(numbers.size());
        std::vector<float> parts(static_cast<size_t>(n_parts * rows), -3.0f);
        for (int64_t p = n_parts - 1; p >= 0; --p) {  // in any order
          a.part = numbers[static_cast<size_t>(p)];
          a.partial = parts.data() + p * rows;
          kernel(t, type)(a);
        }
        std::fill_n(c.data.o.data(), c.data.o.size(), 0.0f);
        std::fill_n(c.data.lse.data(), c.data.lse.size(), 0.0f);
        t.attention_merge({parts.data(), n_parts, rows, a.f.o, a.f.o_row, a.f.o_head, a.f.lse, a.f.lse_head, a.f.tq,
                           a.f.group, a.f.head_dim, a.f.softmax_one});
        EXPECT_TRUE(same(whole, results(c.data))) << s.label << " type " << static_cast<int>(type);
      }
    }
  });
}

TEST(AttentionCache, RowAloneHasTheBitsOfTheBlock) {
  on_simd_tiers([](const Slots& t) {
    for (const Type type : {Type::f16, Type::int8}) {
      for (const Shape& s : shapes()) {
        Case c(s, type);
        kernel(t, type)(c.cache.args());
        const std::vector<float> whole = copy_of(c.data.o);
        for (int64_t row = 0; row < s.dims[0]; row += 9) {
          AttentionCacheArgs a = c.cache.args();
          a.f.q += row * a.f.q_row;
          a.f.o += row * a.f.o_row;
          a.f.lse += row;
          a.f.q_pos0 += row;
          a.f.tq = 1;
          a.f.tk = a.f.q_pos0 + 1;  // as in decoding: later keys do not exist yet
          std::fill_n(a.f.o, a.f.group * a.f.o_head, 0.0f);
          kernel(t, type)(a);
          for (int64_t g = 0; g < a.f.group; ++g) {
            const size_t at = static_cast<size_t>(row * a.f.o_row + g * a.f.o_head);
            ASSERT_EQ(std::memcmp(a.f.o + g * a.f.o_head, &whole[at], static_cast<size_t>(a.f.head_dim) * 4), 0)
                << s.label << " row " << row << " head " << g << " type " << static_cast<int>(type);
          }
        }
      }
    }
  });
}

// Rows of one call that come before a damaged key keep their bits; the others are NaN. An int8 key is damaged by its scale.
TEST(AttentionCache, UnseenKeysMayHoldAnything) {
  on_simd_tiers([](const Slots& t) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const Type type : {Type::f32, Type::f16, Type::int8}) {
      for (const int64_t rows : {4, 40}) {
        Case c(shape(rows, 150, 2, 24, 60), type);
        kernel(t, type)(c.cache.args());
        const std::vector<float> clean = copy_of(c.data.o);
        const int64_t key = 150 - rows / 2, dim = 24, at_k = key / kAttentionBlockK * dim * kAttentionBlockK + key % kAttentionBlockK;
        const AttentionCacheArgs& a = c.cache.args();
        for (int64_t d = 0; d < dim; ++d) {
          if (type == Type::f32) {
            static_cast<float*>(const_cast<void*>(a.k))[at_k + d * kAttentionBlockK] = nan;
            static_cast<float*>(const_cast<void*>(a.v))[key * dim + d] = nan;
          } else if (type == Type::f16) {
            static_cast<uint16_t*>(const_cast<void*>(a.k))[at_k + d * kAttentionBlockK] = 0x7E00;
            static_cast<uint16_t*>(const_cast<void*>(a.v))[key * dim + d] = 0x7E00;
          } else {
            const_cast<float*>(a.k_scale)[key] = const_cast<float*>(a.v_scale)[key] = nan;
          }
        }
        kernel(t, type)(a);
        const int64_t before = rows / 2;
        EXPECT_EQ(std::memcmp(clean.data(), c.data.o.data(), static_cast<size_t>(before * a.f.o_row) * 4), 0) << rows;
        for (int64_t row = before; row < rows; ++row) EXPECT_TRUE(std::isnan(c.data.o[row * a.f.o_row])) << row;
      }
    }
  });
}

// |k - scale code| <= scale / 2 moves a score by at most e = |scale of attention| sum |q| k_scale / 2, so a probability by
// a factor within exp(+-2e), and each value by v_scale / 2 besides.
TEST(AttentionCache, Int8ErrorIsBoundedByTheScales) {
  on_simd_tiers([](const Slots& t) {
    for (const int64_t head_dim : {16, 64}) {
      const Shape s = shape(1, 700, 2, head_dim);
      AttentionData exact(s, 5, 0, attention_scratch_floats(head_dim));
      t.attention(exact.args);
      Case c(s, Type::int8);
      kernel(t, Type::int8)(c.cache.args());
      const AttentionCacheArgs& a = c.cache.args();
      for (int64_t g = 0; g < 2; ++g) {
        double log_sum = 0, e = 0, q_size = 0, step = 0, largest = 0;
        const auto pairs = exact.row(0, g, &log_sum);
        for (int64_t d = 0; d < head_dim; ++d) q_size += std::abs(static_cast<double>(a.f.q[g * a.f.q_head + d]));
        for (int64_t j = 0; j < a.f.tk; ++j) {
          e = std::max(e, q_size * a.f.scale * a.k_scale[j] / 2);
          step = std::max(step, static_cast<double>(a.v_scale[j]) / 2);
        }
        for (int64_t d = 0; d < head_dim; ++d) {
          double size = 0;
          for (int64_t j = 0; j < a.f.tk; ++j) size += pairs[static_cast<size_t>(j)].p * std::abs(static_cast<double>(exact.value(j)[d]));
          const double bound = (std::exp(2 * e) - 1) * size + std::exp(2 * e) * step + 1e-5;
          const double error = std::abs(static_cast<double>(c.data.o[g * a.f.o_head + d]) - exact.o[g * a.f.o_head + d]);
          EXPECT_LE(error, bound);
          largest = std::max(largest, error);
        }
        EXPECT_GT(largest, 1e-5);  // it is not f32
      }
    }
  });
}

}  // namespace
}  // namespace thimble::testing
