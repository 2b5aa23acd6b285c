// Training a byte-fallback BPE tokenizer on text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/tokenizer/tokenizer.h"

namespace thimble {

struct BpeTrainerOptions {
  int32_t vocab_size = 4096;  // an upper bound: a small text may not have so many pairs worth merging
  std::vector<std::string> specials = {"<unk>", "<s>", "</s>"};  // ids 0, 1, 2: unknown, BOS, EOS; more may follow
  int64_t min_frequency = 2;          // pairs that occur less often are not merged
  bool byte_fallback = true;          // 256 tokens <0x00>..<0xFF> behind the specials
  double character_coverage = 0.9995;  // share of the text's characters that get a piece; the rare rest goes by bytes
  int32_t max_piece_characters = 16;
};

// Ids: specials, bytes, characters (most frequent first), merges in the order they were learnt. Words are a space with the
// run of letters, digits or other characters behind it; merges do not cross words, and encoding needs no
// pre-tokenizer, because a pair that never occurred inside a word has no merge. Spaces stay spaces (not U+2581), so
// decode(encode(x)) == x for every well-formed x when byte_fallback is on. Deterministic: the most frequent pair first, of
// equals the one whose parts sort first.
// Errors: input when a text is not UTF-8 or holds nothing, usage for options that leave no room for characters.
Tokenizer train_bpe(const std::vector<std::string_view>& texts, const BpeTrainerOptions& options = {});
Tokenizer train_bpe(std::string_view text, const BpeTrainerOptions& options = {});

}  // namespace thimble
