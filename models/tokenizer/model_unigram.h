// Unigram: of all ways to cut the text into pieces the one with the highest sum of scores.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/tokenizer/component.h"
#include "models/tokenizer/trie.h"
#include "models/tokenizer/vocabulary.h"
#include "models/tokenizer/word_cache.h"

namespace thimble {

struct UnigramOptions {
  int32_t unk_id = -1;
  bool byte_fallback = false;  // unknown characters become their <0xNN> pieces where all of these exist
  // What may not occur in a text's best cut (control and unused pieces of SentencePiece); empty: everything may.
  std::vector<bool> excluded;
  // SentencePiece adds up in float; the tokenizers library, and the GGUF vocabularies, in double.
  bool single_precision = false;
};

class UnigramModel : public TokenModel {
 public:
  // scores[id] belongs to the vocabulary's piece; the lowest one of pieces that are not excluded, less 10, is that of
  // an unknown character. unk_id is -1 or inside the vocabulary.
  UnigramModel(Vocabulary vocabulary, std::vector<double> scores, UnigramOptions options);

  // Errors: input for a character without piece when there is no unknown piece.
  void encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const override;
  int32_t size() const override { return vocabulary_.size(); }
  const std::string& piece(int32_t id) const override { return vocabulary_.piece(id); }
  int32_t find(std::string_view piece) const override { return vocabulary_.find(piece); }
  std::string kind() const override { return "Unigram"; }
  std::string to_json() const override;

  // The score of unknown characters, where it is not the lowest score less 10.
  void set_unknown_score(double score) { unknown_score_ = score; }

 private:
  struct Node {
    double score;
    int32_t id, start;  // start: -1 while nothing ends here
  };
  struct Space {
    WordCache cache;
    std::vector<Node> best;
    std::vector<int32_t> reversed;
  };
  void encode_text(std::string_view text, Space& space, std::vector<int32_t>& ids) const;
  void add_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  std::vector<double> scores_;
  UnigramOptions options_;
  double unknown_score_ = 0;
  ByteTrie trie_;
  std::vector<int32_t> bytes_;
  mutable SpacePool<Space> spaces_;
};

}  // namespace thimble
