#include "tensor/kv_layout.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr const char* kNames[] = {"f32", "f16", "int8"};
constexpr int64_t kSerial = 1 << 14;  // elements that are not worth waking threads for

// The elements of a row as they are stored.
class StoredRow {
 public:
  StoredRow(const KernelTable& kernels, KvType type, const float* row, int64_t dim) {
    data_ = row;
    if (type == KvType::f16) {
      kernels.f32_to_f16({dim, row, halves_});
      data_ = halves_;
    } else if (type == KvType::int8) {
      int32_t sum = 0;
      kernels.quantize_i8({1, dim, dim, row, dim, 1, dim, codes_, &scale_, &sum});
      for (int64_t d = 0; d < dim; ++d)
        if (!std::isfinite(row[d])) scale_ = std::numeric_limits<float>::quiet_NaN();
      data_ = codes_;
    }
  }
  const void* data() const { return data_; }
  float scale() const { return scale_; }

 private:
  uint16_t halves_[kAttentionMaxHeadDim];
  int8_t codes_[kAttentionMaxHeadDim];
  float scale_ = 0;
  const void* data_;
};

template <class E>
void scatter(std::byte* keys, int64_t position, int64_t dim, const void* row) {
  E* to = reinterpret_cast<E*>(keys) + position / kAttentionBlockK * dim * kAttentionBlockK + position % kAttentionBlockK;
  const E* from = static_cast<const E*>(row);
  for (int64_t d = 0; d < dim; ++d) to[d * kAttentionBlockK] = from[d];
}

}  // namespace

const char* kv_type_name(KvType type) { return kNames[static_cast<int>(type)]; }

KvType parse_kv_type(const std::string& text, const std::string& where) {
  for (int i = 0; i < 3; ++i)
    if (text == kNames[i]) return static_cast<KvType>(i);
  throw Error(ErrorCode::usage, where + ": \"" + text.substr(0, 80) + "\" is not a type of key/value cache",
              "valid: f32, f16, int8");
}

void kv_store(Context& ctx, const KvLayout& layout, std::byte* sequence, int64_t position, int64_t n, const float* k,
              const float* v) {
  const int64_t dim = layout.head_dim, cols = layout.n_kv_heads * dim;
  THIMBLE_CHECK(position >= 0 && position + n <= layout.capacity && dim <= kAttentionMaxHeadDim);
  const int threads = n * cols > kSerial ? ctx.threads : 1;
  parallel_for(threads, layout.n_kv_heads, [&](int64_t h, int) {
    std::byte* head = layout.head(sequence, h);
    std::byte* values = head + layout.v_offset();
    const int64_t row_bytes = dim * layout.element_bytes();
    for (int64_t r = 0; r < n; ++r) {
      const int64_t at = position + r;
      const StoredRow key(ctx.kernels, layout.type, k + r * cols + h * dim, dim);
      const StoredRow value(ctx.kernels, layout.type, v + r * cols + h * dim, dim);
      if (layout.type == KvType::f32) scatter<float>(head, at, dim, key.data());
      if (layout.type == KvType::f16) scatter<uint16_t>(head, at, dim, key.data());
      if (layout.type == KvType::int8) {
        scatter<int8_t>(head, at, dim, key.data());
        layout.k_scale(head)[at] = key.scale();
        layout.v_scale(head)[at] = value.scale();
      }
      std::memcpy(values + at * row_bytes, value.data(), static_cast<size_t>(row_bytes));
    }
  });
}

}  // namespace thimble
