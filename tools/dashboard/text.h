// Words and numbers for pages: escaped, short, the same on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thimble::dashboard {

// For element content and double-quoted attributes. Control characters become spaces; bytes that are not UTF-8 become
// "?".
std::string escape(std::string_view text);
// Fixed decimals with a typographic minus; "–" when not finite.
std::string fixed(double x, int decimals);
// Four significant digits at most, thousands separated: 1,234; 12.3; 0.0123.
std::string compact(double x);
std::string bytes_text(double bytes);                                             // 1.23 MB (1e6)
std::string seconds_text(double seconds);                                         // 3.2 ms, 1.4 s, 2 min, 1.5 h
std::string plural(int64_t n, std::string_view one, std::string_view many = {});  // 1 cell, 2 cells
// Characters, not bytes.
size_t text_length(std::string_view text);
// At most so many characters; a cut ends in an ellipsis.
std::string shorten(std::string_view text, size_t characters);
std::string join(const std::vector<std::string>& parts, std::string_view between);

}  // namespace thimble::dashboard
