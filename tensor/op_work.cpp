#include "tensor/op_work.h"

#include <algorithm>

#include "tensor/kv_layout.h"

namespace thimble {

void count_attention(const AttentionSpec& s, bool backward) {
  if (!tracing()) return;
  double pairs = 0, queries = 0, keys = 0;
  for (int64_t i = 0; i < s.n_seqs; ++i) {
    const int64_t count = s.cu_seqlens[i + 1] - s.cu_seqlens[i];
    const int64_t first = s.cache ? s.cache_len[i] : 0, last = first + count;
    const int64_t prefix = s.prefix_k ? (s.prefix_len ? s.prefix_len[i] : s.n_prefix) : 0;
    int64_t visible = 0;
    for (int64_t p = first; p < last; ++p) {
      const int64_t all = s.causal ? p + 1 : last;
      visible += s.window > 0 ? std::min(all, s.window) : all;
    }
    pairs += double(visible + prefix * count);
    queries += double(count);
    keys += double((s.window > 0 ? std::min(last, s.window + count) : last) + prefix);
  }
  const double per_pair = 2.0 * double(s.head_dim) * double(s.n_heads);
  const double stored = s.cache ? double(s.cache->element_bytes()) : 4.0;
  const double rows =
      (4.0 * 2 * queries * double(s.n_heads) + stored * 2 * keys * double(s.n_kv_heads)) * double(s.head_dim);
  // Backward reads q, k, v, o and dy, and writes dq, dk and dv.
  trace_work((backward ? 5 : 2) * pairs * per_pair, backward ? 2 * rows : rows);
}

}  // namespace thimble
