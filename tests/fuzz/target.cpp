#include "tests/fuzz/target.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "tensor/file.h"

namespace thimble::fuzz {
namespace {

struct Folder {
  std::string path;
  Folder() {
    const bool memory = ::access("/dev/shm", W_OK) == 0;
    path = (memory ? std::string("/dev/shm") : std::filesystem::temp_directory_path().string()) + "/thimble_fuzz_XXXXXX";
    if (!::mkdtemp(path.data())) throw std::runtime_error("mkdtemp failed: " + path);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

}  // namespace

std::string scratch_folder() {
  static const Folder folder;
  return folder.path;
}

std::string scratch_file(const std::string& name, std::string_view bytes) {
  const std::string path = scratch_folder() + "/" + name;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) throw std::runtime_error("cannot write " + path);
  write_fully(fd, bytes.data(), bytes.size(), path);
  ::close(fd);
  return path;
}

void expect(bool holds, const char* property) {
  if (!holds) throw std::logic_error(std::string("does not hold: ") + property);
}

Halves split_at_nul(std::string_view bytes) {
  const size_t at = bytes.find('\0');
  if (at == std::string_view::npos) return {bytes, {}};
  return {bytes.substr(0, at), bytes.substr(at + 1)};
}

}  // namespace thimble::fuzz
