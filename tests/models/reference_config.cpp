// The configs and tensor names of every family, as Hugging Face writes them.
#include <cmath>
#include <numeric>

#include "tests/models/reference_spec.h"

namespace thimble::reference {
namespace {

void read_plain(const Keys& k, Spec* s) {
  s->vocab = k.integer("vocab_size");
  s->hidden = k.integer("hidden_size");
  s->inner = k.integer("intermediate_size", 0);
  s->layers = k.integer("num_hidden_layers");
  s->heads = k.integer("num_attention_heads");
  s->kv_heads = k.integer("num_key_value_heads", s->heads);
  s->dim = k.integer("head_dim", s->hidden / s->heads);
  s->max_positions = k.integer("max_position_embeddings", 2048);
  s->theta = k.number("rope_theta", 10000);
  s->eps = k.number("rms_norm_eps", k.number("layer_norm_eps", 1e-6));
  s->activation = k.text("hidden_act", "silu");
  s->tied = k.flag("tie_word_embeddings", false);
}

void read_gpt2_style(const Keys& k, Spec* s) {
  s->vocab = k.integer("vocab_size");
  s->hidden = k.integer("n_embd");
  s->layers = k.integer("n_layer");
  s->heads = s->kv_heads = k.integer("n_head");
  s->inner = k.integer("n_inner", 4 * s->hidden);
  s->dim = s->hidden / s->heads;
  s->max_positions = k.integer("n_positions");
  s->eps = k.number("layer_norm_epsilon", 1e-5);
  s->rms = s->gated = false;
  s->norm_bias = true;
}

}  // namespace

Spec read_config(const nlohmann::json& json) {
  Spec s;
  s.json = json;
  const Keys k(json);
  const std::string f = s.family = k.text("model_type", "");
  if (json.contains("rope_scaling")) s.scaling = json["rope_scaling"];
  const auto layer_norm = [&] {
    s.rms = false;
    s.norm_bias = true;
  };
  if (f == "llama" || f == "mistral" || f == "mixtral" || f == "qwen2" || f == "qwen3" || f == "phi3" || f == "olmo2") {
    read_plain(k, &s);
    if (f == "mixtral" || f == "phi3" || f == "olmo2") s.eps = k.number("rms_norm_eps", 1e-5);  // the others' classes say 1e-6
    if (f == "mistral" || f == "mixtral" || f == "phi3") s.window = k.integer("sliding_window", 0);
    if (f == "qwen2" || f == "qwen3") {
      if (k.flag("use_sliding_window", false)) s.window = k.integer("sliding_window", 0);
      const int64_t first = k.integer("max_window_layers", 28);
      s.slides = [first](int64_t l) { return l >= first; };
    }
    if (f == "qwen3") s.qk_norm = QkNorm::per_head_rms;
    if (f == "mixtral") {
      s.theta = k.number("rope_theta", 1e6);
      s.experts = k.integer("num_local_experts");
      s.chosen = k.integer("num_experts_per_tok");
    }
    if (f == "olmo2") {
      s.norm_before = false;
      s.norm_after = true;
      s.qk_norm = QkNorm::whole_rms;
    }
    if (f == "phi3") {
      s.rope_dims = static_cast<int64_t>(double(s.dim) * k.number("partial_rotary_factor", 1));
      if (!s.scaling.is_null() && !s.scaling.contains("original_max_position_embeddings"))
        s.scaling["original_max_position_embeddings"] = k.integer("original_max_position_embeddings");
    }
  } else if (f == "gemma" || f == "gemma2" || f == "gemma3_text") {
    read_plain(k, &s);
    s.tied = k.flag("tie_word_embeddings", true);
    s.one_plus = true;
    s.activation = k.text("hidden_activation", "gelu_pytorch_tanh");
    s.embed_scale = std::sqrt(double(s.hidden));
    if (f != "gemma") {
      s.norm_after = true;
      s.score_scale = 1 / std::sqrt(k.number("query_pre_attn_scalar", 256));
      s.softcap = k.number("attn_logit_softcapping", 0);
      s.final_softcap = k.number("final_logit_softcapping", 0);
      s.window = k.integer("sliding_window", 4096);
      s.slides = [](int64_t l) { return l % 2 == 0; };
    }
    if (f == "gemma3_text") {
      s.qk_norm = QkNorm::per_head_rms;
      s.qk_norm_one_plus = true;
      s.theta = k.number("rope_theta", 1e6);
      s.local_theta = k.number("rope_local_base_freq", 10000);
      const int64_t pattern = k.integer("sliding_window_pattern", 6);
      s.slides = [pattern](int64_t l) { return (l + 1) % pattern != 0; };
    }
  } else if (f == "phi") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("layer_norm_eps", 1e-5);
    s.residual = Residual::parallel;
    s.one_norm = true;
    s.gated = false;
    s.activation = k.text("hidden_act", "gelu_new");
    s.rope_dims = static_cast<int64_t>(double(s.dim) * k.number("partial_rotary_factor", 0.5));
    if (k.flag("qk_layernorm", false)) s.qk_norm = QkNorm::shared_layer;
  } else if (f == "stablelm") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("layer_norm_eps", 1e-5);
    s.rope_dims = static_cast<int64_t>(double(s.dim) * k.number("partial_rotary_factor", 0.25));
    if (k.flag("use_parallel_residual", false)) {
      s.residual = Residual::parallel;
      s.one_norm = true;
    }
    if (k.flag("qk_layernorm", false)) s.qk_norm = QkNorm::per_head_layer;
  } else if (f == "starcoder2") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("norm_epsilon", 1e-5);
    s.gated = false;
    s.activation = k.text("hidden_act", "gelu_pytorch_tanh");
    s.window = k.integer("sliding_window", 0);
    s.tied = k.flag("tie_word_embeddings", true);
  } else if (f == "cohere") {
    read_plain(k, &s);
    s.rms = false;
    s.eps = k.number("layer_norm_eps", 1e-5);
    s.residual = Residual::parallel;
    s.one_norm = true;
    s.interleaved = true;
    s.logit_scale = k.number("logit_scale", 0.0625);
    s.tied = k.flag("tie_word_embeddings", true);
    if (k.flag("use_qk_norm", false)) s.qk_norm = QkNorm::per_head_layer;
  } else if (f == "olmo") {
    read_plain(k, &s);
    s.rms = s.affine = false;
    s.eps = 1e-5;
    s.clip = k.number("clip_qkv", 0);
  } else if (f == "gpt_neox") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("layer_norm_eps", 1e-5);
    s.gated = false;
    s.activation = k.text("hidden_act", "gelu");
    s.theta = k.number("rotary_emb_base", 10000);
    s.rope_dims = static_cast<int64_t>(double(s.dim) * k.number("rotary_pct", 0.25));
    if (k.flag("use_parallel_residual", true)) s.residual = Residual::parallel;
  } else if (f == "gpt2" || f == "gpt_bigcode") {
    read_gpt2_style(k, &s);
    s.rope = false;
    s.learned = true;
    s.learned_rows = s.max_positions;
    s.activation = k.text("activation_function", f == "gpt2" ? "gelu_new" : "gelu_pytorch_tanh");
    s.tied = k.flag("tie_word_embeddings", true);
    if (f == "gpt_bigcode") {
      if (k.flag("multi_query", true)) s.kv_heads = 1;
    }
    s.scale_by_layer = k.flag("scale_attn_by_inverse_layer_idx", false);
    if (!k.flag("scale_attn_weights", true)) s.score_scale = 1;
  } else if (f == "gptj") {
    read_gpt2_style(k, &s);
    s.residual = Residual::parallel;
    s.one_norm = true;
    s.interleaved = true;
    s.rope_dims = k.integer("rotary_dim", s.dim);
    s.activation = k.text("activation_function", "gelu_new");
  } else if (f == "opt") {
    read_plain(k, &s);
    layer_norm();
    s.affine = k.flag("layer_norm_elementwise_affine", true);
    s.eps = 1e-5;
    s.inner = k.integer("ffn_dim");
    s.embed_dim = k.integer("word_embed_proj_dim", s.hidden);
    s.gated = s.rope = false;
    s.activation = k.text("activation_function", "relu");
    s.learned = true;
    s.learned_offset = 2;
    s.learned_rows = s.max_positions + 2;
    s.tied = k.flag("tie_word_embeddings", true);
    if (!k.flag("do_layer_norm_before", true)) {
      s.residual = Residual::post;
      s.final_norm = false;
    }
  } else if (f == "falcon") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("layer_norm_epsilon", 1e-5);
    s.inner = k.integer("ffn_hidden_size", 4 * s.hidden);
    const bool fresh = k.flag("new_decoder_architecture", false);
    s.kv_heads = fresh ? k.integer("num_kv_heads", s.heads) : k.flag("multi_query", true) ? 1 : s.heads;
    s.gated = false;
    s.activation = k.text("activation", "gelu");
    s.tied = k.flag("tie_word_embeddings", true);
    if (k.flag("alibi", false)) {
      s.rope = false;
      s.alibi = Alibi::scaled;
    }
    if (fresh || k.flag("parallel_attn", true)) s.residual = Residual::parallel;
    s.one_norm = s.residual == Residual::parallel && !(fresh && k.integer("num_ln_in_parallel_attn", 2) == 2);
  } else if (f == "bloom") {
    s.vocab = k.integer("vocab_size");
    s.hidden = k.integer("hidden_size");
    s.layers = k.integer("n_layer");
    s.heads = s.kv_heads = k.integer("n_head");
    s.dim = s.hidden / s.heads;
    s.inner = 4 * s.hidden;
    s.eps = k.number("layer_norm_epsilon", 1e-5);
    layer_norm();
    s.embed_norm = true;
    s.rope = s.gated = false;
    s.alibi = Alibi::added;
    s.activation = "gelu_new";
    s.tied = k.flag("tie_word_embeddings", true);
  } else if (f == "bert") {
    read_plain(k, &s);
    layer_norm();
    s.eps = k.number("layer_norm_eps", 1e-12);
    s.activation = k.text("hidden_act", "gelu");
    s.gated = s.rope = s.causal = s.final_norm = false;
    s.learned = s.embed_norm = s.tied = true;
    s.learned_rows = s.max_positions;
    s.residual = Residual::post;
  } else {
    refuse("no family " + f);
  }
  if (json.contains("layer_types"))  // of newer configs, instead of a rule
    s.slides = [types = json["layer_types"]](int64_t l) { return types[at(l)] == "sliding_attention"; };
  if (s.embed_dim == 0) s.embed_dim = s.hidden;
  if (s.rope && s.rope_dims == 0) s.rope_dims = s.dim;
  if (s.score_scale == 0) s.score_scale = 1 / std::sqrt(double(s.dim));
  return s;
}

namespace {

// Hands out the tensors of a checkpoint; with none, writes down what would be asked for.
class Access {
 public:
  Access(const Tensors* tensors, std::vector<Declared>* list) : tensors_(tensors), list_(list) {}

  Vector take(const std::string& name, const std::vector<int64_t>& shape, Kind kind) {
    if (list_) list_->push_back({name, shape, kind});
    const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    if (!tensors_) return Vector(at(n));
    const auto it = tensors_->find(name);
    if (it == tensors_->end()) refuse("the checkpoint has no " + name);
    if (it->second.shape != shape) refuse("another shape of " + name);
    return it->second.data;
  }
  Matrix matrix(const std::string& name, int64_t rows, int64_t cols) {
    return {rows, cols, take(name + ".weight", {rows, cols}, Kind::matrix)};
  }
  Vector bias(const std::string& name, int64_t n, bool present = true) {
    return present ? take(name + ".bias", {n}, Kind::bias) : Vector();
  }
  Norm norm(const Spec& s, const std::string& name, int64_t n) {
    Norm r;
    r.present = true;
    if (!s.affine) return r;
    r.w = take(name + ".weight", {n}, s.one_plus ? Kind::zero_norm : Kind::norm);
    if (s.one_plus)
      for (double& w : r.w) w += 1;
    if (s.norm_bias) r.b = bias(name, n);
    return r;
  }

 private:
  const Tensors* tensors_;
  std::vector<Declared>* list_;
};

Matrix rows_of(const Matrix& m, const std::vector<int64_t>& rows) {
  Matrix r{static_cast<int64_t>(rows.size()), m.cols, {}};
  for (int64_t i : rows) r.a.insert(r.a.end(), m.row(i), m.row(i) + m.cols);
  return r;
}
Vector rows_of(const Vector& v, const std::vector<int64_t>& rows) {
  Vector r;
  for (int64_t i : rows) r.push_back(v[at(i)]);
  return r;
}
Matrix transposed(const Matrix& m) {
  Matrix t{m.cols, m.rows, Vector(m.a.size())};
  for (int64_t i = 0; i < m.rows; ++i)
    for (int64_t j = 0; j < m.cols; ++j) t.a[at(j * m.rows + i)] = m.a[at(i * m.cols + j)];
  return t;
}

// A fused projection: which of its rows are q, k and v.
struct Rows {
  std::vector<int64_t> q, k, v;
};

Rows one_after_the_other(const Spec& s) {
  const int64_t q = s.heads * s.dim, kv = s.kv_heads * s.dim;
  return {range(0, q), range(q, kv), range(q + kv, kv)};
}

// Per group of query heads that share keys: its query heads, then k, then v.
Rows by_group(const Spec& s) {
  Rows r;
  const int64_t per = s.heads / s.kv_heads;
  for (int64_t g = 0; g < s.kv_heads; ++g) {
    const int64_t base = g * (per + 2) * s.dim;
    for (int64_t i = 0; i < per * s.dim; ++i) r.q.push_back(base + i);
    for (int64_t i = 0; i < s.dim; ++i) {
      r.k.push_back(base + per * s.dim + i);
      r.v.push_back(base + (per + 1) * s.dim + i);
    }
  }
  return r;
}

void split(Layer* l, const Rows& rows, const Matrix& m, const Vector& b) {
  l->q = rows_of(m, rows.q);
  l->k = rows_of(m, rows.k);
  l->v = rows_of(m, rows.v);
  if (b.empty()) return;
  l->q_b = rows_of(b, rows.q);
  l->k_b = rows_of(b, rows.k);
  l->v_b = rows_of(b, rows.v);
}

void separate(Access& a, const Spec& s, Layer* l, const std::string& p, const char* out, bool qkv_bias, bool o_bias,
              const std::string& q = "q_proj", const std::string& k = "k_proj", const std::string& v = "v_proj") {
  const int64_t qn = s.heads * s.dim, kn = s.kv_heads * s.dim;
  l->q = a.matrix(p + q, qn, s.hidden);
  l->q_b = a.bias(p + q, qn, qkv_bias);
  l->k = a.matrix(p + k, kn, s.hidden);
  l->k_b = a.bias(p + k, kn, qkv_bias);
  l->v = a.matrix(p + v, kn, s.hidden);
  l->v_b = a.bias(p + v, kn, qkv_bias);
  l->o = a.matrix(p + out, s.hidden, qn);
  l->o_b = a.bias(p + out, s.hidden, o_bias);
}

void plain_mlp(Access& a, const Spec& s, Layer* l, const std::string& up, const std::string& down, bool bias) {
  l->up = a.matrix(up, s.inner, s.hidden);
  l->up_b = a.bias(up, s.inner, bias);
  l->down = a.matrix(down, s.hidden, s.inner);
  l->down_b = a.bias(down, s.hidden, bias);
}

void gated_mlp(Access& a, const Spec& s, Layer* l, const std::string& p, bool bias) {
  l->gate = a.matrix(p + "gate_proj", s.inner, s.hidden);
  l->gate_b = a.bias(p + "gate_proj", s.inner, bias);
  plain_mlp(a, s, l, p + "up_proj", p + "down_proj", bias);
}

// [heads, dim] of one norm per head, one after the other.
Norm head_norms(Access& a, const std::string& name, int64_t heads, int64_t dim, bool as_one) {
  Norm n;
  n.present = true;
  if (as_one) {
    n.w = a.take(name + ".weight", {heads, dim}, Kind::norm);
    return n;
  }
  for (int64_t h = 0; h < heads; ++h) {
    const Vector w = a.take(name + ".norms." + std::to_string(h) + ".weight", {dim}, Kind::norm);
    n.w.insert(n.w.end(), w.begin(), w.end());
  }
  return n;
}

Layer read_llama_layer(Access& a, const Spec& s, const Keys& k, const std::string& p) {
  Layer l;
  const std::string attn = p + "self_attn.";
  const std::string f = s.family;
  const bool bias = k.flag("attention_bias", false);
  if (f == "phi3") {
    const int64_t qn = s.heads * s.dim, kn = s.kv_heads * s.dim;
    split(&l, one_after_the_other(s), a.matrix(attn + "qkv_proj", qn + 2 * kn, s.hidden), {});
    l.o = a.matrix(attn + "o_proj", s.hidden, qn);
  } else if (f == "phi") {
    separate(a, s, &l, attn, "dense", true, true);
  } else {
    const bool biased = f == "starcoder2" ? k.flag("use_bias", true) : f == "stablelm" ? k.flag("use_qkv_bias", false) : bias;
    const bool qkv = biased || f == "qwen2";
    separate(a, s, &l, attn, "o_proj", qkv, biased && f != "stablelm");
  }
  if (s.qk_norm == QkNorm::per_head_rms || s.qk_norm == QkNorm::whole_rms) {
    const bool whole = s.qk_norm == QkNorm::whole_rms;
    l.q_norm = a.norm(s, attn + "q_norm", whole ? s.heads * s.dim : s.dim);
    l.k_norm = a.norm(s, attn + "k_norm", whole ? s.kv_heads * s.dim : s.dim);
  }
  if (s.qk_norm == QkNorm::shared_layer) {
    l.q_norm = a.norm(s, attn + "q_layernorm", s.dim);
    l.k_norm = a.norm(s, attn + "k_layernorm", s.dim);
  }
  if (s.qk_norm == QkNorm::per_head_layer) {
    const bool as_one = f == "cohere";
    l.q_norm = head_norms(a, attn + (as_one ? "q_norm" : "q_layernorm"), s.heads, s.dim, as_one);
    l.k_norm = head_norms(a, attn + (as_one ? "k_norm" : "k_layernorm"), s.kv_heads, s.dim, as_one);
  }
  if (s.norm_before) l.before_attention = a.norm(s, p + "input_layernorm", s.hidden);
  if (s.norm_after) {
    l.after_attention = a.norm(s, p + "post_attention_layernorm", s.hidden);
    l.after_mlp = a.norm(s, p + "post_feedforward_layernorm", s.hidden);
    if (s.norm_before) l.before_mlp = a.norm(s, p + "pre_feedforward_layernorm", s.hidden);
  } else if (!s.one_norm) {
    l.before_mlp = a.norm(s, p + "post_attention_layernorm", s.hidden);
  }
  if (f == "mixtral") {
    const std::string moe = p + "block_sparse_moe.";
    l.router = a.matrix(moe + "gate", s.experts, s.hidden);
    for (int64_t e = 0; e < s.experts; ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      l.expert_gate.push_back(a.matrix(expert + "w1", s.inner, s.hidden));
      l.expert_down.push_back(a.matrix(expert + "w2", s.hidden, s.inner));
      l.expert_up.push_back(a.matrix(expert + "w3", s.inner, s.hidden));
    }
  } else if (f == "phi") {
    plain_mlp(a, s, &l, p + "mlp.fc1", p + "mlp.fc2", true);
  } else if (f == "starcoder2") {
    plain_mlp(a, s, &l, p + "mlp.c_fc", p + "mlp.c_proj", k.flag("use_bias", true));
  } else if (f == "phi3") {
    const Matrix both = a.matrix(p + "mlp.gate_up_proj", 2 * s.inner, s.hidden);
    l.gate = rows_of(both, range(0, s.inner));
    l.up = rows_of(both, range(s.inner, s.inner));
    l.down = a.matrix(p + "mlp.down_proj", s.hidden, s.inner);
  } else {
    gated_mlp(a, s, &l, p + "mlp.", k.flag("mlp_bias", false));
  }
  return l;
}

Layer read_gpt2_layer(Access& a, const Spec& s, const std::string& p) {
  Layer l;
  const int64_t qkv = (s.heads + 2 * s.kv_heads) * s.dim;
  l.before_attention = a.norm(s, p + "ln_1", s.hidden);
  if (s.family == "gptj") {
    separate(a, s, &l, p + "attn.", "out_proj", false, false);
    plain_mlp(a, s, &l, p + "mlp.fc_in", p + "mlp.fc_out", true);
    return l;
  }
  l.before_mlp = a.norm(s, p + "ln_2", s.hidden);
  const bool conv = s.family == "gpt2";  // weights [in, out]
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return conv ? transposed(a.matrix(name, in, out)) : a.matrix(name, out, in);
  };
  const Matrix fused = linear(p + "attn.c_attn", qkv, s.hidden);
  // GPT-BigCode keeps q, k and v of a head together; a single key head makes both orders the same.
  split(&l, conv ? one_after_the_other(s) : by_group(s), fused, a.bias(p + "attn.c_attn", qkv));
  l.o = linear(p + "attn.c_proj", s.hidden, s.hidden);
  l.o_b = a.bias(p + "attn.c_proj", s.hidden);
  l.up = linear(p + "mlp.c_fc", s.inner, s.hidden);
  l.up_b = a.bias(p + "mlp.c_fc", s.inner);
  l.down = linear(p + "mlp.c_proj", s.hidden, s.inner);
  l.down_b = a.bias(p + "mlp.c_proj", s.hidden);
  return l;
}

// GPT-NeoX, Bloom and Falcon: query_key_value, dense, dense_h_to_4h, dense_4h_to_h.
Layer read_fused_layer(Access& a, const Spec& s, const Keys& k, const std::string& p) {
  Layer l;
  const bool falcon = s.family == "falcon", bias = !falcon || k.flag("bias", false);
  const std::string attn = p + (s.family == "gpt_neox" ? "attention." : "self_attention.");
  if (falcon && s.residual == Residual::parallel && !s.one_norm) {
    l.before_attention = a.norm(s, p + "ln_attn", s.hidden);
    l.before_mlp = a.norm(s, p + "ln_mlp", s.hidden);
  } else {
    l.before_attention = a.norm(s, p + "input_layernorm", s.hidden);
    if (!s.one_norm) l.before_mlp = a.norm(s, p + "post_attention_layernorm", s.hidden);
  }
  const int64_t qkv = (s.heads + 2 * s.kv_heads) * s.dim;
  const Matrix fused = a.matrix(attn + "query_key_value", qkv, s.hidden);
  // One group of all heads (multi-query) is q, k, v; a group of one head (multi-head) is q, k, v per head.
  split(&l, by_group(s), fused, a.bias(attn + "query_key_value", qkv, bias));
  l.o = a.matrix(attn + "dense", s.hidden, s.heads * s.dim);
  l.o_b = a.bias(attn + "dense", s.hidden, bias);
  plain_mlp(a, s, &l, p + "mlp.dense_h_to_4h", p + "mlp.dense_4h_to_h", bias);
  return l;
}

Layer read_opt_layer(Access& a, const Spec& s, const Keys& k, const std::string& p) {
  Layer l;
  const bool bias = k.flag("enable_bias", true);
  separate(a, s, &l, p + "self_attn.", "out_proj", bias, bias);
  l.before_attention = a.norm(s, p + "self_attn_layer_norm", s.hidden);
  l.before_mlp = a.norm(s, p + "final_layer_norm", s.hidden);
  plain_mlp(a, s, &l, p + "fc1", p + "fc2", bias);
  return l;
}

Layer read_bert_layer(Access& a, const Spec& s, const std::string& p) {
  Layer l;
  const std::string attn = p + "attention.";
  separate(a, s, &l, attn, "output.dense", true, true, "self.query", "self.key", "self.value");
  l.before_attention = a.norm(s, attn + "output.LayerNorm", s.hidden);
  plain_mlp(a, s, &l, p + "intermediate.dense", p + "output.dense", true);
  l.before_mlp = a.norm(s, p + "output.LayerNorm", s.hidden);
  return l;
}

struct Names {
  std::string embed, positions, layers, final_norm, head = "lm_head", embed_norm;
};

Names names_of(const std::string& f) {
  if (f == "gpt_neox") return {"gpt_neox.embed_in", "", "gpt_neox.layers.", "gpt_neox.final_layer_norm", "embed_out", ""};
  if (f == "gpt2" || f == "gpt_bigcode") return {"transformer.wte", "transformer.wpe", "transformer.h.", "transformer.ln_f", "lm_head", ""};
  if (f == "gptj") return {"transformer.wte", "", "transformer.h.", "transformer.ln_f", "lm_head", ""};
  if (f == "opt")
    return {"model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.layers.", "model.decoder.final_layer_norm", "lm_head", ""};
  if (f == "falcon" || f == "bloom")
    return {"transformer.word_embeddings", "", "transformer.h.", "transformer.ln_f", "lm_head", "transformer.word_embeddings_layernorm"};
  if (f == "bert")
    return {"embeddings.word_embeddings", "embeddings.position_embeddings", "encoder.layer.", "", "", "embeddings.LayerNorm"};
  return {"model.embed_tokens", "", "model.layers.", f == "phi" ? "model.final_layernorm" : "model.norm", "lm_head", ""};
}

}  // namespace

Whole read_whole(const Spec& s, const Tensors* tensors, std::vector<Declared>* list) {
  Access a(tensors, list);
  const Keys k(s.json);
  const Names n = names_of(s.family);
  Whole w;
  w.embed = a.matrix(n.embed, s.vocab, s.embed_dim);
  if (s.learned) w.positions = a.matrix(n.positions, s.learned_rows, s.hidden);
  if (s.family == "bert") w.types = a.matrix("embeddings.token_type_embeddings", k.integer("type_vocab_size", 2), s.hidden);
  if (s.embed_norm) w.embed_norm = a.norm(s, n.embed_norm, s.hidden);
  if (s.embed_dim != s.hidden) {
    w.project_in = a.matrix("model.decoder.project_in", s.hidden, s.embed_dim);
    w.project_out = a.matrix("model.decoder.project_out", s.embed_dim, s.hidden);
  }
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = n.layers + std::to_string(i) + ".";
    const std::string& f = s.family;
    if (f == "gpt2" || f == "gpt_bigcode" || f == "gptj")
      w.layers.push_back(read_gpt2_layer(a, s, p));
    else if (f == "gpt_neox" || f == "bloom" || f == "falcon")
      w.layers.push_back(read_fused_layer(a, s, k, p));
    else if (f == "opt")
      w.layers.push_back(read_opt_layer(a, s, k, p));
    else if (f == "bert")
      w.layers.push_back(read_bert_layer(a, s, p));
    else
      w.layers.push_back(read_llama_layer(a, s, k, p));
  }
  if (s.final_norm) w.final_norm = a.norm(s, n.final_norm, s.hidden);
  if (!s.tied) w.head = a.matrix(n.head, s.vocab, s.embed_dim);
  if (s.family == "phi" || s.family == "gptj") w.head_b = a.bias(n.head, s.vocab);
  return w;
}

}  // namespace thimble::reference
