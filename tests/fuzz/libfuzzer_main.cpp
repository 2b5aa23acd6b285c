// The entry that libFuzzer calls; CMake compiles it once per target, with THIMBLE_FUZZ_ENTRY naming the function.
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  thimble::fuzz::THIMBLE_FUZZ_ENTRY({reinterpret_cast<const char*>(data), size});
  return 0;
}
