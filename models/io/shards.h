// The index of a checkpoint in several files: which tensor lies in which of them.
#pragma once

#include <map>
#include <string>

namespace thimble {

// weight_map of an index file, tensor -> file name. The names come from a stranger: each must be a plain file name with
// this ending that exists in dir and does not lead out of it. Throws input otherwise.
std::map<std::string, std::string> read_shard_index(const std::string& index, const std::string& dir,
                                                    const char* ending);

}  // namespace thimble
