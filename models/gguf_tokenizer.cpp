// The tokenizer's keys of a GGUF file, from a tokenizer.json: the vocabulary by id, token types, and either merges
// (byte-level BPE), scores (SentencePiece's BPE: the order of the merges) or neither (WordPiece).
#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "models/gguf_export.h"
#include "models/io/json.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

using Json = nlohmann::json;

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The text of a tokenizer.json: the file itself, or what Tokenizer makes of another format.
Json tokenizer_json(const std::string& path) {
  const std::string own = is_directory(path) ? join_path(path, "tokenizer.json") : path;
  if (file_exists(own) && own.size() > 5 && own.compare(own.size() - 5, 5, ".json") == 0) {
    Json json = parse_json_file(own);
    if (json.is_object() && json.contains("model")) return json;
  }
  return parse_json(Tokenizer::load(path).to_json(), path);
}

bool contains_type(const Json& part, const std::string& type) {
  if (part.is_object()) {
    if (part.value("type", "") == type) return true;
    for (const auto& [key, value] : part.items())
      if (contains_type(value, type)) return true;
  }
  if (part.is_array())
    for (const Json& value : part)
      if (contains_type(value, type)) return true;
  return false;
}

// The regular expressions of the pre-tokenizer, one after the other.
void collect_patterns(const Json& part, std::string* all) {
  if (part.is_object())
    for (const auto& [key, value] : part.items()) {
      if (key == "Regex" && value.is_string()) *all += value.get<std::string>() + "\n";
      collect_patterns(value, all);
    }
  if (part.is_array())
    for (const Json& value : part) collect_patterns(value, all);
}

// llama.cpp knows pre-tokenizers by name only.
std::string pre_tokenizer_name(const Json& root, std::vector<std::string>* warnings) {
  const Json pre = root.value("pre_tokenizer", Json());
  std::string patterns;
  collect_patterns(pre, &patterns);
  const bool ignore_merges = root["model"].value("ignore_merges", false);
  if (patterns.find("\\p{N}{1,3}") != std::string::npos && patterns.find("(?i:'s|'t") != std::string::npos)
    return "llama-bpe";
  if (patterns.find("(?i:'s|'t") != std::string::npos && patterns.find("|\\p{N}|") != std::string::npos) return "qwen2";
  if (patterns.find("\\p{N}") != std::string::npos && contains_type(pre, "Digits")) return "starcoder";
  if (patterns.empty() && contains_type(pre, "ByteLevel")) {
    if (contains_type(pre, "Digits")) return "smollm";
    if (!ignore_merges) return "gpt-2";
    warnings->push_back(
        "llama.cpp has no pre-tokenizer like this one (GPT-2's pattern, whole words first): it gets llama-bpe, "
        "which splits digits and some punctuation in another way");
    return "llama-bpe";
  }
  warnings->push_back(
      "llama.cpp has no name for this pre-tokenizer: it gets \"default\", which may split text in another way");
  return "default";
}

}  // namespace

std::vector<std::string> write_gguf_tokenizer(GgufWriter& out, const std::string& path, const ModelConfig& config) {
  std::vector<std::string> warnings;
  const Json root = tokenizer_json(path);
  const Json& model = root.at("model");
  const std::string kind = model.value("type", "BPE");
  const auto vocabulary = static_cast<size_t>(config.vocab_size);
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::unsupported, path + ": " + what + " cannot be written to GGUF",
                "convert without the tokenizer (--tokenizer none)");
  };
  if (kind != "BPE" && kind != "WordPiece") refuse("a tokenizer of the kind " + quote_for_message(kind));
  const Json& vocab = model.at("vocab");
  if (!vocab.is_object()) refuse("its vocabulary");

  std::vector<std::string> tokens(vocabulary);
  std::vector<int32_t> types(vocabulary, kUnused);
  for (size_t i = 0; i < vocabulary; ++i) tokens[i] = fmt::format("[PAD{}]", i);
  const auto put = [&](const std::string& text, const Json& id, int32_t type) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0) refuse("its vocabulary");
    const auto at = static_cast<size_t>(id.get<int64_t>());
    if (at >= vocabulary) return false;
    tokens[at] = text;
    types[at] = type;
    return true;
  };
  size_t beyond = 0;
  for (const auto& [text, id] : vocab.items()) beyond += !put(text, id, kNormal);
  const std::string unknown = model.value("unk_token", Json()).is_string() ? model["unk_token"].get<std::string>() : "";
  for (const Json& token : root.value("added_tokens", Json::array()))
    beyond += !put(token.at("content").get<std::string>(), token.at("id"),
                   token.value("special", false) ? kControl : kUserDefined);
  if (beyond > 0)
    warnings.push_back(
        fmt::format("{} tokens have ids beyond the model's vocabulary of {} and are left out", beyond, vocabulary));

  if (kind == "WordPiece") {
    // llama.cpp marks the start of a word, not its continuation.
    for (size_t i = 0; i < vocabulary; ++i) {
      std::string& t = tokens[i];
      if (types[i] == kUnused || (!t.empty() && t.front() == '[' && t.back() == ']')) continue;
      t = t.rfind("##", 0) == 0 ? t.substr(2) : "\xE2\x96\x81" + t;
    }
    out.set_string("tokenizer.ggml.model", "bert");
    out.set_string("tokenizer.ggml.pre", "default");
    out.set_strings("tokenizer.ggml.tokens", tokens);
    out.set_ints("tokenizer.ggml.token_type", types);
  } else if (contains_type(root.value("pre_tokenizer", Json()), "ByteLevel")) {
    std::vector<std::string> merges;
    for (const Json& m : model.value("merges", Json::array()))
      merges.push_back(m.is_string() ? m.get<std::string>()
                                     : m.at(0).get<std::string>() + " " + m.at(1).get<std::string>());
    out.set_string("tokenizer.ggml.model", "gpt2");
    out.set_string("tokenizer.ggml.pre", pre_tokenizer_name(root, &warnings));
    out.set_strings("tokenizer.ggml.tokens", tokens);
    out.set_ints("tokenizer.ggml.token_type", types);
    out.set_strings("tokenizer.ggml.merges", merges);
  } else {
    // The piece with the highest score is merged first: minus the rank of the first merge that gives it.
    std::vector<float> scores(vocabulary, 0.0f);
    float rank = 0;
    for (const Json& m : model.value("merges", Json::array())) {
      std::string piece;
      if (m.is_string()) {
        piece = m.get<std::string>();
        const size_t space = piece.find(' ');
        if (space == std::string::npos) refuse("a merge without a space");
        piece.erase(space, 1);
      } else {
        piece = m.at(0).get<std::string>() + m.at(1).get<std::string>();
      }
      rank -= 1;
      const auto it = vocab.find(piece);
      if (it != vocab.end() && it->get<size_t>() < vocabulary && scores[it->get<size_t>()] == 0)
        scores[it->get<size_t>()] = rank;
    }
    for (size_t i = 0; i < vocabulary; ++i) {
      const std::string& t = tokens[i];
      if (t.size() == 6 && t.rfind("<0x", 0) == 0 && t.back() == '>')
        types[i] = kByte;
      else if (t == unknown && !t.empty())
        types[i] = kUnknown;
    }
    const Json normalizer = root.value("normalizer", Json());
    out.set_string("tokenizer.ggml.model", "llama");
    out.set_string("tokenizer.ggml.pre", "default");
    out.set_strings("tokenizer.ggml.tokens", tokens);
    out.set_floats("tokenizer.ggml.scores", scores);
    out.set_ints("tokenizer.ggml.token_type", types);
    out.set_bool(
        "tokenizer.ggml.add_space_prefix",
        contains_type(normalizer, "Prepend") || contains_type(root.value("pre_tokenizer", Json()), "Metaspace"));
  }
  const Tokenizer tokenizer = Tokenizer::load(path);
  const int32_t bos = tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : config.bos_id;
  const int32_t eos = tokenizer.eos_id() >= 0 ? tokenizer.eos_id() : config.eos_ids.empty() ? -1 : config.eos_ids[0];
  if (bos >= 0) out.set_u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(bos));
  if (eos >= 0) out.set_u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(eos));
  if (!unknown.empty())
    if (const int32_t id = tokenizer.find_token(unknown); id >= 0)
      out.set_u32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(id));
  if (kind == "WordPiece") {
    for (const auto& [text, key] : {std::pair{"[SEP]", "seperator"}, std::pair{"[CLS]", "cls"},
                                    std::pair{"[PAD]", "padding"}, std::pair{"[MASK]", "mask"}})
      if (const int32_t id = tokenizer.find_token(text); id >= 0)
        out.set_u32(std::string("tokenizer.ggml.") + key + "_token_id", static_cast<uint32_t>(id));
  } else {
    const std::vector<int32_t> ids = tokenizer.encode("a");
    out.set_bool("tokenizer.ggml.add_bos_token", bos >= 0 && !ids.empty() && ids.front() == bos);
    out.set_bool("tokenizer.ggml.add_eos_token", eos >= 0 && !ids.empty() && ids.back() == eos);
  }
  const std::string dir = is_directory(path) ? path : std::filesystem::path(path).parent_path().string();
  const std::string settings = join_path(dir.empty() ? "." : dir, "tokenizer_config.json"),
                    jinja = join_path(dir.empty() ? "." : dir, "chat_template.jinja");
  if (file_exists(jinja)) {
    out.set_string("tokenizer.chat_template", read_file(jinja, size_t{1} << 20));
  } else if (file_exists(settings)) {
    const Json json = parse_json_file(settings);
    if (json.is_object() && json.contains("chat_template") && json["chat_template"].is_string())
      out.set_string("tokenizer.chat_template", json["chat_template"].get<std::string>());
  }
  return warnings;
}

}  // namespace thimble
