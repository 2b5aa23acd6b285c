// Autoregressive generation over a KV cache: prefill in chunks, then one token at a time. After the first step a decode
// step allocates nothing on the heap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "models/kv_cache.h"
#include "models/transformer.h"

namespace thimble {

class Generator {
 public:
  // capacity: tokens of prompt and continuation together, at most transformer.max_tokens(); the virtual tokens of a
  // prompt adapter come on top. adapter may be null.
  Generator(Transformer& transformer, Context& ctx, int64_t capacity, Adapter* adapter = nullptr,
            KvType kv = KvType::f32);

  // Appends tokens to the cache (the virtual tokens of a prompt adapter first, when it is empty) and returns the logits [vocab_size] behind the last one. They stay valid until the next call.
  const float* feed(const int32_t* ids, int64_t n);

  KvCache& cache() { return cache_; }
  // Tokens fed so far, without virtual ones.
  int64_t length() const { return std::max<int64_t>(0, cache_.length(0) - virtuals_); }

 private:
  void run(const int32_t* ids, int64_t n, bool want_logits);

  static constexpr int64_t kChunk = 512;  // rows per prefill step: bounds the memory of activations
  Transformer& transformer_;
  Context& ctx_;
  Adapter* adapter_;
  int64_t virtuals_;  // of a prompt adapter
  KvCache cache_;
  std::vector<float> logits_;
};

}  // namespace thimble
