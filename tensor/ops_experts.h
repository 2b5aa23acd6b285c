// Sparse experts: every row of x goes to k of E experts. route() chooses them, expert_gather() copies the rows into slots
// sorted by expert, expert_linear() multiplies the slots of each expert with its own weight, and expert_combine() adds the
// k results of a row, weighted, in the order of their weights. A row's result depends neither on threads nor on the other
// rows. (Shazeer et al. 2017; the renormalised softmax of Mixtral, Jiang et al. 2024.)
#pragma once

#include <cstdint>

#include "tensor/ops.h"

namespace thimble {

// The experts of every row, kept outside of a block that is run again for backward: the second run takes the same ones
// whatever its logits are.
struct ExpertChoice {
  int32_t* chosen = nullptr;  // [rows * k]
  bool known = false;         // set by the first route()
};

// Slot s holds the pair p = pair[s], the choice p % k of row p / k. Lives in ctx.saved.
struct Routing {
  int64_t rows = 0, experts = 0, k = 0;
  Var weights;                     // [rows, k], falling in every row, sum 1
  const int32_t* chosen = nullptr; // [rows * k]: the expert of a pair
  const int32_t* slot = nullptr;   // [rows * k]: the slot of a pair
  const int32_t* pair = nullptr;   // [rows * k]: the pair of a slot
  const int32_t* begin = nullptr;  // [experts + 1]: the first slot of an expert; within one, slots are sorted by row
  int64_t slots() const { return rows * k; }
};

// logits [M, E]; 0 < k <= E. The k largest of each row, of equal ones those of lower index, and their softmax: the same as
// the softmax over all experts, cut to the k largest and divided by their sum. choice may be null.
Routing route(Context& ctx, Var logits, int64_t k, ExpertChoice* choice = nullptr);
// x [M, C] -> [M * k, C]
Var expert_gather(Context& ctx, Var x, const Routing& routing);
// x [M * k, C], w: one [N, C] per expert, any format -> [M * k, N]. packs: as in linear().
Var expert_linear(Context& ctx, Var x, const Routing& routing, Weight* const* w, bool packs = false);
// Several, as linears().
struct ExpertLinear {
  Var x;
  Weight* const* w;
  bool packs;
  Var y;  // the result
};
void expert_linears(Context& ctx, const Routing& routing, ExpertLinear* all, int count);
// y [M * k, C] -> [M, C]
Var expert_combine(Context& ctx, Var y, const Routing& routing);

}  // namespace thimble
