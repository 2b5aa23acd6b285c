// Shapes of models that people know, by name: what a bench or a profile needs of a model that is not here. Each is the
// part of its public config.json that decides shapes and arithmetic, read by the family's own parser.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/families.h"

namespace thimble {

struct ModelShape {
  const char* name;    // lower case: "tinyllama-1.1b"
  const char* config;  // JSON as in config.json
};
const std::vector<ModelShape>& model_shapes();
bool is_model_shape(const std::string& name);

// The flags of a shape and the family that reads them. Throws usage for an unknown name, with the nearest one and the
// list.
struct ShapeConfig {
  ModelConfig config;
  const Family* family = nullptr;
};
ShapeConfig shape_config(const std::string& name);

}  // namespace thimble
