// Byte-pair encoding: characters are merged pair by pair, lowest rank first, leftmost on ties.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/tokenizer/component.h"
#include "models/tokenizer/trie.h"
#include "models/tokenizer/vocabulary.h"
#include "models/tokenizer/word_cache.h"

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

  void encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const override;
  bool takes_raw_bytes() const override { return takes_raw_bytes_; }
  int32_t size() const override { return vocabulary_.size(); }
  const std::string& piece(int32_t id) const override { return vocabulary_.piece(id); }
  int32_t find(std::string_view piece) const override { return vocabulary_.find(piece); }
  std::string kind() const override { return "BPE"; }
  std::string to_json() const override;

 private:
  struct Symbol {
    int32_t id, previous, next;
  };
  // Places of one rank that wait to be merged, in their order. Most arrive in order and go to `line`; the others to a
  // heap.
  struct Bucket {
    uint32_t rank;
    size_t cursor = 0;
    std::vector<int32_t> line, stragglers;
  };
  struct Space {
    WordCache words, bytes;
    std::vector<int32_t> ids;
    std::vector<Symbol> symbols;
    std::vector<Bucket> buckets;
    std::unordered_map<uint32_t, uint32_t> bucket_of;  // by rank
    std::vector<uint64_t> ranks;                       // heap of rank << 32 | bucket
    std::string spelled;
  };

  void encode_text(std::string_view text, Space& space, std::vector<int32_t>& out) const;
  void encode_segment(std::string_view segment, bool whole, Space& space, std::vector<int32_t>& out) const;
  void encode_word(std::string_view word, Space& space, std::vector<int32_t>& out) const;
  void encode_bytes(std::string_view word, Space& space, std::vector<int32_t>& out) const;
  void encode_symbols(const std::vector<int32_t>& symbols, Space& space, std::vector<int32_t>& out) const;
  void characters(std::string_view word, std::vector<int32_t>& ids) const;
  void merge_few(const int32_t* begin, size_t count, std::vector<int32_t>& out) const;
  void merge_many(const int32_t* begin, size_t count, Space& space, std::vector<int32_t>& out) const;
  int32_t find_character(std::string_view text, char32_t c) const;
  // The merge of a pair: rank << 32 | result, or kNoMerge.
  static constexpr uint64_t kNoMerge = UINT64_MAX;
  uint64_t find_merge(int32_t left, int32_t right) const;
  bool may_join(int32_t left, int32_t right) const;
  bool characters_may_join(char32_t left, char32_t right) const;

  Vocabulary vocabulary_;
  std::vector<BpeMerge> merges_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  bool plain_ = true;       // neither prefix nor suffix
  bool cuts_text_ = false;  // borders can be seen in the text: see encode_text
  bool takes_raw_bytes_ = false;
  std::vector<int32_t> bytes_;          // id of <0xNN>, -1 when absent
  std::vector<int32_t> spelled_bytes_;  // id of the character that stands for a byte in byte-level vocabularies
  std::vector<int32_t> bmp_;            // id of the one-character piece of each code point below U+10000
  struct MergeSlot {
    uint64_t key, value;  // left << 32 | right; rank << 32 | result
  };
  std::vector<MergeSlot> table_;        // open addressing
  std::vector<char32_t> first_, last_;  // of each piece
  std::vector<uint64_t> joins_;         // Bloom filter of (last of left, first of right) over all merges
  std::vector<uint64_t> ascii_joins_;   // the same for two ASCII characters, exact
  ByteTrie frozen_;
  mutable SpacePool<Space> spaces_;
};

}  // namespace thimble
