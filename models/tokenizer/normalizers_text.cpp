// The larger normalizers: BERT's, and the two readings of SentencePiece's character table.
#include "models/tokenizer/normalizers_text.h"

#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";

bool is_ideograph(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

class Bert : public Normalizer {
 public:
  explicit Bert(const BertRules& rules) : rules_(rules) {}

  std::string normalize(std::string text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const char32_t c = next_code_point(text, pos);
      if (rules_.clean_text) {
        if (c == '\t' || c == '\n' || c == '\r' || c == ' ') {
          out += ' ';
          continue;
        }
        if (c == 0 || c == 0xFFFD || is_other(c)) continue;
        if (c >= 0x80 && is_white_space(c)) {
          out += ' ';
          continue;
        }
      }
      const bool alone = rules_.chinese_characters && c >= 0x3400 && is_ideograph(c);
      if (alone) out += ' ';
      if (c < 0x80 && rules_.lowercase && !rules_.strip_accents) {
        append_lowercase(out, c);
      } else {
        out.append(text, at, pos - at);
      }
      if (alone) out += ' ';
    }
    if (rules_.strip_accents) {
      text = normalize_utf8(out, NormalForm::nfd);
      out.clear();
      for (size_t pos = 0; pos < text.size();) {
        const size_t at = pos;
        const char32_t c = next_code_point(text, pos);
        if (is_nonspacing_mark(c)) continue;
        if (rules_.lowercase) {
          append_lowercase(out, c);
        } else {
          out.append(text, at, pos - at);
        }
      }
      return out;
    }
    return rules_.lowercase ? lowercase_utf8(out) : out;
  }

 private:
  BertRules rules_;
};

class SentencePiece : public Normalizer {
 public:
  explicit SentencePiece(SentencePieceRules rules) : rules_(std::move(rules)) {}

  std::string normalize(std::string text) const override {
    const bool strip = rules_.remove_extra_whitespaces;
    const std::string_view space = rules_.escape_whitespaces ? kMark : std::string_view(" ");
    size_t pos = 0;
    while (strip && pos < text.size()) {
      const auto [length, part] = next(text, pos);
      if (part != " ") break;
      pos += length;
    }
    if (pos == text.size()) return {};
    std::string out;
    out.reserve(text.size() + text.size() / 2 + 8);
    const bool dummy = rules_.add_dummy_prefix;
    if (dummy && !rules_.whitespace_as_suffix) out += space;
    bool after_space = strip;
    while (pos < text.size()) {
      auto [length, part] = next(text, pos);
      pos += length;
      while (after_space && part.substr(0, 1) == " ") part.remove_prefix(1);
      if (part.empty()) continue;
      for (const char c : part) {
        if (c == ' ') {
          out += space;
        } else {
          out += c;
        }
      }
      after_space = strip && part.back() == ' ';
    }
    if (strip) {
      while (out.size() >= space.size() && out.compare(out.size() - space.size(), space.size(), space) == 0) {
        out.resize(out.size() - space.size());
      }
    }
    if (dummy && rules_.whitespace_as_suffix) out += space;
    return out;
  }

 private:
  struct Part {
    size_t length;
    std::string_view text;
  };
  Part next(std::string_view text, size_t pos) const {
    const std::string_view rest = text.substr(pos);
    if (!rules_.user_defined.empty()) {
      if (const size_t length = rules_.user_defined.longest(rest).length; length > 0)
        return {length, rest.substr(0, length)};
    }
    if (!rules_.charsmap.empty()) {
      const Charsmap::Match match = rules_.charsmap.longest(rest);
      // A replacement that ends inside a character is a damaged table's.
      if (match.length > 0 &&
          (match.length == rest.size() || (static_cast<unsigned char>(rest[match.length]) & 0xC0) != 0x80)) {
        return {match.length, match.replacement};
      }
    }
    size_t end = pos;
    next_code_point(text, end);
    return {end - pos, text.substr(pos, end - pos)};
  }

  SentencePieceRules rules_;
};

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(Charsmap charsmap) : charsmap_(std::move(charsmap)) {}

  std::string normalize(std::string text) const override {
    std::string out;
    out.reserve(text.size());
    const std::string_view all = text;
    for (size_t pos = 0; pos < text.size();) {
      const size_t end = grapheme_end(all, pos);
      // A cluster below six bytes is looked up as a whole, and the first entry that begins it replaces all of it.
      if (end - pos < 6) {
        const Charsmap::Match match = charsmap_.shortest(all.substr(pos, end - pos));
        if (match.length > 0) {
          out += match.replacement;
          pos = end;
          continue;
        }
      }
      while (pos < end) {
        const size_t at = pos;
        next_code_point(all, pos);
        const std::string_view character = all.substr(at, pos - at);
        const Charsmap::Match match = charsmap_.shortest(character);
        out += match.length > 0 ? match.replacement : character;
      }
    }
    return out;
  }

 private:
  Charsmap charsmap_;
};

}  // namespace

std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceRules rules) {
  return std::make_unique<SentencePiece>(std::move(rules));
}

std::unique_ptr<Normalizer> make_bert_normalizer(const BertRules& rules) { return std::make_unique<Bert>(rules); }

std::unique_ptr<Normalizer> make_precompiled_normalizer(Charsmap charsmap) {
  return std::make_unique<Precompiled>(std::move(charsmap));
}

}  // namespace thimble
