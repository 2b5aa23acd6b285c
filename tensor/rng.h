// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter-based, so that any
// draw is a pure function of (seed, stream, index), the same for any thread count and in any replay.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace thimble {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// A sequence of draws from one named stream of a seed.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  uint32_t next_u32() {
    if (index_ % 4 == 0) {
      const uint64_t block = index_ / 4;
      block_ = philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                           static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                          {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
    }
    return block_[index_++ % 4];
  }
  uint64_t next_u64() {
    const uint64_t high = next_u32();
    return high << 32 | next_u32();
  }
  double uniform() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }  // [0, 1)
  // Uniform integer in [0, n), n > 0, without bias.
  uint64_t below(uint64_t n) {
    const uint64_t limit = ~uint64_t{0} - ~uint64_t{0} % n;
    for (;;) {
      const uint64_t x = next_u64();
      if (x < limit) return x % n;
    }
  }
  double normal() {  // Box-Muller, one of the pair
    const double u = 1.0 - uniform(), v = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }
  uint64_t index() const { return index_; }
  void seek(uint64_t index) {
    index_ = index / 4 * 4;
    for (uint64_t i = index_; i < index; ++i) next_u32();
  }

 private:
  uint64_t seed_, stream_, index_ = 0;
  std::array<uint32_t, 4> block_{};
};

}  // namespace thimble
