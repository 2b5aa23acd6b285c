// Pre-tokenizers: where the text is cut before the model sees it. One class per type, one row per class.
#include <algorithm>

#include "models/tokenizer/component.h"
#include "models/tokenizer/pattern.h"
#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct Cut {
  ByteRange range;
  bool match;
};

// Covers the text with matches and what lies between them.
std::vector<Cut> cover(const std::vector<ByteRange>& found, size_t size) {
  std::vector<Cut> cuts;
  cuts.reserve(found.size() * 2 + 1);
  size_t from = 0;
  for (const ByteRange& range : found) {
    if (range.first != from) cuts.push_back({{from, range.first}, false});
    cuts.push_back({range, true});
    from = range.second;
  }
  if (from != size) cuts.push_back({{from, size}, false});
  return cuts;
}

std::vector<Cut> cover_characters(std::string_view text, bool (*test)(char32_t)) {
  std::vector<ByteRange> found;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    if (test(next_code_point(text, pos))) found.emplace_back(at, pos);
  }
  return cover(found, text.size());
}

// Joins or drops cuts as the behaviour says; afterwards every remaining cut is one piece.
void apply_behavior(std::vector<Cut>& cuts, Behavior behavior) {
  std::vector<Cut> kept;
  kept.reserve(cuts.size());
  bool previous = false;
  switch (behavior) {
    case Behavior::isolated:
      return;
    case Behavior::removed:
      for (const Cut& cut : cuts) {
        if (!cut.match) kept.push_back(cut);
      }
      break;
    case Behavior::contiguous:
      for (const Cut& cut : cuts) {
        if (!kept.empty() && kept.back().match == cut.match) {
          kept.back().range.second = cut.range.second;
        } else {
          kept.push_back(cut);
        }
      }
      break;
    case Behavior::merged_with_previous:
      for (const Cut& cut : cuts) {
        if (cut.match && !previous && !kept.empty()) {
          kept.back().range.second = cut.range.second;
        } else {
          kept.push_back(cut);
        }
        previous = cut.match;
      }
      break;
    case Behavior::merged_with_next:
      for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        if (cut->match && !previous && !kept.empty()) {
          kept.back().range.first = cut->range.first;
        } else {
          kept.push_back(*cut);
        }
        previous = cut->match;
      }
      std::reverse(kept.begin(), kept.end());
      break;
  }
  cuts = std::move(kept);
}

class Cutter : public PreTokenizer {
 public:
  void split(std::vector<Piece>& pieces) const final {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (Piece& piece : pieces) {
      prepare(piece);
      for (const Cut& cut : cuts(piece.text)) {
        const auto [begin, end] = cut.range;
        if (begin < end) out.push_back({finished(piece.text.substr(begin, end - begin)), piece.at_start && begin == 0});
      }
    }
    pieces = std::move(out);
  }

 protected:
  virtual void prepare(Piece&) const {}
  virtual std::vector<Cut> cuts(const std::string& text) const = 0;
  virtual std::string finished(std::string text) const { return text; }
};

class Split : public Cutter {
 public:
  Split(Regex regex, Behavior behavior, bool invert) : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

 protected:
  std::vector<Cut> cuts(const std::string& text) const override {
    std::vector<Cut> all = cover(regex_.find_all(text), text.size());
    if (invert_) {
      for (Cut& cut : all) cut.match = !cut.match;
    }
    apply_behavior(all, behavior_);
    return all;
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevel : public Cutter {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex)
      : regex_(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", "ByteLevel"),
        add_prefix_space_(add_prefix_space),
        use_regex_(use_regex) {}

 protected:
  void prepare(Piece& piece) const override {
    if (add_prefix_space_ && piece.text.compare(0, 1, " ") != 0) piece.text.insert(0, " ");
  }
  std::vector<Cut> cuts(const std::string& text) const override {
    if (!use_regex_) return {{{0, text.size()}, false}};
    return cover(regex_.find_all(text), text.size());
  }
  std::string finished(std::string text) const override {
    std::string out;
    append_byte_level(out, text);
    return out;
  }

 private:
  Regex regex_;
  bool add_prefix_space_, use_regex_;
};

class Metaspace : public Cutter {
 public:
  enum class Prepend { always, first, never };
  Metaspace(std::string replacement, Prepend prepend, bool cut)
      : space_(Regex::literal(" ", "Metaspace")),
        mark_(Regex::literal(replacement, "Metaspace")),
        replacement_(std::move(replacement)),
        prepend_(prepend),
        cut_(cut) {}

 protected:
  void prepare(Piece& piece) const override {
    piece.text = replace_all(space_, piece.text, replacement_);
    const bool wanted = prepend_ == Prepend::always || (prepend_ == Prepend::first && piece.at_start);
    if (wanted && piece.text.compare(0, replacement_.size(), replacement_) != 0) piece.text.insert(0, replacement_);
  }
  std::vector<Cut> cuts(const std::string& text) const override {
    if (!cut_) return {{{0, text.size()}, false}};
    std::vector<Cut> all = cover(mark_.find_all(text), text.size());
    apply_behavior(all, Behavior::merged_with_next);
    return all;
  }

 private:
  Regex space_, mark_;
  std::string replacement_;
  Prepend prepend_;
  bool cut_;
};

class CharacterSplit : public Cutter {
 public:
  CharacterSplit(bool (*test)(char32_t), Behavior behavior) : test_(test), behavior_(behavior) {}

 protected:
  std::vector<Cut> cuts(const std::string& text) const override {
    std::vector<Cut> all = cover_characters(text, test_);
    apply_behavior(all, behavior_);
    return all;
  }

 private:
  bool (*test_)(char32_t);
  Behavior behavior_;
};

// Runs of word characters and runs of other visible characters.
class Whitespace : public Cutter {
 protected:
  std::vector<Cut> cuts(const std::string& text) const override {
    std::vector<Cut> out;
    int last = 0;
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const char32_t c = next_code_point(text, pos);
      const int kind = is_word_character(c) ? 1 : is_white_space(c) ? 0 : 2;
      if (kind != 0 && kind == last) {
        out.back().range.second = pos;
      } else if (kind != 0) {
        out.push_back({{at, pos}, false});
      }
      last = kind;
    }
    return out;
  }
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void split(std::vector<Piece>& pieces) const override {
    for (const auto& part : parts_) part->split(pieces);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

Behavior read_behavior(const ComponentSource& source, const std::string& fallback) {
  const std::string name = fallback.empty() ? source.object.require_string("behavior")
                                            : source.object.get_string("behavior", fallback);
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  source.object.fail("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

std::unique_ptr<PreTokenizer> make_metaspace(const ComponentSource& source) {
  const std::string replacement = source.object.get_string("replacement", "\xE2\x96\x81");
  size_t pos = 0;
  if (replacement.empty() || (next_code_point(replacement, pos), pos != replacement.size())) {
    source.object.fail("replacement", "one character");
  }
  const bool legacy = source.object.get_bool("add_prefix_space", true);
  const std::string scheme = source.object.get_string("prepend_scheme", legacy ? "always" : "never");
  const bool cut = source.object.get_bool("split", true);
  using Prepend = Metaspace::Prepend;
  if (scheme == "never" || !legacy) return std::make_unique<Metaspace>(replacement, Prepend::never, cut);
  if (scheme == "first") return std::make_unique<Metaspace>(replacement, Prepend::first, cut);
  if (scheme == "always") return std::make_unique<Metaspace>(replacement, Prepend::always, cut);
  source.object.fail("prepend_scheme", "always, first or never");
}

std::unique_ptr<PreTokenizer> make_sequence(const ComponentSource& source) {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  for (const auto& item : source.list("pretokenizers")) {
    const std::string where = source.where + ".pretokenizers[" + std::to_string(parts.size()) + "]";
    parts.push_back(make_pre_tokenizer(item, source.file(), where));
    if (!parts.back()) throw_unknown_component("null", source.file(), where, "an object with a type");
  }
  return std::make_unique<Sequence>(std::move(parts));
}

struct Row {
  const char* type;
  std::unique_ptr<PreTokenizer> (*make)(const ComponentSource&);
};

using Source = const ComponentSource&;
using Made = std::unique_ptr<PreTokenizer>;

const Row kTable[] = {
    {"Sequence", make_sequence},
    {"ByteLevel",
     [](Source s) -> Made {
       return std::make_unique<ByteLevel>(s.object.get_bool("add_prefix_space", true),
                                          s.object.get_bool("use_regex", true));
     }},
    {"Split",
     [](Source s) -> Made {
       return std::make_unique<Split>(read_pattern(s), read_behavior(s, ""), s.object.get_bool("invert", false));
     }},
    {"Metaspace", make_metaspace},
    {"Whitespace", [](Source) -> Made { return std::make_unique<Whitespace>(); }},
    {"WhitespaceSplit",
     [](Source) -> Made { return std::make_unique<CharacterSplit>(&is_white_space, Behavior::removed); }},
    {"Digits",
     [](Source s) -> Made {
       const bool one_by_one = s.object.get_bool("individual_digits", false);
       return std::make_unique<CharacterSplit>(&is_number, one_by_one ? Behavior::isolated : Behavior::contiguous);
     }},
    {"Punctuation",
     [](Source s) -> Made { return std::make_unique<CharacterSplit>(&is_punctuation, read_behavior(s, "Isolated")); }},
    {"CharDelimiterSplit",
     [](Source s) -> Made {
       return std::make_unique<Split>(Regex::literal(s.object.require_string("delimiter"), s.at("delimiter")),
                                      Behavior::removed, false);
     }},
};

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const nlohmann::json& section, const std::string& file,
                                                 const std::string& where) {
  return make_component<PreTokenizer>(section, file, where, kTable);
}

}  // namespace thimble
