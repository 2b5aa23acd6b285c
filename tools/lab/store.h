// An experiment's folder on disk: cells/<hash>/ appear by one rename and never change, a claim is a kernel lock that
// dies with its owner, and whoever holds the claim of a cell removes what a dead owner left.
//
// Claims are open-file-description locks on single bytes of DIR/claims, at an offset that the cell's hash gives. They
// work between processes of one machine; a process that inherits the claim's descriptor holds it too.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/lab/cell.h"

namespace thimble::lab {

enum class CellState : uint8_t { pending, running, done, failed };
const char* cell_state_name(CellState state);

// Held until destroyed, or until the last process that inherited fd() ends.
class Claim {
 public:
  Claim() = default;
  explicit Claim(int fd) : fd_(fd) {}
  ~Claim();
  Claim(Claim&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Claim& operator=(Claim&& other) noexcept;
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

class Store {
 public:
  // Makes the folder, cells/ and logs/ where they are missing. Errors (input, budget): it cannot be written.
  explicit Store(std::string dir);

  const std::string& dir() const { return dir_; }
  std::string path(const std::string& name) const;             // DIR/name
  std::string cell_path(const std::string& hash) const;        // DIR/cells/<hash>
  std::string log_path(const std::string& hash) const;         // DIR/logs/<hash>.log: what its process said
  bool published(const std::string& hash) const;               // done or failed
  CellState state(const std::string& hash) const;
  nlohmann::ordered_json status(const std::string& hash) const;  // status.json; null when there is none
  nlohmann::ordered_json cost(const std::string& hash) const;    // cost.json; null when there is none

  // Empty when another process holds it. Whoever gets it must look at published() again.
  std::optional<Claim> claim(const std::string& hash) const;
  // Waits for the folder's own lock, for changes of plan.json and machine.json. stop is asked ten times a second; where it
  // says true, Error(interrupted).
  Claim lock_folder(const std::function<bool()>& stop = {}) const;

  // The next three need the cell's claim.
  // Removes unfinished work of dead owners, and a folder that holds no status.
  void clean(const std::string& hash) const;
  // A published failure is taken back, so that the cell is pending again.
  void forget_failure(const std::string& hash) const;
  // Everything is written beside and synced, then renamed; the first wins: false when there was one already.
  bool publish_done(const std::string& hash, const CellConfig& config, const CellResult& result) const;
  bool publish_failed(const std::string& hash, const CellConfig& config, int error_code, const std::string& reason,
                      const std::string& hint) const;

  // Removes unfinished work of all cells whose owners are dead.
  void clean_all() const;

 private:
  std::string dir_;
};

}  // namespace thimble::lab
