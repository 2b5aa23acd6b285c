// A bounded subset of Jinja 3, with the settings that Hugging Face renders chat templates with (README.md lists it).
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/jinja/ast.h"
#include "models/jinja/meter.h"

namespace thimble::jinja {

struct RenderOptions {
  std::optional<int64_t> now;  // what strftime_now shows, in seconds since 1970, as UTC; default: now, local time
};

struct Rendered {
  std::string text;
  std::vector<std::pair<size_t, size_t>> generated;  // byte ranges of text inside {% generation %} blocks
};

// Parsed once, rendered often. Both name `name` and the line in their errors: input for a broken template, an exception
// that the template raises, or a limit that it exceeds; unsupported for a part that is not offered.
class Template {
 public:
  Template(const std::string& source, std::string name, const Limits& limits = {});
  // context: an object; its members are the template's variables.
  Rendered render(const nlohmann::ordered_json& context, const RenderOptions& options = {}) const;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  Limits limits_;
  std::shared_ptr<const Block> block_;
};

}  // namespace thimble::jinja
