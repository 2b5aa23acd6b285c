// Reading and writing whole files. Outputs go to a temporary name beside the target and are renamed when complete,
// so a crash, a full disk or kill -9 leaves either the old file or the new one. Every failed system call becomes an
// Error that names the file and the cause: ENOSPC and EDQUOT -> budget, everything else -> input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thimble {

// A read-only mapping of a whole file; the owner of mapped weights. A file truncated while mapped raises SIGBUS;
// install_sigbus_handler() turns that into exit status 3 with the file's name. Only regular files can be mapped.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  const std::string& path() const noexcept { return path_; }

  // A copy of bytes [offset, offset + bytes) taken with pread: unlike data() it cannot raise SIGBUS. Throws input
  // when the file has become shorter. For headers, which are parsed before anything is known to be sane.
  std::string read(size_t offset, size_t bytes) const;
  // Throws input when the file is now shorter than its mapping.
  void check_not_truncated() const;
  // Gives the mapped pages back to the system, which would count them as this program's until memory runs short. What
  // they hold stays in place and is read from the file again when it is used.
  void release_pages() const noexcept;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
  std::string path_;
};

// Process-wide; call once at start-up.
void install_sigbus_handler();

// Reads a file into memory; refuses more than max_bytes (error names the file and the limit).
std::string read_file(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Writes to "<path>.tmp.<pid>", fsyncs and renames on commit(); the destructor removes an uncommitted temporary. A
// target that exists and is not a regular file (/dev/null, a pipe) is written in place: a rename would replace the
// device. One writer per path and process.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Writes at a byte offset from the start and leaves the position of write() alone. Regular targets only.
  void write_at(size_t offset, const void* data, size_t bytes);
  // After commit() nothing more may be written.
  void commit();

 private:
  void flush();
  std::string path_, temporary_;  // temporary_ is empty when the target is written in place
  std::string buffer_;
  int fd_ = -1;
};

void write_file(const std::string& path, std::string_view content);

// write(2) until done: retries short writes and EINTR. `name` is what an error calls the file.
void write_fully(int fd, const void* data, size_t bytes, const std::string& name);

bool file_exists(const std::string& path);
bool is_directory(const std::string& path);
// Creates a directory and its parents.
void make_directories(const std::string& path);
// dir + "/" + name; an absolute name stays itself.
std::string join_path(const std::string& dir, const std::string& name);

}  // namespace thimble
