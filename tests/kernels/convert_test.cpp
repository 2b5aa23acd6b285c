// f16 and bf16 conversions on every tier: all 65536 codes in both directions, and f32 numbers on, just below and just
// above every boundary between two codes, against rounding done here in double.
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {
namespace {

float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
uint32_t to_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

double f16_value(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? std::numeric_limits<double>::infinity()
                                            : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

bool is_f16_nan(uint16_t h) { return (h & 0x7C00) == 0x7C00 && (h & 0x3FF) != 0; }

template <class Body>
void on_tiers(const Body& body) {
  for (int i = 0; i < kTierCount; ++i) {
    if (!tier_supported(static_cast<Tier>(i))) continue;
    SCOPED_TRACE(tier_name(static_cast<Tier>(i)));
    body(build_kernel_table(static_cast<Tier>(i)));
  }
}

std::vector<uint16_t> all_codes() {
  std::vector<uint16_t> codes(65536);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint16_t>(i);
  return codes;
}

TEST(Convert, EveryF16Code) {
  const auto codes = all_codes();
  on_tiers([&](const KernelTable& t) {
    std::vector<float> wide(codes.size());
    std::vector<uint16_t> back(codes.size());
    t.f16_to_f32({65536, codes.data(), wide.data()});
    t.f32_to_f16({65536, wide.data(), back.data()});
    for (size_t i = 0; i < codes.size(); ++i) {
      if (is_f16_nan(codes[i])) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
        ASSERT_EQ(to_bits(wide[i]), static_cast<uint32_t>(codes[i] & 0x8000) << 16 | 0x7FC00000u |
                                        static_cast<uint32_t>(codes[i] & 0x3FF) << 13);
        ASSERT_EQ(back[i], codes[i] | 0x200) << i;
        continue;
      }
      ASSERT_EQ(static_cast<double>(wide[i]), f16_value(codes[i])) << i;
      ASSERT_EQ(std::signbit(wide[i]), codes[i] >= 0x8000) << i;
      ASSERT_EQ(back[i], codes[i]);
    }
  });
}

TEST(Convert, EveryBf16Code) {
  const auto codes = all_codes();
  on_tiers([&](const KernelTable& t) {
    std::vector<float> wide(codes.size());
    std::vector<uint16_t> back(codes.size());
    t.bf16_to_f32({65536, codes.data(), wide.data()});
    t.f32_to_bf16({65536, wide.data(), back.data()});
    for (size_t i = 0; i < codes.size(); ++i) {
      const uint32_t bits = static_cast<uint32_t>(codes[i]) << 16;
      ASSERT_EQ(to_bits(wide[i]), bits);
      const bool subnormal = (bits & 0x7F800000u) == 0, nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
      ASSERT_EQ(back[i], subnormal ? codes[i] & 0x8000 : nan ? codes[i] | 0x40 : codes[i]) << i;
    }
  });
}

// Between two neighbouring codes: the middle goes to the even one, anything else to the nearer one.
void boundaries(const std::vector<uint16_t>& lower, double (*value)(uint16_t), ConvertFn fn) {
  std::vector<float> x;
  std::vector<uint16_t> expected;
  for (const uint16_t code : lower) {
    const double middle_wide = (value(code) + value(static_cast<uint16_t>(code + 1))) / 2;
    const float middle = static_cast<float>(middle_wide);
    ASSERT_EQ(static_cast<double>(middle), middle_wide);
    const uint16_t even = static_cast<uint16_t>(code % 2 ? code + 1 : code);
    const float below = from_bits(to_bits(middle) - 1), above = from_bits(to_bits(middle) + 1);
    for (const int sign : {0, 0x8000}) {
      for (const float m : {below, middle, above}) x.push_back(sign ? -m : m);
      for (const int e : {static_cast<int>(code), static_cast<int>(even), code + 1}) {
        expected.push_back(static_cast<uint16_t>(e | sign));
      }
    }
  }
  std::vector<uint16_t> got(x.size());
  fn({static_cast<int64_t>(x.size()), x.data(), got.data()});
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got[i], expected[i]) << std::hexfloat << x[i];
}

TEST(Convert, RoundingBoundaries) {
  std::vector<uint16_t> f16, bf16;
  for (uint16_t code = 0; code < 0x7BFF; ++code) f16.push_back(code);
  for (uint16_t code = 0x80; code < 0x7F7F; ++code) bf16.push_back(code);
  on_tiers([&](const KernelTable& t) {
    boundaries(f16, f16_value, t.f32_to_f16);
    boundaries(
        bf16, [](uint16_t h) { return static_cast<double>(from_bits(static_cast<uint32_t>(h) << 16)); }, t.f32_to_bf16);
  });
}

TEST(Convert, Extremes) {
  on_tiers([](const KernelTable& t) {
    const uint32_t in[] = {0x477FE000u, 0x477FEFFFu, 0x477FF000u, 0x7F7FFFFFu,
                           0x33000000u, 0x33000001u, 0x7F800001u, 0xFFFFFFFFu};
    const uint16_t f16[] = {0x7BFF, 0x7BFF, 0x7C00, 0x7C00, 0x0000, 0x0001, 0x7E00, 0xFFFF};
    const uint32_t in_b[] = {0x007FFFFFu, 0x807FFFFFu, 0x00000001u, 0x00800000u,
                             0x7F7F7FFFu, 0x7F7F8000u, 0x7F800001u, 0xFF800001u};
    const uint16_t bf16[] = {0x0000, 0x8000, 0x0000, 0x0080, 0x7F7F, 0x7F80, 0x7FC0, 0xFFC0};
    uint16_t got[8];
    t.f32_to_f16({8, in, got});
    for (int i = 0; i < 8; ++i) EXPECT_EQ(got[i], f16[i]) << i;
    t.f32_to_bf16({8, in_b, got});
    for (int i = 0; i < 8; ++i) EXPECT_EQ(got[i], bf16[i]) << i;
  });
}

}  // namespace
}  // namespace thimble::testing
