// Initial values follow GPT-2's scheme (Radford et al., 2019): the residual scaling keeps the variance of the stream
// from growing with depth.
#include "models/init.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

constexpr uint64_t kInitStream = uint64_t{0x53} << 56;

void fill(Role role, int64_t layer, const ModelConfig& config, uint64_t seed, float* out, int64_t n) {
  const std::string name = role_name(role);
  if (role_shape(config, role).vector) {
    const bool norm = name.find("norm") != std::string::npos && name.back() == 'w';
    std::fill_n(out, n, norm ? static_cast<float>(1 - config.norm_offset) : 0.0f);
    return;
  }
  const bool residual = role == Role::o_w || role == Role::down_w || role == Role::expert_down_w;
  const double deviation = residual ? 0.02 / std::sqrt(2.0 * double(config.n_layers)) : 0.02;
  const auto number = static_cast<uint64_t>(role_is_layer(role) ? layer_of(layer) + 1 : 0), expert = static_cast<uint64_t>(expert_of(layer));
  Philox rng(seed, kInitStream + (expert << 32) + (role_stream(role) << 16) + number);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(deviation * rng.normal());
}

}  // namespace

Model init_model(const std::string& config_path, uint64_t seed, int64_t vocab_size, MemoryBudget* budget) {
  nlohmann::json json = parse_json_file(config_path);
  const JsonObject object(json, config_path);
  if (vocab_size > 0) json["vocab_size"] = vocab_size;
  Model m;
  m.path = config_path;
  m.family = &find_family(object);
  m.config = parse_config(object, *m.family);
  m.store = WeightStore(budget);
  m.weights.resize(m.config);
  for (int i = 0; i < kRoleCount; ++i) {
    const auto role = static_cast<Role>(i);
    const RoleShape s = role_shape(m.config, role);
    if (s.rows == 0) continue;
    for_each_place(m.config, role, [&](int64_t layer) {
      Weight& w = m.weights.at(role, layer);
      w.rows = s.rows;
      w.cols = s.cols;
      auto* data = static_cast<float*>(m.store.allocate(size_t(w.numel()) * sizeof(float)));
      fill(role, layer, m.config, seed, data, w.numel());
      w.data = data;
    });
  }
  return m;
}

}  // namespace thimble
