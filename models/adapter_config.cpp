#include "models/adapter_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "models/io/json.h"
#include "models/io/quant_config.h"
#include "models/tokenizer/regex.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr int64_t kMaxRank = 1 << 16;
constexpr size_t kMaxPattern = 1000, kMaxPatterns = 1 << 14;

std::shared_ptr<const Regex> compile(const std::string& pattern, const std::string& before, const std::string& where) {
  if (pattern.size() > kMaxPattern)
    throw Error(ErrorCode::input, fmt::format("{}: the pattern is longer than {} characters", where, kMaxPattern), "");
  try {
    return std::make_shared<const Regex>("\\A" + before + "(?:" + pattern + ")\\z", where);
  } catch (const Error& e) {
    throw Error(ErrorCode::input, fmt::format("{}: {} is not a regular expression: {}", where, quote_for_message(pattern), e.what()), "");
  }
}

bool matches_whole(const Regex& regex, const std::string& text) {
  return !regex.find_all(text).empty();
}

std::vector<std::string> string_list(const JsonObject& o, const char* key, const char* expected) {
  std::vector<std::string> names;
  const nlohmann::json* list = o.find(key);
  if (!list) return names;
  if (!list->is_array()) o.fail(key, expected);
  for (const nlohmann::json& n : *list) {
    if (!n.is_string()) o.fail(key, expected);
    names.push_back(n.get<std::string>());
  }
  return names;
}

ModuleNames module_names(const JsonObject& o, const char* key) {
  const nlohmann::json* value = o.find(key);
  if (!value) return {};
  if (value->is_string()) return ModuleNames(value->get<std::string>(), fmt::format("{}: field \"{}\"", o.file(), key));
  return ModuleNames(string_list(o, key, "a list of module names, or a regular expression"));
}

PatternValues patterns(const JsonObject& o, const nlohmann::ordered_json& ordered, const char* key, double least, double most, bool shared) {
  PatternValues out;
  if (!o.find(key)) return out;
  const nlohmann::ordered_json& table = ordered.at(key);
  const std::string where = fmt::format("{}: field \"{}\"", o.file(), key);
  if (!table.is_object() || table.size() > kMaxPatterns)
    o.fail(key, fmt::format("an object {{pattern: number}} of at most {} patterns", kMaxPatterns));
  for (const auto& [pattern, value] : table.items()) {
    const double number = value.is_number() ? value.template get<double>() : std::nan("");
    if (!(number >= least && number <= most))
      throw Error(ErrorCode::input, fmt::format("{}: {}: expected a number from {} to {}", where, quote_for_message(pattern), least, most), "");
    out.add(pattern, number, where, shared);
  }
  return out;
}

// Fields of any PEFT version that change nothing about a stored adapter, or are read below.
const std::set<std::string>& known_fields() {
  static const std::set<std::string> names = {
      "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
      // LoRA
      "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
      "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
      "megatron_config", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "corda_config",
      "lora_ga_config", "use_dora", "use_qalora", "qalora_group_size", "layer_replication", "runtime_config", "lora_bias",
      "target_parameters", "arrow_config", "alora_invocation_tokens", "ensure_weight_tying", "use_bdlora", "merge_weights", "enable_lora",
      "velora_config", "monteclora_config", "kasa_config",
      // IA3
      "feedforward_modules", "init_ia3_weights",
      // prompts
      "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "modules_to_save",
      "prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path", "tokenizer_name_or_path",
      "tokenizer_kwargs", "encoder_hidden_size", "prefix_projection", "init_weights", "encoder_reparameterization_type",
      "encoder_num_layers", "encoder_dropout"};
  return names;
}

void refuse(const std::string& path, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", path, what), hint);
}

constexpr const char* kSupported =
    "supported: LORA (with rsLoRA, DoRA, rank_pattern, alpha_pattern, modules_to_save), IA3, PROMPT_TUNING, P_TUNING, PREFIX_TUNING";

// Fields whose mere presence changes what a stored adapter computes.
void refuse_fields(const JsonObject& o) {
  const std::string& path = o.file();
  const auto given = [&](const char* key) {
    const nlohmann::json* v = o.find(key);
    return v && !(v->is_boolean() && !v->get<bool>()) && !((v->is_array() || v->is_object()) && v->empty());
  };
  for (const char* key : {"layer_replication", "lora_bias", "trainable_token_indices", "use_qalora", "target_parameters",
                          "alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config", "kasa_config", "ensure_weight_tying"})
    if (given(key)) refuse(path, fmt::format("field \"{}\"", key), "merge the adapter with PEFT and load the merged model");
  if (const nlohmann::json* init = o.find("init_lora_weights"); init && init->is_string()) {
    const std::string name = lower_case(init->get<std::string>());
    if (name != "gaussian" && name != "eva" && name != "orthogonal")
      refuse(path, fmt::format("field \"init_lora_weights\": {}", quote_for_message(init->get<std::string>())),
             "PEFT changes the base model when it loads such an adapter; save it as plain LoRA "
             "(path_initial_model_for_weight_conversion), or merge it with PEFT");
  }
}

}  // namespace

const char* adapter_kind_name(AdapterKind kind) {
  switch (kind) {
    case AdapterKind::ia3: return "ia3";
    case AdapterKind::prompt: return "prompt";
    case AdapterKind::prefix: return "prefix";
    case AdapterKind::lora: break;
  }
  return "lora";
}

const char* adapter_bias_name(AdapterBias bias) {
  return bias == AdapterBias::all ? "all" : bias == AdapterBias::lora_only ? "lora_only" : "none";
}

ModuleNames::ModuleNames(const std::string& pattern, const std::string& where)
    : pattern_(pattern), regex_(compile(pattern, "", where)), given_(true) {}

bool ModuleNames::matches(const std::string& module) const {
  if (regex_) return matches_whole(*regex_, module);
  return std::any_of(names_.begin(), names_.end(), [&](const std::string& n) { return module == n || module.ends_with("." + n); });
}

bool ModuleNames::matches_end(const std::string& module) const {
  if (regex_) return matches_whole(*regex_, module);
  return std::any_of(names_.begin(), names_.end(), [&](const std::string& n) { return module.ends_with(n); });
}

bool ModuleNames::is_whole_path(const std::string& module) const {
  return std::find(names_.begin(), names_.end(), module) != names_.end();
}

void PatternValues::add(const std::string& pattern, double value, const std::string& where, bool shared) {
  values_.emplace_back(pattern, value);
  const std::shared_ptr<const Regex> grouped = compile(pattern, "(?:.*\\.)?", where);
  regexes_.push_back(shared ? std::make_shared<const Regex>("\\A(?:.*\\." + pattern + "\\z)", where) : grouped);
}

const std::string* PatternValues::first_match(const std::string& module) const {
  for (size_t i = 0; i < values_.size(); ++i)
    if (matches_whole(*regexes_[i], module)) return &values_[i].first;
  return nullptr;
}

double PatternValues::at(const std::string& pattern, double fallback) const {
  for (const auto& [name, value] : values_)
    if (name == pattern) return value;
  return fallback;
}

// PEFT takes the number behind the last "NAME.NUMBER." of the path, where a name stands before NAME too; since 0.20 behind
// the first, so that experts' numbers are none of layers.
bool AdapterConfig::in_layers(const std::string& module) const {
  std::vector<size_t> dots;
  for (size_t i = 0; i < module.size(); ++i)
    if (module[i] == '.') dots.push_back(i);
  std::vector<int64_t> numbers;
  for (size_t d = 2; d < dots.size(); ++d) {  // the part between dots[d - 1] and dots[d]
    const std::string part = module.substr(dots[d - 1] + 1, dots[d] - dots[d - 1] - 1);
    if (part.empty() || part.size() > 9 || !std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; })) continue;
    const std::string before = module.substr(0, dots[d - 1]);
    if (!layer_regexes_.empty() &&
        std::none_of(layer_regexes_.begin(), layer_regexes_.end(), [&](const auto& r) { return matches_whole(*r, before); }))
      continue;
    numbers.push_back(std::strtoll(part.c_str(), nullptr, 10));
  }
  if (numbers.empty()) return false;
  const bool first = peft_version.rfind("0.", 0) == 0 ? std::strtol(peft_version.c_str() + 2, nullptr, 10) >= 20 : !peft_version.empty();
  return std::find(layers.begin(), layers.end(), first ? numbers.front() : numbers.back()) != layers.end();
}

bool AdapterConfig::selects(const std::string& module) const {
  if (exclude.given() && exclude.matches(module)) return false;
  // Modules that are stored as a whole, and what lies in them, get no adapter.
  if (std::any_of(modules_to_save.begin(), modules_to_save.end(),
                  [&](const std::string& n) { return !n.empty() && ("." + module + ".").find("." + n + ".") != std::string::npos; }))
    return false;
  if (all_linear) return layers.empty() || in_layers(module);
  if (targets.is_pattern() || targets.is_whole_path(module)) return targets.matches(module);
  return targets.matches(module) && (layers.empty() || in_layers(module));
}

std::pair<int64_t, double> AdapterConfig::scaling(const std::string& module) {
  const std::string* in_ranks = ranks.first_match(module);
  const std::string* in_alphas = alphas.first_match(module);
  if (!shared_patterns) return {int64_t(in_ranks ? ranks.at(*in_ranks, 0) : double(rank)), in_alphas ? alphas.at(*in_alphas, 0) : alpha};
  // The first pattern of ranks, then of alphas, else the path itself, is looked up in both.
  const std::string& shared = in_ranks ? *in_ranks : in_alphas ? *in_alphas : module;
  const double old_rank = ranks.at(shared, double(rank)), old_alpha = alphas.at(shared, alpha);
  // Each table by itself, where the path stands for itself.
  const double own_rank = in_ranks ? ranks.at(*in_ranks, 0) : ranks.at(module, double(rank));
  const double own_alpha = in_alphas ? alphas.at(*in_alphas, 0) : alphas.at(module, alpha);
  if ((old_rank != own_rank || old_alpha != own_alpha) &&
      (warnings.empty() || warnings.back().find("rank_pattern and alpha_pattern") == std::string::npos))
    warnings.push_back(fmt::format("rank_pattern and alpha_pattern select {} by different patterns, which PEFT reads in two ways; read as before "
                                   "0.14, since the file lacks the fields of newer ones",
                                   module));
  return {int64_t(old_rank), old_alpha};
}

bool AdapterConfig::saves(const std::string& tensor) const {
  for (size_t dot = tensor.find('.'); dot != std::string::npos; dot = tensor.find('.', dot + 1)) {
    const std::string module = tensor.substr(0, dot);
    for (const std::string& n : modules_to_save)
      if (!n.empty() && module.ends_with(n)) return true;
  }
  return false;
}

AdapterConfig read_adapter_config(const std::string& path) {
  const nlohmann::json json = parse_json_file(path, size_t{16} << 20);
  const JsonObject o(json, path);
  AdapterConfig c;
  c.source = nlohmann::ordered_json::parse(read_file(path));
  const std::string type = o.require_string("peft_type");
  if (type == "LORA") c.kind = AdapterKind::lora;
  else if (type == "IA3") c.kind = AdapterKind::ia3;
  // What is stored for P_TUNING are the rows that its encoder gave: a prompt.
  else if (type == "PROMPT_TUNING" || type == "P_TUNING") c.kind = AdapterKind::prompt;
  else if (type == "PREFIX_TUNING") c.kind = AdapterKind::prefix;
  else refuse(path, "peft_type " + quote_for_message(type), kSupported);
  const std::string task = o.get_string("task_type", "CAUSAL_LM");
  if (task != "CAUSAL_LM") c.warnings.push_back(fmt::format("{}: field \"task_type\" is {}: used as CAUSAL_LM", path, quote_for_message(task)));
  std::string unknown;
  for (const auto& item : json.items())
    if (!known_fields().count(item.key())) unknown += (unknown.empty() ? "" : ", ") + quote_for_message(item.key());
  if (!unknown.empty()) c.warnings.push_back(fmt::format("{}: fields that are not known are ignored: {}", path, unknown));
  refuse_fields(o);
  c.peft_version = o.get_string("peft_version", "");
  c.modules_to_save = string_list(o, "modules_to_save", "a list of module names");
  if (c.kind == AdapterKind::prompt || c.kind == AdapterKind::prefix) {
    if (!c.modules_to_save.empty()) refuse(path, "field \"modules_to_save\" beside a prompt", kSupported);
    if (o.get_int("num_transformer_submodules", 1, 1, 2) != 1) refuse(path, "field \"num_transformer_submodules\": 2", kSupported);
    c.n_virtual = o.require_int("num_virtual_tokens", 1, 1 << 16);
    return c;
  }
  if (c.kind == AdapterKind::lora) {
    c.rank = o.get_int("r", 8, 1, kMaxRank);
    c.alpha = o.get_double("lora_alpha", 8, -1e9, 1e9);
    c.dropout = o.get_double("lora_dropout", 0, 0, 0.999999);
    c.rslora = o.get_bool("use_rslora", false);
    c.dora = o.get_bool("use_dora", false);
    const std::string bias = o.get_string("bias", "none");
    if (bias == "all") c.bias = AdapterBias::all;
    else if (bias == "lora_only") c.bias = AdapterBias::lora_only;
    else if (bias != "none") o.fail("bias", "none, all or lora_only");
    // No version stands in files before 0.18; these fields have been written since 0.14.
    c.shared_patterns = c.peft_version.empty() && !json.contains("exclude_modules") && !json.contains("lora_bias") && !json.contains("eva_config");
    c.ranks = patterns(o, c.source, "rank_pattern", 1, double(kMaxRank), c.shared_patterns);
    c.alphas = patterns(o, c.source, "alpha_pattern", -1e9, 1e9, c.shared_patterns);
    if (const nlohmann::json* list = o.find("layers_to_transform")) {
      c.layers_given = true;
      c.layers_single = !list->is_array();
      for (const nlohmann::json& l : list->is_array() ? *list : nlohmann::json::array({*list})) {
        if (!l.is_number_integer()) o.fail("layers_to_transform", "a layer or a list of layers");
        c.layers.push_back(l.get<int64_t>());
      }
    }
    if (const nlohmann::json* list = o.find("layers_pattern")) {
      if (list->is_string()) c.layers_pattern = {list->get<std::string>()};
      else c.layers_pattern = string_list(o, "layers_pattern", "a name or a list of names");
      for (const std::string& p : c.layers_pattern)
        if (!p.empty()) c.layer_regexes_.push_back(compile(p, ".*\\.", path + ": field \"layers_pattern\""));
    }
  }
  // null: what PEFT adapts by default in the family of the base model.
  const nlohmann::json* targets = o.find("target_modules");
  if (!targets && !json.contains("target_modules")) o.fail("target_modules", "a list of module names, a regular expression, or all-linear");
  if (targets && targets->is_string()) c.all_linear = lower_case(targets->get<std::string>()) == "all-linear";
  if (!c.all_linear) c.targets = module_names(o, "target_modules");
  c.exclude = module_names(o, "exclude_modules");
  if (c.kind == AdapterKind::ia3) c.feedforward = module_names(o, "feedforward_modules");
  return c;
}

namespace {

nlohmann::ordered_json names_json(const ModuleNames& names) {
  if (!names.given()) return nullptr;
  return names.is_pattern() ? nlohmann::ordered_json(names.pattern()) : nlohmann::ordered_json(names.names());
}

nlohmann::ordered_json number(double v) {
  if (v == std::floor(v) && std::fabs(v) < 1e15) return static_cast<int64_t>(v);
  return v;
}

nlohmann::ordered_json table(const PatternValues& values) {
  nlohmann::ordered_json t = nlohmann::ordered_json::object();
  for (const auto& [pattern, value] : values.values()) t[pattern] = number(value);
  return t;
}

}  // namespace

nlohmann::ordered_json adapter_config_json(const AdapterConfig& a, const std::string& base, bool fan_in_fan_out, const PromptWidths& widths) {
  nlohmann::ordered_json c;
  const auto kept = [&](const char* key, const nlohmann::ordered_json& fallback) {
    return a.source.is_object() && a.source.contains(key) ? a.source.at(key) : fallback;
  };
  const nlohmann::ordered_json saved = a.modules_to_save.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(a.modules_to_save);
  c["auto_mapping"] = nullptr;
  c["base_model_name_or_path"] = base;
  c["inference_mode"] = true;
  c["revision"] = kept("revision", nullptr);
  c["task_type"] = "CAUSAL_LM";
  switch (a.kind) {
    case AdapterKind::lora: {
      c["peft_type"] = "LORA";
      c["alpha_pattern"] = table(a.alphas);
      c["bias"] = adapter_bias_name(a.bias);
      c["fan_in_fan_out"] = fan_in_fan_out;
      c["init_lora_weights"] = true;
      c["layer_replication"] = nullptr;
      c["layers_pattern"] = nullptr;
      if (!a.layers_pattern.empty()) c["layers_pattern"] = a.layers_pattern;
      c["layers_to_transform"] = nullptr;
      if (a.layers_given) c["layers_to_transform"] = a.layers_single ? nlohmann::ordered_json(a.layers[0]) : nlohmann::ordered_json(a.layers);
      c["loftq_config"] = nlohmann::ordered_json::object();
      c["lora_alpha"] = number(a.alpha);
      c["lora_dropout"] = a.dropout;
      c["megatron_config"] = nullptr;
      c["megatron_core"] = "megatron.core";
      c["modules_to_save"] = saved;
      c["r"] = a.rank;
      c["rank_pattern"] = table(a.ranks);
      c["target_modules"] = a.all_linear ? nlohmann::ordered_json("all-linear") : names_json(a.targets);
      // Older versions of PEFT refuse fields that they do not know, so these are written only where they say something.
      const bool age_matters = !a.shared_patterns && (!a.ranks.values().empty() || !a.alphas.values().empty());
      if (a.exclude.given() || age_matters) c["exclude_modules"] = names_json(a.exclude);
      if (!a.peft_version.empty()) c["peft_version"] = a.peft_version;
      c["use_dora"] = a.dora;
      c["use_rslora"] = a.rslora;
      break;
    }
    case AdapterKind::ia3:
      c["peft_type"] = "IA3";
      c["fan_in_fan_out"] = fan_in_fan_out;
      c["feedforward_modules"] = a.feedforward.given() ? names_json(a.feedforward) : nlohmann::ordered_json::array();
      c["init_ia3_weights"] = true;
      c["modules_to_save"] = saved;
      c["target_modules"] = a.all_linear ? nlohmann::ordered_json("all-linear") : names_json(a.targets);
      if (a.exclude.given()) c["exclude_modules"] = names_json(a.exclude);
      break;
    case AdapterKind::prompt:
    case AdapterKind::prefix: {
      const bool prompt = a.kind == AdapterKind::prompt;
      c["peft_type"] = prompt ? "PROMPT_TUNING" : "PREFIX_TUNING";
      c["num_attention_heads"] = widths.heads;
      c["num_layers"] = widths.layers;
      c["num_transformer_submodules"] = 1;
      c["num_virtual_tokens"] = a.n_virtual;
      c["token_dim"] = widths.token_dim;
      if (prompt) {
        // How the rows began; they are stored, so PEFT does not begin them again.
        c["prompt_tuning_init"] = kept("prompt_tuning_init", "RANDOM");
        c["prompt_tuning_init_text"] = kept("prompt_tuning_init_text", nullptr);
        c["tokenizer_name_or_path"] = kept("tokenizer_name_or_path", nullptr);
        c["tokenizer_kwargs"] = kept("tokenizer_kwargs", nullptr);
      } else {
        // The stored rows are what a projection made, if there was one.
        c["encoder_hidden_size"] = kept("encoder_hidden_size", widths.token_dim);
        c["prefix_projection"] = kept("prefix_projection", false);
      }
      break;
    }
  }
  return c;
}

}  // namespace thimble
