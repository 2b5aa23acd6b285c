// The pipeline around the model, and the choice of a loader.
#include "models/tokenizer/tokenizer.h"

#include <dirent.h>

#include <algorithm>

#include "models/io/gguf.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {

struct Tokenizer::State {
  std::string file, format;
  nlohmann::json sections, config;
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  std::unique_ptr<PostProcessor> post_processor;
  std::unique_ptr<Decoder> decoder;
  std::vector<AddedToken> added;
  std::unordered_map<int32_t, size_t> added_by_id;
  std::unordered_map<std::string, int32_t> added_by_content;
  AddedTokenMatcher raw_matcher, normalized_matcher;
  int32_t vocab_size = 0, bos = -1, eos = -1;
  bool prepend_bos = false, append_eos = false;  // asked for by the config, not done by the post-processor
  bool strip_after_bos = false;
  bool raw_bytes = false;                // the model spells bytes itself
  const ScannerRule* scanner = nullptr;  // all that the pre-tokenizer does, then

  int32_t find(const std::string& piece) const {
    const auto at = added_by_content.find(piece);
    return at == added_by_content.end() ? model->find(piece) : at->second;
  }
  const std::string& piece(int32_t id) const {
    if (id < 0 || id >= vocab_size) {
      throw Error(ErrorCode::input,
                  "token id " + std::to_string(id) + " is outside [0, " + std::to_string(vocab_size) + ") of " + file,
                  "the ids come from another tokenizer, or the model's vocabulary is larger than the tokenizer's");
    }
    static const std::string kHole;
    const auto at = added_by_id.find(id);
    if (at != added_by_id.end()) return added[at->second].content;
    return id < model->size() ? model->piece(id) : kHole;
  }
  bool special(int32_t id) const {
    const auto at = added_by_id.find(id);
    return at != added_by_id.end() && added[at->second].special;
  }
  void encode_text(std::string_view text, bool at_start, std::vector<int32_t>& ids) const {
    if (text.empty()) return;
    if (scanner != nullptr) {  // cutting and looking up in turns, so that a long text needs no list of its pieces
      constexpr size_t kBlock = 256;
      size_t ends[kBlock];
      Piece block[kBlock];
      for (size_t pos = 0; pos < text.size();) {
        const size_t count = scan_pieces(*scanner, text, pos, ends, kBlock);
        for (size_t i = 0; i < count; ++i) {
          block[i] = {text.substr(pos, ends[i] - pos), at_start && pos == 0};
          pos = ends[i];
        }
        model->encode(block, count, raw_bytes, ids);
      }
      return;
    }
    std::vector<Piece> pieces = {{text, at_start}};
    TextArena arena;
    if (pre_tokenizer) pre_tokenizer->split(pieces, arena, raw_bytes);
    model->encode(pieces.data(), pieces.size(), raw_bytes, ids);
  }
};

namespace {

constexpr size_t kMaxAddedToken = 4096;

void read_added_tokens(const TokenizerParts& parts, Tokenizer::State& state) {
  const JsonObject root(parts.sections, parts.file);
  const nlohmann::json* list = root.find("added_tokens");
  if (list == nullptr) return;
  if (!list->is_array()) root.fail("added_tokens", "a list");
  const size_t entries = list->size() + static_cast<size_t>(parts.model->size());
  for (size_t i = 0; i < list->size(); ++i) {
    const JsonObject item((*list)[i], parts.file, "added_tokens[" + std::to_string(i) + "]");
    AddedToken token;
    const int64_t id = item.require_int("id", 0, INT32_MAX);
    token.content = item.require_string("content");
    token.special = item.get_bool("special", false);
    token.normalized = item.get_bool("normalized", !token.special);
    token.single_word = item.get_bool("single_word", false);
    token.lstrip = item.get_bool("lstrip", false);
    token.rstrip = item.get_bool("rstrip", false);
    if (token.content.empty()) continue;
    if (token.content.size() > kMaxAddedToken) item.fail("content", "at most 4096 bytes");
    if (!plausible_id(id, entries)) item.fail("id", "an id in proportion to the size of the vocabulary");
    token.id = static_cast<int32_t>(id);
    const int32_t known = parts.model->find(token.content);
    if (known >= 0 && known != token.id) {
      item.fail("id", "the id that the vocabulary gives to " + quote_for_message(token.content) + ", " +
                          std::to_string(known));
    }
    if (known < 0 && token.id < parts.model->size() && !parts.model->piece(token.id).empty()) {
      item.fail("id", "an id that is not taken by " + quote_for_message(parts.model->piece(token.id)));
    }
    const auto same = state.added_by_content.find(token.content);
    if (same != state.added_by_content.end()) {
      if (same->second == token.id) continue;
      item.fail("content", "contents that occur once");
    }
    if (!state.added_by_id.emplace(token.id, state.added.size()).second) item.fail("id", "ids that occur once");
    state.added_by_content.emplace(token.content, token.id);
    state.vocab_size = std::max(state.vocab_size, token.id + 1);
    state.added.push_back(std::move(token));
  }
}

// A token of tokenizer_config.json: a string, or an object with the content. nullptr: the key is absent.
const nlohmann::json* config_token(const nlohmann::json& config, const char* key) {
  if (!config.is_object()) return nullptr;
  const auto at = config.find(key);
  if (at == config.end()) return nullptr;
  if (at->is_object() && at->contains("content")) return &(*at)["content"];
  return &*at;
}

int32_t named_token(const Tokenizer::State& state, const char* key, const std::vector<std::string>& guesses) {
  if (const nlohmann::json* name = config_token(state.config, key)) {
    return name->is_string() ? state.find(name->get<std::string>()) : -1;
  }
  for (const std::string& guess : guesses) {
    const int32_t id = state.find(guess);
    if (id >= 0) return id;
  }
  return -1;
}

bool config_flag(const nlohmann::json& config, const char* key) {
  if (!config.is_object()) return false;
  const auto at = config.find(key);
  return at != config.end() && at->is_boolean() && at->get<bool>();
}

// The end of the chain: collects the text.
class Collect : public DecodeStage {
 public:
  void put(std::string_view bytes) override { text += bytes; }
  void end_token() override {}
  void finish() override {}
  std::string text;
};

// Without a decoder, tokens are shown with a space between them.
class JoinBySpace : public DecodeStage {
 public:
  void put(std::string_view bytes) override {
    if (between_) next_->put(" ");
    between_ = false;
    next_->put(bytes);
  }
  void end_token() override { between_ = true; }
  void finish() override { next_->finish(); }

 private:
  bool between_ = false;
};

// The first name, in order, that `wanted` accepts; "" when there is none.
std::string first_file(const std::string& dir, bool (*wanted)(const std::string&)) {
  std::vector<std::string> names;
  if (DIR* handle = opendir(dir.c_str())) {
    while (const dirent* entry = readdir(handle)) {
      if (wanted(entry->d_name)) names.emplace_back(entry->d_name);
    }
    closedir(handle);
  }
  std::sort(names.begin(), names.end());
  return names.empty() ? std::string() : join_path(dir, names.front());
}

}  // namespace

Tokenizer assemble_tokenizer(TokenizerParts parts) {
  auto state = std::make_shared<Tokenizer::State>();
  state->vocab_size = parts.model->size();
  read_added_tokens(parts, *state);
  const std::string& file = parts.file;
  const JsonObject root(parts.sections, file);
  const auto section = [&](const char* key) {
    const nlohmann::json* value = root.find(key);
    return value == nullptr ? nlohmann::json() : *value;
  };
  state->normalizer =
      parts.normalizer ? std::move(parts.normalizer) : make_normalizer(section("normalizer"), file, "normalizer");
  state->pre_tokenizer = make_pre_tokenizer(section("pre_tokenizer"), file, "pre_tokenizer");
  state->post_processor = make_post_processor(section("post_processor"), file, "post_processor");
  nlohmann::json decoder = section("decoder");
  if (parts.strip_after_bos) {
    decoder = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}};
  }
  state->decoder = make_decoder(decoder, file, "decoder");
  state->model = std::move(parts.model);
  if (state->pre_tokenizer) {
    const bool spells = state->pre_tokenizer->spells_bytes();
    state->raw_bytes = spells && state->model->takes_raw_bytes();
    if (!spells || state->raw_bytes) state->scanner = state->pre_tokenizer->whole_scanner();
  }
  for (const AddedToken& token : state->added) {
    if (!token.normalized) {
      state->raw_matcher.add(token, token.content);
    } else {
      state->normalized_matcher.add(token,
                                    state->normalizer ? state->normalizer->normalize(token.content) : token.content);
    }
  }
  state->file = parts.file;
  state->format = parts.format;
  state->config = std::move(parts.config);
  state->strip_after_bos = parts.strip_after_bos;
  state->bos =
      named_token(*state, "bos_token",
                  {"<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>", "[CLS]", "\n<s>\n"});
  state->eos = named_token(*state, "eos_token",
                           {"</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|endoftext|>", "[SEP]", "\n</s>\n"});
  std::vector<int32_t> around;
  if (state->post_processor) state->post_processor->process(around);
  for (const int32_t id : around) {
    if (id >= state->vocab_size) {
      throw Error(ErrorCode::input,
                  file + ": field \"post_processor\": token id " + std::to_string(id) + " is outside [0, " +
                      std::to_string(state->vocab_size) + ")",
                  "the file names a token that its vocabulary does not have");
    }
  }
  const auto adds = [&](int32_t id) { return std::find(around.begin(), around.end(), id) != around.end(); };
  state->prepend_bos = config_flag(state->config, "add_bos_token") && state->bos >= 0 && !adds(state->bos);
  state->append_eos = config_flag(state->config, "add_eos_token") && state->eos >= 0 && !adds(state->eos);
  state->sections = std::move(parts.sections);
  return Tokenizer(std::move(state));
}

Tokenizer Tokenizer::load(const std::string& path) {
  if (is_directory(path)) {
    for (const char* name :
         {"tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}) {
      if (file_exists(join_path(path, name))) return load(join_path(path, name));
    }
    bool (*const kinds[])(const std::string&) = {
        [](const std::string& name) { return name.ends_with(".tiktoken"); },
        [](const std::string& name) { return name.compare(0, 3, "tok") == 0 && name.ends_with(".bin"); },
        [](const std::string& name) { return name == "vocab.txt"; },
        [](const std::string& name) { return name.ends_with(".gguf"); },
    };
    for (const auto kind : kinds) {
      const std::string file = first_file(path, kind);
      if (!file.empty()) return load(file);
    }
    throw Error(ErrorCode::input, path + ": no tokenizer in this directory",
                "expected tokenizer.json, vocab.json with merges.txt, tokenizer.model, *.tiktoken, tok*.bin, vocab.txt "
                "or *.gguf");
  }
  if (!file_exists(path)) {
    throw Error(ErrorCode::input, path + ": no such file", "--tokenizer takes a directory or a tokenizer file");
  }
  if (path.ends_with(".txt")) return load_bert_vocabulary(path);
  if (path.ends_with(".gguf") || GgufFile::present(path)) return load_gguf_tokenizer(path);
  if (path.ends_with("vocab.json")) return load_vocab_merges(path);
  if (path.ends_with(".json")) return load_tokenizer_json(path);
  if (path.ends_with(".bin")) return load_llama2c_tokenizer(path);
  if (path.ends_with(".tiktoken")) return load_tiktoken(path);
  // Llama 3 names its tiktoken ranks tokenizer.model.
  if (path.find(".model") != std::string::npos)
    return is_tiktoken_file(path) ? load_tiktoken(path) : load_sentencepiece(path);
  throw Error(ErrorCode::input, path + ": the name does not tell which kind of tokenizer file this is",
              "expected *.json, *.model, *.tiktoken, vocab.txt, *.gguf or tok*.bin");
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const State& state = *state_;
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw Error(ErrorCode::input,
                "the text to encode is not UTF-8: byte " + std::to_string(bad) + " of " + std::to_string(text.size()),
                "convert it to UTF-8 first");
  }
  std::vector<int32_t> ids;
  for (const auto& outer : state.raw_matcher.split(text, options.parse_special)) {
    if (outer.id >= 0) {
      ids.push_back(outer.id);
      continue;
    }
    std::string_view part = text.substr(outer.begin, outer.end - outer.begin);
    std::string normalized;
    if (state.normalizer) part = normalized = state.normalizer->normalize(std::string(part));
    if (state.normalized_matcher.empty()) {
      state.encode_text(part, outer.begin == 0, ids);
      continue;
    }
    for (const auto& inner : state.normalized_matcher.split(part, options.parse_special)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        state.encode_text(part.substr(inner.begin, inner.end - inner.begin), outer.begin == 0 && inner.begin == 0, ids);
      }
    }
  }
  if (options.add_special) {
    if (state.post_processor) state.post_processor->process(ids);
    if (state.prepend_bos) ids.insert(ids.begin(), state.bos);
    if (state.append_eos) ids.push_back(state.eos);
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, const DecodeOptions& options) const {
  DecodeStream stream(*this, options);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

int32_t Tokenizer::vocab_size() const { return state_->vocab_size; }
int32_t Tokenizer::bos_id() const { return state_->bos; }
int32_t Tokenizer::eos_id() const { return state_->eos; }
const std::string& Tokenizer::token(int32_t id) const { return state_->piece(id); }
int32_t Tokenizer::find_token(std::string_view piece) const { return state_->find(std::string(piece)); }
bool Tokenizer::is_special(int32_t id) const { return state_->special(id); }
std::string Tokenizer::kind() const { return state_->model->kind() + " (" + state_->format + ")"; }

std::string Tokenizer::to_json() const {
  const State& state = *state_;
  std::string out = "{";
  for (const char* key : {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                          "post_processor", "decoder"}) {
    const auto at = state.sections.find(key);
    const nlohmann::json value = at != state.sections.end()      ? *at
                                 : std::string(key) == "version" ? "1.0"
                                                                 : nlohmann::json();
    out += std::string("\n  \"") + key + "\": " + value.dump(2) + ",";
  }
  return out + "\n  \"model\": " + state.model->to_json() + "\n}\n";
}

void Tokenizer::save(const std::string& dir) const {
  const State& state = *state_;
  nlohmann::json config = state.config;
  if (!config.is_object()) config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  const auto name = [&](const char* key, int32_t id) {
    if (!config.contains(key) && id >= 0) config[key] = token(id);
  };
  name("bos_token", state.bos);
  name("eos_token", state.eos);
  make_directories(dir);
  write_file(join_path(dir, "tokenizer.json"), to_json());
  write_file(join_path(dir, "tokenizer_config.json"), config.dump(2) + "\n");
}

struct DecodeStream::Run {
  std::shared_ptr<const Tokenizer::State> state;
  DecodeOptions options;
  std::vector<std::unique_ptr<DecodeStage>> stages;
  Collect collect;
  int32_t previous = -1;
  bool started = false;

  std::string take() {
    std::string text;
    text.swap(collect.text);
    return text;
  }
};

DecodeStream::DecodeStream(const Tokenizer& tokenizer, const DecodeOptions& options) : run_(std::make_unique<Run>()) {
  run_->state = tokenizer.state_;
  run_->options = options;
  if (run_->state->decoder) {
    run_->state->decoder->start(run_->stages);
  } else {
    run_->stages.push_back(std::make_unique<JoinBySpace>());
  }
  for (size_t i = 0; i < run_->stages.size(); ++i) {
    run_->stages[i]->connect(i + 1 < run_->stages.size() ? run_->stages[i + 1].get() : &run_->collect);
  }
}
DecodeStream::~DecodeStream() = default;
DecodeStream::DecodeStream(DecodeStream&&) noexcept = default;
DecodeStream& DecodeStream::operator=(DecodeStream&&) noexcept = default;

std::string DecodeStream::push(int32_t id) {
  Run& run = *run_;
  const Tokenizer::State& state = *run.state;
  std::string_view piece = state.piece(id);
  const bool first = !run.started || run.previous == state.bos;
  run.started = true;
  run.previous = id;
  if (run.options.skip_special && state.special(id)) return {};
  if (state.strip_after_bos && first && !piece.empty() && piece[0] == ' ') piece.remove_prefix(1);
  DecodeStage* head = run.stages.empty() ? &run.collect : run.stages.front().get();
  head->put(piece);
  head->end_token();
  return run.take();
}

std::string DecodeStream::finish() {
  Run& run = *run_;
  DecodeStage* head = run.stages.empty() ? &run.collect : run.stages.front().get();
  head->finish();
  return run.take();
}

}  // namespace thimble
