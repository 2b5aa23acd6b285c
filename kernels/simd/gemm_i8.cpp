// y[i, r] (+)= sum_g (w_scale x_scale) (sum_k code_w code_x - zero x_sum), codes of W unsigned, of x signed. Lanes are
// output rows; one 32-bit lane holds four codes of consecutive columns and meets the same four activations, broadcast. A
// register tile of kRows rows of x by kStrips strips has an int32 and an f32 accumulator per vector; nibbles are split in
// registers. Integer sums are exact on every path, one fma per group joins them, so all tiers agree bit for bit.
//   VNNI: vpdpbusd. Without: maddubs for 4-bit codes (15 * 127 * 2 fits in int16; it would saturate for 8-bit ones), and
//   8-bit codes widened to 16 bits as even and odd columns.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 6, kStrips = 2;
inline vi madd_i16(vi a, vi b) { return _mm512_madd_epi16(a, b); }
inline vi mul_i32(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
#else
constexpr int kRows = 4, kStrips = 2;
inline vi madd_i16(vi a, vi b) { return _mm256_madd_epi16(a, b); }
inline vi mul_i32(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
#endif

inline int32_t load_word(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

#if defined(__AVX512VNNI__)
#if defined(__clang__)
inline vi dot(vi acc, vi u, vi s) { return _mm512_dpbusd_epi32(acc, u, s); }
#else
// g++ 12 copies accumulators around the intrinsic.
[[gnu::always_inline]] inline vi dot(vi acc, vi u, vi s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
  return acc;
}
#endif
#elif defined(__AVXVNNI__)
inline vi dot(vi acc, vi u, vi s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
#elif defined(__AVX512F__)
inline vi multiply_bytes(vi u, vi s) { return _mm512_maddubs_epi16(u, s); }
inline vi add_i16(vi a, vi b) { return _mm512_add_epi16(a, b); }
inline vi ones_i16() { return _mm512_set1_epi16(1); }
inline vi even_unsigned(vi v) { return _mm512_and_si512(v, _mm512_set1_epi16(255)); }
inline vi odd_unsigned(vi v) { return _mm512_srli_epi16(v, 8); }
inline vi even_signed(vi v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); }
inline vi odd_signed(vi v) { return _mm512_srai_epi16(v, 8); }
#else
inline vi multiply_bytes(vi u, vi s) { return _mm256_maddubs_epi16(u, s); }
inline vi add_i16(vi a, vi b) { return _mm256_add_epi16(a, b); }
inline vi ones_i16() { return _mm256_set1_epi16(1); }
inline vi even_unsigned(vi v) { return _mm256_and_si256(v, _mm256_set1_epi16(255)); }
inline vi odd_unsigned(vi v) { return _mm256_srli_epi16(v, 8); }
inline vi even_signed(vi v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline vi odd_signed(vi v) { return _mm256_srai_epi16(v, 8); }
#endif

// One step (4 columns of q8, 8 of q4) of R rows and T strips.
template <WeightFormat F, int R, int T>
[[gnu::always_inline]] inline void step(const uint8_t* const* codes, const int8_t* x, int64_t ldx, vi (*acc)[T]) {
  vi words[T];
  unroll<T>([&](auto t) __attribute__((always_inline)) { words[decltype(t)::value] = load_i(codes[decltype(t)::value]); });
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  if constexpr (F == WeightFormat::q8) {
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const vi s = set1_i(load_word(x + decltype(i)::value * ldx));
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        sum = dot(sum, words[decltype(t)::value], s);
      });
    });
  } else {
    vi low[T], high[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      low[decltype(t)::value] = and_i(words[decltype(t)::value], set1_i(0x0F0F0F0F));
      high[decltype(t)::value] = and_i(shift_right(words[decltype(t)::value], 4), set1_i(0x0F0F0F0F));
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const int8_t* p = x + decltype(i)::value * ldx;
      const vi s = set1_i(load_word(p)), s4 = set1_i(load_word(p + 4));
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        sum = dot(sum, low[decltype(t)::value], s);
        sum = dot(sum, high[decltype(t)::value], s4);
      });
    });
  }
#else
  if constexpr (F == WeightFormat::q8) {
    vi even[T], odd[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      even[decltype(t)::value] = even_unsigned(words[decltype(t)::value]);
      odd[decltype(t)::value] = odd_unsigned(words[decltype(t)::value]);
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const vi s = set1_i(load_word(x + decltype(i)::value * ldx));
      const vi s_even = even_signed(s), s_odd = odd_signed(s);
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        sum = add_i(sum, add_i(madd_i16(even[decltype(t)::value], s_even), madd_i16(odd[decltype(t)::value], s_odd)));
      });
    });
  } else {
    vi low[T], high[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      low[decltype(t)::value] = and_i(words[decltype(t)::value], set1_i(0x0F0F0F0F));
      high[decltype(t)::value] = and_i(shift_right(words[decltype(t)::value], 4), set1_i(0x0F0F0F0F));
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const int8_t* p = x + decltype(i)::value * ldx;
      const vi s = set1_i(load_word(p)), s4 = set1_i(load_word(p + 4));
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        const vi pairs = add_i16(multiply_bytes(low[decltype(t)::value], s), multiply_bytes(high[decltype(t)::value], s4));
        sum = add_i(sum, madd_i16(pairs, ones_i16()));
      });
    });
  }
#endif
}

// R rows of x from row i on by T strips from row r of the weights on; the last strip has n rows inside the matrix.
template <WeightFormat F, int R, int T>
void tile(const GemmI8Args& a, int64_t i0, int64_t r0, int64_t n) {
  const WeightView& w = a.w;
  const int64_t ldx = a.padded_cols, steps_per_group = w.group / kStepColumns<F>;
  const int8_t* x = a.x + i0 * ldx;
  const float* x_scales = a.x_scales + i0 * w.groups;
  const int32_t* x_sums = a.x_sums + i0 * w.groups;
  float* y = a.y + i0 * a.ldy + r0;
  const uint8_t* codes[T];
  unroll<T>([&](auto t) __attribute__((always_inline)) {
    codes[decltype(t)::value] = strip_codes(w, a.row0 + r0 + decltype(t)::value * kLanes);
  });
  vf acc[R][T];
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      const float* p = y + decltype(i)::value * a.ldy + decltype(t)::value * kLanes;
      const bool whole = decltype(t)::value < T - 1 || n >= kLanes;
      acc[decltype(i)::value][decltype(t)::value] = a.accumulate == 0 ? set1(0.0f) : whole ? load(p) : load_head(p, n);
    });
  });
  // The zero point's product fits one madd while the sum of a group's codes fits in 16 bits.
  const bool short_sums = w.group <= 256;
  for (int64_t g = 0, done = 0; g < w.groups; ++g) {
    const int64_t end = done + steps_per_group < w.steps ? done + steps_per_group : w.steps;
    vi sums[R][T];
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      unroll<T>([&](auto t) __attribute__((always_inline)) { sums[decltype(i)::value][decltype(t)::value] = set1_i(0); });
    });
    for (; done < end; ++done) {
      step<F, R, T>(codes, x, ldx, sums);
      x += kStepColumns<F>;
      unroll<T>([&](auto t) __attribute__((always_inline)) { codes[decltype(t)::value] += 64; });
    }
    StripGroup group[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      group[decltype(t)::value] = strip_group(w, a.row0 + r0 + decltype(t)::value * kLanes, g);
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const vi x_sum = set1_i(x_sums[decltype(i)::value * w.groups + g]);
      const vf x_scale = set1(x_scales[decltype(i)::value * w.groups + g]);
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        constexpr int s = decltype(t)::value;
        const vi offset = short_sums ? madd_i16(group[s].zero, x_sum) : mul_i32(group[s].zero, x_sum);
        vf& sum = acc[decltype(i)::value][s];
        sum = madd(group[s].scale * x_scale, to_float(sub_i(sums[decltype(i)::value][s], offset)), sum);
      });
    });
  }
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      float* p = y + decltype(i)::value * a.ldy + decltype(t)::value * kLanes;
      if (decltype(t)::value < T - 1 || n >= kLanes) {
        store(p, acc[decltype(i)::value][decltype(t)::value]);
      } else {
        store_head(p, acc[decltype(i)::value][decltype(t)::value], n);
      }
    });
  });
}

template <WeightFormat F, int T>
void stripe(const GemmI8Args& a, int64_t r0, int64_t n) {
  int64_t i = 0;
  for (; i + kRows <= a.m; i += kRows) tile<F, kRows, T>(a, i, r0, n);
  switch (a.m - i) {
#if defined(__AVX512F__)
    case 5: return tile<F, 5, T>(a, i, r0, n);
    case 4: return tile<F, 4, T>(a, i, r0, n);
#endif
    case 3: return tile<F, 3, T>(a, i, r0, n);
    case 2: return tile<F, 2, T>(a, i, r0, n);
    case 1: return tile<F, 1, T>(a, i, r0, n);
    default: return;
  }
}

template <WeightFormat F>
void gemm_i8(const GemmI8Args& a) noexcept {
  int64_t r = 0;
  for (; r + (kStrips - 1) * kLanes < a.rows; r += kStrips * kLanes)
    stripe<F, kStrips>(a, r, a.rows - r - (kStrips - 1) * kLanes);
  if (r < a.rows) stripe<F, 1>(a, r, a.rows - r);
}

}  // namespace

void init_gemm_i8(KernelTable& t) {
  t.gemm_q8_i8 = gemm_i8<WeightFormat::q8>;
  t.gemm_q4_i8 = gemm_i8<WeightFormat::q4>;
}

}  // namespace thimble::THIMBLE_ISA
