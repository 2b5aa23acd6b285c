// Attention of one key/value head and the query heads that share it:
//   s_j = softcap tanh(scale q.k_j / softcap) + alibi j  (softcap 0: scale q.k_j + alibi j; no alibi on prefix keys)
//   o = sum_j exp(s_j - lse) v_j,  lse = log(sum_j exp(s_j) [+ 1 with softmax_one]),  j over the visible keys
// attention_bf16 rounds q, k, v and exp(s_j - part maximum) to bf16 before they are multiplied.
// One row at a time: scores are computed twice instead of being stored.
#include "kernels/ref/attention.h"
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

template <class Rounding>
void attention(const AttentionArgs& a) noexcept {
  attend_all<Rounding>(a, RowKeys{a.k, a.v, a.k_row, a.v_row});
}

}  // namespace

void init_attention(KernelTable& t) {
  t.attention = attention<Exact>;
  t.attention_bf16 = attention<ToBf16>;
}

}  // namespace thimble::ref
