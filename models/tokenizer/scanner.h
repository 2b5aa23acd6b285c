// Hand-written scanners for the split expressions of the large model families. Each does what PCRE2 does with the same
// expression (tests/tokenizer/scanner_diff_test.cpp compares them); files are matched by the text of their expression.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace thimble {

// One alternation of words, numbers, other characters and white space. Together they cover every text, so what is cut
// is the same whether a file wants matches isolated or what lies between them removed.
struct ScannerRule {
  enum class Contractions { none, ascii, any_case };  // 's 't 're 've 'm 'll 'd
  enum class Words {
    space_letters,
    any_letters,
    cased
  };  // " ?\p{L}+" | "[^\r\n\p{L}\p{N}]?\p{L}+" | lower after upper case
  Contractions contractions;
  Words words;
  bool contraction_ends_word;  // cased words only: a contraction belongs to the word before it
  int digits;                  // longest run of \p{N}; 0: any, and a space before it belongs to it
  bool newlines;               // \s*[\r\n]+ comes first among white space, and [\r\n]* follows other characters
  bool slash;                  // / may follow them, too
};

struct KnownPattern {
  const char* name;
  const char* regex;  // as tokenizer files write it
  ScannerRule rule;
};

extern const KnownPattern kGpt2Pattern;
extern const KnownPattern kKnownPatterns[];
extern const size_t kKnownPatternCount;

// nullptr when there is no scanner for the expression.
const KnownPattern* find_known_pattern(std::string_view regex);

// Ends of the next pieces of text from pos on, at most `max` of them; gives their number, 0 at the end of the text. The
// text must be well-formed UTF-8, and pos the end of a piece or 0.
size_t scan_pieces(const ScannerRule& rule, std::string_view text, size_t pos, size_t* ends, size_t max);

}  // namespace thimble
