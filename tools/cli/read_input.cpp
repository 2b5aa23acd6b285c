// Standard input is read with read(2) until its end, so that pipes and terminals work alike.
#include "tools/cli/read_input.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::cli {

std::string read_input(const std::string& path, size_t max_bytes) {
  if (path != "-") return read_file(path, max_bytes);
  std::string text;
  char piece[1 << 16];
  for (;;) {
    const ssize_t n = ::read(0, piece, sizeof piece);
    if (n == 0) return text;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(ErrorCode::input, std::string("standard input: ") + std::strerror(errno), "give a file instead of -");
    if (text.size() + static_cast<size_t>(n) > max_bytes)
      throw Error(ErrorCode::input, "standard input: larger than " + std::to_string(max_bytes) + " bytes", "give a smaller text");
    text.append(piece, static_cast<size_t>(n));
  }
}

}  // namespace thimble::cli
