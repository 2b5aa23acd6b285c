// Words and numbers for pages.
#include "tools/dashboard/text.h"

#include <fmt/format.h>

#include <cmath>

namespace thimble::dashboard {
namespace {

// Length of a valid UTF-8 sequence at i, or 0.
size_t sequence_length(std::string_view s, size_t i) {
  const unsigned char c = static_cast<unsigned char>(s[i]);
  const size_t n = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
  if (n == 0 || i + n > s.size()) return 0;
  for (size_t j = 1; j < n; ++j)
    if ((static_cast<unsigned char>(s[i + j]) & 0xC0) != 0x80) return 0;
  const unsigned char d = n > 1 ? static_cast<unsigned char>(s[i + 1]) : 0;
  if ((c == 0xE0 && d < 0xA0) || (c == 0xED && d > 0x9F) || (c == 0xF0 && d < 0x90) || (c == 0xF4 && d > 0x8F))
    return 0;
  return n;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t n = sequence_length(text, i);
    if (n == 0) {
      out += '?';
      ++i;
      continue;
    }
    const char c = text[i];
    if (n > 1)
      out += text.substr(i, n);
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      out += c == '\n' ? '\n' : ' ';
    else
      out += c;
    i += n;
  }
  return out;
}

std::string fixed(double x, int decimals) {
  if (!std::isfinite(x)) return "–";
  const std::string digits = fmt::format("{:.{}f}", std::abs(x), decimals);
  const bool zero = digits.find_first_not_of("0.") == std::string::npos;
  return (x < 0 && !zero ? "−" : "") + digits;
}

std::string compact(double x) {
  if (!std::isfinite(x)) return "–";
  const double a = std::abs(x);
  if (a >= 1000) {
    std::string digits = fmt::format("{:.0f}", a);
    for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), ",");
    return (x < 0 ? "−" : "") + digits;
  }
  if (a == std::floor(a)) return fixed(x, 0);
  return fixed(x, a >= 100 ? 0 : a >= 10 ? 1 : a >= 1 ? 2 : a >= 0.1 ? 3 : a >= 0.01 ? 4 : 6);
}

std::string bytes_text(double b) {
  if (!std::isfinite(b)) return "–";
  if (b < 1e3) return fmt::format("{:.0f} B", b);
  const double value = b < 1e6 ? b / 1e3 : b < 1e9 ? b / 1e6 : b / 1e9;
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : value < 100 ? 1 : 0, b < 1e6 ? "kB" : b < 1e9 ? "MB" : "GB");
}

std::string seconds_text(double s) {
  if (!std::isfinite(s)) return "–";
  if (s < 1e-3) return fmt::format("{:.0f} µs", s * 1e6);
  if (s < 1) return fmt::format("{:.{}f} ms", s * 1e3, s < 0.01 ? 1 : 0);
  if (s < 120) return fmt::format("{:.{}f} s", s, s < 10 ? 1 : 0);
  if (s < 7200) return fmt::format("{:.{}f} min", s / 60, s < 600 ? 1 : 0);
  return fmt::format("{:.1f} h", s / 3600);
}

std::string plural(int64_t n, std::string_view one, std::string_view many) {
  return fmt::format("{} {}{}", n, n == 1 || many.empty() ? one : many, n != 1 && many.empty() ? "s" : "");
}

size_t text_length(std::string_view text) {
  size_t n = 0;
  for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

std::string shorten(std::string_view text, size_t characters) {
  if (text_length(text) <= characters) return std::string(text);
  size_t n = 0, i = 0;
  while (i < text.size()) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80 && ++n > characters - 1) break;
    ++i;
  }
  return std::string(text.substr(0, i)) + "…";
}

std::string join(const std::vector<std::string>& parts, std::string_view between) {
  std::string out;
  for (const std::string& p : parts) {
    if (!out.empty()) out += between;
    out += p;
  }
  return out;
}

}  // namespace thimble::dashboard
