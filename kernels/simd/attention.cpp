// Attention of one key/value head and the query heads that share it, blockwise:
//   s_j = softcap tanh(scale q.k_j / softcap) + alibi j,  o = sum_j exp(s_j - lse) v_j,  lse = log sum_j exp(s_j)
// A key block (kAttentionBlockK keys from key 0; prefix blocks first) is packed once, keys transposed, for all rows of
// the call.
#include "kernels/simd/attention_forward.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {
namespace {

struct Multiply {
  static constexpr int64_t kRows = kTileQ;
  void operator()(const Product& p) const { product(p); }
};

void attention(const AttentionArgs& a) noexcept {
  const Scratch s = scratch_of(a);
  attend(a, s, [&](const Rows& rows, bool prefix, Range keys) { rows_part(a, rows, s, prefix, keys, Multiply{}); });
}

}  // namespace

void init_attention(KernelTable& t) { t.attention = attention; }

}  // namespace thimble::THIMBLE_ISA
