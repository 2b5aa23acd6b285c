// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a resample costs two dozen draws and a report makes millions of
// resamples. Equal seed and stream, equal draws.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thimble::lab {

class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream) : state_(seed + stream * 0xD1B54A32D192ED03u) {}
  uint32_t next_u32() {
    if (half_) {
      half_ = false;
      return static_cast<uint32_t>(value_ >> 32);
    }
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    value_ = z ^ z >> 31;
    half_ = true;
    return static_cast<uint32_t>(value_);
  }
  // Multiply-shift: the bias is below n / 2^32, far under what 10,000 resamples can show.
  uint32_t below(size_t n) { return static_cast<uint32_t>(uint64_t{next_u32()} * n >> 32); }

 private:
  uint64_t state_, value_ = 0;
  bool half_ = false;
};

}  // namespace thimble::lab
