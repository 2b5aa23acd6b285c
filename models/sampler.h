// Picks the next token from logits: greedy, or temperature with top-k, top-p and min-p cuts applied in that order to the
// softmax of logits / temperature. Seeded: the draw number n of a seed is always the same. Allocates at construction only.
// Tokens are ordered by likelihood, then id. Only as many are sorted as the cuts may keep: a histogram of the likelihoods
// says which; without cuts only the bucket that the draw falls into is sorted.
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
  struct Bucket {
    double sum = 0;
    int64_t count = 0;
  };
  // Fills order_ with the tokens of likelihood [from, below), ordered; how many there are.
  int64_t gather(float from, float below);
  double probability(int64_t rank) const { return double(probabilities_[static_cast<size_t>(order_[static_cast<size_t>(rank)])]); }
  int32_t draw(int64_t kept);
  int32_t draw_from_all();

  SamplerOptions options_;
  int64_t vocab_size_;
  Philox rng_;
  std::vector<float> probabilities_;
  std::vector<int32_t> order_;
  std::vector<Bucket> buckets_;
};

}  // namespace thimble
