// One problem object per kernel signature drives the manifest test AND the manifest bench: Problem<Fn> builds the
// inputs of one case, runs any kernel of that signature, says what it wrote and within which derived tolerance two
// kernels may differ. A new slot of a known signature is covered by its manifest line alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble::testing {

struct SlotInfo {
  SlotId id;
  const char* name;
  const char* kind;
};

// Counter-based pseudo-random numbers: the same case on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }  // [0, 1)
  float normal() {                                                       // sum of uniforms is near enough
    float s = 0;
    for (int i = 0; i < 12; ++i) s += uniform();
    return s - 6.0f;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

// A buffer with guard bytes before and after, at a chosen misalignment (in elements) from a 64-byte boundary.
template <class T>
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(int64_t n, int64_t misalign = 0) : n_(n), offset_(0) {
    bytes_.assign(static_cast<size_t>(n) * sizeof(T) + 2 * kGuard + 64 + static_cast<size_t>(misalign) * sizeof(T), kFill);
    const auto base = reinterpret_cast<uintptr_t>(bytes_.data()) + kGuard;
    offset_ = static_cast<size_t>((base + 63) / 64 * 64 - base) + kGuard + static_cast<size_t>(misalign) * sizeof(T);
    std::memset(bytes_.data() + offset_, 0, static_cast<size_t>(n) * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  Guarded(Guarded&&) = default;
  Guarded& operator=(Guarded&&) = default;

  T* data() { return reinterpret_cast<T*>(bytes_.data() + offset_); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + offset_); }
  int64_t size() const { return n_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  bool intact() const {
    for (size_t i = 0; i < offset_; ++i)
      if (bytes_[i] != kFill) return false;
    for (size_t i = offset_ + static_cast<size_t>(n_) * sizeof(T); i < bytes_.size(); ++i)
      if (bytes_[i] != kFill) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 192;
  static constexpr unsigned char kFill = 0xA5;
  std::vector<unsigned char> bytes_;
  int64_t n_ = 0;
  size_t offset_ = 0;
};

// What a kernel wrote, as doubles, with the largest difference allowed per element (0: bit-equal).
struct Output {
  std::string name;
  std::vector<double> values;
  std::vector<double> tolerance;  // one entry per value, or a single entry for all
};

struct Shape {
  std::string label;  // "m=3 n=37 k=129", shown in failures and as the bench's name
  std::vector<int64_t> dims;
};

// Specialise for each function type Fn:
//   template <> struct Problem<Fn> {
//     static std::vector<Shape> test_shapes(const SlotInfo&);   // odd sizes, tails, 0 and 1
//     static std::vector<Shape> bench_shapes(const SlotInfo&);  // sizes that matter
//     Problem(const SlotInfo&, const Shape&, uint64_t seed, int64_t misalign);   // never zeros as data
//     void run(Fn fn);                    // rewrites the outputs from the same inputs each time
//     void call(Fn fn);                   // optional: the kernel alone, where run() first restores what it changes
//     std::vector<Output> outputs() const;
//     bool guards_intact() const;
//     double flops() const;               // per run
//     double bytes() const;               // compulsory memory traffic per run
//     double written() const;             // optional: of these bytes, those stored where nothing was read
//     double updated() const;             // optional: bytes of what is read and stored in place (twice in bytes())
//   };
template <class Fn>
struct Problem;

}  // namespace thimble::testing
