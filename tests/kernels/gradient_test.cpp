// Backward kernels against central differences of a forward written here in double: sum over outputs of dy * y, one
// input moved at a time. On every supported tier, reference included; the manifest test cannot see an error they share.
#include <gtest/gtest.h>

#include <functional>

#include "kernels/isa.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {
namespace {

using Loss = std::function<double(const std::vector<double>&)>;

std::vector<float> normals(size_t n, uint64_t seed, float spread = 1.0f) {
  Random random(seed);
  std::vector<float> x(n);
  for (float& e : x) e = random.normal() * spread;
  return x;
}

std::vector<double> central_differences(const std::vector<float>& x, const Loss& loss) {
  std::vector<double> at(x.begin(), x.end()), gradient;
  for (size_t i = 0; i < x.size(); ++i) {
    const double keep = at[i], h = 1e-5;
    at[i] = keep + h;
    const double up = loss(at);
    at[i] = keep - h;
    gradient.push_back((up - loss(at)) / (2 * h));
    at[i] = keep;
  }
  return gradient;
}

// The differences are good to h² and to 1e-16 / h; the kernels to a few roundings of f32 of the largest terms.
void expect_near(const std::vector<double>& expected, const float* got, const std::string& what) {
  double largest = 1e-3;
  for (const double e : expected) largest = std::max(largest, std::abs(e));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(expected[i], got[i], 4e-6 * largest) << what << "[" << i << "]";
  }
}

void on_every_tier(const std::function<void(const KernelTable&)>& body) {
  for (int i = 0; i < kTierCount; ++i) {
    const Tier tier = static_cast<Tier>(i);
    if (!tier_supported(tier)) continue;
    SCOPED_TRACE(tier_name(tier));
    body(build_kernel_table(tier));
  }
}

double gelu_erf(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double relu(double x) { return x > 0 ? x : 0; }
double silu(double x) { return x / (1 + std::exp(-x)); }

struct ActivationCase {
  const char* name;
  double (*f)(double);
  UnaryBwdFn KernelTable::*bwd;
  GatedBwdFn KernelTable::*gated_bwd;
};
const ActivationCase kActivations[] = {
    {"gelu_erf", gelu_erf, &KernelTable::gelu_erf_bwd, &KernelTable::gelu_erf_gated_bwd},
    {"gelu_tanh", gelu_tanh, &KernelTable::gelu_tanh_bwd, &KernelTable::gelu_tanh_gated_bwd},
    {"relu", relu, &KernelTable::relu_bwd, &KernelTable::relu_gated_bwd},
    {"silu", silu, &KernelTable::silu_bwd, &KernelTable::silu_gated_bwd},
};

TEST(Gradient, Activations) {
  const size_t n = 77;
  const auto x = normals(n, 1, 2.0f), up = normals(n, 2), dy = normals(n, 3);
  for (const ActivationCase& c : kActivations) {
    const auto dx = central_differences(x, [&](const std::vector<double>& at) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += c.f(at[i]) * dy[i];
      return sum;
    });
    std::vector<double> d_gate, d_up;
    for (size_t i = 0; i < n; ++i) {
      d_gate.push_back(dx[i] * up[i]);
      d_up.push_back(c.f(x[i]) * dy[i]);
    }
    on_every_tier([&](const KernelTable& t) {
      std::vector<float> got(n), got_up(n);
      (t.*c.bwd)({static_cast<int64_t>(n), x.data(), dy.data(), got.data(), 0});
      expect_near(dx, got.data(), c.name);
      (t.*c.gated_bwd)({static_cast<int64_t>(n), x.data(), up.data(), dy.data(), got.data(), got_up.data()});
      expect_near(d_gate, got.data(), std::string(c.name) + " gate");
      expect_near(d_up, got_up.data(), std::string(c.name) + " up");
    });
  }
}

TEST(Gradient, Caps) {
  const size_t n = 77;
  const double cap = 1.5;
  const auto x = normals(n, 1, 2.0f), dy = normals(n, 3);
  for (const bool soft : {true, false}) {
    const auto f = [&](double v) { return soft ? cap * std::tanh(v / cap) : std::min(cap, std::max(-cap, v)); };
    const auto dx = central_differences(x, [&](const std::vector<double>& at) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += f(at[i]) * dy[i];
      return sum;
    });
    on_every_tier([&](const KernelTable& t) {
      std::vector<float> y(n), got(n);
      const auto count = static_cast<int64_t>(n);
      (soft ? t.softcap : t.clip)({count, static_cast<float>(cap), x.data(), y.data()});
      for (size_t i = 0; i < n; ++i) ASSERT_NEAR(y[i], f(x[i]), 1e-6);
      const float* v = soft ? y.data() : x.data();
      (soft ? t.softcap_bwd : t.clip_bwd)({count, static_cast<float>(cap), v, dy.data(), got.data(), 0});
      expect_near(dx, got.data(), soft ? "softcap" : "clip");
    });
  }
}

TEST(Gradient, Norms) {
  const size_t rows = 3, cols = 21;
  const double eps = 1e-3;
  const auto x = normals(rows * cols, 1, 2.0f), w = normals(cols, 2), dy = normals(rows * cols, 3);
  for (const bool layer : {false, true}) {
    const double offset = layer ? 0.0 : 1.0;
    std::vector<float> mean(rows), rstd(rows);
    const auto forward = [&](const std::vector<double>& at, const std::vector<double>& weight) {
      double sum = 0;
      for (size_t r = 0; r < rows; ++r) {
        double m = 0, square = 0;
        for (size_t c = 0; c < cols && layer; ++c) m += at[r * cols + c] / cols;
        for (size_t c = 0; c < cols; ++c) square += (at[r * cols + c] - m) * (at[r * cols + c] - m) / cols;
        const double s = 1 / std::sqrt(square + eps);
        mean[r] = static_cast<float>(m);
        rstd[r] = static_cast<float>(s);
        for (size_t c = 0; c < cols; ++c) sum += (at[r * cols + c] - m) * s * (weight[c] + offset) * dy[r * cols + c];
      }
      return sum;
    };
    const std::vector<double> wide_w(w.begin(), w.end()), wide_x(x.begin(), x.end());
    const auto dx = central_differences(x, [&](const std::vector<double>& at) { return forward(at, wide_w); });
    const auto dw = central_differences(w, [&](const std::vector<double>& at) { return forward(wide_x, at); });
    std::vector<double> db(cols, 0.0);
    for (size_t i = 0; i < rows * cols; ++i) db[i % cols] += dy[i];
    forward(wide_x, wide_w);
    on_every_tier([&](const KernelTable& t) {
      std::vector<float> got(rows * cols), got_w(cols, 0.0f), got_b(cols, 0.0f);
      (layer ? t.layer_norm_bwd : t.rms_norm_bwd)(
          {static_cast<int64_t>(rows), static_cast<int64_t>(cols), x.data(), w.data(), dy.data(), mean.data(),
           rstd.data(), got.data(), got_w.data(), layer ? got_b.data() : nullptr, static_cast<float>(offset), 0});
      expect_near(dx, got.data(), layer ? "layer_norm dx" : "rms_norm dx");
      expect_near(dw, got_w.data(), layer ? "layer_norm dw" : "rms_norm dw");
      if (layer) expect_near(db, got_b.data(), "layer_norm db");
    });
  }
}

TEST(Gradient, CrossEntropy) {
  const size_t cols = 35;
  const auto x = normals(cols, 5, 3.0f);
  const int32_t label = 11;
  const auto dx = central_differences(x, [&](const std::vector<double>& at) {
    double sum = 0;
    for (const double e : at) sum += std::exp(e);
    return 0.5 * (std::log(sum) - at[label]);
  });
  on_every_tier([&](const KernelTable& t) {
    std::vector<float> got(cols);
    double loss = 0;
    t.cross_entropy({1, static_cast<int64_t>(cols), x.data(), static_cast<int64_t>(cols), &label, got.data(), 0.5f,
                     &loss, nullptr});
    expect_near(dx, got.data(), "d_logits");
  });
}

// The inverse rotation is the transpose, hence the gradient.
TEST(Gradient, Rope) {
  const size_t n = 2 * 10;
  const auto x = normals(n, 6), dy = normals(n, 7);
  const float cos_row[] = {0.6f, 0.8f, -0.28f}, sin_row[] = {0.8f, -0.6f, 0.96f};
  const int32_t position = 0;
  for (const int32_t interleaved : {0, 1}) {
    const auto dx = central_differences(x, [&](const std::vector<double>& at) {
      double sum = 0;
      for (size_t h = 0; h < 2; ++h) {
        for (size_t d = 6; d < 10; ++d) sum += at[h * 10 + d] * dy[h * 10 + d];
        for (size_t j = 0; j < 3; ++j) {
          const size_t a = h * 10 + (interleaved ? 2 * j : j), b = h * 10 + (interleaved ? 2 * j + 1 : j + 3);
          sum += (at[a] * cos_row[j] - at[b] * sin_row[j]) * dy[a] + (at[b] * cos_row[j] + at[a] * sin_row[j]) * dy[b];
        }
      }
      return sum;
    });
    on_every_tier([&](const KernelTable& t) {
      std::vector<float> got(n);
      t.rope({1, 2, 10, 6, dy.data(), 20, got.data(), 20, cos_row, sin_row, &position, interleaved, 1});
      expect_near(dx, got.data(), "rope");
    });
  }
}

struct AttentionCase {
  const char* name;
  size_t tq, tk, group, head_dim, n_prefix;
  bool causal;
  int64_t window;
  double softcap;
  bool alibi, softmax_one;
};
const AttentionCase kAttentionCases[] = {
    {"plain", 5, 5, 1, 6, 0, false, 0, 0, false, false},
    {"causal", 7, 9, 1, 8, 0, true, 0, 0, false, false},
    {"gqa", 4, 6, 3, 5, 0, true, 0, 0, false, false},
    {"prefix", 4, 4, 2, 6, 3, true, 0, 0, false, false},
    {"window", 8, 10, 1, 4, 0, true, 3, 0, false, false},
    {"softcap", 5, 7, 2, 6, 0, true, 0, 2.0, false, false},
    {"alibi", 5, 7, 2, 6, 2, true, 0, 0, true, false},
    {"softmax_one", 5, 5, 1, 6, 0, true, 0, 0, false, true},
    {"everything", 6, 9, 2, 9, 2, true, 4, 3.0, true, true},
    {"two key blocks", 2, 140, 1, 3, 0, true, 0, 0, false, false},
};

TEST(Gradient, Attention) {
  for (const AttentionCase& c : kAttentionCases) {
    SCOPED_TRACE(c.name);
    const size_t D = c.head_dim, nq = c.tq * c.group * D, nk = c.tk * D, np = c.n_prefix * D, pos0 = c.tk - c.tq;
    const double scale = 0.7;
    const auto x = normals(nq + 2 * nk + 2 * np, 11), d_o = normals(nq, 12);
    const std::vector<float> slopes = {0.2f, 0.1f, 0.05f};
    const auto loss = [&](const std::vector<double>& at) {
      const double *q = at.data(), *k = q + nq, *v = k + nk, *pk = v + nk, *pv = pk + np;
      double sum = 0;
      for (size_t row = 0; row < c.tq * c.group; ++row) {
        const auto pos = static_cast<int64_t>(pos0 + row / c.group);
        std::vector<double> weight;
        std::vector<const double*> values;
        double total = c.softmax_one ? 1 : 0;
        const auto add = [&](const double* key, const double* value, double bias) {
          double s = 0;
          for (size_t d = 0; d < D; ++d) s += q[row * D + d] * key[d];
          s *= scale;
          if (c.softcap != 0) s = c.softcap * std::tanh(s / c.softcap);
          weight.push_back(std::exp(s + bias));
          values.push_back(value);
          total += weight.back();
        };
        for (size_t j = 0; j < c.n_prefix; ++j) add(pk + j * D, pv + j * D, 0);
        for (size_t j = 0; j < c.tk; ++j) {
          const auto key = static_cast<int64_t>(j);
          if ((c.causal && key > pos) || (c.window > 0 && key <= pos - c.window)) continue;
          add(k + j * D, v + j * D,
              c.alibi ? static_cast<double>(slopes[row % c.group]) * static_cast<double>(j) : 0.0);
        }
        for (size_t i = 0; i < weight.size(); ++i) {
          for (size_t d = 0; d < D; ++d) sum += weight[i] / total * values[i][d] * d_o[row * D + d];
        }
      }
      return sum;
    };
    const auto expected = central_differences(x, loss);
    on_every_tier([&](const KernelTable& t) {
      AttentionArgs a{};
      const auto head_dim = static_cast<int64_t>(D), group = static_cast<int64_t>(c.group);
      std::vector<float> o(nq), lse(c.tq * c.group), got(x.size(), 0.0f);
      std::vector<float> scratch(
          static_cast<size_t>(std::max(attention_scratch_floats(head_dim), attention_bwd_scratch_floats(head_dim))));
      a.q = x.data();
      a.q_row = a.o_row = group * head_dim;
      a.q_head = a.o_head = a.k_row = a.v_row = a.prefix_row = head_dim;
      a.k = x.data() + nq;
      a.v = a.k + nk;
      a.prefix_k = np ? a.v + nk : nullptr;
      a.prefix_v = np ? a.v + nk + np : nullptr;
      a.n_prefix = static_cast<int64_t>(c.n_prefix);
      a.o = o.data();
      a.lse = lse.data();
      a.lse_head = a.tq = static_cast<int64_t>(c.tq);
      a.tk = static_cast<int64_t>(c.tk);
      a.group = group;
      a.head_dim = head_dim;
      a.q_pos0 = static_cast<int64_t>(pos0);
      a.window = c.window;
      a.causal = c.causal;
      a.softmax_one = c.softmax_one;
      a.scale = static_cast<float>(scale);
      a.softcap = static_cast<float>(c.softcap);
      a.alibi = c.alibi ? slopes.data() : nullptr;
      a.scratch = scratch.data();
      t.attention(a);
      float* d = got.data();
      t.attention_bwd({a, d_o.data(), d, d + nq, d + nq + nk, head_dim, head_dim, np ? d + nq + 2 * nk : nullptr,
                       np ? d + nq + 2 * nk + np : nullptr, 0, a.tk});
      expect_near(expected, got.data(), "dq, dk, dv, d_prefix");
    });
  }
}

}  // namespace
}  // namespace thimble::testing
