// y[i, r] (+)= sum_g (w_scale x_scale) (sum_k code_w code_x - zero x_sum), codes of W unsigned, of x signed. Lanes are
// output rows; one 32-bit lane holds four codes of consecutive columns and meets the same four activations, broadcast. A
// register tile of kRows rows of x by kStrips strips has an int32 and an f32 accumulator per vector; fields of 4 and 2
// bits are split in registers. The integer sums of a group start at -zero x_sum, so that an offset costs the loop nothing
// (a symmetric one is a broadcast); a minimum is one fma per group, of x_scale x_sum. Integer sums are exact on every path
// and joined in one order, so all tiers agree bit for bit.
//   VNNI: vpdpbusd. Without: maddubs for 4 and 2-bit codes (4 * 15 * 127 fits in int16; it would saturate for 8-bit ones),
//   and 8-bit codes widened to 16 bits as even and odd columns.
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

constexpr int64_t kAheadBytes = 2048;

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

template <WeightFormat F>
constexpr int kFields = static_cast<int>(kStepColumns<F> / 4);

// Field I of the bytes: four columns per lane.
template <WeightFormat F, int I>
[[gnu::always_inline]] inline vi field(vi words) {
  constexpr int kBits = static_cast<int>(format_bits(F));
  if constexpr (F == WeightFormat::q8) {
    return words;
  } else {
    return and_i(I == 0 ? words : shift_right(words, kBits * I), set1_i(((1 << kBits) - 1) * 0x01010101));
  }
}

// One step (4 columns of q8, 8 of q4, 16 of q2) of R rows and T strips.
template <WeightFormat F, int R, int T>
[[gnu::always_inline]] inline void step(const uint8_t* const* codes, const int8_t* x, int64_t ldx, vi (*acc)[T]) {
  vi words[T];
  unroll<T>([&](auto t) __attribute__((always_inline)) { words[decltype(t)::value] = load_i(codes[decltype(t)::value]); });
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  vi fields[kFields<F>][T];
  unroll<kFields<F>>([&](auto f) __attribute__((always_inline)) {
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      fields[decltype(f)::value][decltype(t)::value] = field<F, decltype(f)::value>(words[decltype(t)::value]);
    });
  });
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    unroll<kFields<F>>([&](auto f) __attribute__((always_inline)) {
      const vi s = set1_i(load_word(x + decltype(i)::value * ldx + 4 * decltype(f)::value));
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        sum = dot(sum, fields[decltype(f)::value][decltype(t)::value], s);
      });
    });
  });
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
    vi fields[kFields<F>][T];
    unroll<kFields<F>>([&](auto f) __attribute__((always_inline)) {
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        fields[decltype(f)::value][decltype(t)::value] = field<F, decltype(f)::value>(words[decltype(t)::value]);
      });
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      vi pairs[T];
      unroll<kFields<F>>([&](auto f) __attribute__((always_inline)) {
        constexpr int n = decltype(f)::value;
        const vi s = set1_i(load_word(x + decltype(i)::value * ldx + 4 * n));
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          const vi product = multiply_bytes(fields[n][decltype(t)::value], s);
          pairs[decltype(t)::value] = n == 0 ? product : add_i16(pairs[decltype(t)::value], product);
        });
      });
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = acc[decltype(i)::value][decltype(t)::value];
        sum = add_i(sum, madd_i16(pairs[decltype(t)::value], ones_i16()));
      });
    });
  }
#endif
}

// R rows of x from row i on by T strips from row r of the weights on; the last strip has n rows inside the matrix. U steps
// have integer sums of their own, and kStream asks for the codes some KB ahead: for few rows, which wait for W alone.
template <WeightFormat F, GroupKind K, int R, int T, int U = 1, bool kStream = false>
void tile(const GemmI8Args& a, int64_t i0, int64_t r0, int64_t n) {
  const WeightView& w = a.w;
  const int64_t ldx = a.padded_cols, steps_per_group = w.group / kStepColumns<F>;
  const int8_t* x = a.x + i0 * ldx;
  const float* x_scales = a.x_scales + i0 * w.groups;
  const int32_t* x_sums = a.x_sums + i0 * w.groups;
  float* y = a.y + i0 * a.ldy + r0;
  const uint8_t* codes[T];
  int64_t parameters[T];
  unroll<T>([&](auto t) __attribute__((always_inline)) {
    codes[decltype(t)::value] = strip_codes(w, a.row0 + r0 + decltype(t)::value * kLanes);
    parameters[decltype(t)::value] = strip_parameter(w, a.row0 + r0 + decltype(t)::value * kLanes, 0);
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
    vi parts[U][R][T], zeros[T];
    vi (&sums)[R][T] = parts[0];
    if constexpr (K == GroupKind::zero_points) {
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        zeros[decltype(t)::value] = load_u8(w.zeros + parameters[decltype(t)::value] + g * 16);
      });
    }
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const int32_t x_sum = x_sums[decltype(i)::value * w.groups + g];
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        vi& sum = sums[decltype(i)::value][decltype(t)::value];
        if constexpr (K == GroupKind::zero_points) {
          const vi minus = set1_i(-x_sum);
          sum = short_sums ? madd_i16(zeros[decltype(t)::value], minus) : mul_i32(zeros[decltype(t)::value], minus);
        } else {
          sum = set1_i(K == GroupKind::symmetric ? -w.zero * x_sum : 0);
        }
      });
    });
    unroll<U - 1>([&](auto u) __attribute__((always_inline)) {
      unroll<R>([&](auto i) __attribute__((always_inline)) {
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          parts[decltype(u)::value + 1][decltype(i)::value][decltype(t)::value] = set1_i(0);
        });
      });
    });
    const auto advance = [&](vi (*part)[T]) __attribute__((always_inline)) {
      if constexpr (kStream) {
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          if (decltype(t)::value * kLanes % kTileRows == 0)
            _mm_prefetch(reinterpret_cast<const char*>(codes[decltype(t)::value] + kAheadBytes), _MM_HINT_T0);
        });
      }
      step<F, R, T>(codes, x, ldx, part);
      x += kStepColumns<F>;
      unroll<T>([&](auto t) __attribute__((always_inline)) { codes[decltype(t)::value] += 64; });
    };
    if constexpr (U > 1) {
      for (; done + U <= end; done += U)
        unroll<U>([&](auto u) __attribute__((always_inline)) { advance(parts[decltype(u)::value]); });
    }
    for (; done < end; ++done) advance(sums);
    unroll<U - 1>([&](auto u) __attribute__((always_inline)) {
      unroll<R>([&](auto i) __attribute__((always_inline)) {
        unroll<T>([&](auto t) __attribute__((always_inline)) {
          vi& sum = sums[decltype(i)::value][decltype(t)::value];
          sum = add_i(sum, parts[decltype(u)::value + 1][decltype(i)::value][decltype(t)::value]);
        });
      });
    });
    vf scales[T], mins[T];
    unroll<T>([&](auto t) __attribute__((always_inline)) {
      const int64_t at = parameters[decltype(t)::value] + g * 16;
      scales[decltype(t)::value] = load_parameter(w, w.scales, at);
      if constexpr (K == GroupKind::minimum) mins[decltype(t)::value] = load_parameter(w, w.mins, at);
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const float scale = x_scales[decltype(i)::value * w.groups + g];
      const vf x_scale = set1(scale);
      unroll<T>([&](auto t) __attribute__((always_inline)) {
        constexpr int s = decltype(t)::value;
        vf& sum = acc[decltype(i)::value][s];
        sum = madd(scales[s] * x_scale, to_float(sums[decltype(i)::value][s]), sum);
        if constexpr (K == GroupKind::minimum)
          sum = madd(mins[s], set1(scale * static_cast<float>(x_sums[decltype(i)::value * w.groups + g])), sum);
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

template <WeightFormat F, GroupKind K, int T>
void stripe(const GemmI8Args& a, int64_t r0, int64_t n) {
  int64_t i = 0;
  for (; i + kRows <= a.m; i += kRows) tile<F, K, kRows, T>(a, i, r0, n);
  switch (a.m - i) {
#if defined(__AVX512F__)
    case 5: return tile<F, K, 5, T>(a, i, r0, n);
    case 4: return tile<F, K, 4, T>(a, i, r0, n);
#endif
    case 3: return tile<F, K, 3, T>(a, i, r0, n);
    case 2: return tile<F, K, 2, T>(a, i, r0, n);
    case 1: return tile<F, K, 1, T>(a, i, r0, n);
    default: return;
  }
}

// Few rows: one tile of W after the other, so that W is one stream.
template <WeightFormat F, GroupKind K, int R>
void stream(const GemmI8Args& a) {
  constexpr int kTileStrips = kTileRows / kLanes, kSteps = (R == 1 ? 4 : 2) / kTileStrips;
  int64_t r = 0;
  for (; r + (kTileStrips - 1) * kLanes < a.rows; r += kTileRows)
    tile<F, K, R, kTileStrips, kSteps, true>(a, 0, r, a.rows - r - (kTileStrips - 1) * kLanes);
  if (r < a.rows) tile<F, K, R, 1, kSteps, true>(a, 0, r, a.rows - r);
}

template <WeightFormat F, GroupKind K>
void stripes(const GemmI8Args& a) {
  switch (a.m) {
    case 1: return stream<F, K, 1>(a);
    case 2: return stream<F, K, 2>(a);
    case 3: return stream<F, K, 3>(a);
    case 4: return stream<F, K, 4>(a);
    default: break;
  }
  int64_t r = 0;
  for (; r + (kStrips - 1) * kLanes < a.rows; r += kStrips * kLanes)
    stripe<F, K, kStrips>(a, r, a.rows - r - (kStrips - 1) * kLanes);
  if (r < a.rows) stripe<F, K, 1>(a, r, a.rows - r);
}

template <WeightFormat F>
void gemm_i8(const GemmI8Args& a) noexcept {
  if (a.w.mins != nullptr) return stripes<F, GroupKind::minimum>(a);
  if (a.w.zeros != nullptr) return stripes<F, GroupKind::zero_points>(a);
  stripes<F, GroupKind::symmetric>(a);
}

}  // namespace

void init_gemm_i8(KernelTable& t) {
  t.gemm_q8_i8 = gemm_i8<WeightFormat::q8>;
  t.gemm_q4_i8 = gemm_i8<WeightFormat::q4>;
  t.gemm_q2_i8 = gemm_i8<WeightFormat::q2>;
}

}  // namespace thimble::THIMBLE_ISA
