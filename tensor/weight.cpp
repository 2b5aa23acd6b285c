#include "tensor/weight.h"

#include <cstring>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble {

WeightView Weight::view() const {
  WeightView v{};
  v.data = data;
  v.scales = scales;
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
  }
  return v;
}

TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, int64_t rows, int64_t cols, int64_t group,
                       const uint8_t* codes, const uint8_t* zeros, const uint16_t* scales_f16, const float* scales_f32,
                       MemoryBudget* budget) {
  THIMBLE_CHECK(is_tiled(format) && (scales_f16 != nullptr) != (scales_f32 != nullptr));
  TileStorage s;
  Weight& w = s.weight;
  w.format = format;
  w.rows = rows;
  w.cols = cols;
  w.group = group;
  w.scale_f32 = scales_f32 != nullptr;
  const TileGeometry g = w.geometry();
  s.buffer = Buffer(g.total_bytes(), budget, "packed weight");
  auto* base = static_cast<uint8_t*>(s.buffer.data());
  uint8_t* tile_scales = base + g.code_bytes;
  uint8_t* tile_zeros = tile_scales + g.scale_bytes;
  w.data = base;
  w.scales = tile_scales;
  w.zeros = tile_zeros;
  const int64_t scale_size = w.scale_f32 ? 4 : 2;
  const auto* source = scales_f32 ? static_cast<const void*>(scales_f32) : static_cast<const void*>(scales_f16);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < g.groups; ++j) {
      const int64_t at = ((r / kTileRows) * g.groups + j) * kTileRows + r % kTileRows;
      std::memcpy(tile_scales + at * scale_size, static_cast<const uint8_t*>(source) + (r * g.groups + j) * scale_size,
                  size_t(scale_size));
      tile_zeros[at] = zeros[r * g.groups + j];
    }
  const PackCodesArgs args{rows, cols, codes, tile_zeros, g.group, g.groups, g.steps, base};
  (format == WeightFormat::q8 ? kernels.pack_q8 : kernels.pack_q4)(args);
  return s;
}

void gather_rows(const KernelTable& kernels, const Weight& weight, const int32_t* ids, int64_t n, float* out) {
  const EmbedArgs args{weight.view(), n, ids, out, weight.cols};
  switch (weight.format) {
    case WeightFormat::f32: kernels.embed_f32(args); break;
    case WeightFormat::f16: kernels.embed_f16(args); break;
    case WeightFormat::bf16: kernels.embed_bf16(args); break;
    case WeightFormat::q8: kernels.embed_q8(args); break;
    case WeightFormat::q4: kernels.embed_q4(args); break;
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
