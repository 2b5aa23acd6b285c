// GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and what the rounding of a column
// does to the outputs is compensated by the columns that are not rounded yet, so that |(W - W') x|² stays small.
#pragma once

#include "quant/hessian.h"
#include "quant/rtn.h"

namespace thimble {

struct GptqOptions {
  WeightSpec spec;
  // Every group's grid comes from the original weights, and groups are of neighbouring inputs whatever the order of
  // rounding. Without it a group's grid comes from the weights as compensated so far, groups follow the order of rounding,
  // and the result has a permutation when the factor has one and there are several groups.
  bool static_groups = true;
  bool clip = false;  // ranges shrunk as choose_shrink does
};

// w: row-major [rows, factor.cols]. factor.ok. Throws input for weights that are not finite.
QuantizedMatrix gptq(const float* w, int64_t rows, const InverseFactor& factor, const GptqOptions& options,
                     const KernelTable& kernels, int threads);

}  // namespace thimble
