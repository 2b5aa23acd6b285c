// softmax: y = exp(scale x - m) / sum exp(scale x - m), m = max(scale x), per row; a row of -inf only gives zeros.
// cross_entropy: lse = m + log sum exp(x - m), loss = lse - x[label], d_logits = (exp(x - lse) - onehot) d_scale.
// Sums in double.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void softmax(const SoftmaxArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    double max = -HUGE_VAL;
    for (int64_t c = 0; c < a.cols; ++c) max = std::fmax(max, static_cast<double>(a.scale) * x[c]);
    if (max == -HUGE_VAL) max = 0;
    double sum = 0;
    for (int64_t c = 0; c < a.cols; ++c) sum += std::exp(static_cast<double>(a.scale) * x[c] - max);
    const double inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t c = 0; c < a.cols; ++c) {
      y[c] = static_cast<float>(std::exp(static_cast<double>(a.scale) * x[c] - max) * inverse);
    }
  }
}

void cross_entropy(const CrossEntropyArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.logits + r * a.ld;
    float* dx = a.d_logits ? a.d_logits + r * a.ld : nullptr;
    double max = -HUGE_VAL, sum = 0;
    for (int64_t c = 0; c < a.cols; ++c) max = std::fmax(max, x[c]);
    for (int64_t c = 0; c < a.cols; ++c) sum += std::exp(x[c] - max);
    const double lse = max + std::log(sum);
    const int64_t label = a.labels[r];
    a.loss[r] = label < 0 ? 0 : lse - x[label];
    if (a.lse) a.lse[r] = static_cast<float>(lse);
    if (!dx) continue;
    for (int64_t c = 0; c < a.cols; ++c) {
      const double p = std::exp(x[c] - lse);
      dx[c] = label < 0 ? 0.0f : static_cast<float>((p - (c == label ? 1.0 : 0.0)) * a.d_scale);
    }
  }
}

}  // namespace

void init_softmax(KernelTable& t) {
  t.softmax = softmax;
  t.cross_entropy = cross_entropy;
}

}  // namespace thimble::ref
