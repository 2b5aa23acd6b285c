#include "tensor/weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble {

WeightView Weight::view() const {
  WeightView v{};
  v.data = data;
  v.scales = scales;
  v.mins = mins;
  v.zeros = zeros;
  v.rows = rows;
  v.cols = cols;
  v.ld = cols;
  if (is_tiled(format)) {
    const TileGeometry g = geometry();
    v.group = g.group;
    v.groups = g.groups;
    v.steps = g.steps;
    v.scale_f32 = scale_f32;
    v.zero = zero;
  }
  return v;
}

TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, const TileSource& source, MemoryBudget* budget) {
  THIMBLE_CHECK(is_tiled(format) && source.scales && !(source.zeros && source.mins));
  TileStorage s;
  Weight& w = s.weight;
  w.format = format;
  w.rows = source.rows;
  w.cols = source.cols;
  w.group = source.group;
  w.scale_f32 = source.scale_f32;
  w.kind = GroupKind::symmetric;  // how many groups there are does not depend on it
  const int64_t groups = w.geometry().groups, parameters = source.rows * groups;
  const bool differ = source.zeros && std::any_of(source.zeros, source.zeros + parameters,
                                                  [&](uint8_t zero) { return zero != source.zeros[0]; });
  w.kind = source.mins ? GroupKind::minimum : differ ? GroupKind::zero_points : GroupKind::symmetric;
  w.zero = source.mins || differ ? 0 : source.zeros && parameters > 0 ? source.zeros[0] : source.zero;
  const TileGeometry g = w.geometry();
  s.buffer = Buffer(g.total_bytes(), budget, "packed weight");
  auto* base = static_cast<uint8_t*>(s.buffer.data());
  uint8_t* tile_scales = base + g.code_bytes;
  uint8_t* tile_offsets = tile_scales + g.scale_bytes;
  w.data = base;
  w.scales = tile_scales;
  if (w.kind == GroupKind::zero_points) w.zeros = tile_offsets;
  if (w.kind == GroupKind::minimum) w.mins = tile_offsets;
  // Padding rows keep the zeros of the fresh buffer.
  const auto place = [&](const void* from, uint8_t* to, int64_t size) {
    for (int64_t r = 0; r < source.rows; ++r)
      for (int64_t j = 0; j < groups; ++j)
        std::memcpy(to + (((r / kTileRows) * groups + j) * kTileRows + r % kTileRows) * size,
                    static_cast<const uint8_t*>(from) + (r * groups + j) * size, size_t(size));
  };
  const int64_t scale_size = w.scale_f32 ? 4 : 2;
  place(source.scales, tile_scales, scale_size);
  if (w.zeros) place(source.zeros, tile_offsets, 1);
  if (w.mins) place(source.mins, tile_offsets, scale_size);
  const PackCodesArgs args{w.rows, w.cols, source.codes, w.zeros, g.group, g.groups, g.steps, w.zero, base};
  (format == WeightFormat::q8 ? kernels.pack_q8 : format == WeightFormat::q4 ? kernels.pack_q4 : kernels.pack_q2)(args);
  return s;
}

TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, int64_t rows, int64_t cols, int64_t group,
                       const uint8_t* codes, const uint8_t* zeros, const uint16_t* scales_f16, const float* scales_f32,
                       MemoryBudget* budget) {
  THIMBLE_CHECK((scales_f16 != nullptr) != (scales_f32 != nullptr));
  TileSource source;
  source.rows = rows;
  source.cols = cols;
  source.group = group;
  source.codes = codes;
  source.zeros = zeros;
  source.scales = scales_f32 ? static_cast<const void*>(scales_f32) : scales_f16;
  source.scale_f32 = scales_f32 != nullptr;
  return pack_tiles(kernels, format, source, budget);
}

void gather_rows(const KernelTable& kernels, const Weight& weight, const int32_t* ids, int64_t n, float* out) {
  const EmbedArgs args{weight.view(), n, ids, out, weight.cols};
  switch (weight.format) {
    case WeightFormat::f32: kernels.embed_f32(args); break;
    case WeightFormat::f16: kernels.embed_f16(args); break;
    case WeightFormat::bf16: kernels.embed_bf16(args); break;
    case WeightFormat::q8: kernels.embed_q8(args); break;
    case WeightFormat::q4: kernels.embed_q4(args); break;
    case WeightFormat::q2: kernels.embed_q2(args); break;
  }
}

void dequantize(const KernelTable& kernels, const Weight& weight, float* out) {
  std::vector<int32_t> ids(static_cast<size_t>(weight.rows));
  for (int64_t r = 0; r < weight.rows; ++r) ids[size_t(r)] = static_cast<int32_t>(r);
  gather_rows(kernels, weight, ids.data(), weight.rows, out);
  if (!weight.perm) return;
  std::vector<float> row(static_cast<size_t>(weight.cols));
  for (int64_t r = 0; r < weight.rows; ++r) {
    float* w = out + r * weight.cols;
    for (int64_t c = 0; c < weight.cols; ++c) row[size_t(weight.perm[c])] = w[c];
    std::memcpy(w, row.data(), row.size() * sizeof(float));
  }
}

}  // namespace thimble
