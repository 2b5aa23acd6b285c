// PCRE2 with UTF and UCP, for expressions that were written for the Oniguruma of the tokenizers library. The classes that
// differ are spelled out: PCRE2's \s also holds U+180E, its \w lacks combining marks, its [:alpha:] holds letters only and
// its \p{Han} whatever is used with that script, \h is something else altogether.
#include "models/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "models/tokenizer/scripts.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr const char* kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
// Outside a class Oniguruma takes Latin-1 from another table, where superscript digits and fractions are word characters.
constexpr const char* kLatinNumbers = "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
constexpr size_t kMaxPattern = 1 << 16;

[[noreturn]] void unsupported(const std::string& where, const std::string& pattern, const std::string& what) {
  throw Error(ErrorCode::unsupported, where + ": " + what + " in the regular expression " + pattern,
              "rewrite the expression without it");
}

// The inside of a class for [:name:].
std::string posix_class(const std::string& name) {
  static const std::pair<const char*, const char*> kClasses[] = {
      {"alpha", "\\p{Alphabetic}"}, {"alnum", "\\p{Alphabetic}\\p{Nd}"}, {"blank", "\\p{Zs}\\t"},    {"digit", "\\p{Nd}"},
      {"lower", "\\p{Lowercase}"},  {"punct", "\\p{P}\\p{S}"}, {"space", "\\p{White_Space}"}, {"upper", "\\p{Uppercase}"},
      {"word", kWord},              {"xdigit", "0-9a-fA-F"}};
  for (const auto& [known, members] : kClasses) {
    if (name == known) return members;
  }
  return "[:" + name + ":]";
}

std::string translate(const std::string& pattern, const std::string& where) {
  std::string out;
  bool in_class = false;
  size_t class_begin = 0;  // in out
  int nested = 0;  // classes inside the class; without ^ they are a union, so their brackets can go
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (++i == pattern.size()) unsupported(where, pattern, "a backslash at the end");
      const char e = pattern[i];
      switch (e) {
        case 's': out += "\\p{White_Space}"; break;
        case 'S': out += "\\P{White_Space}"; break;
        case 'd': out += "\\p{Nd}"; break;
        case 'D': out += "\\P{Nd}"; break;
        case 'h': out += in_class ? "0-9a-fA-F" : "[0-9a-fA-F]"; break;
        case 'w': out += in_class ? std::string(kWord) : std::string("[") + kWord + kLatinNumbers + "]"; break;
        case 'W':
          if (in_class) unsupported(where, pattern, "\\W inside a class");
          out += std::string("[^") + kWord + kLatinNumbers + "]";
          break;
        case 'R':
          if (in_class) unsupported(where, pattern, "\\R inside a class");
          out += "(?>\\r\\n|[\\x{A}-\\x{D}\\x{85}\\x{2028}\\x{2029}])";
          break;
        case 'H': case 'C': case 'G': case 'K': case 'N': case 'Q': case 'E': case 'X': case 'o': case 'g':
        case 'k': case 'c':
          unsupported(where, pattern, std::string("\\") + e);
        case 'u': {
          const std::string digits = pattern.substr(i + 1, 4);
          if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
            unsupported(where, pattern, "\\u without four hexadecimal digits");
          }
          out += "\\x{" + digits + "}";
          i += 4;
          break;
        }
        case 'p': case 'P': {
          const size_t end = pattern.compare(i + 1, 1, "{") == 0 ? pattern.find('}', i) : std::string::npos;
          const bool script = end != std::string::npos && is_script_name(pattern.substr(i + 2, end - i - 2));
          out += std::string("\\") + e;
          if (script) {
            out += "{sc:";
            ++i;
          }
          break;
        }
        default:
          out += '\\';
          out += e;
      }
    } else if (in_class) {
      if (c == ']') {
        if (nested > 0) {
          --nested;
          continue;
        }
        in_class = false;
      } else if (c == '[') {
        const size_t end = pattern.compare(i, 2, "[:") == 0 ? pattern.find(":]", i) : std::string::npos;
        if (end == std::string::npos) {
          if (i + 1 == pattern.size() || pattern[i + 1] == '^' || pattern[i + 1] == ']' || pattern[i + 1] == '[')
            unsupported(where, pattern, "such a class inside a class");
          ++nested;
          continue;
        }
        const std::string name = pattern.substr(i + 2, end - i - 2);
        if (!name.empty() && name[0] == '^' && posix_class(name.substr(1))[0] != '[')
          unsupported(where, pattern, "[:" + name + ":]");
        out += posix_class(name);
        i = end + 1;
        continue;
      } else if (pattern.compare(i, 2, "&&") == 0) {
        // [A&&[B]]: what comes is in B, and is taken as A.
        size_t end = pattern.compare(i, 3, "&&[") == 0 ? i + 3 : std::string::npos;
        while (end < pattern.size() && pattern[end] != ']' && pattern[end] != '[') end += pattern[end] == '\\' ? 2 : 1;
        if (nested > 0 || out[class_begin + 1] == '^' || end >= pattern.size() || pattern.compare(end, 2, "]]") != 0) {
          unsupported(where, pattern, "such an && inside a class");
        }
        out.insert(class_begin, "(?:(?=" + translate(pattern.substr(i + 2, end - i - 1), where) + ")");
        out += "])";
        i = end + 1;
        in_class = false;
        continue;
      }
      out += c;
    } else {
      if (c == '[') class_begin = out.size();
      out += c;
      if (c == '{' && pattern.compare(i + 1, 1, ",") == 0) out += '0';  // {,n} is {0,n}
      if (c == '[') {
        in_class = true;
        if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
        if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += "\\]", ++i;
      } else if (pattern.compare(i, 2, "(?") == 0) {
        size_t end = i + 2;
        std::string options;
        for (; end < pattern.size() && std::string_view("imsx-").find(pattern[end]) != std::string_view::npos; ++end) {
          if (pattern[end] == 'x' || pattern[end] == 's') {
            unsupported(where, pattern, std::string("option ") + pattern[end]);
          }
          options += pattern[end] == 'm' ? 's' : pattern[end];  // the point meets line ends
        }
        if (!options.empty()) {
          out += "?" + options;
          i = end - 1;
        }
      } else if (pattern.compare(i, 2, "(*") == 0) {
        unsupported(where, pattern, "(*");
      }
    }
  }
  return out;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, const std::string& where) : pattern_(pattern), where_(where) {
  if (pattern.size() > kMaxPattern) {
    throw Error(ErrorCode::unsupported, where + ": a regular expression of " + std::to_string(pattern.size()) + " bytes",
                "at most 65536 bytes are accepted");
  }
  compile(translate(pattern, where), pattern, where);
}

Regex Regex::literal(std::string_view text, const std::string& where) {
  Regex regex;
  regex.literal_ = text;
  regex.where_ = where;
  return regex;
}

void Regex::compile(const std::string& translated, const std::string& pattern, const std::string& where) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto owner = std::make_shared<Code>();
  owner->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                              context.get());
  if (owner->code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    unsupported(where, pattern, reinterpret_cast<const char*>(message));
  }
  pcre2_jit_compile(owner->code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter answers, more slowly
  code_ = std::move(owner);
}

std::vector<ByteRange> Regex::find_all(std::string_view text) const {
  std::vector<ByteRange> found;
  if (!code_) {
    if (literal_.empty()) return found;
    for (size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size())) {
      found.emplace_back(at, at + literal_.size());
    }
    return found;
  }
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_->code, nullptr), &pcre2_match_data_free);
  size_t from = 0, last_end = std::string_view::npos;
  while (from <= text.size()) {
    const auto run = [&](uint32_t options) {
      return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         PCRE2_NO_UTF_CHECK | options, match.get(), nullptr);
    };
    int status = run(0);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) status = run(PCRE2_NO_JIT);
    if (status == PCRE2_ERROR_NOMATCH) break;
    if (status < 0) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(status, message, sizeof(message));
      throw Error(ErrorCode::input, where_ + ": the regular expression failed on the text: " +
                                        reinterpret_cast<const char*>(message),
                  "a pattern that backtracks without end; check the tokenizer file");
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    const size_t begin = bounds[0], end = bounds[1];
    if (begin > end) break;  // \K inside a lookahead; nothing sensible can follow
    if (begin == end && begin == last_end) {
      if (from >= text.size()) break;
      from += utf8_step(text, from).length;
      continue;
    }
    found.emplace_back(begin, end);
    from = last_end = end;
  }
  return found;
}

}  // namespace thimble
