// Keys and values of past tokens, per layer and sequence, in f32, f16 or int8 (tensor/kv_layout.h). A cache can be marked
// and rewound, so that scoring fifteen labels runs the prompt once.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"
#include "tensor/arena.h"
#include "tensor/kv_layout.h"

namespace thimble {

class KvCache {
 public:
  // capacity: tokens per sequence.
  KvCache(const ModelConfig& config, int64_t n_seqs, int64_t capacity, MemoryBudget* budget = nullptr,
          KvType type = KvType::f32);

  int64_t n_seqs() const { return n_seqs_; }
  int64_t capacity() const { return layout_.capacity; }
  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }
  int64_t length(int64_t seq) const { return lengths_[static_cast<size_t>(seq)]; }
  // A mark is a length; rewind forgets what came after it.
  int64_t mark(int64_t seq) const { return length(seq); }
  void rewind(int64_t seq, int64_t mark);
  void advance(int64_t seq, int64_t tokens) { lengths_[static_cast<size_t>(seq)] += static_cast<int32_t>(tokens); }

  // Writes n rows of keys and values [n, kv_cols] behind the sequence; advance() makes them part of it.
  void store(Context& ctx, int64_t layer, int64_t seq, int64_t n, const float* k, const float* v);

  // What the attention op takes: where the sequences of a layer lie [n_seqs], and the lengths.
  const KvLayout& layout() const { return layout_; }
  std::byte* const* sequences(int64_t layer) const { return &sequences_[static_cast<size_t>(layer * n_seqs_)]; }
  const int32_t* lengths() const { return lengths_.data(); }

 private:
  int64_t n_seqs_;
  KvLayout layout_;
  Buffer buffer_;  // [layers][seqs] of layout_
  std::vector<std::byte*> sequences_;
  std::vector<int32_t> lengths_;
};

}  // namespace thimble
