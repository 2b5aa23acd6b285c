// Viterbi from left to right: best[i] is the best cut of the first i bytes. Of equal sums the first found stays.
// Neighbouring unknown characters are one unknown piece.
#include "models/tokenizer/model_unigram.h"

#include <algorithm>
#include <limits>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {

UnigramModel::UnigramModel(Vocabulary vocabulary, std::vector<double> scores, UnigramOptions options)
    : vocabulary_(std::move(vocabulary)), scores_(std::move(scores)), options_(std::move(options)) {
  double lowest = std::numeric_limits<double>::infinity();
  for (int32_t id = vocabulary_.size() - 1; id >= 0; --id) {  // of equal pieces the last one counts
    if (!options_.excluded.empty() && options_.excluded[static_cast<size_t>(id)]) continue;
    lowest = std::min(lowest, scores_[static_cast<size_t>(id)]);
    trie_.add(vocabulary_.piece(id), id);
  }
  unknown_score_ = lowest - 10;
  bytes_.resize(256, -1);
  for (int b = 0; b < 256 && options_.byte_fallback; ++b)
    bytes_[static_cast<size_t>(b)] = vocabulary_.find(byte_token(b));
}

void UnigramModel::add_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  // Several unknown characters together may spell a piece: the tokenizers library looks the whole up.
  const int32_t whole = options_.excluded.empty() ? vocabulary_.find(text) : -1;
  if (whole >= 0) {
    ids.push_back(whole);
  } else if (options_.byte_fallback && std::all_of(text.begin(), text.end(), [&](char b) {
               return bytes_[static_cast<unsigned char>(b)] >= 0;
             })) {
    for (const char b : text) ids.push_back(bytes_[static_cast<unsigned char>(b)]);
  } else {
    ids.push_back(options_.unk_id);
  }
}

void UnigramModel::encode_text(std::string_view text, Space& space, std::vector<int32_t>& ids) const {
  std::vector<Node>& best = space.best;
  best.assign(text.size() + 1, {0, -1, -1});
  const auto offer = [&](size_t end, double score, int32_t id, size_t start) {
    Node& node = best[end];
    if (node.start >= 0 && !(score > node.score)) return;
    // SentencePiece keeps the sum as a float but compares it as a double.
    node = {options_.single_precision ? static_cast<double>(static_cast<float>(score)) : score, id,
            static_cast<int32_t>(start)};
  };
  for (size_t pos = 0; pos < text.size();) {
    size_t next = pos;
    next_code_point(text, next);
    const double here = best[pos].score;
    bool single = false;  // a piece is this character
    int32_t node = ByteTrie::kRoot;
    for (size_t i = pos; i < text.size(); ++i) {
      node = trie_.step(node, static_cast<unsigned char>(text[i]));
      if (node < 0) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(i + 1, here + scores_[static_cast<size_t>(id)], id, pos);
      single = single || i + 1 == next;
    }
    if (!single) {
      if (options_.unk_id < 0) {
        throw Error(ErrorCode::input,
                    "the character " + quote_for_message(text.substr(pos, next - pos)) +
                        " has no piece, and the vocabulary has no unknown piece",
                    "use a tokenizer whose model has unk_id");
      }
      offer(next, here + unknown_score_, options_.unk_id, pos);
    }
    pos = next;
  }
  // Ends of pieces from the back; then forwards, joining unknown neighbours.
  std::vector<int32_t>& ends = space.reversed;
  ends.clear();
  for (size_t end = text.size(); end > 0; end = static_cast<size_t>(best[end].start))
    ends.push_back(static_cast<int32_t>(end));
  for (size_t i = ends.size(); i > 0;) {
    const Node& node = best[static_cast<size_t>(ends[--i])];
    if (node.id != options_.unk_id) {
      ids.push_back(node.id);
      continue;
    }
    auto end = static_cast<size_t>(ends[i]);
    while (i > 0 && best[static_cast<size_t>(ends[i - 1])].id == options_.unk_id) end = static_cast<size_t>(ends[--i]);
    const auto start = static_cast<size_t>(node.start);
    add_unknown(text.substr(start, end - start), ids);
  }
  constexpr size_t kKeptNodes = 1 << 16;  // the work space of a longer text is given back
  if (best.size() > kKeptNodes) {
    best = {};
    ends = {};
  }
}

void UnigramModel::encode(const Piece* pieces, size_t count, bool, std::vector<int32_t>& ids) const {
  SpacePool<Space>::Lease lease(spaces_);
  Space& space = *lease;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view text = pieces[i].text;
    if (text.empty()) continue;
    if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      throw Error(ErrorCode::input,
                  "a text of " + std::to_string(text.size()) + " bytes is too long for a Unigram tokenizer",
                  "cut it into parts below 2 GB");
    }
    if (text.size() > WordCache::kLongestWord) {
      encode_text(text, space, ids);
      continue;
    }
    const uint64_t hash = hash_bytes(text.data(), text.size());
    if (space.cache.find(text, hash, ids)) continue;
    const size_t from = ids.size();
    encode_text(text, space, ids);
    space.cache.add(text, hash, ids.data() + from, ids.size() - from);
  }
}

std::string UnigramModel::to_json() const {
  std::string out = "{\n    \"type\": \"Unigram\",\n    \"unk_id\": " +
                    (options_.unk_id < 0 ? std::string("null") : std::to_string(options_.unk_id)) +
                    ",\n    \"byte_fallback\": " + (options_.byte_fallback ? "true" : "false") + ",\n    \"vocab\": [";
  const char* separator = "\n";
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    out += separator + ("      [" + nlohmann::json(vocabulary_.piece(id)).dump() + ", " +
                        nlohmann::json(scores_[static_cast<size_t>(id)]).dump() + "]");
    separator = ",\n";
  }
  return out + "\n    ]\n  }";
}

}  // namespace thimble
