#include "models/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/error.h"
#include "tensor/trace.h"

namespace thimble {

namespace {

// Likelihoods fall into buckets of an eighth of an octave, by the leading bits of the float: 0 <= p <= 1.
constexpr int kShift = 20;
constexpr int32_t kBuckets = (0x3F800000 >> kShift) + 1;
int32_t bucket_of(float p) {
  int32_t bits;
  std::memcpy(&bits, &p, sizeof(bits));
  return std::clamp(bits >> kShift, 0, kBuckets - 1);
}
float lower_bound_of(int32_t bucket) {
  const int32_t bits = bucket << kShift;
  float p;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

// The largest value that is a number; -infinity if there is none.
float largest_of(const float* values, int64_t n) {
  constexpr int64_t kWays = 16;
  float largest[kWays];
  std::fill(largest, largest + kWays, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kWays <= n; i += kWays)
    for (int64_t j = 0; j < kWays; ++j) largest[j] = values[i + j] > largest[j] ? values[i + j] : largest[j];
  for (; i < n; ++i) largest[0] = values[i] > largest[0] ? values[i] : largest[0];
  return *std::max_element(largest, largest + kWays);
}

}  // namespace

int32_t argmax(const float* values, int64_t n) {
  const float* found = std::find(values, values + n, largest_of(values, n));
  return found == values + n ? 0 : static_cast<int32_t>(found - values);  // no number at all: the first
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
    order_.resize(static_cast<size_t>(vocab_size) + 1);
    buckets_.resize(kBuckets);
  }
}

// Most likely first, equal ones by id, so that cuts and draw do not depend on the sort.
int64_t Sampler::gather(float from, float below) {
  int64_t count = 0;
  for (int64_t i = 0; i < vocab_size_; ++i) {
    order_[size_t(count)] = static_cast<int32_t>(i);
    count += probabilities_[size_t(i)] >= from && probabilities_[size_t(i)] < below;
  }
  std::sort(order_.begin(), order_.begin() + count, [this](int32_t a, int32_t b) {
    const float pa = probabilities_[size_t(a)], pb = probabilities_[size_t(b)];
    return pa != pb ? pa > pb : a < b;
  });
  return count;
}

// A draw among the first `kept` of order_.
int32_t Sampler::draw(int64_t kept) {
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) total += probability(i);
  double left = rng_.uniform() * total;
  for (int64_t i = 0; i < kept; ++i) {
    left -= probability(i);
    if (left < 0) return order_[size_t(i)];
  }
  return order_[size_t(kept - 1)];
}

// A draw among all: whole buckets are passed over, one is looked into.
int32_t Sampler::draw_from_all() {
  double total = 0;
  for (int32_t b = kBuckets - 1; b >= 0; --b) total += buckets_[size_t(b)].sum;
  double left = rng_.uniform() * total;
  int32_t last = 0;
  for (int32_t b = kBuckets - 1; b >= 0; --b) {
    const Bucket& bucket = buckets_[size_t(b)];
    if (bucket.count == 0) continue;
    if (left >= bucket.sum) {
      left -= bucket.sum;
      last = b;
      continue;
    }
    const int64_t count = gather(lower_bound_of(b), b + 1 < kBuckets ? lower_bound_of(b + 1) : 2.0f);
    for (int64_t i = 0; i < count; ++i) {
      left -= probability(i);
      if (left < 0) return order_[size_t(i)];
    }
    return order_[size_t(count - 1)];
  }
  const int64_t count = gather(lower_bound_of(last), last + 1 < kBuckets ? lower_bound_of(last + 1) : 2.0f);
  return order_[size_t(count - 1)];
}

int32_t Sampler::next(const KernelTable& kernels, const float* logits) {
  THIMBLE_ZONE(sample);
  if (options_.temperature == 0) return argmax(logits, vocab_size_);
  const int64_t n = vocab_size_;
  // Differences from the largest, in double: neither a huge logit nor a tiny temperature overflows, and a NaN (which
  // would also break a sort) counts as impossible.
  const float largest = largest_of(logits, n);
  for (int64_t i = 0; i < n; ++i) {
    const double below = logits[i] == largest ? 0.0 : (double(logits[i]) - double(largest)) / options_.temperature;
    probabilities_[size_t(i)] = below >= -1e4 ? static_cast<float>(below) : -1e4f;
  }
  kernels.softmax({1, n, probabilities_.data(), probabilities_.data(), 1.0f});
  std::fill(buckets_.begin(), buckets_.end(), Bucket{});
  for (int64_t i = 0; i < n; ++i) {
    Bucket& bucket = buckets_[size_t(bucket_of(probabilities_[size_t(i)]))];
    bucket.sum += double(probabilities_[size_t(i)]);
    ++bucket.count;
  }
  const bool by_rank = options_.top_k > 0 && options_.top_k < n;
  if (!by_rank && options_.top_p == 1 && options_.min_p == 0) return draw_from_all();

  // The buckets that hold everything the first cut keeps; only those are sorted. A sum that the rounding of the order of
  // its terms leaves just short goes on into the next bucket.
  double total = 0;
  for (int32_t b = kBuckets - 1; b >= 0; --b) total += buckets_[size_t(b)].sum;
  const double wanted = options_.top_p * total;
  int32_t lowest = kBuckets - 1;
  int64_t count = buckets_[size_t(lowest)].count;
  const auto go_down = [&] { count += buckets_[size_t(--lowest)].count; };
  int64_t kept = 0;
  if (by_rank) {
    while (count < options_.top_k) go_down();
    gather(lower_bound_of(lowest), 2.0f);
    kept = options_.top_k;
    total = 0;
    for (int64_t i = 0; i < kept; ++i) total += probability(i);
  } else {
    double sum = buckets_[size_t(lowest)].sum;
    while (lowest > 0 && (count == 0 || (options_.top_p < 1 && sum < wanted))) {
      go_down();
      sum += buckets_[size_t(lowest)].sum;
    }
    if (options_.top_p == 1)  // min_p alone
      while (lowest > 0 && double(lower_bound_of(lowest)) > options_.min_p * double(largest_of(probabilities_.data(), n))) go_down();
    kept = gather(lower_bound_of(lowest), 2.0f);
  }
  if (options_.top_p < 1) {
    const double enough = options_.top_p * total;
    const int64_t available = kept;
    double sum = 0;
    int64_t i = 0;
    while (sum < enough) {
      if (i == kept) {
        if (by_rank || lowest == 0) break;
        go_down();
        kept = gather(lower_bound_of(lowest), 2.0f);
        if (i == kept) continue;
      }
      sum += probability(i++);
    }
    kept = std::max<int64_t>(1, by_rank ? std::min(i, available) : i);
  }
  const double floor = options_.min_p * probability(0);
  while (kept > 1 && probability(kept - 1) < floor) --kept;
  return draw(kept);
}

}  // namespace thimble
