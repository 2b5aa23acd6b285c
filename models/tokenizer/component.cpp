// What the component tables share: the byte-level alphabet, byte tokens and the error for an unknown type.
#include "models/tokenizer/component.h"

#include <array>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

// Printable Latin-1 bytes stand for themselves; the others are moved to U+0100 and on, in order.
struct ByteAlphabet {
  std::array<std::string, 256> text;
  std::array<int, 512> byte;
  ByteAlphabet() {
    byte.fill(-1);
    char32_t spare = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(b) : spare++;
      append_utf8(text[static_cast<size_t>(b)], c);
      byte[c] = b;
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

void append_byte_level(std::string& out, std::string_view bytes) {
  const ByteAlphabet& alphabet = byte_alphabet();
  for (const char c : bytes) out += alphabet.text[static_cast<unsigned char>(c)];
}

bool from_byte_level(std::string_view text, std::string& bytes) {
  const ByteAlphabet& alphabet = byte_alphabet();
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = next_code_point(text, pos);
    if (c >= alphabet.byte.size() || alphabet.byte[c] < 0) return false;
    bytes += static_cast<char>(alphabet.byte[c]);
  }
  return true;
}

int byte_token_value(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  int value = 0;
  for (const char c : piece.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::string byte_token(int value) {
  constexpr const char* kDigits = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[value >> 4 & 15], kDigits[value & 15], '>'};
}

std::string json_string(const std::string& text) { return text.empty() ? "null" : nlohmann::json(text).dump(); }

const nlohmann::json& ComponentSource::list(const std::string& key) const {
  const nlohmann::json* value = object.find(key);
  if (value == nullptr || !value->is_array()) object.fail(key, "a list");
  return *value;
}

void throw_unknown_component(const std::string& type, const std::string& file, const std::string& where,
                             const std::string& known) {
  throw Error(ErrorCode::unsupported,
              file + ": field \"" + where + ".type\": " + quote_for_message(type) + " is not offered",
              "offered here: " + known);
}

}  // namespace thimble
