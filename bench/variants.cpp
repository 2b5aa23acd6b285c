#include "bench/variants.h"

#include "tensor/error.h"

namespace thimble::bench {

Variant find_variant(const std::string& name) {
  std::string known;
  for (const Variant& v : variants()) {
    if (v.name.rfind(name, 0) == 0) return v;
    known += (known.empty() ? "" : ", ") + v.name;
  }
  throw Error(ErrorCode::usage, "--variant: there is no candidate \"" + name + "\"", "candidates of this build: " + known);
}

}  // namespace thimble::bench
