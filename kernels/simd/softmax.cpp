// softmax: y = exp(scale x - m) / sum exp(scale x - m), m = max(scale x), per row; a row of -inf only gives zeros.
// cross_entropy: lse = m + log sum exp(x - m), loss = lse - x[label], d_logits = (exp(x - m) / sum - onehot) d_scale.
// Three passes over a row that stays in cache: maximum; exponentials, kept in the output, and their sum; division. The
// exponentials fetch the next row, which otherwise the maximum would wait for.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"
#include "kernels/simd/sums.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kFetched = int64_t{1} << 16;  // rows up to this length: the next one fits beside them

inline void fetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The last n < kLanes numbers of a row times scale, -inf behind them: the factor first, so that a negative one does not
// turn the padding into +inf.
inline vf scaled_tail(const float* p, int64_t n, float scale) {
  alignas(64) float lane[kLanes];
  store(lane, set1(-kInfinity));
  for (int64_t i = 0; i < n; ++i) lane[i] = p[i] * scale;
  return load(lane);
}

// max(scale x) over a row; 0 if that is -inf, so that differences to it are not NaN.
inline float row_max(const float* x, int64_t cols, float scale) {
  constexpr int kChains = 4;
  const vf factor = set1(scale);
  vf max[kChains];
  unroll<kChains>([&](auto i) __attribute__((always_inline)) { max[decltype(i)::value] = set1(-kInfinity); });
  int64_t c = 0;
  for (; c + kChains * kLanes <= cols; c += kChains * kLanes)
    unroll<kChains>([&](auto i) __attribute__((always_inline)) {
      constexpr int kI = decltype(i)::value;
      max[kI] = vmax(load(x + c + kI * kLanes) * factor, max[kI]);
    });
  for (; c + kLanes <= cols; c += kLanes) max[0] = vmax(load(x + c) * factor, max[0]);
  if (c < cols) max[1] = vmax(scaled_tail(x + c, cols - c, scale), max[1]);
  const float m = reduce_max(vmax(vmax(max[0], max[1]), vmax(max[2], max[3])));
  return m == -kInfinity ? 0.0f : m;
}

// y = exp(scale x + shift) and the sum: four vectors in f32, then in double (two roundings of a term more than all in
// double, a quarter of the conversions). y may be x or null.
inline double row_exp(const float* x, float* y, int64_t cols, float scale, float shift) {
  constexpr int kGroup = 4;
  const vf factor = set1(scale), offset = set1(shift);
  const int64_t ahead = cols < kFetched ? cols : 0;
  DoubleSum sum;
  int64_t c = 0;
  for (; c + kGroup * kLanes <= cols; c += kGroup * kLanes) {
    vf e[kGroup];
    unroll<kGroup>([&](auto i) __attribute__((always_inline)) {
      constexpr int kI = decltype(i)::value;
      fetch(x + c + kI * kLanes + ahead);
      e[kI] = vexp(madd(load(x + c + kI * kLanes), factor, offset));
      if (y) store(y + c + kI * kLanes, e[kI]);
    });
    sum.add((e[0] + e[1]) + (e[2] + e[3]));
  }
  for (; c + kLanes <= cols; c += kLanes) {
    const vf e = vexp(madd(load(x + c), factor, offset));
    if (y) store(y + c, e);
    sum.add(e);
  }
  if (c < cols) {
    const vf e = vexp(scaled_tail(x + c, cols - c, scale) + offset);
    if (y) store_head(y + c, e, cols - c);
    sum.add(e);
  }
  return sum.total();
}

inline void row_scale(float* y, int64_t cols, float factor) {
  const vf f = set1(factor);
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) store(y + c, load(y + c) * f);
  if (c < cols) store_head(y + c, load_head(y + c, cols - c) * f, cols - c);
}

void softmax(const SoftmaxArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    const double total = row_exp(x, y, a.cols, a.scale, -row_max(x, a.cols, a.scale));
    row_scale(y, a.cols, total == 0 ? 0.0f : static_cast<float>(1 / total));
  }
}

void cross_entropy(const CrossEntropyArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.logits + r * a.ld;
    float* dx = a.d_logits ? a.d_logits + r * a.ld : nullptr;
    const int64_t label = a.labels[r];
    const double at_label = label < 0 ? 0.0 : static_cast<double>(x[label]);
    const float max = row_max(x, a.cols, 1.0f);
    const double total = row_exp(x, label < 0 ? nullptr : dx, a.cols, 1.0f, -max), lse = static_cast<double>(max) + __builtin_log(total);
    a.loss[r] = label < 0 ? 0.0 : lse - at_label;
    if (a.lse) a.lse[r] = static_cast<float>(lse);
    if (!dx) continue;
    if (label < 0) {
      int64_t c = 0;
      for (; c + kLanes <= a.cols; c += kLanes) store(dx + c, set1(0.0f));
      if (c < a.cols) store_head(dx + c, set1(0.0f), a.cols - c);
      continue;
    }
    const double factor = static_cast<double>(a.d_scale) / total;
    const double label_value = static_cast<double>(dx[label]) * factor - static_cast<double>(a.d_scale);
    row_scale(dx, a.cols, static_cast<float>(factor));
    dx[label] = static_cast<float>(label_value);
  }
}

}  // namespace

void init_softmax(KernelTable& t) {
  t.softmax = softmax;
  t.cross_entropy = cross_entropy;
}

}  // namespace thimble::THIMBLE_ISA
