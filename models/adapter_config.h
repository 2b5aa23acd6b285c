// What an adapter_config.json of PEFT says, and the rules by which its names select modules of a base model.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace thimble {

class Regex;

enum class AdapterKind : uint8_t { lora, ia3, prompt, prefix };
const char* adapter_kind_name(AdapterKind kind);

enum class AdapterBias : uint8_t { none, all, lora_only };
const char* adapter_bias_name(AdapterBias bias);

// A choice of modules: a list of names, each the whole path or a suffix of it behind a dot; or a regular expression over
// the whole path.
class ModuleNames {
 public:
  ModuleNames() = default;
  explicit ModuleNames(std::vector<std::string> names) : names_(std::move(names)), given_(true) {}
  // where names file and field in errors. Throws input when the pattern is no regular expression.
  ModuleNames(const std::string& pattern, const std::string& where);

  bool given() const { return given_; }
  bool is_pattern() const { return regex_ != nullptr; }
  bool matches(const std::string& module) const;
  // IA3's rule for feedforward_modules: the end of the path, wherever it begins.
  bool matches_end(const std::string& module) const;
  bool is_whole_path(const std::string& module) const;
  const std::vector<std::string>& names() const { return names_; }
  const std::string& pattern() const { return pattern_; }

 private:
  std::vector<std::string> names_;
  std::string pattern_;
  std::shared_ptr<const Regex> regex_;
  bool given_ = false;
};

// {pattern: value} in the order of the file. A pattern is a regular expression at the end of a path.
class PatternValues {
 public:
  // shared: read as PEFT before 0.14 did. A pattern then needs something before it, and where it has alternatives the
  // first stands anywhere behind a dot and the last is the whole path.
  void add(const std::string& pattern, double value, const std::string& where, bool shared = false);
  const std::vector<std::pair<std::string, double>>& values() const { return values_; }
  // The first pattern that matches, or null.
  const std::string* first_match(const std::string& module) const;
  // The value under exactly this pattern, else fallback.
  double at(const std::string& pattern, double fallback) const;

 private:
  std::vector<std::pair<std::string, double>> values_;
  std::vector<std::shared_ptr<const Regex>> regexes_;
};

struct AdapterConfig {
  AdapterKind kind = AdapterKind::lora;
  int64_t rank = 8;
  double alpha = 8, dropout = 0;
  bool rslora = false, dora = false;
  AdapterBias bias = AdapterBias::none;
  ModuleNames targets, exclude, feedforward;
  bool all_linear = false;
  std::vector<int64_t> layers;  // layers_to_transform
  bool layers_given = false, layers_single = false;
  std::vector<std::string> layers_pattern;
  PatternValues ranks, alphas;
  std::vector<std::string> modules_to_save;
  int64_t n_virtual = 0;
  std::string peft_version;
  bool shared_patterns = false;  // rank_pattern and alpha_pattern are read as PEFT before 0.14 did: see scaling()
  nlohmann::ordered_json source;       // the fields of the file; null for a fresh adapter
  std::vector<std::string> warnings;

  // Whether PEFT would adapt the module of this path.
  bool selects(const std::string& module) const;
  // Rank and alpha of a module. PEFT before 0.14 looks for one pattern in both tables, newer ones in each; where that
  // makes a difference, the fields of the file tell its age and a warning says so.
  std::pair<int64_t, double> scaling(const std::string& module);
  // Whether modules_to_save replaces the tensor of this name: it lies in a module whose path ends so.
  bool saves(const std::string& tensor) const;

 private:
  std::vector<std::shared_ptr<const Regex>> layer_regexes_;
  friend AdapterConfig read_adapter_config(const std::string& path);
  bool in_layers(const std::string& module) const;
};

// Reads an adapter_config.json. Fields that are not known are a warning. Throws input naming file and field, and
// unsupported for kinds and fields that change the result in a way that is not offered.
AdapterConfig read_adapter_config(const std::string& path);

// The fields that PEFT 0.12 writes for this kind. base: what the file calls the base model.
struct PromptWidths {
  int64_t token_dim = 0, heads = 0, layers = 0;  // prompt, prefix
};
nlohmann::ordered_json adapter_config_json(const AdapterConfig& config, const std::string& base, bool fan_in_fan_out,
                                           const PromptWidths& widths);

}  // namespace thimble
