// Candidates against kernels (variants/README.md). A candidate fills slots of a table as the file it was copied from does.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble::bench {

struct Variant {
  std::string name;  // "01-two_strips"
  Tier tier;         // that it is compiled for
  void (*init)(KernelTable&);
};
std::vector<Variant> variants();  // by number

// The candidate whose name starts with `name`. Throws usage, listing them.
Variant find_variant(const std::string& name);

}  // namespace thimble::bench
