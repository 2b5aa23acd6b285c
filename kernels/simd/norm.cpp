// RMSNorm (Zhang, Sennrich 2019) and LayerNorm (Ba, Kiros, Hinton 2016) over rows of `cols`, forward and backward.
//   forward   n = x rstd or (x - mean) rstd;  y = n f + b, f = w + w_offset (rms), w (layer), 1 without w
//   backward  g = dy f;  dx = rstd (g - n mean(g n)) and for layer_norm also - rstd mean(g);  dw += dy n;  db += dy
// Saved: rstd, and mean for layer_norm. Sums in double, by lane of two neighbouring vectors (so that additions do not wait
// for one another) and then across lanes in a fixed order; the variance is taken around the mean in a second pass over the
// row, which is then in cache.
#include "kernels/simd/init.h"
#include "kernels/simd/sums.h"

namespace thimble::THIMBLE_ISA {
namespace {

inline vf load_part(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_head(p, n); }
inline void store_part(float* p, vf v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_head(p, v, n);
  }
}

// w + offset; lanes beyond the row may hold anything finite.
inline vf factor(const float* w, int64_t c, int64_t n, vf offset) {
  return w ? load_part(w + c, n) + offset : set1(1.0f);
}

void rms_norm(const NormArgs& a) noexcept {
  const vf offset = set1(a.w_offset);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    DoubleSum squares, odd;
    int64_t begin = 0;
    for (; begin + 2 * kLanes <= a.cols; begin += 2 * kLanes) {
      const vf v = load(x + begin), u = load(x + begin + kLanes);
      squares.add_product(v, v);
      odd.add_product(u, u);
    }
    for (; begin < a.cols; begin += kLanes) {
      const vf v = load_part(x + begin, a.cols - begin);
      squares.add_product(v, v);
    }
    squares.add(odd);
    const double mean_square = squares.total() / static_cast<double>(a.cols);
    const float rstd = static_cast<float>(1 / __builtin_sqrt(mean_square + static_cast<double>(a.eps)));
    int64_t c = 0;
    if (a.w) {
      for (; c + kLanes <= a.cols; c += kLanes) store(y + c, load(x + c) * set1(rstd) * (load(a.w + c) + offset));
    }
    for (; c < a.cols; c += kLanes) {
      const int64_t n = a.cols - c;
      store_part(y + c, load_part(x + c, n) * set1(rstd) * factor(a.w, c, n, offset), n);
    }
    if (a.rstd) a.rstd[r] = rstd;
  }
}

void layer_norm(const NormArgs& a) noexcept {
  const double count = static_cast<double>(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    DoubleSum sum, odd_sum, squares, odd_squares;
    int64_t c = 0;
    for (; c + 2 * kLanes <= a.cols; c += 2 * kLanes) {
      sum.add(load(x + c));
      odd_sum.add(load(x + c + kLanes));
    }
    for (; c < a.cols; c += kLanes) sum.add(load_part(x + c, a.cols - c));
    sum.add(odd_sum);
    const double mean = sum.total() / count;
    for (c = 0; c + 2 * kLanes <= a.cols; c += 2 * kLanes) {
      squares.add_squared_distance(load(x + c), mean);
      odd_squares.add_squared_distance(load(x + c + kLanes), mean);
    }
    for (; c + kLanes <= a.cols; c += kLanes) squares.add_squared_distance(load(x + c), mean);
    squares.add(odd_squares);
    double tail = 0;
    for (int64_t i = c; i < a.cols; ++i) {
      const double d = static_cast<double>(x[i]) - mean;
      tail += d * d;
    }
    const double variance = (squares.total() + tail) / count;
    const float rstd = static_cast<float>(1 / __builtin_sqrt(variance + static_cast<double>(a.eps)));
    const vf center = set1(static_cast<float>(mean));
    c = 0;
    if (a.w && a.b) {
      for (; c + kLanes <= a.cols; c += kLanes)
        store(y + c, madd((load(x + c) - center) * set1(rstd), load(a.w + c), load(a.b + c)));
    }
    for (; c < a.cols; c += kLanes) {
      const int64_t n = a.cols - c;
      const vf normed = (load_part(x + c, n) - center) * set1(rstd);
      const vf b = a.b ? load_part(a.b + c, n) : set1(0.0f);
      store_part(y + c, madd(normed, factor(a.w, c, n, set1(0.0f)), b), n);
    }
    if (a.mean) a.mean[r] = static_cast<float>(mean);
    if (a.rstd) a.rstd[r] = rstd;
  }
}

template <bool kLayer>
void norm_bwd(const NormBwdArgs& a) noexcept {
  const vf offset = set1(kLayer ? 0.0f : a.w_offset);
  const double count = static_cast<double>(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    const float* dy = a.dy + r * a.cols;
    const vf mean = set1(kLayer ? a.mean[r] : 0.0f), rstd = set1(a.rstd[r]);
    DoubleSum sum_g, sum_gn;
    for (int64_t c = 0; c < a.cols; c += kLanes) {
      const int64_t n = a.cols - c;
      const vf d = load_part(dy + c, n);  // zero beyond the row, so the sums see nothing of the padding
      const vf normed = (load_part(x + c, n) - mean) * rstd, g = d * factor(a.w, c, n, offset);
      if (kLayer) sum_g.add(g);
      sum_gn.add_product(g, normed);
      if (a.dw) store_part(a.dw + c, madd(d, normed, load_part(a.dw + c, n)), n);
      if (kLayer && a.db) store_part(a.db + c, d + load_part(a.db + c, n), n);
    }
    if (!a.dx) continue;
    float* dx = a.dx + r * a.cols;
    const vf mean_g = set1(kLayer ? static_cast<float>(sum_g.total() / count) : 0.0f);
    const vf mean_gn = set1(static_cast<float>(sum_gn.total() / count));
    for (int64_t c = 0; c < a.cols; c += kLanes) {
      const int64_t n = a.cols - c;
      const vf normed = (load_part(x + c, n) - mean) * rstd, g = load_part(dy + c, n) * factor(a.w, c, n, offset);
      const vf inner = nmadd(normed, mean_gn, g - mean_g);
      store_part(dx + c, a.accumulate ? madd(rstd, inner, load_part(dx + c, n)) : rstd * inner, n);
    }
  }
}

}  // namespace

void init_norm(KernelTable& t) {
  t.rms_norm = rms_norm;
  t.rms_norm_bwd = norm_bwd<false>;
  t.layer_norm = layer_norm;
  t.layer_norm_bwd = norm_bwd<true>;
}

}  // namespace thimble::THIMBLE_ISA
