// Pair counts are kept up to date word by word; a heap with stale entries gives the best pair. A popped entry whose count
// has fallen goes back with the present one, so the order is that of a full recount.
#include "models/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "models/tokenizer/model_bpe.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

enum class CharacterClass { letter, number, space, line, other };

CharacterClass classify(char32_t c) {
  if (c == ' ') return CharacterClass::space;
  if (is_white_space(c)) return CharacterClass::line;
  if (is_letter_or_mark(c)) return CharacterClass::letter;
  return is_number(c) ? CharacterClass::number : CharacterClass::other;
}

// Calls add(word) for each word of " " + text. An apostrophe between letters opens a word with the letters behind it ('s).
template <typename Add>
void for_each_word(const std::string& text, const Add& add) {
  size_t begin = 0;
  CharacterClass run = CharacterClass::space;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(text, pos);
    CharacterClass now = classify(c);
    bool cut = now != run;
    if (run == CharacterClass::space) cut = now == CharacterClass::space && at > begin;  // the space joins what follows
    if (now == CharacterClass::line && run == CharacterClass::space) cut = true;         // but never a line break
    if (c == '\'' && run == CharacterClass::letter && pos < text.size()) {
      size_t next = pos;
      if (classify(next_code_point(text, next)) == CharacterClass::letter) now = CharacterClass::letter, cut = true;
    }
    if (cut && at > begin) {
      add(text.substr(begin, at - begin));
      begin = at;
    }
    run = now;
  }
  if (begin < text.size()) add(text.substr(begin));
}

struct Word {
  std::vector<int32_t> symbols;  // -1: a character without a piece, which nothing joins
  int64_t count;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

class Trainer {
 public:
  explicit Trainer(const BpeTrainerOptions& options) : options_(options) {}

  void count_words(const std::vector<std::string_view>& texts) {
    std::unordered_map<std::string, int64_t> counts;
    for (size_t i = 0; i < texts.size(); ++i) {
      if (const size_t bad = find_invalid_utf8(texts[i]); bad != std::string_view::npos) {
        throw Error(ErrorCode::input, "training text " + std::to_string(i) + " is not UTF-8: byte " + std::to_string(bad),
                    "convert it to UTF-8 first");
      }
      if (texts[i].empty()) continue;
      for_each_word(" " + std::string(texts[i]), [&](std::string word) { ++counts[std::move(word)]; });
    }
    if (counts.empty()) {
      throw Error(ErrorCode::input, "the training text is empty", "a tokenizer needs text to learn from");
    }
    counted_.assign(counts.begin(), counts.end());
    std::sort(counted_.begin(), counted_.end());
  }

  void make_alphabet() {
    for (const std::string& special : options_.specials) add_piece(special);
    if (options_.byte_fallback) {
      for (int b = 0; b < 256; ++b) add_piece(byte_token(b));
    }
    reserved_ = pieces_.size();
    std::unordered_map<char32_t, int64_t> counts;
    int64_t total = 0;
    for (const auto& [word, count] : counted_) {
      for (size_t pos = 0; pos < word.size();) {
        counts[next_code_point(word, pos)] += count;
        total += count;
      }
    }
    std::vector<std::pair<char32_t, int64_t>> ordered(counts.begin(), counts.end());
    const auto before = [](const auto& a, const auto& b) {
      if ((a.first == ' ') != (b.first == ' ')) return a.first == ' ';  // every word may need it
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    };
    std::sort(ordered.begin(), ordered.end(), before);
    if (static_cast<size_t>(options_.vocab_size) <= reserved_) {
      throw Error(ErrorCode::usage,
                  "vocab_size " + std::to_string(options_.vocab_size) + " leaves no room: special and byte tokens take " +
                      std::to_string(reserved_),
                  "choose a larger vocabulary");
    }
    std::unordered_map<char32_t, int32_t> ids;
    int64_t covered = 0;
    for (const auto& [c, count] : ordered) {
      const bool enough = static_cast<double>(covered) >= options_.character_coverage * static_cast<double>(total);
      if (enough || pieces_.size() >= static_cast<size_t>(options_.vocab_size)) break;
      covered += count;
      std::string text;
      append_utf8(text, c);
      if (known_.count(text) == 0) ids.emplace(c, add_piece(text));
    }
    for (const auto& [word, count] : counted_) {
      Word entry{{}, count};
      for (size_t pos = 0; pos < word.size();) {
        const auto found = ids.find(next_code_point(word, pos));
        entry.symbols.push_back(found == ids.end() ? -1 : found->second);
      }
      words_.push_back(std::move(entry));
    }
  }

  void learn_merges() {
    for (size_t w = 0; w < words_.size(); ++w) change_counts(w, words_[w].count, true);
    for (const auto& [key, pair] : pairs_) push(key, pair.count);
    while (pieces_.size() < static_cast<size_t>(options_.vocab_size) && !heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const uint64_t key = pair_key(top.left, top.right);
      const auto found = pairs_.find(key);
      const int64_t now = found == pairs_.end() ? 0 : found->second.count;
      if (now != top.count) {
        if (now < top.count && now > 0) push(key, now);
        continue;
      }
      if (now < options_.min_frequency) break;
      merge(top.left, top.right, found->second);
    }
  }

  Tokenizer finish() {
    nlohmann::json added = nlohmann::json::array();
    for (size_t id = 0; id < options_.specials.size(); ++id) {
      added.push_back(special_token_entry(static_cast<int32_t>(id), options_.specials[id]));
    }
    BpeOptions model;
    model.unk_token = options_.specials[0];
    model.fuse_unk = true;
    model.byte_fallback = options_.byte_fallback;
    TokenizerParts parts;
    parts.file = "trained tokenizer";
    parts.format = "trained";
    parts.sections = plain_space_sections(std::move(added), options_.specials[1], 1);
    parts.config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"bos_token", options_.specials[1]},
                    {"eos_token", options_.specials[2]},
                    {"unk_token", options_.specials[0]}};
    parts.model = std::make_unique<BpeModel>(Vocabulary(std::move(pieces_)), std::move(merges_), std::move(model));
    return assemble_tokenizer(std::move(parts));
  }

 private:
  struct Pair {
    int64_t count = 0;
    std::vector<uint32_t> words;  // where it occurred at some time; may repeat
  };
  struct Candidate {
    int64_t count;
    int32_t left, right;
    const std::vector<std::string>* pieces;
    bool operator<(const Candidate& other) const {  // true: other comes first
      if (count != other.count) return count < other.count;
      const auto text = [&](int32_t id) -> const std::string& { return (*pieces)[static_cast<size_t>(id)]; };
      if (left != other.left) return text(left) > text(other.left);
      return text(right) > text(other.right);
    }
  };

  int32_t add_piece(const std::string& text) {
    if (text.empty() || !known_.emplace(text, static_cast<int32_t>(pieces_.size())).second) {
      throw Error(ErrorCode::usage, "special token " + quote_for_message(text) + " is empty or occurs twice",
                  "special tokens must differ from one another and from <0x00>..<0xFF>");
    }
    pieces_.push_back(text);
    lengths_.push_back(static_cast<int32_t>(count_characters(text)));
    return static_cast<int32_t>(pieces_.size()) - 1;
  }

  void push(uint64_t key, int64_t count) {
    heap_.push({count, static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xFFFFFFFFU), &pieces_});
  }

  // Adds `count` to every pair of a word; `record` notes the word with the pair.
  void change_counts(size_t w, int64_t count, bool record) {
    const std::vector<int32_t>& symbols = words_[w].symbols;
    for (size_t i = 1; i < symbols.size(); ++i) {
      if (symbols[i - 1] < 0 || symbols[i] < 0) continue;
      Pair& pair = pairs_[pair_key(symbols[i - 1], symbols[i])];
      pair.count += count;
      if (record && (pair.words.empty() || pair.words.back() != w)) pair.words.push_back(static_cast<uint32_t>(w));
    }
  }

  void merge(int32_t left, int32_t right, Pair& pair) {
    const std::string text = pieces_[static_cast<size_t>(left)] + pieces_[static_cast<size_t>(right)];
    const auto known = known_.find(text);
    const bool reserved = known != known_.end() && static_cast<size_t>(known->second) < reserved_;
    const int32_t length = lengths_[static_cast<size_t>(left)] + lengths_[static_cast<size_t>(right)];
    if (reserved || length > options_.max_piece_characters) {
      pair.count = 0;  // never again: a merge must not spell a special token, nor grow without end
      refused_.insert(pair_key(left, right));
      return;
    }
    const int32_t result = known != known_.end() ? known->second : add_piece(text);
    merges_.push_back({left, right, result, static_cast<uint32_t>(merges_.size())});
    std::vector<uint32_t> where;
    where.swap(pair.words);
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    std::unordered_set<uint64_t> fresh;
    for (const uint32_t w : where) {
      Word& word = words_[w];
      change_counts(w, -word.count, false);
      std::vector<int32_t> symbols;
      symbols.reserve(word.symbols.size());
      for (size_t i = 0; i < word.symbols.size(); ++i) {
        if (i + 1 < word.symbols.size() && word.symbols[i] == left && word.symbols[i + 1] == right) {
          symbols.push_back(result);
          ++i;
        } else {
          symbols.push_back(word.symbols[i]);
        }
      }
      word.symbols.swap(symbols);
      change_counts(w, word.count, true);
      for (size_t i = 1; i < word.symbols.size(); ++i) {
        const int32_t a = word.symbols[i - 1], b = word.symbols[i];
        if (a >= 0 && b >= 0 && (a == result || b == result)) fresh.insert(pair_key(a, b));
      }
    }
    for (const uint64_t key : fresh) {
      if (refused_.count(key) == 0) push(key, pairs_[key].count);
    }
  }

  const BpeTrainerOptions& options_;
  std::vector<std::pair<std::string, int64_t>> counted_;
  std::vector<Word> words_;
  std::vector<std::string> pieces_;
  std::vector<int32_t> lengths_;  // in characters
  std::unordered_map<std::string, int32_t> known_;
  size_t reserved_ = 0;  // specials and bytes
  std::unordered_map<uint64_t, Pair> pairs_;
  std::unordered_set<uint64_t> refused_;
  std::priority_queue<Candidate> heap_;
  std::vector<BpeMerge> merges_;
};

}  // namespace

Tokenizer train_bpe(const std::vector<std::string_view>& texts, const BpeTrainerOptions& options) {
  if (options.specials.size() < 3) {
    throw Error(ErrorCode::usage, "a trained tokenizer needs the special tokens unknown, BOS and EOS",
                "leave them at <unk>, <s>, </s>");
  }
  Trainer trainer(options);
  trainer.count_words(texts);
  trainer.make_alphabet();
  trainer.learn_merges();
  return trainer.finish();
}

Tokenizer train_bpe(std::string_view text, const BpeTrainerOptions& options) {
  return train_bpe(std::vector<std::string_view>{text}, options);
}

}  // namespace thimble
