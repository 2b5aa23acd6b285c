// Memory is a stack. An Arena is a reserved range of addresses, committed by touch, with a bump pointer; mark() and
// reset(mark) free in last-in-first-out order. All arenas and buffers of a context charge one MemoryBudget; going over
// is an Error that names the largest zones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace thimble {

// Bytes that one context may hold. limit 0: no limit.
class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t limit = 0) : limit_(limit) {}
  int64_t limit() const { return limit_; }
  int64_t used() const { return used_; }
  // False (and nothing charged) when the limit would be exceeded.
  bool charge(int64_t bytes) {
    if (limit_ > 0 && used_ + bytes > limit_) return false;
    used_ += bytes;
    return true;
  }
  void release(int64_t bytes) { used_ -= bytes; }

 private:
  int64_t limit_;
  int64_t used_ = 0;
};

class Arena {
 public:
  struct Mark {
    size_t offset, entries;
  };

  // name: what errors call it. reserve: bytes of address space (not memory).
  Arena(const char* name, MemoryBudget* budget, size_t reserve = size_t{1} << 38);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned; contents are unspecified. zone names the use in budget errors (a string literal).
  void* allocate(size_t bytes, const char* zone);
  float* floats(int64_t n, const char* zone) { return static_cast<float*>(allocate(size_t(n) * sizeof(float), zone)); }

  Mark mark() const { return {offset_, entries_.size()}; }
  void reset(Mark mark);

  size_t used() const { return offset_; }
  bool owns(const void* p) const { return p >= base_ && p < base_ + reserve_; }
  size_t peak() const { return peak_; }

 private:
  struct Entry {
    const char* zone;
    size_t bytes;
  };
  [[noreturn]] void over_budget(size_t bytes, const char* zone) const;

  const char* name_;
  MemoryBudget* budget_;
  std::byte* base_ = nullptr;
  size_t reserve_, offset_ = 0, peak_ = 0;
  std::vector<Entry> entries_;
};

// Frees what was allocated in its scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.reset(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

// Owned memory of fixed size: zeroed, 64-byte aligned, huge pages advised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, MemoryBudget* budget = nullptr, const char* zone = "buffer");
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(budget_, other.budget_);
    return *this;
  }
  void* data() const { return data_; }
  float* f32() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  MemoryBudget* budget_ = nullptr;
};

}  // namespace thimble
