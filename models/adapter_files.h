// The tensor file of a PEFT adapter directory.
#pragma once

#include <memory>
#include <string>

#include "models/io/tensor_source.h"

namespace thimble {

// adapter_model.safetensors, or else adapter_model.bin. Throws input when the directory has neither.
std::unique_ptr<TensorSource> open_adapter_tensors(const std::string& dir);

}  // namespace thimble
