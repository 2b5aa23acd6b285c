// SHA-256 digests: of computed bits (parity), of texts (protocol records) and of files.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace thimble {

// Incremental: update() any number of times, then hex() once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(const void* data, size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  // 64 lower-case hex digits. Finishes the digest: neither update() nor hex() may follow.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view text);
// Reads in pieces, so the file may be larger than memory. Throws input when it cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace thimble
