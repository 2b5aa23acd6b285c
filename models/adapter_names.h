// Names of modules as PEFT sees them. Only the adapter's own files include this.
#pragma once

#include <memory>
#include <string>

#include "models/families.h"
#include "models/weights.h"

namespace thimble {

class Regex;

// The linears of a layer, those of experts and their router included, which LoRA and IA3 can adapt.
bool is_linear(Role role);

// The module path of a rule's tensor: its name without ".weight"; "" when it has another ending.
std::string module_path(const TensorRule& rule, int64_t layer);

// A key of an adapter file in one spelling: without adapter name, base_layer and modules_to_save, which versions of PEFT
// write or leave out.
std::string plain_adapter_key(const std::string& key);

// A regular expression that is searched for anywhere in a path. Throws input when it is none.
class SearchPattern {
 public:
  SearchPattern(const std::string& pattern, const std::string& where);
  bool found_in(const std::string& text) const;

 private:
  std::shared_ptr<const Regex> regex_;
};

}  // namespace thimble
