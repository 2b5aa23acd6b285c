#include "tensor/env.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace thimble {

const std::vector<EnvVariable>& env_registry() {
  static const std::vector<EnvVariable> variables = {
      {"ISA", "highest instruction-set tier to use: ref, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16"},
      {"KERNEL", "pins of single kernel slots, for example softmax:ref,gemm_f32:avx2"},
      {"THREADS", "number of threads"},
      {"ZOO", "folder of the base models that zoo:NAME means"},
  };
  return variables;
}

std::optional<std::string> env_get(const std::string& name) {
  const char* value = std::getenv(("THIMBLE_" + name).c_str());
  if (!value) return std::nullopt;
  return std::string(value);
}

std::vector<std::string> env_unknown(const std::vector<std::string>& option_names) {
  std::vector<std::string> valid = option_names, unknown;
  for (const EnvVariable& v : env_registry()) valid.push_back(v.name);
  for (char** entry = environ; entry && *entry; ++entry) {
    if (std::strncmp(*entry, "THIMBLE_", 8) != 0) continue;
    const std::string name(*entry + 8, std::strcspn(*entry + 8, "="));
    if (std::find(valid.begin(), valid.end(), name) == valid.end()) unknown.push_back("THIMBLE_" + name);
  }
  return unknown;
}

}  // namespace thimble
