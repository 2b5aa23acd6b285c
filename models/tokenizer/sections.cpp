// Pieces of tokenizer.json that are made here rather than read.
#include "models/tokenizer/tokenizer_state.h"

namespace thimble {

using nlohmann::json;

json special_token_entry(int32_t id, const std::string& content) {
  return {{"id", id},        {"content", content}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json bos_template(const std::string& bos, int32_t id) {
  const auto special = [&](int type) { return json{{"SpecialToken", {{"id", bos}, {"type_id", type}}}}; };
  const auto text = [&](const char* name, int type) { return json{{"Sequence", {{"id", name}, {"type_id", type}}}}; };
  const json entry = {{"id", bos}, {"ids", json::array({id})}, {"tokens", json::array({bos})}};
  return {{"type", "TemplateProcessing"},
          {"single", json::array({special(0), text("A", 0)})},
          {"pair", json::array({special(0), text("A", 0), special(1), text("B", 1)})},
          {"special_tokens", json::object({{bos, entry}})}};
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
