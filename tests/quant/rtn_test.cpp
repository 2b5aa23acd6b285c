// Round to nearest: the error of every weight is at most half a step of its group, and the packed tiles stand for exactly
// the matrix that the codes say.
#include "quant/rtn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/kernel_table.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/weight.h"

namespace thimble {
namespace {

std::vector<float> matrix(int64_t n, uint64_t seed) {
  Philox rng(seed, 1);
  std::vector<float> w(static_cast<size_t>(n));
  for (float& x : w) x = static_cast<float>(rng.normal());
  return w;
}

TEST(Rtn, ErrorIsAtMostHalfAStep) {
  const int64_t rows = 5, cols = 200;
  const std::vector<float> w = matrix(rows * cols, 3);
  for (int bits : {2, 3, 4, 8})
    for (int64_t group : {int64_t{0}, int64_t{32}, int64_t{128}})
      for (bool symmetric : {false, true}) {
        const QuantizedMatrix q = quantize_rtn(w.data(), rows, cols, bits, group, symmetric);
        const std::vector<float> back = dequantize(q);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c) {
            const float scale = f16_value(q.scales_f16[static_cast<size_t>(r * q.groups + c / q.group)]);
            const float error = std::fabs(back[static_cast<size_t>(r * cols + c)] - w[static_cast<size_t>(r * cols + c)]);
            // The stored scale is rounded to f16 (2^-11 relative), so the ends of the range may lie up to that much times
            // the number of levels outside the grid; the zero point of the min-max grid is rounded by half a step.
            const float slack = scale * (0.5f + 0x1p-11f * static_cast<float>(1 << bits) + (symmetric ? 0.0f : 0.5f));
            EXPECT_LE(error, slack * 1.001f) << bits << " " << group << " " << symmetric;
          }
      }
}

TEST(Rtn, TilesStandForTheSameMatrix) {
  const KernelTable kernels = build_kernel_table(best_tier());
  for (int64_t rows : {1, 16, 37})
    for (int64_t cols : {8, 33, 130})
      for (int bits : {2, 3, 4, 8}) {
        const std::vector<float> w = matrix(rows * cols, 5);
        const QuantizedMatrix q = quantize_rtn(w.data(), rows, cols, bits, 32, false);
        const TileStorage t = pack_tiles(kernels, tile_format(bits), rows, cols,
                                         q.groups == 1 ? 0 : 32, q.codes.data(), q.zeros.data(), q.scales_f16.data(), nullptr, nullptr);
        std::vector<float> got(static_cast<size_t>(rows * cols));
        dequantize(kernels, t.weight, got.data());
        EXPECT_EQ(got, dequantize(q));
      }
}

TEST(Rtn, AMinimumPerGroupSpansExactlyTheWeightsOfTheGroup) {
  const KernelTable kernels = build_kernel_table(best_tier());
  const int64_t rows = 19, cols = 130;
  std::vector<float> w = matrix(rows * cols, 11);
  for (float& x : w) x += 3.0f;  // far from 0: a grid that had to hold 0 would waste half of its codes
  for (int bits : {2, 4, 8}) {
    const QuantizedMatrix q = quantize_rtn_min(w.data(), rows, cols, bits, 32, 2);
    const std::vector<float> back = dequantize(q);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto group = static_cast<size_t>(i / cols * q.groups + i % cols / 32);
      const float scale = f16_value(q.scales_f16[group]), min = f16_value(q.mins_f16[group]);
      // Half a step, and what rounding scale and minimum to f16 moves the ends of the range by.
      const float slack = 0.5f * scale + 0x1p-11f * (scale * float(1 << bits) + 2 * std::fabs(min));
      EXPECT_LE(std::fabs(back[static_cast<size_t>(i)] - w[static_cast<size_t>(i)]), slack * 1.001f) << bits << " " << i;
    }
    TileSource source;
    source.rows = rows;
    source.cols = cols;
    source.group = 32;
    source.codes = q.codes.data();
    source.scales = q.scales_f16.data();
    source.mins = q.mins_f16.data();
    const TileStorage t = pack_tiles(kernels, tile_format(bits), source, nullptr);
    EXPECT_EQ(t.weight.kind, GroupKind::minimum);
    std::vector<float> got(w.size());
    dequantize(kernels, t.weight, got.data());
    EXPECT_EQ(got, back);
  }
}

TEST(Rtn, ZeroPointsThatAreAllTheSameAreNotStored) {
  const KernelTable kernels = build_kernel_table(best_tier());
  const std::vector<float> w = matrix(32 * 256, 12);
  size_t bytes[2];
  for (const bool symmetric : {false, true}) {
    const QuantizedMatrix q = quantize_rtn(w.data(), 32, 256, 2, 32, symmetric);
    const TileStorage t = pack_tiles(kernels, WeightFormat::q2, 32, 256, 32, q.codes.data(), q.zeros.data(),
                                     q.scales_f16.data(), nullptr, nullptr);
    EXPECT_EQ(t.weight.kind, symmetric ? GroupKind::symmetric : GroupKind::zero_points);
    bytes[symmetric] = t.weight.stored_bytes();
    std::vector<float> got(w.size());
    dequantize(kernels, t.weight, got.data());
    EXPECT_EQ(got, dequantize(q));
  }
  EXPECT_EQ(bytes[0], 32u * 256 / 4 + 32 * 8 * 3);  // two bits per code, three bytes per group
  EXPECT_EQ(bytes[1], 32u * 256 / 4 + 32 * 8 * 2);
}

TEST(Rtn, ConstantAndDamagedWeights) {
  const std::vector<float> zeros(64, 0.0f);
  for (float x : dequantize(quantize_rtn(zeros.data(), 2, 32, 4, 32, false))) EXPECT_EQ(x, 0);
  std::vector<float> damaged = matrix(64, 1);
  damaged[10] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(quantize_rtn(damaged.data(), 2, 32, 4, 32, false), Error);
}

}  // namespace
}  // namespace thimble
