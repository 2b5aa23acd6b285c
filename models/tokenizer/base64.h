// Base64 (RFC 4648, section 4), as tiktoken files and tokenizer.json carry bytes.
#pragma once

#include <string>
#include <string_view>

namespace thimble {

// Appends the bytes; false when the text is no base64. Padding may be left out.
bool decode_base64(std::string_view text, std::string& out);
std::string encode_base64(std::string_view bytes);

}  // namespace thimble
