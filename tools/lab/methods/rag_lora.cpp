// LoRA trained with retrieved examples in its prompts, those of an item from earlier items only, and asked with them.
#include "tools/lab/method.h"

namespace thimble::lab {

extern const Method kRagLora;
const Method kRagLora = {"rag+lora", "retrieval and LoRA", true, true, 3e-3, lora_adapter};

}  // namespace thimble::lab
