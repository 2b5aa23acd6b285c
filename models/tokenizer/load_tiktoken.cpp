// tiktoken ranks: lines of a token in base64 and its rank. A rank is an id, and of two neighbours those merge first
// whose joined bytes have the lowest rank. The file says neither how text is cut nor which tokens are special; both
// come from tokenizer_config.json beside it or from the known vocabularies, recognised by their number of ranks.
#include <charconv>
#include <unordered_map>

#include "models/tokenizer/base64.h"
#include "models/tokenizer/model_bpe.h"
#include "models/tokenizer/tokenizer_state.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr size_t kMaxToken = 1024;  // bytes; every cut of a token is looked up

const char* pattern_named(std::string_view name) {
  for (size_t i = 0; i < kKnownPatternCount; ++i) {
    if (name == kKnownPatterns[i].name) return kKnownPatterns[i].regex;
  }
  return nullptr;
}

struct KnownVocabulary {
  const char* name;
  size_t ranks;
  const char* pattern;  // a name of kKnownPatterns
  std::vector<std::pair<const char*, int32_t>> specials;
  const char* numbered;  // further specials: this with a number for %, from the id behind the specials on
  int first, last;       // numbers
};

const std::vector<KnownVocabulary>& known_vocabularies() {
  static const std::vector<KnownVocabulary> known = {
      {"gpt-2 (r50k_base)", 50256, "gpt-2", {{"<|endoftext|>", 50256}}, nullptr, 0, 0},
      {"p50k_base", 50280, "gpt-2", {{"<|endoftext|>", 50256}}, nullptr, 0, 0},
      {"cl100k_base",
       100256,
       "llama-3",
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}},
       nullptr,
       0,
       0},
      {"o200k_base", 199998, "gpt-4o", {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}, nullptr, 0, 0},
      {"llama-3",
       128000,
       "llama-3",
       {{"<|begin_of_text|>", 128000},
        {"<|end_of_text|>", 128001},
        {"<|reserved_special_token_0|>", 128002},
        {"<|reserved_special_token_1|>", 128003},
        {"<|finetune_right_pad_id|>", 128004},
        {"<|reserved_special_token_2|>", 128005},
        {"<|start_header_id|>", 128006},
        {"<|end_header_id|>", 128007},
        {"<|eom_id|>", 128008},
        {"<|eot_id|>", 128009},
        {"<|python_tag|>", 128010}},
       "<|reserved_special_token_%|>",
       3,
       247},
      {"qwen",
       151643,
       "qwen2",
       {{"<|endoftext|>", 151643}, {"<|im_start|>", 151644}, {"<|im_end|>", 151645}},
       "<|extra_%|>",
       0,
       204},
  };
  return known;
}

struct Ranks {
  std::vector<std::string> bytes;  // by rank; "" is a hole
  size_t count = 0;
};

Ranks read_ranks(const std::string& path) {
  const std::string content = read_file(path, size_t{256} << 20);
  Ranks ranks;
  size_t number = 0;
  std::vector<std::pair<int64_t, std::string>> lines;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    const auto fail = [&](const std::string& what) {
      throw Error(ErrorCode::input, path + ":" + std::to_string(number) + ": " + what,
                  "this is no file of tiktoken ranks");
    };
    const size_t space = line.find(' ');
    std::string token;
    int64_t rank = -1;
    if (space == std::string_view::npos || !decode_base64(line.substr(0, space), token) || token.empty()) {
      fail("expected a token in base64 and its rank");
    }
    const std::string_view digits = line.substr(space + 1);
    const auto [stop, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (failed != std::errc() || stop != digits.data() + digits.size() || rank < 0) fail("expected a rank from 0 on");
    if (token.size() > kMaxToken)
      fail("a token of " + std::to_string(token.size()) + " bytes; at most 1024 are accepted");
    lines.emplace_back(rank, std::move(token));
  }
  for (auto& [rank, token] : lines) {
    if (!plausible_id(rank, lines.size())) {
      throw Error(ErrorCode::input,
                  path + ": rank " + std::to_string(rank) + " is out of proportion to the number of ranks, " +
                      std::to_string(lines.size()),
                  "the file is damaged");
    }
    const auto at = static_cast<size_t>(rank);
    if (at >= ranks.bytes.size()) ranks.bytes.resize(at + 1);
    if (!ranks.bytes[at].empty()) {
      throw Error(ErrorCode::input, path + ": rank " + std::to_string(rank) + " occurs twice", "the file is damaged");
    }
    ranks.bytes[at] = std::move(token);
  }
  ranks.count = lines.size();
  if (ranks.count == 0)
    throw Error(ErrorCode::input, path + ": holds no ranks", "expected lines of base64 and a number");
  return ranks;
}

std::unique_ptr<TokenModel> make_model(const Ranks& ranks, const std::string& path) {
  std::unordered_map<std::string_view, int32_t> rank_of;
  std::vector<std::string> pieces(ranks.bytes.size());
  for (size_t rank = 0; rank < ranks.bytes.size(); ++rank) {
    if (ranks.bytes[rank].empty()) continue;
    if (!rank_of.emplace(ranks.bytes[rank], static_cast<int32_t>(rank)).second) {
      throw Error(ErrorCode::input, path + ": the token of rank " + std::to_string(rank) + " occurs twice",
                  "the file is damaged");
    }
    append_byte_level(pieces[rank], ranks.bytes[rank]);
  }
  for (int b = 0; b < 256; ++b) {
    if (rank_of.count(std::string(1, static_cast<char>(b))) == 0) {
      throw Error(ErrorCode::input, path + ": the byte " + std::to_string(b) + " has no rank",
                  "every single byte needs one");
    }
  }
  std::vector<BpeMerge> merges;
  for (size_t rank = 0; rank < ranks.bytes.size(); ++rank) {
    const std::string_view token = ranks.bytes[rank];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = rank_of.find(token.substr(0, cut));
      if (left == rank_of.end()) continue;
      const auto right = rank_of.find(token.substr(cut));
      if (right == rank_of.end()) continue;
      merges.push_back({left->second, right->second, static_cast<int32_t>(rank), static_cast<uint32_t>(rank)});
    }
  }
  BpeOptions options;
  options.ignore_merges = true;
  return std::make_unique<BpeModel>(Vocabulary(std::move(pieces)), std::move(merges), std::move(options));
}

}  // namespace

bool is_tiktoken_file(const std::string& path) {
  const MappedFile file(path);
  const std::string start = file.read(0, std::min<size_t>(file.size(), 2048));
  const std::string line = start.substr(0, start.find('\n'));
  const size_t space = line.find(' ');
  std::string token;
  return space != std::string::npos && space > 0 && decode_base64(line.substr(0, space), token) &&
         line.find_first_not_of("0123456789\r", space + 1) == std::string::npos && line.size() > space + 1;
}

Tokenizer load_tiktoken(const std::string& path) {
  const Ranks ranks = read_ranks(path);
  TokenizerParts parts;
  parts.file = path;
  parts.format = "tiktoken";
  parts.config = read_config_beside(path);
  parts.model = make_model(ranks, path);
  json added = json::array();
  append_configured_tokens(added, parts.config, path, *parts.model);
  const KnownVocabulary* known = nullptr;
  for (const KnownVocabulary& candidate : known_vocabularies()) {
    if (candidate.ranks == ranks.count) known = &candidate;
  }
  std::string pattern;
  if (parts.config.is_object()) {
    const JsonObject config(parts.config, path + " (tokenizer_config.json)");
    for (const char* key : {"pat_str", "pattern"}) {
      if (pattern.empty() && config.has(key)) pattern = config.require_string(key);
    }
  }
  if (pattern.empty() && known != nullptr) pattern = pattern_named(known->pattern);
  if (pattern.empty()) {
    throw Error(ErrorCode::unsupported,
                path + ": how text is cut is not known for a vocabulary of " + std::to_string(ranks.count) + " ranks",
                "give the split expression as \"pat_str\" in a tokenizer_config.json beside the file");
  }
  if (known != nullptr && added.empty()) {
    int32_t next = 0;
    for (const auto& [name, id] : known->specials) {
      added.push_back(special_token_entry(id, name));
      next = std::max(next, id + 1);
    }
    for (int i = known->first; known->numbered != nullptr && i <= known->last; ++i) {
      std::string name = known->numbered;
      name.replace(name.find('%'), 1, std::to_string(i));
      added.push_back(special_token_entry(next++, name));
    }
  }
  parts.sections = {{"version", "1.0"},
                    {"added_tokens", added},
                    {"pre_tokenizer", split_and_spell({pattern})},
                    {"decoder", byte_level_section(true, true)}};
  // Llama 3's own code puts its BOS first.
  const bool declared = parts.config.is_object() && parts.config.contains("add_bos_token");
  if (known != nullptr && std::string_view(known->name) == "llama-3" && !declared && !added.empty() &&
      added[0]["content"] == "<|begin_of_text|>") {
    parts.sections["post_processor"] = bos_template("<|begin_of_text|>", added[0]["id"].get<int32_t>());
  }
  return assemble_tokenizer(std::move(parts));
}

}  // namespace thimble
