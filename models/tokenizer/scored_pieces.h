// Vocabularies whose merge order is a score per piece instead of a list of merges: SentencePiece BPE, llama2.c.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/tokenizer/model_bpe.h"

namespace thimble {

enum class PieceType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct ScoredPiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::normal;
};

// Every way of cutting a normal piece into two known pieces becomes a merge; equal scores share a rank, so the leftmost
// goes first. Frozen pieces and unknown token are set from the types. Errors (input): a piece that is not UTF-8 or
// occurs twice, a score that is no number. Unsupported: unused pieces, pieces above 1024 bytes.
std::unique_ptr<BpeModel> make_scored_bpe(const std::vector<ScoredPiece>& pieces, const std::string& file);

}  // namespace thimble
