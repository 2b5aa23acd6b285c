// Walks the double array. A unit packs: bits 0-7 and 31 the label, bit 8 "a value hangs here", bits 10-30 the offset of
// the children, counted in blocks of 256 where bit 9 is set; a unit with a value has it in its lower 31 bits.
#include "models/tokenizer/charsmap.h"

#include <cstring>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {

Charsmap::Charsmap(std::string_view blob, const std::string& where) {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorCode::input, where + ": " + what, "the table of character replacements is damaged");
  };
  if (blob.empty()) return;
  uint32_t bytes = 0;
  if (blob.size() < sizeof(bytes)) fail("expected at least 4 bytes");
  std::memcpy(&bytes, blob.data(), sizeof(bytes));
  if (bytes % 4 != 0 || bytes == 0 || bytes > blob.size() - sizeof(bytes)) {
    fail("an array of " + std::to_string(bytes) + " bytes in a table of " + std::to_string(blob.size()));
  }
  units_.resize(bytes / 4);
  std::memcpy(units_.data(), blob.data() + sizeof(bytes), bytes);
  replacements_ = blob.substr(sizeof(bytes) + bytes);
  if (replacements_.empty() || replacements_.back() != '\0') replacements_ += '\0';
  size_t begin = 0;
  for (size_t end = 0; end < replacements_.size(); ++end) {
    if (replacements_[end] != '\0') continue;
    if (find_invalid_utf8(std::string_view(replacements_).substr(begin, end - begin)) != std::string_view::npos) {
      fail("expected replacements in UTF-8");
    }
    begin = end + 1;
  }
}

Charsmap::Match Charsmap::find(std::string_view text, bool longest) const {
  Match best;
  if (units_.empty()) return best;
  const auto offset = [](uint32_t unit) { return static_cast<size_t>(unit >> 10) << ((unit & (1U << 9)) >> 6); };
  size_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if ((unit & (1U << 31 | 0xFF)) != byte) break;
    node ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (node >= units_.size()) break;
    const size_t at = units_[node] & 0x7FFFFFFFU;
    if (at >= replacements_.size()) break;
    // An offset into the middle of a character would give bytes that are no text.
    const char* replacement = replacements_.data() + at;
    if ((static_cast<unsigned char>(*replacement) & 0xC0) == 0x80) break;
    best = {i + 1, replacement};
    if (!longest) break;
  }
  return best;
}

}  // namespace thimble
