// Attention over one head of a key/value cache in f32, f16 or int8 (layout: AttentionCacheArgs), whole or one part of the
// keys, and the merge of such parts. The cache is read straight into the products: its keys already lie as they want
// them, and elements are widened in registers, once for all rows of a tile. With few rows a tile holds all query heads
// of a position. Widening is exact and sums are ordered as in attention.cpp, so both give the same bits. int8 scales are
// applied to scores and probabilities: 2 multiplications per key instead of 2 head_dim.
#include "kernels/simd/attention_forward.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int64_t kFewRows = 2 * kMaxTile;  // then a position has tiles of its own

// Tiles of R rows and at most V vectors; narrower ones by halves. A row that is missing is a copy of the first, which
// computes and stores the same bits once more: with few rows the memory sets the pace.
template <int R, int V, bool kAhead, class E>
void product_columns(const ProductOf<E>& p) {
  int64_t col = 0, left = (p.cols + kLanes - 1) / kLanes;
  const int64_t last = p.cols - (left - 1) * kLanes;
  for (; left >= V; left -= V, col += V * kLanes) product_tile<R, V, kAhead>(p, col, left == V ? last : kLanes);
  if constexpr (V > 2) {
    for (; left >= 2; left -= 2, col += 2 * kLanes) product_tile<R, 2, kAhead>(p, col, left == 2 ? last : kLanes);
  }
  if constexpr (V > 1) {
    for (; left >= 1; left -= 1, col += kLanes) product_tile<R, 1, kAhead>(p, col, left == 1 ? last : kLanes);
  }
}

template <int R, int V, class E>
void padded_product(ProductOf<E> p) {
  float rescale[R];
  for (int64_t i = p.rows; i < R; ++i) {
    p.a[i] = p.a[0];
    p.c[i] = p.c[0];
  }
  for (int64_t i = 0; p.rescale && i < R; ++i) rescale[i] = p.rescale[i < p.rows ? i : 0];
  if (p.rescale) p.rescale = rescale;
  // In prefill, whose tiles have kTileQ rows, a block is used again and again: nothing to ask for.
  if (R == kTileQ && p.ahead == 0) return product_columns<R, V, R != kTileQ>(p);
  product_columns<R, V, true>(p);
}

// One row alone: eight chains, or as many as there are.
template <int V, class E>
void product_row(const ProductOf<E>& p, int64_t col, int64_t left) {
  if constexpr (V > 0) {
    const int64_t last = p.cols - col - (left - 1) * kLanes;
    for (; left >= V; left -= V, col += V * kLanes) product_tile<1, V, true>(p, col, left == V ? last : kLanes);
    if (left > 0) product_row<V - 1>(p, col, left);
  }
}

struct Multiply {
  static constexpr int64_t kRows = kMaxTile;
  template <class E>
  void operator()(const ProductOf<E>& p) const {
    if (p.rows == 1) return product_row<kRowVectors>(p, 0, (p.cols + kLanes - 1) / kLanes);
    if (p.rows == 2) return padded_product<2, 4>(p);
#if defined(__AVX512F__)
    if (p.rows <= 4) return padded_product<4, 4>(p);
    if (p.rows <= 6) return padded_product<6, 4>(p);
    return padded_product<8, 2>(p);
#else
    if (p.rows <= 4) return padded_product<4, 2>(p);
    return padded_product<6, 2>(p);
#endif
  }
};

template <class E>
bool all_finite(const E* v, int64_t n) {
  if constexpr (sizeof(E) == 1) return true;
  vf probe = set1(0.0f);  // x * 0 is NaN for infinities and NaN
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf x = load_element(v + i);
    probe = madd(n - i >= kLanes ? x : keep_head(x, n - i), set1(0.0f), probe);
  }
  return reduce_add(probe) == 0.0f;
}

template <class E>
void run_part(const AttentionCacheArgs& a, const Scratch& s, const Rows& rows, bool prefix, Range keys) {
  const AttentionArgs& f = a.f;
  if (prefix) return rows_part(f, rows, s, true, keys, Multiply{});
  const bool few = rows.rows <= most(kFewRows, f.group);
  const int64_t dim = f.head_dim, tile_rows = few ? kMaxTile : kMaxRows;
  if (few && f.group > 1) {  // columns of the first block would be waited for one by one
    const char* first = reinterpret_cast<const char*>(static_cast<const E*>(a.k) + keys.begin / kBlockK * kBlockK * dim);
    const int64_t bytes = kBlockK * dim * static_cast<int64_t>(sizeof(E));
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(first + i, _MM_HINT_T0);
  }
  run_blocks(
      f, rows, keys, tile_rows, few ? f.group : rows.rows, s.scores,
      [&](int64_t start, Range block) {
        const E* v = static_cast<const E*>(a.v) + start * dim;
        const bool finite = few || all_finite(v + (block.begin - start) * dim, block.size() * dim);
        return BlockOf<E>{block,
                          start,
                          false,
                          finite,
                          few,
                          static_cast<const E*>(a.k) + start * dim,
                          v,
                          dim,
                          a.k_scale ? a.k_scale + start : nullptr,
                          a.v_scale ? a.v_scale + start : nullptr};
      },
      Multiply{});
}

template <class E>
void attention_cache(const AttentionCacheArgs& a) noexcept {
  const Scratch s = scratch_of(a.f);
  attend_cache(a, s, [&](const Rows& rows, bool prefix, Range keys) { run_part<E>(a, s, rows, prefix, keys); });
}

void attention_merge(const AttentionMergeArgs& a) noexcept {
  for (int64_t t = 0; t < a.tq; ++t) {
    for (int64_t g = 0; g < a.group; ++g) {
      float max = -kInfinity, sum = 0.0f;
      float* o = a.o + t * a.o_row + g * a.o_head;
      for (int64_t d = 0; d < a.head_dim; d += kLanes) store_part(o + d, set1(0.0f), a.head_dim - d);
      for (int64_t p = 0; p < a.n_parts; ++p) {
        const float* part = a.parts + p * a.part_stride + (t * a.group + g) * (a.head_dim + 2);
        merge_part(a.head_dim, part[0], part[1], part + 2, &max, &sum, o);
      }
      finish_row(a.head_dim, a.softmax_one != 0, max, sum, o, a.lse ? a.lse + g * a.lse_head + t : nullptr);
    }
  }
}

}  // namespace

void init_attention_cache(KernelTable& t) {
  t.attention_cache_f32 = attention_cache<float>;
  t.attention_cache_f16 = attention_cache<uint16_t>;
  t.attention_cache_i8 = attention_cache<int8_t>;
  t.attention_merge = attention_merge;
}

}  // namespace thimble::THIMBLE_ISA
