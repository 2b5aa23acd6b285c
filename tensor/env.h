// The one registry of THIMBLE_* variables, and the only place that calls getenv.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace thimble {

struct EnvVariable {
  const char* name;  // without the THIMBLE_ prefix
  const char* meaning;
};

// Variables that are not the mirror of a command-line option (those are added by tools/cli at start-up).
const std::vector<EnvVariable>& env_registry();

// The value of THIMBLE_<name>; empty optional when unset.
std::optional<std::string> env_get(const std::string& name);

// The THIMBLE_* variables of the environment that are neither registered nor the mirror of an option in
// `option_names`: a misspelt variable is never silently ignored, the command line warns about each.
std::vector<std::string> env_unknown(const std::vector<std::string>& option_names);

}  // namespace thimble
