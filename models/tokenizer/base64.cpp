// Six bits a character.
#include "models/tokenizer/base64.h"

#include <array>
#include <cstdint>

namespace thimble {
namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<int8_t, 256> make_values() {
  std::array<int8_t, 256> values{};
  for (auto& value : values) value = -1;
  for (size_t i = 0; i < kAlphabet.size(); ++i)
    values[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int8_t>(i);
  return values;
}

}  // namespace

bool decode_base64(std::string_view text, std::string& out) {
  static constexpr std::array<int8_t, 256> kValues = make_values();
  for (int i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
  if (text.size() % 4 == 1) return false;
  uint32_t bits = 0;
  int have = 0;
  for (const char c : text) {
    const int value = kValues[static_cast<unsigned char>(c)];
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    have += 6;
    if (have >= 8) {
      have -= 8;
      out += static_cast<char>(bits >> have & 0xFF);
    }
  }
  return (bits & ((1U << have) - 1)) == 0;
}

std::string encode_base64(std::string_view bytes) {
  std::string out;
  uint32_t bits = 0;
  int have = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<unsigned char>(c);
    have += 8;
    while (have >= 6) {
      have -= 6;
      out += kAlphabet[bits >> have & 63];
    }
  }
  if (have > 0) out += kAlphabet[bits << (6 - have) & 63];
  while (out.size() % 4 != 0) out += '=';
  return out;
}

}  // namespace thimble
