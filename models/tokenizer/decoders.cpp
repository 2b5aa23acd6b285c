// Decoders: pieces -> text. Each decoder starts one stage; stages hold back only what later tokens can still change.
#include <utility>

#include "models/tokenizer/component.h"
#include "models/tokenizer/pattern.h"
#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

// A stage that looks at whole tokens.
class TokenStage : public DecodeStage {
 public:
  void put(std::string_view bytes) final { token_ += bytes; }
  void end_token() final {
    std::string token;
    token.swap(token_);
    on_token(std::move(token));
  }
  void finish() override { next_->finish(); }

 protected:
  virtual void on_token(std::string token) = 0;
  void pass(std::string_view token) {
    next_->put(token);
    next_->end_token();
  }

 private:
  std::string token_;
};

class ByteLevelStage : public TokenStage {
 public:
  void finish() override {
    if (!pending_.empty()) next_->put(utf8_lossy(pending_));
    if (any_) next_->end_token();
    next_->finish();
  }

 protected:
  // All tokens together are one string of bytes: a character may be spread over several tokens.
  void on_token(std::string token) override {
    any_ = true;
    std::string bytes;
    pending_ += from_byte_level(token, bytes) ? bytes : token;
    size_t safe = 0;
    while (safe < pending_.size()) {
      const Utf8Step step = utf8_step(pending_, safe);
      if (step.incomplete) break;
      safe += step.length;
    }
    if (safe > 0) next_->put(utf8_lossy(std::string_view(pending_).substr(0, safe)));
    pending_.erase(0, safe);
  }

 private:
  std::string pending_;
  bool any_ = false;
};

class ReplaceStage : public TokenStage {
 public:
  ReplaceStage(const Regex* regex, const std::string* content) : regex_(regex), content_(content) {}

 protected:
  void on_token(std::string token) override { pass(replace_all(*regex_, token, *content_)); }

 private:
  const Regex* regex_;
  const std::string* content_;
};

class ByteFallbackStage : public TokenStage {
 public:
  void finish() override {
    flush();
    next_->finish();
  }

 protected:
  // A run of byte tokens is a text when it is well-formed as a whole; otherwise each byte shows as U+FFFD.
  void on_token(std::string token) override {
    const int value = byte_token_value(token);
    if (value >= 0) {
      run_ += static_cast<char>(value);
      return;
    }
    flush();
    pass(token);
  }

 private:
  void flush() {
    if (run_.empty()) return;
    if (find_invalid_utf8(run_) == std::string::npos) {
      pass(run_);
    } else {
      for (size_t i = 0; i < run_.size(); ++i) pass("\xEF\xBF\xBD");
    }
    run_.clear();
  }
  std::string run_;
};

class FuseStage : public DecodeStage {
 public:
  void put(std::string_view bytes) override { next_->put(bytes); }
  void end_token() override {}
  void finish() override {
    next_->end_token();
    next_->finish();
  }
};

// Cuts up to `start` leading and `stop` trailing occurrences of one character from each token.
class StripStage : public DecodeStage {
 public:
  StripStage(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void put(std::string_view bytes) override {
    held_ += bytes;
    while (leading_ && cut_ < start_ && held_.compare(0, content_.size(), content_) == 0) {
      held_.erase(0, content_.size());
      ++cut_;
    }
    if (held_.empty()) return;
    leading_ = false;
    if (stop_ > 0) return;
    next_->put(held_);
    held_.clear();
  }
  void end_token() override {
    for (size_t i = 0; i < stop_ && held_.size() >= content_.size() &&
                       held_.compare(held_.size() - content_.size(), content_.size(), content_) == 0;
         ++i) {
      held_.resize(held_.size() - content_.size());
    }
    next_->put(held_);
    held_.clear();
    next_->end_token();
    leading_ = true;
    cut_ = 0;
  }
  void finish() override { next_->finish(); }

 private:
  std::string content_, held_;
  size_t start_, stop_, cut_ = 0;
  bool leading_ = true;
};

class MetaspaceStage : public TokenStage {
 public:
  MetaspaceStage(std::string replacement, bool prepended)
      : replacement_(std::move(replacement)), prepended_(prepended) {}

 protected:
  void on_token(std::string token) override {
    std::string out;
    for (size_t pos = 0; pos < token.size();) {
      const size_t at = pos;
      next_code_point(token, pos);
      if (token.compare(at, pos - at, replacement_) != 0) {
        out.append(token, at, pos - at);
      } else if (!first_ || !prepended_) {
        out += ' ';
      }
    }
    first_ = false;
    pass(out);
  }

 private:
  std::string replacement_;
  bool prepended_, first_ = true;
};

// The end-of-word mark becomes a space, except on the last token, which is therefore held back by one.
class BpeStage : public TokenStage {
 public:
  explicit BpeStage(Regex suffix) : suffix_(std::move(suffix)) {}
  void finish() override {
    if (any_) pass(replace_all(suffix_, last_, ""));
    next_->finish();
  }

 protected:
  void on_token(std::string token) override {
    if (any_) pass(replace_all(suffix_, last_, " "));
    last_ = std::move(token);
    any_ = true;
  }

 private:
  Regex suffix_;
  std::string last_;
  bool any_ = false;
};

// English typography: no space before punctuation and contractions. Within one token, in this order.
std::string cleaned_up(std::string token) {
  static constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  if (token.find(' ') == std::string::npos) return token;
  for (const auto& [from, to] : kRules) {
    for (size_t at = token.find(from); at != std::string::npos; at = token.find(from, at + to.size())) {
      token.replace(at, from.size(), to);
    }
  }
  return token;
}

// A space before every token but the first and those that continue a word.
class WordPieceStage : public TokenStage {
 public:
  WordPieceStage(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}

 protected:
  void on_token(std::string token) override {
    if (!first_) {
      if (token.compare(0, prefix_.size(), prefix_) == 0) {
        token.erase(0, prefix_.size());
      } else {
        token.insert(0, " ");
      }
    }
    first_ = false;
    pass(cleanup_ ? cleaned_up(std::move(token)) : token);
  }

 private:
  std::string prefix_;
  bool cleanup_, first_ = true;
};

// Connectionist temporal classification: repetitions count once, the pad token only keeps them apart.
class CtcStage : public TokenStage {
 public:
  CtcStage(Regex pad, Regex delimiter, bool cleanup)
      : pad_(std::move(pad)), delimiter_(std::move(delimiter)), cleanup_(cleanup) {}

 protected:
  void on_token(std::string token) override {
    if (any_ && token == last_) return;
    last_ = token;
    any_ = true;
    token = replace_all(pad_, token, "");
    if (cleanup_) token = replace_all(delimiter_, cleaned_up(std::move(token)), " ");
    if (!token.empty()) pass(token);
  }

 private:
  Regex pad_, delimiter_;
  bool cleanup_, any_ = false;
  std::string last_;
};

// Wraps a callable that makes a stage: decoders themselves hold nothing but parameters.
template <typename Make>
class StageDecoder : public Decoder {
 public:
  explicit StageDecoder(Make make) : make_(std::move(make)) {}
  void start(std::vector<std::unique_ptr<DecodeStage>>& stages) const override { stages.push_back(make_()); }

 private:
  Make make_;
};

template <typename Make>
std::unique_ptr<Decoder> stage_decoder(Make make) {
  return std::make_unique<StageDecoder<Make>>(std::move(make));
}

class ReplaceDecoder : public Decoder {
 public:
  ReplaceDecoder(Regex regex, std::string content) : regex_(std::move(regex)), content_(std::move(content)) {}
  void start(std::vector<std::unique_ptr<DecodeStage>>& stages) const override {
    stages.push_back(std::make_unique<ReplaceStage>(&regex_, &content_));
  }

 private:
  Regex regex_;
  std::string content_;
};

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> parts) : parts_(std::move(parts)) {}
  void start(std::vector<std::unique_ptr<DecodeStage>>& stages) const override {
    for (const auto& part : parts_) part->start(stages);
  }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

std::string read_character(const ComponentSource& source, const std::string& key, const std::string& fallback) {
  const std::string text = source.object.get_string(key, fallback);
  size_t pos = 0;
  if (text.empty() || (next_code_point(text, pos), pos != text.size())) source.object.fail(key, "one character");
  return text;
}

using Source = const ComponentSource&;
using Made = std::unique_ptr<Decoder>;

Made make_sequence(Source source) {
  std::vector<Made> parts;
  for (const auto& item : source.list("decoders")) {
    const std::string where = source.where + ".decoders[" + std::to_string(parts.size()) + "]";
    parts.push_back(make_decoder(item, source.file(), where));
    if (!parts.back()) throw_unknown_component("null", source.file(), where, "an object with a type");
  }
  return std::make_unique<Sequence>(std::move(parts));
}

Made make_strip(Source source) {
  const std::string content = read_character(source, "content", " ");
  const auto start = static_cast<size_t>(source.object.get_int("start", 0, 0, 1 << 20));
  const auto stop = static_cast<size_t>(source.object.get_int("stop", 0, 0, 1 << 20));
  return stage_decoder([=] { return std::make_unique<StripStage>(content, start, stop); });
}

Made make_metaspace(Source source) {
  const std::string replacement = read_character(source, "replacement", "\xE2\x96\x81");
  const bool legacy = source.object.get_bool("add_prefix_space", true);
  const bool prepended = legacy && source.object.get_string("prepend_scheme", "always") != "never";
  return stage_decoder([=] { return std::make_unique<MetaspaceStage>(replacement, prepended); });
}

struct Row {
  const char* type;
  Made (*make)(Source);
};

const Row kTable[] = {
    {"Sequence", make_sequence},
    {"ByteLevel", [](Source) { return stage_decoder([] { return std::make_unique<ByteLevelStage>(); }); }},
    {"Replace",
     [](Source s) -> Made {
       return std::make_unique<ReplaceDecoder>(read_pattern(s), s.object.require_string("content"));
     }},
    {"ByteFallback", [](Source) { return stage_decoder([] { return std::make_unique<ByteFallbackStage>(); }); }},
    {"Fuse", [](Source) { return stage_decoder([] { return std::make_unique<FuseStage>(); }); }},
    {"Strip", make_strip},
    {"Metaspace", make_metaspace},
    {"WordPiece",
     [](Source s) {
       const std::string prefix = s.object.get_string("prefix", "##");
       const bool cleanup = s.object.get_bool("cleanup", true);
       return stage_decoder([=] { return std::make_unique<WordPieceStage>(prefix, cleanup); });
     }},
    {"CTC",
     [](Source s) {
       const Regex pad = Regex::literal(s.object.get_string("pad_token", "<pad>"), s.at("pad_token"));
       const Regex delimiter =
           Regex::literal(s.object.get_string("word_delimiter_token", "|"), s.at("word_delimiter_token"));
       const bool cleanup = s.object.get_bool("cleanup", true);
       return stage_decoder([=] { return std::make_unique<CtcStage>(pad, delimiter, cleanup); });
     }},
    {"BPEDecoder",
     [](Source s) {
       const Regex suffix = Regex::literal(s.object.get_string("suffix", "</w>"), s.at("suffix"));
       return stage_decoder([=] { return std::make_unique<BpeStage>(suffix); });
     }},
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const nlohmann::json& section, const std::string& file,
                                      const std::string& where) {
  return make_component<Decoder>(section, file, where, kTable);
}

}  // namespace thimble
