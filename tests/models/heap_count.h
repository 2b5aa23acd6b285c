// Counts heap allocations: the allocator's entry points are replaced in the executable that includes this (in one source
// only) and count while a test asks for it; operator new ends there as well. Not under sanitizers, nor outside glibc.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define THIMBLE_TEST_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define THIMBLE_TEST_SANITIZER 1
#endif

#if defined(__GLIBC__) && !defined(THIMBLE_TEST_SANITIZER)
#define THIMBLE_TEST_COUNTS 1
namespace {
std::atomic<bool> g_counting{false};
std::atomic<long> g_allocations{0};
void count_one() {
  if (g_counting.load(std::memory_order_relaxed)) g_allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) noexcept {
  count_one();
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) noexcept {
  count_one();
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) noexcept {
  count_one();
  return __libc_realloc(p, n);
}
void* memalign(size_t alignment, size_t n) noexcept {
  count_one();
  return __libc_memalign(alignment, n);
}
void* aligned_alloc(size_t alignment, size_t n) noexcept {
  count_one();
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** out, size_t alignment, size_t n) noexcept {
  count_one();
  *out = __libc_memalign(alignment, n);
  return *out ? 0 : ENOMEM;
}
}

namespace thimble::testing {

// Allocations that body makes, on any thread.
template <class Body>
long allocations(Body&& body) {
  g_allocations = 0;
  g_counting = true;
  body();
  g_counting = false;
  return g_allocations;
}

}  // namespace thimble::testing
#endif
