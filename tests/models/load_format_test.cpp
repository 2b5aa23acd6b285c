// --load-as: every form is read, wrong ones are refused with the valid forms, and a model that was packed while loading
// holds what round to nearest gives, in as many bytes as the form promises.
#include <gtest/gtest.h>

#include "kernels/kernel_table.h"
#include "models/quantize.h"
#include "models/random_model.h"
#include "quant/rtn.h"
#include "tensor/error.h"

namespace thimble {
namespace {

TEST(LoadFormat, FormsAndRefusals) {
  EXPECT_EQ(parse_load_format("").bits, 0);
  EXPECT_EQ(parse_load_format("stored").bits, 0);
  const LoadFormat plain = parse_load_format("q2");
  EXPECT_EQ(plain.bits, 2);
  EXPECT_EQ(plain.group, 128);
  EXPECT_EQ(plain.kind, GroupKind::zero_points);
  const LoadFormat symmetric = parse_load_format("q4-g32-sym"), minimum = parse_load_format("q8-row-min");
  EXPECT_EQ(symmetric.group, 32);
  EXPECT_EQ(symmetric.kind, GroupKind::symmetric);
  EXPECT_EQ(minimum.bits, 8);
  EXPECT_EQ(minimum.group, 0);
  EXPECT_EQ(minimum.kind, GroupKind::minimum);
  for (const char* wrong : {"q3", "q4_g32", "q4-g16", "q4-sym-g32", "q4-", "Q4", "q4-g32-asym"}) {
    try {
      parse_load_format(wrong);
      ADD_FAILURE() << wrong;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::usage) << wrong;
      EXPECT_NE(e.hint().find("q4-g32-min"), std::string::npos) << wrong;
    }
  }
}

TEST(LoadFormat, PackedWhileLoading) {
  const KernelTable kernels = build_kernel_table(best_tier());
  struct Case {
    const char* text;
    GroupKind kind;
    int parameter_bits;  // per group
  };
  for (const Case& c : {Case{"q2-g32", GroupKind::zero_points, 24}, Case{"q2-g32-sym", GroupKind::symmetric, 16},
                        Case{"q4-g32-min", GroupKind::minimum, 32}, Case{"q4-g32-sym", GroupKind::symmetric, 16},
                        Case{"q8-g32", GroupKind::zero_points, 24}}) {
    SCOPED_TRACE(c.text);
    const ShapeConfig shape = shape_config("stories260k");
    Model model = random_model("random", shape, {WeightFormat::f32, 0});
    const Weight before = model.weights.layers[0].up_w;
    std::vector<float> values(before.f32(), before.f32() + before.numel());
    const LoadFormat format = parse_load_format(c.text);
    quantize_model(model, kernels, format);
    const Weight& w = model.weights.layers[0].up_w;
    EXPECT_EQ(w.kind, c.kind);
    EXPECT_EQ(format_bits(w.format), format.bits);
    EXPECT_EQ(model.weights.token_embed.format, WeightFormat::f32);
    ASSERT_EQ(w.cols % 32, 0);
    const int64_t rows = (w.rows + kTileRows - 1) / kTileRows * kTileRows;
    EXPECT_EQ(w.stored_bytes() * 8, static_cast<size_t>(rows * (w.cols * format.bits + w.cols / 32 * c.parameter_bits)));
    const bool has_min = c.kind == GroupKind::minimum;
    const QuantizedMatrix q = has_min ? quantize_rtn_min(values.data(), w.rows, w.cols, format.bits, 32, 1)
                                      : quantize_rtn(values.data(), w.rows, w.cols, format.bits, 32, c.kind == GroupKind::symmetric);
    std::vector<float> got(values.size());
    dequantize(kernels, w, got.data());
    EXPECT_EQ(got, dequantize(q));
    EXPECT_NE(model.quantization.find("packed while loading"), std::string::npos);
  }
}

}  // namespace
}  // namespace thimble
