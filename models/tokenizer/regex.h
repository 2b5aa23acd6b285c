// Regular expressions as tokenizer files write them (Oniguruma's Ruby syntax over Unicode), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thimble {

using ByteRange = std::pair<size_t, size_t>;  // [begin, end)

class Regex {
 public:
  // `where` names file and field in errors. Throws unsupported for a construct that the two engines read differently
  // (some nested classes, (?x)) or that PCRE2 refuses.
  Regex(const std::string& pattern, const std::string& where);
  // Matches the text itself.
  static Regex literal(std::string_view text, const std::string& where);

  // As it was given; "" for a literal.
  const std::string& pattern() const { return pattern_; }

  // All matches from left to right, not overlapping; an empty match right behind another match does not count.
  // The text must be well-formed UTF-8. Throws input when matching exceeds the engine's limits.
  std::vector<ByteRange> find_all(std::string_view text) const;

 private:
  Regex() = default;
  void compile(const std::string& translated, const std::string& pattern, const std::string& where);
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string literal_;
  std::string pattern_;
  std::string where_;
};

}  // namespace thimble
