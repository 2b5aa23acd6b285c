// y[i, r] (+)= sum_c x[i, c] W(r, c) for up to eight rows of x, straight from any weight format: the same chains over c as
// panel_t with gemm_f32.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
void gemv(const GemvArgs& a) noexcept {
  for (int64_t i = 0; i < a.m; ++i) {
    for (int64_t r = 0; r < a.rows; ++r) {
      float acc = a.accumulate != 0 ? a.y[i * a.ldy + r] : 0.0f;
      for (int64_t c = 0; c < a.w.cols; ++c) acc += a.x[i * a.ldx + c] * weight<F>(a.w, a.row0 + r, c);
      a.y[i * a.ldy + r] = acc;
    }
  }
}

}  // namespace

void init_gemv(KernelTable& t) {
  t.gemv_tile_rows = 4;
  t.gemv_dense_rows = kGemvMaxRows;
  t.gemv_f32 = gemv<WeightFormat::f32>;
  t.gemv_f16 = gemv<WeightFormat::f16>;
  t.gemv_bf16 = gemv<WeightFormat::bf16>;
  t.gemv_q8 = gemv<WeightFormat::q8>;
  t.gemv_q4 = gemv<WeightFormat::q4>;
  t.gemv_q2 = gemv<WeightFormat::q2>;
}

}  // namespace thimble::ref
