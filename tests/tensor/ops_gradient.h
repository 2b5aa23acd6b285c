// The harness of the gradient tests: an op graph is built from leaves (values and weights), its outputs are weighed with
// a random probe into one double, and the tape's gradients are compared with differences of that double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "tensor/ops.h"
#include "tensor/ops_internal.h"
#include "tensor/rng.h"

namespace thimble::ops_test {

inline std::vector<float> uniform(uint64_t seed, int64_t n, double spread = 1) {
  Philox rng(seed, 1);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = static_cast<float>((rng.uniform() * 2 - 1) * spread);
  return v;
}

// Away from 0 by `gap`, where relu has its kink.
inline std::vector<float> gapped(uint64_t seed, int64_t n, float gap) {
  std::vector<float> v = uniform(seed, n);
  for (float& x : v) x += x < 0 ? -gap : gap;
  return v;
}

enum class Kind { value, weight };

struct Leaf {
  Kind kind;
  int64_t rows, cols;
  std::vector<float> data;
  bool wanted = true;  // false: frozen
};

inline Leaf value(int64_t rows, int64_t cols, uint64_t seed, bool wanted = true) {
  return {Kind::value, rows, cols, uniform(seed, rows * cols), wanted};
}
inline Leaf weight(int64_t rows, int64_t cols, uint64_t seed, bool wanted = true, double spread = 1) {
  return {Kind::weight, rows, cols, uniform(seed, rows * cols, spread), wanted};
}

// One evaluation: leaf i is vars[i] or &weights[i].
struct Graph {
  Context& ctx;
  std::vector<Var> vars;
  std::vector<Weight> weights;
  double loss = 0;       // for ops that make a number
  Var x(size_t i) const { return vars[i]; }
  Weight* w(size_t i) { return &weights[i]; }
};
using Build = std::function<Var(Graph&)>;  // a Var without data: the objective is graph.loss

struct Case {
  std::string name;
  std::vector<Leaf> leaves;
  Build build;
  double step = 0.02;  // of the differences; inputs move by up to twice this
};

inline bool wants(const Case& c) {
  return std::any_of(c.leaves.begin(), c.leaves.end(), [](const Leaf& l) { return l.wanted; });
}

// Fills the arenas with NaN, so that an op that reads what it did not write shows.
inline void poison(Context& ctx) {
  for (Arena* arena : {&ctx.saved, &ctx.grads, &ctx.scratch}) {
    const ArenaScope scope(*arena);
    constexpr size_t kBytes = size_t{1} << 21;
    std::memset(arena->allocate(kBytes, "poison"), 0xff, kBytes);
  }
}

struct Result {
  double objective = 0;
  double noise = 0;                         // 2-norm of the terms of the objective: what rounding scales with
  std::vector<std::vector<float>> grads;    // per leaf; empty for frozen ones
  std::set<Op> ops;
};

// Evaluates with the leaves moved by step * directions; record: with tape and backward.
inline Result evaluate(const KernelTable& kernels, int threads, const Case& c, const std::vector<std::vector<float>>* directions,
                       double step, bool record) {
  Context ctx(kernels, threads, nullptr);
  if (record) poison(ctx);
  Tape tape;
  if (record) ctx.tape = &tape;
  Graph g{ctx, {}, {}, 0};
  Result r;
  r.grads.resize(c.leaves.size());
  std::vector<std::vector<float>> moved(c.leaves.size());
  g.weights.resize(c.leaves.size());
  for (size_t i = 0; i < c.leaves.size(); ++i) {
    const Leaf& leaf = c.leaves[i];
    std::vector<float>& data = moved[i] = leaf.data;
    if (directions && !(*directions)[i].empty())
      for (size_t j = 0; j < data.size(); ++j) data[j] = static_cast<float>(double(data[j]) + step * double((*directions)[i][j]));
    Var v;
    v.t = Tensor::matrix(data.data(), leaf.rows, leaf.cols);
    Weight& w = g.weights[i];
    if (leaf.kind == Kind::value) {
      if (record && leaf.wanted) v.id = tape.add_value(v.t);
    } else {
      w.rows = leaf.rows;
      w.cols = leaf.cols;
      w.data = data.data();
      if (record && leaf.wanted) {
        r.grads[i].assign(data.size(), std::numeric_limits<float>::quiet_NaN());  // the first gradient overwrites
        w.grad = r.grads[i].data();
      }
    }
    g.vars.push_back(v);
  }
  const Var y = c.build(g);
  std::vector<float> probe;
  if (y.t.data) {
    probe = uniform(99, y.t.numel());
    for (size_t i = 0; i < probe.size(); ++i) {
      const double term = double(y.t.f32()[i]) * double(probe[i]);
      r.objective += term;
      r.noise += term * term;
    }
    r.noise = std::sqrt(r.noise);
  } else {
    r.objective = g.loss;
    r.noise = std::fabs(g.loss);
  }
  if (!record) return r;
  for (size_t i = 0; i < tape.node_count(); ++i) r.ops.insert(tape.node(i).op);
  if (y.id >= 0) {
    Tape::Value& out = tape.value(y.id);
    out.grad = probe.data();
    out.written = true;
  }
  run_backward(ctx, 0);
  for (size_t i = 0; i < c.leaves.size(); ++i) {
    const Leaf& leaf = c.leaves[i];
    if (!leaf.wanted || leaf.kind != Kind::value) continue;
    const float* grad = grad_of(ctx, g.vars[i].id);
    if (grad) r.grads[i].assign(grad, grad + leaf.rows * leaf.cols);
  }
  return r;
}

// Each wanted leaf along `directions` random directions: five-point differences of the objective against grad . direction.
inline void check_gradients(const KernelTable& kernels, const Case& c, int directions = 2) {
  const Result exact = evaluate(kernels, 3, c, nullptr, 0, true);
  for (size_t i = 0; i < c.leaves.size(); ++i) {
    const Leaf& leaf = c.leaves[i];
    if (!leaf.wanted) {
      EXPECT_TRUE(exact.grads[i].empty()) << c.name << ": frozen leaf " << i;
      continue;
    }
    ASSERT_EQ(exact.grads[i].size(), leaf.data.size()) << c.name << ": leaf " << i << " got no gradient";
    for (int n = 0; n < directions; ++n) {
      std::vector<std::vector<float>> d(c.leaves.size());
      d[i] = uniform(1000 + 17 * i + static_cast<uint64_t>(n), static_cast<int64_t>(leaf.data.size()));
      const auto at = [&](double steps) { return evaluate(kernels, 1, c, &d, steps * c.step, false).objective; };
      const double want = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * c.step);
      double got = 0, norm = 0, moved = 0;
      for (size_t j = 0; j < leaf.data.size(); ++j) {
        const double g = double(exact.grads[i][j]);
        got += g * double(d[i][j]);
        norm += g * g;
        moved += g * g * double(leaf.data[j]) * double(leaf.data[j]);
      }
      norm = std::sqrt(norm);
      // Rounding of outputs and of the moved inputs, both divided by the step; and 1e-4 for what h^4 leaves. The
      // projection on a random direction is of the size of the norm, so an error of 0.1 % in a gradient shows.
      constexpr double kEps = 1.2e-7;
      const double tolerance = 1e-4 * norm + 4 * kEps / c.step * (exact.noise + std::sqrt(moved));
      EXPECT_NEAR(got, want, tolerance) << c.name << ": leaf " << i << ", direction " << n << ", |g| " << norm << ", tier "
                                        << tier_name(kernels.tier);
      EXPECT_GT(norm, 0) << c.name << ": leaf " << i;
    }
  }
}

}  // namespace thimble::ops_test
