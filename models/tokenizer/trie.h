// Byte strings -> numbers, searched by prefix: longest and all matches at a position. Built once, then only read.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace thimble {

class ByteTrie {
 public:
  ByteTrie() { clear(); }
  void clear();
  // value >= 0; the first value of a key stays. Empty keys are ignored.
  void add(std::string_view key, int32_t value);

  static constexpr int32_t kRoot = 0;
  bool empty() const { return values_.size() == 1; }
  // The node behind one more byte; -1 when no key goes on that way.
  int32_t step(int32_t node, unsigned char byte) const {
    if (node == kRoot) return root_[byte];
    const uint64_t key = static_cast<uint64_t>(node) << 8 | byte;
    for (size_t slot = slot_of(key);; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot].key == key) return slots_[slot].node;
      if (slots_[slot].node < 0) return -1;
    }
  }
  int32_t value(int32_t node) const { return values_[static_cast<size_t>(node)]; }  // -1: no key ends here

  // Length of the longest key that the text starts with, and its value; 0 and -1 when there is none.
  struct Match {
    size_t length = 0;
    int32_t value = -1;
  };
  Match longest(std::string_view text) const {
    Match best;
    int32_t node = kRoot;
    for (size_t i = 0; i < text.size(); ++i) {
      node = step(node, static_cast<unsigned char>(text[i]));
      if (node < 0) break;
      if (value(node) >= 0) best = {i + 1, value(node)};
    }
    return best;
  }

 private:
  struct Slot {
    uint64_t key;
    int32_t node;  // -1: free
  };
  size_t slot_of(uint64_t key) const {
    uint64_t x = key * 0x9E3779B97F4A7C15ULL;
    return static_cast<size_t>(x >> 32) & (slots_.size() - 1);
  }
  void grow();
  std::array<int32_t, 256> root_;
  std::vector<Slot> slots_;
  std::vector<int32_t> values_;
  size_t used_ = 0;
};

}  // namespace thimble
