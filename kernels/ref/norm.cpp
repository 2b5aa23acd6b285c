// RMSNorm (Zhang, Sennrich 2019) and LayerNorm (Ba, Kiros, Hinton 2016) over rows of `cols`, forward and backward.
//   forward   n = x rstd or (x - mean) rstd;  y = n f + b, f = w + w_offset (rms), w (layer), 1 without w
//   backward  g = dy f;  dx = rstd (g - n mean(g n)) and for layer_norm also - rstd mean(g);  dw += dy n;  db += dy
// Saved: rstd, and mean for layer_norm. Sums in double.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void rms_norm(const NormArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    double squares = 0;
    for (int64_t c = 0; c < a.cols; ++c) squares += static_cast<double>(x[c]) * x[c];
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(a.cols) + a.eps);
    for (int64_t c = 0; c < a.cols; ++c) {
      const double f = a.w ? static_cast<double>(a.w[c]) + a.w_offset : 1.0;
      y[c] = static_cast<float>(x[c] * rstd * f);
    }
    if (a.rstd) a.rstd[r] = static_cast<float>(rstd);
  }
}

void layer_norm(const NormArgs& a) noexcept {
  const double n = static_cast<double>(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    float* y = a.y + r * a.cols;
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < a.cols; ++c) sum += x[c];
    const double mean = sum / n;
    for (int64_t c = 0; c < a.cols; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const double rstd = 1 / std::sqrt(squares / n + a.eps);
    for (int64_t c = 0; c < a.cols; ++c) {
      const double f = a.w ? a.w[c] : 1.0, b = a.b ? a.b[c] : 0.0;
      y[c] = static_cast<float>((x[c] - mean) * rstd * f + b);
    }
    if (a.mean) a.mean[r] = static_cast<float>(mean);
    if (a.rstd) a.rstd[r] = static_cast<float>(rstd);
  }
}

template <bool kLayer>
void norm_bwd(const NormBwdArgs& a) noexcept {
  const double n = static_cast<double>(a.cols), offset = kLayer ? 0.0 : a.w_offset;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.cols;
    const float* dy = a.dy + r * a.cols;
    const double mean = kLayer ? a.mean[r] : 0.0, rstd = a.rstd[r];
    double sum_g = 0, sum_gn = 0;
    for (int64_t c = 0; c < a.cols; ++c) {
      const double g = dy[c] * (a.w ? a.w[c] + offset : 1.0), normed = (x[c] - mean) * rstd;
      sum_g += g;
      sum_gn += g * normed;
      if (a.dw) a.dw[c] += static_cast<float>(dy[c] * normed);
      if (kLayer && a.db) a.db[c] += dy[c];
    }
    if (!a.dx) continue;
    float* dx = a.dx + r * a.cols;
    for (int64_t c = 0; c < a.cols; ++c) {
      const double g = dy[c] * (a.w ? a.w[c] + offset : 1.0), normed = (x[c] - mean) * rstd;
      const double value = rstd * (g - normed * (sum_gn / n) - (kLayer ? sum_g / n : 0.0));
      dx[c] = static_cast<float>(a.accumulate ? dx[c] + value : value);
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

}  // namespace thimble::ref
