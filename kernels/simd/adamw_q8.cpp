// One step of AdamW with moments of 8 bits (AdamwQ8Args), a block of 256 at a time: decode, the step of adamw, and with
// the block's largest values, code again; the new moments wait in the first-level cache. Same roundings as the reference,
// bit for bit.
#include "kernels/simd/init.h"
#include "kernels/simd/math.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr float kSmallest = 0x1p-126f;  // below it a reciprocal would overflow

#if defined(__AVX512F__)
inline vi load_s8(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vi round_to_int(vf v) { return _mm512_cvtps_epi32(v); }
inline vi multiply(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
inline vi xor_i(vi a, vi b) { return _mm512_xor_si512(a, b); }
inline vi max_i(vi a, vi b) { return _mm512_max_epi32(a, b); }
inline vi zero_where_zero(vf v, vi x) { return _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ), x); }
inline vi iota() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
template <int N>
inline vi shift_left(vi a) { return _mm512_slli_epi32(a, N); }
template <int N>
inline vi shift_down(vi a) { return _mm512_srli_epi32(a, N); }
inline void store_bytes(void* p, vi v) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
#else
inline vi load_s8(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline vi round_to_int(vf v) { return _mm256_cvtps_epi32(v); }
inline vi multiply(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
inline vi xor_i(vi a, vi b) { return _mm256_xor_si256(a, b); }
inline vi max_i(vi a, vi b) { return _mm256_max_epi32(a, b); }
inline vi zero_where_zero(vf v, vi x) {
  return _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)), x);
}
inline vi iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
template <int N>
inline vi shift_left(vi a) { return _mm256_slli_epi32(a, N); }
template <int N>
inline vi shift_down(vi a) { return _mm256_srli_epi32(a, N); }
// The low byte of every lane; lanes lie in [-128, 255].
inline void store_bytes(void* p, vi v) {
  const vi low = and_i(v, set1_i(255));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
#endif

inline vf decode_m(const int8_t* p, vf scale) {
  const vf root = to_float(load_s8(p)) * set1(1.0f / 127.0f);
  return root * vabs(root) * scale;
}

inline vf decode_v(const uint8_t* p, vf scale) {
  const vi code = load_u8(p);
  const vi bits = shift_left<20>(add_i(code, set1_i(static_cast<int32_t>(kAdamwCodeBase))));
  return as_float(zero_where_zero(to_float(code), bits)) * scale;
}

inline vi noise(vi x) {
  x = multiply(x, set1_i(static_cast<int32_t>(0x9E3779B1u)));
  x = xor_i(x, shift_down<15>(x));
  x = multiply(x, set1_i(static_cast<int32_t>(0x85EBCA77u)));
  x = xor_i(x, shift_down<13>(x));
  x = multiply(x, set1_i(static_cast<int32_t>(0xC2B2AE3Du)));
  return shift_down<12>(x);
}

struct Block {
  float* p;
  const float* g;
  int8_t* m;
  uint8_t* v;
  float* m_scale;
  float* v_scale;
  uint32_t seed;
};

void step_block(const AdamwQ8Args& a, const Block& b) {
  alignas(64) float m_new[kAdamwBlock], v_new[kAdamwBlock];
  const vf m_scale = set1(*b.m_scale), v_scale = set1(*b.v_scale), keep = set1(1.0f - a.lr * a.weight_decay);
  vf largest_m = set1(0.0f), largest_v = set1(0.0f);
  for (int64_t i = 0; i < kAdamwBlock; i += kLanes) {
    const vf g = load(b.g + i) * set1(a.grad_scale);
    const vf m = set1(a.beta1) * decode_m(b.m + i, m_scale) + set1(1.0f - a.beta1) * g;
    const vf v = set1(a.beta2) * decode_v(b.v + i, v_scale) + set1(1.0f - a.beta2) * g * g;
    const vf denominator = vsqrt(v) * set1(a.v_correction) + set1(a.eps);
    store(b.p + i, load(b.p + i) * keep - set1(a.step_size) * m / denominator);
    store(m_new + i, m);
    store(v_new + i, v);
    largest_m = vmax(largest_m, vabs(m));
    largest_v = vmax(largest_v, v);
  }
  const float m_top = reduce_max(largest_m), v_top = reduce_max(largest_v);
  *b.m_scale = m_top < kSmallest ? 0.0f : m_top;
  *b.v_scale = v_top < kSmallest ? 0.0f : v_top;
  const vf m_inverse = set1(m_top < kSmallest ? 0.0f : 1.0f / m_top), v_inverse = set1(v_top < kSmallest ? 0.0f : 1.0f / v_top);
  for (int64_t i = 0; i < kAdamwBlock; i += kLanes) {
    const vf m = load(m_new + i);
    const vf root = vsqrt(vmin(vabs(m) * m_inverse, set1(1.0f))) * set1(127.0f);
    store_bytes(b.m + i, round_to_int(with_sign(root, m)));
  }
  if (v_top < kSmallest) {
    for (int64_t i = 0; i < kAdamwBlock; ++i) b.v[i] = 0;
    return;
  }
  for (int64_t i = 0; i < kAdamwBlock; i += kLanes) {
    const vf v = load(v_new + i);
    const vi bits = as_int(vmin(v * v_inverse, set1(1.0f)));
    const vi random = noise(add_i(iota(), set1_i(static_cast<int32_t>(b.seed + static_cast<uint32_t>(i)))));
    const vi code = sub_i(shift_down<20>(add_i(bits, random)), set1_i(static_cast<int32_t>(kAdamwCodeBase)));
    store_bytes(b.v + i, zero_where_zero(v, max_i(code, set1_i(1))));
  }
}

void adamw_q8(const AdamwQ8Args& a) noexcept {
  int64_t i = 0, block = 0;
  for (; i + kAdamwBlock <= a.n; i += kAdamwBlock, ++block)
    step_block(a, {a.p + i, a.g + i, a.m + i, a.v + i, a.m_scale + block, a.v_scale + block, a.seed + static_cast<uint32_t>(i)});
  if (i == a.n) return;
  // The last block, filled up with zeros: they stay zero and are no maximum.
  alignas(64) float p[kAdamwBlock] = {}, g[kAdamwBlock] = {};
  alignas(64) int8_t m[kAdamwBlock] = {};
  alignas(64) uint8_t v[kAdamwBlock] = {};
  const int64_t n = a.n - i;
  for (int64_t j = 0; j < n; ++j) {
    p[j] = a.p[i + j];
    g[j] = a.g[i + j];
    m[j] = a.m[i + j];
    v[j] = a.v[i + j];
  }
  step_block(a, {p, g, m, v, a.m_scale + block, a.v_scale + block, a.seed + static_cast<uint32_t>(i)});
  for (int64_t j = 0; j < n; ++j) {
    a.p[i + j] = p[j];
    a.m[i + j] = m[j];
    a.v[i + j] = v[j];
  }
}

}  // namespace

void init_adamw_q8(KernelTable& t) { t.adamw_q8 = adamw_q8; }

}  // namespace thimble::THIMBLE_ISA
