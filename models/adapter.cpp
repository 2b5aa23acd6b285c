#include "models/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "kernels/kernel_table.h"
#include "models/adapter_names.h"
#include "models/adapter_files.h"
#include "models/adapter_gguf.h"
#include "models/io/gguf.h"
#include "models/io/safetensors.h"
#include "models/io/tensor_source.h"
#include "models/loader.h"
#include "models/unpack.h"
#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/ops.h"
#include "tensor/rng.h"
#include "tensor/tape.h"

namespace thimble {
namespace {

constexpr const char* kRoot = "base_model.model.";

float* values_of(Weight& w) { return static_cast<float*>(const_cast<void*>(w.data)); }

// The shortest suffix of the module's path that names no linear of layer 0 with another role (GPT-2 has two c_proj).
std::string own_suffix(const Model& model, const TensorRule& rule) {
  const std::string module = module_path(rule, 0);
  for (size_t dot = module.rfind('.'); dot != std::string::npos && dot > 0; dot = module.rfind('.', dot - 1)) {
    const ModuleNames suffix({module.substr(dot + 1)});
    bool shared = false;
    for (const TensorRule& other : model.family->tensors)
      shared = shared || (is_linear(other.roles[0]) && other.roles[0] != rule.roles[0] && suffix.matches(module_path(other, 0)));
    if (!shared) return module.substr(dot + 1);
  }
  return module;
}

// Four chains, so that it runs as fast as memory is read. A change of one word always changes it.
uint64_t hash_of(const Weight& w, uint64_t seed) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15ull;
  uint64_t h[4] = {seed, seed + 1, seed + 2, seed + 3};
  const auto* bytes = static_cast<const std::byte*>(w.data);
  const auto words = static_cast<size_t>(w.numel()) / 2;
  size_t i = 0;
  const auto word = [&](size_t at) {
    uint64_t x;
    std::memcpy(&x, bytes + 8 * at, 8);
    return x;
  };
  for (; i + 4 <= words; i += 4)
    for (size_t lane = 0; lane < 4; ++lane) h[lane] = (h[lane] ^ word(i + lane)) * kOdd;
  for (; i < words; ++i) h[0] = (h[0] ^ word(i)) * kOdd;
  if (w.numel() % 2 == 1) {
    uint32_t last;
    std::memcpy(&last, bytes + 8 * words, 4);
    h[1] = (h[1] ^ last) * kOdd;
  }
  for (int lane = 1; lane < 4; ++lane) h[0] = (h[0] ^ (h[0] >> 29) ^ h[lane]) * kOdd;
  return h[0];
}

// PEFT's defaults for a family, as the roles that a module must hold.
std::vector<Role> default_roles(const std::string& family, bool ia3) {
  if (!ia3) {
    if (family == "phi") return {Role::q_w, Role::v_w, Role::up_w, Role::down_w};
    return {Role::q_w, Role::v_w};
  }
  if (family == "opt") return {Role::q_w, Role::k_w, Role::down_w};
  for (const char* f : {"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi", "gptj"})
    if (family == f) return {Role::q_w, Role::v_w, Role::down_w};
  return {Role::k_w, Role::v_w, Role::down_w, Role::expert_down_w};
}

}  // namespace

Weight* Adapter::make(int64_t rows, int64_t cols) {
  Weight w;
  w.rows = rows;
  w.cols = cols;
  w.data = store_.allocate(size_t(rows * cols) * sizeof(float));
  weights_.push_back(w);
  return &weights_.back();
}

std::string Adapter::field(const std::string& name) const {
  if (!path_.empty()) return fmt::format("{}: field \"{}\"", path_, name);
  return name == "target_modules" ? "--targets" : "--modules-to-save";
}

// ---- what the adapter consists of ----

void Adapter::add_lora(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, const std::string& module) {
  const std::string key = kRoot + module;
  const auto [rank, alpha] = config_.scaling(module);
  const int64_t in = role_shape(model_, rule.roles[0]).cols;
  const auto scale = static_cast<float>(alpha / (config_.rslora ? std::sqrt(double(rank)) : double(rank)));
  Entry a{key + ".lora_A.weight", {rank, in}, Part::lora_a, &rule, layer};
  a.parts = {make(rank, in)};
  Entry b{key + ".lora_B.weight", {0, rank}, Part::lora_b, &rule, layer, true};
  Entry m{key + ".lora_magnitude_vector", {0}, Part::magnitude, &rule, layer, true, true};
  for (Role role : rule.roles) {
    AdapterModule& part = module_at(layer, role);
    const int64_t rows = role_shape(model_, role).rows;
    part.lora_a = a.parts[0];
    part.lora_b = make(rows, rank);
    part.scale = scale;
    b.parts.push_back(part.lora_b);
    b.shape[0] += rows;
    if (!config_.dora) continue;
    part.magnitude = make(1, rows);
    m.parts.push_back(part.magnitude);
    m.shape[0] += rows;
    part.dora = &dora_.emplace_back();
    part.dora->squares.resize(size_t(rows));
    row_squares(kernels, 1, model.weights.at(role, layer), part.dora->squares.data());
  }
  fan_in_fan_out_ = fan_in_fan_out_ || layout_is_transposed(rule.layout);
  entries_.push_back(std::move(a));
  entries_.push_back(std::move(b));
  if (config_.dora) entries_.push_back(std::move(m));
}

// The file has A as [rank, vocab]; rows by token are what the embedding op reads.
void Adapter::add_embedding(const TensorRule& rule, const std::string& module) {
  const std::string key = kRoot + module;
  const auto [rank, alpha] = config_.scaling(module);
  embedding_.scale = static_cast<float>(alpha / (config_.rslora ? std::sqrt(double(rank)) : double(rank)));
  embedding_.lora_a = make(model_.vocab_size, rank);
  embedding_.lora_b = make(model_.embed_dim, rank);
  Entry a{key + ".lora_embedding_A", {rank, model_.vocab_size}, Part::lora_a, &rule, 0};
  a.transposed = true;
  a.parts = {embedding_.lora_a};
  Entry b{key + ".lora_embedding_B", {model_.embed_dim, rank}, Part::lora_b, &rule, 0};
  b.parts = {embedding_.lora_b};
  entries_.push_back(std::move(a));
  entries_.push_back(std::move(b));
}

// The loss reads the output matrix in one fused op, so this LoRA is folded into a copy of it.
void Adapter::add_head(const Model& model, const KernelTable& kernels, const TensorRule& rule, const std::string& module) {
  const std::string key = kRoot + module;
  const auto [rank, alpha] = config_.scaling(module);
  head_.scale = static_cast<float>(alpha / (config_.rslora ? std::sqrt(double(rank)) : double(rank)));
  head_.lora_a = make(rank, model_.embed_dim);
  head_.lora_b = make(model_.vocab_size, rank);
  Entry a{key + ".lora_A.weight", {rank, model_.embed_dim}, Part::lora_a, &rule, 0};
  a.parts = {head_.lora_a};
  Entry b{key + ".lora_B.weight", {model_.vocab_size, rank}, Part::lora_b, &rule, 0};
  b.parts = {head_.lora_b};
  a.frozen = b.frozen = true;
  entries_.push_back(std::move(a));
  entries_.push_back(std::move(b));
  if (config_.dora) {
    head_.magnitude = make(1, model_.vocab_size);
    Entry m{key + ".lora_magnitude_vector", {model_.vocab_size}, Part::magnitude, &rule, 0};
    m.vector = m.frozen = true;
    m.parts = {head_.magnitude};
    entries_.push_back(std::move(m));
  }
  if (!own_) {
    own_ = std::make_unique<ModelWeights>();
    own_->resize(model_);
  }
  Weight& w = own_->lm_head;
  w.rows = model_.vocab_size;
  w.cols = model_.embed_dim;
  w.data = store_.allocate(size_t(w.numel()) * sizeof(float));
  dequantize(kernels, model.weights.lm_head ? model.weights.lm_head : model.weights.token_embed, values_of(w));
  replaced_.insert({Role::lm_head, 0});
}

void Adapter::fold_head() {
  if (!head_.lora_a) return;
  // A matrix that was stored beside its LoRA is not what the weight now holds.
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                [](const Entry& e) { return e.part == Part::whole && e.rule->roles[0] == Role::lm_head; }),
                 entries_.end());
  Weight& w = own_->lm_head;
  std::vector<double> row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    float* values = values_of(w) + r * w.cols;
    std::copy_n(values, w.cols, row.begin());
    head_.fold(r, w.cols, row.data());
    for (int64_t i = 0; i < w.cols; ++i) values[i] = static_cast<float>(row[static_cast<size_t>(i)]);
  }
}

void Adapter::add_ia3(const TensorRule& rule, int64_t layer, const std::string& module, bool input) {
  Entry e{kRoot + module + ".ia3_l", {}, Part::ia3, &rule, layer, !input, !input};
  int64_t rows = 0;
  for (Role role : rule.roles) {
    AdapterModule& m = module_at(layer, role);
    const RoleShape s = role_shape(model_, role);
    m.ia3_input = input;
    m.ia3 = input && !e.parts.empty() ? e.parts[0] : make(1, input ? s.cols : s.rows);
    if (!input || e.parts.empty()) e.parts.push_back(m.ia3);
    rows += s.rows;
  }
  e.shape = input ? std::vector<int64_t>{1, e.parts[0]->cols} : std::vector<int64_t>{rows, 1};
  fan_in_fan_out_ = fan_in_fan_out_ || layout_is_transposed(rule.layout);
  entries_.push_back(std::move(e));
}

void Adapter::add_prompt() {
  const int64_t cols = kind() == AdapterKind::prompt ? model_.embed_dim : 2 * model_.n_layers * model_.kv_cols();
  prompt_ = make(config_.n_virtual, cols);
  Entry e{"prompt_embeddings", {config_.n_virtual, cols}, Part::prompt};
  e.parts = {prompt_};
  entries_.push_back(std::move(e));
}

void Adapter::add_whole(const TensorRule& rule, int64_t layer, const std::string& key, bool optional, bool frozen) {
  if (!own_) {
    own_ = std::make_unique<ModelWeights>();
    own_->resize(model_);
  }
  Entry e{key, {}, Part::whole, &rule, layer, true};
  e.optional = optional;
  e.frozen = frozen;
  e.transposed = layout_is_transposed(rule.layout);
  if (rule.layout == Layout::blocks)
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", field("modules_to_save"), quote_for_message(rule_name(rule, layer))),
                "merge the adapter with PEFT and load the merged model");
  for (Role role : rule.roles) {
    RoleShape s = role_shape(model_, role);
    if (role == Role::lm_head && own_->lm_head) {  // the matrix that LoRA is folded into
      e.parts.push_back(&own_->lm_head);
      continue;
    }
    if (role == Role::lm_head) s = {model_.vocab_size, model_.embed_dim, false};  // also of a tied model
    Weight& w = own_->at(role, layer);
    w.rows = s.rows;
    w.cols = s.cols;
    w.data = store_.allocate(size_t(s.rows * s.cols) * sizeof(float));
    replaced_.insert({role, role_is_layer(role) ? layer : 0});
    e.vector = s.vector;
    e.parts.push_back(&w);
  }
  e.shape = file_shape(model_, rule);
  if (rule.roles[0] == Role::lm_head) e.shape = {model_.vocab_size, model_.embed_dim};
  entries_.push_back(std::move(e));
}

// PEFT trains every bias of the base (all), or those of the modules that it adapts (lora_only).
void Adapter::add_biases(const Model& model) {
  for (const TensorRule& rule : model.family->tensors) {
    if (rule_blocks(model_, rule) == 0) continue;
    const int64_t copies = role_is_layer(rule.roles[0]) ? model_.n_layers : 1;  // biases of experts there are none
    for (int64_t layer = 0; layer < copies; ++layer) {
      const std::string name = rule_name(rule, layer);
      const std::string end = ".bias";
      if (name.size() <= end.size() || name.compare(name.size() - end.size(), end.size(), end) != 0) continue;
      if (replaced_.count({rule.roles[0], layer})) continue;
      const std::string module = name.substr(0, name.size() - end.size());
      const bool targeted = config_.selects(module) && std::any_of(entries_.begin(), entries_.end(), [&](const Entry& e) {
                              return e.part == Part::lora_a && e.key == kRoot + module + ".lora_A.weight";
                            });
      if (!targeted && config_.bias == AdapterBias::lora_only) continue;
      // Older versions do not store the biases of lora_only.
      add_whole(rule, layer, kRoot + module + (targeted ? ".base_layer.bias" : ".bias"), config_.bias == AdapterBias::lora_only, false);
    }
  }
}

void Adapter::build_module(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, const std::string& module) {
  const Role role = rule.roles[0];
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", field("target_modules"), what),
                "leave it out of target_modules, or merge the adapter with PEFT and load the merged model");
  };
  if (is_linear(role)) {
    if (kind() == AdapterKind::lora) return add_lora(model, kernels, rule, layer, module);
    return add_ia3(rule, layer, module, config_.feedforward.matches_end(module));
  }
  if (config_.all_linear && (role == Role::token_embed || role == Role::lm_head || role == Role::pos_embed)) return;
  if (role == Role::lm_head && kind() == AdapterKind::lora && !path_.empty()) return add_head(model, kernels, rule, module);
  if (role != Role::token_embed) refuse(fmt::format("an adapter of module {}", quote_for_message(module)));
  if (kind() != AdapterKind::lora || config_.dora) refuse(fmt::format("{} of the embedding {}", config_.dora ? "DoRA" : "IA3", quote_for_message(module)));
  add_embedding(rule, module);
}

void Adapter::build(const Model& model, const KernelTable& kernels) {
  if (kind() == AdapterKind::prompt || kind() == AdapterKind::prefix) return add_prompt();
  std::string linears;
  for (int64_t layer = 0; layer < model_.n_layers; ++layer)
    for (const TensorRule& rule : model.family->tensors) {
      if (!role_is_layer(rule.roles[0]) && layer > 0) continue;
      const RoleShape s = role_shape(model_, rule.roles[0]);
      if ((rule_blocks(model_, rule) == 0 && rule.roles[0] != Role::lm_head) || s.vector) continue;
      for (int64_t expert = 0; expert < (role_is_expert(rule.roles[0]) ? model_.n_experts : 1); ++expert) {
        const int64_t place = expert_place(layer, expert);
        const std::string module = module_path(rule, place);
        if (module.empty()) continue;
        if (place == 0 && is_linear(rule.roles[0])) linears += (linears.empty() ? "" : ", ") + module;
        if (config_.selects(module)) build_module(model, kernels, rule, place, module);
      }
    }
  if (entries_.empty())
    throw Error(ErrorCode::input, field("target_modules") + ": matches no linear layer of the base model",
                "the adapter belongs to another model; modules of layer 0: " + linears);
  std::set<std::string> found;
  if (!config_.modules_to_save.empty())
    for (const TensorRule& rule : model.family->tensors) {
      for_each_place(model_, rule.roles[0], [&](int64_t layer) {
        const std::string name = rule_name(rule, layer);
        if (!config_.saves(name) || (rule_blocks(model_, rule) == 0 && rule.roles[0] != Role::lm_head)) return;
        for (const Entry& e : entries_)
          if (e.rule == &rule && e.layer == layer)
            throw Error(ErrorCode::input, fmt::format("{}: {} is adapted as well", field("modules_to_save"), quote_for_message(name)), "");
        add_whole(rule, layer, kRoot + name, false, false);
        for (const std::string& n : config_.modules_to_save) {
          AdapterConfig one;
          one.modules_to_save = {n};
          if (one.saves(name)) found.insert(n);
        }
      });
    }
  for (const std::string& n : config_.modules_to_save)
    if (!found.count(n))
      throw Error(ErrorCode::input, fmt::format("{}: the base model has no module {}", field("modules_to_save"), quote_for_message(n)),
                  "the adapter belongs to another model");
  if (config_.bias != AdapterBias::none) add_biases(model);
}

// ---- fresh adapters ----

// Modules by name: where PEFT's suffixes can say it the last parts of their paths, else the paths.
void Adapter::choose_targets(const Model& model, const std::string& targets) {
  const bool ia3 = kind() == AdapterKind::ia3, all = targets == "all-linear";
  const std::vector<Role> defaults = default_roles(model_.family, ia3);
  const SearchPattern pattern(targets.empty() || all ? "" : targets, "--targets");
  std::string modules;
  std::vector<std::string> paths, names, ends;
  std::set<std::string> last_parts;
  for (const TensorRule& rule : model.family->tensors) {
    if (!is_linear(rule.roles[0]) || rule_blocks(model_, rule) == 0) continue;
    for_each_place(model_, rule.roles[0], [&](int64_t place) {
      const std::string module = module_path(rule, place);
      if (place == 0) modules += (modules.empty() ? "" : ", ") + module;
      const bool hit = all || (targets.empty() ? std::any_of(rule.roles.begin(), rule.roles.end(),
                                                             [&](Role r) { return std::find(defaults.begin(), defaults.end(), r) != defaults.end(); })
                                               : pattern.found_in(module));
      if (!hit) return;
      paths.push_back(module);
      last_parts.insert(module.substr(module.rfind('.') + 1));
      if (ia3 && (rule.roles[0] == Role::down_w || rule.roles[0] == Role::expert_down_w)) {
        const std::string own = own_suffix(model, rule);
        if (std::find(ends.begin(), ends.end(), own) == ends.end()) ends.push_back(own);
      }
    });
  }
  if (paths.empty())
    throw Error(ErrorCode::usage, fmt::format("--targets: \"{}\" matches no linear layer of this model", targets),
                "modules of layer 0: " + modules);
  const ModuleNames suffixes(std::vector<std::string>(last_parts.begin(), last_parts.end()));
  size_t expressed = 0;
  for (const TensorRule& rule : model.family->tensors)
    if (is_linear(rule.roles[0]) && rule_blocks(model_, rule) > 0)
      for_each_place(model_, rule.roles[0], [&](int64_t place) { expressed += suffixes.matches(module_path(rule, place)); });
  config_.targets = expressed == paths.size() ? suffixes : ModuleNames(paths);
  if (ia3 && !config_.feedforward.given()) config_.feedforward = ModuleNames(ends);
}

Adapter::Adapter(const Model& model, const KernelTable& kernels, const AdapterOptions& o, MemoryBudget* budget)
    : model_(model.config), modules_(static_cast<size_t>(model.config.n_layers * std::max<int64_t>(1, model.config.n_experts))), store_(budget) {
  config_.kind = o.kind;
  config_.rank = o.rank;
  config_.alpha = o.alpha;
  config_.dropout = o.dropout;
  config_.rslora = o.rslora;
  config_.dora = o.dora && o.kind == AdapterKind::lora;
  config_.bias = o.bias;
  config_.modules_to_save = o.modules_to_save;
  if (o.kind == AdapterKind::prompt || o.kind == AdapterKind::prefix) {
    if (o.n_virtual < 1) throw Error(ErrorCode::usage, fmt::format("--virtual-tokens {}: expected at least 1", o.n_virtual), "");
    config_.n_virtual = o.n_virtual;
  } else {
    if (o.kind == AdapterKind::lora && (o.rank < 1 || o.rank > 1 << 16)) throw Error(ErrorCode::usage, fmt::format("--rank {}: expected 1 to 65536", o.rank), "");
    if (!(o.dropout >= 0 && o.dropout < 1)) throw Error(ErrorCode::usage, fmt::format("--dropout {}: expected 0 or more, below 1", o.dropout), "");
    choose_targets(model, o.targets);
  }
  build(model, kernels);
  initialise(model, kernels, o.seed);
}

void Adapter::initialise(const Model& model, const KernelTable& kernels, uint64_t seed) {
  Philox rng(seed, 0x61646170746572);
  for (const Entry& e : entries_)
    for (size_t p = 0; p < e.parts.size(); ++p) {
      Weight* w = e.parts[p];
      float* data = values_of(*w);
      switch (e.part) {
        case Part::ia3: std::fill_n(data, w->numel(), 1.0f); break;
        case Part::lora_a: {
          const double bound = 1.0 / std::sqrt(double(w->cols));
          for (int64_t i = 0; i < w->numel(); ++i) data[i] = static_cast<float>((2 * rng.uniform() - 1) * bound);
          break;
        }
        case Part::lora_b: break;
        case Part::magnitude: {  // B is zero: the norms of the base's rows
          const DoraNorms& dora = *module(e.layer, e.rule->roles[p]).dora;
          for (size_t r = 0; r < dora.squares.size(); ++r) data[r] = static_cast<float>(std::sqrt(dora.squares[r]));
          break;
        }
        case Part::prompt: {
          if (kind() == AdapterKind::prefix) {
            for (int64_t i = 0; i < w->numel(); ++i) data[i] = static_cast<float>(0.02 * rng.normal());
            break;
          }
          std::vector<int32_t> tokens;
          for (int64_t r = 0; r < w->rows; ++r) tokens.push_back(static_cast<int32_t>(rng.below(uint64_t(model_.vocab_size))));
          gather_rows(kernels, model.weights.token_embed, tokens.data(), w->rows, data);
          for (int64_t i = 0; i < w->numel() && !model_.scale_prompts; ++i) data[i] *= static_cast<float>(model_.embed_scale);
          break;
        }
        case Part::whole: {
          const Weight& base = model.weights.at(e.rule->roles[p], e.layer);
          dequantize(kernels, base ? base : model.weights.token_embed, data);
          break;
        }
      }
    }
}

// ---- files ----

Adapter::Adapter(const Model& model, const KernelTable& kernels, const std::string& path, MemoryBudget* budget)
    : model_(model.config), modules_(static_cast<size_t>(model.config.n_layers * std::max<int64_t>(1, model.config.n_experts))), store_(budget) {
  if (!is_directory(path) && file_exists(path) && GgufFile::present(path)) {
    path_ = path;
    GgufAdapter gguf = read_gguf_adapter(model, path);
    config_ = std::move(gguf.config);
    build(model, kernels);
    load(model, *gguf.tensors);
    fold_head();
    return;
  }
  path_ = join_path(path, "adapter_config.json");
  if (!file_exists(path_)) throw Error(ErrorCode::input, path + ": has no adapter_config.json", "give a PEFT adapter directory, or a LoRA adapter in GGUF");
  config_ = read_adapter_config(path_);
  const bool no_targets = (kind() == AdapterKind::lora || kind() == AdapterKind::ia3) && !config_.all_linear && !config_.targets.given();
  if (no_targets || (kind() == AdapterKind::ia3 && !config_.feedforward.given())) {
    ModuleNames given = config_.targets;
    choose_targets(model, "");
    if (!no_targets) config_.targets = std::move(given);
  }
  build(model, kernels);
  load(model, *open_adapter_tensors(path));
  fold_head();
}

void Adapter::copy(const Entry& e, size_t part, float* file, float* weight, bool to_file) const {
  const Weight& w = *e.parts[part];
  const int64_t features = e.vector ? w.cols : w.rows, width = e.vector ? 1 : w.cols;
  const int64_t file_features = e.transposed && e.shape.size() == 2 ? e.shape[1] : 0;
  for (int64_t r = 0; r < features; ++r) {
    int64_t row = r;
    if (e.fused && e.rule) {
      const Role role = e.rule->roles[part];
      // A base with neighbouring rotary pairs holds the rows of q and k in another order than PEFT's.
      if (role == Role::q_w || role == Role::k_w || role == Role::q_b || role == Role::k_b) row = rotary_file_row(model_, r);
      row = source_row(model_, e.rule->layout, static_cast<int>(part), row);
    }
    float* mine = weight + r * width;
    if (file_features == 0) {
      float* theirs = file + row * width;
      if (to_file) std::memcpy(theirs, mine, size_t(width) * sizeof(float));
      else std::memcpy(mine, theirs, size_t(width) * sizeof(float));
      continue;
    }
    for (int64_t i = 0; i < width; ++i) {
      float& theirs = file[i * file_features + row];
      if (to_file) theirs = mine[i];
      else mine[i] = theirs;
    }
  }
}

// PEFT stores the embeddings beside an adapter that targets them, or after the vocabulary was resized.
bool Adapter::add_saved_embedding(const Model& model, const std::string& name, const std::string& key) {
  for (const TensorRule& rule : model.family->tensors) {
    if ((rule.roles[0] != Role::token_embed && rule.roles[0] != Role::lm_head) || rule_name(rule, 0) != name) continue;
    if (replaced_.count({rule.roles[0], 0}) && !(rule.roles[0] == Role::lm_head && head_.lora_a)) return false;
    add_whole(rule, 0, key, false, true);
    return true;
  }
  return false;
}

void Adapter::load(const Model& model, const TensorSource& file) {
  // Keys as PEFT has written them over the years, reduced to one spelling.
  std::map<std::string, std::string> keys;
  std::set<std::string> used;
  const auto of_wrapper = [](const std::string& name) { return name.find(".modules_to_save.") != std::string::npos; };
  for (const std::string& name : file.names()) {
    // Beside a stored module, versions that store the embeddings as well write what it replaced, and the module again.
    if (name.find(".original_module.") != std::string::npos) {
      used.insert(name);
      continue;
    }
    const auto [at, fresh] = keys.emplace(plain_adapter_key(name), name);
    if (fresh) continue;
    if (of_wrapper(name) != of_wrapper(at->second)) {
      used.insert(of_wrapper(name) ? name : at->second);
      if (!of_wrapper(name)) at->second = name;
    } else
      throw Error(ErrorCode::input, fmt::format("{}: tensors {} and {} mean the same", file.path(), quote_for_message(at->second), quote_for_message(name)),
                  "the file is damaged, or holds two adapters");
  }
  const std::string prefix = model.family->optional_prefix;
  const auto find = [&](const Entry& e) {
    const std::string key = plain_adapter_key(e.key);
    auto at = keys.find(key);
    // Adapters of the bare model lack the family's prefix.
    if (at == keys.end() && !prefix.empty() && key.compare(0, std::strlen(kRoot) + prefix.size(), kRoot + prefix) == 0)
      at = keys.find(kRoot + key.substr(std::strlen(kRoot) + prefix.size()));
    return at;
  };
  std::set<std::string> expected;
  for (const Entry& e : entries_) {
    const auto at = find(e);
    if (at != keys.end()) expected.insert(at->second);
  }
  if (kind() == AdapterKind::lora)
    for (const auto& [plain, name] : keys)
      if (!expected.count(name) && plain.rfind(kRoot, 0) == 0) add_saved_embedding(model, plain.substr(std::strlen(kRoot)), name);

  std::string missing;
  std::vector<Entry> kept;
  for (Entry& e : entries_) {
    const auto at = find(e);
    if (at == keys.end()) {
      if (e.optional) {
        for (Role role : e.rule->roles) replaced_.erase({role, role_is_layer(role) ? e.layer : 0});
        continue;
      }
      missing += (missing.empty() ? "" : ", ") + e.key;
      continue;
    }
    const TensorView view = file.view(at->second);
    const std::vector<int64_t>& shape = view.info->shape;
    int64_t elements = 1;
    for (int64_t d : e.shape) elements *= d;
    // Vectors come as [n], [n, 1] or [1, n].
    const bool same_vector = e.vector && view.info->elements() == elements && shape.size() <= 2;
    if (shape != e.shape && !same_vector) {
      std::string implied;
      for (int64_t d : e.shape) implied += (implied.empty() ? "" : ", ") + std::to_string(d);
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} is {}: the base model implies [{}]", file.path(), at->second, describe_tensor(*view.info), implied),
                  kind() == AdapterKind::prefix ? "the width of a prefix is 2 * layers * key/value heads * head size of the base model"
                                                : "the adapter belongs to another model");
    }
    used.insert(at->second);
    std::vector<float> values(static_cast<size_t>(elements));
    view.read_f32(values.data());
    for (size_t part = 0; part < e.parts.size(); ++part) copy(e, part, values.data(), values_of(*e.parts[part]), false);
    kept.push_back(std::move(e));
  }
  entries_ = std::move(kept);
  if (replaced_.empty()) own_.reset();
  std::string unknown;
  for (const std::string& name : file.names())
    if (!used.count(name)) unknown += (unknown.empty() ? "" : ", ") + quote_for_message(name);
  if (!missing.empty() || !unknown.empty())
    throw Error(ErrorCode::input,
                fmt::format("{}: {}{}{}", file.path(), missing.empty() ? "" : "missing keys: " + missing, !missing.empty() && !unknown.empty() ? "; " : "",
                            unknown.empty() ? "" : "keys that match no module: " + unknown),
                "the adapter belongs to another model or uses a feature that is not supported");
}

void Adapter::export_tensors(ExportWhat what, const std::function<void(const ExportedTensor&)>& fn) const {
  for (const Entry& e : entries_) {
    ExportedTensor t{e.key, e.shape, {}};
    int64_t numel = 1;
    for (int64_t d : e.shape) numel *= d;
    bool present = what == ExportWhat::weights || !e.frozen;
    for (const Weight* w : e.parts) present = present && (what == ExportWhat::weights || (w->grad && w->grad_written));
    if (!present) continue;
    t.data.assign(static_cast<size_t>(numel), 0.0f);
    for (size_t part = 0; part < e.parts.size(); ++part) {
      Weight& w = *e.parts[part];
      copy(e, part, t.data.data(), what == ExportWhat::weights ? values_of(w) : w.grad, true);
    }
    fn(t);
  }
}

void Adapter::save(const std::string& dir, const std::string& base) const {
  make_directories(dir);
  std::vector<ExportedTensor> tensors;
  export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  std::vector<NamedTensor> named;
  for (const ExportedTensor& t : tensors) named.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(join_path(dir, "adapter_model.safetensors"), named, {{"format", "pt"}});
  PromptWidths widths;
  widths.layers = model_.n_layers;
  widths.token_dim = kind() == AdapterKind::prefix ? model_.kv_cols() : model_.embed_dim;
  widths.heads = kind() == AdapterKind::prefix ? model_.n_kv_heads : model_.n_heads;
  write_file(join_path(dir, "adapter_config.json"), adapter_config_json(config_, base, fan_in_fan_out_, widths).dump(2) + "\n");
}

// ---- use ----

void Adapter::for_each_parameter(const std::function<void(const std::string&, Weight&)>& fn) {
  for (Entry& e : entries_)
    for (size_t part = 0; part < e.parts.size() && !e.frozen; ++part)
      fn(e.parts.size() > 1 ? e.key + "#" + std::to_string(part) : e.key, *e.parts[part]);
}

void Adapter::enable_gradients() {
  if (head_.lora_a)
    throw Error(ErrorCode::unsupported, path_ + ": LoRA of the output matrix does not learn here", "leave it out of target_modules, or name it in modules_to_save");
  for_each_parameter([&](const std::string&, Weight& w) {
    w.grad = static_cast<float*>(store_.allocate(size_t(w.numel()) * sizeof(float)));
    w.grad_written = false;
  });
}

int64_t Adapter::parameters() const {
  int64_t n = 0;
  for (const Entry& e : entries_)
    for (const Weight* w : e.parts)
      if (!e.frozen) n += w->numel();
  return n;
}

const float* Adapter::norms(Context& ctx, const AdapterModule& m, const Weight& w) {
  DoraNorms& d = *m.dora;
  if (ctx.tape) {
    float* out = ctx.saved.floats(w.rows, "adapter norms");
    dora_norms(ctx, w, *m.lora_a, *m.lora_b, m.scale, d.squares.data(), out);
    return out;
  }
  const uint64_t seen = hash_of(*m.lora_b, hash_of(*m.lora_a, 1));
  if (d.known && seen == d.seen) return d.norms.data();
  d.norms.resize(size_t(w.rows));
  dora_norms(ctx, w, *m.lora_a, *m.lora_b, m.scale, d.squares.data(), d.norms.data());
  d.seen = seen;
  d.known = true;
  return d.norms.data();
}

void Adapter::forget_norms() {
  for (DoraNorms& d : dora_) d.known = false;
}

ModelWeights& Adapter::weights_over(const ModelWeights& base) {
  for (int r = 0; r < kRoleCount; ++r) {
    const auto role = static_cast<Role>(r);
    for_each_place(model_, role, [&](int64_t place) {
      if (replaced_.count({role, place})) return;
      Weight& w = own_->at(role, place);
      w = base.at(role, place);
      w.grad = nullptr;
    });
  }
  // A tied head stays the base's embedding when the embedding is replaced (PEFT copies the module).
  if (!own_->lm_head && replaced_.count({Role::token_embed, 0})) {
    own_->lm_head = base.token_embed;
    own_->lm_head.grad = nullptr;
  }
  return *own_;
}

}  // namespace thimble
