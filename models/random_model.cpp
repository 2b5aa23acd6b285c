#include "models/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/error.h"

namespace thimble {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// f16 of a number of ordinary size, truncated; below that zero.
uint16_t f16_of(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u;
  const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xFF) - 112;
  return static_cast<uint16_t>(exponent <= 0 ? sign
                                             : sign | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3FFu));
}
uint16_t bf16_of(float x) { return static_cast<uint16_t>(bits_of(x) >> 16); }

void fill_rows(Weight& w, void* data, float spread, FastRandom& random) {
  const int64_t n = w.numel();
  if (w.format == WeightFormat::f32) {
    auto* p = static_cast<float*>(data);
    for (int64_t i = 0; i < n; ++i) p[i] = spread * random.uniform();
    return;
  }
  auto* p = static_cast<uint16_t*>(data);
  const bool half = w.format == WeightFormat::f16;
  for (int64_t i = 0; i < n; ++i) {
    const float x = spread * random.uniform();
    p[i] = half ? f16_of(x) : bf16_of(x);
  }
}

// Random bytes are random codes. Padding rows get scale 0, padding columns the code of the zero point
// (weight_format.h). The zero point is the middle of the codes for every kind, a minimum stands for the same.
void fill_tiles(Weight& w, void* data, float deviation, FastRandom& random) {
  const TileGeometry g = w.geometry();
  auto* codes = static_cast<uint8_t*>(data);
  for (size_t i = 0; i < g.code_bytes; i += 8) {
    const uint64_t draw = random.next();
    std::memcpy(codes + i, &draw, 8);  // code_bytes is a multiple of 64
  }
  const auto bits = static_cast<int>(format_bits(w.format));
  const bool has_min = w.kind == GroupKind::minimum;
  const auto middle = static_cast<uint8_t>(1 << (bits - 1)), padding = has_min ? uint8_t{0} : middle;
  for (int64_t c = w.cols; c < g.padded_cols; ++c)
    for (int64_t tile = 0; tile < g.tiles; ++tile)
      for (int64_t lane = 0; lane < kTileRows; ++lane) {
        const CodePlace place = code_place(w.format, lane, c);
        uint8_t& byte = codes[tile * g.steps * 64 + place.byte];
        byte = static_cast<uint8_t>((byte & ~(((1 << bits) - 1) << place.shift)) | padding << place.shift);
      }
  auto* scales = reinterpret_cast<uint16_t*>(codes + g.code_bytes);
  uint8_t* offsets = codes + g.code_bytes + g.scale_bytes;
  const auto levels = static_cast<float>(1 << bits);
  const float step = deviation / std::sqrt((levels * levels + 2) / 12);  // of codes around the middle, all as likely
  const uint16_t scale = f16_of(step), min = f16_of(-step * middle);
  for (int64_t tile = 0; tile < g.tiles; ++tile)
    for (int64_t group = 0; group < g.groups; ++group)
      for (int64_t lane = 0; lane < kTileRows; ++lane) {
        const int64_t at = (tile * g.groups + group) * kTileRows + lane;
        const bool inside = tile * kTileRows + lane < w.rows;
        scales[at] = inside ? scale : 0;
        if (has_min) reinterpret_cast<uint16_t*>(offsets)[at] = inside ? min : 0;
      }
  w.scales = scales;
  w.zero = w.kind == GroupKind::symmetric ? middle : uint8_t{0};
  w.mins = has_min ? offsets : nullptr;
  w.zeros = w.kind == GroupKind::zero_points ? offsets : nullptr;
  if (w.zeros) std::memset(offsets, middle, g.offset_bytes);
}

// The weight of a role without data; format and group as it will be stored.
Weight empty_weight(const RoleShape& shape, const StoredFormat& format) {
  Weight w;
  w.rows = shape.rows;
  w.cols = shape.cols;
  if (shape.vector) return w;
  w.format = format.format;
  w.group = is_tiled(w.format) ? format.group : 0;
  w.kind = format.kind;
  return w;
}

template <class Fn>
void for_each_role(const ModelConfig& config, Fn&& fn) {
  for (int r = 0; r < kRoleCount; ++r) {
    const auto role = static_cast<Role>(r);
    const RoleShape shape = role_shape(config, role);
    if (shape.rows == 0) continue;
    for_each_place(config, role, [&](int64_t place) { fn(role, place, shape); });
  }
}

}  // namespace

StoredFormat parse_stored_format(const std::string& text) {
  for (const WeightFormat f : {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16})
    if (text == format_name(f)) return {f, 0};
  for (const WeightFormat f : {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2}) {
    if (text == format_name(f)) return {f, 128};
    for (const int64_t group : {128, 64, 32, 0})
      for (const GroupKind kind : {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum})
        if (text == stored_format_name({f, group, kind})) return {f, group, kind};
  }
  throw Error(ErrorCode::usage, "--format: unknown format \"" + text + "\"",
              "valid: f32, f16, bf16, q8, q4, q2; with a group: q8_g128, q4_g128, q4_g64, q4_g32, q4_row; and a kind: q4_g32_sym, "
              "q4_g32_min");
}

std::string stored_format_name(const StoredFormat& format) {
  std::string name = format_name(format.format);
  if (is_tiled(format.format)) name += format.group > 0 ? "_g" + std::to_string(format.group) : "_row";
  if (format.kind != GroupKind::zero_points) name += format.kind == GroupKind::symmetric ? "_sym" : "_min";
  return name;
}

void fill_random(Weight& w, void* data, uint64_t seed) {
  FastRandom random(seed);
  const float deviation = 1.0f / std::sqrt(static_cast<float>(w.cols));
  w.data = data;
  if (is_tiled(w.format))
    fill_tiles(w, data, deviation, random);
  else
    fill_rows(w, data, 1.7f * deviation, random);
}

int64_t random_model_bytes(const ModelConfig& config, const StoredFormat& format) {
  int64_t bytes = 0;
  for_each_role(config, [&](Role, int64_t, const RoleShape& shape) {
    bytes += static_cast<int64_t>(empty_weight(shape, format).stored_bytes());
  });
  return bytes;
}

Model random_model(const std::string& name, const ShapeConfig& shape, const StoredFormat& format, uint64_t seed,
                   MemoryBudget* budget) {
  Model m;
  m.path = name;
  m.family = shape.family;
  m.config = shape.config;
  m.store = WeightStore(budget);
  m.weights.resize(m.config);
  uint64_t stream = seed << 20;
  for_each_role(m.config, [&](Role role, int64_t layer, const RoleShape& role_dims) {
    Weight& w = m.weights.at(role, layer);
    w = empty_weight(role_dims, format);
    void* data = m.store.allocate(w.stored_bytes());
    ++stream;
    if (role_dims.vector) {
      const std::string role_text = role_name(role);
      const bool norm_weight = role_text.find("norm") != std::string::npos && role_text.back() == 'w';
      std::fill_n(static_cast<float*>(data), w.cols, norm_weight ? static_cast<float>(1 - m.config.norm_offset) : 0.0f);
      w.data = data;
    } else {
      fill_random(w, data, stream);
    }
  });
  if (is_tiled(format.format)) m.quantization = "random " + stored_format_name(format);
  return m;
}

}  // namespace thimble
