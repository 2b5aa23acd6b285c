// SentencePiece models (protobuf) of the BPE and Unigram kinds. Only the fields that change ids are read; their numbers
// are those of sentencepiece_model.proto. Every length is checked against what remains, so a damaged file ends in an
// Error.
#include <cmath>
#include <cstring>
#include <limits>

#include "models/tokenizer/base64.h"
#include "models/tokenizer/model_unigram.h"
#include "models/tokenizer/normalizers_text.h"
#include "models/tokenizer/scored_pieces.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxFile = size_t{256} << 20;
constexpr const char* kSpaceMark = "\xE2\x96\x81";

// Walks the fields of one protobuf message.
class Message {
 public:
  Message(std::string_view data, const std::string& file, std::string name)
      : data_(data), file_(file), name_(std::move(name)) {}

  bool next() {
    if (pos_ == data_.size()) return false;
    const uint64_t key = varint();
    field_ = key >> 3;
    wire_ = static_cast<int>(key & 7);
    if (field_ == 0) fail("field number 0");
    switch (wire_) {
      case 0:
        number_ = varint();
        break;
      case 1:
        bytes_ = take(8);
        break;
      case 2: {
        const uint64_t length = varint();
        if (length > data_.size() - pos_) fail("a length of " + std::to_string(length) + " beyond the end");
        bytes_ = take(static_cast<size_t>(length));
        break;
      }
      case 5:
        bytes_ = take(4);
        break;
      default:
        fail("wire type " + std::to_string(wire_));
    }
    return true;
  }
  uint64_t field() const { return field_; }
  uint64_t number() const { return wire_ == 0 ? number_ : (fail("expected a number"), 0); }
  bool flag() const { return number() != 0; }
  std::string_view bytes() const { return wire_ == 2 ? bytes_ : (fail("expected bytes"), bytes_); }
  float real() const {
    if (wire_ != 5) fail("expected a float");
    float value = 0;
    std::memcpy(&value, bytes_.data(), sizeof(value));
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::input, file_ + ": " + name_ + " field " + std::to_string(field_) + ": " + what,
                "the file is damaged or is no SentencePiece model");
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (pos_ == data_.size()) fail("the file ends inside a number");
      const auto byte = static_cast<unsigned char>(data_[pos_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number of more than 64 bits");
  }
  std::string_view take(size_t count) {
    if (count > data_.size() - pos_) fail("the file ends inside a value");
    const std::string_view part = data_.substr(pos_, count);
    pos_ += count;
    return part;
  }
  std::string_view data_, bytes_;
  const std::string& file_;
  std::string name_;
  size_t pos_ = 0;
  uint64_t field_ = 0, number_ = 0;
  int wire_ = 0;
};

struct Model {
  std::vector<ScoredPiece> pieces;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
  uint64_t type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  bool suffix_space = false;
  bool byte_fallback = false;
  std::string_view charsmap;
};

Model read_model(std::string_view data, const std::string& file) {
  Model model;
  Message root(data, file, "ModelProto");
  while (root.next()) {
    if (root.field() == 1) {
      Message message(root.bytes(), file, "piece " + std::to_string(model.pieces.size()));
      ScoredPiece piece;
      while (message.next()) {
        if (message.field() == 1) piece.text = message.bytes();
        if (message.field() == 2) piece.score = message.real();
        if (message.field() == 3) {
          if (message.number() < 1 || message.number() > 6) {
            throw Error(ErrorCode::input,
                        file + ": piece " + std::to_string(model.pieces.size()) + " type: expected 1 to 6, found " +
                            std::to_string(message.number()),
                        "the file is damaged");
          }
          piece.type = static_cast<PieceType>(message.number());
        }
      }
      model.pieces.push_back(std::move(piece));
    } else if (root.field() == 2) {
      Message trainer(root.bytes(), file, "trainer_spec");
      while (trainer.next()) {
        if (trainer.field() == 3) model.type = trainer.number();
        if (trainer.field() == 24) model.suffix_space = trainer.flag();
        if (trainer.field() == 35) model.byte_fallback = trainer.flag();
      }
    } else if (root.field() == 3) {
      Message normalizer(root.bytes(), file, "normalizer_spec");
      while (normalizer.next()) {
        if (normalizer.field() == 2) model.charsmap = normalizer.bytes();
        if (normalizer.field() == 3) model.add_dummy_prefix = normalizer.flag();
        if (normalizer.field() == 4) model.remove_extra_whitespaces = normalizer.flag();
        if (normalizer.field() == 5) model.escape_whitespaces = normalizer.flag();
      }
    }
  }
  return model;
}

// Scores as SentencePiece's own Viterbi sees them.
std::unique_ptr<TokenModel> make_unigram(const Model& model, const std::string& file) {
  const auto fail = [&](size_t id, const std::string& what) {
    throw Error(ErrorCode::input, file + ": piece " + std::to_string(id) + ": " + what, "the file is damaged");
  };
  std::vector<std::string> texts;
  std::vector<double> scores;
  UnigramOptions options;
  options.single_precision = true;
  options.byte_fallback = model.byte_fallback;
  float lowest = std::numeric_limits<float>::max(), highest = std::numeric_limits<float>::lowest();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const ScoredPiece& piece = model.pieces[id];
    if (find_invalid_utf8(piece.text) != std::string::npos) fail(id, "expected UTF-8");
    if (!std::isfinite(piece.score)) fail(id, "expected a finite score");
    if (piece.type == PieceType::unknown) {
      if (options.unk_id >= 0) fail(id, "a second unknown piece");
      options.unk_id = static_cast<int32_t>(id);
    }
    if (piece.type == PieceType::normal) {
      lowest = std::min(lowest, piece.score);
      highest = std::max(highest, piece.score);
    }
    texts.push_back(piece.text);
    scores.push_back(piece.score);
    options.excluded.push_back(piece.type != PieceType::normal && piece.type != PieceType::user_defined);
  }
  if (options.unk_id < 0) fail(model.pieces.size(), "expected a piece of the unknown type");
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type == PieceType::user_defined) {
      scores[id] = static_cast<double>(static_cast<float>(texts[id].size()) * highest) - 0.1;
    }
  }
  auto made = std::make_unique<UnigramModel>(Vocabulary(std::move(texts)), std::move(scores), std::move(options));
  made->set_unknown_score(static_cast<double>(lowest - 10.0F));
  return made;
}

}  // namespace

Tokenizer load_sentencepiece(const std::string& path) {
  const std::string data = read_file(path, kMaxFile);
  const Model model = read_model(data, path);
  const auto unsupported = [&](const std::string& field, const std::string& what) {
    throw Error(ErrorCode::unsupported, path + ": " + field + ": " + what + " is not offered",
                "use the model's tokenizer.json instead");
  };
  if (model.pieces.empty()) {
    throw Error(ErrorCode::input, path + ": expected pieces, found none", "this is no SentencePiece model");
  }
  static const char* const kTypes[] = {"", "unigram", "BPE", "word", "char"};
  if (model.type != 1 && model.type != 2) {
    unsupported("trainer_spec.model_type", model.type <= 4 && model.type > 0
                                               ? std::string("the model type ") + kTypes[model.type]
                                               : "type " + std::to_string(model.type));
  }

  TokenizerParts parts;
  parts.file = path;
  parts.format = "SentencePiece";
  parts.config = read_config_beside(path);
  using nlohmann::json;
  json added = json::array();
  std::string bos;
  int32_t bos_id = -1;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const ScoredPiece& piece = model.pieces[id];
    if (piece.type != PieceType::control && piece.type != PieceType::unknown) continue;
    if (piece.text.empty()) continue;
    if (piece.type == PieceType::control && (piece.text == "<s>" || piece.text == "<bos>") && bos_id < 0) {
      bos = piece.text;
      bos_id = static_cast<int32_t>(id);
    }
    added.push_back(special_token_entry(static_cast<int32_t>(id), piece.text));
  }
  const std::string mark = model.escape_whitespaces ? kSpaceMark : " ";
  json normalizers = json::array(), decoders = json::array();
  const auto replace = [](const char* kind, const std::string& pattern, const std::string& content) {
    return json{{"type", "Replace"}, {"pattern", json::object({{kind, pattern}})}, {"content", content}};
  };
  if (!model.charsmap.empty()) {
    normalizers.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", encode_base64(model.charsmap)}});
  }
  if (model.remove_extra_whitespaces) {
    normalizers.push_back(replace("Regex", "\\A +| +\\z", ""));
    normalizers.push_back(replace("Regex", " {2,}", " "));
  }
  if (model.add_dummy_prefix && model.suffix_space) {
    normalizers.push_back(replace("Regex", "(?<=[\\s\\S])\\z", mark));
  } else if (model.add_dummy_prefix) {
    normalizers.push_back({{"type", "Prepend"}, {"prepend", mark}});
  }
  if (model.escape_whitespaces) {
    normalizers.push_back(replace("String", " ", mark));
    decoders.push_back(replace("String", mark, " "));
  }
  decoders.push_back(json{{"type", "ByteFallback"}});
  decoders.push_back(json{{"type", "Fuse"}});
  if (model.add_dummy_prefix) {
    const int behind = model.suffix_space ? 1 : 0;
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1 - behind}, {"stop", behind}});
  }
  parts.sections = {{"version", "1.0"},
                    {"added_tokens", added},
                    {"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
                    {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}}};
  // BOS goes first unless the config says otherwise, as in the Llama family, the reason why such files are read.
  const auto flag = parts.config.is_object() ? parts.config.find("add_bos_token") : parts.config.end();
  const bool declined =
      parts.config.is_object() && flag != parts.config.end() && flag->is_boolean() && !flag->get<bool>();
  if (bos_id >= 0 && !declined) {
    parts.sections["post_processor"] = bos_template(bos, bos_id);
  }
  SentencePieceRules rules;
  rules.charsmap = Charsmap(model.charsmap, path + ": normalizer_spec.precompiled_charsmap");
  rules.add_dummy_prefix = model.add_dummy_prefix;
  rules.remove_extra_whitespaces = model.remove_extra_whitespaces;
  rules.escape_whitespaces = model.escape_whitespaces;
  rules.whitespace_as_suffix = model.suffix_space;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const ScoredPiece& piece = model.pieces[id];
    if (piece.type == PieceType::user_defined && find_invalid_utf8(piece.text) == std::string::npos) {
      rules.user_defined.add(piece.text, static_cast<int32_t>(id));
    }
  }
  parts.normalizer = make_sentencepiece_normalizer(std::move(rules));
  if (model.type == 1) {
    parts.model = make_unigram(model, path);
  } else {
    parts.model = make_scored_bpe(model.pieces, path);
  }
  append_configured_tokens(parts.sections["added_tokens"], parts.config, path, *parts.model);
  return assemble_tokenizer(std::move(parts));
}

}  // namespace thimble
