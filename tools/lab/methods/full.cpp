// Fine-tuning of all weights, one person after another.
#include "tools/lab/method.h"

namespace thimble::lab {

extern const Method kFull;
const Method kFull = {"full", "full fine-tuning", true, false, 5e-4, nullptr};

}  // namespace thimble::lab
