// The script of a character, for the UnicodeScripts pre-tokenizer.
#pragma once

#include <string_view>

namespace thimble {

// A number per script; 0 for a space and for characters without a script. Hiragana, Katakana and U+30FC count as Han, as
// in SentencePiece.
int split_script(char32_t c);

// True for "Han", "Old_Italic" ..., spelled as Unicode does.
bool is_script_name(std::string_view name);

}  // namespace thimble
