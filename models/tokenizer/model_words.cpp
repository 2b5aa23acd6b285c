// WordPiece walks a trie from the start of the word and one of the continuations, so a word costs its length.
#include "models/tokenizer/model_words.h"

#include <algorithm>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {

WordPieceModel::WordPieceModel(Vocabulary vocabulary, WordPieceOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), unk_id_(vocabulary_.find(options_.unk_token)) {
  const std::string& prefix = options_.continuing_subword_prefix;
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string& text = vocabulary_.piece(id);
    starts_.add(text, id);
    if (text.size() > prefix.size() && text.compare(0, prefix.size(), prefix) == 0) {
      continues_.add(std::string_view(text).substr(prefix.size()), id);
    }
  }
}

void WordPieceModel::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  const size_t from = ids.size();
  bool bad = count_characters(word) > options_.max_input_chars_per_word;
  std::string marked;
  if (!options_.word_prefix.empty() && !bad) word = marked = options_.word_prefix + std::string(word);
  for (size_t pos = 0; pos < word.size() && !bad;) {
    const ByteTrie::Match match = (pos == 0 ? starts_ : continues_).longest(word.substr(pos));
    bad = match.length == 0;
    pos += match.length;
    ids.push_back(match.value);
  }
  if (!bad) return;
  ids.resize(from);
  ids.push_back(unk_id_);
}

void WordPieceModel::encode(const Piece* pieces, size_t count, bool, std::vector<int32_t>& ids) const {
  SpacePool<WordCache>::Lease lease(caches_);
  WordCache& cache = *lease;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view word = pieces[i].text;
    if (word.empty()) continue;
    if (word.size() > WordCache::kLongestWord) {
      encode_word(word, ids);
      continue;
    }
    const uint64_t hash = hash_bytes(word.data(), word.size());
    if (cache.find(word, hash, ids)) continue;
    const size_t from = ids.size();
    encode_word(word, ids);
    cache.add(word, hash, ids.data() + from, ids.size() - from);
  }
}

std::string WordPieceModel::to_json() const {
  nlohmann::ordered_json model = {{"type", "WordPiece"},
                                  {"unk_token", options_.unk_token},
                                  {"continuing_subword_prefix", options_.continuing_subword_prefix},
                                  {"max_input_chars_per_word", options_.max_input_chars_per_word},
                                  {"vocab", nlohmann::ordered_json::object()}};
  if (!options_.word_prefix.empty()) {
    // Back to the spelling with ##; pieces that are neither (special tokens) stay.
    model["continuing_subword_prefix"] = "##";
  }
  std::string out = model.dump(2);
  out.resize(out.rfind("{}"));
  out += "{";
  const char* separator = "\n";
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    std::string piece = vocabulary_.piece(id);
    if (piece.empty()) continue;
    const std::string& mark = options_.word_prefix;
    if (!mark.empty() && id != unk_id_ && !(piece.front() == '[' && piece.back() == ']' && piece.size() > 2)) {
      piece = piece.compare(0, mark.size(), mark) == 0 && piece.size() > mark.size() ? piece.substr(mark.size())
                                                                                     : "##" + piece;
    }
    out += separator + ("      " + nlohmann::json(piece).dump()) + ": " + std::to_string(id);
    separator = ",\n";
  }
  return out + "\n    }\n  }";
}

WordLevelModel::WordLevelModel(Vocabulary vocabulary, std::string unk_token)
    : vocabulary_(std::move(vocabulary)), unk_token_(std::move(unk_token)), unk_id_(vocabulary_.find(unk_token_)) {}

void WordLevelModel::encode(const Piece* pieces, size_t count, bool, std::vector<int32_t>& ids) const {
  for (size_t i = 0; i < count; ++i) {
    const std::string_view word = pieces[i].text;
    if (word.empty()) continue;
    const int32_t id = vocabulary_.find(word);
    if (id < 0 && unk_id_ < 0) {
      throw Error(ErrorCode::input,
                  "the word " + quote_for_message(word) + " is not in the vocabulary, which has no unknown token " +
                      quote_for_message(unk_token_),
                  "add the unknown token to the vocabulary of the tokenizer file");
    }
    ids.push_back(id >= 0 ? id : unk_id_);
  }
}

std::string WordLevelModel::to_json() const {
  std::string out = "{\n    \"type\": \"WordLevel\",\n    \"vocab\": {";
  const char* separator = "\n";
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_.piece(id).empty()) continue;
    out += separator + ("      " + nlohmann::json(vocabulary_.piece(id)).dump()) + ": " + std::to_string(id);
    separator = ",\n";
  }
  return out + "\n    },\n    \"unk_token\": " + nlohmann::json(unk_token_).dump() + "\n  }";
}

}  // namespace thimble
