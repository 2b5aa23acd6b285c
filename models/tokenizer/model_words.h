// The models that look whole words up: WordPiece cuts a word greedily, WordLevel knows it or not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/tokenizer/component.h"
#include "models/tokenizer/trie.h"
#include "models/tokenizer/vocabulary.h"
#include "models/tokenizer/word_cache.h"

namespace thimble {

struct WordPieceOptions {
  std::string unk_token = "[UNK]";
  std::string continuing_subword_prefix = "##";
  int64_t max_input_chars_per_word = 100;  // longer words are unknown
  // GGUF spells it the other way round: a word begins with U+2581, what continues it has no mark. Then every word is
  // looked up with this prefix before it, and continuing_subword_prefix is "".
  std::string word_prefix;
};

// The longest piece first; a word with a rest that no piece begins is unknown as a whole.
class WordPieceModel : public TokenModel {
 public:
  // The unknown token is in the vocabulary.
  WordPieceModel(Vocabulary vocabulary, WordPieceOptions options);

  void encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const override;
  int32_t size() const override { return vocabulary_.size(); }
  const std::string& piece(int32_t id) const override { return vocabulary_.piece(id); }
  int32_t find(std::string_view piece) const override { return vocabulary_.find(piece); }
  std::string kind() const override { return "WordPiece"; }
  std::string to_json() const override;

 private:
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  Vocabulary vocabulary_;
  WordPieceOptions options_;
  int32_t unk_id_;
  ByteTrie starts_, continues_;  // the latter without the prefix
  mutable SpacePool<WordCache> caches_;
};

class WordLevelModel : public TokenModel {
 public:
  WordLevelModel(Vocabulary vocabulary, std::string unk_token);

  // Errors: input for a word that is unknown when the vocabulary has no unknown token.
  void encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const override;
  int32_t size() const override { return vocabulary_.size(); }
  const std::string& piece(int32_t id) const override { return vocabulary_.piece(id); }
  int32_t find(std::string_view piece) const override { return vocabulary_.find(piece); }
  std::string kind() const override { return "WordLevel"; }
  std::string to_json() const override;

 private:
  Vocabulary vocabulary_;
  std::string unk_token_;
  int32_t unk_id_;
};

}  // namespace thimble
