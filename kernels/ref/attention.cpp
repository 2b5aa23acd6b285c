// Attention of one key/value head and the query heads that share it:
//   s_j = softcap tanh(scale q.k_j / softcap) + alibi j  (softcap 0: scale q.k_j + alibi j; no alibi on prefix keys)
//   o = sum_j exp(s_j - lse) v_j,  lse = log(sum_j exp(s_j) [+ 1 with softmax_one]),  j over the visible keys
// One row at a time: scores are computed twice instead of being stored.
#include "kernels/ref/attention.h"
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void attention(const AttentionArgs& a) noexcept { attend_all(a, RowKeys{a.k, a.v, a.k_row, a.v_row}); }

}  // namespace

void init_attention(KernelTable& t) { t.attention = attention; }

}  // namespace thimble::ref
