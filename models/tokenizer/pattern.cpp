// Reading a pattern field, and replacing with it.
#include "models/tokenizer/pattern.h"

namespace thimble {

Regex read_pattern(const ComponentSource& source) {
  const auto pattern = source.object.object("pattern");
  if (!pattern) source.object.fail("pattern", "an object with String or Regex");
  if (pattern->has("Regex")) return Regex(pattern->require_string("Regex"), source.at("pattern.Regex"));
  return Regex::literal(pattern->require_string("String"), source.at("pattern.String"));
}

std::string replace_all(const Regex& regex, const std::string& text, const std::string& content) {
  const auto found = regex.find_all(text);
  if (found.empty()) return text;
  std::string out;
  out.reserve(text.size());
  size_t from = 0;
  for (const ByteRange& range : found) {
    out.append(text, from, range.first - from);
    out += content;
    from = range.second;
  }
  out.append(text, from);
  return out;
}

}  // namespace thimble
