// What the split expressions of tokenizers ask of a character, as bits in a table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace thimble {

namespace char_class {
inline constexpr uint8_t kLetter = 1;      // \p{L}
inline constexpr uint8_t kNumber = 2;      // \p{N}
inline constexpr uint8_t kSpace = 4;       // \s: property White_Space
inline constexpr uint8_t kNewline = 8;     // \r, \n
inline constexpr uint8_t kUpperPart = 16;  // Lu, Lt, Lm, Lo, M
inline constexpr uint8_t kLowerPart = 32;  // Ll, Lm, Lo, M
}  // namespace char_class

class CharClasses {
 public:
  static const CharClasses& get();
  uint8_t of(char32_t c) const { return values_[pages_[c >> 8] * size_t{256} + (c & 255)]; }
  uint8_t ascii(unsigned char c) const { return values_[c]; }

 private:
  CharClasses();
  std::array<uint16_t, 0x1100> pages_{};
  std::vector<uint8_t> values_;
};

}  // namespace thimble
