// Random numbers, parallel loops, environment and errors.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tensor/env.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/rng.h"
#include "tensor/sha256.h"

namespace thimble {
namespace {

using Block = std::array<uint32_t, 4>;

// Known answers published with Random123.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t f = 0xffffffff;
  EXPECT_EQ(philox4x32({f, f, f, f}, {f, f}), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, SeekAndStreams) {
  Philox a(7, 3), b(7, 3), other(7, 4), seed(8, 3);
  std::vector<uint32_t> first;
  for (int i = 0; i < 23; ++i) first.push_back(a.next_u32());
  EXPECT_EQ(a.index(), 23u);
  for (uint64_t at : {0, 1, 4, 6, 11, 20, 22}) {
    b.seek(at);
    EXPECT_EQ(b.index(), at);
    EXPECT_EQ(b.next_u32(), first[at]) << at;
  }
  EXPECT_NE(other.next_u32(), first[0]);
  EXPECT_NE(seed.next_u32(), first[0]);
}

TEST(Philox, Distributions) {
  Philox rng(1, 1);
  double mean = 0, square = 0, normal_mean = 0, normal_square = 0, low = 1, high = 0;
  std::vector<int> counts(7);
  constexpr int kDraws = 70000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = rng.uniform(), z = rng.normal();
    low = std::min(low, u);
    high = std::max(high, u);
    mean += u / kDraws;
    square += u * u / kDraws;
    normal_mean += z / kDraws;
    normal_square += z * z / kDraws;
    ++counts[rng.below(7)];
  }
  EXPECT_GE(low, 0);
  EXPECT_LT(high, 1);
  EXPECT_NEAR(mean, 0.5, 0.006);  // 5 standard errors
  EXPECT_NEAR(square, 1.0 / 3, 0.006);
  EXPECT_NEAR(normal_mean, 0, 0.02);
  EXPECT_NEAR(normal_square, 1, 0.03);
  for (int c : counts) EXPECT_NEAR(c, kDraws / 7, 500);
  EXPECT_EQ(rng.below(1), 0u);
}

TEST(Parallel, EveryChunkOnce) {
  for (int threads : {1, 2, 3, 9})
    for (int64_t chunks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(chunks));
      std::atomic<bool> thread_in_range{true};
      parallel_for(threads, chunks, [&](int64_t c, int thread) {
        ++seen[size_t(c)];
        if (thread < 0 || thread >= threads) thread_in_range = false;
      });
      for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
      EXPECT_TRUE(thread_in_range);
    }
}

TEST(Parallel, NestedLoopsRunSerially) {
  std::vector<std::atomic<int>> seen(60);
  std::atomic<bool> same_thread{true};
  parallel_for(3, 6, [&](int64_t outer, int) {
    const auto id = std::this_thread::get_id();
    parallel_for(3, 10, [&](int64_t inner, int thread) {
      ++seen[size_t(outer * 10 + inner)];
      if (std::this_thread::get_id() != id || thread != 0) same_thread = false;
    });
  });
  for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
  EXPECT_TRUE(same_thread);
}

TEST(Parallel, ThreadNumbersAreDistinctAtATime) {
  std::atomic<int> inside[4] = {};
  std::atomic<bool> clash{false};
  parallel_for(4, 200, [&](int64_t, int thread) {
    if (++inside[thread] != 1) clash = true;
    std::this_thread::yield();
    --inside[thread];
  });
  EXPECT_FALSE(clash);
  EXPECT_GE(available_threads(), 1);
  EXPECT_EQ(std::string(openmp_runtime()).compare(0, 3, "lib"), 0);
}

// A thread that is put onto the CPU of the first one may leave it, and may go anywhere afterwards.
TEST(Parallel, ThreadsThatPartKeepTheirAffinity) {
  cpu_set_t all;
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  if (CPU_COUNT(&all) < 2 || available_threads() < 2) GTEST_SKIP() << "one CPU";
  std::atomic<int> put{0}, changed{0}, rounds{0};
  while ((rounds < 40 || put < 50) && rounds++ < 5000) {
    const int first = ::sched_getcpu();
    parallel_for(2, 64, [&](int64_t, int thread) {
      const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
      while (std::chrono::steady_clock::now() < until) {
      }
      if (thread == 0) return;
      cpu_set_t here;
      CPU_ZERO(&here);
      CPU_SET(static_cast<size_t>(first), &here);
      put += ::sched_setaffinity(0, sizeof here, &here) == 0;
      ::sched_setaffinity(0, sizeof all, &all);
    });
    parallel_for(2, 64, [&](int64_t, int) {
      cpu_set_t mine;
      changed += ::sched_getaffinity(0, sizeof mine, &mine) != 0 || !CPU_EQUAL(&mine, &all);
    });
  }
  EXPECT_GE(put, 50);
  EXPECT_EQ(changed, 0);
}

// What a process leaves that is killed while libomp starts (an empty file, or one of zeros) under the id of this one. Ends
// with 0 if a loop runs all the same and no such file is there after it.
[[noreturn]] void run_over_leftover(off_t bytes) {
  const std::string name = "/__KMP_REGISTERED_LIB_" + std::to_string(::getpid()) + "_" + std::to_string(::getuid());
  const int file = ::shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ::ftruncate(file, bytes) != 0) ::_exit(2);
  ::close(file);
  std::atomic<int> sum{0};
  parallel_for(2, 10, [&](int64_t c, int) { sum += static_cast<int>(c); });
  if (sum != 45) ::_exit(3);
  ::_exit(::shm_open(name.c_str(), O_RDONLY, 0) < 0 ? 0 : 4);
}

TEST(Parallel, StartsOverWhatADeadProcessLeft) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process that has not started OpenMP yet
  EXPECT_EXIT(run_over_leftover(0), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(run_over_leftover(1024), testing::ExitedWithCode(0), "");
}

TEST(Env, ReportsUnknownVariables) {
  ::setenv("THIMBLE_TEST_VALUE", "12", 1);
  EXPECT_EQ(env_get("TEST_VALUE"), "12");
  EXPECT_FALSE(env_get("TEST_ABSENT").has_value());
  const auto has = [](const std::vector<std::string>& names, const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  EXPECT_TRUE(has(env_unknown({}), "THIMBLE_TEST_VALUE"));
  EXPECT_FALSE(has(env_unknown({"TEST_VALUE"}), "THIMBLE_TEST_VALUE"));
  ::setenv("THIMBLE_TEST_VALUE", "", 1);
  EXPECT_EQ(env_get("TEST_VALUE"), "");  // set, though empty
  ::unsetenv("THIMBLE_TEST_VALUE");
  EXPECT_FALSE(has(env_unknown({}), "THIMBLE_TEST_VALUE"));
  std::set<std::string> names;
  for (const EnvVariable& v : env_registry()) {
    EXPECT_TRUE(names.insert(v.name).second) << v.name;
    EXPECT_GT(std::string(v.meaning).size(), 5u) << v.name;
  }
  EXPECT_TRUE(names.count("ISA") && names.count("KERNEL"));
}

TEST(Error, CodesAreExitStatuses) {
  const int codes[] = {int(ErrorCode::internal),    int(ErrorCode::usage),       int(ErrorCode::input),    int(ErrorCode::budget),
                       int(ErrorCode::unsupported), int(ErrorCode::interrupted), int(ErrorCode::mismatch), int(ErrorCode::partial)};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(codes[i], i + 1);
  const Error e(ErrorCode::input, "file x", "do y");
  EXPECT_STREQ(e.what(), "file x");
  EXPECT_EQ(e.hint(), "do y");
  try {
    THIMBLE_CHECK(1 + 1 == 3);
    FAIL() << "a false check passed";
  } catch (const Error& check) {
    EXPECT_EQ(check.code(), ErrorCode::internal);
    EXPECT_NE(std::string(check.what()).find("1 + 1 == 3"), std::string::npos) << check.what();
    EXPECT_NE(std::string(check.what()).find("base_test.cpp"), std::string::npos) << check.what();
  }
}

// FIPS 180-2's examples.
TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 pieces;
  for (int i = 0; i < 1000000; i += 1000) pieces.update(std::string(1000, 'a'));
  EXPECT_EQ(pieces.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace
}  // namespace thimble
