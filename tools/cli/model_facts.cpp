#include "tools/cli/model_facts.h"

#include <fmt/format.h>

#include <set>

#include "models/gguf_model.h"
#include "models/packed_store.h"
#include "models/io/json.h"
#include "models/io/tensor_source.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

Json tensor_list(const SafetensorsSet& set) {
  Json list = Json::array();
  for (const std::string& name : set.names()) {
    const TensorView view = set.view(name);
    list.push_back({{"name", name}, {"shape", view.info->shape}, {"dtype", safetensors_dtype_name(view.info->dtype)}, {"bytes", view.info->bytes}});
  }
  return list;
}

int64_t elements(const SafetensorsSet& set) {
  int64_t n = 0;
  for (const std::string& name : set.names()) n += set.view(name).info->elements();
  return n;
}

// A value as the config has it, or null.
Json value_of(const JsonObject& config, const char* key) {
  const nlohmann::json* v = config.find(key);
  return v ? Json::parse(v->dump()) : Json(nullptr);
}

std::string text_of(const Json& value) {
  if (value.is_null()) return "none";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_array()) {
    std::string text;
    for (const Json& v : value) text += (text.empty() ? "" : ", ") + text_of(v);
    return text.empty() ? "none" : text;
  }
  if (!value.is_object()) return value.dump();
  if (value.empty()) return "none";
  std::string text;
  for (const auto& item : value.items())
    if (!item.value().is_null() && !(item.value().is_object() && item.value().empty()))
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", item.key(), text_of(item.value()));
  return text;
}

}  // namespace

std::string container_name(const std::string& path) {
  if (const std::string gguf = gguf_path(path); !gguf.empty()) return fmt::format("gguf v{}", GgufFile(gguf).version());
  if (!is_directory(path)) return "llama2.c";
  if (is_packed_store(path)) return "thimble store (safetensors)";
  if (file_exists(join_path(path, "model.safetensors"))) return "safetensors";
  const std::string index = join_path(path, "model.safetensors.index.json");
  if (file_exists(index)) {
    const nlohmann::json json = parse_json_file(index);
    std::set<std::string> shards;
    if (json.is_object() && json.contains("weight_map") && json["weight_map"].is_object())
      for (const auto& item : json["weight_map"].items())
        if (item.value().is_string()) shards.insert(item.value().get<std::string>());
    return fmt::format("safetensors, {} shards", shards.size());
  }
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
    if (file_exists(join_path(path, name))) return "pytorch pickle";
  return "unknown";
}

Json tokenizer_json(const std::string& model_path) {
  try {
    const Tokenizer t = Tokenizer::load(default_tokenizer_path(model_path));
    return {{"kind", t.kind()},
            {"vocab_size", t.vocab_size()},
            {"bos_id", t.bos_id() < 0 ? Json(nullptr) : Json(t.bos_id())},
            {"eos_id", t.eos_id() < 0 ? Json(nullptr) : Json(t.eos_id())}};
  } catch (const Error& e) {
    return {{"error", e.what()}};
  }
}

Json chat_templates(const std::string& model_path) {
  Json names = Json::array();
  if (const std::string gguf = gguf_path(model_path); !gguf.empty()) {
    const std::string key = "tokenizer.chat_template";
    const GgufFile file(gguf);
    for (const std::string& k : file.keys()) {
      if (k == key) names.push_back("default");
      if (k.rfind(key + ".", 0) == 0) names.push_back(k.substr(key.size() + 1));
    }
    return names;
  }
  if (!is_directory(model_path)) return names;
  if (file_exists(join_path(model_path, "chat_template.jinja")) || file_exists(join_path(model_path, "chat_template.json"))) names.push_back("default");
  const std::string file = join_path(model_path, "tokenizer_config.json");
  if (!names.empty() || !file_exists(file)) return names;
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  const nlohmann::json* found = config.find("chat_template");
  if (found && found->is_string()) names.push_back("default");
  if (found && found->is_array())
    for (const nlohmann::json& one : *found)
      if (one.is_object() && one.contains("name") && one["name"].is_string()) names.push_back(one["name"].get<std::string>());
  return names;
}

Json embedding_json(const EmbedRecipe& recipe, int64_t width) {
  int64_t dimensions = recipe.is_static ? width : width * static_cast<int64_t>(recipe.pooling.size());
  for (const EmbedStep& s : recipe.steps)
    if (!s.normalize) dimensions = s.dense.out;
  Json prompts = Json::object();
  for (const auto& [name, text] : recipe.prompts) prompts[name] = text;
  return {{"pooling", describe(recipe)},
          {"dimensions", dimensions},
          {"normalized", recipe.normalizes()},
          {"max_tokens", recipe.max_tokens > 0 ? Json(recipe.max_tokens) : Json(nullptr)},
          {"prompts", prompts},
          {"source", recipe.source}};
}

namespace {

// A LoRA adapter of llama.cpp.
Json gguf_adapter_facts(const std::string& path, bool tensors) {
  const GgufFile file(path);
  int64_t parameters = 0, rank = 0;
  std::set<std::string> modules;
  Json list = Json::array();
  for (const GgufTensor& t : file.tensors()) {
    parameters += t.elements();
    if (t.name.ends_with(".lora_a") && !t.shape().empty()) rank = std::max(rank, t.shape()[0]);
    const std::string name = t.name.substr(0, t.name.rfind(".weight"));  // "blk.0.attn_q"
    if (name.rfind("blk.", 0) == 0) modules.insert(name.substr(name.find('.', 4) + 1));
    list.push_back({{"name", t.name}, {"shape", t.shape()}, {"dtype", ggml_type_info(t.type).name}, {"bytes", t.bytes}});
  }
  Json facts = {{"schema", "thimble.model/1"}, {"path", path}, {"kind", "adapter"}, {"container", fmt::format("gguf v{}", file.version())},
                {"parameters", parameters}, {"file_bytes", file.file_bytes()}};
  facts["adapter"] = {{"kind", file.get_string("adapter.type").value_or("unknown")},
                      {"architecture", file.get_string("general.architecture").value_or("unknown")},
                      {"r", rank},
                      {"lora_alpha", file.get_float("adapter.lora.alpha").value_or(0)},
                      {"target_modules", modules}};
  if (tensors) facts["tensors"] = std::move(list);
  return facts;
}

bool is_gguf_adapter(const std::string& path) {
  return file_exists(path) && !is_directory(path) && GgufFile::present(path) && GgufFile(path).get_string("general.type").value_or("") == "adapter";
}

}  // namespace

bool is_adapter(const std::string& path) {
  return is_directory(path) ? file_exists(join_path(path, "adapter_config.json")) : is_gguf_adapter(path);
}

Json adapter_facts(const std::string& dir, bool tensors) {
  if (!is_directory(dir)) return gguf_adapter_facts(dir, tensors);
  const std::string file = join_path(dir, "adapter_config.json");
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  const std::string type = config.require_string("peft_type");
  Json adapter = {{"kind", type}, {"base", value_of(config, "base_model_name_or_path")}};
  if (type == "LORA" && config.get_bool("use_dora", false)) adapter["kind"] = "DORA";
  for (const char* key : {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "num_virtual_tokens", "target_modules", "feedforward_modules",
                          "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern", "task_type"})
    if (config.has(key)) adapter[key] = value_of(config, key);
  Json facts = {{"schema", "thimble.model/1"}, {"path", dir}, {"kind", "adapter"}};
  const std::string weights = join_path(dir, "adapter_model.safetensors");
  if (file_exists(weights)) {
    const SafetensorsSet set(weights);
    facts["container"] = "safetensors";
    facts["parameters"] = elements(set);
    facts["file_bytes"] = set.file_bytes();
    facts["adapter"] = std::move(adapter);
    if (tensors) facts["tensors"] = tensor_list(set);
    return facts;
  }
  if (!file_exists(join_path(dir, "adapter_model.bin")))
    throw Error(ErrorCode::input, dir + ": has adapter_config.json, but no adapter_model.safetensors", "download the adapter's weights too");
  facts["container"] = "pytorch pickle";
  facts["adapter"] = std::move(adapter);
  return facts;
}

Json static_facts(const std::string& path, const EmbedRecipe& recipe, bool tensors) {
  const StaticEmbedding table(recipe.model_path);
  const SafetensorsSet set(recipe.model_path);
  Json facts = {{"schema", "thimble.model/1"},
                {"path", path},
                {"kind", "static embedder"},
                {"container", container_name(recipe.model_path)},
                {"parameters", table.parameters()},
                {"file_bytes", set.file_bytes()},
                {"stored_bytes", table.stored_bytes()},
                {"table", table.description()},
                {"embedding", embedding_json(recipe, table.dimensions())},
                {"tokenizer", tokenizer_json(recipe.model_path)}};
  if (tensors) facts["tensors"] = tensor_list(set);
  return facts;
}

std::string facts_text(const Json& facts) {
  std::string text;
  const auto line = [&](const std::string& key, const std::string& value) { text += fmt::format("{:<24} {}\n", key, value); };
  for (const auto& item : facts.items()) {
    if (item.key() == "schema" || item.key() == "tensors") continue;
    if (item.key() == "adapter" || item.key() == "embedding")
      for (const auto& inner : item.value().items()) line(inner.key(), text_of(inner.value()));
    else
      line(item.key(), text_of(item.value()));
  }
  if (!facts.contains("tensors")) return text;
  text += fmt::format("\n{:<70} {:<16} {:<6} {:>12}\n", "tensor", "shape", "dtype", "bytes");
  for (const Json& t : facts["tensors"])
    text += fmt::format("{:<70} {:<16} {:<6} {:>12}\n", t["name"].get<std::string>(), t["shape"].dump(), t["dtype"].get<std::string>(), t["bytes"].get<int64_t>());
  return text;
}

}  // namespace thimble::cli
