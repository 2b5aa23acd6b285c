// fault_writer PATH SEED: writes a safetensors file whose bytes depend on SEED; the victim of write_fault.c.
// Exits as the command line would: 0, or the code of the Error.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "models/io/safetensors.h"
#include "tensor/error.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const unsigned seed = static_cast<unsigned>(std::atoi(argv[2]));
  std::vector<uint32_t> large(300'000), small(3);
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<uint32_t>(i) * 2654435761u + seed;
  for (size_t i = 0; i < small.size(); ++i) small[i] = static_cast<uint32_t>(i) + seed;
  try {
    using thimble::SafetensorsDtype;
    thimble::write_safetensors(argv[1], {{"small", SafetensorsDtype::u32, {3}, small.data()},
                                         {"large", SafetensorsDtype::u32, {300, 1000}, large.data()},
                                         {"empty", SafetensorsDtype::f32, {0, 4}, nullptr}});
  } catch (const thimble::Error& e) {
    std::fprintf(stderr, "error: %s\nhint: %s\n", e.what(), e.hint().c_str());
    return static_cast<int>(e.code());
  }
  return 0;
}
