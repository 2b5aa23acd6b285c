// Keys and values of past tokens, per layer and sequence, in f32. A cache can be marked and rewound, so that scoring
// fifteen labels runs the prompt once.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"
#include "tensor/arena.h"

namespace thimble {

class KvCache {
 public:
  // capacity: tokens per sequence.
  KvCache(const ModelConfig& config, int64_t n_seqs, int64_t capacity, MemoryBudget* budget = nullptr);

  int64_t n_seqs() const { return n_seqs_; }
  int64_t capacity() const { return capacity_; }
  int64_t length(int64_t seq) const { return lengths_[static_cast<size_t>(seq)]; }
  // A mark is a length; rewind forgets what came after it.
  int64_t mark(int64_t seq) const { return length(seq); }
  void rewind(int64_t seq, int64_t mark);
  void advance(int64_t seq, int64_t tokens) { lengths_[static_cast<size_t>(seq)] += static_cast<int32_t>(tokens); }

  // Row `position` of layer and sequence: [kv_cols].
  float* k_row(int64_t layer, int64_t seq, int64_t position) const { return base(layer, seq) + position * cols_; }
  float* v_row(int64_t layer, int64_t seq, int64_t position) const { return k_row(layer, seq, position + capacity_); }

  // What the attention op takes: [n_seqs] pointers of a layer, and the lengths.
  const float* const* k_pointers(int64_t layer) const { return &k_[static_cast<size_t>(layer * n_seqs_)]; }
  const float* const* v_pointers(int64_t layer) const { return &v_[static_cast<size_t>(layer * n_seqs_)]; }
  const int32_t* lengths() const { return lengths_.data(); }

 private:
  float* base(int64_t layer, int64_t seq) const { return buffer_.f32() + (layer * n_seqs_ + seq) * 2 * capacity_ * cols_; }
  int64_t n_seqs_, capacity_, cols_;
  Buffer buffer_;  // [layers][seqs][k, v][capacity][kv_cols]
  std::vector<const float*> k_, v_;
  std::vector<int32_t> lengths_;
};

}  // namespace thimble
