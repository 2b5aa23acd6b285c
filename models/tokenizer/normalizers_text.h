// Normalizers that loaders use directly, besides the table of normalizers.cpp.
#pragma once

#include <memory>
#include <string>

#include "models/tokenizer/charsmap.h"
#include "models/tokenizer/component.h"
#include "models/tokenizer/trie.h"

namespace thimble {

// What a SentencePiece model does to the text. tokenizer.json can only say nearly the same: its Precompiled looks
// replacements up by grapheme.
struct SentencePieceRules {
  Charsmap charsmap;
  ByteTrie user_defined;  // pieces that are left as they are
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;     // spaces become U+2581
  bool whitespace_as_suffix = false;  // the dummy goes behind the text
};

std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceRules rules);

struct BertRules {
  bool clean_text = true, chinese_characters = true, strip_accents = true, lowercase = true;
};

std::unique_ptr<Normalizer> make_bert_normalizer(const BertRules& rules);

// charsmap by grapheme cluster, as the tokenizers library does it.
std::unique_ptr<Normalizer> make_precompiled_normalizer(Charsmap charsmap);

}  // namespace thimble
