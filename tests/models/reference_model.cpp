#include "tests/models/reference_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

#include "tests/models/reference_spec.h"

namespace thimble::reference {
namespace {

constexpr double kPi = 3.14159265358979323846;

double half_value(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  if (exponent == 31) return sign * (mantissa ? NAN : INFINITY);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// In what follows x is [tokens, columns].

Vector linear(const Vector& x, int64_t tokens, const Matrix& w, const Vector& b) {
  Vector y(at(tokens * w.rows));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < w.rows; ++r) {
      double sum = b.empty() ? 0 : b[at(r)];
      for (int64_t c = 0; c < w.cols; ++c) sum += x[at(t * w.cols + c)] * w.a[at(r * w.cols + c)];
      y[at(t * w.rows + r)] = sum;
    }
  return y;
}

// One row of n entries; w and b may be null.
void normalise(bool rms, double eps, double* x, int64_t n, const double* w, const double* b) {
  double mean = 0, variance = 0;
  if (!rms) {
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= double(n);
  }
  for (int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  variance /= double(n);
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - mean) / std::sqrt(variance + eps) * (w ? w[i] : 1) + (b ? b[i] : 0);
}

Vector norm(const Spec& s, Vector x, const Norm& n) {
  if (!n.present) return x;
  for (size_t t = 0; t < x.size(); t += at(s.hidden))
    normalise(s.rms, s.eps, &x[t], s.hidden, n.w.empty() ? nullptr : n.w.data(), n.b.empty() ? nullptr : n.b.data());
  return x;
}

double activate(const std::string& kind, double x) {
  if (kind == "silu" || kind == "swish") return x / (1 + std::exp(-x));
  if (kind == "gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (kind == "gelu_new" || kind == "gelu_pytorch_tanh") return 0.5 * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x)));
  if (kind == "relu") return x > 0 ? x : 0;
  refuse("activation " + kind);
}

struct Angles {
  Vector per_step;    // of position 1
  double factor = 1;  // on cosine and sine
};

Angles rope_angles(const Spec& s, double theta, bool scaled, int64_t tokens) {
  const int64_t d = s.rope_dims, half = d / 2;
  Angles r;
  const auto plain = [&](double base, int64_t j) { return std::pow(base, -2.0 * double(j) / double(d)); };
  for (int64_t j = 0; j < half; ++j) r.per_step.push_back(plain(theta, j));
  if (!scaled || s.scaling.is_null()) return r;
  const Keys k(s.scaling);
  const std::string type = k.text("rope_type", k.text("type", "default").c_str());
  const double factor = k.number("factor", 1);
  const auto longest = double(s.max_positions), original = k.number("original_max_position_embeddings", longest);
  if (type == "default") return r;
  if (type == "linear") {
    for (double& f : r.per_step) f /= factor;
  } else if (type == "dynamic") {
    const double length = std::max(double(tokens), longest);
    const double base = theta * std::pow(factor * length / longest - (factor - 1), double(d) / double(d - 2));
    for (int64_t j = 0; j < half; ++j) r.per_step[at(j)] = plain(base, j);
  } else if (type == "llama3") {
    const double low = k.number("low_freq_factor", 1), high = k.number("high_freq_factor", 4);
    for (double& f : r.per_step) {
      const double wave = 2 * kPi / f;
      if (wave > original / low) {
        f /= factor;
      } else if (wave >= original / high) {
        const double mix = (original / wave - low) / (high - low);
        f = (1 - mix) * f / factor + mix * f;
      }
    }
  } else if (type == "yarn") {
    const auto dim = [&](double turns) { return double(d) * std::log(original / (2 * kPi * turns)) / (2 * std::log(theta)); };
    const bool whole = k.flag("truncate", true);
    const double fast = dim(k.number("beta_fast", 32)), slow = dim(k.number("beta_slow", 1));
    const double low = std::max(whole ? std::floor(fast) : fast, 0.0);
    double high = std::min(whole ? std::ceil(slow) : slow, double(d - 1));
    if (low == high) high += 0.001;
    for (int64_t j = 0; j < half; ++j) {
      const double ramp = std::clamp((double(j) - low) / (high - low), 0.0, 1.0), f = r.per_step[at(j)];
      r.per_step[at(j)] = f / factor * ramp + f * (1 - ramp);
    }
    const auto growth = [&](double m) { return 0.1 * m * std::log(factor) + 1; };
    const bool two = k.has("mscale") && k.has("mscale_all_dim");
    r.factor = k.number("attention_factor", two ? growth(k.number("mscale", 1)) / growth(k.number("mscale_all_dim", 1)) : growth(1));
  } else if (type == "longrope" || type == "su") {
    const auto& list = s.scaling[double(tokens) > original ? "long_factor" : "short_factor"];
    for (int64_t j = 0; j < half; ++j) r.per_step[at(j)] /= list[at(j)].get<double>();
    const double stretch = longest / original;
    r.factor = k.number("attention_factor", stretch > 1 ? std::sqrt(1 + std::log(stretch) / std::log(original)) : 1);
  } else {
    refuse("rope scaling " + type);
  }
  return r;
}

void rotate(const Spec& s, const Angles& angles, Vector& x, int64_t heads, int64_t tokens) {
  const int64_t half = s.rope_dims / 2;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      double* head = &x[at((t * heads + h) * s.dim)];
      for (int64_t j = 0; j < half; ++j) {
        double& a = s.interleaved ? head[2 * j] : head[j];
        double& b = s.interleaved ? head[2 * j + 1] : head[j + half];
        const double angle = double(t) * angles.per_step[at(j)], c = std::cos(angle) * angles.factor, n = std::sin(angle) * angles.factor;
        const double rotated = a * c - b * n;
        b = b * c + a * n;
        a = rotated;
      }
    }
}

// ALiBi (Press et al. 2022): a geometric series for powers of two, else the series of the next lower one and every second
// entry of the next higher one.
Vector slopes(int64_t heads) {
  int64_t lower = 1;
  while (lower * 2 <= heads) lower *= 2;
  Vector r;
  for (int64_t h = 1; h <= lower; ++h) r.push_back(std::pow(2.0, -8.0 * double(h) / double(lower)));
  for (int64_t h = 0; static_cast<int64_t>(r.size()) < heads; ++h) r.push_back(std::pow(2.0, -4.0 * double(2 * h + 1) / double(lower)));
  return r;
}

void norm_heads(const Spec& s, Vector& x, const Norm& n, int64_t heads, int64_t tokens) {
  if (s.qk_norm == QkNorm::none) return;
  const bool whole = s.qk_norm == QkNorm::whole_rms, rms = whole || s.qk_norm == QkNorm::per_head_rms;
  const int64_t width = whole ? heads * s.dim : s.dim, pieces = whole ? 1 : heads;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < pieces; ++h) {
      const int64_t own = s.qk_norm == QkNorm::per_head_layer ? h * s.dim : 0;
      normalise(rms, s.eps, &x[at((t * pieces + h) * width)], width, &n.w[at(own)], n.b.empty() ? nullptr : n.b.data());
    }
}

Vector attention(const Spec& s, const Layer& l, int64_t layer, const Vector& x, int64_t tokens) {
  Vector q = linear(x, tokens, l.q, l.q_b), k = linear(x, tokens, l.k, l.k_b), v = linear(x, tokens, l.v, l.v_b);
  if (s.clip > 0)
    for (Vector* p : {&q, &k, &v})
      for (double& e : *p) e = std::clamp(e, -s.clip, s.clip);
  norm_heads(s, q, l.q_norm, s.heads, tokens);
  norm_heads(s, k, l.k_norm, s.kv_heads, tokens);
  const bool slides = s.window > 0 && s.slides(layer);
  if (s.rope) {
    const bool local = s.local_theta > 0 && slides;
    const Angles angles = rope_angles(s, local ? s.local_theta : s.theta, !local, tokens);
    rotate(s, angles, q, s.heads, tokens);
    rotate(s, angles, k, s.kv_heads, tokens);
  }
  const Vector slope = s.alibi == Alibi::none ? Vector() : slopes(s.heads);
  Vector out(at(tokens * s.heads * s.dim));
  for (int64_t h = 0; h < s.heads; ++h) {
    const int64_t kv = h / (s.heads / s.kv_heads);
    for (int64_t i = 0; i < tokens; ++i) {
      Vector p(at(tokens));
      double largest = -INFINITY, sum = 0;
      const auto visible = [&](int64_t j) { return (!s.causal || j <= i) && (!slides || i - j < s.window); };
      for (int64_t j = 0; j < tokens; ++j) {
        if (!visible(j)) continue;
        double score = 0;
        for (int64_t c = 0; c < s.dim; ++c) score += q[at((i * s.heads + h) * s.dim + c)] * k[at((j * s.kv_heads + kv) * s.dim + c)];
        if (s.alibi == Alibi::scaled) score += slope[at(h)] * double(j);
        score *= s.score_scale / (s.scale_by_layer ? double(layer + 1) : 1);
        if (s.alibi == Alibi::added) score += slope[at(h)] * double(j);
        if (s.softcap > 0) score = s.softcap * std::tanh(score / s.softcap);
        p[at(j)] = score;
        largest = std::max(largest, score);
      }
      for (int64_t j = 0; j < tokens; ++j) sum += p[at(j)] = visible(j) ? std::exp(p[at(j)] - largest) : 0;
      for (int64_t j = 0; j < tokens; ++j)
        for (int64_t c = 0; c < s.dim; ++c)
          out[at((i * s.heads + h) * s.dim + c)] += p[at(j)] / sum * v[at((j * s.kv_heads + kv) * s.dim + c)];
    }
  }
  return linear(out, tokens, l.o, l.o_b);
}

Vector experts(const Spec& s, const Layer& l, const Vector& x, int64_t tokens) {
  Vector out(x.size());
  const Vector scores = linear(x, tokens, l.router, {});
  for (int64_t t = 0; t < tokens; ++t) {
    Vector p(scores.begin() + t * s.experts, scores.begin() + (t + 1) * s.experts);
    double all = 0, kept = 0;
    for (double& e : p) all += e = std::exp(e);
    for (double& e : p) e /= all;
    std::vector<int64_t> order = range(0, s.experts);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p[at(a)] > p[at(b)]; });
    for (int64_t i = 0; i < s.chosen; ++i) kept += p[at(order[at(i)])];
    const Vector row(x.begin() + t * s.hidden, x.begin() + (t + 1) * s.hidden);
    for (int64_t i = 0; i < s.chosen; ++i) {
      const size_t e = at(order[at(i)]);
      Vector gate = linear(row, 1, l.expert_gate[e], {});
      const Vector up = linear(row, 1, l.expert_up[e], {});
      for (size_t c = 0; c < gate.size(); ++c) gate[c] = activate(s.activation, gate[c]) * up[c];
      const Vector y = linear(gate, 1, l.expert_down[e], {});
      for (int64_t c = 0; c < s.hidden; ++c) out[at(t * s.hidden + c)] += p[e] / kept * y[at(c)];
    }
  }
  return out;
}

Vector mlp(const Spec& s, const Layer& l, const Vector& x, int64_t tokens) {
  if (s.experts > 0) return experts(s, l, x, tokens);
  Vector up = linear(x, tokens, l.up, l.up_b);
  if (s.gated) {
    const Vector gate = linear(x, tokens, l.gate, l.gate_b);
    for (size_t i = 0; i < up.size(); ++i) up[i] *= activate(s.activation, gate[i]);
  } else {
    for (double& u : up) u = activate(s.activation, u);
  }
  return linear(up, tokens, l.down, l.down_b);
}

Vector plus(Vector a, const Vector& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

Vector run(const Spec& s, const Whole& w, const std::vector<int32_t>& ids, const std::vector<int32_t>& types) {
  const auto tokens = static_cast<int64_t>(ids.size());
  Vector x;
  for (int32_t id : ids)
    for (int64_t c = 0; c < s.embed_dim; ++c) x.push_back(w.embed.a[at(id * s.embed_dim + c)] * s.embed_scale);
  if (s.embed_dim != s.hidden) x = linear(x, tokens, w.project_in, {});
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < s.hidden; ++c) {
      if (s.learned) x[at(t * s.hidden + c)] += w.positions.row(t + s.learned_offset)[c];
      if (w.types.rows > 0) x[at(t * s.hidden + c)] += w.types.row(types.empty() ? 0 : types[at(t)])[c];
    }
  if (s.embed_norm) x = norm(s, std::move(x), w.embed_norm);
  for (int64_t i = 0; i < s.layers; ++i) {
    const Layer& l = w.layers[at(i)];
    if (s.residual == Residual::post) {
      x = norm(s, plus(x, attention(s, l, i, x, tokens)), l.before_attention);
      x = norm(s, plus(x, mlp(s, l, x, tokens)), l.before_mlp);
      continue;
    }
    const Vector first = norm(s, x, l.before_attention);
    const Vector a = norm(s, attention(s, l, i, first, tokens), l.after_attention);
    if (s.residual == Residual::parallel) {
      x = plus(plus(x, a), mlp(s, l, s.one_norm ? first : norm(s, x, l.before_mlp), tokens));
      continue;
    }
    x = plus(x, a);
    x = plus(x, norm(s, mlp(s, l, norm(s, x, l.before_mlp), tokens), l.after_mlp));
  }
  if (s.final_norm) x = norm(s, std::move(x), w.final_norm);
  return x;
}

}  // namespace

Tensors read_safetensors(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream all;
  all << in.rdbuf();
  const std::string bytes = all.str();
  uint64_t length = 0;
  if (bytes.size() < 8) refuse(path + " cannot be read");
  std::memcpy(&length, bytes.data(), 8);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  Tensors tensors;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    Tensor t;
    t.shape = info["shape"].get<std::vector<int64_t>>();
    const std::string type = info["dtype"];
    const char* data = bytes.data() + 8 + length + info["data_offsets"][0].get<size_t>();
    const int64_t n = std::accumulate(t.shape.begin(), t.shape.end(), int64_t{1}, std::multiplies<>());
    const auto element = [&](auto value, int64_t i) {
      std::memcpy(&value, data + at(i) * sizeof value, sizeof value);
      return value;
    };
    for (int64_t i = 0; i < n; ++i) {
      if (type == "F32") {
        t.data.push_back(double(element(float{}, i)));
      } else if (type == "I64") {
        t.data.push_back(double(element(int64_t{}, i)));
      } else if (type == "F16") {
        t.data.push_back(half_value(element(uint16_t{}, i)));
      } else if (type == "BF16") {
        const uint32_t wide = uint32_t{element(uint16_t{}, i)} << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        t.data.push_back(double(value));
      } else {
        refuse(path + ": dtype " + type);
      }
    }
    tensors[name] = std::move(t);
  }
  return tensors;
}

void write_safetensors(const std::string& path, const Tensors& tensors) {
  nlohmann::ordered_json header;
  std::string body;
  for (const auto& [name, t] : tensors) {
    const size_t begin = body.size();
    for (double v : t.data) {
      const auto f = static_cast<float>(v);
      body.append(reinterpret_cast<const char*>(&f), sizeof f);
    }
    header[name] = {{"dtype", "F32"}, {"shape", t.shape}, {"data_offsets", {begin, body.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), 8);
  out << text << body;
}

Model::Model(const nlohmann::json& config) : spec_(std::make_unique<Spec>(read_config(config))) {}
Model::~Model() = default;

int64_t Model::vocab() const { return spec_->vocab; }

std::vector<Declared> Model::declared() const {
  std::vector<Declared> list;
  read_whole(*spec_, nullptr, &list);
  return list;
}

Tensors Model::random(uint64_t seed) const {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  Tensors tensors;
  for (const Declared& d : declared()) {
    Tensor t;
    t.shape = d.shape;
    const int64_t n = std::accumulate(d.shape.begin(), d.shape.end(), int64_t{1}, std::multiplies<>());
    const double spread = d.kind == Kind::bias ? 0.1 : 0.2, middle = d.kind == Kind::norm ? 1 : 0;
    for (int64_t i = 0; i < n; ++i) t.data.push_back(double(static_cast<float>(middle + spread * normal(engine))));
    tensors[d.name] = std::move(t);
  }
  return tensors;
}

std::vector<double> Model::hidden(const Tensors& tensors, const std::vector<int32_t>& ids, const std::vector<int32_t>& types) const {
  return run(*spec_, read_whole(*spec_, &tensors, nullptr), ids, types);
}

namespace {

Vector logits_of(const Spec& s, const Whole& w, const std::vector<int32_t>& ids) {
  const auto tokens = static_cast<int64_t>(ids.size());
  Vector x = run(s, w, ids, {});
  if (s.embed_dim != s.hidden) x = linear(x, tokens, w.project_out, {});
  Vector y = linear(x, tokens, s.tied ? w.embed : w.head, w.head_b);
  for (double& l : y) {
    l *= s.logit_scale;
    if (s.final_softcap > 0) l = s.final_softcap * std::tanh(l / s.final_softcap);
  }
  return y;
}

}  // namespace

std::vector<double> Model::logits(const Tensors& tensors, const std::vector<int32_t>& ids) const {
  return logits_of(*spec_, read_whole(*spec_, &tensors, nullptr), ids);
}

double Model::loss(const Tensors& tensors, const std::vector<std::vector<int32_t>>& sequences) const {
  const Whole w = read_whole(*spec_, &tensors, nullptr);
  double sum = 0;
  int64_t count = 0;
  for (const auto& ids : sequences) {
    const Vector y = logits_of(*spec_, w, ids);
    for (size_t t = 0; t + 1 < ids.size(); ++t, ++count) {
      const double* row = &y[t * at(spec_->vocab)];
      double largest = -INFINITY, all = 0;
      for (int64_t v = 0; v < spec_->vocab; ++v) largest = std::max(largest, row[v]);
      for (int64_t v = 0; v < spec_->vocab; ++v) all += std::exp(row[v] - largest);
      sum += largest + std::log(all) - row[ids[t + 1]];
    }
  }
  return sum / double(count);
}

}  // namespace thimble::reference
