// The "model" section of tokenizer.json. Another model is one class (its own file) and one row here.
#include <algorithm>

#include "models/tokenizer/model_bpe.h"
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
    merges.push_back(
        read_merge(vocabulary, left, right, options.continuing_subword_prefix.size(), rank, at));
    ++rank;
  }
  return std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
}

struct Row {
  const char* type;
  std::unique_ptr<TokenModel> (*make)(const ComponentSource&);
};

const Row kTable[] = {
    {"BPE", make_bpe},
};

}  // namespace

std::unique_ptr<TokenModel> make_token_model(const nlohmann::json& section, const std::string& file,
                                             const std::string& where) {
  const JsonObject object(section, file, where);
  // Old files leave the type out; merges exist in BPE only.
  if (!object.has("type") && object.has("merges")) return make_bpe(ComponentSource{object, where});
  return make_component<TokenModel>(section, file, where, kTable);
}

}  // namespace thimble
