// Every seed and every input that once did harm goes through the entry functions of the fuzz targets, in every build.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "tensor/file.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> files_of(const std::string& folder) {
  std::vector<std::string> files;
  if (fs::is_directory(folder))
    for (const auto& item : fs::directory_iterator(folder)) files.push_back(item.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

std::string folder_of(const char* kind, const std::string& target) {
  return std::string(THIMBLE_SOURCE_DIR) + "/tests/fuzz/" + kind + "/" + target;
}

class Fuzz : public ::testing::TestWithParam<Target> {};

TEST_P(Fuzz, SeedsAreReadAndMostAreAccepted) {
  const std::vector<std::string> files = files_of(folder_of("corpus", GetParam().name));
  ASSERT_FALSE(files.empty()) << "corpus/" << GetParam().name << " has no seed";
  size_t accepted = 0;
  for (const std::string& file : files) {
    SCOPED_TRACE(file);
    bool taken = false;
    EXPECT_NO_THROW(taken = GetParam().entry(read_file(file)));
    accepted += taken;
  }
  EXPECT_GE(accepted * 2, files.size()) << "seeds that the parser refuses teach the fuzzer little";
}

TEST_P(Fuzz, InputsThatOnceFailed) {
  for (const std::string& file : files_of(folder_of("regressions", GetParam().name))) {
    SCOPED_TRACE(file);
    EXPECT_NO_THROW(GetParam().entry(read_file(file)));
  }
}

// Bytes flipped, cut and doubled in the seeds: a short walk of what the fuzzers do for longer.
TEST_P(Fuzz, DamagedSeeds) {
  uint64_t state = 1;
  const auto below = [&](size_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>(state >> 33) % n;
  };
  for (const std::string& file : files_of(folder_of("corpus", GetParam().name))) {
    const std::string seed = read_file(file);
    if (seed.empty()) continue;
    for (int round = 0; round < 40; ++round) {
      std::string bytes = seed;
      const size_t at = below(bytes.size());
      if (round % 4 == 0)
        bytes.resize(at);
      else if (round % 4 == 1)
        bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(16)));
      else
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      SCOPED_TRACE(file + ", round " + std::to_string(round));
      EXPECT_NO_THROW(GetParam().entry(bytes));
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<Target>& target) { return target.param.name; }
INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, ::testing::ValuesIn(targets()), name_of);

// Inputs of a target that no longer exists would never be read.
TEST(FuzzFolders, BelongToTargets) {
  std::set<std::string> names;
  for (const Target& target : targets()) names.insert(target.name);
  for (const char* kind : {"corpus", "regressions"})
    for (const std::string& folder : files_of(folder_of(kind, "")))
      EXPECT_EQ(names.count(fs::path(folder).filename().string()), 1u) << folder;
}

TEST(FuzzTarget, RefusalsAreToldFromFailures) {
  EXPECT_TRUE(accepts([] {}));
  EXPECT_FALSE(accepts([] { throw Error(ErrorCode::input, "f: bad"); }));
  EXPECT_THROW(accepts([] { throw Error(ErrorCode::internal, "bug"); }), Error);
  EXPECT_THROW(accepts([] { throw std::out_of_range("x"); }), std::out_of_range);
  EXPECT_THROW(expect(false, "p"), std::logic_error);
  EXPECT_EQ(split_at_nul(std::string_view("a\0b\0c", 5)).second, std::string_view("b\0c", 3));
}

}  // namespace
}  // namespace thimble::fuzz
