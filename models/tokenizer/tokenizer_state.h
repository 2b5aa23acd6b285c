// What loaders hand to the tokenizer: a model and the other sections in the spelling of tokenizer.json.
#pragma once

#include <memory>
#include <string>

#include "models/tokenizer/added_tokens.h"
#include "models/tokenizer/component.h"
#include "models/tokenizer/tokenizer.h"

namespace thimble {

struct TokenizerParts {
  std::string file;                   // for messages
  std::string format;                 // for kind(): "tokenizer.json", "SentencePiece", ...
  nlohmann::json sections;            // tokenizer.json without "model"
  nlohmann::json config;              // tokenizer_config.json; null when there is none
  std::unique_ptr<TokenModel> model;
  // llama2.c: one space is dropped from the piece behind BOS or at the start. `sections` then says Strip, which is the same
  // for a text that begins with BOS.
  bool strip_after_bos = false;
};

Tokenizer assemble_tokenizer(TokenizerParts parts);

// Loaders by format.
Tokenizer load_tokenizer_json(const std::string& path);
Tokenizer load_vocab_merges(const std::string& vocab_path);
Tokenizer load_llama2c_tokenizer(const std::string& path);
Tokenizer load_sentencepiece(const std::string& path);

// tokenizer_config.json beside the file; null when there is none.
nlohmann::json read_config_beside(const std::string& path);

// Sections that several loaders write, in the spelling of tokenizer.json.
nlohmann::json special_token_entry(int32_t id, const std::string& content);
nlohmann::json bos_template(const std::string& bos, int32_t id);  // BOS, then the text
// A space before the text, byte fallback, and that space dropped again when decoding; spaces stay spaces.
nlohmann::json plain_space_sections(nlohmann::json added_tokens, const std::string& bos, int32_t bos_id);

// Ids of a file may have holes, but not so many that a table indexed by id explodes: true when an id is plausible for a
// vocabulary of so many entries.
inline bool plausible_id(int64_t id, size_t entries) {
  return id >= 0 && id < (int64_t{1} << 27) && id <= static_cast<int64_t>(entries) * 4 + (1 << 16);
}

}  // namespace thimble
