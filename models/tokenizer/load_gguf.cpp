// The vocabulary inside a GGUF file. llama.cpp has four kinds: "gpt2" (byte-level BPE with merges and a named
// pre-tokenizer), "llama" (SentencePiece BPE with scores), "bert" (WordPiece, words marked by U+2581) and "t5"
// (Unigram).
#include <algorithm>
#include <cmath>

#include "models/io/gguf.h"
#include "models/tokenizer/base64.h"
#include "models/tokenizer/gguf_pre.h"
#include "models/tokenizer/model_unigram.h"
#include "models/tokenizer/model_words.h"
#include "models/tokenizer/normalizers_text.h"
#include "models/tokenizer/scored_pieces.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr const char* kMark = "\xE2\x96\x81";
const std::string kPrefix = "tokenizer.ggml.";

[[noreturn]] void fail(const GgufFile& file, const std::string& field, const std::string& what) {
  throw Error(ErrorCode::input, file.path() + ": field \"" + kPrefix + field + "\": " + what,
              "the file is damaged, or was written by a program that llama.cpp would not read either");
}

struct Vocab {
  std::vector<std::string> texts;
  std::vector<float> scores;  // as many
  std::vector<PieceType> types;
};

Vocab read_vocab(const GgufFile& file) {
  Vocab vocab;
  const std::vector<std::string_view> tokens = file.get_strings(kPrefix + "tokens");
  if (tokens.empty()) fail(file, "tokens", "expected a list of pieces");
  if (tokens.size() > (size_t{1} << 26)) fail(file, "tokens", "expected at most 2^26 pieces");
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (find_invalid_utf8(tokens[id]) != std::string_view::npos) {
      fail(file, "tokens", "piece " + std::to_string(id) + ": expected UTF-8");
    }
    vocab.texts.emplace_back(tokens[id]);
  }
  vocab.scores = file.get_floats(kPrefix + "scores");
  if (!vocab.scores.empty() && vocab.scores.size() < tokens.size()) {
    fail(file, "scores", "expected one per piece, found " + std::to_string(vocab.scores.size()));
  }
  vocab.scores.resize(tokens.size());
  for (size_t id = 0; id < vocab.scores.size(); ++id) {
    if (!std::isfinite(vocab.scores[id]))
      fail(file, "scores", "piece " + std::to_string(id) + ": expected a finite score");
  }
  const std::vector<int64_t> types = file.get_ints(kPrefix + "token_type");
  if (!types.empty() && types.size() < tokens.size()) {
    fail(file, "token_type", "expected one per piece, found " + std::to_string(types.size()));
  }
  vocab.types.resize(tokens.size(), PieceType::normal);
  for (size_t id = 0; id < tokens.size() && !types.empty(); ++id) {
    if (types[id] >= 2 && types[id] <= 6) vocab.types[id] = static_cast<PieceType>(types[id]);
  }
  return vocab;
}

struct Defaults {
  int32_t bos = -1, eos = -1, unk = -1, sep = -1, pad = -1;
  bool add_bos = false, add_eos = false, add_sep = false;
  bool always_bos = false;  // even where the file declines
};

class Loader {
 public:
  Loader(const GgufFile& file, Vocab vocab) : file_(file), vocab_(std::move(vocab)) {
    parts_.file = file.path();
    parts_.format = "GGUF";
    parts_.sections = {{"version", "1.0"}};
    parts_.config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
    if (const auto chat = file.get_string("tokenizer.chat_template")) parts_.config["chat_template"] = *chat;
  }

  Tokenizer load(const std::string& model) {
    json added = json::array();
    std::string name = file_.get_string("general.name").value_or("");
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    // The format has no flags for added tokens; llama.cpp knows this family by its name, and so must we.
    const bool phi3 = name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos;
    for (size_t id = 0; id < vocab_.texts.size(); ++id) {
      const PieceType type = vocab_.types[id];
      const std::string& text = vocab_.texts[id];
      if (text.empty() || (type != PieceType::control && type != PieceType::unknown && type != PieceType::user_defined))
        continue;
      json entry = type == PieceType::user_defined ? plain_token_entry(static_cast<int32_t>(id), text)
                                                   : special_token_entry(static_cast<int32_t>(id), text);
      entry["rstrip"] = phi3 && text != "<unk>" && text != "<s>" && text != "<|endoftext|>";
      added.push_back(entry);
    }
    parts_.sections["added_tokens"] = added;
    if (model == "gpt2") {
      load_bpe();
    } else if (model == "llama") {
      load_scored();
    } else if (model == "bert") {
      load_words();
    } else if (model == "t5") {
      load_unigram();
    } else {
      throw Error(ErrorCode::unsupported,
                  file_.path() + ": field \"tokenizer.ggml.model\": " + quote_for_message(model) + " is not offered",
                  "offered here: gpt2, llama, bert, t5; put the model's tokenizer.json beside the file and name that");
    }
    return assemble_tokenizer(std::move(parts_));
  }

 private:
  int32_t special(const std::string& key, int32_t fallback) const {
    const auto id = file_.get_int(kPrefix + key);
    const auto count = static_cast<int64_t>(vocab_.texts.size());
    if (id && *id >= 0 && *id < count) return static_cast<int32_t>(*id);
    return fallback < count ? fallback : -1;
  }
  bool flag(const std::string& key, bool fallback) const { return file_.get_bool(kPrefix + key).value_or(fallback); }
  const std::string& text(int32_t id) const { return vocab_.texts[static_cast<size_t>(id)]; }

  // Post-processor and the names that the assembly asks tokenizer_config.json for.
  void put_specials(const Defaults& defaults) {
    const int32_t bos = special("bos_token_id", defaults.bos), eos = special("eos_token_id", defaults.eos);
    const int32_t sep = special("seperator_token_id", defaults.sep);  // the format's own spelling
    parts_.config["bos_token"] = bos >= 0 ? json(text(bos)) : json();
    parts_.config["eos_token"] = eos >= 0 ? json(text(eos)) : json();
    std::vector<NamedToken> before, behind;
    if ((defaults.always_bos || flag("add_bos_token", defaults.add_bos)) && bos >= 0) before.push_back({text(bos), bos});
    if (flag("add_sep_token", defaults.add_sep) && sep >= 0) behind.push_back({text(sep), sep});
    if (flag("add_eos_token", defaults.add_eos) && eos >= 0) behind.push_back({text(eos), eos});
    if (!before.empty() || !behind.empty()) parts_.sections["post_processor"] = around_template(before, behind);
  }

  static json replace(const std::string& from, const std::string& to) {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  }
  json spm_decoder(bool prefix) const {
    json list = json::array({replace(kMark, " "), json{{"type", "ByteFallback"}}, json{{"type", "Fuse"}}});
    if (prefix) list.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    return {{"type", "Sequence"}, {"decoders", list}};
  }

  void load_bpe() {
    const GgufPreTokenizer pre = gguf_pre_tokenizer(file_.get_string(kPrefix + "pre").value_or(""), file_.path());
    check_unique();
    Vocabulary vocabulary(vocab_.texts);
    std::vector<BpeMerge> merges;
    for (const std::string_view line : file_.get_strings(kPrefix + "merges")) {
      const size_t space = line.find(' ', 1);
      const auto malformed = [&](const std::string& what) {
        fail(file_, "merges", "entry " + std::to_string(merges.size()) + ": " + what);
      };
      if (space == std::string_view::npos) malformed("expected two pieces and a space");
      const std::string left(line.substr(0, space)), right(line.substr(space + 1));
      const BpeMerge merge{vocabulary.find(left), vocabulary.find(right), vocabulary.find(left + right),
                           static_cast<uint32_t>(merges.size())};
      if (merge.left < 0 || merge.right < 0 || merge.result < 0) malformed("expected pieces of the vocabulary");
      merges.push_back(merge);
    }
    BpeOptions options;
    options.ignore_merges = pre.ignore_merges;
    options.byte_fallback = !pre.spells_bytes;
    parts_.model = std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
    if (pre.spells_bytes) {
      parts_.sections["pre_tokenizer"] = split_and_spell(pre.regexes);
      parts_.sections["decoder"] = byte_level_section(true, true);
    } else {
      parts_.sections["normalizer"] = replace(" ", kMark);
      parts_.sections["pre_tokenizer"] = split_and_spell(pre.regexes)["pretokenizers"][0];
      parts_.sections["decoder"] = spm_decoder(false);
    }
    Defaults defaults;
    defaults.add_bos = pre.add_bos;
    defaults.always_bos = pre.add_bos && !pre.spells_bytes;  // Gemma 4: early files decline what the model needs
    defaults.add_sep = pre.add_separator;
    put_specials(defaults);
  }

  void load_scored() {
    // llama.cpp merges whatever is in the vocabulary; user-defined pieces are cut out of the text before.
    std::vector<ScoredPiece> pieces;
    for (size_t id = 0; id < vocab_.texts.size(); ++id) {
      const PieceType type = vocab_.types[id];
      const bool merges = type == PieceType::user_defined || type == PieceType::unused;
      pieces.push_back({vocab_.texts[id], vocab_.scores[id], merges ? PieceType::normal : type});
    }
    parts_.model = make_scored_bpe(pieces, file_.path());
    const bool prefix = flag("add_space_prefix", true);
    json normalizers = json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kMark}});
    normalizers.push_back(replace(" ", kMark));
    parts_.sections["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
    parts_.sections["decoder"] = spm_decoder(prefix);
    Defaults defaults;
    defaults.bos = 1;
    defaults.eos = 2;
    defaults.add_bos = true;
    put_specials(defaults);
  }

  void load_words() {
    const int32_t unk = special("unknown_token_id", 100);
    if (unk < 0) fail(file_, "unknown_token_id", "expected the id of a piece");
    check_unique();
    WordPieceOptions options;
    options.unk_token = text(unk);
    options.continuing_subword_prefix = "";
    options.word_prefix = kMark;
    options.max_input_chars_per_word = int64_t{1} << 40;
    const std::string unk_token = options.unk_token;
    parts_.model = std::make_unique<WordPieceModel>(Vocabulary(vocab_.texts), std::move(options));
    const bool lowercase = file_.get_bool("tokenizer.ggml.normalizer.lowercase").value_or(true);
    const bool accents = file_.get_bool("tokenizer.ggml.normalizer.strip_accents").value_or(lowercase);
    parts_.sections["normalizer"] = {{"type", "BertNormalizer"},
                                     {"clean_text", true},
                                     {"handle_chinese_chars", true},
                                     {"strip_accents", accents},
                                     {"lowercase", lowercase}};
    parts_.sections["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
    parts_.sections["decoder"] = {
        {"type", "Sequence"},
        {"decoders", json::array({replace(kMark, " "), json{{"type", "Fuse"}},
                                  json{{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}};
    Defaults defaults;
    defaults.bos = special("cls_token_id", 101);
    defaults.sep = 102;
    defaults.eos = 102;
    defaults.add_bos = true;
    defaults.add_sep = true;
    put_specials(defaults);
  }

  void load_unigram() {
    UnigramOptions options;
    options.unk_id = special("unknown_token_id", 2);
    if (options.unk_id < 0) fail(file_, "unknown_token_id", "expected the id of a piece");
    std::vector<double> scores;
    double lowest = 0;
    SentencePieceRules rules;
    for (size_t id = 0; id < vocab_.texts.size(); ++id) {
      const PieceType type = vocab_.types[id];
      if (type == PieceType::normal) lowest = std::min(lowest, static_cast<double>(vocab_.scores[id]));
      scores.push_back(type == PieceType::user_defined ? 0.0 : static_cast<double>(vocab_.scores[id]));
      options.excluded.push_back(type != PieceType::normal && type != PieceType::user_defined &&
                                 type != PieceType::unused);
      if (type == PieceType::user_defined) rules.user_defined.add(vocab_.texts[id], static_cast<int32_t>(id));
    }
    auto model = std::make_unique<UnigramModel>(Vocabulary(vocab_.texts), std::move(scores), std::move(options));
    model->set_unknown_score(static_cast<double>(static_cast<float>(lowest) - 10.0F));
    parts_.model = std::move(model);
    std::string table;
    for (const int64_t byte : file_.get_ints(kPrefix + "precompiled_charsmap")) table += static_cast<char>(byte & 0xFF);
    rules.charsmap = Charsmap(table, file_.path() + ": field \"tokenizer.ggml.precompiled_charsmap\"");
    rules.add_dummy_prefix = flag("add_space_prefix", false);
    rules.remove_extra_whitespaces = flag("remove_extra_whitespaces", false);
    const bool prefix = rules.add_dummy_prefix;
    json normalizers = json::array();
    if (!table.empty())
      normalizers.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", encode_base64(table)}});
    if (rules.remove_extra_whitespaces) {
      for (const auto& [pattern, content] : {std::pair("\\A +| +\\z", ""), std::pair(" {2,}", " ")}) {
        normalizers.push_back({{"type", "Replace"}, {"pattern", {{"Regex", pattern}}}, {"content", content}});
      }
    }
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kMark}});
    normalizers.push_back(replace(" ", kMark));
    parts_.normalizer = make_sentencepiece_normalizer(std::move(rules));
    parts_.sections["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
    parts_.sections["decoder"] = spm_decoder(prefix);
    Defaults defaults;
    defaults.eos = 1;
    defaults.add_eos = true;
    put_specials(defaults);
  }

  void check_unique() const {
    const Vocabulary vocabulary(vocab_.texts);
    for (size_t id = 0; id < vocab_.texts.size(); ++id) {
      if (vocab_.texts[id].empty()) continue;
      const int32_t first = vocabulary.find(vocab_.texts[id]);
      if (first != static_cast<int32_t>(id)) {
        fail(file_, "tokens",
             quote_for_message(vocab_.texts[id]) + " occurs twice, as ids " + std::to_string(first) + " and " +
                 std::to_string(id));
      }
    }
  }

  const GgufFile& file_;
  Vocab vocab_;
  TokenizerParts parts_;
};

}  // namespace

Tokenizer load_gguf_tokenizer(const std::string& path) {
  const GgufFile file(path);
  const auto model = file.get_string(kPrefix + "model");
  if (!model) {
    throw Error(ErrorCode::input, path + ": field \"tokenizer.ggml.model\": the file holds no tokenizer",
                "name the model's tokenizer.json or another GGUF file");
  }
  if (*model == "no_vocab" || *model == "none") {
    throw Error(ErrorCode::input,
                path + ": field \"tokenizer.ggml.model\": the file was written without its vocabulary",
                "name the model's tokenizer.json or another GGUF file");
  }
  return Loader(file, read_vocab(file)).load(*model);
}

}  // namespace thimble
