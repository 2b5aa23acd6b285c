// What loaders hand to the tokenizer: a model and the other sections in the spelling of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/tokenizer/added_tokens.h"
#include "models/tokenizer/component.h"
#include "models/tokenizer/tokenizer.h"

namespace thimble {

struct TokenizerParts {
  std::string file;         // for messages
  std::string format;       // for kind(): "tokenizer.json", "SentencePiece", ...
  nlohmann::json sections;  // tokenizer.json without "model"
  nlohmann::json config;    // tokenizer_config.json; null when there is none
  std::unique_ptr<TokenModel> model;
  // llama2.c: one space is dropped from the piece behind BOS or at the start. `sections` then says Strip, which is the
  // same for a text that begins with BOS.
  bool strip_after_bos = false;
  // Used instead of the one that `sections` describes, where tokenizer.json can only say nearly the same.
  std::unique_ptr<Normalizer> normalizer;
};

Tokenizer assemble_tokenizer(TokenizerParts parts);

// Loaders by format.
Tokenizer load_tokenizer_json(const std::string& path);
Tokenizer load_vocab_merges(const std::string& vocab_path);
Tokenizer load_llama2c_tokenizer(const std::string& path);
Tokenizer load_sentencepiece(const std::string& path);
Tokenizer load_bert_vocabulary(const std::string& path);
Tokenizer load_tiktoken(const std::string& path);
bool is_tiktoken_file(const std::string& path);  // by its first line
Tokenizer load_gguf_tokenizer(const std::string& path);

// tokenizer_config.json beside the file; null when there is none.
nlohmann::json read_config_beside(const std::string& path);

// Sections that several loaders write, in the spelling of tokenizer.json.
nlohmann::json special_token_entry(int32_t id, const std::string& content);
nlohmann::json plain_token_entry(int32_t id, const std::string& content);  // looked for in the raw text, not special
// The added tokens that tokenizer_config.json (added_tokens_decoder) and added_tokens.json beside `path` name, behind
// those that are in `added` already. Ids that the model gives to other pieces are left out.
void append_configured_tokens(nlohmann::json& added, const nlohmann::json& config, const std::string& path,
                              const TokenModel& model);
// A pre-tokenizer that isolates the matches of each expression in turn and spells bytes.
nlohmann::json split_and_spell(const std::vector<std::string>& regexes);
nlohmann::json byte_level_section(bool add_prefix_space, bool use_regex);
// Ids before and behind the text.
struct NamedToken {
  std::string name;
  int32_t id;
};
nlohmann::json around_template(const std::vector<NamedToken>& before, const std::vector<NamedToken>& behind);
nlohmann::json bos_template(const std::string& bos, int32_t id);  // BOS, then the text
// A space before the text, byte fallback, and that space dropped again when decoding; spaces stay spaces.
nlohmann::json plain_space_sections(nlohmann::json added_tokens, const std::string& bos, int32_t bos_id);

// Ids of a file may have holes, but not so many that a table indexed by id explodes: true when an id is plausible for a
// vocabulary of so many entries.
inline bool plausible_id(int64_t id, size_t entries) {
  return id >= 0 && id < (int64_t{1} << 27) && id <= static_cast<int64_t>(entries) * 4 + (1 << 16);
}

}  // namespace thimble
