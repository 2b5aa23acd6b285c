// Tokens to a tree, with the grammar and precedence of Jinja 3.
#pragma once

#include <string_view>

#include "models/jinja/ast.h"
#include "models/jinja/meter.h"

namespace thimble::jinja {

// Errors: input for syntax, with the line; unsupported for statements that chat templates do not use (include, extends,
// import, block ...).
Block parse_template(Meter& meter, std::string_view source);

}  // namespace thimble::jinja
