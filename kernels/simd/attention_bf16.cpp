// Attention with products of bf16 operands and f32 sums, over f32 rows, over a cache and backward: the tiles of attention_forward.h
// on blocks of pairs. A block is rounded once for all rows of the call, from every source to the same values, so that a row
// has the same bits with and without an f32 cache, alone and among others.
#include "kernels/simd/attention_backward.h"
#include "kernels/simd/attention_forward.h"
#include "kernels/simd/attention_pairs.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Multiply {
  static constexpr int64_t kRows = kTileQ;
  void operator()(const ProductOf<uint32_t>& p) const { product(p); }
};

inline Block16 empty_block(const AttentionArgs& a, const Scratch& s, bool prefix, int64_t start, Range keys) {
  auto* kt = reinterpret_cast<uint32_t*>(s.kt);
  auto* v = reinterpret_cast<uint32_t*>(s.v);
  return {keys, start, prefix, true, false, kt, v, round_up(a.head_dim), nullptr, nullptr};
}

void rounded_rows_part(const AttentionArgs& a, const Scratch& s, const Rows& rows, bool prefix, Range keys) {
  const float* k = prefix ? a.prefix_k : a.k;
  const float* v = prefix ? a.prefix_v : a.v;
  const int64_t k_row = prefix ? a.prefix_row : a.k_row, v_row = prefix ? a.prefix_row : a.v_row;
  run_blocks(
      a, rows, keys, kMaxRows, rows.rows, s.scores,
      [&](int64_t start, Range block) {
        Block16 b = empty_block(a, s, prefix, start, block);
        const Range packed{block.begin - start, block.end - start};
        pack_pairs_transposed(k + start * k_row, k_row, packed, a.head_dim, reinterpret_cast<uint32_t*>(s.kt));
        b.finite = pack_row_pairs(v + start * v_row, v_row, packed, a.head_dim, reinterpret_cast<uint32_t*>(s.v));
        return b;
      },
      Multiply{});
}

void attention_bf16(const AttentionArgs& a) noexcept {
  const Scratch s = scratch_of(a);
  attend(a, s, [&](const Rows& rows, bool prefix, Range keys) { rounded_rows_part(a, s, rows, prefix, keys); });
}

template <class E>
void attention_cache_bf16(const AttentionCacheArgs& a) noexcept {
  const AttentionArgs& f = a.f;
  const Scratch s = scratch_of(f);
  attend_cache(a, s, [&](const Rows& rows, bool prefix, Range keys) {
    if (prefix) return rounded_rows_part(f, s, rows, true, keys);
    const int64_t dim = f.head_dim;
    run_blocks(
        f, rows, keys, kMaxRows, rows.rows, s.scores,
        [&](int64_t start, Range block) {
          Block16 b = empty_block(f, s, false, start, block);
          const Range packed{block.begin - start, block.end - start};
          pack_column_pairs(static_cast<const E*>(a.k) + start * dim, packed, dim, reinterpret_cast<uint32_t*>(s.kt));
          b.finite = pack_row_pairs(static_cast<const E*>(a.v) + start * dim, dim, packed, dim,
                                    reinterpret_cast<uint32_t*>(s.v));
          if (a.k_scale) b.k_scale = a.k_scale + start;
          if (a.v_scale) b.v_scale = a.v_scale + start;
          return b;
        },
        Multiply{});
  });
}

}  // namespace

void init_attention_bf16(KernelTable& t) {
  t.attention_bf16 = attention_bf16;
  t.attention_bwd_bf16 = attention_backward<uint32_t>;
  t.attention_cache_f32_bf16 = attention_cache_bf16<float>;
  t.attention_cache_f16_bf16 = attention_cache_bf16<uint16_t>;
  t.attention_cache_i8_bf16 = attention_cache_bf16<int8_t>;
}

}  // namespace thimble::THIMBLE_ISA
