// Weight formats, and the geometry of the packed tiles. The layout is the same on every machine, so a packed file is
// mapped and used as it is.
//
// Layout "rows": row-major f32, f16 or bf16, straight from a checkpoint.
// Layout "tiles": 16 rows x 32-bit lanes. W[rows, cols] is cut into tiles of 16 rows; the unit is a step, a 64-byte
// vector of 16 lanes; lane j belongs to row j and holds consecutive column codes, column n s + 4 i + b of step s in field
// i of byte b (n columns per step):
//   q8   4 codes per lane: byte b is column 4 s + b
//   q4   8 codes per lane: the low nibble of byte b is column 8 s + b, the high nibble column 8 s + 4 + b
//   q2   16 codes per lane: bits 2 i and 2 i + 1 of byte b are column 16 s + 4 i + b
// So one mask gives four neighbouring columns in the bytes of a lane, as products with int8 activations want them.
// Codes are unsigned; codes of 3 bits live in q4. A group is `group` consecutive columns of a row. Kinds of a group:
//   zero_points  w = scale * (code - zero), a u8 zero point per group
//   symmetric    the same with one zero point for the whole matrix, which is not stored per group
//   minimum      w = scale * code + min, min of the scales' type
// Arrays: codes [tiles][steps][64] bytes, scales [tiles][groups][16] f16 or f32, then zeros or mins likewise.
// Padding rows have scale 0 and min 0; padding columns carry the code of their group's zero point (kind minimum: 0).
#pragma once

#include <cstddef>
#include <cstdint>

namespace thimble {

enum class WeightFormat : uint8_t { f32, f16, bf16, q8, q4, q2 };
enum class GroupKind : uint8_t { zero_points, symmetric, minimum };

constexpr int64_t kTileRows = 16;

constexpr bool is_tiled(WeightFormat f) { return f >= WeightFormat::q8; }
constexpr int64_t format_bits(WeightFormat f) {
  return f == WeightFormat::f32 ? 32 : f == WeightFormat::q8 ? 8 : f == WeightFormat::q4 ? 4 : f == WeightFormat::q2 ? 2 : 16;
}
constexpr const char* format_name(WeightFormat f) {
  return f == WeightFormat::f32 ? "f32" : f == WeightFormat::f16 ? "f16" : f == WeightFormat::bf16 ? "bf16"
       : f == WeightFormat::q8 ? "q8" : f == WeightFormat::q4 ? "q4" : "q2";
}
// The smallest tile format that holds codes of so many bits (1..8).
constexpr WeightFormat tile_format(int bits) {
  return bits <= 2 ? WeightFormat::q2 : bits <= 4 ? WeightFormat::q4 : WeightFormat::q8;
}
constexpr int64_t step_columns(WeightFormat f) { return 32 / format_bits(f); }
// Columns are padded to this. Groups are multiples of it, too.
constexpr int64_t tile_col_align(WeightFormat f) { return f == WeightFormat::q2 ? 16 : 8; }

// Where a code lies: `byte` from the start of the tile, `shift` in it.
struct CodePlace {
  int64_t byte;
  int shift;
};
constexpr CodePlace code_place(WeightFormat f, int64_t lane, int64_t column) {
  const int64_t per_step = step_columns(f), within = column % per_step;
  return {column / per_step * 64 + lane * 4 + within % 4, static_cast<int>(within / 4 * format_bits(f))};
}

struct TileGeometry {
  int64_t tiles, padded_cols, steps, groups, group;
  size_t code_bytes, scale_bytes;
  size_t offset_bytes;  // of zero points or minima; symmetric: 0
  constexpr size_t total_bytes() const { return code_bytes + scale_bytes + offset_bytes; }
};

// group: 16, 32, 64, 128, or 0 for one group per row.
constexpr TileGeometry tile_geometry(WeightFormat f, int64_t rows, int64_t cols, int64_t group, bool scale_f32,
                                     GroupKind kind = GroupKind::zero_points) {
  TileGeometry g{};
  g.tiles = (rows + kTileRows - 1) / kTileRows;
  g.padded_cols = (cols + tile_col_align(f) - 1) / tile_col_align(f) * tile_col_align(f);
  g.steps = g.padded_cols / step_columns(f);
  g.group = group > 0 && group < g.padded_cols ? group : g.padded_cols;
  g.groups = (g.padded_cols + g.group - 1) / g.group;
  g.code_bytes = size_t(g.tiles) * size_t(g.steps) * 64;
  const size_t parameters = size_t(g.tiles) * size_t(g.groups) * 16;
  g.scale_bytes = parameters * (scale_f32 ? 4 : 2);
  g.offset_bytes = kind == GroupKind::zero_points ? parameters : kind == GroupKind::minimum ? g.scale_bytes : 0;
  return g;
}

// Bits per weight at group 128: f16 scale and u8 zero point add 24 / 128, a scale alone 16 / 128, f16 scale and minimum
// 32 / 128.
static_assert(tile_geometry(WeightFormat::q8, 16, 128, 128, false).total_bytes() * 8 == 16 * 128 * 8 + 16 * 24);
static_assert(tile_geometry(WeightFormat::q4, 16, 128, 128, false).total_bytes() * 8 == 16 * 128 * 4 + 16 * 24);
static_assert(tile_geometry(WeightFormat::q2, 16, 128, 128, false).total_bytes() * 8 == 16 * 128 * 2 + 16 * 24);
static_assert(tile_geometry(WeightFormat::q2, 16, 128, 128, false, GroupKind::symmetric).total_bytes() * 8 ==
              16 * 128 * 2 + 16 * 16);
static_assert(tile_geometry(WeightFormat::q4, 16, 128, 128, false, GroupKind::minimum).total_bytes() * 8 ==
              16 * 128 * 4 + 16 * 32);

}  // namespace thimble
