// Training data: what is learned of a row, what is refused and how, and draws as pure functions of (seed, k).
#include "train/dataset.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "models/tokenizer/bpe_trainer.h"
#include "tensor/error.h"

namespace thimble {
namespace {

// One token per character: what a row gives can be written down.
Tokenizer characters() {
  BpeTrainerOptions options;
  options.vocab_size = 3 + 27;
  options.byte_fallback = false;
  options.character_coverage = 1;
  return train_bpe("abcdefghijklmnopqrstuvwxyz", options);
}

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() : tokenizer_(characters()) {
    std::string pattern = ::testing::TempDir() + "/thimble_dataset_XXXXXX";
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    dir_ = pattern;
  }
  ~DatasetTest() override { std::filesystem::remove_all(dir_); }

  std::string file(const std::string& content) {
    const std::string path = dir_ + "/data.jsonl";
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  Dataset load(const std::string& content, int64_t ctx = 64, Overlong overlong = Overlong::error) {
    return Dataset::from_jsonl(file(content), tokenizer_, ctx, overlong);
  }
  // The learned part of an item as text, EOS shown as '$'.
  std::string learned(const Dataset::Item& item) const {
    std::string text;
    for (int64_t t = std::max<int64_t>(item.label_from, 0); t < item.n; ++t)
      text += item.ids[t] == tokenizer_.eos_id() ? "$" : tokenizer_.token(item.ids[t]);
    return text;
  }
  void refuse(const std::string& content, const std::vector<std::string>& words, int64_t ctx = 64,
              Overlong overlong = Overlong::error) {
    try {
      load(content, ctx, overlong);
      ADD_FAILURE() << "accepted: " << content;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input) << content;
      for (const std::string& word : words)
        EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << word << " in " << e.what();
    }
  }

  Tokenizer tokenizer_;
  std::string dir_;
};

TEST_F(DatasetTest, LearnsCompletionsAndEndOfText) {
  const Dataset d = load(
      "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n\n{\"text\": \"xyz\", \"note\": 1}\n{\"prompt\": \"\", "
      "\"completion\": \"q\"}\n");
  ASSERT_EQ(d.size(), 3);
  EXPECT_EQ(learned(d.item(0)), "cd$");
  EXPECT_EQ(d.item(0).ids[0], tokenizer_.bos_id());
  EXPECT_EQ(d.item(0).n, 1 + 1 + 4 + 1);  // BOS, the space in front, text, EOS
  EXPECT_EQ(learned(d.item(1)), " xyz$");
  EXPECT_EQ(learned(d.item(2)), " q$");
  EXPECT_EQ(d.stats().rows, 3);
  EXPECT_EQ(d.stats().learned_tokens, 3 + 5 + 3);
  EXPECT_EQ(d.stats().longest, 7);
}

TEST_F(DatasetTest, ATokenAcrossTheBoundaryIsLearned) {
  BpeTrainerOptions options;
  options.vocab_size = 3 + 256 + 40;
  std::string text;
  for (int i = 0; i < 50; ++i) text += "say yes to it, say no to it. ";
  const Tokenizer words = train_bpe(text, options);
  // The space at the end of the prompt joins the word behind it.
  const Dataset d =
      Dataset::from_jsonl(file("{\"prompt\": \"say \", \"completion\": \"yes\"}\n"), words, 64, Overlong::error);
  const Dataset::Item item = d.item(0);
  std::string pieces;
  for (int64_t t = item.label_from; t + 1 < item.n; ++t) pieces += words.token(item.ids[t]);
  EXPECT_EQ(pieces, " yes");
  EXPECT_EQ(item.ids[item.n - 1], words.eos_id());
}

TEST_F(DatasetTest, RefusesByLineAndField) {
  const std::string good = "{\"text\": \"abc\"}\n";
  refuse(good + "{\"text\": \n", {"data.jsonl:2"});
  refuse(good + "[1]\n", {"data.jsonl:2"});
  refuse(good + good + "{\"prompt\": \"a\"}\n", {"data.jsonl:3", "completion"});
  refuse("{\"prompt\": \"a\", \"completion\": \"\"}\n", {"data.jsonl:1", "completion", "not empty"});
  refuse("{\"prompt\": \"a\", \"completion\": 5}\n", {"data.jsonl:1", "completion"});
  refuse("{\"text\": \"\"}\n", {"data.jsonl:1", "text"});
  refuse("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}\n", {"data.jsonl:1", "both"});
  refuse("{\"txt\": \"a\"}\n", {"data.jsonl:1", "neither"});
  refuse("{\"text\": \"a\"} trailing\n", {"data.jsonl:1"});
  refuse("{\"text\": \"\xff\"}\n", {"data.jsonl:1"});
  refuse("\n \n", {"no rows"});
  EXPECT_THROW(Dataset::from_jsonl(dir_ + "/absent.jsonl", tokenizer_, 8, Overlong::error), Error);
}

TEST_F(DatasetTest, OverlongPolicies) {
  // 7 and 16 tokens.
  const std::string rows = "{\"text\": \"abcd\"}\n{\"prompt\": \"ab\", \"completion\": \"cdefghijklm\"}\n";
  refuse(rows, {"data.jsonl:2", "16", "8"}, 8);
  const Dataset skipped = load(rows, 8, Overlong::skip);
  EXPECT_EQ(skipped.size(), 1);
  EXPECT_EQ(skipped.stats().skipped, 1);
  const Dataset cut = load(rows, 8, Overlong::truncate);
  EXPECT_EQ(cut.size(), 2);
  EXPECT_EQ(cut.item(1).n, 8);
  EXPECT_EQ(learned(cut.item(1)), "cdef");
  EXPECT_EQ(cut.stats().truncated, 1);
  // A prompt that fills the context leaves nothing to learn.
  const Dataset none = load(rows + "{\"prompt\": \"abcdefgh\", \"completion\": \"z\"}\n", 8, Overlong::truncate);
  EXPECT_EQ(none.size(), 2);
  EXPECT_EQ(none.stats().skipped, 1);
  refuse("{\"text\": \"abcdefghijklm\"}\n", {"none of the 1 rows"}, 8, Overlong::skip);
}

TEST_F(DatasetTest, EveryEpochDrawsEveryExampleOnce) {
  std::vector<std::vector<int32_t>> sequences;
  for (int32_t i = 0; i < 23; ++i) sequences.push_back({i, i, i});
  const Dataset d = Dataset::from_ids(sequences, std::vector<int32_t>(23, 1), 8);
  std::vector<std::vector<int32_t>> epochs;
  for (int64_t e = 0; e < 4; ++e) {
    std::vector<int32_t> order;
    for (int64_t k = 0; k < 23; ++k) order.push_back(d.draw(5, e * 23 + k).ids[0]);
    EXPECT_EQ(std::set<int32_t>(order.begin(), order.end()).size(), 23u);
    epochs.push_back(order);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  // Out of order, from another object, and under another seed.
  const Dataset again = Dataset::from_ids(sequences, std::vector<int32_t>(23, 1), 8);
  for (int64_t k = 91; k >= 0; k -= 7)
    EXPECT_EQ(again.draw(5, k).ids[0], epochs[static_cast<size_t>(k / 23)][static_cast<size_t>(k % 23)]);
  std::vector<int32_t> other;
  for (int64_t k = 0; k < 23; ++k) other.push_back(d.draw(6, k).ids[0]);
  EXPECT_NE(other, epochs[0]);
  EXPECT_EQ(d.draw(5, 3).ids[0], epochs[0][3]);
}

TEST_F(DatasetTest, StreamsGiveWindows) {
  std::vector<int32_t> ids(100);
  for (int32_t i = 0; i < 100; ++i) ids[static_cast<size_t>(i)] = i;
  const Dataset d = Dataset::from_stream(ids, 9);
  EXPECT_TRUE(d.is_stream());
  EXPECT_EQ(d.size(), 11);
  EXPECT_EQ(d.item(10).ids[9], 99);
  std::set<int32_t> offsets;
  for (int64_t k = 0; k < 4000; ++k) {
    const Dataset::Item item = d.draw(1, k);
    EXPECT_EQ(item.n, 10);
    EXPECT_EQ(item.ids[0], d.draw(1, k).ids[0]);
    EXPECT_LE(item.ids[9], 99);
    offsets.insert(item.ids[0]);
  }
  EXPECT_EQ(offsets.size(), 91u);  // every offset, the last one included
  EXPECT_THROW(Dataset::from_stream({1, 2, 3}, 3), Error);
  EXPECT_EQ(Dataset::from_stream({1, 2, 3, 4}, 3).size(), 1);
  EXPECT_THROW(Dataset::from_text(file("abc"), tokenizer_, 9), Error);
  EXPECT_EQ(Dataset::from_text(file("abcdefghi"), tokenizer_, 9).size(), 1);
}

TEST_F(DatasetTest, MicroBatchesShiftLabels) {
  const Dataset d = Dataset::from_ids({{10, 11, 12, 13}, {20, 21}, {30, 31, 32}}, {2, 0, 1}, 8);
  MicroBatch m;
  m.append(d.item(0), 0);
  m.append(d.item(1), 0);
  EXPECT_EQ(m.ids, (std::vector<int32_t>{10, 11, 12, 20}));
  EXPECT_EQ(m.labels, (std::vector<int32_t>{-1, 12, 13, 21}));
  EXPECT_EQ(m.cu_seqlens, (std::vector<int32_t>{0, 3, 4}));
  EXPECT_EQ(m.learned, 3);
  EXPECT_EQ(m.batch(nullptr).n_segments, 0);
  EXPECT_EQ(m.batch(nullptr).n_seqs, 2);
  m.clear();
  // Virtual rows: the last one predicts the first token where that is learned.
  m.append(d.item(1), 2);
  m.append(d.item(2), 2);
  EXPECT_EQ(m.ids, (std::vector<int32_t>{kVirtualToken, kVirtualToken, 20, kVirtualToken, kVirtualToken, 30, 31}));
  EXPECT_EQ(m.labels, (std::vector<int32_t>{-1, 20, 21, -1, -1, 31, 32}));
  EXPECT_EQ(m.learned, 4);
  const int32_t* before = m.ids.data();
  m.clear();
  m.append(d.item(2), 2);
  m.append(d.item(0), 0);
  EXPECT_EQ(m.ids.data(), before);
}

}  // namespace
}  // namespace thimble
