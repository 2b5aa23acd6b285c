// One row of attention in parts, straight from the formula, whatever the keys are stored in. Sums in double; a part is
// rounded to f32 where it is stored, so that merging it at once or later is the same. Operands of products go through a
// Rounding: as they are, or to bf16.
#pragma once

#include <cmath>

#include "kernels/kernel_args.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

struct Part {
  float max, sum;
  float values[kAttentionMaxHeadDim];
};

struct Exact {
  static double operand(double x) { return x; }
};
struct ToBf16 {
  static double operand(double x) { return static_cast<double>(bf16_value(bf16_bits(static_cast<float>(x)))); }
};

// Keys and values as functions of (j, d), and what multiplies them after the product with a key, before that with a value.
struct RowKeys {
  const float *keys, *values;
  int64_t key_row, value_row;
  double key(int64_t j, int64_t d) const { return keys[j * key_row + d]; }
  double value(int64_t j, int64_t d) const { return values[j * value_row + d]; }
  double key_scale(int64_t) const { return 1; }
  double value_scale(int64_t) const { return 1; }
};

template <class Rounding, class Keys>
double attention_score(const AttentionArgs& a, const float* q, const Keys& keys, int64_t j, double slope) {
  double dot = 0;
  for (int64_t d = 0; d < a.head_dim; ++d) dot += Rounding::operand(q[d]) * Rounding::operand(keys.key(j, d));
  dot *= keys.key_scale(j) * static_cast<double>(a.scale);
  if (a.softcap != 0) dot = a.softcap * std::tanh(dot / a.softcap);
  return dot + slope * static_cast<double>(j);
}

// The keys [first, last) as one part.
template <class Rounding, class Keys>
void attend_part(const AttentionArgs& a, const float* q, const Keys& keys, int64_t first, int64_t last, double slope,
                 Part* part) {
  double max = -HUGE_VAL, sum = 0, values[kAttentionMaxHeadDim] = {};
  for (int64_t j = first; j < last; ++j) max = std::fmax(max, attention_score<Rounding>(a, q, keys, j, slope));
  part->max = static_cast<float>(max);
  for (int64_t j = first; j < last; ++j) {
    const double p = std::exp(attention_score<Rounding>(a, q, keys, j, slope) - static_cast<double>(part->max));
    sum += p;
    const double weight = Rounding::operand(p * keys.value_scale(j));
    for (int64_t d = 0; d < a.head_dim; ++d) values[d] += weight * Rounding::operand(keys.value(j, d));
  }
  part->sum = static_cast<float>(sum);
  for (int64_t d = 0; d < a.head_dim; ++d) part->values[d] = static_cast<float>(values[d]);
}

// The merged parts of a row.
struct Merged {
  double max = -HUGE_VAL, sum = 0;
  double values[kAttentionMaxHeadDim] = {};

  void add(const AttentionArgs& a, float part_max, float part_sum, const float* part_values) {
    if (part_sum == 0) return;
    const double now = sum == 0 ? static_cast<double>(part_max) : std::fmax(max, static_cast<double>(part_max));
    const double old = sum == 0 ? 0 : std::exp(max - now), fresh = std::exp(static_cast<double>(part_max) - now);
    sum = sum * old + static_cast<double>(part_sum) * fresh;
    for (int64_t d = 0; d < a.head_dim; ++d) values[d] = values[d] * old + static_cast<double>(part_values[d]) * fresh;
    max = now;
  }
  // a: o and lse of the row at t = 0, g = 0.
  void finish(const AttentionArgs& a) const {
    const double now = a.softmax_one != 0 ? std::fmax(max, 0.0) : max;
    const double old = std::exp(max - now), total = sum * old + (a.softmax_one != 0 ? std::exp(-now) : 0.0);
    for (int64_t d = 0; d < a.head_dim; ++d) a.o[d] = sum == 0 ? 0.0f : static_cast<float>(values[d] * old / total);
    if (a.lse) *a.lse = static_cast<float>(sum == 0 ? -HUGE_VAL : now + std::log(total));
  }
};

struct VisibleKeys {
  int64_t first, last;
};
inline VisibleKeys visible(const AttentionArgs& a, int64_t t) {
  const int64_t pos = a.q_pos0 + t;
  return {a.window > 0 && pos - a.window + 1 > 0 ? pos - a.window + 1 : 0,
          a.causal != 0 && pos + 1 < a.tk ? pos + 1 : a.tk};
}

// Part `part` of row (t, g): kAttentionPrefixPart or a chunk.
template <class Rounding, class Keys>
void row_part(const AttentionArgs& a, const Keys& keys, int64_t t, int64_t g, int64_t part, Part* out) {
  const float* q = a.q + t * a.q_row + g * a.q_head;
  if (part == kAttentionPrefixPart) {
    const RowKeys prefix{a.prefix_k, a.prefix_v, a.prefix_row, a.prefix_row};
    return attend_part<Rounding>(a, q, prefix, 0, a.n_prefix, 0, out);
  }
  const VisibleKeys seen = visible(a, t);
  const int64_t begin = part * kAttentionChunkK, end = begin + kAttentionChunkK;
  attend_part<Rounding>(a, q, keys, seen.first > begin ? seen.first : begin, seen.last < end ? seen.last : end,
              a.alibi ? static_cast<double>(a.alibi[g]) : 0.0, out);
}

template <class Rounding, class Keys>
void attend_all(const AttentionArgs& a, const Keys& keys) {
  Part part;
  for (int64_t g = 0; g < a.group; ++g) {
    for (int64_t t = 0; t < a.tq; ++t) {
      Merged merged;
      for (int64_t c = kAttentionPrefixPart; c * kAttentionChunkK < a.tk; ++c) {
        row_part<Rounding>(a, keys, t, g, c, &part);
        merged.add(a, part.max, part.sum, part.values);
      }
      AttentionArgs row = a;
      row.o = a.o + t * a.o_row + g * a.o_head;
      row.lse = a.lse ? a.lse + g * a.lse_head + t : nullptr;
      merged.finish(row);
    }
  }
}

}  // namespace
}  // namespace thimble::ref
