// The weights of the one transformer, by role. for_each_weight is the only enumeration: load, save, count, quantize,
// optimize and compare all walk it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config.h"
#include "tensor/weight.h"

namespace thimble {

enum class Role : int {
#define MODEL_ROLE(field, kind) field,
#define LAYER_ROLE(field, kind) field,
#define EXPERT_ROLE(field, kind) field,
#include "models/roles.def"
  count
};
constexpr int kRoleCount = static_cast<int>(Role::count);
const char* role_name(Role role);
bool role_is_layer(Role role);   // experts included
bool role_is_expert(Role role);
// The role's number in random streams (initial values, dropout). It does not move when roles are added, so that a seed
// keeps its meaning.
uint64_t role_stream(Role role);

// Which weight of its role: the layer, and for weights of experts both, so that one number names every weight.
constexpr int64_t kExpertStride = int64_t{1} << 20;  // above every layer
constexpr int64_t kMaxExperts = 1024;
inline int64_t expert_place(int64_t layer, int64_t expert) { return expert * kExpertStride + layer; }
inline int64_t layer_of(int64_t place) { return place < 0 ? place : place % kExpertStride; }
inline int64_t expert_of(int64_t place) { return place < 0 ? 0 : place / kExpertStride; }
// "q_w" of the model, "3.q_w" of a layer, "3.expert_up_w.7" of an expert.
std::string weight_name(Role role, int64_t place);

struct ExpertWeights {
#define EXPERT_ROLE(field, kind) Weight field;
#include "models/roles.def"
};

struct LayerWeights {
#define LAYER_ROLE(field, kind) Weight field;
#include "models/roles.def"
  std::vector<ExpertWeights> experts;
};

struct ModelWeights {
#define MODEL_ROLE(field, kind) Weight field;
#include "models/roles.def"
  std::vector<LayerWeights> layers;

  void resize(const ModelConfig& config);
  // layer: a place, see above; ignored for roles of the model.
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

// fn(place) for every weight that a role stands for in a model that has it; 0 for roles of the model.
template <class Fn>
void for_each_place(const ModelConfig& config, Role role, Fn&& fn) {
  const int64_t layers = role_is_layer(role) ? config.n_layers : 1, experts = role_is_expert(role) ? config.n_experts : 1;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (int64_t expert = 0; expert < experts; ++expert) fn(expert_place(layer, expert));
}

// fn(role, layer, weight) over the weights that are present, in a fixed order; layer is a place, -1 for roles of the model.
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
    for (size_t e = 0; e < layer.experts.size(); ++e) {
      auto& expert = layer.experts[e];
#define EXPERT_ROLE(field, kind) \
  if (expert.field) fn(Role::field, expert_place(static_cast<int64_t>(l), static_cast<int64_t>(e)), expert.field);
#include "models/roles.def"
    }
  }
}

}  // namespace thimble
