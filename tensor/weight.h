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
  const uint8_t* zeros = nullptr;  // tiles
  int64_t group = 0;               // tiles: columns per group; 0: one group per row
  bool scale_f32 = false;
  const int32_t* perm = nullptr;   // act-order: column c of the tiles multiplies input perm[c]; null: identity
  float* grad = nullptr;           // [rows, cols]; null: frozen. Only f32 rows train
  bool grad_written = false;       // false: the next gradient overwrites (once per optimizer step)

  explicit operator bool() const { return data != nullptr; }
  const float* f32() const { return static_cast<const float*>(data); }
  int64_t numel() const { return rows * cols; }
  TileGeometry geometry() const { return tile_geometry(format, rows, cols, group, scale_f32); }
  size_t stored_bytes() const {
    return is_tiled(format) ? geometry().total_bytes() + (perm ? size_t(cols) * 4 : 0)
                            : size_t(numel()) * size_t(format_bits(format)) / 8;
  }
  WeightView view() const;
};

// The three arrays of a tiled weight in one block of memory.
struct TileStorage {
  Buffer buffer;
  Weight weight;  // a view of `buffer`
};

// Packs row-major codes [rows][cols] (each < 2^bits), scales and zeros [rows][groups] into tiles.
// Exactly one of scales_f16 and scales_f32 is given.
TileStorage pack_tiles(const KernelTable& kernels, WeightFormat format, int64_t rows, int64_t cols, int64_t group,
                       const uint8_t* codes, const uint8_t* zeros, const uint16_t* scales_f16, const float* scales_f32,
                       MemoryBudget* budget);

// out[i] = W(ids[i], :) as f32, columns as stored (perm not undone). ids are in range.
void gather_rows(const KernelTable& kernels, const Weight& weight, const int32_t* ids, int64_t n, float* out);

// W as row-major f32 [rows, cols], columns in the original order (perm undone).
void dequantize(const KernelTable& kernels, const Weight& weight, float* out);

}  // namespace thimble
