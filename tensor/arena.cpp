#include "tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "tensor/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define THIMBLE_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define THIMBLE_HAS_ASAN 1
#endif
#endif
#ifdef THIMBLE_HAS_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace thimble {
namespace {

constexpr size_t kAlign = 64;

void poison(std::byte* p, size_t n) {
#ifdef THIMBLE_HAS_ASAN
  ASAN_POISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}
void unpoison(std::byte* p, size_t n) {
#ifdef THIMBLE_HAS_ASAN
  ASAN_UNPOISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}

std::string megabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", bytes / 1e6);
  return text;
}

void* try_map(size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

void* map_anonymous(size_t bytes, const char* what) {
  void* p = try_map(bytes);
  if (!p)
    throw Error(ErrorCode::budget, std::string(what) + ": the system refused " + megabytes(double(bytes)) + " of address space",
                "raise the limit (ulimit -v) or use a smaller model or context");
#if defined(MADV_HUGEPAGE)
  if (bytes >= (size_t{1} << 22)) ::madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

}  // namespace

Arena::Arena(const char* name, MemoryBudget* budget, size_t reserve) : name_(name), budget_(budget), reserve_(reserve) {
  // Under a limit on address space (ulimit -v): a half of the largest piece to be had, so that others find room too.
  void* whole = try_map(reserve_);
  if (whole) {
    ::munmap(whole, reserve_);
  } else {
    constexpr size_t kLeast = size_t{1} << 24;
    void* piece = nullptr;
    while (!piece && reserve_ > kLeast) piece = try_map(reserve_ /= 2);
    if (piece) {
      ::munmap(piece, reserve_);
      reserve_ /= 2;
    }
  }
  base_ = static_cast<std::byte*>(map_anonymous(reserve_, name));
  entries_.reserve(4096);
}

Arena::~Arena() {
  if (!base_) return;
  unpoison(base_, peak_);
  if (budget_) budget_->release(static_cast<int64_t>(peak_));
  ::munmap(base_, reserve_);
}

void* Arena::allocate(size_t bytes, const char* zone) {
  const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  if (rounded < bytes || offset_ + rounded > reserve_) over_budget(bytes, zone);
  const size_t end = offset_ + rounded;
  if (end > peak_) {
    if (budget_ && !budget_->charge(static_cast<int64_t>(end - peak_))) over_budget(bytes, zone);
    peak_ = end;
  }
  std::byte* p = base_ + offset_;
  unpoison(p, rounded);
  offset_ = end;
  entries_.push_back({zone, rounded});
  return p;
}

void Arena::reset(Mark mark) {
  THIMBLE_DCHECK(mark.offset <= offset_);
  poison(base_ + mark.offset, offset_ - mark.offset);
  offset_ = mark.offset;
  entries_.resize(mark.entries);
}

void Arena::over_budget(size_t bytes, const char* zone) const {
  std::map<std::string, size_t> zones;
  for (const Entry& e : entries_) zones[e.zone] += e.bytes;
  std::vector<std::pair<size_t, std::string>> largest;
  for (const auto& [name, total] : zones) largest.emplace_back(total, name);
  std::sort(largest.rbegin(), largest.rend());
  std::string list;
  for (size_t i = 0; i < largest.size() && i < 5; ++i)
    list += (i ? ", " : "") + largest[i].second + " " + megabytes(double(largest[i].first));
  throw Error(ErrorCode::budget,
              std::string("memory budget exceeded: ") + name_ + " needs " + megabytes(double(bytes)) + " for " + zone + ", " +
                  megabytes(double(budget_ ? budget_->used() : 0)) + " of " +
                  megabytes(double(budget_ && budget_->limit() ? budget_->limit() : int64_t(reserve_))) +
                  " are in use; largest here: " + (list.empty() ? "nothing" : list),
              "raise --ram, or use a shorter context, a smaller batch or a more compressed model");
}

Buffer::Buffer(size_t bytes, MemoryBudget* budget, const char* zone) : bytes_(bytes), budget_(budget) {
  if (bytes_ == 0) return;
  if (budget_ && !budget_->charge(static_cast<int64_t>(bytes_)))
    throw Error(ErrorCode::budget,
                std::string("memory budget exceeded: ") + zone + " needs " + megabytes(double(bytes_)) + ", " +
                    megabytes(double(budget_->used())) + " of " + megabytes(double(budget_->limit())) + " are in use",
                "raise --ram, or use a shorter context, a smaller batch or a more compressed model");
  data_ = map_anonymous(bytes_, zone);
}

Buffer::~Buffer() {
  if (!data_) return;
  if (budget_) budget_->release(static_cast<int64_t>(bytes_));
  ::munmap(data_, bytes_);
}

}  // namespace thimble
