// The sub-commands of thimble data, one function per file.
#pragma once

#include "tools/cli/cli.h"

namespace thimble::cli {

void add_data_check(CLI::App& data, Run* run);
void add_data_world(CLI::App& data, Run* run);

}  // namespace thimble::cli
