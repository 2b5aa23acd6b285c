// How the keys and values of one layer and sequence lie in a cache. Per key/value head, in one piece: keys in blocks of
// kAttentionBlockK positions with the position innermost, values in rows, and for int8 one scale per position and head.
// The order is that of AttentionCacheArgs: decoding reads each head once, front to back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/kernel_args.h"
#include "tensor/context.h"

namespace thimble {

// f32: as computed. f16: rounded to nearest even. int8: symmetric, scale = absmax / 127 per position and head, code =
// round(x / scale).
enum class KvType : uint8_t { f32, f16, int8 };
const char* kv_type_name(KvType type);
// Throws usage, naming `where` and the valid types.
KvType parse_kv_type(const std::string& text, const std::string& where);

struct KvLayout {
  KvType type = KvType::f32;
  int64_t n_kv_heads = 0, head_dim = 0;
  int64_t capacity = 0;  // positions

  int64_t element_bytes() const { return type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1; }
  // Positions rounded up to whole blocks.
  int64_t padded() const { return (capacity + kAttentionBlockK - 1) / kAttentionBlockK * kAttentionBlockK; }
  int64_t v_offset() const { return padded() * head_dim * element_bytes(); }
  // Kernels may read 64 bytes beyond the last value.
  int64_t scale_offset() const { return (v_offset() + capacity * head_dim * element_bytes() + 64 + 63) / 64 * 64; }
  int64_t head_bytes() const {
    return scale_offset() + (type == KvType::int8 ? 2 * padded() * static_cast<int64_t>(sizeof(float)) : 0);
  }
  int64_t sequence_bytes() const { return n_kv_heads * head_bytes(); }

  std::byte* head(std::byte* sequence, int64_t h) const { return sequence + h * head_bytes(); }
  // One float per position: keys, then values.
  float* k_scale(std::byte* head_base) const { return reinterpret_cast<float*>(head_base + scale_offset()); }
  float* v_scale(std::byte* head_base) const { return k_scale(head_base) + padded(); }
};

// Writes n rows of k and v [n, n_kv_heads * head_dim] to the positions from `position` on; position + n <= capacity.
// A row with a non-finite entry keeps it: int8 marks it by a scale of NaN.
void kv_store(Context& ctx, const KvLayout& layout, std::byte* sequence, int64_t position, int64_t n, const float* k,
              const float* v);

}  // namespace thimble
