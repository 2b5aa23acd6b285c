// LoRA trained with retrieved examples in its prompts, those of an item from earlier items only, and asked with them.
#include "tools/lab/method.h"

namespace thimble::lab {
namespace {

AdapterOptions lora_options(const MethodSpec& spec) {
  AdapterOptions o;
  o.kind = AdapterKind::lora;
  o.rank = spec.rank;
  o.alpha = spec.alpha;
  o.dropout = spec.dropout;
  o.targets = spec.targets;
  return o;
}

}  // namespace

extern const Method kRagLora;
const Method kRagLora = {"rag+lora", "retrieval and LoRA", true, true, 3e-3, lora_options};

}  // namespace thimble::lab
