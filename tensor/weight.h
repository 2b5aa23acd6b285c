// A weight is a value with a format: y = x Wᵀ and dx = dy W work on every one. A Weight is a view; the memory belongs to
// a MappedFile or a Buffer of the model. Vectors (norms, biases) are f32 with rows = 1.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/weight_format.h"
#include "tensor/arena.h"
#include "tensor/error.h"

namespace thimble {

struct WeightView;
struct KernelTable;

struct Weight {
  WeightFormat format = WeightFormat::f32;
  int64_t rows = 0, cols = 0;      // [output features, input features]
  const void* data = nullptr;      // rows: row-major elements; tiles: codes
  const void* scales = nullptr;    // tiles
  const void* mins = nullptr;      // tiles of kind minimum
  const uint8_t* zeros = nullptr;  // tiles of kind zero_points
  int64_t group = 0;               // tiles: columns per group; 0: one group per row
  GroupKind kind = GroupKind::zero_points;
  uint8_t zero = 0;                // tiles of kind symmetric: the zero point of all groups
  bool scale_f32 = false;          // and the minima
  const int32_t* perm = nullptr;   // act-order: column c of the tiles multiplies input perm[c]; null: identity
  float* grad = nullptr;           // [rows, cols]; null: frozen. Only f32 rows train
  bool grad_written = false;       // false: the next gradient overwrites (once per optimizer step)

  explicit operator bool() const { return data != nullptr; }
  const float* f32() const { return static_cast<const float*>(data); }
  int64_t numel() const { return rows * cols; }
  TileGeometry geometry() const { return tile_geometry(format, rows, cols, group, scale_f32, kind); }
  size_t stored_bytes() const {
    return is_tiled(format) ? geometry().total_bytes() + (perm ? size_t(cols) * 4 : 0)
                            : size_t(numel()) * size_t(format_bits(format)) / 8;
  }
  WeightView view() const;
};

// The arrays of a tiled weight in one block of memory.
struct TileStorage {
  Buffer buffer;
  Weight weight;  // a view of `buffer`
};

// A quantized matrix in row-major arrays: w = scale * (code - zero) + min.
struct TileSource {
  int64_t rows = 0, cols = 0;
  int64_t group = 0;                // columns per group; 0: one per row
  const uint8_t* codes = nullptr;   // [rows][cols], each < 2^bits
  const void* scales = nullptr;     // [rows][groups], f16 or f32
  bool scale_f32 = false;
  const uint8_t* zeros = nullptr;   // [rows][groups], or null
  const void* mins = nullptr;       // [rows][groups] of the scales' type, or null; at most one of zeros and mins
  uint8_t zero = 0;                 // of all groups when neither is given
};

// Packs into tiles. Zero points that are all the same are not stored: the kind of the result is symmetric then.
TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, const TileSource& source, MemoryBudget* budget);

// With zero points. Exactly one of scales_f16 and scales_f32 is given.
TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, int64_t rows, int64_t cols, int64_t group,
                       const uint8_t* codes, const uint8_t* zeros, const uint16_t* scales_f16, const float* scales_f32,
                       MemoryBudget* budget);

// The zero point of row r, group g, of tiles without minima.
inline uint8_t tile_zero(const Weight& w, const TileGeometry& geometry, int64_t r, int64_t g) {
  return w.zeros ? w.zeros[((r / kTileRows) * geometry.groups + g) * kTileRows + r % kTileRows] : w.zero;
}

// out[i] = W(ids[i], :) as f32, columns as stored (perm not undone). ids are in range.
void gather_rows(const KernelTable& kernels, const Weight& weight, const int32_t* ids, int64_t n, float* out);

// W as row-major f32 [rows, cols], columns in the original order (perm undone).
void dequantize(const KernelTable& kernels, const Weight& weight, float* out);

}  // namespace thimble
