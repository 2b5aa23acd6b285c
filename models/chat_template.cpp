#include "models/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "models/io/gguf.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxTemplateFile = size_t{4} << 20;
constexpr const char* kPlain =
    "{% for message in messages %}"
    "{{ message.role | capitalize }}: {{ message.content | trim }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}";

// One of [{name, template}, ...].
std::string choose(const nlohmann::json& list, const std::string& which, bool with_tools, const std::string& file) {
  std::string names, chosen;
  const std::string* found = nullptr;
  const auto look = [&](const std::string& name) {
    for (const auto& entry : list)
      if (entry["name"] == name) found = entry["template"].get_ptr<const std::string*>();
  };
  for (const auto& entry : list) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() || !entry.contains("template") ||
        !entry["template"].is_string())
      throw Error(ErrorCode::input, file + ": field \"chat_template\": expected a string, or a list of {name, template}",
                  "give a template with --template");
    names += (names.empty() ? "" : ", ") + entry["name"].get<std::string>();
  }
  if (!which.empty()) {
    look(which);
  } else {
    if (with_tools) look("tool_use");
    if (!found) look("default");
  }
  if (!found)
    throw Error(ErrorCode::input,
                fmt::format("{}: field \"chat_template\": there is no template called {}", file,
                            quote_for_message(which.empty() ? "default" : which)),
                "it has " + (names.empty() ? "none" : names) + "; choose one with --template-name");
  return *found;
}

std::optional<ChatTemplate> from_json(const std::string& path, const std::string& which, bool with_tools) {
  const nlohmann::json json = parse_json_file(path, size_t{64} << 20);
  const JsonObject object(json, path);
  const nlohmann::json* field = object.find("chat_template");
  if (!field) return std::nullopt;
  const std::string name = path + " (chat_template)";
  if (field->is_string()) return ChatTemplate(field->get<std::string>(), name);
  if (!field->is_array()) object.fail("chat_template", "a string, or a list of {name, template}");
  return ChatTemplate(choose(*field, which, with_tools, path), name);
}

std::optional<ChatTemplate> from_gguf(const std::string& path, const std::string& which, bool with_tools) {
  const GgufFile file(path);
  const std::string key = "tokenizer.chat_template";
  const auto read = [&](const std::string& name) -> std::optional<ChatTemplate> {
    const std::optional<std::string> source = file.get_string(name);
    if (!source) return std::nullopt;
    return ChatTemplate(*source, path + " (" + name + ")");
  };
  if (!which.empty() && which != "default") {
    if (auto found = read(key + "." + which)) return found;
    throw Error(ErrorCode::input, fmt::format("{}: there is no chat template called {}", path, quote_for_message(which)),
                "leave --template-name out, or give a file with --template");
  }
  if (with_tools && which.empty())
    if (auto found = read(key + ".tool_use")) return found;
  return read(key);
}

// "<s>", or {"content": "<s>", ...}.
std::optional<std::string> token_text(const nlohmann::json& v) {
  if (v.is_string()) return v.get<std::string>();
  if (v.is_object() && v.contains("content") && v["content"].is_string()) return v["content"].get<std::string>();
  return std::nullopt;
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& source, const std::string& name, const jinja::Limits& limits)
    : source_(source), template_(source, name, limits) {}

ChatTemplate ChatTemplate::read(const std::string& path) { return ChatTemplate(read_file(path, kMaxTemplateFile), path); }

ChatTemplate ChatTemplate::plain() {
  ChatTemplate out(kPlain, "the plain template");
  out.plain_ = true;
  return out;
}

std::optional<ChatTemplate> ChatTemplate::find(const std::string& dir, const std::string& which, bool with_tools) {
  if (!is_directory(dir)) return file_exists(dir) && GgufFile::present(dir) ? from_gguf(dir, which, with_tools) : std::nullopt;
  if (!which.empty() && which != "default") {
    const std::string extra = join_path(dir, "additional_chat_templates/" + which + ".jinja");
    if (which.find('/') == std::string::npos && file_exists(extra)) return read(extra);
  } else if (const std::string path = join_path(dir, "chat_template.jinja"); file_exists(path)) {
    const std::string tools = join_path(dir, "additional_chat_templates/tool_use.jinja");
    return read(with_tools && which.empty() && file_exists(tools) ? tools : path);
  }
  for (const char* file : {"chat_template.json", "tokenizer_config.json"})
    if (const std::string path = join_path(dir, file); file_exists(path))
      if (auto found = from_json(path, which, with_tools)) return found;
  if (!which.empty() && which != "default")
    throw Error(ErrorCode::input, fmt::format("{}: there is no chat template called {}", dir, quote_for_message(which)),
                "leave --template-name out, or give a file with --template");
  return std::nullopt;
}

jinja::Rendered ChatTemplate::render(const ChatInputs& inputs) const {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::input, "the conversation: " + what, "messages are [{\"role\": \"user\", \"content\": \"...\"}, ...]");
  };
  if (!inputs.messages.is_array()) refuse("expected a list of messages");
  for (const auto& message : inputs.messages)
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      refuse("a message without a role");
  nlohmann::ordered_json context = nlohmann::ordered_json::object();
  for (const auto& item : inputs.special_tokens.items()) context[item.key()] = item.value();
  context["messages"] = inputs.messages;
  context["tools"] = inputs.tools;
  context["documents"] = inputs.documents;
  context["add_generation_prompt"] = inputs.add_generation_prompt;
  for (const auto& item : inputs.extra.items()) context[item.key()] = item.value();
  jinja::RenderOptions options;
  options.now = inputs.now;
  return template_.render(context, options);
}

std::vector<int32_t> ChatTemplate::encode(const Tokenizer& tokenizer, const std::string& text) const {
  EncodeOptions options;
  options.add_special = plain_;
  options.parse_special = !plain_;
  return tokenizer.encode(text, options);
}

nlohmann::ordered_json chat_special_tokens(const std::string& dir, const Tokenizer& tokenizer) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const char* file : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string path = join_path(dir, file);
    if (!is_directory(dir) || !file_exists(path)) continue;
    const nlohmann::json json = parse_json_file(path, size_t{64} << 20);
    if (!json.is_object()) continue;
    for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      if (out.contains(name) || !json.contains(name)) continue;
      if (const auto text = token_text(json[name])) out[name] = *text;
    }
  }
  if (!out.contains("bos_token") && tokenizer.bos_id() >= 0) out["bos_token"] = tokenizer.token(tokenizer.bos_id());
  if (!out.contains("eos_token") && tokenizer.eos_id() >= 0) out["eos_token"] = tokenizer.token(tokenizer.eos_id());
  return out;
}

std::vector<int32_t> chat_stop_ids(const std::vector<int32_t>& eos_ids, const std::string& dir, const Tokenizer& tokenizer,
                                   const std::string& template_source) {
  std::vector<int32_t> out;
  const auto add = [&](int64_t id) {
    if (id >= 0 && id <= INT32_MAX && std::find(out.begin(), out.end(), id) == out.end()) out.push_back(static_cast<int32_t>(id));
  };
  for (const int32_t id : eos_ids) add(id);
  const std::string path = join_path(dir, "generation_config.json");
  if (is_directory(dir) && file_exists(path)) {
    const nlohmann::json json = parse_json_file(path);
    const JsonObject object(json, path);
    if (const nlohmann::json* ids = object.find("eos_token_id")) {
      const nlohmann::json list = ids->is_array() ? *ids : nlohmann::json::array({*ids});
      for (const auto& id : list) {
        if (!id.is_number_integer()) object.fail("eos_token_id", "an id, or a list of ids");
        add(id.get<int64_t>());
      }
    }
  }
  add(tokenizer.eos_id());
  for (const char* end : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
                          "<|eot|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<turn|>"})
    if (template_source.find(end) != std::string::npos) add(tokenizer.find_token(end));
  return out;
}

}  // namespace thimble
