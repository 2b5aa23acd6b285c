// Pieces of tokenizer.json that are made here rather than read.
#include <charconv>
#include <climits>
#include <set>

#include "models/tokenizer/tokenizer_state.h"
#include "tensor/file.h"

namespace thimble {

using nlohmann::json;

json special_token_entry(int32_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json plain_token_entry(int32_t id, const std::string& content) {
  json entry = special_token_entry(id, content);
  entry["special"] = false;
  return entry;
}

json around_template(const std::vector<NamedToken>& before, const std::vector<NamedToken>& behind) {
  json single = json::array(), pair = json::array(), tokens = json::object();
  const auto put = [&](const std::vector<NamedToken>& list, json& to, int type) {
    for (const NamedToken& token : list) {
      to.push_back({{"SpecialToken", {{"id", token.name}, {"type_id", type}}}});
      tokens[token.name] = {
          {"id", token.name}, {"ids", json::array({token.id})}, {"tokens", json::array({token.name})}};
    }
  };
  const auto text = [](const char* name, int type) { return json{{"Sequence", {{"id", name}, {"type_id", type}}}}; };
  put(before, single, 0);
  single.push_back(text("A", 0));
  put(behind, single, 0);
  pair = single;
  put(before, pair, 1);
  pair.push_back(text("B", 1));
  put(behind, pair, 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
}

json bos_template(const std::string& bos, int32_t id) { return around_template({{bos, id}}, {}); }

json byte_level_section(bool add_prefix_space, bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json split_and_spell(const std::vector<std::string>& regexes) {
  json parts = json::array();
  for (const std::string& regex : regexes) {
    parts.push_back({{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  parts.push_back(byte_level_section(false, false));
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

void append_configured_tokens(json& added, const json& config, const std::string& path, const TokenModel& model) {
  std::set<std::string> listed;
  std::set<int64_t> ids;
  for (const auto& entry : added) {
    listed.insert(entry["content"].get<std::string>());
    ids.insert(entry["id"].get<int64_t>());
  }
  const auto add = [&](int64_t id, const json& entry) {
    const std::string content = entry["content"].get<std::string>();
    if (content.empty() || id < 0 || id > INT32_MAX || listed.count(content) > 0 || ids.count(id) > 0) return;
    const int32_t known = model.find(content);
    if (known >= 0 ? known != id : id < model.size() && !model.piece(static_cast<int32_t>(id)).empty()) return;
    listed.insert(content);
    ids.insert(id);
    added.push_back(entry);
    added.back()["id"] = id;
  };
  if (config.is_object() && config.contains("added_tokens_decoder") && config["added_tokens_decoder"].is_object()) {
    for (const auto& [key, entry] : config["added_tokens_decoder"].items()) {
      int64_t id = -1;
      const auto [end, failed] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (failed != std::errc() || end != key.data() + key.size() || !entry.is_object() || !entry.contains("content") ||
          !entry["content"].is_string()) {
        continue;
      }
      add(id, entry);
    }
  }
  const size_t slash = path.rfind('/');
  const std::string beside =
      join_path(slash == std::string::npos ? "." : path.substr(0, slash + 1), "added_tokens.json");
  if (!file_exists(beside)) return;
  const json file = parse_json_file(beside);
  const JsonObject object(file, beside);
  for (const auto& [content, id] : file.items()) {
    if (!id.is_number_integer()) object.fail(quote_for_message(content), "an id");
    add(id.get<int64_t>(), {{"content", content},
                            {"single_word", false},
                            {"lstrip", false},
                            {"rstrip", false},
                            {"normalized", true},
                            {"special", false}});
  }
}

json plain_space_sections(json added_tokens, const std::string& bos, int32_t bos_id) {
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  return {{"version", "1.0"},
          {"added_tokens", std::move(added_tokens)},
          {"normalizer", {{"type", "Prepend"}, {"prepend", " "}}},
          {"post_processor", bos_template(bos, bos_id)},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders", json::array({json{{"type", "ByteFallback"}}, json{{"type", "Fuse"}}, strip})}}}};
}

}  // namespace thimble
