// Normalizers: what is done to the text before it is cut. One class per type, one row per class.
#include <vector>

#include "models/tokenizer/base64.h"
#include "models/tokenizer/component.h"
#include "models/tokenizer/normalizers_text.h"
#include "models/tokenizer/pattern.h"
#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  std::string normalize(std::string text) const override { return text.empty() ? text : text_ + text; }

 private:
  std::string text_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex regex, std::string content) : regex_(std::move(regex)), content_(std::move(content)) {}
  std::string normalize(std::string text) const override { return replace_all(regex_, text, content_); }

 private:
  Regex regex_;
  std::string content_;
};

// One literal for another, without a list of matches.
class ReplaceText : public Normalizer {
 public:
  ReplaceText(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  std::string normalize(std::string text) const override {
    size_t found = text.find(from_);
    if (found == std::string::npos) return text;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    size_t pos = 0;
    for (; found != std::string::npos; found = text.find(from_, pos)) {
      out.append(text, pos, found - pos);
      out += to_;
      pos = found + from_.size();
    }
    out.append(text, pos);
    return out;
  }

 private:
  std::string from_, to_;
};

// Control characters fall away, other marks of format become spaces.
class Nmt : public Normalizer {
 public:
  std::string normalize(std::string text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const char32_t c = next_code_point(text, pos);
      if ((c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F)
        continue;
      const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
                         c == 0xFFFD;
      if (space) {
        out += ' ';
      } else {
        out.append(text, at, pos - at);
      }
    }
    return out;
  }
};

class Unicode : public Normalizer {
 public:
  explicit Unicode(NormalForm form) : form_(form) {}
  std::string normalize(std::string text) const override { return normalize_utf8(text, form_); }

 private:
  NormalForm form_;
};

class Lowercase : public Normalizer {
 public:
  std::string normalize(std::string text) const override { return lowercase_utf8(text); }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::string normalize(std::string text) const override {
    size_t begin = text.size(), end = 0;  // of what is no white space
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      if (is_white_space(next_code_point(text, pos))) continue;
      begin = std::min(begin, at);
      end = pos;
    }
    if (!left_) begin = 0;
    if (!right_) end = text.size();
    return begin < end ? text.substr(begin, end - begin) : std::string();
  }

 private:
  bool left_, right_;
};

class StripAccents : public Normalizer {
 public:
  std::string normalize(std::string text) const override {
    std::string out;
    for (size_t pos = 0; pos < text.size();) {
      const char32_t c = next_code_point(text, pos);
      if (!is_mark(c)) append_utf8(out, c);
    }
    return out;
  }
};

class ByteLevel : public Normalizer {
 public:
  std::string normalize(std::string text) const override {
    std::string out;
    append_byte_level(out, text);
    return out;
  }
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  std::string normalize(std::string text) const override {
    for (const auto& part : parts_) text = part->normalize(std::move(text));
    return text;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

std::unique_ptr<Normalizer> make_sequence(const ComponentSource& source) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  for (const auto& item : source.list("normalizers")) {
    const std::string where = source.where + ".normalizers[" + std::to_string(parts.size()) + "]";
    parts.push_back(make_normalizer(item, source.file(), where));
    if (!parts.back()) throw_unknown_component("null", source.file(), where, "an object with a type");
  }
  return std::make_unique<Sequence>(std::move(parts));
}

template <NormalForm form>
std::unique_ptr<Normalizer> make_unicode(const ComponentSource&) {
  return std::make_unique<Unicode>(form);
}

std::unique_ptr<Normalizer> make_replace(const ComponentSource& source) {
  const auto pattern = source.object.object("pattern");
  std::string content = source.object.require_string("content");
  if (pattern && !pattern->has("Regex")) {
    std::string text = pattern->require_string("String");
    if (!text.empty()) return std::make_unique<ReplaceText>(std::move(text), std::move(content));
  }
  return std::make_unique<Replace>(read_pattern(source), std::move(content));
}

std::unique_ptr<Normalizer> make_bert(const ComponentSource& source) {
  BertRules rules;
  rules.clean_text = source.object.get_bool("clean_text", true);
  rules.chinese_characters = source.object.get_bool("handle_chinese_chars", true);
  rules.lowercase = source.object.get_bool("lowercase", true);
  rules.strip_accents = source.object.get_bool("strip_accents", rules.lowercase);
  return make_bert_normalizer(rules);
}

std::unique_ptr<Normalizer> make_precompiled(const ComponentSource& source) {
  std::string blob;
  if (!decode_base64(source.object.get_string("precompiled_charsmap", ""), blob)) {
    source.object.fail("precompiled_charsmap", "base64");
  }
  return make_precompiled_normalizer(Charsmap(blob, source.at("precompiled_charsmap")));
}

struct Row {
  const char* type;
  std::unique_ptr<Normalizer> (*make)(const ComponentSource&);
};

using Source = const ComponentSource&;
using Made = std::unique_ptr<Normalizer>;

const Row kTable[] = {
    {"Sequence", make_sequence},
    {"Prepend", [](Source s) -> Made { return std::make_unique<Prepend>(s.object.require_string("prepend")); }},
    {"Replace", make_replace},
    {"BertNormalizer", make_bert},
    {"Precompiled", make_precompiled},
    {"Nmt", [](Source) -> Made { return std::make_unique<Nmt>(); }},
    {"NFC", make_unicode<NormalForm::nfc>},
    {"NFD", make_unicode<NormalForm::nfd>},
    {"NFKC", make_unicode<NormalForm::nfkc>},
    {"NFKD", make_unicode<NormalForm::nfkd>},
    {"Lowercase", [](Source) -> Made { return std::make_unique<Lowercase>(); }},
    {"Strip",
     [](Source s) -> Made {
       return std::make_unique<Strip>(s.object.get_bool("strip_left", true), s.object.get_bool("strip_right", true));
     }},
    {"StripAccents", [](Source) -> Made { return std::make_unique<StripAccents>(); }},
    {"ByteLevel", [](Source) -> Made { return std::make_unique<ByteLevel>(); }},
};

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& section, const std::string& file,
                                            const std::string& where) {
  return make_component<Normalizer>(section, file, where, kTable);
}

}  // namespace thimble
