#include "tensor/error.h"

namespace thimble {

void throw_check_failed(const char* expression, const char* file, int line) {
  throw Error(ErrorCode::internal,
              std::string("internal check failed: ") + expression + " (" + file + ":" + std::to_string(line) + ")",
              "this is a bug in thimble; please report it with the command that led here");
}

}  // namespace thimble
