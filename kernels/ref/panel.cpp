// Panels for the f32 products, from any weight format: panel_t puts nr output features side by side with depth along the
// columns (y = x Wᵀ), panel_n puts nr columns side by side with depth along the rows (dx = dy W). Dequantization is part
// of packing. Entries beyond rows (panel_t) or cols (panel_n) up to nr are zero.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
void panel_t(const PanelArgs& a) noexcept {
  for (int64_t c = 0; c < a.cols; ++c)
    for (int64_t r = 0; r < a.nr; ++r)
      a.out[c * a.nr + r] = r < a.rows ? weight<F>(a.w, a.row0 + r, a.col0 + c) : 0.0f;
}

template <WeightFormat F>
void panel_n(const PanelArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t c = 0; c < a.nr; ++c)
      a.out[r * a.nr + c] = c < a.cols ? weight<F>(a.w, a.row0 + r, a.col0 + c) : 0.0f;
}

}  // namespace

void init_panel(KernelTable& t) {
  t.panel_t_f32 = panel_t<WeightFormat::f32>;
  t.panel_t_f16 = panel_t<WeightFormat::f16>;
  t.panel_t_bf16 = panel_t<WeightFormat::bf16>;
  t.panel_t_q8 = panel_t<WeightFormat::q8>;
  t.panel_t_q4 = panel_t<WeightFormat::q4>;
  t.panel_t_q2 = panel_t<WeightFormat::q2>;
  t.panel_n_f32 = panel_n<WeightFormat::f32>;
  t.panel_n_f16 = panel_n<WeightFormat::f16>;
  t.panel_n_bf16 = panel_n<WeightFormat::bf16>;
  t.panel_n_q8 = panel_n<WeightFormat::q8>;
  t.panel_n_q4 = panel_n<WeightFormat::q4>;
  t.panel_n_q2 = panel_n<WeightFormat::q2>;
}

}  // namespace thimble::ref
