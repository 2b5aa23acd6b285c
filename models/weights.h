// The weights of the one transformer, by role. for_each_weight is the only enumeration: load, save, count, quantize,
// optimize and compare all walk it.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"
#include "tensor/weight.h"

namespace thimble {

enum class Role : int {
#define MODEL_ROLE(field, kind) field,
#define LAYER_ROLE(field, kind) field,
#include "models/roles.def"
  count
};
constexpr int kRoleCount = static_cast<int>(Role::count);
const char* role_name(Role role);
bool role_is_layer(Role role);
// The role's number in random streams (initial values, dropout). It does not move when roles are added, so that a seed
// keeps its meaning.
uint64_t role_stream(Role role);

struct LayerWeights {
#define LAYER_ROLE(field, kind) Weight field;
#include "models/roles.def"
};

struct ModelWeights {
#define MODEL_ROLE(field, kind) Weight field;
#include "models/roles.def"
  std::vector<LayerWeights> layers;

  // layer is ignored for roles of the model.
  Weight& at(Role role, int64_t layer);
  const Weight& at(Role role, int64_t layer) const { return const_cast<ModelWeights*>(this)->at(role, layer); }
  // The matrix that makes logits: lm_head, or the token embedding when tied.
  Weight& head() { return lm_head ? lm_head : token_embed; }
};

struct RoleShape {
  int64_t rows = 0, cols = 0;  // rows 0: this model has no such weight; vectors have rows 1
  bool vector = false;
};
RoleShape role_shape(const ModelConfig& config, Role role);

// fn(role, layer, weight) over the weights that are present, in a fixed order; layer is -1 for roles of the model.
template <class Weights, class Fn>
void for_each_weight(Weights& w, Fn&& fn) {
#define MODEL_ROLE(field, kind) \
  if (w.field) fn(Role::field, int64_t{-1}, w.field);
#include "models/roles.def"
  for (size_t l = 0; l < w.layers.size(); ++l) {
    auto& layer = w.layers[l];
#define LAYER_ROLE(field, kind) \
  if (layer.field) fn(Role::field, static_cast<int64_t>(l), layer.field);
#include "models/roles.def"
  }
}

}  // namespace thimble
