// softmax: y = exp(scale x - m) / sum exp(scale x - m), m = max(scale x), per row; a row of -inf only gives zeros.
// cross_entropy: lse = m + log sum exp(x - m), loss = lse - x[label], d_logits = (exp(x - m) / sum - onehot) d_scale.
// Three passes over a row that stays in cache: maximum; exponentials, kept in the output, and their sum in double;
// division.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"
#include "kernels/simd/sums.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

inline vf load_or_minus_infinity(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  alignas(64) float lane[kLanes];
  store(lane, set1(-kInfinity));
  for (int64_t i = 0; i < n; ++i) lane[i] = p[i];
  return load(lane);
}

inline void store_part(float* p, vf v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_head(p, v, n);
  }
}

// max(scale x) over a row; 0 if that is -inf, so that differences to it are not NaN.
inline float row_max(const float* x, int64_t cols, float scale) {
  vf max = set1(-kInfinity);
  for (int64_t c = 0; c < cols; c += kLanes) {
    // The factor first, and -inf last, so that a negative scale does not turn the padding into +inf.
    if (cols - c >= kLanes) {
      max = vmax(load(x + c) * set1(scale), max);
    } else {
      alignas(64) float lane[kLanes];
      store(lane, set1(-kInfinity));
      for (int64_t i = 0; i < cols - c; ++i) lane[i] = x[c + i] * scale;
      max = vmax(load(lane), max);
    }
  }
  const float m = reduce_max(max);
  return m == -kInfinity ? 0.0f : m;
}

void softmax(const SoftmaxArgs& a) noexcept {
  const vf scale = set1(a.scale);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    const vf shift = set1(-row_max(x, a.cols, a.scale));
    DoubleSum sum;
    int64_t c = 0;
    for (; c + kLanes <= a.cols; c += kLanes) {
      const vf e = vexp(madd(load(x + c), scale, shift));
      sum.add(e);
      store(y + c, e);
    }
    double total = sum.total();
    if (c < a.cols) {
      alignas(64) float lane[kLanes];
      store(lane, vexp(madd(load_head(x + c, a.cols - c), scale, shift)));
      for (int64_t i = 0; i < a.cols - c; ++i) {
        total += static_cast<double>(lane[i]);
        y[c + i] = lane[i];
      }
    }
    const vf inverse = set1(total == 0 ? 0.0f : static_cast<float>(1 / total));
    for (c = 0; c + kLanes <= a.cols; c += kLanes) store(y + c, load(y + c) * inverse);
    if (c < a.cols) store_head(y + c, load_head(y + c, a.cols - c) * inverse, a.cols - c);
  }
}

void cross_entropy(const CrossEntropyArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.logits + r * a.ld;
    float* dx = a.d_logits ? a.d_logits + r * a.ld : nullptr;
    const int64_t label = a.labels[r];
    const double at_label = label < 0 ? 0.0 : static_cast<double>(x[label]);
    const float max = row_max(x, a.cols, 1.0f);
    DoubleSum sum;
    for (int64_t c = 0; c < a.cols; c += kLanes) {
      const vf e = vexp(load_or_minus_infinity(x + c, a.cols - c) - set1(max));
      sum.add(e);
      if (dx) store_part(dx + c, e, a.cols - c);
    }
    const double total = sum.total(), lse = static_cast<double>(max) + __builtin_log(total);
    a.loss[r] = label < 0 ? 0.0 : lse - at_label;
    if (a.lse) a.lse[r] = static_cast<float>(lse);
    if (!dx) continue;
    if (label < 0) {
      for (int64_t c = 0; c < a.cols; c += kLanes) store_part(dx + c, set1(0.0f), a.cols - c);
      continue;
    }
    const double factor = static_cast<double>(a.d_scale) / total;
    const vf f = set1(static_cast<float>(factor));
    const double label_value = static_cast<double>(dx[label]) * factor - static_cast<double>(a.d_scale);
    int64_t c = 0;
    for (; c + kLanes <= a.cols; c += kLanes) store(dx + c, load(dx + c) * f);
    if (c < a.cols) store_head(dx + c, load_head(dx + c, a.cols - c) * f, a.cols - c);
    dx[label] = static_cast<float>(label_value);
  }
}

}  // namespace

void init_softmax(KernelTable& t) {
  t.softmax = softmax;
  t.cross_entropy = cross_entropy;
}

}  // namespace thimble::THIMBLE_ISA
