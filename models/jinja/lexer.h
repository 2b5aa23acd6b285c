// A template as tokens. The rules on white space are those of trim_blocks and lstrip_blocks: the first line break behind
// a block or comment goes, and so do blanks between the start of a line and a block; '-' takes all white space on its
// side, '+' keeps it. One line break at the very end of the template goes too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/jinja/meter.h"

namespace thimble::jinja {

enum class TokenKind : uint8_t { text, output_begin, output_end, block_begin, block_end, name, string, integer, real, op, end };

struct Token {
  TokenKind kind = TokenKind::end;
  int line = 1;
  std::string text;  // of strings: with escapes resolved
  int64_t integer = 0;
  double real = 0;
};

// Errors: input with the line. meter.line is left where the lexer stopped.
std::vector<Token> tokenize_template(Meter& meter, std::string_view source);

}  // namespace thimble::jinja
