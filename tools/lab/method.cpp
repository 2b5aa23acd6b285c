#include "tools/lab/method.h"

#include <fmt/format.h>

#include "tensor/error.h"

namespace thimble::lab {

extern const Method kNone, kRag, kLora, kFull, kPrompt, kPrefix, kIa3, kRagLora;

const std::vector<const Method*>& all_methods() {
  static const std::vector<const Method*> list = {&kNone, &kRag, &kIa3, &kPrompt, &kPrefix, &kLora, &kRagLora, &kFull};
  return list;
}

const Method& find_method(std::string_view name) {
  std::string names;
  for (const Method* m : all_methods()) {
    if (name == m->name) return *m;
    names += (names.empty() ? "" : ", ") + std::string(m->name);
  }
  throw Error(ErrorCode::usage, fmt::format("method: there is no \"{}\"", name), "methods: " + names);
}

}  // namespace thimble::lab
