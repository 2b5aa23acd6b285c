// Low-rank adaptation (Hu et al., arXiv 2106.09685).
#include "tools/lab/method.h"

namespace thimble::lab {

AdapterOptions lora_adapter(const MethodSpec& spec) {
  AdapterOptions o;
  o.kind = AdapterKind::lora;
  o.rank = spec.rank;
  o.alpha = spec.alpha;
  o.dropout = spec.dropout;
  o.targets = spec.targets;
  return o;
}

extern const Method kLora;
const Method kLora = {"lora", "LoRA", true, false, 3e-3, lora_adapter};

}  // namespace thimble::lab
