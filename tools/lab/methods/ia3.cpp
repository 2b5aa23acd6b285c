// IA3: keys, values and inner activations are rescaled (Liu et al., arXiv 2205.05638).
#include "tools/lab/method.h"

namespace thimble::lab {
namespace {

AdapterOptions ia3_options(const MethodSpec&) {
  AdapterOptions o;
  o.kind = AdapterKind::ia3;
  return o;
}

}  // namespace

extern const Method kIa3;
const Method kIa3 = {"ia3", "IA3", true, false, 1e-1, ia3_options};

}  // namespace thimble::lab
