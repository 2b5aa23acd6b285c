#include "models/weights.h"

namespace thimble {

const char* role_name(Role role) {
  static const char* const names[] = {
#define MODEL_ROLE(field, kind) #field,
#define LAYER_ROLE(field, kind) #field,
#define EXPERT_ROLE(field, kind) #field,
#include "models/roles.def"
  };
  return names[static_cast<int>(role)];
}

bool role_is_layer(Role role) { return role >= Role::norm1_w; }
bool role_is_expert(Role role) { return role >= Role::expert_gate_w && role < Role::count; }

std::string weight_name(Role role, int64_t place) {
  if (!role_is_layer(role)) return role_name(role);
  const std::string name = std::to_string(layer_of(place)) + "." + role_name(role);
  return role_is_expert(role) ? name + "." + std::to_string(expert_of(place)) : name;
}

void ModelWeights::resize(const ModelConfig& config) {
  layers.resize(static_cast<size_t>(config.n_layers));
  for (LayerWeights& layer : layers) layer.experts.resize(static_cast<size_t>(config.n_experts));
}

uint64_t role_stream(Role role) {
  switch (role) {
    case Role::token_embed: return 0;
    case Role::pos_embed: return 1;
    case Role::project_in: return 2;
    case Role::project_out: return 3;
    case Role::lm_head: return 6;
    case Role::q_w: return 9;
    case Role::k_w: return 11;
    case Role::v_w: return 13;
    case Role::o_w: return 15;
    case Role::gate_w: return 19;
    case Role::up_w: return 21;
    case Role::down_w: return 23;
    default: return 32 + static_cast<uint64_t>(role);
  }
}

Weight& ModelWeights::at(Role role, int64_t layer) {
  switch (role) {
#define MODEL_ROLE(field, kind) \
  case Role::field: return field;
#define LAYER_ROLE(field, kind) \
  case Role::field: return layers.at(static_cast<size_t>(layer)).field;
#define EXPERT_ROLE(field, kind) \
  case Role::field: return layers.at(static_cast<size_t>(layer_of(layer))).experts.at(static_cast<size_t>(expert_of(layer))).field;
#include "models/roles.def"
    case Role::count: break;
  }
  throw_check_failed("role", __FILE__, __LINE__);
}

RoleShape role_shape(const ModelConfig& c, Role role) {
  const bool norm_bias = c.norm == NormKind::layer && c.norm_affine && c.norm_bias;
  const bool experts = c.n_experts > 0;
  const bool norm1 = c.pre_norm || c.post_norm, norm2 = norm1 && !c.shared_norm;
  const auto vector = [](bool present, int64_t n) { return present ? RoleShape{1, n, true} : RoleShape{}; };
  const auto matrix = [](bool present, int64_t rows, int64_t cols) { return present ? RoleShape{rows, cols, false} : RoleShape{}; };
  switch (role) {
    case Role::token_embed: return matrix(true, c.vocab_size, c.embed_dim);
    case Role::pos_embed: return matrix(c.positions == PositionKind::learned, c.max_positions + c.position_offset, c.hidden);
    case Role::token_type_embed: return matrix(c.token_types > 0, c.token_types, c.hidden);
    case Role::project_in: return matrix(c.projected(), c.hidden, c.embed_dim);
    case Role::project_out: return matrix(c.projected(), c.embed_dim, c.hidden);
    case Role::final_norm_w: return vector(c.final_norm && c.norm_affine, c.hidden);
    case Role::final_norm_b: return vector(c.final_norm && norm_bias, c.hidden);
    case Role::lm_head: return matrix(c.has_head && !c.tied, c.vocab_size, c.embed_dim);
    case Role::lm_head_b: return vector(c.head_bias, c.vocab_size);
    case Role::pooler_w: return matrix(c.pooler, c.hidden, c.hidden);
    case Role::pooler_b: return vector(c.pooler, c.hidden);
    case Role::embed_norm_w: return vector(c.embed_norm && c.norm_affine, c.hidden);
    case Role::embed_norm_b: return vector(c.embed_norm && norm_bias, c.hidden);
    case Role::norm1_w: return vector(norm1 && c.norm_affine, c.hidden);
    case Role::norm1_b: return vector(norm1 && norm_bias, c.hidden);
    case Role::norm2_w: return vector(norm2 && c.norm_affine, c.hidden);
    case Role::norm2_b: return vector(norm2 && norm_bias, c.hidden);
    case Role::branch_norm1_w: case Role::branch_norm2_w: return vector(c.branch_norm && c.norm_affine, c.hidden);
    case Role::branch_norm1_b: case Role::branch_norm2_b: return vector(c.branch_norm && norm_bias, c.hidden);
    case Role::q_norm_w: return vector(c.qk_norm != QkNorm::none, c.qk_norm == QkNorm::head ? c.head_dim : c.q_cols());
    case Role::k_norm_w: return vector(c.qk_norm != QkNorm::none, c.qk_norm == QkNorm::head ? c.head_dim : c.kv_cols());
    case Role::q_norm_b: return c.qk_norm_bias ? role_shape(c, Role::q_norm_w) : RoleShape{};
    case Role::k_norm_b: return c.qk_norm_bias ? role_shape(c, Role::k_norm_w) : RoleShape{};
    case Role::q_w: return matrix(true, c.q_cols(), c.hidden);
    case Role::k_w: case Role::v_w: return matrix(true, c.kv_cols(), c.hidden);
    case Role::o_w: return matrix(true, c.hidden, c.q_cols());
    case Role::q_b: return vector(c.qkv_bias, c.q_cols());
    case Role::k_b: case Role::v_b: return vector(c.qkv_bias, c.kv_cols());
    case Role::o_b: return vector(c.o_bias, c.hidden);
    case Role::gate_w: return matrix(c.gated_mlp && !experts, c.intermediate, c.hidden);
    case Role::up_w: return matrix(!experts, c.intermediate, c.hidden);
    case Role::down_w: return matrix(!experts, c.hidden, c.intermediate);
    case Role::gate_b: return vector(c.gated_mlp && c.mlp_bias, c.intermediate);
    case Role::up_b: return vector(c.mlp_bias, c.intermediate);
    case Role::down_b: return vector(c.mlp_bias, c.hidden);
    case Role::router_w: return matrix(experts, c.n_experts, c.hidden);
    case Role::expert_gate_w: case Role::expert_up_w: return matrix(experts, c.intermediate, c.hidden);
    case Role::expert_down_w: return matrix(experts, c.hidden, c.intermediate);
    case Role::count: break;
  }
  return {};
}

}  // namespace thimble
