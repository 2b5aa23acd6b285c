// out[i, :] = W(ids[i], :) as f32. Layout rows converts one row; tiles gather the row's lane out of every step, eight
// columns at a time (two words of q8, one of q4, half of one of q2; groups are multiples of eight columns). The next row
// is fetched meanwhile: it lies anywhere, which no hardware foresees.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

template <WeightFormat F>
void embed_rows(const EmbedArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i) {
    const auto* p = row_pointer<F>(a.w, a.ids[i], 0);
    const auto* next = row_pointer<F>(a.w, a.ids[i + 1 < a.n ? i + 1 : i], 0);
    float* out = a.out + i * a.ldo;
    int64_t c = 0;
    for (; c + kLanes <= a.w.cols; c += kLanes) {
      _mm_prefetch(reinterpret_cast<const char*>(next + c), _MM_HINT_T0);
      store(out + c, load_row<F>(p + c));
    }
    if (c < a.w.cols) store_head(out + c, load_row_head<F>(p + c, a.w.cols - c), a.w.cols - c);
  }
}

inline uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

// The codes of columns [8 u, 8 u + 8) of the row whose lane starts at `lane`, one per byte, in order.
template <WeightFormat F>
inline uint64_t eight_codes(const uint8_t* lane, int64_t u) {
  if constexpr (F == WeightFormat::q8) {
    return load_word(lane + 2 * u * 64) | uint64_t{load_word(lane + (2 * u + 1) * 64)} << 32;
  } else if constexpr (F == WeightFormat::q4) {
    const uint32_t word = load_word(lane + u * 64);
    return (word & 0x0F0F0F0Fu) | uint64_t{word >> 4 & 0x0F0F0F0Fu} << 32;
  } else {
    const uint32_t word = load_word(lane + u / 2 * 64) >> (u % 2 * 4);
    return (word & 0x03030303u) | uint64_t{word >> 2 & 0x03030303u} << 32;
  }
}

inline float parameter(const WeightView& w, const void* values, int64_t i) {
  return w.scale_f32 != 0 ? static_cast<const float*>(values)[i] : _cvtsh_ss(static_cast<const uint16_t*>(values)[i]);
}

template <WeightFormat F>
void embed_tiles(const EmbedArgs& a) noexcept {
  constexpr int64_t kLines = F == WeightFormat::q8 ? 2 : 1;  // for eight columns
  const WeightView& w = a.w;
  const auto tile = [&](int64_t r) { return static_cast<const uint8_t*>(w.data) + r / 16 * w.steps * 64; };
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t r = a.ids[i];
    const uint8_t* lane = tile(r) + r % 16 * 4;
    const uint8_t* next = tile(a.ids[i + 1 < a.n ? i + 1 : i]);
    float* out = a.out + i * a.ldo;
    __m256 scale = _mm256_setzero_ps(), min = _mm256_setzero_ps();
    __m256i zero = _mm256_setzero_si256();
    int64_t group_end = 0;
    for (int64_t c = 0; c < w.cols; c += 8) {
      if (c >= group_end) {
        const int64_t at = (r / 16 * w.groups + c / w.group) * 16 + r % 16;
        scale = _mm256_set1_ps(parameter(w, w.scales, at));
        zero = _mm256_set1_epi32(w.zeros != nullptr ? w.zeros[at] : w.zero);
        if (w.mins != nullptr) min = _mm256_set1_ps(parameter(w, w.mins, at));
        group_end = c + w.group;
      }
      for (int64_t l = 0; l < kLines; ++l)
        _mm_prefetch(reinterpret_cast<const char*>(next + (c / kStepColumns<F> + l) * 64), _MM_HINT_T0);
      const __m256i codes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(eight_codes<F>(lane, c / 8))));
      const __m256 v = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero)), min);
      if (w.cols - c >= 8) {
        _mm256_storeu_ps(out + c, v);
      } else {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_maskstore_ps(out + c, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(w.cols - c)), lanes), v);
      }
    }
  }
}

}  // namespace

void init_embed(KernelTable& t) {
  t.embed_f32 = embed_rows<WeightFormat::f32>;
  t.embed_f16 = embed_rows<WeightFormat::f16>;
  t.embed_bf16 = embed_rows<WeightFormat::bf16>;
  t.embed_q8 = embed_tiles<WeightFormat::q8>;
  t.embed_q4 = embed_tiles<WeightFormat::q4>;
  t.embed_q2 = embed_tiles<WeightFormat::q2>;
}

}  // namespace thimble::THIMBLE_ISA
