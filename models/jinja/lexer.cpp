#include "models/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>

#include "models/io/json.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

bool digit(char c) { return c >= '0' && c <= '9'; }
bool name_start(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || static_cast<unsigned char>(c) >= 0x80; }
bool name_part(char c) { return name_start(c) || digit(c); }

std::string normalise_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(Meter& meter, std::string source) : meter_(meter), source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    add(TokenKind::end);
    return std::move(tokens_);
  }

 private:
  bool looking_at(std::string_view what, size_t at) const { return source_.compare(at, what.size(), what) == 0; }
  char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }

  // Moves on, counting lines.
  void advance_to(size_t to) {
    meter_.line += static_cast<int>(std::count(source_.begin() + long(at_), source_.begin() + long(to), '\n'));
    line_starting_ = to > 0 && source_[to - 1] == '\n';
    at_ = to;
  }

  Token& add(TokenKind kind, std::string text = {}) {
    Token t;
    t.kind = kind;
    t.line = meter_.line;
    t.text = std::move(text);
    tokens_.push_back(std::move(t));
    return tokens_.back();
  }

  // What a '-', '+' or nothing at the start of a tag leaves of the text before it.
  std::string_view trimmed(std::string_view text, char sign, bool output) const {
    if (sign == '-') return strip(text, Side::right);
    if (sign == '+' || output) return text;
    const size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
    if ((line > 0 || line_starting_) && strip(text.substr(line), Side::left).empty()) return text.substr(0, line);
    return text;
  }

  // Behind the end of a tag at `to`: '-' takes white space, a block takes one line break.
  size_t behind_end(size_t to, char sign, bool output) const {
    if (sign == '-') return source_.size() - strip(std::string_view(source_).substr(to), Side::left).size();
    if (!output && sign != '+' && to < source_.size() && source_[to] == '\n') return to + 1;
    return to;
  }

  void text(std::string_view before) {
    if (!before.empty()) add(TokenKind::text, std::string(before));
  }

  void root() {
    size_t open = at_;
    for (;; ++open) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        text(std::string_view(source_).substr(at_));
        advance_to(source_.size());
        return;
      }
      const char c = source_[open + 1];
      if (c == '{' || c == '%' || c == '#') break;
    }
    const char kind = source_[open + 1];
    char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    text(trimmed(std::string_view(source_).substr(at_, open - at_), sign, kind == '{'));
    const size_t inside = open + (sign ? 3 : 2);
    advance_to(open);
    if (kind == '#') {
      comment(inside);
      return;
    }
    if (kind == '%' && raw(inside)) return;
    advance_to(inside);
    line_starting_ = false;
    add(kind == '{' ? TokenKind::output_begin : TokenKind::block_begin);
    expression(kind == '{');
  }

  void comment(size_t inside) {
    const size_t end = source_.find("#}", inside);
    if (end == std::string::npos) meter_.fail("a comment {# has no end #}");
    const char sign = end > inside ? source_[end - 1] : '\0';
    advance_to(behind_end(end + 2, sign == '-' || sign == '+' ? sign : '\0', false));
  }

  // At {% raw %}: takes everything up to {% endraw %} as text.
  bool raw(size_t inside) {
    const auto skip_blanks = [&](size_t i) {
      while (i < source_.size() && std::isspace(static_cast<unsigned char>(source_[i]))) ++i;
      return i;
    };
    size_t i = skip_blanks(inside);
    if (!looking_at("raw", i)) return false;
    i = skip_blanks(i + 3);
    const bool cut = looking_at("-%}", i);
    if (!cut && !looking_at("%}", i)) return false;
    advance_to(behind_end(i + (cut ? 3 : 2), cut ? '-' : '+', false));
    for (size_t open = source_.find("{%", at_); open != std::string::npos; open = source_.find("{%", open + 2)) {
      size_t j = open + 2;
      char sign = j < source_.size() ? source_[j] : '\0';
      if (sign == '-' || sign == '+')
        ++j;
      else
        sign = '\0';
      j = skip_blanks(j);
      if (!looking_at("endraw", j)) continue;
      j = skip_blanks(j + 6);
      char end_sign = j < source_.size() ? source_[j] : '\0';
      if (end_sign == '-' || end_sign == '+')
        ++j;
      else
        end_sign = '\0';
      if (!looking_at("%}", j)) continue;
      text(trimmed(std::string_view(source_).substr(at_, open - at_), sign, false));
      advance_to(behind_end(j + 2, end_sign, false));
      return true;
    }
    meter_.fail("{% raw %} has no {% endraw %}");
  }

  // Tokens up to the end of the tag, which does not count inside brackets.
  void expression(bool output) {
    std::string brackets;
    const std::string end = output ? "}}" : "%}";
    const int opened = meter_.line;
    for (;;) {
      while (at_ < source_.size() && is_blank()) continue;
      if (at_ >= source_.size()) {
        meter_.line = opened;
        meter_.fail(output ? "{{ has no end }}" : "{% has no end %}");
      }
      if (brackets.empty()) {
        const char sign = peek() == '-' || (peek() == '+' && !output) ? peek() : '\0';
        const size_t to = at_ + (sign ? 1 : 0);
        if (looking_at(end, to)) {
          add(output ? TokenKind::output_end : TokenKind::block_end);
          advance_to(behind_end(to + 2, sign, output));
          return;
        }
      }
      token(brackets);
    }
  }

  bool is_blank() {
    const std::string_view rest = std::string_view(source_).substr(at_, 4);
    const std::string_view first = rest.substr(0, std::min<size_t>(rest.size(), static_cast<unsigned char>(rest[0]) < 0x80   ? 1
                                                                                : static_cast<unsigned char>(rest[0]) < 0xE0 ? 2
                                                                                : static_cast<unsigned char>(rest[0]) < 0xF0 ? 3
                                                                                                                             : 4));
    if (!is_space(code_point(first))) return false;
    advance_to(at_ + first.size());
    return true;
  }

  void token(std::string& brackets) {
    const char c = peek();
    if (digit(c)) return number();
    if (name_start(c)) {
      size_t to = at_;
      while (to < source_.size() && name_part(source_[to])) ++to;
      add(TokenKind::name, source_.substr(at_, to - at_));
      return advance_to(to);
    }
    if (c == '"' || c == '\'') return string();
    for (const char* op : {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
                           ">", "<", "=", ".", ":", "|", ",", ";"}) {
      if (!looking_at(op, at_)) continue;
      if (std::string_view("[({").find(*op) != std::string_view::npos) brackets += *op == '[' ? ']' : *op == '(' ? ')' : '}';
      if (std::string_view("])}").find(*op) != std::string_view::npos) {
        if (brackets.empty()) meter_.fail(fmt::format("unexpected \"{}\"", op));
        if (brackets.back() != *op) meter_.fail(fmt::format("unexpected \"{}\", expected \"{}\"", op, brackets.back()));
        brackets.pop_back();
      }
      add(TokenKind::op, op);
      return advance_to(at_ + std::string_view(op).size());
    }
    meter_.fail("unexpected character " + quote_for_message(source_.substr(at_, 1)));
  }

  // Digits with single underscores between them.
  size_t digits(size_t i, bool (*ok)(char)) const {
    while (i < source_.size() && (ok(source_[i]) || (source_[i] == '_' && i + 1 < source_.size() && ok(source_[i + 1])))) ++i;
    return i;
  }

  void number() {
    const char kind = static_cast<char>(std::tolower(static_cast<unsigned char>(peek(1))));
    int base = 10;
    size_t from = at_, to;
    bool real = false;
    if (peek() == '0' && (kind == 'x' || kind == 'o' || kind == 'b')) {
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
      from += 2;
      to = digits(from, [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; });
    } else {
      to = digits(from, digit);
      if (to + 1 < source_.size() && source_[to] == '.' && digit(source_[to + 1])) {
        real = true;
        to = digits(to + 1, digit);
      }
      size_t e = to;
      if (e < source_.size() && (source_[e] == 'e' || source_[e] == 'E')) {
        ++e;
        if (e < source_.size() && (source_[e] == '+' || source_[e] == '-')) ++e;
        if (e < source_.size() && digit(source_[e])) {
          real = true;
          to = digits(e, digit);
        }
      }
    }
    std::string text = source_.substr(from, to - from);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    Token& t = add(real ? TokenKind::real : TokenKind::integer, text);
    if (real) {
      t.real = std::strtod(text.c_str(), nullptr);
    } else {
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), t.integer, base);
      if (error != std::errc() || end != text.data() + text.size())
        meter_.fail(fmt::format("{} is not an integer of 64 bits", quote_for_message(text)));
    }
    advance_to(to);
  }

  void string() {
    const char quote = peek();
    std::string out;
    const int opened = meter_.line;
    size_t i = at_ + 1;
    for (;;) {
      if (i >= source_.size()) {
        meter_.line = opened;
        meter_.fail("a string has no end");
      }
      const char c = source_[i++];
      if (c == quote) break;
      if (c != '\\' || i >= source_.size()) {
        out += c;
        continue;
      }
      const char e = source_[i++];
      const auto hex = [&](size_t n) {
        uint32_t v = 0;
        if (i + n > source_.size()) meter_.fail("a string has a cut-off escape");
        const auto [end, error] = std::from_chars(source_.data() + i, source_.data() + i + n, v, 16);
        if (error != std::errc() || end != source_.data() + i + n) meter_.fail("a string has a malformed escape");
        i += n;
        append_code_point(out, v);
      };
      switch (e) {
        case '\n': break;
        case '\\':
        case '\'':
        case '"': out += e; break;
        case 'n': out += '\n'; break;
        case 't': out += '\t'; break;
        case 'r': out += '\r'; break;
        case 'a': out += '\a'; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'v': out += '\v'; break;
        case 'x': hex(2); break;
        case 'u': hex(4); break;
        case 'U': hex(8); break;
        default:
          if (e >= '0' && e <= '7') {
            uint32_t v = static_cast<uint32_t>(e - '0');
            for (int n = 1; n < 3 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++n)
              v = v * 8 + static_cast<uint32_t>(source_[i++] - '0');
            append_code_point(out, v);
          } else {
            (out += '\\') += e;
          }
      }
    }
    add(TokenKind::string, std::move(out));
    advance_to(i);
    line_starting_ = false;
  }

  Meter& meter_;
  const std::string source_;
  size_t at_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(Meter& meter, std::string_view source) {
  meter.line = 1;
  if (source.size() > meter.limits.template_bytes)
    meter.fail_limit("bytes", static_cast<int64_t>(meter.limits.template_bytes));
  if (const size_t bad = bad_utf8(source); bad != std::string_view::npos) {
    meter.line += static_cast<int>(std::count(source.begin(), source.begin() + static_cast<long>(bad), '\n'));
    meter.fail("the template is not UTF-8");
  }
  return Lexer(meter, normalise_lines(source)).run();
}

}  // namespace thimble::jinja
