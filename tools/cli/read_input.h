// Reading what an option names as a text: a file, or standard input.
#pragma once

#include <cstddef>
#include <string>

namespace thimble::cli {

// The content of a file; "-" is standard input. Errors: input when it cannot be read or is larger than max_bytes.
std::string read_input(const std::string& path, size_t max_bytes = size_t{1} << 30);

}  // namespace thimble::cli
