// The "model" section of tokenizer.json. Another model is one class (its own file) and one row here.
#include <algorithm>
#include <cmath>

#include "models/tokenizer/model_bpe.h"
#include "models/tokenizer/model_unigram.h"
#include "models/tokenizer/model_words.h"
#include "models/tokenizer/tokenizer_state.h"
#include "tensor/error.h"

namespace thimble {
namespace {

std::vector<std::string> read_vocabulary(const ComponentSource& source) {
  const auto vocab = source.object.object("vocab");
  if (!vocab) source.object.fail("vocab", "an object of pieces and ids");
  const nlohmann::json& entries = vocab->json();
  std::vector<std::string> pieces;
  for (const auto& [piece, value] : entries.items()) {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX) ||
        !plausible_id(value.get<int64_t>(), entries.size())) {
      vocab->fail(quote_for_message(piece), "an id in proportion to the size of the vocabulary");
    }
    const auto id = static_cast<size_t>(value.get<int64_t>());
    if (id >= pieces.size()) pieces.resize(id + 1);
    if (!pieces[id].empty()) vocab->fail(quote_for_message(piece), "an id that no other piece has");
    pieces[id] = piece;
  }
  return pieces;
}

BpeMerge read_merge(const Vocabulary& vocabulary, std::string_view left, std::string_view right, size_t prefix,
                    uint32_t rank, const std::string& at) {
  const auto find = [&](std::string_view piece) {
    const int32_t id = piece.empty() ? -1 : vocabulary.find(piece);
    if (id < 0) {
      throw Error(ErrorCode::input, at + ": expected pieces of the vocabulary, found " + quote_for_message(piece),
                  "the merges and the vocabulary belong to different tokenizers");
    }
    return id;
  };
  BpeMerge merge{find(left), find(right), -1, rank};
  const std::string_view tail = right.substr(std::min(prefix, right.size()));
  merge.result = find(std::string(left) + std::string(tail));
  return merge;
}

std::unique_ptr<TokenModel> make_bpe(const ComponentSource& source) {
  Vocabulary vocabulary(read_vocabulary(source));
  BpeOptions options;
  options.unk_token = source.object.get_string("unk_token", "");
  options.continuing_subword_prefix = source.object.get_string("continuing_subword_prefix", "");
  options.end_of_word_suffix = source.object.get_string("end_of_word_suffix", "");
  options.fuse_unk = source.object.get_bool("fuse_unk", false);
  options.byte_fallback = source.object.get_bool("byte_fallback", false);
  options.ignore_merges = source.object.get_bool("ignore_merges", false);
  if (!options.unk_token.empty() && vocabulary.find(options.unk_token) < 0) {
    source.object.fail("unk_token", "a piece of the vocabulary");
  }
  std::vector<BpeMerge> merges;
  uint32_t rank = 0;
  for (const auto& item : source.list("merges")) {
    const std::string at = source.at("merges[" + std::to_string(rank) + "]");
    const auto malformed = [&]() -> Error {
      return Error(ErrorCode::input, at + ": expected \"left right\" or [\"left\", \"right\"]",
                   "the file is damaged or was made by another program");
    };
    std::string left, right;
    if (item.is_string()) {
      const auto& line = item.get_ref<const std::string&>();
      if (line.compare(0, 8, "#version") == 0) continue;
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) throw malformed();
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get<std::string>();
      right = item[1].get<std::string>();
    } else {
      throw malformed();
    }
    merges.push_back(read_merge(vocabulary, left, right, options.continuing_subword_prefix.size(), rank, at));
    ++rank;
  }
  return std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
}

std::unique_ptr<TokenModel> make_wordpiece(const ComponentSource& source) {
  Vocabulary vocabulary(read_vocabulary(source));
  WordPieceOptions options;
  options.unk_token = source.object.get_string("unk_token", options.unk_token);
  options.continuing_subword_prefix =
      source.object.get_string("continuing_subword_prefix", options.continuing_subword_prefix);
  options.max_input_chars_per_word =
      source.object.get_int("max_input_chars_per_word", options.max_input_chars_per_word, 0, int64_t{1} << 40);
  if (vocabulary.find(options.unk_token) < 0) source.object.fail("unk_token", "a piece of the vocabulary");
  return std::make_unique<WordPieceModel>(std::move(vocabulary), std::move(options));
}

std::unique_ptr<TokenModel> make_wordlevel(const ComponentSource& source) {
  Vocabulary vocabulary(read_vocabulary(source));
  return std::make_unique<WordLevelModel>(std::move(vocabulary), source.object.get_string("unk_token", "<unk>"));
}

std::unique_ptr<TokenModel> make_unigram(const ComponentSource& source) {
  std::vector<std::string> pieces;
  std::vector<double> scores;
  for (const auto& item : source.list("vocab")) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number() ||
        !std::isfinite(item[1].get<double>())) {
      source.object.fail("vocab[" + std::to_string(pieces.size()) + "]", "a piece and its score");
    }
    pieces.push_back(item[0].get<std::string>());
    scores.push_back(item[1].get<double>());
  }
  if (pieces.empty()) source.object.fail("vocab", "at least one piece");
  UnigramOptions options;
  options.unk_id =
      static_cast<int32_t>(source.object.get_int("unk_id", -1, 0, static_cast<int64_t>(pieces.size()) - 1));
  options.byte_fallback = source.object.get_bool("byte_fallback", false);
  return std::make_unique<UnigramModel>(Vocabulary(std::move(pieces)), std::move(scores), std::move(options));
}

struct Row {
  const char* type;
  std::unique_ptr<TokenModel> (*make)(const ComponentSource&);
};

const Row kTable[] = {
    {"BPE", make_bpe},
    {"Unigram", make_unigram},
    {"WordPiece", make_wordpiece},
    {"WordLevel", make_wordlevel},
};

}  // namespace

std::unique_ptr<TokenModel> make_token_model(const nlohmann::json& section, const std::string& file,
                                             const std::string& where) {
  const JsonObject object(section, file, where);
  // Old files leave the type out. Merges exist in BPE only, a list of scores in Unigram only.
  if (!object.has("type")) {
    if (object.has("merges")) return make_bpe(ComponentSource{object, where});
    if (const auto* vocab = object.find("vocab"); vocab != nullptr && vocab->is_array()) {
      return make_unigram(ComponentSource{object, where});
    }
    if (object.has("max_input_chars_per_word")) return make_wordpiece(ComponentSource{object, where});
  }
  return make_component<TokenModel>(section, file, where, kTable);
}

}  // namespace thimble
