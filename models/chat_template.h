// From a conversation to the text that a model was tuned on. A template comes with the model and is an untrusted program
// (jinja/README.md); the variables are those that Hugging Face passes.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/jinja/template.h"
#include "models/tokenizer/tokenizer.h"

namespace thimble {

struct ChatInputs {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();  // [{"role": ..., "content": ...}, ...]
  nlohmann::ordered_json tools, documents;                            // arrays; null: none
  bool add_generation_prompt = true;
  nlohmann::ordered_json special_tokens = nlohmann::ordered_json::object();  // "bos_token": "<s>" ...
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();           // further variables; these win
  std::optional<int64_t> now;  // what strftime_now shows; see jinja::RenderOptions
};

class ChatTemplate {
 public:
  // name is what errors call the template.
  ChatTemplate(const std::string& source, const std::string& name, const jinja::Limits& limits = {});

  // The template of a model directory: chat_template.jinja, else chat_template.json, else the field chat_template of
  // tokenizer_config.json. Of a GGUF file: tokenizer.chat_template, or with a name tokenizer.chat_template.NAME. Empty when
  // there is none. `which` chooses among several: "" is the one called "default", or
  // with tools the one called "tool_use" where there is one. Errors: input for files that are malformed and for a name
  // that is not there.
  static std::optional<ChatTemplate> find(const std::string& path, const std::string& which = {}, bool with_tools = false);
  static ChatTemplate read(const std::string& path);
  // For models without a template: "User: ...", "Assistant: ...", one paragraph each.
  static ChatTemplate plain();

  // Errors: as jinja::Template; input when messages is no array of objects with a role.
  jinja::Rendered render(const ChatInputs& inputs) const;

  // As Hugging Face tokenizes a rendered conversation: special strings become their token, and the post-processor adds
  // nothing, since the template writes its BOS itself. A plain template lets the tokenizer add what it adds to a text.
  std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text) const;

  const std::string& name() const { return template_.name(); }
  const std::string& source() const { return source_; }
  bool is_plain() const { return plain_; }

 private:
  std::string source_;
  jinja::Template template_;
  bool plain_ = false;
};

// bos_token, eos_token, unk_token ... of tokenizer_config.json or special_tokens_map.json in dir, completed by the ids
// that the tokenizer knows.
nlohmann::ordered_json chat_special_tokens(const std::string& dir, const Tokenizer& tokenizer);

// Ids at which an answer ends: eos_ids, those of generation_config.json in dir, the tokenizer's, and special tokens that
// end a turn in the common formats (<|im_end|>, <|eot_id|> ...) and that occur in the template.
std::vector<int32_t> chat_stop_ids(const std::vector<int32_t>& eos_ids, const std::string& dir, const Tokenizer& tokenizer,
                                   const std::string& template_source);

}  // namespace thimble
