// Indexes on disk: what was written is what is read, replacing one leaves no old data, and damage is refused by name.
#include "rag/index_store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tests/scratch_dir.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using testing::ScratchDir;

StoredIndex sample() {
  StoredIndex index;
  index.documents = {{"a", "the red boat\nsails", "2001"}, {"b", "blue \"gull\" na\xC3\xAFve", ""}, {"c", "red gull", "2003-04-05"}};
  return index;
}

size_t files_in(const std::string& dir) {
  size_t n = 0;
  for (const auto& entry : fs::directory_iterator(dir)) n += entry.is_regular_file();
  return n;
}

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

void expect_refused(const std::string& dir, const std::string& word) {
  try {
    read_index(dir);
    ADD_FAILURE() << "accepted; expected a refusal naming " << word;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::input) << e.what();
    EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    EXPECT_FALSE(e.hint().empty());
  }
}

TEST(IndexStore, RoundTrip) {
  const ScratchDir dir;
  StoredIndex index = sample();
  index.seed = ~uint64_t{0};
  for (const char* name : {"bm25", "bm25_okapi", "recency", "random"}) {
    index.retriever = name;
    write_index(dir.path(), index);
    EXPECT_EQ(files_in(dir.path()), 2u);
    const StoredIndex back = read_index(dir.path());
    EXPECT_EQ(back.retriever, name);
    EXPECT_EQ(back.seed, index.seed);
    ASSERT_EQ(back.documents.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(back.documents[i].id, index.documents[i].id);
      EXPECT_EQ(back.documents[i].text, index.documents[i].text);
      EXPECT_EQ(back.documents[i].date, index.documents[i].date);
    }
    const auto a = open_retriever(index)->search("red gull", 3), b = open_retriever(back)->search("red gull", 3);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(a[i].index, b[i].index);
      EXPECT_EQ(a[i].score, b[i].score);
    }
  }
  write_index(dir / "empty", {});
  EXPECT_TRUE(open_retriever(read_index(dir / "empty"))->search("x", 3).empty());
}

TEST(IndexStore, VectorsAreKeptAndOldOnesRemoved) {
  const ScratchDir dir;
  StoredIndex index = sample();
  index.retriever = "dense";
  index.model = "somewhere";
  index.model_sha256 = "abc";
  index.vectors = make_vector_set({{1, 0}, {0, 2}, {-0.5f, 1e-20f}});
  write_index(dir.path(), index);
  EXPECT_EQ(files_in(dir.path()), 3u);
  const StoredIndex back = read_index(dir.path());
  EXPECT_EQ(back.vectors.values, index.vectors.values);
  EXPECT_EQ(back.model_sha256, "abc");
  const EmbedTexts embed = [](const std::vector<std::string>& texts) { return std::vector<std::vector<float>>(texts.size(), {0, 3}); };
  const std::vector<Hit> hits = open_retriever(back, embed)->search("anything", 3);
  EXPECT_EQ(hits[0].index, 1);
  EXPECT_EQ(hits[0].score, 6);
  const EmbedTexts wide = [](const std::vector<std::string>& texts) { return std::vector<std::vector<float>>(texts.size(), {0, 3, 1}); };
  EXPECT_THROW(open_retriever(back, wide)->search("anything", 3), Error);
  put(dir / "mine.txt", "kept");
  index.vectors.values[0] = 2;
  write_index(dir.path(), index);
  EXPECT_EQ(files_in(dir.path()), 4u);
  write_index(dir.path(), sample());  // bm25: no vectors
  EXPECT_EQ(files_in(dir.path()), 3u);
  EXPECT_TRUE(file_exists(dir / "mine.txt"));
}

TEST(IndexStore, EveryPrecisionIsKept) {
  const ScratchDir dir;
  const KernelTable kernels = build_kernel_table(Tier::ref);
  for (const VectorPrecision precision : {VectorPrecision::f32, VectorPrecision::int8, VectorPrecision::binary})
    for (const bool keep : {true, false}) {
      StoredIndex index = sample();
      index.retriever = "dense";
      index.cosine = true;
      index.model = index.model_sha256 = "m";
      index.vectors = make_vector_set({{1, 0, -1}, {0, 2, 3}, {-0.5f, 1e-20f, 4}});
      normalize(index.vectors);
      compress(index.vectors, kernels, precision, keep);
      write_index(dir.path(), index);
      const VectorSet back = read_index(dir.path()).vectors;
      EXPECT_EQ(back.precision, precision);
      EXPECT_EQ(back.values, index.vectors.values);
      EXPECT_EQ(back.values.empty(), precision != VectorPrecision::f32 && !keep);
      EXPECT_EQ(back.codes, index.vectors.codes);
      EXPECT_EQ(back.scales, index.vectors.scales);
      EXPECT_EQ(back.bits, index.vectors.bits);
      EXPECT_EQ(back.center, index.vectors.center);
      const EmbedTexts embed = [](const std::vector<std::string>& texts) { return std::vector<std::vector<float>>(texts.size(), {0, 2, 3}); };
      EXPECT_EQ(open_retriever(read_index(dir.path()), embed)->search("anything", 1)[0].index, 1) << vector_precision_name(precision);
    }
}

// What the first version wrote.
TEST(IndexStore, OldIndexesOpen) {
  const ScratchDir dir;
  StoredIndex index = sample();
  index.retriever = "dense";
  index.model = index.model_sha256 = "m";
  index.vectors = make_vector_set({{1, 0}, {0, 2}, {3, 1}});
  write_index(dir.path(), index);
  nlohmann::json json = nlohmann::json::parse(read_file(dir / "index.json"));
  json["schema"] = "thimble.rag_index/1";
  json.erase("precision");
  json.erase("width");
  put(dir / "index.json", json.dump());
  const StoredIndex back = read_index(dir.path());
  EXPECT_EQ(back.vectors.values, index.vectors.values);
  EXPECT_EQ(back.vectors.width, 2);
}

TEST(IndexStore, DamageIsRefused) {
  const ScratchDir dir;
  expect_refused(dir.path(), "index.json");
  StoredIndex index = sample();
  index.retriever = "dense";
  index.vectors = make_vector_set({{1, 0}, {0, 2}, {3, 1}});
  index.model = index.model_sha256 = "m";
  write_index(dir.path(), index);
  const std::string json = read_file(dir / "index.json");
  const auto with = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json j = nlohmann::json::parse(json);
    change(j);
    put(dir / "index.json", j.dump());
  };
  with([](nlohmann::json& j) { j["schema"] = "thimble.rag_index/3"; });
  expect_refused(dir.path(), "schema");
  with([](nlohmann::json& j) { j["retriever"] = "bm42"; });
  expect_refused(dir.path(), "retriever");
  with([](nlohmann::json& j) { j["seed"] = -1; });
  expect_refused(dir.path(), "seed");
  with([](nlohmann::json& j) { j["documents"]["file"] = "../documents-0.jsonl"; });
  expect_refused(dir.path(), "documents.file");
  with([](nlohmann::json& j) { j["documents"]["file"] = "documents-../../x.jsonl"; });
  expect_refused(dir.path(), "documents.file");
  with([](nlohmann::json& j) { j["documents"]["sha256"] = std::string(64, '0'); });
  expect_refused(dir.path(), "SHA-256");
  with([](nlohmann::json& j) { j["precision"] = "int4"; });
  expect_refused(dir.path(), "precision");
  with([](nlohmann::json& j) { j["precision"] = "int8"; });
  expect_refused(dir.path(), "codes");
  with([](nlohmann::json& j) { j["width"] = 3; });
  expect_refused(dir.path(), "vectors");
  with([](nlohmann::json& j) { j["n_documents"] = 4; });
  expect_refused(dir.path(), "n_documents");
  with([](nlohmann::json& j) { j.erase("vectors"); });
  expect_refused(dir.path(), "vectors");
  put(dir / "index.json", json.substr(0, json.size() / 2));
  expect_refused(dir.path(), "index.json");
  put(dir / "index.json", json);
  EXPECT_EQ(read_index(dir.path()).documents.size(), 3u);
  for (const auto& entry : fs::directory_iterator(dir.path())) {
    const std::string path = entry.path().string();
    if (entry.path().filename() == "index.json") continue;
    const std::string good = read_file(path);
    std::string bad = good;
    bad[bad.size() - 2] = static_cast<char>(bad[bad.size() - 2] ^ 1);
    put(path, bad);
    expect_refused(dir.path(), "SHA-256");
    put(path, good);
  }
  StoredIndex bytes = sample();
  bytes.documents[0].text = "\xff";
  EXPECT_THROW(write_index(dir.path(), bytes), Error);
  EXPECT_EQ(read_index(dir.path()).vectors.count, 3);  // the old one is still there
}

}  // namespace
}  // namespace thimble
