// Attention of one key/value head and the query heads that share it:
//   s_j = softcap tanh(scale q.k_j / softcap) + alibi j  (softcap 0: scale q.k_j + alibi j; no alibi on prefix keys)
//   o = sum_j exp(s_j - lse) v_j,  lse = log(sum_j exp(s_j) [+ 1 with softmax_one]),  j over the visible keys
// Straight from the formula, one row at a time: scores are computed twice instead of being stored. Sums in double.
#include <cmath>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

double score(const AttentionArgs& a, const float* q, const float* k, double bias) {
  double dot = 0;
  for (int64_t d = 0; d < a.head_dim; ++d) dot += static_cast<double>(q[d]) * k[d];
  dot *= a.scale;
  if (a.softcap != 0) dot = a.softcap * std::tanh(dot / a.softcap);
  return dot + bias;
}

void attend_row(const AttentionArgs& a, int64_t t, int64_t g) {
  const float* q = a.q + t * a.q_row + g * a.q_head;
  float* o = a.o + t * a.o_row + g * a.o_head;
  const int64_t pos = a.q_pos0 + t;
  const int64_t last = a.causal && pos + 1 < a.tk ? pos + 1 : a.tk;
  const int64_t first = a.window > 0 && pos - a.window + 1 > 0 ? pos - a.window + 1 : 0;
  const double slope = a.alibi ? a.alibi[g] : 0.0;

  double max = a.softmax_one ? 0.0 : -HUGE_VAL;
  for (int64_t j = 0; j < a.n_prefix; ++j) max = std::fmax(max, score(a, q, a.prefix_k + j * a.prefix_row, 0));
  for (int64_t j = first; j < last; ++j) {
    max = std::fmax(max, score(a, q, a.k + j * a.k_row, slope * static_cast<double>(j)));
  }

  double sum = a.softmax_one ? std::exp(-max) : 0.0;
  double out[kAttentionMaxHeadDim] = {};
  for (int64_t j = 0; j < a.n_prefix; ++j) {
    const double p = std::exp(score(a, q, a.prefix_k + j * a.prefix_row, 0) - max);
    sum += p;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] += p * a.prefix_v[j * a.prefix_row + d];
  }
  for (int64_t j = first; j < last; ++j) {
    const double p = std::exp(score(a, q, a.k + j * a.k_row, slope * static_cast<double>(j)) - max);
    sum += p;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] += p * a.v[j * a.v_row + d];
  }

  const bool sees_none = a.n_prefix == 0 && first >= last;
  for (int64_t d = 0; d < a.head_dim; ++d) o[d] = sees_none ? 0.0f : static_cast<float>(out[d] / sum);
  if (a.lse) a.lse[g * a.lse_head + t] = static_cast<float>(sees_none ? -HUGE_VAL : max + std::log(sum));
}

void attention(const AttentionArgs& a) noexcept {
  for (int64_t g = 0; g < a.group; ++g) {
    for (int64_t t = 0; t < a.tq; ++t) attend_row(a, t, g);
  }
}

}  // namespace

void init_attention(KernelTable& t) { t.attention = attention; }

}  // namespace thimble::ref
