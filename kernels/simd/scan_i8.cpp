// scan_i8 (kernel_args.h), four vectors and queries at a time as in scan.cpp. vpdpbusd wants one unsigned operand: a stored code is
// turned into code + 128 by flipping its sign bit, and 128 times the sum of the query's codes comes off at the end. Without
// VNNI both sides are widened to 16 bits; maddubs would saturate. All sums are exact integers.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kRows = 4;
constexpr int64_t kBlockBytes = int64_t{1} << 17;

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int64_t kStep = kLanes * 4;  // codes per vector
constexpr int32_t kBias = 128;
#if defined(__AVX512VNNI__)
inline vi load_query(const int8_t* p) { return load_i(p); }
inline vi load_stored(const int8_t* p) { return _mm512_xor_si512(load_i(p), _mm512_set1_epi8(-128)); }
[[gnu::always_inline]] inline vi dot(vi acc, vi x, vi q) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(q));
  return acc;
}
#else
inline vi load_query(const int8_t* p) { return load_i(p); }
inline vi load_stored(const int8_t* p) { return _mm256_xor_si256(load_i(p), _mm256_set1_epi8(-128)); }
[[gnu::always_inline]] inline vi dot(vi acc, vi x, vi q) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(q));
  return acc;
}
#endif
#else
constexpr int64_t kStep = kLanes * 2;
constexpr int32_t kBias = 0;
#if defined(__AVX512F__)
inline vi load_query(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
[[gnu::always_inline]] inline vi dot(vi acc, vi x, vi q) { return add_i(acc, _mm512_madd_epi16(x, q)); }
#else
inline vi load_query(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
[[gnu::always_inline]] inline vi dot(vi acc, vi x, vi q) { return add_i(acc, _mm256_madd_epi16(x, q)); }
#endif
inline vi load_stored(const int8_t* p) { return load_query(p); }
#endif

// The first n < kStep codes, zeros behind them.
struct Head {
  alignas(64) int8_t codes[64];
  Head(const int8_t* p, int64_t n) {
    for (int64_t i = 0; i < kStep; ++i) codes[i] = i < n ? p[i] : int8_t{0};
  }
};

// The sums of four vectors, side by side.
inline __m128i sum_rows(const vi (&s)[kRows]) {
#if defined(__AVX512F__)
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
  const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
#else
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
  const __m256i d = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
#endif
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

// A few queries: codes, the part behind whole vectors, and what comes off their sums.
template <int kQueries>
struct Queries {
  const int8_t* codes[kQueries];
  alignas(64) int8_t tail[kQueries][64];
  int32_t bias[kQueries];
};

// Rows one after another: memory is read in its order. One chain per query.
template <int kQueries>
inline void dot_row(const int8_t* x, const Queries<kQueries>& q, int64_t whole, int64_t rest, vi (&sums)[kQueries][kRows], int row) {
  vi sum[kQueries];
  unroll<kQueries>([&](auto j) __attribute__((always_inline)) { sum[decltype(j)::value] = set1_i(0); });
  for (int64_t c = 0; c < whole; c += kStep) {
    if (kStep >= 64 || c % 64 == 0) _mm_prefetch(reinterpret_cast<const char*>(x + c) + 4096, _MM_HINT_T0);
    const vi v = load_stored(x + c);
    unroll<kQueries>([&](auto j) __attribute__((always_inline)) {
      constexpr int kJ = decltype(j)::value;
      sum[kJ] = dot(sum[kJ], v, load_query(q.codes[kJ] + c));
    });
  }
  if (rest > 0) {
    const vi v = load_stored(Head(x + whole, rest).codes);
    unroll<kQueries>([&](auto j) __attribute__((always_inline)) {
      constexpr int kJ = decltype(j)::value;
      sum[kJ] = dot(sum[kJ], v, load_query(q.tail[kJ]));
    });
  }
  unroll<kQueries>([&](auto j) __attribute__((always_inline)) { sums[decltype(j)::value][row] = sum[decltype(j)::value]; });
}

template <int kQueries>
void scan_rows(const ScanI8Args& a, int64_t j, int64_t first, int64_t end) {
  const int64_t whole = a.dim / kStep * kStep, rest = a.dim - whole;
  Queries<kQueries> q;
  for (int k = 0; k < kQueries; ++k) {
    q.codes[k] = a.q + (j + k) * a.dim;
    const Head tail(q.codes[k] + whole, rest);
    __builtin_memcpy(q.tail[k], tail.codes, sizeof q.tail[k]);
    int32_t sum = 0;
    if (kBias != 0)
      for (int64_t c = 0; c < a.dim; ++c) sum += q.codes[k][c];
    q.bias[k] = kBias * sum;
  }
  const auto values_of = [&](const vi(&sums)[kRows], int32_t bias) __attribute__((always_inline)) {
    return _mm_cvtepi32_ps(_mm_sub_epi32(sum_rows(sums), _mm_set1_epi32(bias)));
  };
  int64_t i = first;
  for (; i + kRows <= end; i += kRows) {
    vi sums[kQueries][kRows];
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
      dot_row<kQueries>(a.x + (i + decltype(r)::value) * a.ldx, q, whole, rest, sums, decltype(r)::value);
    });
    unroll<kQueries>([&](auto k) __attribute__((always_inline)) {
      constexpr int kK = decltype(k)::value;
      const __m128 scale = _mm_mul_ps(_mm_set1_ps(a.q_scale[j + kK]), _mm_loadu_ps(a.x_scale + i));
      _mm_storeu_ps(a.out + (j + kK) * a.ldo + i, _mm_mul_ps(values_of(sums[kK], q.bias[kK]), scale));
    });
  }
  for (; i < end; ++i) {
    vi sums[kQueries][kRows];
    for (auto& of_query : sums)
      for (vi& sum : of_query) sum = set1_i(0);
    dot_row<kQueries>(a.x + i * a.ldx, q, whole, rest, sums, 0);
    for (int k = 0; k < kQueries; ++k)
      a.out[(j + k) * a.ldo + i] = _mm_cvtss_f32(values_of(sums[k], q.bias[k])) * (a.q_scale[j + k] * a.x_scale[i]);
  }
}

void scan_i8(const ScanI8Args& a) noexcept {
  constexpr int kQueries = 4;
  const int64_t rows = kBlockBytes / (a.dim > 0 ? a.dim : 1) / kRows * kRows;
  const int64_t step = a.nq == 1 ? a.n : rows < kRows ? kRows : rows;
  for (int64_t first = 0; first < a.n; first += step) {
    const int64_t end = first + step < a.n ? first + step : a.n;
    int64_t j = 0;
    for (; j + kQueries <= a.nq; j += kQueries) scan_rows<kQueries>(a, j, first, end);
    for (; j < a.nq; ++j) scan_rows<1>(a, j, first, end);
  }
}

}  // namespace

void init_scan_i8(KernelTable& t) { t.scan_i8 = scan_i8; }

}  // namespace thimble::THIMBLE_ISA
