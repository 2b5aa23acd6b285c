#include "models/weights.h"

namespace thimble {

const char* role_name(Role role) {
  static const char* const names[] = {
#define MODEL_ROLE(field, kind) #field,
#define LAYER_ROLE(field, kind) #field,
#include "models/roles.def"
  };
  return names[static_cast<int>(role)];
}

bool role_is_layer(Role role) { return role >= Role::norm1_w; }

Weight& ModelWeights::at(Role role, int64_t layer) {
  switch (role) {
#define MODEL_ROLE(field, kind) \
  case Role::field: return field;
#define LAYER_ROLE(field, kind) \
  case Role::field: return layers.at(static_cast<size_t>(layer)).field;
#include "models/roles.def"
    case Role::count: break;
  }
  throw_check_failed("role", __FILE__, __LINE__);
}

RoleShape role_shape(const ModelConfig& c, Role role) {
  const bool norm_bias = c.norm == NormKind::layer && c.norm_affine;
  const auto vector = [](bool present, int64_t n) { return present ? RoleShape{1, n, true} : RoleShape{}; };
  const auto matrix = [](bool present, int64_t rows, int64_t cols) { return present ? RoleShape{rows, cols, false} : RoleShape{}; };
  switch (role) {
    case Role::token_embed: return matrix(true, c.vocab_size, c.embed_dim);
    case Role::pos_embed: return matrix(c.positions == PositionKind::learned, c.max_positions + c.position_offset, c.hidden);
    case Role::project_in: return matrix(c.projected(), c.hidden, c.embed_dim);
    case Role::project_out: return matrix(c.projected(), c.embed_dim, c.hidden);
    case Role::final_norm_w: return vector(c.final_norm && c.norm_affine, c.hidden);
    case Role::final_norm_b: return vector(c.final_norm && norm_bias, c.hidden);
    case Role::lm_head: return matrix(!c.tied, c.vocab_size, c.embed_dim);
    case Role::norm1_w: case Role::norm2_w: return vector(c.norm_affine, c.hidden);
    case Role::norm1_b: case Role::norm2_b: return vector(norm_bias, c.hidden);
    case Role::q_w: return matrix(true, c.q_cols(), c.hidden);
    case Role::k_w: case Role::v_w: return matrix(true, c.kv_cols(), c.hidden);
    case Role::o_w: return matrix(true, c.hidden, c.q_cols());
    case Role::q_b: return vector(c.qkv_bias, c.q_cols());
    case Role::k_b: case Role::v_b: return vector(c.qkv_bias, c.kv_cols());
    case Role::o_b: return vector(c.o_bias, c.hidden);
    case Role::gate_w: return matrix(c.gated_mlp, c.intermediate, c.hidden);
    case Role::up_w: return matrix(true, c.intermediate, c.hidden);
    case Role::down_w: return matrix(true, c.hidden, c.intermediate);
    case Role::gate_b: return vector(c.gated_mlp && c.mlp_bias, c.intermediate);
    case Role::up_b: return vector(c.mlp_bias, c.intermediate);
    case Role::down_b: return vector(c.mlp_bias, c.hidden);
    case Role::count: break;
  }
  return {};
}

}  // namespace thimble
