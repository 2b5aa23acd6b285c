// Sums of floats in double: one chain per lane (two for the lower and upper half of a vf), joined in a fixed order.
#pragma once

#include "kernels/simd/simd.h"

namespace thimble::THIMBLE_ISA {
namespace {

#if defined(__AVX512F__)
using vd = __m512d;
inline vd set1_double(double x) { return _mm512_set1_pd(x); }
inline vd low_double(vf v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
inline vd high_double(vf v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
inline vd add_double(vd a, vd b) { return _mm512_add_pd(a, b); }
inline vd sub_double(vd a, vd b) { return _mm512_sub_pd(a, b); }
inline vd madd_double(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
inline double reduce_double(vd v) { return _mm512_reduce_add_pd(v); }
#else
using vd = __m256d;
inline vd set1_double(double x) { return _mm256_set1_pd(x); }
inline vd low_double(vf v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline vd high_double(vf v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
inline vd add_double(vd a, vd b) { return _mm256_add_pd(a, b); }
inline vd sub_double(vd a, vd b) { return _mm256_sub_pd(a, b); }
inline vd madd_double(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
inline double reduce_double(vd v) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
#endif

class DoubleSum {
 public:
  void add(vf v) {
    low_ = add_double(low_, low_double(v));
    high_ = add_double(high_, high_double(v));
  }
  void add_product(vf a, vf b) {
    low_ = madd_double(low_double(a), low_double(b), low_);
    high_ = madd_double(high_double(a), high_double(b), high_);
  }
  void add_squared_distance(vf v, double from) {
    const vd l = sub_double(low_double(v), set1_double(from)), h = sub_double(high_double(v), set1_double(from));
    low_ = madd_double(l, l, low_);
    high_ = madd_double(h, h, high_);
  }
  void add(const DoubleSum& other) {
    low_ = add_double(low_, other.low_);
    high_ = add_double(high_, other.high_);
  }
  double total() const { return reduce_double(add_double(low_, high_)); }

 private:
  vd low_ = set1_double(0), high_ = set1_double(0);
};

}  // namespace
}  // namespace thimble::THIMBLE_ISA
