// exp, tanh and the normal distribution on vf. Largest errors over all floats, measured by tests/kernels/math_test
// through the kernels that use them, in units of the last place of the result (ulp):
//   vexp       1 ulp; subnormal results are rounded, -inf gives exactly 0, 0 gives exactly 1, +inf gives +inf
//   vtanh      2 ulp
//   normal     Phi(x): 4 ulp for x >= 0 and (5 + x²) ulp below 0; density: (2 + x²) ulp
// NaN gives NaN everywhere. Polynomials are Chebyshev fits made for these intervals.
#pragma once

#include "kernels/simd/simd.h"

namespace thimble::THIMBLE_ISA {
namespace {

inline vf vmax(vf a, vf b) {  // b if either is NaN
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#else
  return _mm256_max_ps(a, b);
#endif
}
inline vf vmin(vf a, vf b) {  // b if either is NaN
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#else
  return _mm256_min_ps(a, b);
#endif
}
inline vf vsqrt(vf a) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(a);
#else
  return _mm256_sqrt_ps(a);
#endif
}
inline vf vround(vf a) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
}
inline vf vabs(vf a) {
#if defined(__AVX512F__)
  return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
#else
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
#endif
}
// |magnitude| with the sign of `sign`; magnitude >= 0.
inline vf with_sign(vf magnitude, vf sign) {
#if defined(__AVX512F__)
  return _mm512_or_ps(magnitude, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
#else
  return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
#endif
}
// a < b ? yes : no; false for NaN.
inline vf select_less(vf a, vf b, vf yes, vf no) {
#if defined(__AVX512F__)
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
#else
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
#endif
}
// a * 2^n for integral n in [-160, 130], rounded once.
inline vf scale_exponent(vf a, vf n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(a, n);
#else
  // 2^n may lie outside the range of floats, its two halves do not. The first product is exact.
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
#endif
}

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2, ln(2) in two parts.
inline vf vexp(vf x) {
  x = vmin(set1(89.0f), vmax(set1(-105.0f), x));  // beyond: 0 and infinity
  const vf n = vround(x * set1(1.44269504f));
  vf r = nmadd(n, set1(0.693145752f), x);
  r = nmadd(n, set1(1.42860677e-6f), r);
  vf p = madd(set1(0.001392618359f), r, set1(0.008363179053f));
  p = madd(p, r, set1(0.04166655462f));
  p = madd(p, r, set1(0.1666657699f));
  p = madd(p, r, set1(0.5f));
  p = madd(p * r, r, r);
  return scale_exponent(p + set1(1.0f), n);
}

// |x| < 0.65: x + x³ h(x²); above: 1 - 2 / (exp(2 |x|) + 1).
inline vf vtanh(vf x) {
  const vf a = vabs(x), u = x * x;
  vf h = madd(set1(0.002214902743f), u, set1(-0.008272456733f));
  h = madd(h, u, set1(0.02174618709f));
  h = madd(h, u, set1(-0.0539563494f));
  h = madd(h, u, set1(0.1333329075f));
  h = madd(h, u, set1(-0.3333333308f));
  const vf near = madd(h * u, x, x);
  const vf far = set1(1.0f) - set1(2.0f) / (vexp(a + a) + set1(1.0f));
  return select_less(a, set1(0.65f), near, with_sign(far, x));
}

struct Normal {
  vf cdf, density;
};

// Phi(-a) = exp(-a²/2) t P(t), t = 1 / (1 + 0.4 a / sqrt(2)): one form for all a >= 0.
inline Normal normal(vf x) {
  const vf a = vabs(x);
  const vf e = vexp(a * a * set1(-0.5f));
  const vf t = set1(1.0f) / madd(a, set1(0.282842712f), set1(1.0f));
  vf p = madd(set1(-0.01493431424f), t, set1(0.07192053464f));
  p = madd(p, t, set1(-0.1215208659f));
  p = madd(p, t, set1(0.07340162284f));
  p = madd(p, t, set1(-0.02689658316f));
  p = madd(p, t, set1(0.04356032082f));
  p = madd(p, t, set1(0.05904756151f));
  p = madd(p, t, set1(0.08594528596f));
  p = madd(p, t, set1(0.1038003602f));
  p = madd(p, t, set1(0.1128381585f));
  p = madd(p, t, set1(0.1128379157f));
  const vf tail = e * t * p;
  return {select_less(x, set1(0.0f), tail, set1(1.0f) - tail), e * set1(0.398942280f)};
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
