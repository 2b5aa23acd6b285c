// Attention over one head of a key/value cache in f32, f16 or int8 (layout: AttentionCacheArgs), whole or one part of the
// keys, and the merge of such parts. The formula is that of attention.cpp.
#include "kernels/ref/attention.h"
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

double element(float x) { return static_cast<double>(x); }
double element(uint16_t x) { return static_cast<double>(f16_value(x)); }
double element(int8_t x) { return x; }

template <class T>
struct CacheKeys {
  const AttentionCacheArgs& a;
  double key(int64_t j, int64_t d) const {
    const int64_t block = j / kAttentionBlockK, column = j % kAttentionBlockK;
    return element(static_cast<const T*>(a.k)[(block * a.f.head_dim + d) * kAttentionBlockK + column]);
  }
  double value(int64_t j, int64_t d) const { return element(static_cast<const T*>(a.v)[j * a.f.head_dim + d]); }
  double key_scale(int64_t j) const { return a.k_scale ? static_cast<double>(a.k_scale[j]) : 1; }
  double value_scale(int64_t j) const { return a.v_scale ? static_cast<double>(a.v_scale[j]) : 1; }
};

template <class T, class Rounding>
void attention_cache(const AttentionCacheArgs& a) noexcept {
  const CacheKeys<T> keys{a};
  if (a.part == kAttentionAllParts) return attend_all<Rounding>(a.f, keys);
  Part part;
  for (int64_t t = 0; t < a.f.tq; ++t) {
    for (int64_t g = 0; g < a.f.group; ++g) {
      row_part<Rounding>(a.f, keys, t, g, a.part, &part);
      float* out = a.partial + (t * a.f.group + g) * (a.f.head_dim + 2);
      out[0] = part.max;
      out[1] = part.sum;
      for (int64_t d = 0; d < a.f.head_dim; ++d) out[2 + d] = part.values[d];
    }
  }
}

void attention_merge(const AttentionMergeArgs& a) noexcept {
  AttentionArgs row{};
  row.head_dim = a.head_dim;
  row.softmax_one = a.softmax_one;
  for (int64_t t = 0; t < a.tq; ++t) {
    for (int64_t g = 0; g < a.group; ++g) {
      Merged merged;
      for (int64_t p = 0; p < a.n_parts; ++p) {
        const float* part = a.parts + p * a.part_stride + (t * a.group + g) * (a.head_dim + 2);
        merged.add(row, part[0], part[1], part + 2);
      }
      row.o = a.o + t * a.o_row + g * a.o_head;
      row.lse = a.lse ? a.lse + g * a.lse_head + t : nullptr;
      merged.finish(row);
    }
  }
}

}  // namespace

void init_attention_cache(KernelTable& t) {
  t.attention_cache_f32 = attention_cache<float, Exact>;
  t.attention_cache_f16 = attention_cache<uint16_t, Exact>;
  t.attention_cache_i8 = attention_cache<int8_t, Exact>;
  t.attention_cache_f32_bf16 = attention_cache<float, ToBf16>;
  t.attention_cache_f16_bf16 = attention_cache<uint16_t, ToBf16>;
  t.attention_cache_i8_bf16 = attention_cache<int8_t, ToBf16>;
  t.attention_merge = attention_merge;
}

}  // namespace thimble::ref
