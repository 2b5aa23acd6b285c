#include "models/kv_cache.h"

#include "tensor/error.h"

namespace thimble {

KvCache::KvCache(const ModelConfig& config, int64_t n_seqs, int64_t capacity, MemoryBudget* budget)
    : n_seqs_(n_seqs),
      capacity_(capacity),
      cols_(config.kv_cols()),
      buffer_(size_t(config.n_layers * n_seqs * 2 * capacity * cols_) * sizeof(float), budget, "key/value cache"),
      lengths_(static_cast<size_t>(n_seqs), 0) {
  for (int64_t l = 0; l < config.n_layers; ++l)
    for (int64_t s = 0; s < n_seqs; ++s) {
      k_.push_back(k_row(l, s, 0));
      v_.push_back(v_row(l, s, 0));
    }
}

void KvCache::rewind(int64_t seq, int64_t mark) {
  THIMBLE_CHECK(mark >= 0 && mark <= length(seq));
  lengths_[static_cast<size_t>(seq)] = static_cast<int32_t>(mark);
}

}  // namespace thimble
