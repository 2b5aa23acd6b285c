#include "tools/lab/store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::lab {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr off_t kFolderLock = off_t{1} << 62;
constexpr const char* kUnfinished = ".tmp-";  // .tmp-<hash>-<pid>

off_t offset_of(const std::string& hash) {
  return static_cast<off_t>(std::stoull(hash, nullptr, 16) & ((uint64_t{1} << 62) - 1));
}

int open_locks(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) throw Error(ErrorCode::input, path + ": cannot be opened: " + std::strerror(errno), "check the folder's permissions");
  return fd;
}

struct flock whole_byte(off_t offset) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = offset;
  lock.l_len = 1;
  return lock;
}

// True: fd now holds the byte. False: somebody else does.
bool try_lock(int fd, off_t offset, const std::string& path) {
  struct flock lock = whole_byte(offset);
  while (::fcntl(fd, F_OFD_SETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EACCES) return false;
    throw Error(ErrorCode::unsupported, path + ": the file system has no locks: " + std::strerror(errno), "write to a local disk");
  }
  return true;
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw Error(ErrorCode::input, path + ": cannot be opened: " + std::strerror(errno));
  ::fsync(fd);  // not every file system can; the rename is atomic without it
  ::close(fd);
}

std::string lines(const std::vector<Json>& rows) {
  std::string text;
  for (const Json& row : rows) text += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  return text;
}
std::string pretty(const Json& json) { return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; }

Json read_if_there(const std::string& path) {
  if (!file_exists(path)) return nullptr;
  Json json = Json::parse(read_file(path), nullptr, false);
  return json.is_discarded() ? Json(nullptr) : json;
}

// Files of one cell, published together.
class Publication {
 public:
  Publication(const Store& store, const std::string& hash)
      : store_(store), hash_(hash), folder_(store.path(fmt::format("cells/{}{}-{}", kUnfinished, hash, ::getpid()))) {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
    make_directories(folder_);
  }
  ~Publication() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  void put(const char* name, const std::string& text) const { write_file(join_path(folder_, name), text); }
  bool commit() const {
    sync_folder(folder_);
    const std::string target = store_.cell_path(hash_);
    if (::rename(folder_.c_str(), target.c_str()) != 0) {
      if (errno == EEXIST || errno == ENOTEMPTY) return false;
      const bool space = errno == ENOSPC || errno == EDQUOT;
      throw Error(space ? ErrorCode::budget : ErrorCode::input, target + ": cannot be published: " + std::strerror(errno));
    }
    sync_folder(store_.path("cells"));
    return true;
  }

 private:
  const Store& store_;
  std::string hash_, folder_;
};

}  // namespace

const char* cell_state_name(CellState state) {
  switch (state) {
    case CellState::pending:
      return "pending";
    case CellState::running:
      return "running";
    case CellState::done:
      return "done";
    case CellState::failed:
      return "failed";
  }
  return "";
}

Claim::~Claim() {
  if (fd_ >= 0) ::close(fd_);
}
Claim& Claim::operator=(Claim&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Store::Store(std::string dir) : dir_(std::move(dir)) {
  make_directories(path("cells"));
  make_directories(path("logs"));
}

std::string Store::path(const std::string& name) const { return join_path(dir_, name); }
std::string Store::cell_path(const std::string& hash) const { return path("cells/" + hash); }
std::string Store::log_path(const std::string& hash) const { return path("logs/" + hash + ".log"); }
bool Store::published(const std::string& hash) const { return file_exists(cell_path(hash) + "/status.json"); }
Json Store::status(const std::string& hash) const { return read_if_there(cell_path(hash) + "/status.json"); }
Json Store::cost(const std::string& hash) const { return read_if_there(cell_path(hash) + "/cost.json"); }

CellState Store::state(const std::string& hash) const {
  const Json json = status(hash);
  if (json.is_object()) return json.value("state", "") == "done" ? CellState::done : CellState::failed;
  const std::string locks = path("claims");
  if (!file_exists(locks)) return CellState::pending;
  const Claim file(open_locks(locks));
  struct flock lock = whole_byte(offset_of(hash));
  if (::fcntl(file.fd(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) return CellState::running;
  return CellState::pending;
}

std::optional<Claim> Store::claim(const std::string& hash) const {
  const std::string locks = path("claims");
  Claim claim(open_locks(locks));
  if (!try_lock(claim.fd(), offset_of(hash), locks)) return std::nullopt;
  return claim;
}

Claim Store::lock_folder(const std::function<bool()>& stop) const {
  const std::string locks = path("claims");
  Claim claim(open_locks(locks));
  while (!try_lock(claim.fd(), kFolderLock, locks)) {
    if (stop && stop()) throw Error(ErrorCode::interrupted, dir_ + ": interrupted while another process prepared it");
    const struct timespec pause {0, 100000000};
    ::nanosleep(&pause, nullptr);
  }
  return claim;
}

void Store::clean(const std::string& hash) const {
  std::error_code error;
  std::vector<fs::path> stale;
  const std::string start = kUnfinished + hash + "-";
  for (fs::directory_iterator it(path("cells"), error), end; !error && it != end; it.increment(error))
    if (it->path().filename().string().compare(0, start.size(), start) == 0) stale.push_back(it->path());
  for (const fs::path& p : stale) fs::remove_all(p, error);
  if (is_directory(cell_path(hash)) && !published(hash)) {
    const std::string aside = path(fmt::format("cells/{}{}-{}", kUnfinished, hash, ::getpid()));
    fs::rename(cell_path(hash), aside, error);
    fs::remove_all(aside, error);
  }
}

void Store::clean_all() const {
  std::error_code error;
  std::set<std::string> hashes;
  const size_t skip = std::strlen(kUnfinished);
  for (fs::directory_iterator it(path("cells"), error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.compare(0, skip, kUnfinished) != 0 || name.size() < skip + 16) continue;
    const std::string hash = name.substr(skip, 16);
    if (hash.find_first_not_of("0123456789abcdef") == std::string::npos) hashes.insert(hash);
  }
  for (const std::string& hash : hashes)
    if (const auto held = claim(hash)) clean(hash);
}

void Store::forget_failure(const std::string& hash) const {
  if (state(hash) != CellState::failed) return;
  std::error_code error;
  const std::string aside = path(fmt::format("cells/{}{}-{}", kUnfinished, hash, ::getpid()));
  fs::rename(cell_path(hash), aside, error);
  if (error) throw Error(ErrorCode::input, cell_path(hash) + ": cannot be removed: " + error.message(), "check the folder's permissions");
  fs::remove_all(aside, error);
}

bool Store::publish_done(const std::string& hash, const CellConfig& config, const CellResult& result) const {
  const Publication p(*this, hash);
  p.put("config.json", pretty(config.to_json()));
  p.put("predictions.jsonl", lines(result.predictions));
  p.put("curve.jsonl", lines(result.curve));
  p.put("metrics.json", pretty(result.metrics));
  p.put("cost.json", pretty(result.cost));
  p.put("status.json", pretty({{"state", "done"}}));
  return p.commit();
}

bool Store::publish_failed(const std::string& hash, const CellConfig& config, int error_code, const std::string& reason,
                           const std::string& hint) const {
  const Publication p(*this, hash);
  p.put("config.json", pretty(config.to_json()));
  p.put("status.json", pretty({{"state", "failed"}, {"reason", reason}, {"hint", hint}, {"error_code", error_code}}));
  return p.commit();
}

}  // namespace thimble::lab
