// y[i, r] (+)= sum_g (w_scale x_scale) (sum_k code_w code_x - zero x_sum): integer sums inside a group are exact, one fma
// per group joins them in the order of the groups. Groups with a minimum add min (x_scale x_sum) by a second fma.
#include <cmath>

#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
void gemm_i8(const GemmI8Args& a) noexcept {
  const WeightView& w = a.w;
  for (int64_t i = 0; i < a.m; ++i) {
    for (int64_t r = 0; r < a.rows; ++r) {
      float acc = a.accumulate != 0 ? a.y[i * a.ldy + r] : 0.0f;
      for (int64_t g = 0; g < w.groups; ++g) {
        const int64_t begin = g * w.group, end = begin + w.group < w.cols ? begin + w.group : w.cols;
        int32_t sum = 0;
        for (int64_t c = begin; c < end; ++c)
          sum += static_cast<int32_t>(weight_code<F>(w, a.row0 + r, c)) * a.x[i * a.padded_cols + c];
        const float x_scale = a.x_scales[i * w.groups + g];
        const int32_t x_sum = a.x_sums[i * w.groups + g];
        sum -= group_zero(w, a.row0 + r, g) * x_sum;
        acc = std::fma(group_scale(w, a.row0 + r, g) * x_scale, static_cast<float>(sum), acc);
        if (w.mins != nullptr) acc = std::fma(group_min(w, a.row0 + r, g), x_scale * static_cast<float>(x_sum), acc);
      }
      a.y[i * a.ldy + r] = acc;
    }
  }
}

}  // namespace

void init_gemm_i8(KernelTable& t) {
  t.gemm_q8_i8 = gemm_i8<WeightFormat::q8>;
  t.gemm_q4_i8 = gemm_i8<WeightFormat::q4>;
  t.gemm_q2_i8 = gemm_i8<WeightFormat::q2>;
}

}  // namespace thimble::ref
