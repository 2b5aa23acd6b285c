// BPE that is linear for the texts people have. Three things make it so: words already seen are in a cache; a text is
// first cut where no merge could ever join the two neighbours; and what remains is merged by rank, all places of one
// rank in a row, so that a million equal characters need no queue of a million entries.
//
// A merge (a, b) can only join across the border of two symbols x|y when a ends with the last character of x and b
// begins with the first character of y, because a piece is the concatenation of its parts. So borders whose pair of
// characters occurs in no merge are hard, and segments between hard borders are independent.
#include "models/tokenizer/model_bpe.h"

#include <algorithm>
#include <functional>

#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr size_t kFew = 48;               // symbols: up to here a scan for the best pair beats lists
constexpr size_t kKeptSymbols = 1 << 16;  // the work space of a longer text is given back
constexpr size_t kBloomBits = 1 << 20;
constexpr int32_t kGone = -1;

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
  spelled_bytes_.resize(256, -1);
  takes_raw_bytes_ = plain_ && options_.frozen.empty();
  for (int b = 0; b < 256; ++b) {
    const auto at = static_cast<size_t>(b);
    if (options_.byte_fallback) bytes_[at] = vocabulary_.find(byte_token(b));
    std::string spelled;
    append_byte_level(spelled, std::string(1, static_cast<char>(b)));
    spelled_bytes_[at] = vocabulary_.find(spelled);
    takes_raw_bytes_ = takes_raw_bytes_ && spelled_bytes_[at] >= 0;
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
  table_.assign(slots, {kNoMerge, kNoMerge});
  joins_.assign(kBloomBits / 64, 0);
  ascii_joins_.assign(128 * 128 / 64, 0);
  const auto no_character = [&](int32_t id) {
    return id == unk_id_ || (options_.byte_fallback && byte_token_value(piece(id)) >= 0);
  };
  cuts_text_ = plain_ && options_.frozen.empty();
  for (const BpeMerge& merge : merges_) {
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t slot = mix(key) & (slots - 1);
    while (table_[slot].key != kNoMerge && table_[slot].key != key) slot = (slot + 1) & (slots - 1);
    table_[slot] = {key, static_cast<uint64_t>(merge.rank) << 32 | static_cast<uint32_t>(merge.result)};
    const char32_t left = last_[static_cast<size_t>(merge.left)], right = first_[static_cast<size_t>(merge.right)];
    const uint64_t bit = join_bit(left, right);
    joins_[bit / 64] |= uint64_t{1} << bit % 64;
    if (left < 128 && right < 128) ascii_joins_[(left * 128 + right) / 64] |= uint64_t{1} << right % 64;
    if (no_character(merge.left) || no_character(merge.right)) cuts_text_ = false;
  }
  for (const int32_t id : options_.frozen) frozen_.add(vocabulary_.piece(id), id);
}

uint64_t BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = table_.size() - 1;
  for (size_t slot = mix(key) & mask;; slot = (slot + 1) & mask) {
    if (table_[slot].key == key) return table_[slot].value;
    if (table_[slot].key == kNoMerge) return kNoMerge;
  }
}

bool BpeModel::characters_may_join(char32_t left, char32_t right) const {
  if (left < 128 && right < 128) return ascii_joins_[(left * 128 + right) / 64] >> right % 64 & 1;
  const uint64_t bit = join_bit(left, right);
  return joins_[bit / 64] >> bit % 64 & 1;
}

bool BpeModel::may_join(int32_t left, int32_t right) const {
  return !plain_ || characters_may_join(last_[static_cast<size_t>(left)], first_[static_cast<size_t>(right)]);
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
    if (!frozen_.empty()) {
      const ByteTrie::Match found = frozen_.longest(word.substr(pos));
      if (found.length > 0) {
        flush();
        ids.push_back(-2 - found.value);
        pos += found.length;
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

// Few symbols: look for the lowest rank, leftmost, merge it, move the rest up, again.
void BpeModel::merge_few(const int32_t* begin, size_t count, std::vector<int32_t>& out) const {
  int32_t ids[kFew];
  uint64_t pairs[kFew];  // of each symbol with the next
  std::copy(begin, begin + count, ids);
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = find_merge(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i] >> 32 < pairs[best] >> 32) best = i;
    }
    if (pairs[best] == kNoMerge) break;
    ids[best] = static_cast<int32_t>(pairs[best] & 0xFFFFFFFFU);
    --count;
    for (size_t i = best + 1; i < count; ++i) ids[i] = ids[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) pairs[i] = pairs[i + 1];
    if (best + 1 < count) pairs[best] = find_merge(ids[best], ids[best + 1]);
    if (best > 0) pairs[best - 1] = find_merge(ids[best - 1], ids[best]);
  }
  out.insert(out.end(), ids, ids + count);
}

// Many symbols: a bucket of places per rank, and a heap of the ranks that have any.
void BpeModel::merge_many(const int32_t* begin, size_t count, Space& space, std::vector<int32_t>& out) const {
  std::vector<Symbol>& symbols = space.symbols;
  symbols.resize(count);
  space.bucket_of.clear();
  space.ranks.clear();
  size_t used = 0;
  const auto n = static_cast<int32_t>(count);
  const auto offer = [&](int32_t left) {
    if (left < 0 || symbols[static_cast<size_t>(left)].next < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const uint64_t found = find_merge(a.id, symbols[static_cast<size_t>(a.next)].id);
    if (found == kNoMerge) return;
    const auto rank = static_cast<uint32_t>(found >> 32);
    const auto [entry, fresh] = space.bucket_of.emplace(rank, static_cast<uint32_t>(used));
    if (fresh) {
      if (used == space.buckets.size()) space.buckets.emplace_back();
      Bucket& made = space.buckets[used++];
      made.rank = rank;
      made.cursor = 0;
      made.line.clear();
      made.stragglers.clear();
    }
    Bucket& bucket = space.buckets[entry->second];
    if (bucket.cursor == bucket.line.size() && bucket.stragglers.empty()) {
      space.ranks.push_back(static_cast<uint64_t>(rank) << 32 | entry->second);
      std::push_heap(space.ranks.begin(), space.ranks.end(), std::greater<>());
    }
    if (bucket.cursor == bucket.line.size() || bucket.line.back() <= left) {
      bucket.line.push_back(left);
    } else {
      bucket.stragglers.push_back(left);
      std::push_heap(bucket.stragglers.begin(), bucket.stragglers.end(), std::greater<>());
    }
  };
  for (int32_t i = 0; i < n; ++i) symbols[static_cast<size_t>(i)] = {begin[i], i - 1, i + 1 < n ? i + 1 : -1};
  for (int32_t i = 0; i < n; ++i) offer(i);
  while (!space.ranks.empty()) {
    const auto index = static_cast<size_t>(space.ranks.front() & 0xFFFFFFFFU);
    int32_t place = 0;
    {
      Bucket& bucket = space.buckets[index];
      const bool from_line = bucket.cursor < bucket.line.size() &&
                             (bucket.stragglers.empty() || bucket.line[bucket.cursor] <= bucket.stragglers.front());
      if (from_line) {
        place = bucket.line[bucket.cursor++];
      } else {
        place = bucket.stragglers.front();
        std::pop_heap(bucket.stragglers.begin(), bucket.stragglers.end(), std::greater<>());
        bucket.stragglers.pop_back();
      }
      if (bucket.cursor == bucket.line.size() && bucket.stragglers.empty()) {
        std::pop_heap(space.ranks.begin(), space.ranks.end(), std::greater<>());
        space.ranks.pop_back();
      }
    }
    Symbol& left = symbols[static_cast<size_t>(place)];
    if (left.id == kGone || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const uint64_t current = find_merge(left.id, right.id);
    if (current == kNoMerge || static_cast<uint32_t>(current >> 32) != space.buckets[index].rank) continue;  // outdated
    left.id = static_cast<int32_t>(current & 0xFFFFFFFFU);
    right.id = kGone;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = place;
    offer(left.previous);
    offer(place);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
    out.push_back(symbols[static_cast<size_t>(i)].id);
  if (count > kKeptSymbols) {
    space.buckets = {};
    space.symbols = {};
  }
}

// Cuts at hard borders and merges what lies between. Frozen symbols are borders, too.
void BpeModel::encode_symbols(const std::vector<int32_t>& ids, Space& space, std::vector<int32_t>& out) const {
  for (size_t begin = 0; begin < ids.size();) {
    if (ids[begin] <= -2) {
      out.push_back(-2 - ids[begin++]);
      continue;
    }
    size_t end = begin + 1;
    while (end < ids.size() && ids[end] >= 0 && may_join(ids[end - 1], ids[end])) ++end;
    const size_t count = end - begin;
    if (count <= kFew) {
      merge_few(&ids[begin], count, out);
    } else {
      merge_many(&ids[begin], count, space, out);
    }
    begin = end;
  }
}

void BpeModel::encode_word(std::string_view word, Space& space, std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    if (const int32_t id = vocabulary_.find(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  characters(word, space.ids);
  encode_symbols(space.ids, space, out);
}

// A word of plain bytes.
void BpeModel::encode_bytes(std::string_view word, Space& space, std::vector<int32_t>& out) const {
  const bool cached = word.size() <= WordCache::kLongestWord;
  const uint64_t hash = cached ? hash_bytes(word.data(), word.size()) : 0;
  if (cached && space.bytes.find(word, hash, out)) return;
  const size_t from = out.size();
  int32_t whole = -1;
  if (options_.ignore_merges) {
    space.spelled.clear();
    append_byte_level(space.spelled, word);
    whole = vocabulary_.find(space.spelled);
  }
  if (whole >= 0) {
    out.push_back(whole);
  } else {
    space.ids.clear();
    for (const char c : word) space.ids.push_back(spelled_bytes_[static_cast<unsigned char>(c)]);
    encode_symbols(space.ids, space, out);
  }
  if (cached) space.bytes.add(word, hash, out.data() + from, out.size() - from);
}

// A part between hard borders, or a whole piece of text.
void BpeModel::encode_segment(std::string_view segment, bool whole, Space& space, std::vector<int32_t>& out) const {
  const auto encode = [&] {
    if (whole) {
      encode_word(segment, space, out);
    } else {
      characters(segment, space.ids);
      encode_symbols(space.ids, space, out);
    }
  };
  if (segment.size() > WordCache::kLongestWord) {
    encode();
    return;
  }
  const uint64_t hash = hash_bytes(segment.data(), segment.size());
  if (space.words.find(segment, hash, out)) return;
  const size_t from = out.size();
  encode();
  space.words.add(segment, hash, out.data() + from, out.size() - from);
}

// Without a pre-tokenizer a piece may be a whole book. Hard borders are then looked for in the text itself. Characters
// without a piece of their own stay together: their unk may be one for all.
void BpeModel::encode_text(std::string_view text, Space& space, std::vector<int32_t>& out) const {
  size_t begin = 0;
  char32_t before = 0;
  bool known_before = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(text, pos);
    const bool known = find_character(text.substr(at, pos - at), c) >= 0;
    const bool border = at > 0 && (known != known_before || (known && !characters_may_join(before, c)));
    if (border) {
      encode_segment(text.substr(begin, at - begin), false, space, out);
      begin = at;
    }
    before = c;
    known_before = known;
  }
  if (begin < text.size()) encode_segment(text.substr(begin), false, space, out);
}

void BpeModel::encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const {
  SpacePool<Space>::Lease lease(spaces_);
  Space& space = *lease;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view text = pieces[i].text;
    if (raw_bytes) {
      encode_bytes(text, space, ids);
    } else if (cuts_text_ && !options_.ignore_merges && text.size() > WordCache::kLongestWord / 2) {
      encode_text(text, space, ids);
    } else if (!text.empty()) {
      encode_segment(text, true, space, ids);
    }
  }
}

std::string BpeModel::to_json() const {
  if (!options_.frozen.empty()) {
    throw Error(ErrorCode::unsupported,
                "a SentencePiece model with user-defined pieces cannot be written as tokenizer.json",
                "keep using the tokenizer.model file");
  }
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  std::string out =
      "{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": " + json_string(options_.unk_token) +
      ",\n    \"continuing_subword_prefix\": " + json_string(options_.continuing_subword_prefix) +
      ",\n    \"end_of_word_suffix\": " + json_string(options_.end_of_word_suffix) +
      ",\n    \"fuse_unk\": " + flag(options_.fuse_unk) + ",\n    \"byte_fallback\": " + flag(options_.byte_fallback) +
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
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const BpeMerge& a, const BpeMerge& b) { return a.rank < b.rank; });
  // "a b" is read by every version of the tokenizers library, ["a", "b"] by those since 0.20; pieces with spaces need
  // it.
  const bool pairs = std::any_of(ordered.begin(), ordered.end(), [&](const BpeMerge& merge) {
    return vocabulary_.piece(merge.left).find(' ') != std::string::npos ||
           vocabulary_.piece(merge.right).find(' ') != std::string::npos;
  });
  for (const BpeMerge& merge : ordered) {
    const std::string &left = vocabulary_.piece(merge.left), &right = vocabulary_.piece(merge.right);
    out +=
        separator + ("      " + (pairs ? "[" + quoted(left) + ", " + quoted(right) + "]" : quoted(left + " " + right)));
    separator = ",\n";
  }
  return out + "\n    ]\n  }";
}

}  // namespace thimble
