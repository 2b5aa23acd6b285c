// Weight formats, and the geometry of the packed tiles. The layout is the same on every machine, so a packed file is
// mapped and used as it is.
//
// Layout "rows": row-major f32, f16 or bf16, straight from a checkpoint.
// Layout "tiles": 16 rows x 32-bit lanes. W[rows, cols] is cut into tiles of 16 rows; the unit is a step, a 64-byte
// vector of 16 lanes; lane j belongs to row j and holds consecutive column codes:
//   q8   4 codes per lane: byte b of lane j in step s is the code of column 4 s + b
//   q4   8 codes per lane: the low nibble of byte b is column 8 s + b, the high nibble column 8 s + 4 + b
// Codes are unsigned. A group is `group` consecutive columns of a row: w = scale * (code - zero).
// Three arrays: codes [tiles][steps][64] bytes, scales [tiles][groups][16] f16 or f32, zeros [tiles][groups][16] u8.
// Padding rows have scale 0; padding columns carry the code of their group's zero point, so they add nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thimble {

enum class WeightFormat : uint8_t { f32, f16, bf16, q8, q4 };

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColAlign = 8;  // columns are padded to this, so that every format has whole steps

constexpr bool is_tiled(WeightFormat f) { return f == WeightFormat::q8 || f == WeightFormat::q4; }
constexpr int64_t format_bits(WeightFormat f) {
  return f == WeightFormat::f32 ? 32 : f == WeightFormat::q8 ? 8 : f == WeightFormat::q4 ? 4 : 16;
}
constexpr const char* format_name(WeightFormat f) {
  return f == WeightFormat::f32 ? "f32" : f == WeightFormat::f16 ? "f16" : f == WeightFormat::bf16 ? "bf16"
       : f == WeightFormat::q8 ? "q8" : "q4";
}

struct TileGeometry {
  int64_t tiles, padded_cols, steps, groups, group;
  size_t code_bytes, scale_bytes, zero_bytes;
  constexpr size_t total_bytes() const { return code_bytes + scale_bytes + zero_bytes; }
};

// group: 16, 32, 64, 128, or 0 for one group per row.
constexpr TileGeometry tile_geometry(WeightFormat f, int64_t rows, int64_t cols, int64_t group, bool scale_f32) {
  TileGeometry g{};
  g.tiles = (rows + kTileRows - 1) / kTileRows;
  g.padded_cols = (cols + kTileColAlign - 1) / kTileColAlign * kTileColAlign;
  g.steps = g.padded_cols / (f == WeightFormat::q8 ? 4 : 8);
  g.group = group > 0 && group < g.padded_cols ? group : g.padded_cols;
  g.groups = (g.padded_cols + g.group - 1) / g.group;
  g.code_bytes = size_t(g.tiles) * size_t(g.steps) * 64;
  g.scale_bytes = size_t(g.tiles) * size_t(g.groups) * 16 * (scale_f32 ? 4 : 2);
  g.zero_bytes = size_t(g.tiles) * size_t(g.groups) * 16;
  return g;
}

// Bits per weight at group 128, f16 scale and u8 zero point: 8 + 24/128 and 4 + 24/128.
static_assert(tile_geometry(WeightFormat::q8, 16, 128, 128, false).total_bytes() * 8 == 16 * 128 * 8 + 16 * 24);
static_assert(tile_geometry(WeightFormat::q4, 16, 128, 128, false).total_bytes() * 8 == 16 * 128 * 4 + 16 * 24);

}  // namespace thimble
