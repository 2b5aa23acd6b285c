// Autoregressive generation over a KV cache: prefill in chunks, then one token at a time. After the first step a decode
// step allocates nothing on the heap.
#pragma once

#include <cstdint>
#include <vector>

#include "models/kv_cache.h"
#include "models/transformer.h"

namespace thimble {

class Generator {
 public:
  // capacity: tokens of prompt and continuation together, at most transformer.max_tokens().
  Generator(Transformer& transformer, Context& ctx, int64_t capacity);

  // Appends tokens to the cache and returns the logits [vocab_size] behind the last one. They stay valid until the next call.
  const float* feed(const int32_t* ids, int64_t n);

  KvCache& cache() { return cache_; }
  int64_t length() const { return cache_.length(0); }

 private:
  static constexpr int64_t kChunk = 512;  // rows per prefill step: bounds the memory of activations
  Transformer& transformer_;
  Context& ctx_;
  KvCache cache_;
  std::vector<float> logits_;
};

}  // namespace thimble
