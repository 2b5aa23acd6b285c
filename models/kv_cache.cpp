#include "models/kv_cache.h"

#include "tensor/error.h"

namespace thimble {

KvCache::KvCache(const ModelConfig& config, int64_t n_seqs, int64_t capacity, MemoryBudget* budget, KvType type)
    : n_seqs_(n_seqs),
      layout_{type, config.n_kv_heads, config.head_dim, capacity},
      buffer_(size_t(config.n_layers * n_seqs * layout_.sequence_bytes()), budget, "key/value cache"),
      lengths_(static_cast<size_t>(n_seqs), 0) {
  auto* base = static_cast<std::byte*>(buffer_.data());
  for (int64_t i = 0; i < config.n_layers * n_seqs; ++i) sequences_.push_back(base + i * layout_.sequence_bytes());
}

void KvCache::rewind(int64_t seq, int64_t mark) {
  THIMBLE_CHECK(mark >= 0 && mark <= length(seq));
  lengths_[static_cast<size_t>(seq)] = static_cast<int32_t>(mark);
}

void KvCache::store(Context& ctx, int64_t layer, int64_t seq, int64_t n, const float* k, const float* v) {
  kv_store(ctx, layout_, sequences(layer)[seq], length(seq), n, k, v);
}

}  // namespace thimble
