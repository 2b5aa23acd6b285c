// llama2.c tokenizer files: int32 max_token_length, then per token f32 score, int32 length, bytes, to the end of the file.
// Ids 0, 1, 2 are unk, BOS, EOS. The space is a space, not U+2581. Byte pieces <0xNN> are optional.
#include <cstring>

#include "models/tokenizer/scored_pieces.h"
#include "models/tokenizer/tokenizer_state.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxFile = size_t{64} << 20;

}  // namespace

Tokenizer load_llama2c_tokenizer(const std::string& path) {
  const std::string data = read_file(path, kMaxFile);
  size_t pos = 0;
  const auto read = [&](auto& value, const std::string& field) {
    if (data.size() - pos < sizeof(value)) {
      throw Error(ErrorCode::input, path + ": " + field + ": expected " + std::to_string(sizeof(value)) +
                                        " bytes at offset " + std::to_string(pos) + ", found the end of the file",
                  "the file is truncated or is no llama2.c tokenizer");
    }
    std::memcpy(&value, data.data() + pos, sizeof(value));
    pos += sizeof(value);
  };
  int32_t max_token_length = 0;
  read(max_token_length, "max_token_length");
  if (max_token_length <= 0 || max_token_length > (1 << 20)) {
    throw Error(ErrorCode::input, path + ": max_token_length: expected 1 to 1048576, found " +
                                      std::to_string(max_token_length),
                "this is no llama2.c tokenizer file");
  }
  std::vector<ScoredPiece> pieces;
  while (pos < data.size()) {
    const std::string token = "token " + std::to_string(pieces.size());
    ScoredPiece piece;
    int32_t length = 0;
    read(piece.score, token + " score");
    read(length, token + " length");
    if (length < 0 || static_cast<size_t>(length) > data.size() - pos) {
      throw Error(ErrorCode::input, path + ": " + token + " length: expected 0 to " + std::to_string(data.size() - pos) +
                                        ", found " + std::to_string(length),
                  "the file is truncated or is no llama2.c tokenizer");
    }
    piece.text = data.substr(pos, static_cast<size_t>(length));
    pos += static_cast<size_t>(length);
    if (pieces.empty()) piece.type = PieceType::unknown;
    if (pieces.size() == 1 || pieces.size() == 2) piece.type = PieceType::control;
    pieces.push_back(std::move(piece));
  }
  if (pieces.size() < 3 || pieces[0].text.empty() || pieces[1].text.empty() || pieces[2].text.empty()) {
    throw Error(ErrorCode::input, path + ": expected at least the tokens unk, BOS and EOS, found " +
                                      std::to_string(pieces.size()) + " tokens",
                "this is no llama2.c tokenizer file");
  }
  TokenizerParts parts;
  parts.file = path;
  parts.format = "llama2.c";
  parts.strip_after_bos = true;
  nlohmann::json added = nlohmann::json::array();
  for (int32_t id = 0; id < 3; ++id) added.push_back(special_token_entry(id, pieces[static_cast<size_t>(id)].text));
  const std::string& bos = pieces[1].text;
  parts.sections = plain_space_sections(std::move(added), bos, 1);
  parts.config = {{"bos_token", bos}, {"eos_token", pieces[2].text}};
  parts.model = make_scored_bpe(pieces, path);
  return assemble_tokenizer(std::move(parts));
}

}  // namespace thimble
