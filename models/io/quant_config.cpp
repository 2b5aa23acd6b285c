#include "models/io/quant_config.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxPattern = 4096;
// Of backtracking: names of modules have a hundred characters at most.
constexpr uint32_t kMatchLimit = 100'000, kHeapLimitKiB = 16 << 10;

std::string stated_method(const JsonObject& o) {
  for (const char* key : {"method", "quant_method"})
    if (o.has(key)) return lower_case(o.require_string(key));
  if (o.find("version") && o.find("version")->is_string() && !o.require_string("version").empty()) return "awq";
  if (o.has("load_in_4bit") || o.has("load_in_8bit")) return "bitsandbytes";
  if (o.has("config_groups")) return "compressed-tensors";
  return "gptq";
}

std::optional<QuantStatement> statement_of(const nlohmann::json& json, const std::string& file,
                                           const std::string& where) {
  const JsonObject object(json, file, where);
  // Early compressed-tensors files keep a sparsity_config beside a quantization_config inside the object.
  if (const nlohmann::json* inner = object.find("quantization_config"); inner && inner->is_object()) {
    nlohmann::json flat = *inner;
    if (object.has("sparsity_config")) flat["sparsity_config"] = *object.find("sparsity_config");
    if (object.has("quant_method")) flat["quant_method"] = *object.find("quant_method");
    return statement_of(flat, file, where + (where.empty() ? "" : ".") + "quantization_config");
  }
  QuantStatement s;
  s.file = file;
  s.where = where;
  s.method = stated_method(object);
  s.json = json;
  return s;
}

}  // namespace

std::string lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::optional<QuantStatement> read_quant_statement(const std::string& dir) {
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const std::string path = join_path(dir, name);
    if (file_exists(path)) return statement_of(parse_json_file(path), path, "");
  }
  const std::string path = join_path(dir, "config.json");
  if (!file_exists(path)) return std::nullopt;
  const nlohmann::json json = parse_json_file(path);
  const JsonObject root(json, path);
  for (const char* key : {"quantization_config", "compression_config"})
    if (root.has(key)) return statement_of(*root.find(key), path, key);
  return std::nullopt;
}

std::vector<std::string> QuantStatement::ordered_keys(const std::string& key) const {
  std::vector<std::string> keys;
  // The strict parser has accepted this text; it sorts keys, so the order comes from a second reading.
  nlohmann::ordered_json at = nlohmann::ordered_json::parse(read_file(file, size_t{256} << 20));
  for (size_t from = 0; !where.empty() && from <= where.size();) {
    const size_t dot = std::min(where.find('.', from), where.size());
    const std::string part = where.substr(from, dot - from);
    if (!at.is_object() || !at.contains(part)) return keys;
    nlohmann::ordered_json inner = at[part];
    at = std::move(inner);
    from = dot + 1;
  }
  if (!at.is_object() || !at.contains(key) || !at[key].is_object()) return keys;
  for (const auto& item : at[key].items()) keys.push_back(item.key());
  return keys;
}

struct NamePattern::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

NamePattern::NamePattern(const std::string& pattern, const std::string& where) : text_(pattern), where_(where) {
  if (pattern.size() > kMaxPattern)
    throw Error(ErrorCode::unsupported, where + ": a pattern of " + std::to_string(pattern.size()) + " bytes",
                "at most 4096 bytes are accepted");
  auto owner = std::make_shared<Code>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  owner->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_ANCHORED | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C, &error,
                              &offset, nullptr);
  if (!owner->code) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof message);
    throw Error(ErrorCode::unsupported,
                where + ": the pattern " + quote_for_message(pattern) + ": " + reinterpret_cast<const char*>(message),
                "patterns of modules are regular expressions");
  }
  code_ = std::move(owner);
}

bool NamePattern::matches(const std::string& name) const {
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(pcre2_match_context_create(nullptr),
                                                                                   &pcre2_match_context_free);
  pcre2_set_match_limit(limits.get(), kMatchLimit);
  pcre2_set_heap_limit(limits.get(), kHeapLimitKiB);
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_->code, nullptr), &pcre2_match_data_free);
  const int status =
      pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0, 0, match.get(), limits.get());
  if (status >= 0) return true;
  if (status == PCRE2_ERROR_NOMATCH) return false;
  PCRE2_UCHAR message[256] = {};
  pcre2_get_error_message(status, message, sizeof message);
  throw Error(ErrorCode::input,
              where_ + ": the pattern " + quote_for_message(text_) + " fails on " + quote_for_message(name) + ": " +
                  reinterpret_cast<const char*>(message),
              "a pattern that backtracks without end; simplify it");
}

}  // namespace thimble
