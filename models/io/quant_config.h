// What a model directory says about its quantization: where it stands, which method it names, and patterns of module
// names.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/io/json.h"

namespace thimble {

// The object that describes the quantization: quantize_config.json, else quant_config.json, else quantization_config
// (or compression_config, its older name) of config.json.
struct QuantStatement {
  std::string file;
  std::string where;    // path of the object inside the file, "" for the root
  std::string method;   // in lower case: gptq, awq, compressed-tensors, bitsandbytes, or whatever the file names
  nlohmann::json json;  // the object itself

  JsonObject object() const { return JsonObject(json, file, where); }
  // The keys of the object under `key` in the order of the file, where the first that fits counts; empty when absent.
  std::vector<std::string> ordered_keys(const std::string& key) const;
};

// Empty when the model is not quantized. A statement without a method is AWQ when it has a version, bitsandbytes when
// it has a load_in flag, compressed-tensors when it has config_groups, and GPTQ otherwise.
std::optional<QuantStatement> read_quant_statement(const std::string& dir);

// A pattern of module names: Python's re.match, so from the first character but not up to the last.
class NamePattern {
 public:
  // where names file and field in errors. Throws unsupported for a pattern that does not compile.
  NamePattern(const std::string& pattern, const std::string& where);
  // Throws input when matching takes too long.
  bool matches(const std::string& name) const;
  const std::string& text() const { return text_; }

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string text_, where_;
};

// In lower case, for names that formats compare without regard to case.
std::string lower_case(std::string text);

}  // namespace thimble
