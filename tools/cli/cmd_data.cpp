// thimble data: making and checking the files that experiments read.
#include "tools/cli/cmd_data.h"

namespace thimble::cli {

void add_data(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("data", "make and check the data of experiments");
  command->require_subcommand(1);
  add_data_check(*command, run);
  add_data_world(*command, run);
}

}  // namespace thimble::cli
