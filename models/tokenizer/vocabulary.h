// Pieces and their ids, both ways.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace thimble {

class Vocabulary {
 public:
  Vocabulary() = default;
  // pieces[id]; "" is a hole. The first of equal pieces is the one that find() gives.
  explicit Vocabulary(std::vector<std::string> pieces);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  const std::string& piece(int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  int32_t find(std::string_view piece) const {
    const auto at = ids_.find(piece);
    return at == ids_.end() ? -1 : at->second;
  }

 private:
  std::vector<std::string> pieces_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into pieces_
};

}  // namespace thimble
