// thimble pretrain --recipe: a base model of the zoo, from nothing.
#pragma once

#include <string>

#include "tools/cli/cli.h"

namespace thimble::cli {

struct RecipeOptions {
  std::string recipe, out;
  int64_t steps = 0;    // stop after so many and write no model; 0: follow the recipe to its end
  int64_t show = 0;     // print so many sequences of the mix and stop
  bool resume = false;
};

int run_recipe(const CommonOptions& common, const RecipeOptions& options);

}  // namespace thimble::cli
