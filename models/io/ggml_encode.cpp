#include "models/io/ggml_encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "models/io/ggml_blocks.h"
#include "models/io/half.h"
#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using io_detail::f16_to_f32;
using io_detail::f32_to_bf16;
using io_detail::f32_to_f16;

void store16(uint8_t* at, uint16_t v) {
  at[0] = static_cast<uint8_t>(v);
  at[1] = static_cast<uint8_t>(v >> 8);
}

void join_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 16; ++j) qs[j] = static_cast<uint8_t>(codes[j] | codes[j + 16] << 4);
}

// The scale comes from the value of largest magnitude, which becomes code 0.
void encode_q4_0(const float* x, uint8_t* p) {
  float largest = 0, signed_largest = 0;
  for (int j = 0; j < 32; ++j)
    if (std::fabs(x[j]) > largest) {
      largest = std::fabs(x[j]);
      signed_largest = x[j];
    }
  const float d = signed_largest / -8, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(p, f32_to_f16(d));
  uint8_t codes[32];
  for (int j = 0; j < 32; ++j) {
    // One rounding: ggml as compilers build it for machines with fused multiply-add, which decides halves.
    codes[j] = static_cast<uint8_t>(std::min(15, static_cast<int>(std::fma(x[j], inverse, 8.5f))));
  }
  join_nibbles(codes, p + 2);
}

void encode_q4_1(const float* x, uint8_t* p) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float d = (*high - *low) / 15, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(p, f32_to_f16(d));
  store16(p + 2, f32_to_f16(*low));
  uint8_t codes[32];
  for (int j = 0; j < 32; ++j)
    codes[j] = static_cast<uint8_t>(std::min(15, static_cast<int>((x[j] - *low) * inverse + 0.5f)));
  join_nibbles(codes, p + 4);
}

void encode_q8_0(const float* x, uint8_t* p) {
  float largest = 0;
  for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
  const float d = largest / 127, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(p, f32_to_f16(d));
  for (int j = 0; j < 32; ++j) p[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[j] * inverse)));
}

int clamp_round(float v, int low, int high) { return std::clamp(static_cast<int>(std::lrint(v)), low, high); }

struct Affine {
  float scale = 0, minimum = 0;  // w = scale * q - minimum, minimum >= 0
};

// Least weighted squares over codes 0..15: a start from the range, then several widths of the grid around it, each with
// the best scale and minimum for the codes that it gives.
Affine search_affine(const float* x, const float* weight, int n, int levels) {
  const auto [low_at, high_at] = std::minmax_element(x, x + n);
  const float low = std::min(*low_at, 0.0f), high = *high_at;
  if (high <= low) return {0, -low};
  const auto error = [&](float scale, float minimum) {
    double sum = 0;
    for (int i = 0; i < n; ++i) {
      const int q = clamp_round((x[i] + minimum) / scale, 0, levels);
      const double e = double(scale) * q - minimum - x[i];
      sum += weight[i] * e * e;
    }
    return sum;
  };
  Affine best{(high - low) / static_cast<float>(levels), -low};
  double least = error(best.scale, best.minimum);
  for (int step = -10; step <= 10; ++step) {
    const float inverse = (static_cast<float>(levels) + 0.1f * static_cast<float>(step)) / (high - low);
    double w = 0, q1 = 0, q2 = 0, x1 = 0, xq = 0;
    for (int i = 0; i < n; ++i) {
      const double q = clamp_round((x[i] - low) * inverse, 0, levels);
      w += weight[i];
      q1 += weight[i] * q;
      q2 += weight[i] * q * q;
      x1 += double(weight[i]) * x[i];
      xq += double(weight[i]) * x[i] * q;
    }
    const double determinant = w * q2 - q1 * q1;
    if (determinant <= 0) continue;
    double scale = (w * xq - x1 * q1) / determinant, minimum = -(q2 * x1 - q1 * xq) / determinant;
    if (minimum < 0) {  // a minimum above zero cannot be stored
      minimum = 0;
      scale = q2 > 0 ? xq / q2 : 0;
    }
    if (scale <= 0) continue;
    const double e = error(static_cast<float>(scale), static_cast<float>(minimum));
    if (e < least) {
      least = e;
      best = {static_cast<float>(scale), static_cast<float>(minimum)};
    }
  }
  return best;
}

void encode_q4_k(const float* x, uint8_t* p) {
  Affine sub[8];
  float largest_scale = 0, largest_minimum = 0;
  for (int g = 0; g < 8; ++g) {
    const float* v = x + 32 * g;
    float weight[32], squares = 0;
    for (int i = 0; i < 32; ++i) squares += v[i] * v[i];
    const float mean = std::sqrt(squares / 32);
    for (int i = 0; i < 32; ++i) weight[i] = mean + std::fabs(v[i]);  // large weights count more, small ones still do
    sub[g] = search_affine(v, weight, 32, 15);
    largest_scale = std::max(largest_scale, sub[g].scale);
    largest_minimum = std::max(largest_minimum, sub[g].minimum);
  }
  const uint16_t d_bits = f32_to_f16(largest_scale / 63), m_bits = f32_to_f16(largest_minimum / 63);
  const float d = f16_to_f32(d_bits), dmin = f16_to_f32(m_bits);
  uint8_t scales[8], minima[8], codes[256];
  for (int g = 0; g < 8; ++g) {
    scales[g] = static_cast<uint8_t>(d > 0 ? clamp_round(sub[g].scale / d, 0, 63) : 0);
    minima[g] = static_cast<uint8_t>(dmin > 0 ? clamp_round(sub[g].minimum / dmin, 0, 63) : 0);
    const float scale = d * static_cast<float>(scales[g]), minimum = dmin * static_cast<float>(minima[g]);
    for (int i = 0; i < 32; ++i)
      codes[32 * g + i] = static_cast<uint8_t>(scale > 0 ? clamp_round((x[32 * g + i] + minimum) / scale, 0, 15) : 0);
  }
  store16(p, d_bits);
  store16(p + 2, m_bits);
  uint8_t* s = p + 4;
  for (int j = 0; j < 4; ++j) {
    s[j] = static_cast<uint8_t>(scales[j] | scales[j + 4] >> 4 << 6);
    s[j + 4] = static_cast<uint8_t>(minima[j] | minima[j + 4] >> 4 << 6);
    s[j + 8] = static_cast<uint8_t>((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
  }
  for (int i = 0; i < 128; ++i) {
    const int at = i / 32 * 64 + i % 32;
    p[16 + i] = static_cast<uint8_t>(codes[at] | codes[at + 32] << 4);
  }
}

// A scale for codes -32..31 around zero. The value of largest magnitude decides the sign, since the negative end
// reaches one further.
float search_scale(const float* x, int n) {
  float largest = 0, signed_largest = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > largest) {
      largest = std::fabs(x[i]);
      signed_largest = x[i];
    }
  if (largest < 1e-30f) return 0;
  float best = 0;
  double most = -1;
  for (int step = -9; step <= 9; ++step) {
    const float inverse = -(32 + 0.1f * static_cast<float>(step)) / signed_largest;
    double xq = 0, qq = 0;
    for (int i = 0; i < n; ++i) {
      const double q = clamp_round(x[i] * inverse, -32, 31), w = double(x[i]) * x[i];
      xq += w * x[i] * q;
      qq += w * q * q;
    }
    // The least error for these codes is the constant sum of w x^2 less xq^2 / qq.
    if (qq > 0 && xq * xq / qq > most) {
      most = xq * xq / qq;
      best = static_cast<float>(xq / qq);
    }
  }
  return best;
}

void encode_q6_k(const float* x, uint8_t* p) {
  float sub[16], largest = 0, signed_largest = 0;
  for (int g = 0; g < 16; ++g) {
    sub[g] = search_scale(x + 16 * g, 16);
    if (std::fabs(sub[g]) > largest) {
      largest = std::fabs(sub[g]);
      signed_largest = sub[g];
    }
  }
  std::memset(p, 0, 210);
  const uint16_t d_bits = f32_to_f16(signed_largest / -128);
  const float d = f16_to_f32(d_bits);
  store16(p + 208, d_bits);
  uint8_t codes[256];
  for (int g = 0; g < 16; ++g) {
    const int sc = d != 0 ? clamp_round(sub[g] / d, -128, 127) : 0;
    p[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(sc));
    const float scale = d * static_cast<float>(sc);
    for (int i = 0; i < 16; ++i)
      codes[16 * g + i] = static_cast<uint8_t>((scale != 0 ? clamp_round(x[16 * g + i] / scale, -32, 31) : 0) + 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int l = i % 32, row = i % 128 / 32;
    uint8_t &ql = p[i / 128 * 64 + l + row % 2 * 32], &qh = p[128 + i / 128 * 32 + l];
    ql = static_cast<uint8_t>(ql | (codes[i] & 15) << row / 2 * 4);
    qh = static_cast<uint8_t>(qh | codes[i] >> 4 << row * 2);
  }
}

constexpr GgmlType kEncodable[] = {GgmlType::f32,  GgmlType::f16,  GgmlType::bf16, GgmlType::q8_0,
                                   GgmlType::q4_0, GgmlType::q4_1, GgmlType::q4_k, GgmlType::q6_k};

}  // namespace

bool ggml_is_encodable(GgmlType type) {
  return std::find(std::begin(kEncodable), std::end(kEncodable), type) != std::end(kEncodable);
}

GgmlType ggml_type_from_name(const std::string& name) {
  std::string upper = name;
  for (char& c : upper)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  for (GgmlType type : kEncodable)
    if (upper == ggml_type_info(type).name) return type;
  throw Error(ErrorCode::usage, "GGUF type " + quote_for_message(name) + " cannot be written",
              "choose one of f32 f16 bf16 q8_0 q4_0 q4_1 q4_k q6_k");
}

void encode_ggml(GgmlType type, const float* in, int64_t elements, std::byte* out, const std::string& name) {
  const GgmlTypeInfo& info = ggml_type_info(type);
  THIMBLE_CHECK(ggml_is_encodable(type) && elements % info.elements == 0);
  auto* p = reinterpret_cast<uint8_t*>(out);
  if (type == GgmlType::f32) {
    std::memcpy(out, in, static_cast<size_t>(elements) * sizeof(float));
    return;
  }
  if (info.elements == 1) {
    for (int64_t i = 0; i < elements; ++i, p += 2)
      store16(p, type == GgmlType::f16 ? f32_to_f16(in[i]) : f32_to_bf16(in[i]));
    return;
  }
  for (int64_t i = 0; i < elements; ++i)
    if (!std::isfinite(in[i]))
      throw Error(ErrorCode::input,
                  fmt::format("tensor {}: element {} is {}: it cannot be quantized", quote_for_message(name), i, in[i]),
                  "convert to f32 or f16 to keep such values, or repair the model");
  for (int64_t at = 0; at < elements; at += info.elements, p += info.bytes) {
    switch (type) {
      case GgmlType::q4_0:
        encode_q4_0(in + at, p);
        break;
      case GgmlType::q4_1:
        encode_q4_1(in + at, p);
        break;
      case GgmlType::q8_0:
        encode_q8_0(in + at, p);
        break;
      case GgmlType::q4_k:
        encode_q4_k(in + at, p);
        break;
      default:
        encode_q6_k(in + at, p);
    }
  }
}

bool encode_ggml_codes(GgmlType type, const CodedLinear& q, std::byte* out) {
  const bool four = type == GgmlType::q4_0 && q.bits == 4, eight = type == GgmlType::q8_0 && q.bits == 8;
  const int zero = four ? 8 : 128;
  if ((!four && !eight) || q.scales_f16.empty() || !q.mins.empty() || !q.perm.empty() || !q.dense.empty() ||
      q.in % 32 != 0 || (q.groups > 1 && q.group_size % 32 != 0))
    return false;
  if (q.zeros.empty() ? q.zero != zero
                      : std::any_of(q.zeros.begin(), q.zeros.end(), [&](uint8_t z) { return z != zero; }))
    return false;
  auto* p = reinterpret_cast<uint8_t*>(out);
  for (int64_t o = 0; o < q.out; ++o)
    for (int64_t c = 0; c < q.in; c += 32, p += ggml_type_info(type).bytes) {
      const uint8_t* codes = &q.codes[static_cast<size_t>(o * q.in + c)];
      store16(p, q.scales_f16[static_cast<size_t>(o * q.groups + (q.groups == 1 ? 0 : c / q.group_size))]);
      if (four)
        join_nibbles(codes, p + 2);
      else
        for (int j = 0; j < 32; ++j) p[2 + j] = codes[j] ^ 0x80;
    }
  return true;
}

}  // namespace thimble
