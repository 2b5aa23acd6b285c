// Small tokenizers made in the tests, and a directory that goes away with its test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {

class TempDir {
 public:
  TempDir() {
    static int counter = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("thimble_tok_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    std::filesystem::create_directories(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view content) const {
    // Not write_file, and never truncating: both wait for the disk, thousands of times.
    std::filesystem::remove(file(name));
    std::ofstream out(file(name), std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    return file(name);
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

// A tokenizer.json around a BPE model. vocab: pieces in id order; merges: "a b".
inline Json bpe_json(const std::vector<std::string>& vocab, const std::vector<std::string>& merges = {}) {
  Json model = {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", merges}};
  for (size_t id = 0; id < vocab.size(); ++id) model["vocab"][vocab[id]] = id;
  return {{"version", "1.0"}, {"added_tokens", Json::array()}, {"model", model}};
}

inline Tokenizer load_json(const Json& json) {
  TempDir dir;
  return Tokenizer::load(dir.write("tokenizer.json", json.dump()));
}

// The pieces of an encoding, for expectations that can be read.
inline std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  std::vector<std::string> out;
  for (const int32_t id : tokenizer.encode(text, options)) out.push_back(tokenizer.token(id));
  return out;
}

// Runs f, which must throw, and gives the message and code.
template <typename F>
std::string error_of(F f, ErrorCode code) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

// Deterministic numbers for generated cases.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9E3779B97F4A7C15ULL;
    uint64_t z = state_;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }

 private:
  uint64_t state_;
};

inline std::string shared_path(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + name; }

#define SKIP_WITHOUT(path)                                                \
  if (!std::filesystem::exists(shared_path(path))) {                      \
    GTEST_SKIP() << "third-party data not present: ../shared/" << (path); \
  }

}  // namespace thimble
