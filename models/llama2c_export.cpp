#include "models/llama2c_export.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "models/gguf_arch.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {

void check_llama2c(const ModelSource& source) {
  const ModelConfig& c = source.config();
  const auto need = [&](bool holds, const std::string& what) {
    if (!holds)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: {}: a llama2.c file has no place for it", source.path(), what),
                  "export it as GGUF or safetensors");
  };
  need(c.family == "llama" || c.family == "mistral", "a model of the family " + c.family);
  need(c.rope.theta == 10000 && c.rope.scaling == RopeScaling::none, "a rotary base or scaling of its own");
  need(std::fabs(c.norm_eps - 1e-5) < 1e-9, fmt::format("norms with epsilon {}", c.norm_eps));
  need(c.head_dim * c.n_heads == c.hidden, fmt::format("heads of {}", c.head_dim));
  need(!c.qkv_bias && !c.o_bias && !c.mlp_bias, "biases");
  need(c.n_experts == 0, "experts");
  need(c.window == 0 || c.window >= c.max_positions, "a window of attention");
  need(c.activation == Activation::silu, "another activation than silu");
}

namespace {

// Former tables of cosines and sines, which readers skip.
std::vector<float> rotary_table(const ModelConfig& c, bool sine) {
  std::vector<float> t;
  for (int64_t p = 0; p < c.max_positions; ++p)
    for (int64_t j = 0; j < c.head_dim / 2; ++j) {
      const double angle = double(p) / std::pow(10000.0, 2.0 * double(j) / double(c.head_dim));
      t.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
    }
  return t;
}

}  // namespace

uint64_t llama2c_bytes(const ModelSource& source) {
  uint64_t floats = static_cast<uint64_t>(source.config().max_positions * source.config().head_dim);
  for (const SourceTensor& t : source.tensors()) floats += static_cast<uint64_t>(t.elements());
  return 28 + 4 * floats;
}

void write_llama2c(const ModelSource& source, const std::string& path, const std::function<void(uint64_t)>& progress) {
  check_llama2c(source);
  const ModelConfig& c = source.config();
  AtomicFile out(path);
  const int64_t sizes[7] = {c.hidden,       c.intermediate, c.n_layers,
                            c.n_heads,      c.n_kv_heads,   c.tied ? c.vocab_size : -c.vocab_size,
                            c.max_positions};
  for (int64_t v : sizes) {
    const auto word = static_cast<int32_t>(v);
    out.write(&word, sizeof word);
  }
  uint64_t done = 0;
  const auto write = [&](const std::vector<float>& values) {
    out.write(values.data(), values.size() * sizeof(float));
    done += values.size() * sizeof(float);
    if (progress) progress(done);
  };
  const auto write_role = [&](Role role) {
    for (const SourceTensor& t : source.tensors()) {
      if (t.rule->roles[0] != role) continue;
      std::vector<float> values = source.read_f32(t);
      if (role == Role::q_w || role == Role::k_w) {
        const std::vector<int32_t> map =
            gguf_row_map(GgufChange::pairs_q, {c.n_heads, c.n_kv_heads, c.head_dim}, t.shape[0]);
        const std::vector<float> from = values;
        const auto cols = static_cast<size_t>(t.shape[1]);
        for (size_t r = 0; r < map.size(); ++r)
          std::copy_n(&from[r * cols], cols, &values[static_cast<size_t>(map[r]) * cols]);
      }
      write(values);
    }
  };
  // Each array holds all layers; the list of tensors is by rule, then by layer.
  for (Role role : {Role::token_embed, Role::norm1_w, Role::q_w, Role::k_w, Role::v_w, Role::o_w, Role::norm2_w,
                    Role::gate_w, Role::down_w, Role::up_w, Role::final_norm_w})
    write_role(role);
  write(rotary_table(c, false));
  write(rotary_table(c, true));
  if (!c.tied) write_role(Role::lm_head);
  out.commit();
}

}  // namespace thimble
