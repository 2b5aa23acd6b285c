// Weights and activations with random contents for the benches. Never zeros: a zero page is one page, and zeros switch
// too few transistors to show the real clock.
#pragma once

#include "models/random_model.h"

namespace thimble::bench {

// n floats, uniform in [-scale, scale).
inline Buffer random_floats(int64_t n, uint64_t seed, float scale = 1.0f) {
  Buffer buffer(static_cast<size_t>(n) * sizeof(float));
  FastRandom random(seed);
  float* p = buffer.f32();
  for (int64_t i = 0; i < n; ++i) p[i] = scale * random.uniform();
  return buffer;
}

// One weight in memory of its own.
struct RandomWeight {
  Weight weight;

  RandomWeight(WeightFormat format, int64_t rows, int64_t cols, int64_t group, uint64_t seed,
               GroupKind kind = GroupKind::zero_points) {
    weight.rows = rows;
    weight.cols = cols;
    weight.format = format;
    weight.group = is_tiled(format) ? group : 0;
    weight.kind = kind;
    buffer_ = Buffer(weight.stored_bytes());
    fill_random(weight, buffer_.data(), seed);
  }
  RandomWeight(const RandomWeight&) = delete;
  RandomWeight& operator=(const RandomWeight&) = delete;

 private:
  Buffer buffer_;
};

}  // namespace thimble::bench
