// Comparing a tokenizer with recorded cases of another implementation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/tokenizer/tokenizer.h"

namespace thimble {

struct CheckMismatch {
  int64_t line;  // from 1
  std::string field, want, got;
};

struct CheckReport {
  int64_t lines = 0;   // cases compared; blank lines do not count
  int64_t failed = 0;  // cases with at least one mismatch
  std::vector<CheckMismatch> first;  // at most 20
};

// path: JSON lines {"text", "ids", "ids_nospecial", "decoded", "decoded_skip_special"}; text is required, the others are
// compared where present. Special strings in the text are parsed. "decoded" is decode(ids_nospecial) and
// "decoded_skip_special" is decode(ids, skip_special); without those lists they start from our own ids.
// Errors: input for a malformed line, with its number.
CheckReport check_cases(const Tokenizer& tokenizer, const std::string& path);

}  // namespace thimble
