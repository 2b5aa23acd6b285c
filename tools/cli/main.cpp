#include "tools/cli/cli.h"

int main(int argc, char** argv) { return thimble::cli::main_entry(argc, argv); }
