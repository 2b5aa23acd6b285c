// {"String": s} or {"Regex": s}, as Replace and Split carry it.
#pragma once

#include <string>

#include "models/tokenizer/component.h"
#include "models/tokenizer/regex.h"

namespace thimble {

Regex read_pattern(const ComponentSource& source);
std::string replace_all(const Regex& regex, const std::string& text, const std::string& content);

}  // namespace thimble
