// Names of grids and sparsities: what is written can be read again, and nothing else can.
#include "quant/spec.h"

#include <gtest/gtest.h>

#include "tensor/error.h"

namespace thimble {
namespace {

TEST(Spec, EveryNameReadsBack) {
  for (int bits : {8, 4, 3, 2})
    for (int64_t group : {0, 32, 64, 128})
      for (bool symmetric : {false, true}) {
        const WeightSpec spec{bits, group, symmetric};
        EXPECT_EQ(parse_weight_spec(spec.name()), spec) << spec.name();
      }
  EXPECT_EQ((WeightSpec{4, 64, false}).name(), "int4-g64-asym");
  EXPECT_EQ((WeightSpec{8, 0, true}).name(), "int8-row-sym");
  EXPECT_EQ(parse_sparsity("0.5").name(), "0.5");
  EXPECT_EQ(parse_sparsity("2:4").name(), "2:4");
  EXPECT_EQ(parse_sparsity("2:4").zeros(), 0.5);
  EXPECT_EQ(parse_sparsity("1:4").zeros(), 0.75);
}

template <class Fn>
void expect_usage(Fn&& fn, const std::string& word, const std::string& text) {
  try {
    fn();
    ADD_FAILURE() << "accepted " << text;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::usage) << text;
    EXPECT_NE(e.hint().find(word), std::string::npos) << e.hint();
  }
}

TEST(Spec, AnythingElseIsUsageWithTheForms) {
  for (const char* text : {"", "int", "int4", "int4-g64", "int5-g64-asym", "int4-g48-asym", "int4-g64-Asym", "int4-g64-asym ", "q4-g64-asym",
                           "int44-g64-asym", "int4--asym", "int4-g64-", "int4-row-asym-asym", "int4-g-asym"})
    expect_usage([&] { parse_weight_spec(text); }, "int{8,4,3,2}-{g32|g64|g128|row}-{sym|asym}", text);
  for (const char* text : {"", "0", "1", "1.5", "-0.5", "nan", "0x1", "4:4", "0:4", "2:5", "2:", ":4", "2:4:8", "half", "1e-1"})
    expect_usage([&] { parse_sparsity(text); }, "2:4", text);
}

}  // namespace
}  // namespace thimble
