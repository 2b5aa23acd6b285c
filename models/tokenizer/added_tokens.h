// Tokens that are cut out of the text before the pipeline sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/tokenizer/trie.h"

namespace thimble {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // and behind it
  bool normalized = true;    // looked for in the normalised text rather than in the raw one
  bool special = false;
};

// Finds tokens from left to right, the longest first.
class AddedTokenMatcher {
 public:
  // Pattern: what to look for (the content, possibly normalised). Empty patterns are ignored.
  void add(const AddedToken& token, const std::string& pattern);
  bool empty() const { return entries_.empty(); }

  struct Segment {
    size_t begin, end;
    int32_t id;  // -1: text between tokens
  };
  // Covers the text. Without parse_special, special tokens are not looked for.
  std::vector<Segment> split(std::string_view text, bool parse_special) const;

 private:
  struct Entry {
    AddedToken token;
    std::string pattern;
  };
  const Entry* longest_at(std::string_view text, size_t pos, bool parse_special) const;
  std::vector<Entry> entries_;
  ByteTrie trie_;                                    // pattern -> index of the entry
  std::array<bool, 256> begins_{}, begins_plain_{};  // first bytes of all patterns, and of those that are not special
};

}  // namespace thimble
