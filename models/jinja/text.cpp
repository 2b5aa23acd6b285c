#include "models/jinja/text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

namespace thimble::jinja {
namespace {

size_t width_of(char first) {
  const auto c = static_cast<unsigned char>(first);
  return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

int category(uint32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_cased(uint32_t c) {
  const int k = category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

// utf8proc knows one-to-one mappings; of the longer ones only the sharp s is in common use.
void append_upper(std::string& out, uint32_t c) {
  if (c == 0xDF)
    out += "SS";
  else
    append_code_point(out, static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}
void append_lower(std::string& out, uint32_t c) {
  append_code_point(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

}  // namespace

size_t bad_utf8(std::string_view s) {
  const auto* data = reinterpret_cast<const utf8proc_uint8_t*>(s.data());
  for (size_t i = 0; i < s.size();) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(data + i, static_cast<utf8proc_ssize_t>(s.size() - i), &c);
    if (n <= 0) return i;
    i += static_cast<size_t>(n);
  }
  return std::string_view::npos;
}

int64_t character_count(std::string_view s) {
  return std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<std::string_view> characters(std::string_view s) {
  std::vector<std::string_view> out;
  out.reserve(s.size());
  for (size_t i = 0; i < s.size();) {
    const size_t n = std::min(width_of(s[i]), s.size() - i);
    out.push_back(s.substr(i, n));
    i += n;
  }
  return out;
}

uint32_t code_point(std::string_view s) {
  const auto at = [&](size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) & 0x3Fu : 0u; };
  if (s.empty()) return 0;
  const auto c = static_cast<unsigned char>(s[0]);
  if (c < 0x80) return c;
  if (c < 0xE0) return (c & 0x1Fu) << 6 | at(1);
  if (c < 0xF0) return (c & 0x0Fu) << 12 | at(1) << 6 | at(2);
  return (c & 0x07u) << 18 | at(1) << 12 | at(2) << 6 | at(3);
}

void append_code_point(std::string& out, uint32_t c) {
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) c = 0xFFFD;
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

bool is_space(uint32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  if (c == 0x85) return true;
  const int k = category(c);
  return k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP;
}

bool is_word(uint32_t c) {
  const int k = category(c);
  return c == '_' || (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) ||
         (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

std::string upper(std::string_view s) {
  std::string out;
  for (const std::string_view c : characters(s)) append_upper(out, code_point(c));
  return out;
}

std::string lower(std::string_view s) {
  std::string out;
  for (const std::string_view c : characters(s)) append_lower(out, code_point(c));
  return out;
}

std::string title(std::string_view s) {
  std::string out;
  bool inside = false;
  for (const std::string_view character : characters(s)) {
    const uint32_t c = code_point(character);
    if (inside)
      append_lower(out, c);
    else
      append_code_point(out, static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
    inside = is_cased(c);
  }
  return out;
}

std::string capitalize(std::string_view s) {
  if (s.empty()) return {};
  const size_t n = width_of(s[0]);
  std::string out;
  append_code_point(out, static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code_point(s)))));
  return out + lower(s.substr(std::min(n, s.size())));
}

bool is_upper(std::string_view s) {
  bool any = false;
  for (const std::string_view character : characters(s)) {
    const int k = category(code_point(character));
    if (k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT) return false;
    any |= k == UTF8PROC_CATEGORY_LU;
  }
  return any;
}

bool is_lower(std::string_view s) {
  bool any = false;
  for (const std::string_view character : characters(s)) {
    const int k = category(code_point(character));
    if (k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT) return false;
    any |= k == UTF8PROC_CATEGORY_LL;
  }
  return any;
}

std::string_view strip(std::string_view s, Side side, std::string_view chars) {
  const std::vector<std::string_view> set = characters(chars);
  const auto cut = [&](std::string_view c) {
    return chars.empty() ? is_space(code_point(c)) : std::find(set.begin(), set.end(), c) != set.end();
  };
  if (static_cast<int>(side) & static_cast<int>(Side::left))
    while (!s.empty()) {
      const size_t n = std::min(width_of(s[0]), s.size());
      if (!cut(s.substr(0, n))) break;
      s.remove_prefix(n);
    }
  if (static_cast<int>(side) & static_cast<int>(Side::right))
    while (!s.empty()) {
      size_t at = s.size() - 1;
      while (at > 0 && (static_cast<unsigned char>(s[at]) & 0xC0) == 0x80) --at;
      if (!cut(s.substr(at))) break;
      s = s.substr(0, at);
    }
  return s;
}

std::vector<std::string_view> split_lines(std::string_view s) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t i = 0; i < s.size();) {
    const size_t n = std::min(width_of(s[i]), s.size() - i);
    const uint32_t c = code_point(s.substr(i, n));
    const bool ends = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) {
      i += n;
      continue;
    }
    out.push_back(s.substr(begin, i - begin));
    i += c == '\r' && i + 1 < s.size() && s[i + 1] == '\n' ? 2 : n;
    begin = i;
  }
  if (begin < s.size()) out.push_back(s.substr(begin));
  return out;
}

std::vector<std::string_view> split(std::string_view s, std::string_view separator, int64_t limit) {
  std::vector<std::string_view> out;
  if (separator.empty()) {
    s = strip(s, Side::left);
    while (!s.empty()) {
      if (limit >= 0 && static_cast<int64_t>(out.size()) == limit) {
        out.push_back(strip(s, Side::right));
        return out;
      }
      size_t n = 0;
      while (n < s.size()) {
        const size_t w = std::min(width_of(s[n]), s.size() - n);
        if (is_space(code_point(s.substr(n, w)))) break;
        n += w;
      }
      out.push_back(s.substr(0, n));
      s = strip(s.substr(n), Side::left);
    }
    return out;
  }
  while (limit < 0 || static_cast<int64_t>(out.size()) < limit) {
    const size_t at = s.find(separator);
    if (at == std::string_view::npos) break;
    out.push_back(s.substr(0, at));
    s.remove_prefix(at + separator.size());
  }
  out.push_back(s);
  return out;
}

std::vector<std::string_view> rsplit(std::string_view s, std::string_view separator, int64_t limit) {
  std::vector<std::string_view> out;
  if (separator.empty()) {
    s = strip(s, Side::right);
    while (!s.empty()) {
      if (limit >= 0 && static_cast<int64_t>(out.size()) == limit) {
        out.push_back(strip(s, Side::left));
        break;
      }
      size_t begin = s.size();
      while (begin > 0) {
        size_t at = begin - 1;
        while (at > 0 && (static_cast<unsigned char>(s[at]) & 0xC0) == 0x80) --at;
        if (is_space(code_point(s.substr(at, begin - at)))) break;
        begin = at;
      }
      out.push_back(s.substr(begin));
      s = strip(s.substr(0, begin), Side::right);
    }
  } else {
    while (limit < 0 || static_cast<int64_t>(out.size()) < limit) {
      const size_t at = s.rfind(separator);
      if (at == std::string_view::npos) break;
      out.push_back(s.substr(at + separator.size()));
      s = s.substr(0, at);
    }
    out.push_back(s);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::string quote(std::string_view s) {
  const char mark = s.find('\'') != std::string_view::npos && s.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, mark);
  for (const std::string_view character : characters(s)) {
    const uint32_t c = code_point(character);
    if (c == '\\' || c == static_cast<uint32_t>(mark))
      (out += '\\') += static_cast<char>(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      out += character;
    else
      out += c < 0x100 ? fmt::format("\\x{:02x}", c) : c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c);
  }
  return out + mark;
}

std::string escape_html(std::string_view s) {
  std::string out;
  for (const char c : s) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '\'': out += "&#39;"; break;
      case '"': out += "&#34;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string quote_json(std::string_view s, bool ensure_ascii) {
  std::string out = "\"";
  for (const std::string_view character : characters(s)) {
    const uint32_t c = code_point(character);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000 && c != 0x7F))
          out += fmt::format("\\u{:04x}", c);
        else if (ensure_ascii && c >= 0x10000)
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
        else
          out += character;
    }
  }
  return out + "\"";
}

std::string real_text(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  std::string out = fmt::format("{}", v);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

}  // namespace thimble::jinja
