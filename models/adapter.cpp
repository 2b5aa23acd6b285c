#include "models/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <regex>
#include <set>

#include "kernels/kernel_table.h"
#include "models/io/json.h"
#include "models/io/safetensors.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

constexpr int64_t kMaxRank = 1 << 16;

// The module path of a linear's rule: its name without ".weight"; "" when the rule is no linear of a layer.
std::string module_of(const TensorRule& rule, int64_t layer) {
  const Role role = rule.roles[0];
  const bool linear = role == Role::q_w || role == Role::k_w || role == Role::v_w || role == Role::o_w || role == Role::gate_w ||
                      role == Role::up_w || role == Role::down_w;
  if (!linear) return {};
  const std::string name = rule_name(rule, layer);
  return name.substr(0, name.size() - std::strlen(".weight"));
}

std::string last_part(const std::string& module) { return module.substr(module.rfind('.') + 1); }

// PEFT: a list matches by suffix at a dot, a string is a regular expression over the whole path.
bool suffix_match(const std::string& module, const std::vector<std::string>& names) {
  for (const std::string& n : names)
    if (module == n || (module.size() > n.size() && module.compare(module.size() - n.size(), n.size(), n) == 0 &&
                        module[module.size() - n.size() - 1] == '.'))
      return true;
  return false;
}

// The shortest suffix of the module's path that names no linear of layer 0 with another role (GPT-2 has two c_proj).
std::string own_suffix(const Model& model, const TensorRule& rule) {
  const std::string module = module_of(rule, 0);
  for (size_t dot = module.rfind('.'); dot != std::string::npos && dot > 0; dot = module.rfind('.', dot - 1)) {
    const std::string suffix = module.substr(dot + 1);
    bool shared = false;
    for (const TensorRule& other : model.family->tensors)
      shared = shared || (other.roles[0] != rule.roles[0] && suffix_match(module_of(other, 0), {suffix}));
    if (!shared) return suffix;
  }
  return module;
}

std::regex compile(const std::string& pattern, const std::string& where) {
  if (pattern.size() > 1000) throw Error(ErrorCode::input, where + ": the pattern is longer than 1000 characters", "");
  try {
    return std::regex(pattern);
  } catch (const std::regex_error& e) {
    throw Error(ErrorCode::input, fmt::format("{}: \"{}\" is not a regular expression: {}", where, pattern, e.what()), "");
  }
}

std::vector<std::string> default_targets(const Model& m, AdapterKind kind) {
  const bool ia3 = kind == AdapterKind::ia3;
  const std::string f = m.config.family;
  if (f == "gpt_neox") return ia3 ? std::vector<std::string>{"query_key_value", "dense_4h_to_h"} : std::vector<std::string>{"query_key_value"};
  if (f == "gpt2") return ia3 ? std::vector<std::string>{"c_attn", "mlp.c_proj"} : std::vector<std::string>{"c_attn"};
  if (f == "opt") return ia3 ? std::vector<std::string>{"q_proj", "k_proj", "fc2"} : std::vector<std::string>{"q_proj", "v_proj"};
  if (f == "qwen2" && ia3) return {"q_proj", "v_proj", "down_proj"};
  return ia3 ? std::vector<std::string>{"k_proj", "v_proj", "down_proj"} : std::vector<std::string>{"q_proj", "v_proj"};
}

// {name: value} of rank_pattern and alpha_pattern; a pattern matches a module by regular expression at its end.
double pattern_value(const nlohmann::json* patterns, const std::string& module, double fallback, const std::string& where) {
  if (!patterns || !patterns->is_object()) return fallback;
  for (const auto& [pattern, value] : patterns->items()) {
    if (!value.is_number()) throw Error(ErrorCode::input, fmt::format("{}.{}: expected a number", where, pattern), "");
    if (std::regex_match(module, compile("(.*\\.)?" + pattern, where))) return value.get<double>();
  }
  return fallback;
}

std::vector<std::string> string_list(const JsonObject& o, const char* key) {
  std::vector<std::string> names;
  if (const nlohmann::json* list = o.find(key)) {
    if (!list->is_array()) o.fail(key, "a list of module names");
    for (const nlohmann::json& n : *list) {
      if (!n.is_string()) o.fail(key, "a list of module names");
      names.push_back(n.get<std::string>());
    }
  }
  return names;
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

Weight* Adapter::make(int64_t rows, int64_t cols) {
  Weight w;
  w.rows = rows;
  w.cols = cols;
  w.data = store_.allocate(size_t(rows * cols) * sizeof(float));
  weights_.push_back(w);
  return &weights_.back();
}

void Adapter::add_lora(const Model& model, const TensorRule& rule, int64_t layer, int64_t rank, double alpha, bool rslora) {
  const std::string key = "base_model.model." + module_of(rule, layer);
  const int64_t in = role_shape(config_, rule.roles[0]).cols;
  const auto scale = static_cast<float>(alpha / (rslora ? std::sqrt(double(rank)) : double(rank)));
  Entry a{key + ".lora_A.weight", {rank, in}, &rule, layer, false, {make(rank, in)}};
  Entry b{key + ".lora_B.weight", {0, rank}, &rule, layer, true, {}};
  for (Role role : rule.roles) {
    AdapterModule& m = modules_[size_t(layer)][size_t(role)];
    m.lora_a = a.parts[0];
    m.lora_b = make(role_shape(config_, role).rows, rank);
    m.scale = scale;
    b.parts.push_back(m.lora_b);
    b.shape[0] += m.lora_b->rows;
  }
  fan_in_fan_out_ = fan_in_fan_out_ || layout_is_transposed(rule.layout);
  entries_.push_back(std::move(a));
  entries_.push_back(std::move(b));
}

void Adapter::add_ia3(const Model& model, const TensorRule& rule, int64_t layer, bool input) {
  Entry e{"base_model.model." + module_of(rule, layer) + ".ia3_l", {}, &rule, layer, !input, {}};
  int64_t rows = 0;
  for (Role role : rule.roles) {
    AdapterModule& m = modules_[size_t(layer)][size_t(role)];
    const RoleShape s = role_shape(config_, role);
    m.ia3_input = input;
    m.ia3 = input && !e.parts.empty() ? e.parts[0] : make(1, input ? s.cols : s.rows);
    if (!input || e.parts.empty()) e.parts.push_back(m.ia3);
    rows += s.rows;
  }
  e.shape = input ? std::vector<int64_t>{1, e.parts[0]->cols} : std::vector<int64_t>{rows, 1};
  fan_in_fan_out_ = fan_in_fan_out_ || layout_is_transposed(rule.layout);
  entries_.push_back(std::move(e));
}

void Adapter::add_prompt(const Model& model, int64_t rows) {
  n_virtual_ = rows;
  const int64_t cols = kind_ == AdapterKind::prompt ? config_.embed_dim : 2 * config_.n_layers * config_.kv_cols();
  prompt_ = make(rows, cols);
  entries_.push_back({"prompt_embeddings", {rows, cols}, nullptr, 0, false, {prompt_}});
}

Adapter::Adapter(const Model& model, const KernelTable& kernels, const AdapterOptions& o, MemoryBudget* budget)
    : kind_(o.kind), alpha_(o.alpha), dropout_(o.dropout), rank_(o.rank), rslora_(o.rslora), config_(model.config),
      modules_(static_cast<size_t>(model.config.n_layers)), store_(budget) {
  const auto usage = [](bool ok, const char* message) {
    if (!ok) throw Error(ErrorCode::usage, message, "");
  };
  usage(o.dropout >= 0 && o.dropout < 1, "--dropout: expected a number from 0 to below 1");
  if (kind_ == AdapterKind::prompt || kind_ == AdapterKind::prefix) {
    usage(o.n_virtual > 0 && o.n_virtual <= 4096, "--virtual-tokens: expected an integer from 1 to 4096");
    add_prompt(model, o.n_virtual);
  } else {
    usage(kind_ != AdapterKind::lora || (o.rank > 0 && o.rank <= kMaxRank), "--rank: expected an integer from 1 to 65536");
    const std::vector<std::string> defaults = default_targets(model, kind_);
    const bool all = o.targets == "all-linear";
    std::string modules;
    std::set<std::string> names;
    for (int64_t layer = 0; layer < config_.n_layers; ++layer)
      for (const TensorRule& rule : model.family->tensors) {
        const std::string module = module_of(rule, layer);
        if (module.empty() || role_shape(config_, rule.roles[0]).rows == 0) continue;
        if (layer == 0) modules += (modules.empty() ? "" : ", ") + module;
        const bool hit = o.targets.empty() ? suffix_match(module, defaults)
                         : all             ? true
                                           : std::regex_search(module, compile(o.targets, "--targets"));
        if (!hit) continue;
        names.insert(last_part(module));
        const bool input = rule.roles[0] == Role::down_w;
        if (kind_ == AdapterKind::lora)
          add_lora(model, rule, layer, rank_, alpha_, rslora_);
        else
          add_ia3(model, rule, layer, input);
        if (kind_ == AdapterKind::ia3 && input && layer == 0) feedforward_names_.push_back(own_suffix(model, rule));
      }
    if (entries_.empty())
      throw Error(ErrorCode::usage, fmt::format("--targets: \"{}\" matches no linear layer of this model", o.targets),
                  "modules of layer 0: " + modules);
    // PEFT's list matches by suffix, so a choice that suffixes cannot express is written as the full paths.
    for (const std::string& n : names) target_names_.push_back(n);
    size_t expressed = 0;
    for (int64_t layer = 0; layer < config_.n_layers; ++layer)
      for (const TensorRule& rule : model.family->tensors) {
        const std::string module = module_of(rule, layer);
        if (!module.empty() && role_shape(config_, rule.roles[0]).rows > 0 && suffix_match(module, target_names_)) ++expressed;
      }
    const size_t modules_used = kind_ == AdapterKind::lora ? entries_.size() / 2 : entries_.size();
    if (expressed != modules_used) {
      target_names_.clear();
      feedforward_names_.clear();
      for (const Entry& e : entries_) {
        const std::string module = module_of(*e.rule, e.layer);
        if (target_names_.empty() || target_names_.back() != module) target_names_.push_back(module);
        if (kind_ == AdapterKind::ia3 && !e.per_row) feedforward_names_.push_back(module);
      }
    }
  }
  initialise(model, kernels, o);
}

void Adapter::initialise(const Model& model, const KernelTable& kernels, const AdapterOptions& o) {
  Philox rng(o.seed, 0x61646170746572);
  for (const Entry& e : entries_)
    for (Weight* w : e.parts) {
      float* data = static_cast<float*>(const_cast<void*>(w->data));
      if (kind_ == AdapterKind::ia3) {
        std::fill_n(data, w->numel(), 1.0f);
      } else if (kind_ == AdapterKind::lora && !e.per_row) {
        const double bound = 1.0 / std::sqrt(double(w->cols));
        for (int64_t i = 0; i < w->numel(); ++i) data[i] = static_cast<float>((2 * rng.uniform() - 1) * bound);
      } else if (kind_ == AdapterKind::prefix) {
        for (int64_t i = 0; i < w->numel(); ++i) data[i] = static_cast<float>(0.02 * rng.normal());
      } else if (kind_ == AdapterKind::prompt) {
        std::vector<int32_t> tokens;
        for (int64_t r = 0; r < w->rows; ++r) tokens.push_back(static_cast<int32_t>(rng.below(uint64_t(config_.vocab_size))));
        gather_rows(kernels, model.weights.token_embed, tokens.data(), w->rows, data);
      }
    }
}

Adapter::Adapter(const Model& model, const KernelTable& kernels, const std::string& dir, MemoryBudget* budget)
    : config_(model.config), modules_(static_cast<size_t>(model.config.n_layers)), store_(budget) {
  const std::string path = join_path(dir, "adapter_config.json");
  if (!file_exists(path)) throw Error(ErrorCode::input, dir + ": has no adapter_config.json", "give a PEFT adapter directory");
  const nlohmann::json json = parse_json_file(path, size_t{16} << 20);
  const JsonObject o(json, path);
  const std::string type = o.require_string("peft_type");
  const auto unsupported = [&](const std::string& what) {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", path, what),
                "supported: LORA (with rsLoRA, rank_pattern, alpha_pattern), IA3, PROMPT_TUNING, PREFIX_TUNING");
  };
  // Of the modules that PEFT can replace as a whole, the output matrix.
  std::string head_module;
  for (const std::string& name : string_list(o, "modules_to_save")) {
    for (const TensorRule& rule : model.family->tensors)
      if (rule.roles[0] == Role::lm_head && rule_name(rule, 0) == name + ".weight") head_module = name;
    if (head_module != name) unsupported("field \"modules_to_save\": module " + quote_for_message(name));
  }
  if (type == "PROMPT_TUNING" || type == "PREFIX_TUNING") {
    kind_ = type == "PROMPT_TUNING" ? AdapterKind::prompt : AdapterKind::prefix;
    if (o.get_bool("prefix_projection", false) && file_exists(join_path(dir, "prefix_projection.bin"))) unsupported("field \"prefix_projection\"");
    add_prompt(model, o.require_int("num_virtual_tokens", 1, 1 << 16));
  } else if (type == "LORA" || type == "IA3") {
    kind_ = type == "LORA" ? AdapterKind::lora : AdapterKind::ia3;
    if (o.get_bool("use_dora", false)) unsupported("field \"use_dora\"");
    if (o.get_string("bias", "none") != "none") unsupported("field \"bias\" other than none");
    if (kind_ == AdapterKind::lora) {
      rank_ = o.get_int("r", 8, 1, kMaxRank);
      alpha_ = o.get_double("lora_alpha", 8, -1e9, 1e9);
      dropout_ = o.get_double("lora_dropout", 0, 0, 0.999999);
      rslora_ = o.get_bool("use_rslora", false);
    }
    const nlohmann::json* targets = o.find("target_modules");
    if (!targets) o.fail("target_modules", "a list of module names, a regular expression, or all-linear");
    std::string pattern;
    if (targets->is_string()) pattern = targets->get<std::string>();
    else target_names_ = string_list(o, "target_modules");
    feedforward_names_ = string_list(o, "feedforward_modules");
    std::set<int64_t> layers;
    if (const nlohmann::json* list = o.find("layers_to_transform")) {
      for (const nlohmann::json& l : list->is_array() ? *list : nlohmann::json::array({*list})) {
        if (!l.is_number_integer()) o.fail("layers_to_transform", "a layer or a list of layers");
        layers.insert(l.get<int64_t>());
      }
    }
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      if (!layers.empty() && layers.count(layer) == 0) continue;
      for (const TensorRule& rule : model.family->tensors) {
        const std::string module = module_of(rule, layer);
        if (module.empty() || role_shape(config_, rule.roles[0]).rows == 0) continue;
        const bool hit = pattern == "all-linear" ? true
                         : pattern.empty()       ? suffix_match(module, target_names_)
                                                 : std::regex_match(module, compile(pattern, path + ": target_modules"));
        if (!hit) continue;
        if (kind_ == AdapterKind::lora) {
          const double rank = pattern_value(o.find("rank_pattern"), module, double(rank_), path + ": rank_pattern");
          if (!(rank >= 1 && rank <= double(kMaxRank))) o.fail("rank_pattern", "ranks from 1 to 65536");
          add_lora(model, rule, layer, static_cast<int64_t>(rank),
                   pattern_value(o.find("alpha_pattern"), module, alpha_, path + ": alpha_pattern"), rslora_);
        } else {
          add_ia3(model, rule, layer, suffix_match(module, feedforward_names_));
        }
      }
    }
    if (entries_.empty())
      throw Error(ErrorCode::input, path + ": field \"target_modules\" matches no linear layer of the base model",
                  "the adapter belongs to another model");
    if (!pattern.empty())
      for (const Entry& e : entries_) {
        const std::string module = module_of(*e.rule, e.layer);
        if (target_names_.empty() || target_names_.back() != module) target_names_.push_back(module);
      }
  } else {
    unsupported("peft_type " + quote_for_message(type));
  }
  if (!head_module.empty()) add_head(head_module);
  load(dir);
}

void Adapter::add_head(const std::string& module) {
  head_name_ = module;
  head_ = make(config_.vocab_size, config_.embed_dim);
  entries_.push_back({"base_model.model." + module + ".weight", {config_.vocab_size, config_.embed_dim}, nullptr, 0, false, {head_}});
}

void Adapter::load(const std::string& dir) {
  const std::string path = join_path(dir, "adapter_model.safetensors");
  if (!file_exists(path)) throw Error(ErrorCode::input, dir + ": has no adapter_model.safetensors", "save the adapter in safetensors format");
  const SafetensorsFile file(path);
  std::set<std::string> used;
  std::string missing;
  for (const Entry& e : entries_) {
    const TensorInfo* info = file.find(e.key);
    if (!info) {
      missing += (missing.empty() ? "" : ", ") + e.key;
      continue;
    }
    if (info->shape != e.shape)
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} is {}: the base model implies [{}, {}]", path, e.key, describe_tensor(*info),
                                                e.shape[0], e.shape[1]),
                  "the adapter belongs to another model");
    used.insert(e.key);
    std::vector<float> values(static_cast<size_t>(info->elements()));
    file.read_f32(*info, values.data());
    for (size_t part = 0; part < e.parts.size(); ++part) {
      Weight* w = e.parts[part];
      float* data = static_cast<float*>(const_cast<void*>(w->data));
      if (!e.per_row) {
        std::memcpy(data, values.data(), values.size() * sizeof(float));
        continue;
      }
      const bool vector = kind_ == AdapterKind::ia3;
      const int64_t features = vector ? w->cols : w->rows, width = vector ? 1 : w->cols;
      for (int64_t r = 0; r < features; ++r)
        std::memcpy(data + r * width, &values[static_cast<size_t>(source_row(config_, e.rule->layout, static_cast<int>(part), r) * width)],
                    size_t(width) * sizeof(float));
    }
  }
  std::string unknown;
  for (const TensorInfo& t : file.tensors())
    if (!used.count(t.name)) unknown += (unknown.empty() ? "" : ", ") + quote_for_message(t.name);
  if (!missing.empty() || !unknown.empty())
    throw Error(ErrorCode::input,
                fmt::format("{}: {}{}{}{}", path, missing.empty() ? "" : "missing keys: " + missing, !missing.empty() && !unknown.empty() ? "; " : "",
                            unknown.empty() ? "" : "keys that match no module: " + unknown, ""),
                "the adapter belongs to another model or uses a feature that is not supported");
}

void Adapter::for_each_parameter(const std::function<void(const std::string&, Weight&)>& fn) {
  for (Entry& e : entries_)
    for (size_t part = 0; part < e.parts.size(); ++part)
      fn(e.parts.size() > 1 ? e.key + "#" + std::to_string(part) : e.key, *e.parts[part]);
}

void Adapter::enable_gradients() {
  for (Weight& w : weights_) {
    w.grad = static_cast<float*>(store_.allocate(size_t(w.numel()) * sizeof(float)));
    w.grad_written = false;
  }
}

int64_t Adapter::parameters() const {
  int64_t n = 0;
  for (const Weight& w : weights_) n += w.numel();
  return n;
}

void Adapter::export_tensors(ExportWhat what, const std::function<void(const ExportedTensor&)>& fn) const {
  for (const Entry& e : entries_) {
    ExportedTensor t{e.key, e.shape, {}};
    int64_t numel = 1;
    for (int64_t d : e.shape) numel *= d;
    t.data.assign(static_cast<size_t>(numel), 0.0f);
    bool present = true;
    for (size_t part = 0; part < e.parts.size(); ++part) {
      const Weight* w = e.parts[part];
      const float* data = what == ExportWhat::weights ? w->f32() : w->grad;
      if (what == ExportWhat::gradients && (!w->grad || !w->grad_written)) present = false;
      if (!present) break;
      if (!e.per_row) {
        std::copy_n(data, w->numel(), t.data.begin());
        continue;
      }
      const bool vector = kind_ == AdapterKind::ia3;
      const int64_t features = vector ? w->cols : w->rows, width = vector ? 1 : w->cols;
      for (int64_t r = 0; r < features; ++r)
        std::copy_n(data + r * width, width, t.data.begin() + source_row(config_, e.rule->layout, static_cast<int>(part), r) * width);
    }
    if (present) fn(t);
  }
}

void Adapter::save(const std::string& dir, const std::string& base) const {
  make_directories(dir);
  std::vector<ExportedTensor> tensors;
  export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  std::vector<NamedTensor> named;
  for (const ExportedTensor& t : tensors) named.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(join_path(dir, "adapter_model.safetensors"), named, {{"format", "pt"}});
  nlohmann::ordered_json c;
  c["base_model_name_or_path"] = base;
  c["inference_mode"] = true;
  c["task_type"] = "CAUSAL_LM";
  switch (kind_) {
    case AdapterKind::lora: {
      c["peft_type"] = "LORA";
      c["r"] = rank_;
      c["lora_alpha"] = alpha_;
      c["lora_dropout"] = dropout_;
      c["use_rslora"] = rslora_;
      c["bias"] = "none";
      c["fan_in_fan_out"] = fan_in_fan_out_;
      c["init_lora_weights"] = true;
      c["target_modules"] = target_names_;
      // Modules whose rank or scale differs from the default, by their full path.
      nlohmann::ordered_json ranks = nlohmann::ordered_json::object(), alphas = nlohmann::ordered_json::object();
      for (const Entry& e : entries_) {
        if (e.per_row || !e.rule) continue;
        const AdapterModule& m = module(e.layer, e.rule->roles[0]);
        const int64_t rank = e.shape[0];
        const double alpha = double(m.scale) * (rslora_ ? std::sqrt(double(rank)) : double(rank));
        if (rank != rank_) ranks[module_of(*e.rule, e.layer)] = rank;
        if (std::fabs(alpha - alpha_) > 1e-6 * std::fabs(alpha_)) alphas[module_of(*e.rule, e.layer)] = alpha;
      }
      c["rank_pattern"] = ranks;
      c["alpha_pattern"] = alphas;
      if (head_) c["modules_to_save"] = nlohmann::ordered_json::array({head_name_});
      else c["modules_to_save"] = nullptr;
      break;
    }
    case AdapterKind::ia3:
      c["peft_type"] = "IA3";
      c["target_modules"] = target_names_;
      c["feedforward_modules"] = feedforward_names_;
      c["fan_in_fan_out"] = fan_in_fan_out_;
      c["init_ia3_weights"] = true;
      if (head_) c["modules_to_save"] = nlohmann::ordered_json::array({head_name_});
      else c["modules_to_save"] = nullptr;
      break;
    case AdapterKind::prompt:
    case AdapterKind::prefix: {
      const bool prompt = kind_ == AdapterKind::prompt;
      c["peft_type"] = prompt ? "PROMPT_TUNING" : "PREFIX_TUNING";
      c["num_virtual_tokens"] = n_virtual_;
      c["token_dim"] = prompt ? config_.embed_dim : config_.kv_cols();
      c["num_transformer_submodules"] = 1;
      c["num_attention_heads"] = prompt ? config_.n_heads : config_.n_kv_heads;
      c["num_layers"] = config_.n_layers;
      if (prompt) c["prompt_tuning_init"] = "RANDOM";
      else c["prefix_projection"] = false;
      break;
    }
  }
  write_file(join_path(dir, "adapter_config.json"), c.dump(2) + "\n");
}

void Adapter::merged(const Model& model, const KernelTable& kernels, const std::function<void(const ExportedTensor&)>& fn) const {
  if (head_ && config_.tied)
    throw Error(ErrorCode::unsupported, "the adapter replaces the output matrix of a model whose matrix is its embedding: they cannot be merged",
                "use it with --adapter");
  if (kind_ == AdapterKind::prompt || kind_ == AdapterKind::prefix)
    throw Error(ErrorCode::unsupported, fmt::format("a {} adapter cannot be merged: it adds tokens, not weights", adapter_kind_name(kind_)),
                "use it with --adapter");
  for (const TensorRule& rule : model.family->tensors) {
    const int64_t copies = role_is_layer(rule.roles[0]) ? config_.n_layers : 1;
    for (int64_t layer = 0; layer < copies; ++layer) {
      if (!role_is_layer(rule.roles[0])) continue;
      ExportedTensor t = export_tensor(model, kernels, rule_name(rule, layer));
      if (t.data.empty()) continue;
      bool changed = false;
      const bool transposed = layout_is_transposed(rule.layout), vector = t.shape.size() == 1;
      for (size_t part = 0; part < rule.roles.size(); ++part) {
        // A bias shares the output scale of its matrix.
        Role matrix = rule.roles[part];
        if (vector) matrix = static_cast<Role>(static_cast<int>(matrix) - 1);
        const AdapterModule& m = module(layer, matrix);
        const RoleShape s = role_shape(config_, rule.roles[part]);
        const int64_t features = vector ? s.cols : s.rows, inputs = vector ? 1 : s.cols;
        const bool biased = vector && (rule.roles[part] == Role::q_b || rule.roles[part] == Role::k_b || rule.roles[part] == Role::v_b ||
                                       rule.roles[part] == Role::o_b || rule.roles[part] == Role::gate_b || rule.roles[part] == Role::up_b ||
                                       rule.roles[part] == Role::down_b);
        if (vector && !biased) continue;
        if (!(m.lora_a && !vector) && !(m.ia3 && !(vector && m.ia3_input))) continue;
        changed = true;
        for (int64_t r = 0; r < features; ++r) {
          const int64_t row = source_row(config_, rule.layout, static_cast<int>(part), r);
          for (int64_t i = 0; i < inputs; ++i) {
            float& w = t.data[static_cast<size_t>(transposed ? i * t.shape[1] + row : row * inputs + i)];
            if (m.lora_a && !vector) {
              double sum = 0;
              for (int64_t k = 0; k < m.lora_a->rows; ++k)
                sum += double(m.lora_b->f32()[r * m.lora_b->cols + k]) * double(m.lora_a->f32()[k * inputs + i]);
              w = static_cast<float>(double(w) + double(m.scale) * sum);
            }
            if (m.ia3) w *= m.ia3->f32()[m.ia3_input ? i : r];
          }
        }
      }
      if (changed) fn(t);
    }
  }
  if (head_)
    fn({head_name_ + ".weight", {head_->rows, head_->cols}, std::vector<float>(head_->f32(), head_->f32() + head_->numel())});
}

}  // namespace thimble
