// What the parts of the reference model share: a config read into flags, and a checkpoint read into the matrices that the
// formulas speak of.
#pragma once

#include <functional>
#include <stdexcept>

#include "tests/models/reference_model.h"

namespace thimble::reference {

using Vector = std::vector<double>;

inline size_t at(int64_t i) { return static_cast<size_t>(i); }
[[noreturn]] inline void refuse(const std::string& what) { throw std::runtime_error("reference model: " + what); }

struct Matrix {
  int64_t rows = 0, cols = 0;
  Vector a;
  const double* row(int64_t r) const { return &a[at(r * cols)]; }
};

struct Norm {
  bool present = false;
  Vector w, b;
};

struct Layer {
  Norm before_attention, after_attention, before_mlp, after_mlp, q_norm, k_norm;
  Matrix q, k, v, o, gate, up, down, router;
  Vector q_b, k_b, v_b, o_b, gate_b, up_b, down_b;
  std::vector<Matrix> expert_gate, expert_up, expert_down;
};

struct Whole {
  Matrix embed, positions, types, project_in, project_out, head;
  Vector head_b;
  Norm embed_norm, final_norm;
  std::vector<Layer> layers;
};

enum class Residual { sequential, post, parallel };
enum class QkNorm { none, per_head_rms, per_head_layer, shared_layer, whole_rms };
enum class Alibi { none, added, scaled };

struct Spec {
  nlohmann::json json;
  std::string family;
  int64_t vocab = 0, hidden = 0, inner = 0, layers = 0, heads = 0, kv_heads = 0, dim = 0, max_positions = 0;
  int64_t embed_dim = 0;
  bool rms = true, one_plus = false, affine = true, norm_bias = false, final_norm = true, embed_norm = false;
  double eps = 1e-5;
  Residual residual = Residual::sequential;
  bool one_norm = false;        // parallel: attention and mlp read the same norm
  bool norm_before = true;      // a norm at the entry of the branches
  bool norm_after = false;      // and at their exit
  QkNorm qk_norm = QkNorm::none;
  bool qk_norm_one_plus = false;
  double clip = 0;
  bool rope = true, interleaved = false, causal = true;
  int64_t rope_dims = 0;
  double theta = 10000, local_theta = 0;
  nlohmann::json scaling;       // null: none
  bool learned = false;
  int64_t learned_offset = 0, learned_rows = 0;
  Alibi alibi = Alibi::none;
  int64_t window = 0;
  std::function<bool(int64_t)> slides = [](int64_t) { return true; };
  bool scale_by_layer = false;  // scores of layer l are divided by l + 1 besides
  double score_scale = 0, softcap = 0, final_softcap = 0, logit_scale = 1, embed_scale = 1;
  bool gated = true;
  std::string activation = "silu";
  int64_t experts = 0, chosen = 0;
  bool tied = false;
};

Spec read_config(const nlohmann::json& json);
// tensors null: everything is zero, and `list` receives what a checkpoint holds.
Whole read_whole(const Spec& spec, const Tensors* tensors, std::vector<Declared>* list);

inline std::vector<int64_t> range(int64_t first, int64_t count) {
  std::vector<int64_t> r(at(count));
  for (int64_t i = 0; i < count; ++i) r[at(i)] = first + i;
  return r;
}

// Keys of a config, null being absent.
class Keys {
 public:
  explicit Keys(const nlohmann::json& json) : json_(json) {}
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  int64_t integer(const char* key) const {
    if (!has(key)) refuse(std::string("config has no ") + key);
    return json_[key].get<int64_t>();
  }
  int64_t integer(const char* key, int64_t otherwise) const { return has(key) ? json_[key].get<int64_t>() : otherwise; }
  double number(const char* key, double otherwise) const { return has(key) ? json_[key].get<double>() : otherwise; }
  bool flag(const char* key, bool otherwise) const { return has(key) ? json_[key].get<bool>() : otherwise; }
  std::string text(const char* key, const char* otherwise) const { return has(key) ? json_[key].get<std::string>() : otherwise; }

 private:
  const nlohmann::json& json_;
};

}  // namespace thimble::reference
