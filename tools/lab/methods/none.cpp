// The base model as it is: what every other method is compared with.
#include "tools/lab/method.h"

namespace thimble::lab {

extern const Method kNone;
const Method kNone = {"none", "base model", false, false, 0, nullptr};

}  // namespace thimble::lab
