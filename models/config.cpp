#include "models/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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
  return p == PositionKind::rope ? "rope" : p == PositionKind::learned ? "learned" : "none";
}
const char* rope_scaling_name(RopeScaling s) {
  switch (s) {
    case RopeScaling::linear: return "linear";
    case RopeScaling::llama3: return "llama3";
    case RopeScaling::yarn: return "yarn";
    case RopeScaling::none: break;
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
  if (c.positions == PositionKind::rope && (c.rope.dims < 2 || c.rope.dims % 2 != 0 || c.rope.dims > c.head_dim))
    fail(fmt::format("field \"head_dim\" or \"rotary_pct\": {} rotary dimensions do not fit a head of {}: "
                     "expected an even number from 2 to the head dimension",
                     c.rope.dims, c.head_dim));
}

RopeFrequencies rope_frequencies(const RopeConfig& r) {
  RopeFrequencies f;
  const int64_t half = r.dims / 2;
  f.inv_freq.resize(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j) {
    double inv = 1.0 / std::pow(r.theta, 2.0 * double(j) / double(r.dims));
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
    const double low = std::max(std::floor(dimension(r.beta_fast)), 0.0);
    double high = std::min(std::ceil(dimension(r.beta_slow)), double(r.dims - 1));
    if (high == low) high += 0.001;
    for (int64_t j = 0; j < half; ++j) {
      const double ramp = std::clamp((double(j) - low) / (high - low), 0.0, 1.0);
      const double inv = 1.0 / std::pow(r.theta, 2.0 * double(j) / double(r.dims));
      f.inv_freq[size_t(j)] = static_cast<float>(inv / r.factor * ramp + inv * (1 - ramp));
    }
    f.attention_factor = static_cast<float>(r.attention_factor > 0 ? r.attention_factor : 0.1 * std::log(r.factor) + 1);
  }
  return f;
}

}  // namespace thimble
