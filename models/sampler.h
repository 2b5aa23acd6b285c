// Picks the next token from logits: greedy, or temperature with top-k, top-p and min-p cuts applied in that order to the
// softmax of logits / temperature. Seeded: the draw number n of a seed is always the same. Allocates at construction only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/rng.h"

namespace thimble {

struct SamplerOptions {
  double temperature = 0;  // 0: greedy (the first of equal maxima)
  int64_t top_k = 0;       // keep the k most likely; 0: all
  double top_p = 1;        // keep the smallest set with at least this probability
  double min_p = 0;        // keep tokens with at least this share of the largest probability
  uint64_t seed = 0;
};

// The first index of the largest value. n > 0.
int32_t argmax(const float* values, int64_t n);

class Sampler {
 public:
  // Throws usage when an option is out of its range.
  Sampler(const SamplerOptions& options, int64_t vocab_size);
  int32_t next(const KernelTable& kernels, const float* logits);

 private:
  SamplerOptions options_;
  int64_t vocab_size_;
  Philox rng_;
  std::vector<float> probabilities_;
  std::vector<int32_t> order_;
};

}  // namespace thimble
