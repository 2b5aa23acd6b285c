// Pruning: which weights become zero. Counts are exact: of n weights, round(fraction n) become zero, and of every m
// consecutive inputs of a row `keep` stay; of m' < m inputs at a row's end, at most `keep` stay. Of equal scores the
// first weight goes.
#pragma once

#include "quant/hessian.h"
#include "quant/spec.h"

namespace thimble {

// Sets the weights with the smallest |w| to zero: of the whole matrix, or of every row. w: [rows, cols].
void prune_magnitude(float* w, int64_t rows, int64_t cols, const Sparsity& sparsity, bool per_row, int threads);

// Wanda (Sun et al., arXiv 2306.11695): the smallest |w| * norm of its input, per row. norms: [cols].
void prune_wanda(float* w, int64_t rows, int64_t cols, const std::vector<float>& norms, const Sparsity& sparsity, int threads);

// SparseGPT (Frantar and Alistarh, arXiv 2301.00774): in blocks of 128 columns the weights with the smallest
// w² / U_cc² go, over all rows of a block together (n:m: per row and m columns, as compensated so far), and what
// that does to the outputs is compensated by later columns. factor.ok, without a permutation.
void prune_sparsegpt(float* w, int64_t rows, const InverseFactor& factor, const Sparsity& sparsity,
                     const KernelTable& kernels, int threads);

}  // namespace thimble
