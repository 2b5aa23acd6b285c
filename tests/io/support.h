// Shared by the tests of this folder: a scratch directory, raw files and error assertions.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "tensor/error.h"
#include "tests/scratch_dir.h"

namespace thimble::io_test {

using testing::ScratchDir;

// A fresh file: some file systems flush a file that is overwritten in place, which would make 20,000 of them slow.
inline void put_file(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string get_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

inline std::string shared(const std::string& path) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + path; }

#define SKIP_WITHOUT(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << (path)

// f() throws Error with this code, and message + hint contain every part.
template <class F>
void expect_error(ErrorCode code, std::initializer_list<std::string> parts, F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    for (const std::string& part : parts)
      EXPECT_NE((std::string(e.what()) + " | " + e.hint()).find(part), std::string::npos)
          << "missing: " << part << "\nin: " << e.what() << " | " << e.hint();
    return;
  }
  ADD_FAILURE() << "no Error was thrown, expected one about: " << (parts.size() ? *parts.begin() : "");
}

// splitmix64: the same sequence everywhere.
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  size_t below(size_t n) { return static_cast<size_t>((*this)() % n); }
};

// One to three random edits of a byte string: flips, replacements by bytes the grammar cares about, cuts, doublings.
inline std::string mutate(std::string bytes, Random& random, size_t focus) {
  static const char kSpice[] = "{}[]\",:0123456789-.eE\\ntFU\x80\xff\0 ";
  for (size_t edits = 1 + random.below(3); edits > 0 && !bytes.empty(); --edits) {
    const size_t at = random.below(std::min(bytes.size(), focus));
    switch (random.below(6)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
        break;
      case 1:
        bytes[at] = kSpice[random.below(sizeof kSpice - 1)];
        break;
      case 2:
        bytes.insert(at, 1, kSpice[random.below(sizeof kSpice - 1)]);
        break;
      case 3:
        bytes.erase(at, 1 + random.below(8));
        break;
      case 4:
        bytes.resize(random.below(bytes.size() + 1));
        break;
      default:
        bytes.insert(at, bytes.substr(random.below(bytes.size()), random.below(24)));
        break;
    }
  }
  return bytes;
}

}  // namespace thimble::io_test
