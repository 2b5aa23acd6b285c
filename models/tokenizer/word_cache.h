// Words -> ids already worked out. Bounded: when it is full it is emptied, so that no text can make it grow without
// end.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace thimble {

inline uint64_t hash_bytes(const char* p, size_t n) {
  constexpr uint64_t kA = 0x9E3779B97F4A7C15ULL, kB = 0xD6E8FEB86659FD93ULL;
  uint64_t h = n * kA, x = 0;
  for (; n >= 8; p += 8, n -= 8) {
    std::memcpy(&x, p, 8);
    h = (h ^ x) * kB;
    h ^= h >> 32;
  }
  if (n >= 4) {
    uint32_t low = 0, high = 0;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + n - 4, 4);
    x = static_cast<uint64_t>(high) << 32 | low;
  } else if (n > 0) {
    x = static_cast<uint64_t>(static_cast<unsigned char>(p[0])) << 16 |
        static_cast<uint64_t>(static_cast<unsigned char>(p[n / 2])) << 8 | static_cast<unsigned char>(p[n - 1]);
  } else {
    x = 0;
  }
  h = (h ^ x) * kB;
  h ^= h >> 32;
  h *= kA;
  return h ^ h >> 29;
}

class WordCache {
 public:
  static constexpr size_t kLongestWord = 64;  // bytes; longer ones are not kept

  WordCache() { reset(1 << 10); }

  // Appends the ids of a known word and gives true.
  bool find(std::string_view word, uint64_t hash, std::vector<int32_t>& out) const {
    for (size_t at = hash & mask_;; at = (at + 1) & mask_) {
      const Slot& slot = slots_[at];
      if (slot.length == 0) return false;
      if (slot.tag != static_cast<uint32_t>(hash >> 32) || slot.length != word.size() ||
          std::memcmp(text_.data() + slot.text, word.data(), word.size()) != 0) {
        continue;
      }
      if (slot.count == 1) {
        out.push_back(slot.ids);
      } else {
        const auto from = ids_.begin() + slot.ids;
        out.insert(out.end(), from, from + slot.count);
      }
      return true;
    }
  }

  // word: 1 to kLongestWord bytes that find() did not know.
  void add(std::string_view word, uint64_t hash, const int32_t* ids, size_t count) {
    if (used_ * 2 >= slots_.size()) {
      if (slots_.size() >= kMaxSlots) {
        reset(kMaxSlots);
      } else {
        grow();
      }
    }
    size_t at = hash & mask_;
    while (slots_[at].length != 0) at = (at + 1) & mask_;
    Slot& slot = slots_[at];
    slot = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(text_.size()), 0,
            static_cast<uint16_t>(word.size()), static_cast<uint16_t>(count)};
    text_.insert(text_.end(), word.begin(), word.end());
    if (count == 1) {
      slot.ids = ids[0];
    } else {
      slot.ids = static_cast<int32_t>(ids_.size());
      ids_.insert(ids_.end(), ids, ids + count);
    }
    ++used_;
  }

 private:
  static constexpr size_t kMaxSlots = 1 << 17;
  struct Slot {
    uint32_t tag, text;   // upper half of the hash; offset into text_
    int32_t ids;          // the id itself where count is 1, else an offset into ids_
    uint16_t length = 0;  // 0: free
    uint16_t count;
  };
  void reset(size_t slots) {
    slots_.assign(slots, Slot{0, 0, 0, 0, 0});
    mask_ = slots - 1;
    used_ = 0;
    text_.clear();
    ids_.clear();
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2, Slot{0, 0, 0, 0, 0});
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Slot& slot : old) {
      if (slot.length == 0) continue;
      size_t at = hash_bytes(text_.data() + slot.text, slot.length) & mask_;
      while (slots_[at].length != 0) at = (at + 1) & mask_;
      slots_[at] = slot;
    }
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0, used_ = 0;
  std::vector<char> text_;
  std::vector<int32_t> ids_;
};

// Work spaces that outlast a call: as many as there were threads at once, each used by one call at a time.
template <typename Space>
class SpacePool {
 public:
  class Lease {
   public:
    explicit Lease(SpacePool& pool) : pool_(pool) {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      if (pool_.spaces_.empty()) {
        space_ = std::make_unique<Space>();
      } else {
        space_ = std::move(pool_.spaces_.back());
        pool_.spaces_.pop_back();
      }
    }
    ~Lease() {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      pool_.spaces_.push_back(std::move(space_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Space& operator*() { return *space_; }

   private:
    SpacePool& pool_;
    std::unique_ptr<Space> space_;
  };

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Space>> spaces_;
};

}  // namespace thimble
