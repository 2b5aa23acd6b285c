// Byte-pair encoding: characters are merged pair by pair, lowest rank first, leftmost on ties.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/tokenizer/component.h"
#include "models/tokenizer/vocabulary.h"

namespace thimble {

struct BpeMerge {
  int32_t left, right, result;
  uint32_t rank;
};

struct BpeOptions {
  std::string unk_token;  // "" for none: unknown characters vanish
  std::string continuing_subword_prefix, end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  std::vector<int32_t> frozen;  // user-defined pieces: cut out of the text first, longest first, never merged
};

class BpeModel : public TokenModel {
 public:
  // Merges of one pair: the last one counts. The ids of all merges lie inside the vocabulary.
  BpeModel(Vocabulary vocabulary, std::vector<BpeMerge> merges, BpeOptions options);

  void encode(const std::vector<Piece>& pieces, std::vector<int32_t>& ids) const override;
  int32_t size() const override { return vocabulary_.size(); }
  const std::string& piece(int32_t id) const override { return vocabulary_.piece(id); }
  int32_t find(std::string_view piece) const override { return vocabulary_.find(piece); }
  std::string kind() const override { return "BPE"; }
  std::string to_json() const override;

 private:
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Scratch {
    std::vector<int32_t> ids;
    std::vector<Symbol> symbols;
  };
  using Cache = std::unordered_map<std::string, std::vector<int32_t>>;

  void encode_word(std::string_view word, Scratch& scratch, Cache& cache, std::vector<int32_t>& out) const;
  void characters(std::string_view word, std::vector<int32_t>& ids) const;
  void merge(const int32_t* begin, size_t count, Scratch& scratch, std::vector<int32_t>& out) const;
  int32_t find_character(std::string_view text, char32_t c) const;
  // The merge of a pair: rank << 32 | result, or kNoMerge.
  static constexpr uint64_t kNoMerge = UINT64_MAX;
  uint64_t find_merge(int32_t left, int32_t right) const;
  bool may_join(int32_t left, int32_t right) const;

  Vocabulary vocabulary_;
  std::vector<BpeMerge> merges_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  bool plain_ = true;                  // neither prefix nor suffix
  std::vector<int32_t> bytes_;         // id of <0xNN>, -1 when absent
  std::vector<int32_t> bmp_;           // id of the one-character piece of each code point below U+10000
  std::vector<uint64_t> keys_, values_;  // open addressing, key = left << 32 | right
  std::vector<char32_t> first_, last_;   // of each piece
  std::vector<uint64_t> joins_;          // Bloom filter of (last of left, first of right) over all merges
  size_t longest_frozen_ = 0;
  std::unordered_map<std::string_view, int32_t> frozen_;
  mutable std::mutex mutex_;
  mutable Cache cache_;
};

}  // namespace thimble
