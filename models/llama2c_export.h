// A model as a llama2.c checkpoint, version 0. Errors: unsupported, naming the field, for what that program does not
// know.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "models/model_source.h"

namespace thimble {

void check_llama2c(const ModelSource& source);
uint64_t llama2c_bytes(const ModelSource& source);
void write_llama2c(const ModelSource& source, const std::string& path, const std::function<void(uint64_t)>& progress);

}  // namespace thimble
