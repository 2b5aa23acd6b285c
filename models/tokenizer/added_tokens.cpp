// Leftmost-longest search: a table of first bytes, then a trie.
#include "models/tokenizer/added_tokens.h"

#include <algorithm>

#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

char32_t last_code_point(std::string_view text, size_t& begin) {
  begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  size_t pos = begin;
  return next_code_point(text, pos);
}

size_t white_space_at_end(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = 0;
    if (!is_white_space(last_code_point(text.substr(0, end), begin))) break;
    end = begin;
  }
  return end;
}

size_t white_space_at_start(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    size_t next = pos;
    if (!is_white_space(next_code_point(text, next))) break;
    pos = next;
  }
  return pos;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  size_t at = 0;
  if (begin > 0 && is_word_character(last_code_point(text.substr(0, begin), at))) return true;
  at = end;
  return end < text.size() && is_word_character(next_code_point(text, at));
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, const std::string& pattern) {
  if (pattern.empty()) return;
  const auto first = static_cast<unsigned char>(pattern[0]);
  begins_[first] = true;
  if (!token.special) begins_plain_[first] = true;
  trie_.add(pattern, static_cast<int32_t>(entries_.size()));
  entries_.push_back({token, pattern});
}

const AddedTokenMatcher::Entry* AddedTokenMatcher::longest_at(std::string_view text, size_t pos,
                                                              bool parse_special) const {
  const Entry* best = nullptr;
  int32_t node = ByteTrie::kRoot;
  for (; pos < text.size(); ++pos) {
    node = trie_.step(node, static_cast<unsigned char>(text[pos]));
    if (node < 0) break;
    if (trie_.value(node) < 0) continue;
    const Entry& entry = entries_[static_cast<size_t>(trie_.value(node))];
    if (parse_special || !entry.token.special) best = &entry;
  }
  return best;
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::split(std::string_view text, bool parse_special) const {
  std::vector<Segment> out;
  size_t from = 0;       // behind the last token
  size_t swallowed = 0;  // the end of the white space that was swallowed last
  const std::array<bool, 256>& begins = parse_special ? begins_ : begins_plain_;
  for (size_t pos = 0; pos < text.size() && !entries_.empty();) {
    if (!begins[static_cast<unsigned char>(text[pos])]) {
      ++pos;
      continue;
    }
    const Entry* entry = longest_at(text, pos, parse_special);
    if (entry == nullptr) {
      ++pos;
      continue;
    }
    const size_t match_end = pos + entry->pattern.size();
    if (entry->token.single_word && touches_word(text, pos, match_end)) {
      pos = match_end;
      continue;
    }
    size_t begin = pos, end = match_end;
    if (entry->token.lstrip) begin = from < begin ? from + white_space_at_end(text.substr(from, begin - from)) : from;
    if (entry->token.rstrip) end = swallowed = end <= swallowed ? swallowed : end + white_space_at_start(text.substr(end));
    if (from < begin) out.push_back({from, begin, -1});
    if (begin < end) out.push_back({begin, end, entry->token.id});
    from = end;
    pos = match_end;  // as in the tokenizers library, swallowed white space may still begin another token
  }
  if (from < text.size()) out.push_back({from, text.size(), -1});
  return out;
}

}  // namespace thimble
