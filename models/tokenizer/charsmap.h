// SentencePiece's precompiled table of character replacements: u32 size of a double array in bytes, the array, and the
// replacements, each ended by a zero byte. Values in the array are offsets into the replacements.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thimble {

class Charsmap {
 public:
  Charsmap() = default;
  // where: file and field for messages. Errors: input for a table that is cut off.
  Charsmap(std::string_view blob, const std::string& where);

  bool empty() const { return units_.empty(); }
  struct Match {
    size_t length = 0;  // bytes of text that are replaced; 0: no entry matches
    std::string_view replacement;
  };
  // The longest, or the first (shortest), entry that the text begins with. Never reads outside the table.
  Match longest(std::string_view text) const { return find(text, true); }
  Match shortest(std::string_view text) const { return find(text, false); }

 private:
  Match find(std::string_view text, bool longest) const;
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace thimble
