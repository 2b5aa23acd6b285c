#include "models/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/error.h"
#include "tensor/trace.h"

namespace thimble {

int32_t argmax(const float* values, int64_t n) {
  return static_cast<int32_t>(std::max_element(values, values + n) - values);
}

Sampler::Sampler(const SamplerOptions& options, int64_t vocab_size) : options_(options), vocab_size_(vocab_size), rng_(options.seed, 0x73616d706c65) {
  const auto check = [](bool ok, const char* message, const char* hint) {
    if (!ok) throw Error(ErrorCode::usage, message, hint);
  };
  check(options.temperature >= 0 && std::isfinite(options.temperature), "--temperature: expected a number from 0 up", "0 is greedy");
  check(options.top_k >= 0, "--top-k: expected an integer from 0 up", "0 keeps every token");
  check(options.top_p > 0 && options.top_p <= 1, "--top-p: expected a number above 0 and at most 1", "1 keeps every token");
  check(options.min_p >= 0 && options.min_p <= 1, "--min-p: expected a number from 0 to 1", "0 keeps every token");
  if (options.temperature > 0) {
    probabilities_.resize(static_cast<size_t>(vocab_size));
    order_.resize(static_cast<size_t>(vocab_size));
  }
}

int32_t Sampler::next(const KernelTable& kernels, const float* logits) {
  THIMBLE_ZONE(sample);
  if (options_.temperature == 0) return argmax(logits, vocab_size_);
  const int64_t n = vocab_size_;
  // Differences from the largest, in double: neither a huge logit nor a tiny temperature overflows, and a NaN (which
  // would also break the sort below) counts as impossible.
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::isnan(logits[i]) ? largest : logits[i]);
  for (int64_t i = 0; i < n; ++i) {
    const double below = logits[i] == largest ? 0.0 : (double(logits[i]) - double(largest)) / options_.temperature;
    probabilities_[size_t(i)] = below >= -1e4 ? static_cast<float>(below) : -1e4f;
  }
  kernels.softmax({1, n, probabilities_.data(), probabilities_.data(), 1.0f});
  for (int64_t i = 0; i < n; ++i) order_[size_t(i)] = static_cast<int32_t>(i);
  // Most likely first, equal ones by id, so that cuts and draw do not depend on the sort.
  const auto before = [&](int32_t a, int32_t b) {
    const float pa = probabilities_[size_t(a)], pb = probabilities_[size_t(b)];
    return pa != pb ? pa > pb : a < b;
  };
  int64_t kept = options_.top_k > 0 ? std::min(options_.top_k, n) : n;
  if (kept < n)
    std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), before);
  else
    std::sort(order_.begin(), order_.end(), before);
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) total += double(probabilities_[size_t(order_[size_t(i)])]);
  if (options_.top_p < 1) {
    double sum = 0;
    int64_t i = 0;
    while (i < kept && sum < options_.top_p * total) sum += double(probabilities_[size_t(order_[size_t(i++)])]);
    kept = std::max<int64_t>(1, i);
  }
  const double floor = options_.min_p * double(probabilities_[size_t(order_[0])]);
  while (kept > 1 && double(probabilities_[size_t(order_[size_t(kept - 1)])]) < floor) --kept;
  total = 0;
  for (int64_t i = 0; i < kept; ++i) total += double(probabilities_[size_t(order_[size_t(i)])]);
  double draw = rng_.uniform() * total;
  for (int64_t i = 0; i < kept; ++i) {
    draw -= double(probabilities_[size_t(order_[size_t(i)])]);
    if (draw < 0) return order_[size_t(i)];
  }
  return order_[size_t(kept - 1)];
}

}  // namespace thimble
