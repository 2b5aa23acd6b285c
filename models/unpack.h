// From a model in memory back to the tensors of a file: codes and scales out of tiles, rows in the order of Hugging Face's
// files. What writers of packed formats and tools that stream share.
#pragma once

#include <string>

#include "models/io/coded_linear.h"
#include "models/model.h"

namespace thimble {

// Where row `row` of a query or key matrix of a model with neighbouring rotary pairs (2j, 2j + 1) stands in the order
// with halves (j, j + head_dim / 2); the row itself for other models.
int64_t rotary_file_row(const ModelConfig& config, int64_t row);
// Whether rows move at all: the model's pairs are not those of its family's Hugging Face files.
inline bool moves_rotary_rows(const ModelConfig& config) {
  return config.positions == PositionKind::rope && config.rope.interleaved != config.rope.hf_interleaved;
}
// Puts the rows of a query or key matrix into the file's order.
void order_rotary_rows(const ModelConfig& config, ExportedTensor* matrix);

// Row of the file for row r of a part of a rule.
int64_t file_row(const ModelConfig& config, const TensorRule& rule, size_t part, int64_t r);

// True when the parts of a rule are tiles in the same groups, all with minima or none: together they are one linear of a
// file.
bool is_one_grid(const Model& model, const TensorRule& rule, int64_t place);

// The codes of such a linear; rows as in the file, columns as in the tiles (with perm). Scales are f16 where f16 holds them.
CodedLinear unpack_linear(const Model& model, const TensorRule& rule, int64_t place);

// Of rows; of tiles: f32.
SafetensorsDtype dtype_of(WeightFormat format);
// The dtype that the model holds a tensor of the file in; of tiles: f32.
SafetensorsDtype stored_dtype(const Model& model, const TensorRule& rule, int64_t place);
// A tensor in the file's layout, as f32, f16 or bf16; exact when it comes from there.
std::string tensor_bytes(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t place,
                         int64_t block, SafetensorsDtype dtype);
// n values; exact when they come from there. out: n elements.
void write_floats(const KernelTable& kernels, const float* values, int64_t n, SafetensorsDtype dtype, void* out);

}  // namespace thimble
