// scan_f32 and scan_binary (kernel_args.h): the sums of four vectors are added across the lanes together, by the same tree
// for each, and 4 KB of prefetch: a scan is bound by memory. Four queries share what is loaded; more take turns on a block
// of vectors that stays in the second-level cache. Bits are counted a word at a time: that many instructions per word
// want vectors of counts, which avx512 has in an extension only.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kRows = 4;
constexpr int kQueries = 4;
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

// Rows one after another: memory is read in its order, and the chains of neighbours overlap. One chain per query.
template <int kQueries>
inline void dot_row(const float* x, const float* q, int64_t dim, vf (&sums)[kQueries][kRows], int row) {
  vf sum[kQueries];
  unroll<kQueries>([&](auto j) __attribute__((always_inline)) { sum[decltype(j)::value] = set1(0.0f); });
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    prefetch(x + c + 1024);
    const vf v = load(x + c);
    unroll<kQueries>([&](auto j) __attribute__((always_inline)) {
      constexpr int kJ = decltype(j)::value;
      sum[kJ] = madd(load(q + kJ * dim + c), v, sum[kJ]);
    });
  }
  if (c < dim) {
    const vf v = load_head(x + c, dim - c);
    unroll<kQueries>([&](auto j) __attribute__((always_inline)) {
      constexpr int kJ = decltype(j)::value;
      sum[kJ] = madd(load_head(q + kJ * dim + c, dim - c), v, sum[kJ]);
    });
  }
  unroll<kQueries>([&](auto j) __attribute__((always_inline)) { sums[decltype(j)::value][row] = sum[decltype(j)::value]; });
}

template <int kQueries>
void scan_block(const ScanF32Args& a, int64_t j, int64_t first, int64_t end) {
  const float* q = a.q + j * a.dim;
  float* out = a.out + j * a.ldo;
  int64_t i = first;
  for (; i + kRows <= end; i += kRows) {
    vf sums[kQueries][kRows];
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
      dot_row<kQueries>(a.x + (i + decltype(r)::value) * a.ldx, q, a.dim, sums, decltype(r)::value);
    });
    unroll<kQueries>([&](auto k) __attribute__((always_inline)) {
      _mm_storeu_ps(out + decltype(k)::value * a.ldo + i, sum_rows(sums[decltype(k)::value]));
    });
  }
  for (; i < end; ++i) {
    vf sums[kQueries][kRows];
    for (auto& of_query : sums)
      for (vf& sum : of_query) sum = set1(0.0f);
    dot_row<kQueries>(a.x + i * a.ldx, q, a.dim, sums, 0);
    unroll<kQueries>([&](auto k) __attribute__((always_inline)) {
      out[decltype(k)::value * a.ldo + i] = _mm_cvtss_f32(sum_rows(sums[decltype(k)::value]));
    });
  }
}

void scan_f32(const ScanF32Args& a) noexcept {
  const int64_t step = block_rows(a.n, a.nq, a.dim * 4);
  for (int64_t first = 0; first < a.n; first += step) {
    const int64_t end = first + step < a.n ? first + step : a.n;
    int64_t j = 0;
    for (; j + kQueries <= a.nq; j += kQueries) scan_block<kQueries>(a, j, first, end);
    for (; j < a.nq; ++j) scan_block<1>(a, j, first, end);
  }
}

// Bits in which rows [first, end) differ from a query of kWords words, as integers in the place of the scores.
template <int kWords>
void count_rows(const uint64_t* x, const uint64_t* q, int64_t rows, int64_t, int32_t* counts) {
  for (int64_t i = 0; i < rows; ++i, x += kWords) {
    prefetch(x + 512);
    int64_t differ = 0;
    unroll<kWords>([&](auto w) __attribute__((always_inline)) {
      differ += static_cast<int64_t>(_mm_popcnt_u64(x[decltype(w)::value] ^ q[decltype(w)::value]));
    });
    counts[i] = static_cast<int32_t>(differ);
  }
}

void count_any(const uint64_t* x, const uint64_t* q, int64_t rows, int64_t words, int32_t* counts) {
  for (int64_t i = 0; i < rows; ++i, x += words) {
    int64_t differ = 0;
    for (int64_t w = 0; w < words; ++w) {
      if (w % 8 == 0) prefetch(x + w + 512);
      differ += static_cast<int64_t>(_mm_popcnt_u64(x[w] ^ q[w]));
    }
    counts[i] = static_cast<int32_t>(differ);
  }
}

using CountFn = void (*)(const uint64_t* x, const uint64_t* q, int64_t rows, int64_t words, int32_t* counts);

// Of the widths that embeddings have: multiples of 128 up to 1024.
CountFn count_of(int64_t words) {
  switch (words) {
    case 2: return count_rows<2>;
    case 4: return count_rows<4>;
    case 6: return count_rows<6>;
    case 8: return count_rows<8>;
    case 12: return count_rows<12>;
    case 16: return count_rows<16>;
    default: return count_any;
  }
}

void scan_binary(const ScanBinaryArgs& a) noexcept {
  constexpr int64_t kCounts = 256;
  const CountFn count = count_of(a.words);
  const int64_t step = block_rows(a.n, a.nq, a.words * 8);
  for (int64_t first = 0; first < a.n; first += step) {
    const int64_t end = first + step < a.n ? first + step : a.n;
    for (int64_t j = 0; j < a.nq; ++j) {
      for (int64_t i = first; i < end; i += kCounts) {
        alignas(64) int32_t counts[kCounts];
        const int64_t rows = end - i < kCounts ? end - i : kCounts;
        count(a.x + i * a.words, a.q + j * a.words, rows, a.words, counts);
        float* out = a.out + j * a.ldo + i;
        const auto dim = static_cast<int32_t>(a.dim);
        int64_t k = 0;
        for (; k + 4 <= rows; k += 4) {
          const __m128i differ = _mm_load_si128(reinterpret_cast<const __m128i*>(counts + k));
          _mm_storeu_ps(out + k, _mm_cvtepi32_ps(_mm_sub_epi32(_mm_set1_epi32(dim), _mm_add_epi32(differ, differ))));
        }
        for (; k < rows; ++k) out[k] = static_cast<float>(dim - 2 * counts[k]);
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
