// The alternatives in their order, each greedy, with the backtracking that the expressions really do worked out by
// hand.
#include "models/tokenizer/scanner.h"

#include <algorithm>

#include "models/tokenizer/char_classes.h"
#include "models/tokenizer/unicode.h"

namespace thimble {

using Contractions = ScannerRule::Contractions;
using Words = ScannerRule::Words;

const KnownPattern kGpt2Pattern = {"gpt-2",
                                   R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                                   {Contractions::ascii, Words::space_letters, false, 0, false, false}};

const KnownPattern kKnownPatterns[] = {
    kGpt2Pattern,
    {"gpt-2 in tiktoken's spelling",
     R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     {Contractions::ascii, Words::space_letters, false, 0, false, false}},
    {"llama-3",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {Contractions::any_case, Words::any_letters, false, 3, true, false}},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {Contractions::any_case, Words::any_letters, false, 1, true, false}},
    {"gpt-4o",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {Contractions::any_case, Words::cased, true, 3, true, true}},
    {"tekken",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
     R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {Contractions::none, Words::cased, false, 1, true, true}},
};
const size_t kKnownPatternCount = sizeof(kKnownPatterns) / sizeof(kKnownPatterns[0]);

const KnownPattern* find_known_pattern(std::string_view regex) {
  for (const KnownPattern& known : kKnownPatterns) {
    if (regex == known.regex) return &known;
  }
  return nullptr;
}

namespace {

using namespace char_class;

class Scan {
 public:
  Scan(const ScannerRule& rule, std::string_view text)
      : rule_(rule), text_(text), size_(text.size()), classes_(CharClasses::get()) {}

  // The end of the piece that begins at pos (< size).
  size_t end_of_piece(size_t pos) const {
    size_t next = pos;
    const uint8_t first = take(next);
    if (text_[pos] == '\'' && rule_.contractions != Contractions::none && rule_.words != Words::cased) {
      if (const size_t end = contraction(pos); end > pos) return end;
    }
    if (rule_.words == Words::cased) {
      if (const size_t end = cased_word(pos, next, first); end > pos) return end;
    } else if ((first & kLetter) != 0) {
      return run(next, kLetter);
    } else if (next < size_ && may_precede_letters(pos, first)) {
      size_t behind = next;
      if ((take(behind) & kLetter) != 0) return run(behind, kLetter);
    }
    if ((first & kNumber) != 0) return numbers(next);
    if (rule_.digits == 0 && text_[pos] == ' ' && next < size_) {
      size_t behind = next;
      if ((take(behind) & kNumber) != 0) return numbers(behind);
    }
    if ((first & (kSpace | kLetter | kNumber)) == 0) return others(next);
    if (text_[pos] == ' ' && next < size_) {
      size_t behind = next;
      if ((take(behind) & (kSpace | kLetter | kNumber)) == 0) return others(behind);
    }
    return spaces(pos);
  }

 private:
  // Class of the character at pos, which moves behind it.
  uint8_t take(size_t& pos) const {
    const auto byte = static_cast<unsigned char>(text_[pos]);
    if (byte < 0x80) {
      ++pos;
      return classes_.ascii(byte);
    }
    return classes_.of(next_code_point(text_, pos));
  }
  size_t run(size_t pos, uint8_t wanted) const {
    while (pos < size_) {
      size_t next = pos;
      if ((take(next) & wanted) == 0) break;
      pos = next;
    }
    return pos;
  }
  bool may_precede_letters(size_t pos, uint8_t c) const {
    return rule_.words == Words::space_letters ? text_[pos] == ' ' : (c & (kNewline | kLetter | kNumber)) == 0;
  }

  // The end of a contraction at pos; pos when there is none. Without regard to case, U+017F is an s.
  size_t contraction(size_t pos) const {
    const bool fold = rule_.contractions == Contractions::any_case;
    const auto letter = [&](size_t at) {
      const char c = at < size_ ? text_[at] : '\0';
      return fold && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    };
    if (letter(pos) != '\'') return pos;
    const char a = letter(pos + 1), b = letter(pos + 2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return pos + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return pos + 3;
    if (fold && text_.compare(pos + 1, 2, "\xC5\xBF") == 0) return pos + 3;
    return pos;
  }

  // PREFIX? UPPER* LOWER+ | PREFIX? UPPER+ LOWER*. Letters without case and marks are both, so an upper run gives back
  // its last such characters when no lower one follows: as a whole the longest UPPER* LOWER*, unless it ends in upper
  // case.
  size_t cased_word(size_t pos, size_t next, uint8_t first) const {
    const bool prefix = (first & (kNewline | kLetter | kNumber)) == 0 && next < size_;
    if (prefix) {  // a mark may be a prefix, too: greedy, the prefix is tried first
      if (const size_t end = cased_run(next, true); end > next) return end_of_word(end);
    }
    if ((first & (kUpperPart | kLowerPart)) != 0) {
      if (const size_t end = cased_run(pos, true); end > pos) return end_of_word(end);
    }
    if (prefix) {
      if (const size_t end = cased_run(next, false); end > next) return end_of_word(end);
    }
    if ((first & kUpperPart) != 0) return end_of_word(cased_run(pos, false));
    return pos;
  }
  // with_lower: the end of UPPER* LOWER+; otherwise of UPPER+ LOWER*. pos when there is no match.
  size_t cased_run(size_t pos, bool with_lower) const {
    size_t upper = pos, last_both = pos;  // behind the run of UPPER; behind its last character that is LOWER, too
    while (upper < size_) {
      size_t next = upper;
      const uint8_t c = take(next);
      if ((c & kUpperPart) == 0) break;
      upper = next;
      if ((c & kLowerPart) != 0) last_both = upper;
    }
    const size_t lower = run(upper, kLowerPart);
    if (!with_lower) return upper == pos ? pos : lower;
    return lower > upper ? lower : last_both;
  }
  size_t end_of_word(size_t pos) const {
    return rule_.contraction_ends_word && pos < size_ && text_[pos] == '\'' ? contraction(pos) : pos;
  }

  size_t numbers(size_t pos) const {  // behind the first one
    if (rule_.digits == 0) return run(pos, kNumber);
    for (int i = 1; i < rule_.digits && pos < size_; ++i) {
      size_t next = pos;
      if ((take(next) & kNumber) == 0) break;
      pos = next;
    }
    return pos;
  }
  size_t others(size_t pos) const {
    while (pos < size_) {
      size_t next = pos;
      if ((take(next) & (kSpace | kLetter | kNumber)) != 0) break;
      pos = next;
    }
    if (!rule_.newlines) return pos;
    while (pos < size_ && (text_[pos] == '\r' || text_[pos] == '\n' || (rule_.slash && text_[pos] == '/'))) ++pos;
    return pos;
  }
  size_t spaces(size_t pos) const {
    size_t end = pos, last = pos,
           newline = pos;  // end of the run, where its last character begins, behind the last newline
    while (end < size_) {
      size_t next = end;
      const uint8_t c = take(next);
      if ((c & kSpace) == 0) break;
      last = end;
      end = next;
      if ((c & kNewline) != 0) newline = end;
    }
    if (rule_.newlines && newline > pos) return newline;
    if (end == size_ || last == pos) return end;
    return last;
  }

  const ScannerRule& rule_;
  std::string_view text_;
  size_t size_;
  const CharClasses& classes_;
};

}  // namespace

size_t scan_pieces(const ScannerRule& rule, std::string_view text, size_t pos, size_t* ends, size_t max) {
  const Scan scan(rule, text);
  size_t count = 0;
  while (count < max && pos < text.size()) {
    pos = scan.end_of_piece(pos);
    ends[count++] = pos;
  }
  return count;
}

}  // namespace thimble
