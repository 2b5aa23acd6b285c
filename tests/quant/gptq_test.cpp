// GPTQ against the textbook: a double-precision column loop that updates the whole inverse Hessian, without blocks,
// factors or kernels. And what must hold on any data: the error it minimises is never worse than rounding's, the result
// does not depend on threads, and a failing factorization is answered with more damping.
#include "quant/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "quant/awq.h"
#include "quant/prune.h"
#include "tensor/error.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

const KernelTable& kernels() {
  static const KernelTable table = build_kernel_table(best_tier());
  return table;
}

// Tokens [m, n] whose columns are correlated and of different size.
std::vector<float> inputs(int64_t m, int64_t n, uint64_t seed) {
  Philox rng(seed, 7);
  std::vector<float> x(static_cast<size_t>(m * n));
  for (int64_t t = 0; t < m; ++t) {
    const double common = rng.normal();
    for (int64_t c = 0; c < n; ++c)
      x[static_cast<size_t>(t * n + c)] = static_cast<float>((rng.normal() + 0.7 * common) * (0.2 + double(c * 37 % 11)));
  }
  return x;
}

std::vector<float> weights(int64_t rows, int64_t cols, uint64_t seed) {
  Philox rng(seed, 1);
  std::vector<float> w(static_cast<size_t>(rows * cols));
  for (float& v : w) v = static_cast<float>(rng.normal());
  return w;
}

InputStatistics statistics(const std::vector<float>& x, int64_t n, int threads = 2) {
  InputStatistics s(n);
  s.add(kernels(), threads, x.data(), static_cast<int64_t>(x.size()) / n, n);
  return s;
}

double output_error(const std::vector<float>& x, const std::vector<float>& w, const std::vector<float>& v, int64_t rows, int64_t cols) {
  double sum = 0;
  for (size_t t = 0; t < x.size() / size_t(cols); ++t)
    for (int64_t r = 0; r < rows; ++r) {
      double y = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(r * cols + c);
        y += (double(w[i]) - double(v[i])) * double(x[t * size_t(cols) + size_t(c)]);
      }
      sum += y * y;
    }
  return sum;
}

// The inverse by Gauss-Jordan elimination.
std::vector<double> inverse(std::vector<double> a, int64_t n) {
  std::vector<double> b(a.size());
  for (int64_t i = 0; i < n; ++i) b[size_t(i * n + i)] = 1;
  for (int64_t p = 0; p < n; ++p) {
    const double d = a[size_t(p * n + p)];
    for (int64_t c = 0; c < n; ++c) a[size_t(p * n + c)] /= d, b[size_t(p * n + c)] /= d;
    for (int64_t r = 0; r < n; ++r) {
      if (r == p) continue;
      const double f = a[size_t(r * n + p)];
      for (int64_t c = 0; c < n; ++c) {
        a[size_t(r * n + c)] -= f * a[size_t(p * n + c)];
        b[size_t(r * n + c)] -= f * b[size_t(p * n + c)];
      }
    }
  }
  return b;
}

// Optimal brain quantization in a fixed order: quantize a column, spread its error by the inverse Hessian's row, then
// eliminate the column from the inverse.
std::vector<float> textbook(const std::vector<float>& x, const std::vector<float>& w, int64_t rows, int64_t n,
                            const WeightSpec& spec, double damp, bool act_order) {
  const auto m = static_cast<int64_t>(x.size()) / n;
  std::vector<double> h(size_t(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < m; ++t) sum += double(x[size_t(t * n + i)]) * double(x[size_t(t * n + j)]);
      h[size_t(i * n + j)] = 2 * sum / double(m);
    }
  double mean = 0;
  std::vector<double> diagonal;
  for (int64_t i = 0; i < n; ++i) diagonal.push_back(h[size_t(i * n + i)]), mean += diagonal.back() / double(n);
  for (int64_t i = 0; i < n; ++i) h[size_t(i * n + i)] += damp * mean;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  if (act_order)
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return diagonal[size_t(a)] > diagonal[size_t(b)]; });
  std::vector<double> inv = inverse(h, n);
  std::vector<double> work(w.begin(), w.end());
  std::vector<float> out(w.size());
  const int64_t group = spec.group > 0 ? spec.group : n;
  for (size_t step = 0; step < order.size(); ++step) {
    const int64_t p = order[step];
    const double d = inv[size_t(p * n + p)];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t begin = p / group * group;
      const Grid grid = choose_grid(&w[size_t(r * n + begin)], std::min(group, n - begin), spec.bits, spec.symmetric);
      const float q = grid.round(static_cast<float>(work[size_t(r * n + p)]));
      out[size_t(r * n + p)] = q;
      const double error = (work[size_t(r * n + p)] - double(q)) / d;
      for (size_t k = step; k < order.size(); ++k) work[size_t(r * n + order[k])] -= error * inv[size_t(p * n + order[k])];
    }
    const std::vector<double> row(inv.begin() + p * n, inv.begin() + (p + 1) * n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) inv[size_t(i * n + j)] -= row[size_t(i)] * row[size_t(j)] / d;
  }
  return out;
}

TEST(Gptq, AgreesWithTheTextbook) {
  for (int64_t n : {24, 72, 160})
    for (bool act_order : {false, true})
      for (const WeightSpec& spec : {WeightSpec{4, 32, false}, WeightSpec{3, 0, true}, WeightSpec{2, 64, false}}) {
        const int64_t rows = 9;
        const std::vector<float> x = inputs(3 * n, n, 11), w = weights(rows, n, 5);
        const InverseFactor f = factor_hessian(statistics(x, n), 0.01, act_order, 2);
        ASSERT_TRUE(f.ok);
        EXPECT_EQ(f.damp, 0.01);
        const std::vector<float> got = dequantize(gptq(w.data(), rows, f, {spec}, kernels(), 2));
        const std::vector<float> want = textbook(x, w, rows, n, spec, 0.01, act_order);
        // A value near the middle between two codes may fall either way, and what follows in its row then differs too.
        int64_t same_rows = 0;
        for (int64_t r = 0; r < rows; ++r) same_rows += std::equal(&got[size_t(r * n)], &got[size_t(r * n)] + n, &want[size_t(r * n)]);
        EXPECT_GE(same_rows, rows - 1) << spec.name() << " " << n << " " << act_order;
        EXPECT_NEAR(output_error(x, w, got, rows, n) / output_error(x, w, want, rows, n), 1.0, 0.02);
      }
}

TEST(Gptq, BeatsRoundingOnItsObjective) {
  for (uint64_t seed = 1; seed <= 6; ++seed)
    for (const WeightSpec& spec : {WeightSpec{8, 64, true}, WeightSpec{4, 64, false}, WeightSpec{4, 0, true}, WeightSpec{3, 128, false}, WeightSpec{2, 32, false}})
      for (int variant = 0; variant < 4; ++variant) {
        const int64_t rows = 20, n = 200;
        const std::vector<float> x = inputs(600, n, seed), w = weights(rows, n, seed + 100);
        const InverseFactor f = factor_hessian(statistics(x, n), 0.01, variant % 2 == 1, 2);
        const QuantizedMatrix q = gptq(w.data(), rows, f, {spec, variant < 2, false}, kernels(), 2);
        const double gptq_error = output_error(x, w, dequantize(q), rows, n);
        const double rtn_error = output_error(x, w, dequantize(quantize_rtn(w.data(), rows, n, spec, nullptr, 1)), rows, n);
        EXPECT_LT(gptq_error, rtn_error) << spec.name() << " seed " << seed << " variant " << variant;
      }
}

TEST(Gptq, ThreadsDoNotMatterAndGroupsKeepTheirInputs) {
  const int64_t rows = 21, n = 136;
  const std::vector<float> x = inputs(400, n, 3), w = weights(rows, n, 4);
  for (bool static_groups : {true, false}) {
    QuantizedMatrix first;
    for (int threads : {1, 2, 3}) {
      const InverseFactor f = factor_hessian(statistics(x, n, threads), 0.01, true, threads);
      QuantizedMatrix q = gptq(w.data(), rows, f, {{3, 32, false}, static_groups, false}, kernels(), threads);
      if (threads == 1) {
        first = std::move(q);
        continue;
      }
      EXPECT_EQ(q.codes, first.codes);
      EXPECT_EQ(q.zeros, first.zeros);
      EXPECT_EQ(q.scales_f16, first.scales_f16);
      EXPECT_EQ(q.perm, first.perm);
    }
    if (static_groups) {
      EXPECT_TRUE(first.perm.empty());
    } else {
      std::vector<int32_t> sorted = first.perm;
      std::sort(sorted.begin(), sorted.end());
      for (size_t i = 0; i < sorted.size(); ++i) EXPECT_EQ(sorted[i], static_cast<int32_t>(i));
    }
  }
}

TEST(Gptq, DampingGrowsUntilTheFactorExists) {
  const int64_t n = 16;
  // Two equal columns and no damping: singular up to rounding. A dead column besides.
  std::vector<float> x = inputs(40, n, 9);
  for (size_t t = 0; t < 40; ++t) {
    x[t * size_t(n) + 3] = x[t * size_t(n) + 2];
    x[t * size_t(n) + 5] = 0;
  }
  InverseFactor f = factor_hessian(statistics(x, n), 0.0, false, 1);
  ASSERT_TRUE(f.ok);
  for (float u : f.upper) EXPECT_TRUE(std::isfinite(u));
  // Fewer tokens than columns: rank 4 of 16.
  f = factor_hessian(statistics(inputs(4, n, 2), n), 0.0, false, 1);
  ASSERT_TRUE(f.ok);
  EXPECT_GE(f.damp, 0.0);
  const std::vector<float> w = weights(3, n, 8);
  for (float v : dequantize(gptq(w.data(), 3, f, {{4, 0, false}}, kernels(), 1))) EXPECT_TRUE(std::isfinite(v));
  x[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(factor_hessian(statistics(x, n), 0.01, false, 1).ok);
  std::vector<float> damaged = w;
  damaged[2] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(gptq(damaged.data(), 3, f, {{4, 0, false}}, kernels(), 1), Error);
}

TEST(Awq, NeverWorseThanNoScalingOrRatioZero) {
  for (uint64_t seed = 1; seed <= 5; ++seed)
    for (const WeightSpec& spec : {WeightSpec{4, 32, false}, WeightSpec{3, 0, false}, WeightSpec{4, 64, true}}) {
      const int64_t rows = 24, n = 96;
      const std::vector<float> x = inputs(300, n, seed), w = weights(rows, n, seed + 50);
      const InputStatistics s = statistics(x, n);
      const std::vector<float> gram = s.gram_f32();
      std::vector<float> rounded(w.size());
      const auto loss = [&](const std::vector<float>& scales) {
        round_scaled(w.data(), rows, n, spec, scales, rounded.data(), 2);
        return output_error(x, w, rounded, rows, n);
      };
      const AwqScales a = search_scales(s.mean_abs(), awq_weight_means({w.data()}, {rows}, n, spec), loss);
      EXPECT_LE(a.loss, a.loss_unscaled);
      EXPECT_LE(a.loss, a.loss_zero);
      EXPECT_EQ(a.loss, loss(a.scales));
      // Inputs that differ fiftyfold in size leave something to gain.
      EXPECT_LT(a.loss, a.loss_unscaled) << spec.name() << " seed " << seed;
      // The clip search starts from the whole range, group by group.
      const std::vector<float> shrink = awq_clip(w.data(), rows, n, spec, gram.data(), kernels(), 2);
      const int64_t width = group_width(spec, n), groups = group_count(spec, n);
      const std::vector<float> plain = dequantize(quantize_rtn(w.data(), rows, n, spec, nullptr, 1));
      const std::vector<float> clipped = dequantize(quantize_rtn(w.data(), rows, n, spec, shrink.data(), 1));
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t columns = std::min(width, n - g * width);  // the last group may be narrower
        std::vector<float> d(size_t(rows * columns)), e(d.size());
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; ++c) {
            const auto from = size_t(r * n + g * width + c), to = size_t(r * columns + c);
            d[to] = w[from] - clipped[from];
            e[to] = w[from] - plain[from];
          }
        const float* corner = gram.data() + g * width * n + g * width;
        EXPECT_LE(gram_error(kernels(), 1, d.data(), rows, columns, corner, n), gram_error(kernels(), 1, e.data(), rows, columns, corner, n) * 1.0001);
      }
    }
}

TEST(Awq, GramErrorIsTheErrorOfTheOutputs) {
  const int64_t rows = 7, n = 40;
  const std::vector<float> x = inputs(90, n, 4), w = weights(rows, n, 6), zero(w.size(), 0.0f);
  const std::vector<float> gram = statistics(x, n).gram_f32();
  EXPECT_NEAR(gram_error(kernels(), 2, w.data(), rows, n, gram.data(), n) * 90 / output_error(x, w, zero, rows, n), 1.0, 1e-4);
}

int64_t zeros_in(const float* w, int64_t n) { return std::count(w, w + n, 0.0f); }

TEST(Prune, CountsAreExactAndTheSmallestGo) {
  const int64_t rows = 13, n = 140;
  const std::vector<float> x = inputs(500, n, 1), original = weights(rows, n, 2);
  const InputStatistics s = statistics(x, n);
  const InverseFactor f = factor_hessian(s, 0.01, false, 2);
  const std::vector<float> norms = s.norms();
  for (const char* text : {"0.5", "0.3", "0.93"}) {
    const Sparsity sparsity = parse_sparsity(text);
    std::vector<float> w = original;
    prune_magnitude(w.data(), rows, n, sparsity, false, 2);
    EXPECT_EQ(zeros_in(w.data(), rows * n), std::llround(sparsity.fraction * double(rows * n)));
    float largest_gone = 0, smallest_kept = 1e9f;
    for (size_t i = 0; i < w.size(); ++i) {
      if (w[i] == 0) largest_gone = std::max(largest_gone, std::fabs(original[i]));
      else smallest_kept = std::min(smallest_kept, std::fabs(w[i]));
    }
    EXPECT_LE(largest_gone, smallest_kept);
    w = original;
    prune_magnitude(w.data(), rows, n, sparsity, true, 2);
    for (int64_t r = 0; r < rows; ++r) EXPECT_EQ(zeros_in(&w[size_t(r * n)], n), std::llround(sparsity.fraction * double(n)));
    w = original;
    prune_wanda(w.data(), rows, n, norms, sparsity, 2);
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_EQ(zeros_in(&w[size_t(r * n)], n), std::llround(sparsity.fraction * double(n)));
      float gone = 0, kept = 1e30f;
      for (int64_t c = 0; c < n; ++c) {
        const float score = std::fabs(original[size_t(r * n + c)]) * norms[size_t(c)];
        (w[size_t(r * n + c)] == 0 ? gone : kept) = w[size_t(r * n + c)] == 0 ? std::max(gone, score) : std::min(kept, score);
      }
      EXPECT_LE(gone, kept);
    }
    w = original;
    prune_sparsegpt(w.data(), rows, f, sparsity, kernels(), 2);
    EXPECT_EQ(zeros_in(w.data(), rows * n), std::llround(sparsity.fraction * double(rows * n)));
  }
}

TEST(Prune, OfEveryFourTwoStay) {
  const int64_t rows = 6, n = 134;  // 33 fours and a pair
  const std::vector<float> x = inputs(500, n, 1), original = weights(rows, n, 2);
  const InputStatistics s = statistics(x, n);
  const Sparsity sparsity = parse_sparsity("2:4");
  std::vector<float> magnitude = original, wanda = original, sparsegpt = original;
  prune_magnitude(magnitude.data(), rows, n, sparsity, false, 2);
  prune_wanda(wanda.data(), rows, n, s.norms(), sparsity, 2);
  prune_sparsegpt(sparsegpt.data(), rows, factor_hessian(s, 0.01, false, 2), sparsity, kernels(), 2);
  for (const std::vector<float>* w : {&magnitude, &wanda, &sparsegpt})
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c + 4 <= n; c += 4) EXPECT_EQ(zeros_in(&(*w)[size_t(r * n + c)], 4), 2);
      EXPECT_EQ(zeros_in(&(*w)[size_t(r * n + 132)], 2), 0);
    }
}

TEST(Prune, WhatKnowsMoreLeavesSmallerErrors) {
  const int64_t rows = 16, n = 160;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const std::vector<float> x = inputs(700, n, seed), original = weights(rows, n, seed + 9);
    const InputStatistics s = statistics(x, n);
    for (const char* text : {"0.5", "2:4"}) {
      const Sparsity sparsity = parse_sparsity(text);
      std::vector<float> magnitude = original, wanda = original, sparsegpt = original;
      prune_magnitude(magnitude.data(), rows, n, sparsity, true, 1);
      prune_wanda(wanda.data(), rows, n, s.norms(), sparsity, 1);
      prune_sparsegpt(sparsegpt.data(), rows, factor_hessian(s, 0.01, false, 1), sparsity, kernels(), 1);
      const double m = output_error(x, original, magnitude, rows, n), w = output_error(x, original, wanda, rows, n);
      EXPECT_LT(w, m);
      EXPECT_LT(output_error(x, original, sparsegpt, rows, n), w);
    }
  }
}

TEST(Prune, ZerosSurviveRounding) {
  std::vector<float> w = weights(8, 96, 3);
  prune_magnitude(w.data(), 8, 96, parse_sparsity("0.5"), true, 1);
  for (const WeightSpec& spec : {WeightSpec{4, 32, false}, WeightSpec{3, 0, true}}) {
    const std::vector<float> back = dequantize(quantize_rtn(w.data(), 8, 96, spec, nullptr, 1));
    for (size_t i = 0; i < w.size(); ++i)
      if (w[i] == 0) {
        EXPECT_EQ(back[i], 0.0f);
      }
  }
}

}  // namespace
}  // namespace thimble
