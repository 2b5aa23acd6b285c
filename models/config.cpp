#include "models/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/error.h"

namespace thimble {

const char* activation_name(Activation a) {
  switch (a) {
    case Activation::gelu_erf: return "gelu";
    case Activation::gelu_tanh: return "gelu_tanh";
    case Activation::relu: return "relu";
    case Activation::silu: break;
  }
  return "silu";
}
const char* norm_name(NormKind n) { return n == NormKind::rms ? "rms_norm" : "layer_norm"; }
const char* position_name(PositionKind p) {
  switch (p) {
    case PositionKind::rope: return "rope";
    case PositionKind::learned: return "learned";
    case PositionKind::alibi: return "alibi";
    case PositionKind::none: break;
  }
  return "none";
}
const char* rope_scaling_name(RopeScaling s) {
  switch (s) {
    case RopeScaling::linear: return "linear";
    case RopeScaling::dynamic: return "dynamic";
    case RopeScaling::longrope: return "longrope";
    case RopeScaling::llama3: return "llama3";
    case RopeScaling::yarn: return "yarn";
    case RopeScaling::none: break;
  }
  return "none";
}

const char* qk_norm_name(QkNorm n) {
  switch (n) {
    case QkNorm::head: return "head";
    case QkNorm::heads: return "heads";
    case QkNorm::whole: return "whole";
    case QkNorm::none: break;
  }
  return "none";
}

void check_config(const ModelConfig& c, const std::string& file) {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorCode::input, file + ": " + what, "check the model's config.json");
  };
  if (c.n_heads % c.n_kv_heads != 0)
    fail(fmt::format("field \"num_key_value_heads\": {} attention heads cannot be shared by {} key/value heads: expected a divisor",
                     c.n_heads, c.n_kv_heads));
  if (c.head_dim > 1024)
    fail(fmt::format("field \"head_dim\" (or hidden size / heads): {} is too large: expected at most 1024", c.head_dim));
  if (c.n_experts > 0 && (c.n_experts_used < 1 || c.n_experts_used > c.n_experts || !c.gated_mlp || c.mlp_bias))
    fail(fmt::format("fields \"num_local_experts\" and \"num_experts_per_tok\": a row cannot go to {} of {} experts", c.n_experts_used, c.n_experts));
  if (!c.window_layers.empty() && static_cast<int64_t>(c.window_layers.size()) != c.n_layers)
    fail(fmt::format("field \"layer_types\": {} entries: expected one for each of the {} layers", c.window_layers.size(), c.n_layers));
  if (c.positions != PositionKind::rope) return;
  for (const RopeConfig* r : {&c.rope, &c.rope_local}) {
    if (r == &c.rope_local && !c.local_rope) continue;
    if (r->dims < 2 || r->dims % 2 != 0 || r->dims > c.head_dim)
      fail(fmt::format("field \"head_dim\" or \"rotary_pct\": {} rotary dimensions do not fit a head of {}: "
                       "expected an even number from 2 to the head dimension",
                       r->dims, c.head_dim));
    if (r->scaling == RopeScaling::dynamic && r->dims < 4)
      fail(fmt::format("field \"rope_scaling\": dynamic scaling of {} rotary dimensions: expected at least 4", r->dims));
    const auto half = static_cast<size_t>(r->dims / 2);
    if (r->scaling == RopeScaling::longrope && (r->short_factors.size() != half || r->long_factors.size() != half))
      fail(fmt::format("fields \"short_factor\" and \"long_factor\" of rope_scaling have {} and {} entries: expected {}, half of "
                       "the rotary dimensions",
                       r->short_factors.size(), r->long_factors.size(), half));
  }
}

RopeFrequencies rope_frequencies(const RopeConfig& r, int64_t tokens) {
  RopeFrequencies f;
  const int64_t half = r.dims / 2;
  f.inv_freq.resize(static_cast<size_t>(half));
  double theta = r.theta;
  if (r.scaling == RopeScaling::dynamic) {
    const double known = double(r.original_max_positions), length = std::max(double(tokens), known);
    theta *= std::pow(r.factor * length / known - (r.factor - 1), double(r.dims) / double(r.dims - 2));
  }
  const std::vector<double>& extension = tokens > r.original_max_positions ? r.long_factors : r.short_factors;
  if (r.scaling == RopeScaling::longrope) f.attention_factor = static_cast<float>(r.attention_factor);
  for (int64_t j = 0; j < half; ++j) {
    double inv = 1.0 / std::pow(theta, 2.0 * double(j) / double(r.dims));
    if (r.scaling == RopeScaling::longrope) inv /= extension[size_t(j)];
    if (r.scaling == RopeScaling::linear) inv /= r.factor;
    if (r.scaling == RopeScaling::llama3) {
      const double wavelength = 2 * M_PI / inv, original = double(r.original_max_positions);
      const double s = (original / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
      if (wavelength > original / r.low_freq_factor)
        inv /= r.factor;
      else if (wavelength >= original / r.high_freq_factor)
        inv = (1 - s) * inv / r.factor + s * inv;
    }
    f.inv_freq[size_t(j)] = static_cast<float>(inv);
  }
  if (r.scaling == RopeScaling::yarn) {
    // The dimension whose wavelength makes `rotations` turns over the original context.
    const auto dimension = [&](double rotations) {
      return double(r.dims) * std::log(double(r.original_max_positions) / (rotations * 2 * M_PI)) / (2 * std::log(r.theta));
    };
    const double fast = dimension(r.beta_fast), slow = dimension(r.beta_slow);
    const double low = std::max(r.truncate ? std::floor(fast) : fast, 0.0);
    double high = std::min(r.truncate ? std::ceil(slow) : slow, double(r.dims - 1));
    if (high == low) high += 0.001;
    for (int64_t j = 0; j < half; ++j) {
      const double ramp = std::clamp((double(j) - low) / (high - low), 0.0, 1.0);
      const double inv = 1.0 / std::pow(r.theta, 2.0 * double(j) / double(r.dims));
      f.inv_freq[size_t(j)] = static_cast<float>(inv / r.factor * ramp + inv * (1 - ramp));
    }
    f.attention_factor = static_cast<float>(r.attention_factor > 0 ? r.attention_factor
                                             : r.factor > 1       ? 0.1 * std::log(r.factor) + 1
                                                                  : 1.0);
  }
  return f;
}

bool rope_changes(const ModelConfig& c, int64_t tokens, int64_t others) {
  if (c.positions != PositionKind::rope) return false;
  const auto differ = [&](const RopeConfig& r) { return rope_frequencies(r, tokens).inv_freq != rope_frequencies(r, others).inv_freq; };
  return differ(c.rope) || (c.local_rope && differ(c.rope_local));
}

std::vector<float> alibi_slopes(int64_t n_heads, bool to_bf16) {
  int64_t power = 1;
  while (2 * power <= n_heads) power *= 2;
  std::vector<float> slopes;
  for (int64_t h = 0; h < n_heads; ++h) {
    const double exponent = h < power ? 8.0 * double(h + 1) / double(power) : 4.0 * double(2 * (h - power) + 1) / double(power);
    auto slope = static_cast<float>(std::exp2(-exponent));
    if (to_bf16) {
      uint32_t bits;
      std::memcpy(&bits, &slope, 4);
      bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
      std::memcpy(&slope, &bits, 4);
    }
    slopes.push_back(slope);
  }
  return slopes;
}

}  // namespace thimble
