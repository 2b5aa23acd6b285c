#include "models/jinja/meter.h"

#include <fmt/format.h>

#include "tensor/error.h"

namespace thimble::jinja {

void Meter::fail(const std::string& what, const std::string& hint) const {
  throw Error(ErrorCode::input, fmt::format("{}:{}: {}", file, line, what), hint);
}

void Meter::fail_unsupported(const std::string& what, const std::string& hint) const {
  throw Error(ErrorCode::unsupported, fmt::format("{}:{}: {}", file, line, what), hint);
}

void Meter::fail_limit(const char* of, int64_t limit) const {
  fail(fmt::format("the template takes more than {} {}", limit, of),
       "templates come with models and are held to limits; shorten the conversation, or give another template with "
       "--template");
}

}  // namespace thimble::jinja
