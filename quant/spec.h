// Names of weight grids and of sparsity patterns, as the command line, reports and plans write them:
// int{8,4,3,2}-{g32|g64|g128|row}-{sym|asym}, and 0.5 or 2:4.
#pragma once

#include <cstdint>
#include <string>

namespace thimble {

struct WeightSpec {
  int bits = 4;           // 8, 4, 3 or 2. Codes of 3 bits lie in 4-bit fields in memory; in GPTQ files they take 3 bits
  int64_t group = 128;    // columns per scale; 0: one scale per row
  bool symmetric = false;

  std::string name() const;  // "int4-g128-asym"
  bool operator==(const WeightSpec&) const = default;
};

// Throws usage, listing the valid forms. where: what the message calls the text, for example "--spec".
WeightSpec parse_weight_spec(const std::string& text, const std::string& where = "spec");

// The share of weights that are zero; or, of every m consecutive inputs of a row, the n with the largest score are kept.
struct Sparsity {
  double fraction = 0;  // 0 <= fraction < 1
  int64_t keep = 0, of = 0;  // of > 0: n:m

  bool empty() const { return fraction == 0 && of == 0; }
  double zeros() const { return of > 0 ? 1.0 - double(keep) / double(of) : fraction; }
  std::string name() const;  // "0.5", "2:4"
  bool operator==(const Sparsity&) const = default;
};

Sparsity parse_sparsity(const std::string& text, const std::string& where = "sparsity");

}  // namespace thimble
