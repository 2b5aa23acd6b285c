#include "quant/prune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quant/rtn.h"
#include "tensor/error.h"
#include "tensor/gemm.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kBlock = 128;

size_t at(int64_t i) { return static_cast<size_t>(i); }

// fn(index) for the `count` smallest scores, of equal ones the first.
template <class Fn>
void for_smallest(const std::vector<float>& scores, int64_t count, Fn&& fn) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto before = [&](int64_t a, int64_t b) {
    return scores[at(a)] != scores[at(b)] ? scores[at(a)] < scores[at(b)] : a < b;
  };
  if (count < static_cast<int64_t>(order.size())) std::nth_element(order.begin(), order.begin() + count, order.end(), before);
  for (int64_t i = 0; i < count; ++i) fn(order[at(i)]);
}

int64_t share(double fraction, int64_t n) { return std::llround(fraction * double(n)); }

// Zeroes by scores of one row.
void prune_row(float* w, const std::vector<float>& scores, const Sparsity& s) {
  const auto cols = static_cast<int64_t>(scores.size());
  if (s.of == 0) return for_smallest(scores, share(s.fraction, cols), [&](int64_t c) { w[c] = 0; });
  std::vector<float> part;
  for (int64_t begin = 0; begin < cols; begin += s.of) {
    part.assign(scores.begin() + begin, scores.begin() + std::min(cols, begin + s.of));
    const auto n = static_cast<int64_t>(part.size());
    for_smallest(part, n - std::min(n, s.keep), [&](int64_t c) { w[begin + c] = 0; });
  }
}

void prune_rows(float* w, int64_t rows, int64_t cols, const float* norms, const Sparsity& sparsity, int threads) {
  parallel_for(threads, rows, [&](int64_t r, int) {
    std::vector<float> scores(at(cols));
    for (int64_t c = 0; c < cols; ++c) scores[at(c)] = std::fabs(w[r * cols + c]) * (norms ? norms[c] : 1.0f);
    prune_row(w + r * cols, scores, sparsity);
  });
}

}  // namespace

void prune_magnitude(float* w, int64_t rows, int64_t cols, const Sparsity& sparsity, bool per_row, int threads) {
  check_finite(w, rows * cols);
  if (per_row || sparsity.of > 0) return prune_rows(w, rows, cols, nullptr, sparsity, threads);
  std::vector<float> scores(at(rows * cols));
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = std::fabs(w[i]);
  for_smallest(scores, share(sparsity.fraction, rows * cols), [&](int64_t i) { w[i] = 0; });
}

void prune_wanda(float* w, int64_t rows, int64_t cols, const std::vector<float>& norms, const Sparsity& sparsity, int threads) {
  THIMBLE_CHECK(static_cast<int64_t>(norms.size()) == cols);
  check_finite(w, rows * cols);
  prune_rows(w, rows, cols, norms.data(), sparsity, threads);
}

void prune_sparsegpt(float* w, int64_t rows, const InverseFactor& factor, const Sparsity& sparsity,
                     const KernelTable& kernels, int threads) {
  THIMBLE_CHECK(factor.ok && factor.perm.empty());
  const int64_t n = factor.cols;
  check_finite(w, rows * n);
  std::vector<float> errors(at(rows * kBlock)), scratch, scores;
  std::vector<uint8_t> zero(at(rows * kBlock));
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin), end = begin + count;
    std::fill(zero.begin(), zero.end(), uint8_t{0});
    const auto score = [&](float x, int64_t p) {
      const float d = factor.upper[at(p * n + p)];
      return x * x / (d * d);
    };
    if (sparsity.of == 0) {
      scores.resize(at(rows * count));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < count; ++c) scores[at(r * count + c)] = score(w[r * n + begin + c], begin + c);
      // Differences of rounded shares, so that the blocks add up to the share of the whole.
      const int64_t wanted = share(sparsity.fraction, rows * end) - share(sparsity.fraction, rows * begin);
      for_smallest(scores, wanted, [&](int64_t i) { zero[at(i / count * kBlock + i % count)] = 1; });
    }
    parallel_for(threads, rows, [&](int64_t r, int) {
      float* row = w + r * n;
      std::vector<float> part;
      for (int64_t p = begin; p < end; ++p) {
        if (sparsity.of > 0 && (p - begin) % sparsity.of == 0) {
          part.clear();
          for (int64_t c = p; c < std::min(end, p + sparsity.of); ++c) part.push_back(score(row[c], c));
          const auto m = static_cast<int64_t>(part.size());
          for_smallest(part, m - std::min(m, sparsity.keep), [&](int64_t c) { zero[at(r * kBlock + p - begin + c)] = 1; });
        }
        const float* u = &factor.upper[at(p * n)];
        float error = 0;
        if (zero[at(r * kBlock + p - begin)]) {
          error = row[p] / u[p];
          row[p] = 0;
          for (int64_t j = p + 1; j < end; ++j) row[j] -= error * u[j];
        }
        errors[at(r * kBlock + p - begin)] = -error;
      }
    });
    factor.spread(kernels, threads, rows, errors.data(), kBlock, begin, end, w + end, scratch);
  }
}

}  // namespace thimble
