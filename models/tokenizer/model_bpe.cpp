// BPE in O(n log n): a linked list of symbols and a heap of candidate merges. Two things keep typical text well below
// that: a word is first cut where no merge could ever join the two neighbours, and the resulting segments are cached.
//
// A merge (a, b) can only join across the border of two symbols x|y when a ends with the last character of x and b begins
// with the first character of y, because a piece is the concatenation of its parts. So borders whose pair of
// characters occurs in no merge are hard, and segments between hard borders are independent.
#include "models/tokenizer/model_bpe.h"

#include <algorithm>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr size_t kCacheEntries = 1 << 16;
constexpr size_t kCacheSegment = 32;  // symbols
constexpr size_t kBloomBits = 1 << 20;

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15ULL;
  return x ^ x >> 29;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t join_bit(char32_t left, char32_t right) {
  return mix(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right)) & (kBloomBits - 1);
}

}  // namespace

BpeModel::BpeModel(Vocabulary vocabulary, std::vector<BpeMerge> merges, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), merges_(std::move(merges)), options_(std::move(options)) {
  plain_ = options_.continuing_subword_prefix.empty() && options_.end_of_word_suffix.empty();
  if (!options_.unk_token.empty()) unk_id_ = vocabulary_.find(options_.unk_token);
  bytes_.resize(256, -1);
  if (options_.byte_fallback) {
    for (int b = 0; b < 256; ++b) bytes_[static_cast<size_t>(b)] = vocabulary_.find(byte_token(b));
  }
  const auto count = static_cast<size_t>(vocabulary_.size());
  bmp_.assign(0x10000, -1);
  first_.resize(count);
  last_.resize(count);
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string& text = vocabulary_.piece(id);
    size_t pos = 0;
    while (pos < text.size()) {
      const bool first = pos == 0;
      const char32_t c = next_code_point(text, pos);
      if (first) {
        first_[static_cast<size_t>(id)] = c;
        if (pos == text.size() && c < bmp_.size() && bmp_[c] < 0) bmp_[c] = id;
      }
      last_[static_cast<size_t>(id)] = c;
    }
  }
  size_t slots = 16;
  while (slots < merges_.size() * 2) slots *= 2;
  keys_.assign(slots, kNoMerge);
  values_.assign(slots, kNoMerge);
  joins_.assign(kBloomBits / 64, 0);
  for (const BpeMerge& merge : merges_) {
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t slot = mix(key) & (slots - 1);
    while (keys_[slot] != kNoMerge && keys_[slot] != key) slot = (slot + 1) & (slots - 1);
    keys_[slot] = key;
    values_[slot] = static_cast<uint64_t>(merge.rank) << 32 | static_cast<uint32_t>(merge.result);
    const uint64_t bit = join_bit(last_[static_cast<size_t>(merge.left)], first_[static_cast<size_t>(merge.right)]);
    joins_[bit / 64] |= uint64_t{1} << bit % 64;
  }
  for (const int32_t id : options_.frozen) {
    frozen_.emplace(vocabulary_.piece(id), id);
    longest_frozen_ = std::max(longest_frozen_, vocabulary_.piece(id).size());
  }
}

uint64_t BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = keys_.size() - 1;
  for (size_t slot = mix(key) & mask;; slot = (slot + 1) & mask) {
    if (keys_[slot] == key) return values_[slot];
    if (keys_[slot] == kNoMerge) return kNoMerge;
  }
}

bool BpeModel::may_join(int32_t left, int32_t right) const {
  if (!plain_) return true;
  const uint64_t bit = join_bit(last_[static_cast<size_t>(left)], first_[static_cast<size_t>(right)]);
  return joins_[bit / 64] >> bit % 64 & 1;
}

int32_t BpeModel::find_character(std::string_view text, char32_t c) const {
  return c < bmp_.size() ? bmp_[c] : vocabulary_.find(text);
}

// The symbols a word starts from. Frozen pieces are marked by a negative number, -2 - id.
void BpeModel::characters(std::string_view word, std::vector<int32_t>& ids) const {
  ids.clear();
  bool unknown = false;  // an unk waits to be written; it may still grow
  const auto flush = [&] {
    if (unknown) ids.push_back(unk_id_);
    unknown = false;
  };
  std::string decorated;
  for (size_t pos = 0; pos < word.size();) {
    const size_t at = pos;
    if (longest_frozen_ > 0) {
      size_t length = std::min(longest_frozen_, word.size() - pos);
      int32_t found = -1;
      for (; length > 0; --length) {
        const auto entry = frozen_.find(word.substr(pos, length));
        if (entry == frozen_.end()) continue;
        found = entry->second;
        break;
      }
      if (found >= 0) {
        flush();
        ids.push_back(-2 - found);
        pos += length;
        continue;
      }
    }
    const char32_t c = next_code_point(word, pos);
    std::string_view text = word.substr(at, pos - at);
    int32_t id = -1;
    if (plain_) {
      id = find_character(text, c);
    } else {
      decorated = at > 0 ? options_.continuing_subword_prefix : std::string();
      decorated += text;
      if (pos == word.size()) decorated += options_.end_of_word_suffix;
      text = decorated;
      id = vocabulary_.find(text);
    }
    if (id >= 0) {
      flush();
      ids.push_back(id);
      continue;
    }
    if (options_.byte_fallback &&
        std::all_of(text.begin(), text.end(), [&](char b) { return bytes_[static_cast<unsigned char>(b)] >= 0; })) {
      for (const char b : text) ids.push_back(bytes_[static_cast<unsigned char>(b)]);
      continue;
    }
    if (unk_id_ < 0) continue;
    if (!options_.fuse_unk) flush();
    unknown = true;
  }
  flush();
}

void BpeModel::merge(const int32_t* begin, size_t count, Scratch& scratch, std::vector<int32_t>& out) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.resize(count);
  struct Candidate {
    uint32_t rank;
    int32_t position, result;
  };
  // Lowest rank on top, then leftmost.
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::vector<Candidate> heap;
  const auto offer = [&](int32_t left, bool push) {
    if (left < 0 || symbols[static_cast<size_t>(left)].next < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const uint64_t found = find_merge(a.id, symbols[static_cast<size_t>(a.next)].id);
    if (found == kNoMerge) return;
    heap.push_back({static_cast<uint32_t>(found >> 32), left, static_cast<int32_t>(found & 0xFFFFFFFFU)});
    if (push) std::push_heap(heap.begin(), heap.end(), later);
  };
  const auto n = static_cast<int32_t>(count);
  for (int32_t i = 0; i < n; ++i) symbols[static_cast<size_t>(i)] = {begin[i], i - 1, i + 1 < n ? i + 1 : -1};
  for (int32_t i = 0; i < n; ++i) offer(i, false);
  std::make_heap(heap.begin(), heap.end(), later);
  constexpr int32_t kGone = -1;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.id == kGone || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const uint64_t current = find_merge(left.id, right.id);
    if (current == kNoMerge || static_cast<int32_t>(current & 0xFFFFFFFFU) != top.result) continue;  // outdated
    left.id = top.result;
    right.id = kGone;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    offer(left.previous, true);
    offer(top.position, true);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) out.push_back(symbols[static_cast<size_t>(i)].id);
}

void BpeModel::encode_word(std::string_view word, Scratch& scratch, Cache& cache, std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    if (const int32_t id = vocabulary_.find(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  characters(word, scratch.ids);
  const std::vector<int32_t>& ids = scratch.ids;
  std::string key;
  for (size_t begin = 0; begin < ids.size();) {
    if (ids[begin] <= -2) {
      out.push_back(-2 - ids[begin++]);
      continue;
    }
    size_t end = begin + 1;
    while (end < ids.size() && ids[end] >= 0 && may_join(ids[end - 1], ids[end])) ++end;
    const size_t count = end - begin;
    if (count == 1) {
      out.push_back(ids[begin]);
    } else if (count > kCacheSegment) {
      merge(&ids[begin], count, scratch, out);
    } else {
      key.assign(reinterpret_cast<const char*>(&ids[begin]), count * sizeof(int32_t));
      if (const auto hit = cache.find(key); hit != cache.end()) {
        out.insert(out.end(), hit->second.begin(), hit->second.end());
      } else {
        const size_t from = out.size();
        merge(&ids[begin], count, scratch, out);
        if (cache.size() < kCacheEntries) {
          cache.emplace(key, std::vector<int32_t>(out.begin() + static_cast<std::ptrdiff_t>(from), out.end()));
        }
      }
    }
    begin = end;
  }
}

void BpeModel::encode(const std::vector<Piece>& pieces, std::vector<int32_t>& ids) const {
  // One thread at a time has the lasting cache; others that come meanwhile start with an empty one.
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  Cache own;
  Cache& cache = lock.owns_lock() ? cache_ : own;
  Scratch scratch;
  for (const Piece& piece : pieces) encode_word(piece.text, scratch, cache, ids);
}

std::string BpeModel::to_json() const {
  if (!options_.frozen.empty()) {
    throw Error(ErrorCode::unsupported, "a SentencePiece model with user-defined pieces cannot be written as tokenizer.json",
                "keep using the tokenizer.model file");
  }
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  const auto optional = [&](const std::string& text) { return text.empty() ? std::string("null") : quoted(text); };
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  std::string out = "{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": " + optional(options_.unk_token) +
                    ",\n    \"continuing_subword_prefix\": " + optional(options_.continuing_subword_prefix) +
                    ",\n    \"end_of_word_suffix\": " + optional(options_.end_of_word_suffix) +
                    ",\n    \"fuse_unk\": " + flag(options_.fuse_unk) +
                    ",\n    \"byte_fallback\": " + flag(options_.byte_fallback) +
                    ",\n    \"ignore_merges\": " + flag(options_.ignore_merges) + ",\n    \"vocab\": {";
  const char* separator = "\n";
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_.piece(id).empty()) continue;
    out += separator + ("      " + quoted(vocabulary_.piece(id))) + ": " + std::to_string(id);
    separator = ",\n";
  }
  out += "\n    },\n    \"merges\": [";
  separator = "\n";
  std::vector<BpeMerge> ordered = merges_;
  std::stable_sort(ordered.begin(), ordered.end(), [](const BpeMerge& a, const BpeMerge& b) { return a.rank < b.rank; });
  // "a b" is read by every version of the tokenizers library, ["a", "b"] by those since 0.20; pieces with spaces need it.
  const bool pairs = std::any_of(ordered.begin(), ordered.end(), [&](const BpeMerge& merge) {
    return vocabulary_.piece(merge.left).find(' ') != std::string::npos ||
           vocabulary_.piece(merge.right).find(' ') != std::string::npos;
  });
  for (const BpeMerge& merge : ordered) {
    const std::string &left = vocabulary_.piece(merge.left), &right = vocabulary_.piece(merge.right);
    out += separator + ("      " + (pairs ? "[" + quoted(left) + ", " + quoted(right) + "]" : quoted(left + " " + right)));
    separator = ",\n";
  }
  return out + "\n    ]\n  }";
}

}  // namespace thimble
