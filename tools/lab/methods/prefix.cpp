// Prefix tuning: keys and values in front of every layer's attention (Li and Liang, arXiv 2101.00190).
#include "tools/lab/method.h"

namespace thimble::lab {
namespace {

AdapterOptions prefix_options(const MethodSpec& spec) {
  AdapterOptions o;
  o.kind = AdapterKind::prefix;
  o.n_virtual = spec.n_virtual;
  return o;
}

}  // namespace

extern const Method kPrefix;
const Method kPrefix = {"prefix", "prefix tuning", true, false, 1e-1, prefix_options};

}  // namespace thimble::lab
