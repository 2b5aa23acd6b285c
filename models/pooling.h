// From hidden states to one vector per sequence: what EmbedRecipe asks for, on the ops of tensor/ops_pool.
#pragma once

#include <cstdint>
#include <vector>

#include "models/embed_recipe.h"
#include "tensor/ops.h"

namespace thimble {

// Pooling, then Dense and Normalize steps.
class EmbedHead {
 public:
  // width: of the hidden states. The recipe outlives the head. Errors: input when a Dense module takes another width.
  EmbedHead(const EmbedRecipe& recipe, int64_t width);

  int64_t dimensions() const { return dimensions_; }
  // True when gradients flow through: a single pooling other than max, and no Dense module.
  bool differentiable() const;

  // hidden [M, width] of packed sequences -> [n_seqs, dimensions()]. skipped: rows at the start of each sequence that are read
  // but not pooled (at least the last row is); null: none. cu_seqlens outlives backward.
  Var run(Context& ctx, Var hidden, const int32_t* cu_seqlens, int64_t n_seqs, const int64_t* skipped = nullptr) const;
  // The steps alone, on rows that are pooled already.
  Var finish(Context& ctx, Var rows) const;

 private:
  Var pool(Context& ctx, Var hidden, const int32_t* cu_seqlens, int64_t n_seqs, const int64_t* skipped) const;

  const EmbedRecipe* recipe_;
  int64_t width_, dimensions_;
  mutable std::vector<Weight> weights_, biases_;  // of the Dense modules, in order
};

}  // namespace thimble
