#include <cstdio>
#include <cstdlib>

#include "tools/cli/cli.h"

int main(int argc, char** argv) {
  const int status = thimble::cli::main_entry(argc, argv);
  // Not through exit(): OpenBLAS joins its threads there, and hangs when an address-space limit kept one from starting.
  std::fflush(nullptr);
  std::_Exit(status);
}
