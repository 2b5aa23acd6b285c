#include "quant/spec.h"

#include <fmt/format.h>

#include <cstdlib>

#include "tensor/error.h"

namespace thimble {
namespace {

// "12" of at most three digits; -1 for anything else.
int small_number(const std::string& text) {
  if (text.empty() || text.size() > 3 || text.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::atoi(text.c_str());
}

}  // namespace

std::string WeightSpec::name() const {
  return fmt::format("int{}-{}-{}", bits, group > 0 ? fmt::format("g{}", group) : "row", symmetric ? "sym" : "asym");
}

WeightSpec parse_weight_spec(const std::string& text, const std::string& where) {
  WeightSpec spec;
  bool valid = text.size() > 5 && text.compare(0, 3, "int") == 0 && text[4] == '-';
  const size_t dash = valid ? text.find('-', 5) : std::string::npos;
  valid = dash != std::string::npos;
  if (valid) {
    spec.bits = text[3] - '0';
    const std::string group = text.substr(5, dash - 5), kind = text.substr(dash + 1);
    spec.group = group == "row" ? 0 : group == "g32" ? 32 : group == "g64" ? 64 : group == "g128" ? 128 : -1;
    spec.symmetric = kind == "sym";
    valid = (spec.bits == 8 || spec.bits == 4 || spec.bits == 3 || spec.bits == 2) && spec.group >= 0 &&
            (kind == "sym" || kind == "asym");
  }
  if (!valid)
    throw Error(ErrorCode::usage, fmt::format("{}: \"{}\" is not a weight format", where, text.substr(0, 80)),
                "valid: int{8,4,3,2}-{g32|g64|g128|row}-{sym|asym}, for example int4-g64-asym");
  return spec;
}

std::string Sparsity::name() const { return of > 0 ? fmt::format("{}:{}", keep, of) : fmt::format("{}", fraction); }

Sparsity parse_sparsity(const std::string& text, const std::string& where) {
  Sparsity s;
  bool valid = false;
  const size_t colon = text.find(':');
  if (colon != std::string::npos) {
    s.keep = small_number(text.substr(0, colon));
    s.of = small_number(text.substr(colon + 1));
    valid = s.keep > 0 && s.keep < s.of && (s.of == 4 || s.of == 8 || s.of == 16 || s.of == 2);
  } else if (!text.empty() && text.find_first_not_of("0123456789.") == std::string::npos) {
    char* end = nullptr;
    s.fraction = std::strtod(text.c_str(), &end);
    valid = *end == '\0' && s.fraction > 0 && s.fraction < 1;
  }
  if (!valid)
    throw Error(ErrorCode::usage, fmt::format("{}: \"{}\" is not a sparsity", where, text.substr(0, 80)),
                "valid: a share of zeros between 0 and 1, as 0.5, or n:m with m 2, 4, 8 or 16, as 2:4 (two of four are kept)");
  return s;
}

}  // namespace thimble
