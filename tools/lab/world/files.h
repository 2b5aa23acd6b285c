// A world as files: LaMP's folders with both of its splits, and world.json with what can be reached.
#pragma once

#include <string>
#include <vector>

#include "tools/lab/world.h"

namespace thimble::lab {

struct WorldFiles {
  std::vector<std::string> files;  // written, in order
  int64_t people = 0;
};

// DIR/LaMP_k/{user,time}/{train,dev,test}_{questions,outputs}.json for every task, and DIR/world.json last. dials.task is
// replaced by each of the tasks.
// - time: everybody, at three times: test asks dials.queries questions after the whole history, dev and train as many after
//   all but its last eighth and quarter.
// - user: three groups of people (60, 20 and 20 %), each asked after their whole history.
// Errors: usage for dials out of range; input when DIR cannot be written.
WorldFiles write_world(const std::string& dir, const WorldDials& dials, const std::vector<std::string>& tasks);

}  // namespace thimble::lab
