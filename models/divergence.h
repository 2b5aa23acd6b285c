// How far one model's predictions are from another's: Kullback-Leibler divergence of the next-token distributions,
// and how often both have the same first choice. The better gate for compression than perplexity, which averages.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "models/transformer.h"
#include "tensor/context.h"

namespace thimble {

// Tokens that are run together from the first one; those from first_scored on are scored (at least index 1 is: the first
// token has nothing before it).
struct ScoredSequence {
  std::vector<int32_t> ids;
  int64_t first_scored = 1;
};

// The windows of perplexity_windows over a text, without BOS.
std::vector<ScoredSequence> scored_windows(const std::vector<int32_t>& ids, int64_t ctx, int64_t stride);

struct Divergence {
  int64_t tokens = 0;
  double kl_mean = 0, kl_stderr = 0;  // KL(before || after) in nats; stderr = sample deviation / sqrt(tokens)
  double kl_p99 = 0, kl_max = 0;
  double same_top1 = 0;               // share of positions
  double nll_before = 0, nll_after = 0;
  double ppl_before = 0, ppl_after = 0;
  double ppl_stderr = 0;              // of ppl_after
  double nll_diff_stderr = 0;         // of the paired difference nll_after - nll_before
  std::vector<float> kl;              // per scored token, in order
  std::vector<int32_t> sequence;      // that it belongs to
};

// Both transformers have the same vocabulary (input otherwise). Sums are double and depend on neither threads nor batching.
// after_precision: of the products of `after`; without it those of ctx, like the products of `before`.
Divergence divergence(Transformer& before, Transformer& after, Context& ctx, const std::vector<ScoredSequence>& sequences,
                      const std::function<void(int64_t done, int64_t total)>& progress = {},
                      std::optional<Precision> after_precision = {});

// The mean of a.kl - b.kl over the same tokens, with the standard error that treats sequences as the independent units.
struct PairedDifference {
  double mean = 0, stderr_mean = 0;
};
PairedDifference paired_difference(const Divergence& a, const Divergence& b);

}  // namespace thimble
