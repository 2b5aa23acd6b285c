// Panels of bf16 pairs for the bf16 products, from any weight format (semantics: PairPanelArgs): the f32 panels, each
// value rounded to bf16, with two neighbours along the depth in one 32-bit lane. bf16 weights keep their bits.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
uint32_t half(const WeightView& w, int64_t r, int64_t c) {
  if constexpr (F == WeightFormat::bf16) return static_cast<const uint16_t*>(w.data)[r * w.ld + c];
  return bf16_bits(weight<F>(w, r, c));
}

template <WeightFormat F>
void pairs_t(const PairPanelArgs& a) noexcept {
  for (int64_t c = 0; c < a.cols; c += 2) {
    for (int64_t r = 0; r < a.nr; ++r) {
      const uint32_t low = r < a.rows ? half<F>(a.w, a.row0 + r, a.col0 + c) : 0;
      const uint32_t high = r < a.rows && c + 1 < a.cols ? half<F>(a.w, a.row0 + r, a.col0 + c + 1) : 0;
      a.out[c / 2 * a.nr + r] = low | high << 16;
    }
  }
}

template <WeightFormat F>
void pairs_n(const PairPanelArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; r += 2) {
    for (int64_t c = 0; c < a.nr; ++c) {
      const uint32_t low = c < a.cols ? half<F>(a.w, a.row0 + r, a.col0 + c) : 0;
      const uint32_t high = c < a.cols && r + 1 < a.rows ? half<F>(a.w, a.row0 + r + 1, a.col0 + c) : 0;
      a.out[r / 2 * a.nr + c] = low | high << 16;
    }
  }
}

void pairs_columns(const PairPanelArgs& a) noexcept {
  for (int64_t c = 0; c < a.cols; ++c) {
    for (int64_t r = 0; r < a.rows; r += 2) {
      const uint32_t low = half<WeightFormat::f32>(a.w, a.row0 + r, a.col0 + c);
      const uint32_t high = r + 1 < a.rows ? half<WeightFormat::f32>(a.w, a.row0 + r + 1, a.col0 + c) : 0;
      a.out[c * a.nr + r / 2] = low | high << 16;
    }
  }
}

}  // namespace

void init_pairs(KernelTable& t) {
  t.pairs_t_f32 = pairs_t<WeightFormat::f32>;
  t.pairs_t_f16 = pairs_t<WeightFormat::f16>;
  t.pairs_t_bf16 = pairs_t<WeightFormat::bf16>;
  t.pairs_t_q8 = pairs_t<WeightFormat::q8>;
  t.pairs_t_q4 = pairs_t<WeightFormat::q4>;
  t.pairs_t_q2 = pairs_t<WeightFormat::q2>;
  t.pairs_n_f32 = pairs_n<WeightFormat::f32>;
  t.pairs_n_f16 = pairs_n<WeightFormat::f16>;
  t.pairs_n_bf16 = pairs_n<WeightFormat::bf16>;
  t.pairs_n_q8 = pairs_n<WeightFormat::q8>;
  t.pairs_n_q4 = pairs_n<WeightFormat::q4>;
  t.pairs_n_q2 = pairs_n<WeightFormat::q2>;
  t.pairs_columns = pairs_columns;
}

}  // namespace thimble::ref
