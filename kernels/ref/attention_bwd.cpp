// Backward of attention. With p_j = exp(s_j - lse) recomputed from the saved lse and D = dO.o:
//   dv_j += p_j dO;  ds_j = p_j (dO.v_j - D);  dr_j = ds_j (1 - tanh²) with softcap, ds_j without
//   dq = scale sum_j dr_j k_j;  dk_j += scale dr_j q
// softmax_one needs nothing further: its extra term is inside lse. alibi is a constant. attention_bwd_bf16 rounds what is
// multiplied: q, k, v, dO, p_j and scale dr_j.
#include <cmath>

#include "kernels/ref/attention.h"
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

struct Row {
  const float* q;
  const float* d_o;
  double lse, delta;
  double dq[kAttentionMaxHeadDim];
};

template <class Rounding>
void key(const AttentionArgs& f, Row& row, const float* k, const float* v, double bias, float* dk, float* dv) {
  double dot = 0, dp = 0;
  for (int64_t d = 0; d < f.head_dim; ++d) {
    dot += Rounding::operand(row.q[d]) * Rounding::operand(k[d]);
    dp += Rounding::operand(row.d_o[d]) * Rounding::operand(v[d]);
  }
  dot *= f.scale;
  double slope = 1;
  if (f.softcap != 0) {
    const double t = std::tanh(dot / f.softcap);
    dot = f.softcap * t;
    slope = 1 - t * t;
  }
  const double p = std::exp(dot + bias - row.lse);
  const double dr = Rounding::operand(p * (dp - row.delta) * slope * f.scale), weight = Rounding::operand(p);
  for (int64_t d = 0; d < f.head_dim; ++d) {
    row.dq[d] += dr * Rounding::operand(k[d]);
    if (dk) dk[d] += static_cast<float>(dr * Rounding::operand(row.q[d]));
    if (dv) dv[d] += static_cast<float>(weight * Rounding::operand(row.d_o[d]));
  }
}

template <class Rounding>
void attention_bwd(const AttentionBwdArgs& a) noexcept {
  const AttentionArgs& f = a.f;
  for (int64_t j = a.key_begin; j < a.key_end; ++j) {
    for (int64_t d = 0; d < f.head_dim; ++d) a.dk[j * a.dk_row + d] = a.dv[j * a.dv_row + d] = 0;
  }
  for (int64_t g = 0; g < f.group; ++g) {
    for (int64_t t = 0; t < f.tq; ++t) {
      const float* o = f.o + t * f.o_row + g * f.o_head;
      Row row{f.q + t * f.q_row + g * f.q_head, a.d_o + t * f.o_row + g * f.o_head, f.lse[g * f.lse_head + t], 0, {}};
      for (int64_t d = 0; d < f.head_dim; ++d) row.delta += Rounding::operand(row.d_o[d]) * static_cast<double>(o[d]);
      const int64_t pos = f.q_pos0 + t;
      const int64_t seen_end = f.causal && pos + 1 < f.tk ? pos + 1 : f.tk;
      const int64_t seen_begin = f.window > 0 && pos - f.window + 1 > 0 ? pos - f.window + 1 : 0;
      const int64_t last = seen_end < a.key_end ? seen_end : a.key_end;
      const int64_t first = seen_begin > a.key_begin ? seen_begin : a.key_begin;
      for (int64_t j = 0; a.key_begin == 0 && j < f.n_prefix; ++j) {
        key<Rounding>(f, row, f.prefix_k + j * f.prefix_row, f.prefix_v + j * f.prefix_row, 0,
            a.d_prefix_k ? a.d_prefix_k + j * f.prefix_row : nullptr,
            a.d_prefix_v ? a.d_prefix_v + j * f.prefix_row : nullptr);
      }
      for (int64_t j = first; j < last; ++j) {
        const double bias = f.alibi ? static_cast<double>(f.alibi[g]) * static_cast<double>(j) : 0.0;
        key<Rounding>(f, row, f.k + j * f.k_row, f.v + j * f.v_row, bias, a.dk + j * a.dk_row, a.dv + j * a.dv_row);
      }
      float* dq = a.dq + t * f.q_row + g * f.q_head;
      for (int64_t d = 0; d < f.head_dim; ++d) dq[d] = static_cast<float>(row.dq[d]);
    }
  }
}

}  // namespace

void init_attention_bwd(KernelTable& t) {
  t.attention_bwd = attention_bwd<Exact>;
  t.attention_bwd_bf16 = attention_bwd<ToBf16>;
}

}  // namespace thimble::ref
