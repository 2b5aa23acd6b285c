// Pre-tokenizers: where the text is cut before the model sees it. One class per type, one row per class.
#include <algorithm>
#include <iterator>

#include "models/tokenizer/component.h"
#include "models/tokenizer/pattern.h"
#include "models/tokenizer/scripts.h"
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

// Writes the cuts of one text as pieces.
void add_pieces(std::vector<Piece>& out, const Piece& piece, const std::vector<Cut>& cuts) {
  for (const Cut& cut : cuts) {
    const auto [begin, end] = cut.range;
    if (begin < end) out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
  }
}

void scan_piece(const ScannerRule& rule, const Piece& piece, std::vector<Piece>& out) {
  size_t ends[256];
  for (size_t pos = 0;;) {
    const size_t count = scan_pieces(rule, piece.text, pos, ends, std::size(ends));
    if (count == 0) return;
    for (size_t i = 0; i < count; ++i) {
      out.push_back({piece.text.substr(pos, ends[i] - pos), piece.at_start && pos == 0});
      pos = ends[i];
    }
  }
}

class Cutter : public PreTokenizer {
 public:
  void split(std::vector<Piece>& pieces, TextArena& arena, bool) const final {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (const Piece& piece : pieces) add_pieces(out, piece, cuts(piece.text));
    pieces = std::move(out);
  }

 protected:
  virtual std::vector<Cut> cuts(std::string_view text) const = 0;
};

class Split : public PreTokenizer {
 public:
  Split(Regex regex, Behavior behavior, bool invert) : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {
    // The expressions that have scanners cover the text: isolated pieces, and the removal of what lies between.
    const bool isolates = behavior == Behavior::isolated || (behavior == Behavior::removed && invert);
    const KnownPattern* known = isolates ? find_known_pattern(regex_.pattern()) : nullptr;
    if (known != nullptr) rule_ = &known->rule;
  }
  void split(std::vector<Piece>& pieces, TextArena&, bool) const override {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (const Piece& piece : pieces) {
      if (rule_ != nullptr) {
        scan_piece(*rule_, piece, out);
        continue;
      }
      std::vector<Cut> all = cover(regex_.find_all(piece.text), piece.text.size());
      if (invert_) {
        for (Cut& cut : all) cut.match = !cut.match;
      }
      apply_behavior(all, behavior_);
      add_pieces(out, piece, all);
    }
    pieces = std::move(out);
  }
  const ScannerRule* whole_scanner() const override { return rule_; }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
  const ScannerRule* rule_ = nullptr;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}

  void split(std::vector<Piece>& pieces, TextArena& arena, bool raw_bytes) const override {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (Piece piece : pieces) {
      if (add_prefix_space_ && piece.text.substr(0, 1) != " ") piece.text = arena.keep(" " + std::string(piece.text));
      if (use_regex_) {
        scan_piece(kGpt2Pattern.rule, piece, out);
      } else if (!piece.text.empty()) {
        out.push_back(piece);
      }
    }
    if (!raw_bytes) {
      for (Piece& piece : out) {
        std::string spelled;
        append_byte_level(spelled, piece.text);
        piece.text = arena.keep(std::move(spelled));
      }
    }
    pieces = std::move(out);
  }
  bool spells_bytes() const override { return true; }
  const ScannerRule* whole_scanner() const override {
    return use_regex_ && !add_prefix_space_ ? &kGpt2Pattern.rule : nullptr;
  }
  bool does_nothing_raw() const { return !use_regex_ && !add_prefix_space_; }

 private:
  bool add_prefix_space_, use_regex_;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { always, first, never };
  Metaspace(std::string replacement, Prepend prepend, bool cut)
      : replacement_(std::move(replacement)), prepend_(prepend), cut_(cut) {}

  void split(std::vector<Piece>& pieces, TextArena& arena, bool) const override {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (const Piece& piece : pieces) {
      const std::string_view from = piece.text;
      std::string text;
      text.reserve(from.size() + from.size() / 2 + 8);
      const bool wanted = prepend_ == Prepend::always || (prepend_ == Prepend::first && piece.at_start);
      const bool there = from.substr(0, 1) == " " || from.substr(0, replacement_.size()) == replacement_;
      if (wanted && !there) text += replacement_;
      for (size_t pos = 0; pos < from.size();) {
        const size_t space = std::min(from.find(' ', pos), from.size());
        text.append(from.substr(pos, space - pos));
        if (space < from.size()) text += replacement_;
        pos = space + 1;
      }
      const Piece whole{arena.keep(std::move(text)), piece.at_start};
      if (cut_) {
        // Each mark goes with what follows it; a mark behind a mark stands alone.
        for (size_t begin = 0; begin < whole.text.size();) {
          const size_t search =
              whole.text.compare(begin, replacement_.size(), replacement_) == 0 ? replacement_.size() : 0;
          const size_t end = std::min(whole.text.find(replacement_, begin + search), whole.text.size());
          out.push_back({whole.text.substr(begin, end - begin), whole.at_start && begin == 0});
          begin = end;
        }
      } else if (!whole.text.empty()) {
        out.push_back(whole);
      }
    }
    pieces = std::move(out);
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool cut_;
};

class CharacterSplit : public Cutter {
 public:
  CharacterSplit(bool (*test)(char32_t), Behavior behavior) : test_(test), behavior_(behavior) {}

 protected:
  std::vector<Cut> cuts(std::string_view text) const override {
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
  std::vector<Cut> cuts(std::string_view text) const override {
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

// White space falls away, each punctuation character is a piece of its own.
class Bert : public PreTokenizer {
 public:
  void split(std::vector<Piece>& pieces, TextArena&, bool) const override {
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (const Piece& piece : pieces) {
      const std::string_view text = piece.text;
      size_t from = 0;
      const auto end_word = [&](size_t end) {
        if (from < end) out.push_back({text.substr(from, end - from), piece.at_start && from == 0});
      };
      for (size_t pos = 0; pos < text.size();) {
        const size_t at = pos;
        const char32_t c = next_code_point(text, pos);
        const bool space = is_white_space(c);
        if (!space && !is_punctuation(c)) continue;
        end_word(at);
        from = space ? pos : at;
        end_word(pos);
        from = pos;
      }
      end_word(text.size());
    }
    pieces = std::move(out);
  }
};

class FixedLength : public Cutter {
 public:
  explicit FixedLength(int64_t length) : length_(length) {}

 protected:
  std::vector<Cut> cuts(std::string_view text) const override {
    std::vector<Cut> out;
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      for (int64_t i = 0; i < length_ && pos < text.size(); ++i) next_code_point(text, pos);
      out.push_back({{at, pos}, false});
    }
    return out;
  }

 private:
  int64_t length_;
};

// Cuts where the script changes. Spaces and unassigned characters belong to every script; those before the first
// character that has one fall away, as in the tokenizers library.
class UnicodeScripts : public Cutter {
 protected:
  std::vector<Cut> cuts(std::string_view text) const override {
    std::vector<Cut> out;
    int last = 0;
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const int script = split_script(next_code_point(text, pos));
      if (script != 0 && script != last) {
        out.push_back({{at, pos}, false});
        last = script;
      } else if (!out.empty()) {
        out.back().range.second = pos;
      }
    }
    return out;
  }
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void split(std::vector<Piece>& pieces, TextArena& arena, bool raw_bytes) const override {
    for (const auto& part : parts_) part->split(pieces, arena, raw_bytes && part == parts_.back());
  }
  bool spells_bytes() const override { return !parts_.empty() && parts_.back()->spells_bytes(); }
  const ScannerRule* whole_scanner() const override {
    if (parts_.size() == 1) return parts_[0]->whole_scanner();
    const auto* last = parts_.size() == 2 ? dynamic_cast<const ByteLevel*>(parts_[1].get()) : nullptr;
    return last != nullptr && last->does_nothing_raw() && !parts_[0]->spells_bytes() ? parts_[0]->whole_scanner()
                                                                                     : nullptr;
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

Behavior read_behavior(const ComponentSource& source, const std::string& fallback) {
  const std::string name =
      fallback.empty() ? source.object.require_string("behavior") : source.object.get_string("behavior", fallback);
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
    {"BertPreTokenizer", [](Source) -> Made { return std::make_unique<Bert>(); }},
    {"FixedLength",
     [](Source s) -> Made { return std::make_unique<FixedLength>(s.object.get_int("length", 5, 1, 1 << 30)); }},
    {"UnicodeScripts", [](Source) -> Made { return std::make_unique<UnicodeScripts>(); }},
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
