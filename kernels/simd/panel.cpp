// Panels for the f32 products, from any weight format (semantics: PanelArgs). panel_t wants rows side by side: layout rows
// is transposed in registers, kLanes x kLanes at a time; tiles have their rows in the lanes already. panel_n wants columns
// side by side: layout rows is copied, tiles are unpacked and transposed. So no format needs more than one transpose, and
// dequantization costs no pass of its own.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/transpose.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

void store_zeros(float* out, int64_t rows, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) store(out + i * stride, set1(0.0f));
}

// Rows [r, r + n) x columns [c, c + kLanes) as kLanes columns of rows; only the first `width` columns are read.
template <WeightFormat F>
[[gnu::always_inline]] inline void load_block(const WeightView& w, int64_t r, int64_t n, int64_t c, int64_t width, vf* v) {
  const auto* p = row_pointer<F>(w, r, c);
  if (n >= kLanes && width >= kLanes) {
    unroll<static_cast<int>(kLanes)>([&](auto i) __attribute__((always_inline)) {
      v[decltype(i)::value] = load_row<F>(p + decltype(i)::value * w.ld);
    });
  } else {
    for (int64_t i = 0; i < kLanes; ++i)
      v[i] = i >= n ? set1(0.0f) : width >= kLanes ? load_row<F>(p + i * w.ld) : load_row_head<F>(p + i * w.ld, width);
  }
  transpose(v);
}

template <WeightFormat F>
void rows_panel_t(const PanelArgs& a) noexcept {
  for (int64_t i = 0; i < a.nr; i += kLanes) {
    const int64_t n = a.rows - i;
    if (n <= 0) {
      store_zeros(a.out + i, a.cols, a.nr);
      continue;
    }
    for (int64_t c = 0; c < a.cols; c += kLanes) {
      float* out = a.out + c * a.nr + i;
      const int64_t width = a.cols - c;
      vf v[kLanes];
      load_block<F>(a.w, a.row0 + i, n, a.col0 + c, width, v);
      if (width >= kLanes) {
        unroll<static_cast<int>(kLanes)>(
            [&](auto j) __attribute__((always_inline)) { store(out + decltype(j)::value * a.nr, v[decltype(j)::value]); });
      } else {
        for (int64_t j = 0; j < width; ++j) store(out + j * a.nr, v[j]);
      }
    }
  }
}

template <WeightFormat F>
void rows_panel_n(const PanelArgs& a) noexcept {
  const int64_t whole = a.cols / kLanes * kLanes;
  for (int64_t r = 0; r < a.rows; ++r) {
    const auto* p = row_pointer<F>(a.w, a.row0 + r, a.col0);
    float* out = a.out + r * a.nr;
    int64_t c = 0;
    for (; c < whole; c += kLanes) store(out + c, load_row<F>(p + c));
    for (; c < a.nr; c += kLanes) store(out + c, c < a.cols ? load_row_head<F>(p + c, a.cols - c) : set1(0.0f));
  }
}

template <WeightFormat F>
void tiles_panel_t(const PanelArgs& a) noexcept {
  constexpr int kColumns = static_cast<int>(kStepColumns<F>);
  for (int64_t i = 0; i < a.nr; i += kLanes) {
    const int64_t n = a.rows - i;
    if (n <= 0) {
      store_zeros(a.out + i, a.cols, a.nr);
      continue;
    }
    const uint8_t* codes = strip_codes(a.w, a.row0 + i);
    const int64_t end = a.col0 + a.cols;
    float* out = a.out + i;
    for (int64_t c = a.col0; c < end;) {
      const int64_t g = c / a.w.group, group_end = (g + 1) * a.w.group < end ? (g + 1) * a.w.group : end;
      const StripGroup group = masked_group(a.w, a.row0 + i, g, n);
      for (; c + kColumns <= group_end; c += kColumns, out += kColumns * a.nr) {
        const vi words = load_i(codes + c / kColumns * 64);
        unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
          store(out + decltype(j)::value * a.nr, code_value<F, decltype(j)::value>(words, group));
        });
      }
      if (c < group_end) {
        const vi words = load_i(codes + c / kColumns * 64);
        unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
          if (c + decltype(j)::value < group_end)
            store(out + decltype(j)::value * a.nr, code_value<F, decltype(j)::value>(words, group));
        });
        c = end;
      }
    }
  }
}

// Columns [c, c + kLanes) of a strip, transposed: v[i] is row i. Columns beyond the padded ones are zero.
template <WeightFormat F>
[[gnu::always_inline]] inline void unpack_block(const WeightView& w, const uint8_t* codes, int64_t r, int64_t c, vf* v) {
  constexpr int kColumns = kBlockColumns<F>, kBlocks = static_cast<int>(kLanes) / kColumns;
  unroll<kBlocks>([&](auto index) __attribute__((always_inline)) {
    constexpr int s = decltype(index)::value;
    const int64_t column = c + s * kColumns;
    if (column < w.steps * kStepColumns<F>) {
      const StripGroup group = strip_group(w, r, column / w.group);
      const vi words = load_block_words<F>(codes, column);
      unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
        v[s * kColumns + decltype(j)::value] = code_value<F, decltype(j)::value>(words, group);
      });
    } else {
      unroll<kColumns>([&](auto j) __attribute__((always_inline)) { v[s * kColumns + decltype(j)::value] = set1(0.0f); });
    }
  });
  transpose(v);
}

template <WeightFormat F>
void tiles_panel_n(const PanelArgs& a) noexcept {
  for (int64_t i = 0; i < a.rows; i += kLanes) {
    const int64_t n = a.rows - i < kLanes ? a.rows - i : kLanes;
    const uint8_t* codes = strip_codes(a.w, a.row0 + i);
    for (int64_t c = 0; c < a.nr; c += kLanes) {
      float* out = a.out + i * a.nr + c;
      if (c >= a.cols) {
        store_zeros(out, n, a.nr);
        continue;
      }
      vf v[kLanes];
      unpack_block<F>(a.w, codes, a.row0 + i, a.col0 + c, v);
      if (n == kLanes && a.cols - c >= kLanes) {
        unroll<static_cast<int>(kLanes)>(
            [&](auto j) __attribute__((always_inline)) { store(out + decltype(j)::value * a.nr, v[decltype(j)::value]); });
      } else {
        for (int64_t j = 0; j < n; ++j)
          store(out + j * a.nr, a.cols - c >= kLanes ? v[j] : keep_head(v[j], a.cols - c));
      }
    }
  }
}

}  // namespace

void init_panel(KernelTable& t) {
  t.panel_t_f32 = rows_panel_t<WeightFormat::f32>;
  t.panel_t_f16 = rows_panel_t<WeightFormat::f16>;
  t.panel_t_bf16 = rows_panel_t<WeightFormat::bf16>;
  t.panel_t_q8 = tiles_panel_t<WeightFormat::q8>;
  t.panel_t_q4 = tiles_panel_t<WeightFormat::q4>;
  t.panel_t_q2 = tiles_panel_t<WeightFormat::q2>;
  t.panel_n_f32 = rows_panel_n<WeightFormat::f32>;
  t.panel_n_f16 = rows_panel_n<WeightFormat::f16>;
  t.panel_n_bf16 = rows_panel_n<WeightFormat::bf16>;
  t.panel_n_q8 = tiles_panel_n<WeightFormat::q8>;
  t.panel_n_q4 = tiles_panel_n<WeightFormat::q4>;
  t.panel_n_q2 = tiles_panel_n<WeightFormat::q2>;
}

}  // namespace thimble::THIMBLE_ISA
