// UTF-8 and the Unicode properties that tokenizers ask for (through utf8proc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thimble {

enum class NormalForm { nfc, nfd, nfkc, nfkd };

// One step of a strict UTF-8 reader at text[pos] (pos < size).
//   length > 0, valid       a well-formed sequence of that many bytes
//   length > 0, not valid   that many bytes can never become well-formed: one U+FFFD stands for them
//   incomplete              the text ends inside a sequence that more bytes could complete; length counts its bytes
struct Utf8Step {
  size_t length = 1;
  bool valid = false;
  bool incomplete = false;
};
Utf8Step utf8_step(std::string_view text, size_t pos);

// Offset of the first byte that is not well-formed UTF-8; npos when all of it is.
size_t find_invalid_utf8(std::string_view text);

// Length of the ASCII prefix of text[pos...].
size_t ascii_run(std::string_view text, size_t pos);

// Every maximal malformed subpart becomes one U+FFFD.
std::string utf8_lossy(std::string_view bytes);

// Reads the code point at pos and moves pos behind it. The text must be well-formed.
char32_t next_code_point(std::string_view text, size_t& pos);
void append_utf8(std::string& out, char32_t code_point);
// Code points of well-formed text.
inline int64_t count_characters(std::string_view text) {
  int64_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

// The end of the extended grapheme cluster that begins at pos (< size).
size_t grapheme_end(std::string_view text, size_t pos);

bool is_white_space(char32_t c);     // property White_Space
bool is_number(char32_t c);          // category N
bool is_mark(char32_t c);            // category M
bool is_letter_or_mark(char32_t c);  // categories L and M
bool is_word_character(char32_t c);  // alphabetic, mark, decimal digit, connector or joiner

// The tokenizers library asks these of tables of Unicode 8: a later character has no category there.
bool is_punctuation(char32_t c);      // ASCII punctuation and symbols, category P
bool is_nonspacing_mark(char32_t c);  // category Mn
bool is_other(char32_t c);            // categories Cc, Cf, Co

std::string normalize_utf8(std::string_view text, NormalForm form);
// Code point by code point, without context (no final sigma).
std::string lowercase_utf8(std::string_view text);
void append_lowercase(std::string& out, char32_t c);

}  // namespace thimble
