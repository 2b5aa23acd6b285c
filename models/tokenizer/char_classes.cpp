// Filled by PCRE2 at first use, not by utf8proc, whose Unicode is newer: scanners and expressions must agree on every
// character. Two stages: pages of 256 characters, equal neighbours shared.
#include "models/tokenizer/char_classes.h"

#include <string>
#include <utility>

#include "models/tokenizer/regex.h"
#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

// Behind the ideographs nothing is assigned but the tags and selectors of plane 14 (no letters, but marks) and private
// use.
constexpr char32_t kEnd = 0x33500, kTags = 0xE0000, kTagsEnd = 0xE0200;

}  // namespace

CharClasses::CharClasses() {
  using namespace char_class;
  std::string text;
  std::vector<char32_t> code_points;
  std::vector<uint32_t> number;  // of the code point, by its offset in text
  for (char32_t c = 0; c < kTagsEnd; c = c + 1 == kEnd ? kTags : c + 1) {
    if (c >= 0xD800 && c < 0xE000) continue;
    code_points.push_back(c);
    append_utf8(text, c);
    number.resize(text.size(), static_cast<uint32_t>(code_points.size() - 1));
  }
  std::vector<uint8_t> bits(code_points.size(), 0);
  const std::pair<const char*, uint8_t> classes[] = {{"\\p{L}+", kLetter},
                                                     {"\\p{N}+", kNumber},
                                                     {"\\s+", kSpace},
                                                     {"[\\r\\n]+", kNewline},
                                                     {"[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+", kUpperPart},
                                                     {"[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+", kLowerPart}};
  for (const auto& [regex, bit] : classes) {
    for (const auto& [begin, end] : Regex(regex, "character classes").find_all(text)) {
      for (uint32_t i = number[begin]; i <= number[end - 1]; ++i) bits[i] |= bit;
    }
  }
  size_t next = 0;
  std::vector<uint8_t> page(256);
  std::vector<std::vector<uint8_t>> filled;
  for (size_t p = 0; p < pages_.size(); ++p) {
    page.assign(256, 0);
    for (; next < code_points.size() && code_points[next] >> 8 == p; ++next) page[code_points[next] & 255] = bits[next];
    size_t index = 0;
    while (index < filled.size() && filled[index] != page) ++index;
    if (index == filled.size()) filled.push_back(page);
    pages_[p] = static_cast<uint16_t>(index);
  }
  values_.clear();
  for (const auto& part : filled) values_.insert(values_.end(), part.begin(), part.end());
}

const CharClasses& CharClasses::get() {
  static const CharClasses classes;
  return classes;
}

}  // namespace thimble
