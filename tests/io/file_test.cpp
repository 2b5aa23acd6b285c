// tensor/file and tensor/sha256: replacement on commit, mappings, limits, and behaviour under failing system calls.
#include "tensor/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "models/io/safetensors.h"
#include "tensor/sha256.h"
#include "tests/io/support.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define THIMBLE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define THIMBLE_TEST_SANITIZED 1
#endif
#endif

namespace thimble {
namespace {

using namespace io_test;

std::vector<std::string> names_in(const std::string& dir) {
  std::vector<std::string> names;
  for (const auto& e : std::filesystem::directory_iterator(dir)) names.push_back(e.path().filename().string());
  return names;
}

TEST(AtomicFile, OldFileStaysUntilCommit) {
  const ScratchDir dir;
  const std::string path = dir / "f";
  write_file(path, "old");
  {
    AtomicFile f(path);
    f.write("new");
    EXPECT_EQ(get_file(path), "old");
  }
  EXPECT_EQ(get_file(path), "old");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});
  {
    AtomicFile f(path);
    const std::string large(3 << 20, 'x');
    f.write("head");
    f.write(large);
    f.write("tail");
    f.write_at(0, "HE", 2);  // the later call wins, also over what write() still buffers
    f.commit();
    const std::string got = get_file(path);
    EXPECT_EQ(got.size(), large.size() + 8);
    EXPECT_EQ(got.substr(0, 4), "HEad");
    EXPECT_EQ(got.substr(got.size() - 5), "xtail");
    expect_error(ErrorCode::internal, {"check failed"}, [&] { f.write("more"); });
  }
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});
}

TEST(AtomicFile, RefusesAndKeepsSpecialTargets) {
  const ScratchDir dir;
  expect_error(ErrorCode::input, {"no/such", "cannot create"}, [&] { AtomicFile f(dir / "no/such"); });
  expect_error(ErrorCode::input, {dir.path(), "directory"}, [&] { AtomicFile f(dir.path()); });
  write_file("/dev/null", "gone");
  struct stat info {};
  ASSERT_EQ(::stat("/dev/null", &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode));
  std::error_code full;
  if (std::filesystem::exists("/dev/full", full))
    expect_error(ErrorCode::budget, {"/dev/full", "free some space"}, [] { write_file("/dev/full", "x"); });
}

TEST(Files, ReadingAndFolders) {
  const ScratchDir dir;
  write_file(dir / "ten", "0123456789");
  EXPECT_EQ(read_file(dir / "ten"), "0123456789");
  EXPECT_EQ(read_file(dir / "ten", 10).size(), 10u);
  expect_error(ErrorCode::input, {"ten", "limit of 9 bytes"}, [&] { read_file(dir / "ten", 9); });
  expect_error(ErrorCode::input, {"cannot read"}, [&] { read_file(dir.path()); });
  expect_error(ErrorCode::input, {"cannot open", "spelling"}, [&] { read_file(dir / "none"); });
  make_directories(dir / "a/b/c");
  make_directories(dir / "a/b/c");
  EXPECT_TRUE(is_directory(dir / "a/b/c"));
  EXPECT_FALSE(is_directory(dir / "ten"));
  EXPECT_TRUE(file_exists(dir / "ten"));
  EXPECT_FALSE(file_exists(dir / "ten/x"));
  expect_error(ErrorCode::input, {"ten/x", "folder"}, [&] { make_directories(dir / "ten/x"); });
  expect_error(ErrorCode::input, {"ten", "folder"}, [&] { make_directories(dir / "ten"); });
  EXPECT_EQ(join_path("a", "b"), "a/b");
  EXPECT_EQ(join_path("a/", "b"), "a/b");
  EXPECT_EQ(join_path("", "b"), "b");
  EXPECT_EQ(join_path("a", "/b"), "/b");
}

TEST(MappedFile, MapsMovesAndNotices) {
  const ScratchDir dir;
  write_file(dir / "m", "mapped");
  write_file(dir / "empty", "");
  MappedFile a(dir / "m");
  EXPECT_EQ(a.size(), 6u);
  MappedFile b(std::move(a));
  EXPECT_EQ(a.size(), 0u);
  EXPECT_EQ(static_cast<char>(b.data()[5]), 'd');
  EXPECT_EQ(b.read(1, 3), "app");
  a = std::move(b);
  EXPECT_EQ(a.read(0, 6), "mapped");
  EXPECT_EQ(MappedFile(dir / "empty").size(), 0u);
  EXPECT_NO_THROW(a.check_not_truncated());
  ASSERT_EQ(::truncate((dir / "m").c_str(), 3), 0);
  expect_error(ErrorCode::input, {dir / "m", "truncated"}, [&] { a.check_not_truncated(); });
  expect_error(ErrorCode::input, {dir / "m", "truncated"}, [&] { a.read(0, 6); });
  expect_error(ErrorCode::internal, {}, [&] { a.read(4, 3); });
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::input, {"not a regular file"}, [&] { MappedFile f(dir / "pipe"); });
}

// Bytes of this program that are pages of files.
int64_t resident_file_bytes() {
  long total = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> total >> resident >> shared;
  return int64_t{shared} * ::sysconf(_SC_PAGESIZE);
}

TEST(MappedFile, PagesAreGivenBackAndReadAgain) {
  const ScratchDir dir;
  constexpr int64_t kBytes = int64_t{8} << 20;
  std::string content(kBytes, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 131 >> 7);
  write_file(dir / "m", content);
  const MappedFile file(dir / "m");
  const int64_t before = resident_file_bytes();
  EXPECT_EQ(std::memcmp(file.data(), content.data(), content.size()), 0);
  EXPECT_GE(resident_file_bytes(), before + kBytes / 2);
  file.release_pages();
  EXPECT_LE(resident_file_bytes(), before + kBytes / 4);
  EXPECT_EQ(std::memcmp(file.data(), content.data(), content.size()), 0);
  MappedFile().release_pages();
}

TEST(MappedFileDeathTest, TruncationUnderUseNamesTheFile) {
#ifdef THIMBLE_TEST_SANITIZED
  GTEST_SKIP() << "the sanitizer has its own handler";
#endif
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const ScratchDir dir;
  const std::string path = dir / "m";
  write_file(path, std::string(100'000, 'x'));
  EXPECT_EXIT(
      {
        install_sigbus_handler();
        MappedFile f(path);
        if (::truncate(path.c_str(), 10) != 0) std::abort();
        volatile char c = static_cast<char>(f.data()[90'000]);
        (void)c;
      },
      ::testing::ExitedWithCode(3), "m: the file was truncated while it was in use");
}

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string million(1'000'000, 'a');
  const std::string digest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
  Sha256 pieces;
  for (size_t at = 0, n = 1; at < million.size(); at += n, n = n * 3 % 7919 + 1)
    pieces.update(std::string_view(million).substr(at, n));
  EXPECT_EQ(pieces.hex(), digest);
  expect_error(ErrorCode::internal, {"check failed"}, [&] { pieces.hex(); });
  const ScratchDir dir;
  write_file(dir / "f", million + million.substr(0, 500'000));
  EXPECT_EQ(sha256_file(dir / "f"), sha256_hex(million + million.substr(0, 500'000)));
  expect_error(ErrorCode::input, {"none", "cannot open"}, [&] { sha256_file(dir / "none"); });
  expect_error(ErrorCode::input, {"cannot read"}, [&] { sha256_file(dir.path()); });
}

// Runs the writer with the given seed while call number nth fails; nth = 0: nothing fails.
int run_writer(const std::string& path, int seed, const std::string& kind, int nth) {
  std::string command;
  if (nth > 0)
    command = "LD_PRELOAD='" THIMBLE_WRITE_FAULT "' FAULT_KIND=" + kind + " FAULT_NTH=" + std::to_string(nth) + " ";
  command += "'" THIMBLE_FAULT_WRITER "' '" + path + "' " + std::to_string(seed) + " 2>'" + path + ".err'";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(WriteFaults, EveryCallFailsOnce) {
#ifdef THIMBLE_TEST_SANITIZED
  GTEST_SKIP() << "a sanitizer's runtime must be the first library";
#endif
  const ScratchDir dir, reference;
  const std::string path = dir / "w.safetensors";
  ASSERT_EQ(run_writer(reference / "old", 1, "", 0), 0);
  ASSERT_EQ(run_writer(reference / "new", 2, "", 0), 0);
  const std::string old_bytes = get_file(reference / "old"), new_bytes = get_file(reference / "new");
  ASSERT_NE(old_bytes, new_bytes);
  ASSERT_GT(old_bytes.size(), 1'200'000u);
  for (const std::string kind : {"ENOSPC", "EDQUOT", "EACCES", "EIO"}) {
    const bool space = kind == "ENOSPC" || kind == "EDQUOT";
    int nth = 1;
    for (; nth < 100; ++nth) {
      SCOPED_TRACE(kind + " at call " + std::to_string(nth));
      put_file(path, old_bytes);
      const int code = run_writer(path, 2, kind, nth);
      const std::string message = get_file(path + ".err");
      std::filesystem::remove(path + ".err");
      EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"w.safetensors"});
      if (code == 0) {
        EXPECT_EQ(get_file(path), new_bytes);
        break;
      }
      EXPECT_EQ(code, space ? 4 : 3);
      EXPECT_NE(message.find("w.safetensors: cannot "), std::string::npos) << message;
      EXPECT_EQ(get_file(path), old_bytes);
    }
    // Header, two tensors, fsync, rename: each must have had its turn.
    EXPECT_EQ(nth, 6) << kind;
  }
}

TEST(WriteFaults, ShortAndInterruptedWritesLoseNothing) {
#ifdef THIMBLE_TEST_SANITIZED
  GTEST_SKIP() << "a sanitizer's runtime must be the first library";
#endif
  const ScratchDir dir, reference;
  ASSERT_EQ(run_writer(reference / "new", 2, "", 0), 0);
  for (const int nth : {1, 2, 3, 7}) {
    ASSERT_EQ(run_writer(dir / "w", 2, "SHORT", nth), 0);
    EXPECT_EQ(get_file(dir / "w"), get_file(reference / "new")) << nth;
  }
  for (const int nth : {1, 2, 3}) {
    ASSERT_EQ(run_writer(dir / "w", 2, "EINTR", nth), 0);
    EXPECT_EQ(get_file(dir / "w"), get_file(reference / "new")) << nth;
  }
}

}  // namespace
}  // namespace thimble
