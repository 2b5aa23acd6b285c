// Graphs over sparse experts for the gradient tests. The logits stand so far apart that no difference changes a choice.
#pragma once

#include <string>
#include <vector>

#include "tensor/ops_experts.h"
#include "tests/tensor/ops_gradient.h"

namespace thimble::ops_test {

// [rows, experts]: in every row a permutation of multiples of 0.4.
inline std::vector<float> spread_logits(uint64_t seed, int64_t rows, int64_t experts) {
  Philox rng(seed, 4);
  std::vector<float> v;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> row;
    for (int64_t e = 0; e < experts; ++e) row.push_back(0.4f * static_cast<float>(e) - 0.7f);
    for (size_t e = row.size() - 1; e > 0; --e) std::swap(row[e], row[rng.below(e + 1)]);
    v.insert(v.end(), row.begin(), row.end());
  }
  return v;
}

// Gate, up and down of every expert, as leaves 2..: y = sum_i w_i down_i(silu(gate_i x) * up_i x).
inline Case expert_case(const std::string& name, int64_t rows, int64_t experts, int64_t k, bool input, bool router, bool weights) {
  constexpr int64_t kCols = 12, kInner = 20;
  Case c;
  c.name = name;
  c.leaves = {value(rows, kCols, 1, input), {Kind::value, rows, experts, spread_logits(2, rows, experts), router}};
  for (int64_t e = 0; e < experts; ++e)
    for (int i = 0; i < 3; ++i)
      c.leaves.push_back(weight(i == 2 ? kCols : kInner, i == 2 ? kInner : kCols, 10 + uint64_t(e) * 3 + uint64_t(i), weights));
  c.build = [experts, k](Graph& g) {
    const Routing r = route(g.ctx, g.x(1), k);
    std::vector<Weight*> w[3];
    for (int64_t e = 0; e < experts; ++e)
      for (size_t i = 0; i < 3; ++i) w[i].push_back(g.w(2 + static_cast<size_t>(e) * 3 + i));
    const Var x = expert_gather(g.ctx, g.x(0), r);
    const Var gate = expert_linear(g.ctx, x, r, w[0].data()), up = expert_linear(g.ctx, x, r, w[1].data());
    return expert_combine(g.ctx, expert_linear(g.ctx, gated(g.ctx, gate, up, Activation::silu), r, w[2].data()), r);
  };
  return c;
}

inline std::vector<Case> expert_cases() {
  std::vector<Case> cases = {
      expert_case("2 of 4 experts", 9, 4, 2, true, true, true),
      expert_case("1 row", 1, 3, 3, true, true, true),
      expert_case("3 of 5 experts, frozen experts", 17, 5, 3, true, true, false),
      expert_case("2 of 4 experts, frozen router", 9, 4, 2, true, false, true),
      expert_case("2 of 4 experts, frozen input", 9, 4, 2, false, true, true),
  };
  // The input is read again, so that its gradient is added to; the weights of the experts are read twice.
  Case twice = expert_case("experts with a second reader", 9, 4, 2, true, true, true);
  const Build once = twice.build;
  twice.build = [once](Graph& g) { return add(g.ctx, add(g.ctx, once(g), once(g)), g.x(0)); };
  twice.step = 0.01;
  cases.push_back(twice);
  return cases;
}

}  // namespace thimble::ops_test
