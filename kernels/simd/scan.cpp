// scan_f32 and scan_binary (kernel_args.h): the sums of four vectors are added across the lanes together, by the same tree
// for each, and 4 KB of prefetch: a scan is bound by memory. avx512 counts bits by table, four bits at a time. Several queries take turns on a block of vectors that stays in the second-level cache.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kRows = 4;
constexpr int64_t kBlockBytes = int64_t{1} << 17;

inline int64_t block_rows(int64_t n, int64_t nq, int64_t row_bytes) {
  const int64_t rows = kBlockBytes / (row_bytes > 0 ? row_bytes : 1) / kRows * kRows;
  return nq == 1 ? n : rows < kRows ? kRows : rows;
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// The sums of four vectors, side by side.
inline __m128 sum_rows(const vf (&s)[kRows]) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
  const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
#else
  const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(s[0], s[1]), _mm256_unpackhi_ps(s[0], s[1]));
  const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(s[2], s[3]), _mm256_unpackhi_ps(s[2], s[3]));
  const __m256 d = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
#endif
  return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

// Rows one after another: memory is read in its order, and the chains of neighbours overlap.
inline void dot_row(const float* x, const float* q, int64_t dim, vf& sum) {
  sum = set1(0.0f);
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    prefetch(x + c + 1024);
    sum = madd(load(q + c), load(x + c), sum);
  }
  if (c < dim) sum = madd(load_head(q + c, dim - c), load_head(x + c, dim - c), sum);
}

void scan_f32(const ScanF32Args& a) noexcept {
  const int64_t step = block_rows(a.n, a.nq, a.dim * 4);
  for (int64_t first = 0; first < a.n; first += step) {
    const int64_t end = first + step < a.n ? first + step : a.n;
    for (int64_t j = 0; j < a.nq; ++j) {
      const float* q = a.q + j * a.dim;
      float* out = a.out + j * a.ldo;
      int64_t i = first;
      for (; i + kRows <= end; i += kRows) {
        vf sums[kRows];
        unroll<kRows>([&](auto r) __attribute__((always_inline)) {
          constexpr int kR = decltype(r)::value;
          dot_row(a.x + (i + kR) * a.ldx, q, a.dim, sums[kR]);
        });
        _mm_storeu_ps(out + i, sum_rows(sums));
      }
      for (; i < end; ++i) {
        vf sums[kRows] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
        dot_row(a.x + i * a.ldx, q, a.dim, sums[0]);
        out[i] = _mm_cvtss_f32(sum_rows(sums));
      }
    }
  }
}

#if defined(__AVX512F__)
// Differing bits of one vector, in eight sums.
inline __m512i differ_row(const uint64_t* x, const uint64_t* q, int64_t words) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  __m512i sum = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; w += 8) {
    const auto mask = static_cast<__mmask8>(words - w >= 8 ? 0xFF : (1 << (words - w)) - 1);
    const __m512i bits = _mm512_xor_si512(_mm512_maskz_loadu_epi64(mask, x + w), _mm512_maskz_loadu_epi64(mask, q + w));
    const __m512i low = _mm512_shuffle_epi8(counts, _mm512_and_si512(bits, nibble));
    const __m512i high = _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi16(bits, 4), nibble));
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512()));
  }
  return sum;
}

// dim - 2 * the sums of four vectors, side by side.
inline __m128 scores_of(const __m512i (&s)[kRows], int64_t dim) {
  const __m512i a = _mm512_add_epi64(_mm512_unpacklo_epi64(s[0], s[1]), _mm512_unpackhi_epi64(s[0], s[1]));
  const __m512i b = _mm512_add_epi64(_mm512_unpacklo_epi64(s[2], s[3]), _mm512_unpackhi_epi64(s[2], s[3]));
  const __m512i c = _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xDD));  // a a b b
  const __m512i d = _mm512_add_epi64(c, _mm512_shuffle_i64x2(c, c, 0xB1));
  const __m256i sums = _mm512_castsi512_si256(_mm512_shuffle_i64x2(d, d, 0x08));
  const __m128i differ = _mm256_cvtepi64_epi32(sums);
  return _mm_cvtepi32_ps(_mm_sub_epi32(_mm_set1_epi32(static_cast<int32_t>(dim)), _mm_add_epi32(differ, differ)));
}
#endif

void scan_binary(const ScanBinaryArgs& a) noexcept {
  const int64_t step = block_rows(a.n, a.nq, a.words * 8);
  for (int64_t first = 0; first < a.n; first += step) {
    const int64_t end = first + step < a.n ? first + step : a.n;
    for (int64_t j = 0; j < a.nq; ++j) {
      const uint64_t* q = a.q + j * a.words;
      float* out = a.out + j * a.ldo;
      int64_t i = first;
#if defined(__AVX512F__)
      for (; i + kRows <= end; i += kRows) {
        const uint64_t* x = a.x + i * a.words;
        for (int64_t at = 0; at < kRows * a.words; at += 8) prefetch(x + at + 512);
        __m512i sums[kRows];
        unroll<kRows>([&](auto r) __attribute__((always_inline)) {
          constexpr int kR = decltype(r)::value;
          sums[kR] = differ_row(x + kR * a.words, q, a.words);
        });
        _mm_storeu_ps(out + i, scores_of(sums, a.dim));
      }
#endif
      for (; i < end; ++i) {
        const uint64_t* x = a.x + i * a.words;
        int64_t differ = 0;
        for (int64_t w = 0; w < a.words; ++w) differ += static_cast<int64_t>(_mm_popcnt_u64(x[w] ^ q[w]));
        prefetch(x + 512);
        out[i] = static_cast<float>(a.dim - 2 * differ);
      }
    }
  }
}

}  // namespace

void init_scan(KernelTable& t) {
  t.scan_f32 = scan_f32;
  t.scan_binary = scan_binary;
}

}  // namespace thimble::THIMBLE_ISA
