// Arenas, buffers and the budget that both charge.
#include "tensor/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "tensor/error.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define THIMBLE_TEST_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define THIMBLE_TEST_ASAN 1
#endif

namespace thimble {
namespace {

Error error_of(Arena& arena, size_t bytes, const char* zone) {
  try {
    arena.allocate(bytes, zone);
  } catch (const Error& e) {
    return e;
  }
  return Error(ErrorCode::internal, "nothing was thrown");
}

TEST(Arena, IsAStack) {
  MemoryBudget budget;
  Arena arena("test", &budget);
  char* a = static_cast<char*>(arena.allocate(1, "a"));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0u);
  EXPECT_EQ(arena.used(), 64u);
  const Arena::Mark mark = arena.mark();
  float* b = arena.floats(100, "b");
  EXPECT_EQ(reinterpret_cast<char*>(b), a + 64);
  b[99] = 1;
  EXPECT_EQ(arena.used(), 64u + 448u);
  {
    const ArenaScope inner(arena);
    arena.allocate(1000, "c");
    EXPECT_EQ(arena.used(), 64u + 448u + 1024u);
  }
  EXPECT_EQ(arena.used(), 64u + 448u);
  arena.reset(mark);
  EXPECT_EQ(arena.used(), 64u);
  EXPECT_EQ(arena.floats(3, "d"), b);  // the same place again
  EXPECT_EQ(arena.peak(), 64u + 448u + 1024u);
  EXPECT_EQ(budget.used(), static_cast<int64_t>(arena.peak()));  // pages stay committed after a reset
  EXPECT_NE(arena.allocate(0, "nothing"), nullptr);
}

TEST(Arena, ReturnsItsChargeWhenItEnds) {
  MemoryBudget budget(1 << 20);
  {
    Arena arena("test", &budget);
    arena.allocate(5000, "a");
    EXPECT_EQ(budget.used(), 5056);
  }
  EXPECT_EQ(budget.used(), 0);
}

TEST(Arena, BudgetErrorNamesTheLargestZones) {
  MemoryBudget budget(10'000'000);
  Arena arena("activations", &budget);
  arena.allocate(1'000'000, "small");
  arena.allocate(3'000'000, "large");
  arena.allocate(3'000'000, "large");
  const size_t used = arena.used();
  const Error e = error_of(arena, 4'000'000, "logits");
  EXPECT_EQ(e.code(), ErrorCode::budget);
  const std::string message = e.what();
  for (const char* word : {"activations", "4.0 MB for logits", "10.0 MB", "large 6.0 MB", "small 1.0 MB"})
    EXPECT_NE(message.find(word), std::string::npos) << word << " is not in: " << message;
  EXPECT_LT(message.find("large 6.0"), message.find("small 1.0")) << message;
  EXPECT_FALSE(e.hint().empty());
  EXPECT_EQ(arena.used(), used);           // nothing happened
  EXPECT_NE(arena.allocate(1000, "ok"), nullptr);
}

TEST(Arena, SharedBudgetAndAddressSpaceAreLimits) {
  MemoryBudget budget(1'000'000);
  Arena first("first", &budget), second("second", &budget);
  first.allocate(700'000, "a");
  EXPECT_EQ(error_of(second, 700'000, "b").code(), ErrorCode::budget);
  Arena tiny("tiny", nullptr, 1 << 16);
  EXPECT_EQ(error_of(tiny, (1 << 16) + 1, "b").code(), ErrorCode::budget);
  EXPECT_EQ(error_of(tiny, ~size_t{0} - 10, "overflow").code(), ErrorCode::budget);
  EXPECT_NE(tiny.allocate(1 << 16, "all"), nullptr);
}

#ifdef THIMBLE_TEST_ASAN
TEST(ArenaDeathTest, ResetPoisons) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Arena arena("test", nullptr);
  const Arena::Mark mark = arena.mark();
  volatile float* p = arena.floats(16, "a");
  p[0] = 1;
  arena.reset(mark);
  EXPECT_DEATH(p[0] = 2, "use-after-poison");
}
#endif

TEST(Buffer, IsZeroedAlignedAndCharged) {
  MemoryBudget budget(1 << 20);
  {
    Buffer a(1000, &budget, "one");
    EXPECT_EQ(budget.used(), 1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
    for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(static_cast<const char*>(a.data())[i], 0);
    Buffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);  // NOLINT: a moved-from buffer is empty
    EXPECT_EQ(b.bytes(), 1000u);
    b = Buffer(500, &budget, "two");
    EXPECT_EQ(b.bytes(), 500u);
    try {
      Buffer c(2 << 20, &budget, "third");
      FAIL() << "over the budget";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::budget);
      EXPECT_NE(std::string(e.what()).find("third"), std::string::npos) << e.what();
    }
  }
  EXPECT_EQ(budget.used(), 0);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

}  // namespace
}  // namespace thimble
