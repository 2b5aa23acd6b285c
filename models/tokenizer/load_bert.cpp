// vocab.txt of BERT: one piece a line, the id is the line's number from 0. tokenizer_config.json beside it says what is
// done to the text.
#include "models/tokenizer/model_words.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {

using nlohmann::json;

Tokenizer load_bert_vocabulary(const std::string& path) {
  const std::string content = read_file(path, size_t{256} << 20);
  if (const size_t bad = find_invalid_utf8(content); bad != std::string::npos) {
    throw Error(ErrorCode::input, path + ": byte " + std::to_string(bad) + " is not UTF-8", "this is no vocab.txt");
  }
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    std::string line = content.substr(begin, end - begin);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    pieces.push_back(std::move(line));
    begin = end + 1;
  }
  TokenizerParts parts;
  parts.file = path;
  parts.format = "vocab.txt";
  parts.config = read_config_beside(path);
  static const json kEmpty = json::object();
  const JsonObject config(parts.config.is_null() ? kEmpty : parts.config, path + " (tokenizer_config.json)");
  const bool lowercase = config.get_bool("do_lower_case", true);
  const auto name = [&](const char* key, const char* fallback) {
    const json* value = config.find(key);
    if (value != nullptr && value->is_object() && value->contains("content")) value = &(*value)["content"];
    return value != nullptr && value->is_string() ? value->get<std::string>() : std::string(fallback);
  };
  WordPieceOptions options;
  options.unk_token = name("unk_token", "[UNK]");
  options.max_input_chars_per_word = config.get_int("max_input_chars_per_word", 100, 0, int64_t{1} << 40);
  Vocabulary vocabulary(std::move(pieces));
  json added = json::array();
  std::vector<NamedToken> specials;
  for (const auto& [key, fallback] :
       {std::pair("pad_token", "[PAD]"), std::pair("unk_token", "[UNK]"), std::pair("cls_token", "[CLS]"),
        std::pair("sep_token", "[SEP]"), std::pair("mask_token", "[MASK]")}) {
    specials.push_back({name(key, fallback), vocabulary.find(name(key, fallback))});
    const NamedToken& token = specials.back();
    if (token.id < 0) {
      if (std::string_view(key) == "pad_token" || std::string_view(key) == "mask_token") continue;
      throw Error(ErrorCode::input,
                  path + ": expected a line with the " + std::string(key) + " " + quote_for_message(token.name),
                  "this is no BERT vocabulary, or tokenizer_config.json beside it names other tokens");
    }
    added.push_back(special_token_entry(token.id, token.name));
  }
  parts.model = std::make_unique<WordPieceModel>(std::move(vocabulary), std::move(options));
  append_configured_tokens(added, parts.config, path, *parts.model);
  const json* accents = config.find("strip_accents");
  parts.sections = {{"version", "1.0"},
                    {"added_tokens", added},
                    {"normalizer",
                     {{"type", "BertNormalizer"},
                      {"clean_text", true},
                      {"handle_chinese_chars", config.get_bool("tokenize_chinese_chars", true)},
                      {"strip_accents", accents != nullptr && accents->is_boolean() ? *accents : json()},
                      {"lowercase", lowercase}}},
                    {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
                    {"post_processor", around_template({specials[2]}, {specials[3]})},
                    {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}}};
  return assemble_tokenizer(std::move(parts));
}

}  // namespace thimble
