// How much an op computes and moves, from its shapes, for the zone that is open. Flops: a multiply-add is two, and what
// is done per element counts a fixed small number. Bytes: every operand once, as if nothing were in a cache yet. Cheap,
// and done only while a trace runs.
#pragma once

#include <cstdint>

#include "tensor/ops.h"
#include "tensor/trace.h"

namespace thimble {

// Of n elements.
inline void count_elements(int64_t n, double flops_each, double bytes_each) {
  if (tracing()) trace_work(double(n) * flops_each, double(n) * bytes_each);
}
// y[m, rows] (+)= x[m, cols] Wᵀ or dx (+)= dy W: the weight as it is stored.
inline void count_product(int64_t m, const Weight& w, bool accumulate) {
  if (!tracing()) return;
  const double in = double(m) * double(w.cols), out = double(m) * double(w.rows);
  trace_work(2.0 * double(m) * double(w.numel()),
             double(w.stored_bytes()) + 4 * (in + out) + (accumulate ? 4 * double(m) * double(w.rows) : 0));
}
// dw[rows, cols] (+)= dyᵀ x
inline void count_dw(int64_t m, const Weight& w) {
  if (!tracing()) return;
  trace_work(2.0 * double(m) * double(w.numel()),
             4.0 * double(m) * double(w.rows + w.cols) + (w.grad_written ? 8.0 : 4.0) * double(w.numel()));
}
// Only the pairs of query and key that see one another. Backward makes five products per pair instead of two.
void count_attention(const AttentionSpec& spec, bool backward);

}  // namespace thimble
