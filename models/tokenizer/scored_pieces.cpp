// Scores -> ranks, pieces -> merges.
#include "models/tokenizer/scored_pieces.h"

#include <algorithm>
#include <cmath>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr size_t kMaxPiece = 1024;  // every cut of a piece is looked up, so the work grows with the square

}  // namespace

std::unique_ptr<BpeModel> make_scored_bpe(const std::vector<ScoredPiece>& pieces, const std::string& file) {
  const auto fail = [&](ErrorCode code, size_t id, const std::string& what) {
    throw Error(code, file + ": piece " + std::to_string(id) + " " + quote_for_message(pieces[id].text) + ": " + what,
                "the file is damaged or of a kind that is not offered");
  };
  BpeOptions options;
  std::vector<std::string> texts;
  std::vector<float> scores;
  size_t bytes = 0;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const ScoredPiece& piece = pieces[id];
    if (find_invalid_utf8(piece.text) != std::string::npos) fail(ErrorCode::input, id, "expected UTF-8");
    if (!std::isfinite(piece.score)) fail(ErrorCode::input, id, "expected a finite score");
    if (piece.text.size() > kMaxPiece) fail(ErrorCode::unsupported, id, "expected at most 1024 bytes");
    if (piece.type == PieceType::unused) fail(ErrorCode::unsupported, id, "unused pieces are not offered");
    if (piece.type == PieceType::unknown) options.unk_token = piece.text;
    if (piece.type == PieceType::user_defined && !piece.text.empty()) {
      options.frozen.push_back(static_cast<int32_t>(id));
    }
    if (byte_token_value(piece.text) >= 0) ++bytes;
    if (piece.type == PieceType::normal) scores.push_back(piece.score);
    texts.push_back(piece.text);
  }
  options.fuse_unk = true;
  options.byte_fallback = bytes == 256;
  std::sort(scores.begin(), scores.end(), [](float a, float b) { return a > b; });
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  Vocabulary vocabulary(std::move(texts));
  for (size_t id = 0; id < pieces.size(); ++id) {
    const int32_t found = vocabulary.find(pieces[id].text);
    if (found >= 0 && found != static_cast<int32_t>(id)) {
      fail(ErrorCode::input, id, "occurs twice, first as id " + std::to_string(found));
    }
  }
  std::vector<BpeMerge> merges;
  const auto mergeable = [&](std::string_view text) {
    const int32_t id = vocabulary.find(text);
    return id >= 0 && pieces[static_cast<size_t>(id)].type == PieceType::normal ? id : -1;
  };
  for (size_t id = 0; id < pieces.size(); ++id) {
    const ScoredPiece& piece = pieces[id];
    if (piece.type != PieceType::normal) continue;
    const auto place = std::lower_bound(scores.begin(), scores.end(), piece.score, [](float a, float b) { return a > b; });
    const auto rank = static_cast<uint32_t>(place - scores.begin());
    const std::string_view text = piece.text;
    for (size_t cut = 0; cut < text.size();) {
      next_code_point(text, cut);
      if (cut >= text.size()) break;
      const int32_t left = mergeable(text.substr(0, cut));
      const int32_t right = left < 0 ? -1 : mergeable(text.substr(cut));
      if (right >= 0) merges.push_back({left, right, static_cast<int32_t>(id), rank});
    }
  }
  return std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
}

}  // namespace thimble
