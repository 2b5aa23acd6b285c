#include "models/adapter_names.h"

#include <fmt/format.h>

#include "models/io/json.h"
#include "models/model.h"
#include "models/tokenizer/regex.h"
#include "tensor/error.h"

namespace thimble {

bool is_linear(Role role) {
  return role == Role::q_w || role == Role::k_w || role == Role::v_w || role == Role::o_w || role == Role::gate_w || role == Role::up_w ||
         role == Role::down_w || role == Role::router_w || role_is_expert(role);
}

std::string module_path(const TensorRule& rule, int64_t layer) {
  const std::string name = rule_name(rule, layer), end = ".weight";
  if (name.size() <= end.size() || name.compare(name.size() - end.size(), end.size(), end) != 0) return {};
  return name.substr(0, name.size() - end.size());
}

std::string plain_adapter_key(const std::string& key) {
  std::string plain;
  size_t begin = 0;
  while (begin <= key.size()) {
    size_t dot = key.find('.', begin);
    if (dot == std::string::npos) dot = key.size();
    const std::string part = key.substr(begin, dot - begin);
    if (part != "default" && part != "base_layer" && part != "modules_to_save") plain += (plain.empty() ? "" : ".") + part;
    begin = dot + 1;
  }
  const std::string magnitude = ".lora_magnitude_vector.weight";
  if (plain.size() > magnitude.size() && plain.compare(plain.size() - magnitude.size(), magnitude.size(), magnitude) == 0)
    plain.resize(plain.size() - 7);
  return plain;
}

SearchPattern::SearchPattern(const std::string& pattern, const std::string& where) {
  try {
    regex_ = std::make_shared<const Regex>(pattern, where);
  } catch (const Error& e) {
    throw Error(ErrorCode::usage, fmt::format("{}: {} is not a regular expression: {}", where, quote_for_message(pattern), e.what()), "");
  }
}

bool SearchPattern::found_in(const std::string& text) const { return !regex_->find_all(text).empty(); }

}  // namespace thimble
