// Weights and activations with random contents for the benches. Never zeros: a zero page is one page, and zeros switch
// too few transistors to show the real clock.
#pragma once

#include <cstring>

#include "tensor/weight.h"

namespace thimble::bench {

class FastRandom {  // splitmix64: filling a gigabyte must not take longer than measuring on it
 public:
  explicit FastRandom(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// n floats, uniform in [-scale, scale).
inline Buffer random_floats(int64_t n, uint64_t seed, float scale = 1.0f) {
  Buffer buffer(static_cast<size_t>(n) * sizeof(float));
  FastRandom random(seed);
  float* p = buffer.f32();
  for (int64_t i = 0; i < n; ++i) p[i] = scale * (static_cast<float>(random.next() >> 40) * 0x1p-23f - 1.0f);
  return buffer;
}

// A weight of f32 rows, or of q8 or q4 tiles with random codes; its values have about the deviation 1 / sqrt(cols) that
// keeps activations in range through many layers.
struct RandomWeight {
  Weight weight;

  RandomWeight(const KernelTable& kernels, WeightFormat format, int64_t rows, int64_t cols, int64_t group, uint64_t seed) {
    const float deviation = 1.0f / __builtin_sqrtf(static_cast<float>(cols));
    if (!is_tiled(format)) {
      buffer_ = random_floats(rows * cols, seed, 1.7f * deviation);
      weight.rows = rows;
      weight.cols = cols;
      weight.data = buffer_.data();
      return;
    }
    const TileGeometry g = tile_geometry(format, rows, cols, group, true);
    const uint8_t mask = format == WeightFormat::q8 ? 255 : 15;
    std::vector<uint8_t> codes(static_cast<size_t>(rows * cols));
    FastRandom random(seed);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.next() >> 56) & mask;
    const std::vector<uint8_t> zeros(static_cast<size_t>(rows * g.groups), static_cast<uint8_t>((mask + 1) / 2));
    const std::vector<uint16_t> scales(static_cast<size_t>(rows * g.groups), half_of(deviation * 3.5f / static_cast<float>(mask)));
    storage_ = pack_tiles(kernels, format, rows, cols, group, codes.data(), zeros.data(), scales.data(), nullptr, nullptr);
    weight = storage_.weight;
  }
  RandomWeight(const RandomWeight&) = delete;
  RandomWeight& operator=(const RandomWeight&) = delete;

 private:
  // f16 of a positive normal number, truncated.
  static uint16_t half_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits >> 13) - (112u << 10));
  }
  Buffer buffer_;
  TileStorage storage_;
};

}  // namespace thimble::bench
