#include "tensor/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tensor/error.h"

namespace thimble {
namespace {

// The SIGBUS handler may call only async-signal-safe functions, so live mappings stand in a fixed array.
struct LiveMapping {
  std::atomic<const std::byte*> data{nullptr};
  std::atomic<size_t> size{0};  // set last and cleared first: the handler trusts the path only while it is not 0
  char* path = nullptr;
};
LiveMapping g_mappings[4096];

void remember_mapping(const std::byte* data, size_t size, const std::string& path) {
  for (LiveMapping& m : g_mappings) {
    const std::byte* expected = nullptr;
    if (m.data.load() == nullptr && m.data.compare_exchange_strong(expected, data)) {
      m.path = ::strdup(path.c_str());
      m.size.store(size);
      return;
    }
  }
}

void forget_mapping(const std::byte* data) {
  for (LiveMapping& m : g_mappings)
    if (m.data.load() == data) {
      m.size.store(0);
      std::free(std::exchange(m.path, nullptr));
      m.data.store(nullptr);
      return;
    }
}

void put(const char* text) {
  ssize_t ignored = ::write(2, text, std::strlen(text));
  (void)ignored;
}

void on_sigbus(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  for (const LiveMapping& m : g_mappings) {
    const std::byte* data = m.data.load();
    if (data && address >= data && address < data + m.size.load()) {
      put("error: ");
      put(m.path ? m.path : "a mapped file");
      put(": the file was truncated while it was in use\nhint: restore the file and run again\n");
      ::_exit(static_cast<int>(ErrorCode::input));
    }
  }
  ::signal(SIGBUS, SIG_DFL);
  ::raise(SIGBUS);
}

[[noreturn]] void fail(const std::string& path, const char* what, int error) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  std::string hint;
  if (space) hint = "free some space or choose another output folder";
  if (error == EACCES || error == EPERM || error == EROFS) hint = "check the permissions of the file and its folder";
  if (error == ENOENT) hint = "check the spelling of the path";
  throw Error(space ? ErrorCode::budget : ErrorCode::input, path + ": cannot " + what + ": " + std::strerror(error),
              hint);
}

[[noreturn]] void fail_truncated(const std::string& path) {
  throw Error(ErrorCode::input, path + ": the file was truncated while it was in use",
              "restore the file and run again");
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not block here
  if (fd < 0) fail(path, "open", errno);
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    fail(path, "stat", error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    throw Error(ErrorCode::input, path + ": is not a regular file", "give the path of a model file");
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ > 0) {
    void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      fail(path, "map", error);
    }
    data_ = static_cast<const std::byte*>(p);
    remember_mapping(data_, size_, path_);
  }
  fd_ = fd;
}

MappedFile::~MappedFile() {
  if (data_) {
    forget_mapping(data_);
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
  if (fd_ >= 0) ::close(fd_);
}

void MappedFile::release_pages() const noexcept {
  if (data_) ::madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

std::string MappedFile::read(size_t offset, size_t bytes) const {
  THIMBLE_CHECK(offset <= size_ && bytes <= size_ - offset);
  std::string content(bytes, '\0');
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fd_, content.data() + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path_, "read", errno);
    if (n == 0) fail_truncated(path_);
    done += static_cast<size_t>(n);
  }
  return content;
}

void MappedFile::check_not_truncated() const {
  struct stat info {};
  if (fd_ < 0) return;
  if (::fstat(fd_, &info) != 0) fail(path_, "stat", errno);
  if (static_cast<size_t>(info.st_size) < size_) fail_truncated(path_);
}

void install_sigbus_handler() {
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, "open", errno);
  std::string content;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      ::close(fd);
      fail(path, "read", error);
    }
    if (n == 0) break;
    if (content.size() + static_cast<size_t>(n) > max_bytes) {
      ::close(fd);
      throw Error(ErrorCode::input, path + ": is larger than the limit of " + std::to_string(max_bytes) + " bytes",
                  "is this the right file?");
    }
    content.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return content;
}

void write_fully(int fd, const void* data, size_t bytes, const std::string& name) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(name, "write", errno);
    if (n == 0) fail(name, "write", ENOSPC);  // a regular write never returns 0; treat it as no progress
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) fail(path_, "create", EISDIR);
  if (exists && !S_ISREG(info.st_mode)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    temporary_ = path + ".tmp." + std::to_string(::getpid());
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  }
  if (fd_ < 0) fail(path_, "create", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) {
    ::close(fd_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }
}

void AtomicFile::flush() {
  write_fully(fd_, buffer_.data(), buffer_.size(), path_);
  buffer_.clear();
}

void AtomicFile::write(const void* data, size_t bytes) {
  constexpr size_t kBuffer = size_t{1} << 20;
  THIMBLE_CHECK(fd_ >= 0);
  if (buffer_.size() + bytes > kBuffer) flush();
  if (bytes >= kBuffer)
    write_fully(fd_, data, bytes, path_);
  else
    buffer_.append(static_cast<const char*>(data), bytes);
}

void AtomicFile::write_at(size_t offset, const void* data, size_t bytes) {
  THIMBLE_CHECK(fd_ >= 0);
  flush();
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd_, p, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(path_, "write", n < 0 ? errno : ENOSPC);
    p += n;
    offset += static_cast<size_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

void AtomicFile::commit() {
  THIMBLE_CHECK(fd_ >= 0);
  flush();
  if (::fsync(fd_) != 0 && errno != EINVAL) fail(path_, "sync", errno);  // EINVAL: a pipe or device
  const int fd = std::exchange(fd_, -1);
  const char* what = "close";
  int error = ::close(fd) != 0 ? errno : 0;
  if (!error && !temporary_.empty() && ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    error = errno;
    what = "rename into place";
  }
  if (error) {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    fail(path_, what, error);
  }
}

void write_file(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool is_directory(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail(path, "create the folder", error.value());
}

std::string join_path(const std::string& dir, const std::string& name) {
  if (dir.empty() || (!name.empty() && name[0] == '/')) return name;
  return dir.back() == '/' ? dir + name : dir + "/" + name;
}

}  // namespace thimble
