// Strings as Python counts them: UTF-8 in memory, characters for lengths, indices and case. All input is well-formed UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thimble::jinja {

// Byte offset of the first byte that is not UTF-8, or npos.
size_t bad_utf8(std::string_view s);

int64_t character_count(std::string_view s);
// Every character by itself.
std::vector<std::string_view> characters(std::string_view s);
uint32_t code_point(std::string_view character);
void append_code_point(std::string& out, uint32_t c);  // U+FFFD for what is no character

bool is_space(uint32_t c);  // str.isspace
bool is_word(uint32_t c);   // letters, digits and the underscore: \w
std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string title(std::string_view s);       // str.title: a capital behind everything that is no letter
std::string capitalize(std::string_view s);
bool is_upper(std::string_view s);
bool is_lower(std::string_view s);

enum class Side : uint8_t { left = 1, right = 2, both = 3 };
// chars empty: white space.
std::string_view strip(std::string_view s, Side side, std::string_view chars = {});
std::vector<std::string_view> split_lines(std::string_view s);
// str.split and str.rsplit; separator empty: runs of white space. limit < 0: none.
std::vector<std::string_view> split(std::string_view s, std::string_view separator, int64_t limit);
std::vector<std::string_view> rsplit(std::string_view s, std::string_view separator, int64_t limit);

std::string quote(std::string_view s);  // repr()
std::string escape_html(std::string_view s);
// A JSON string with its quotes; ensure_ascii as json.dumps has it.
std::string quote_json(std::string_view s, bool ensure_ascii);
std::string real_text(double v);  // repr() of a float

}  // namespace thimble::jinja
