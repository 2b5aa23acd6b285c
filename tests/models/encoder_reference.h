// An encoder in double precision, written from the published formulas of BERT (Devlin et al., 2019) and from nothing of the
// engine: x = LN(E_word[t] + E_type + E_pos); per layer x = LN(x + Wo softmax(q kᵀ / sqrt(d)) v), x = LN(x + W2 gelu(W1 x)).
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

namespace thimble::models_test {

using Matrix = std::vector<std::vector<double>>;

struct EncoderReference {
  int64_t layers = 0, heads = 0;
  int64_t first_position = 0;  // row of the position table of the first token; the token of that number - 1, which is
                               // padding, has the row before it and takes no position
  double eps = 1e-12;
  // By canonical name: word, pos, type, ln.w ln.b; N.q.w N.q.b ... N.k N.v N.o N.ln1 N.up N.down N.ln2; pool.w pool.b.
  std::map<std::string, Matrix> w;

  const std::vector<double>& vec(const std::string& name) const { return w.at(name)[0]; }

  static std::vector<double> layer_norm(const std::vector<double>& x, const std::vector<double>& g, const std::vector<double>& b, double eps) {
    double mean = 0, var = 0;
    for (const double v : x) mean += v / double(x.size());
    for (const double v : x) var += (v - mean) * (v - mean) / double(x.size());
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / std::sqrt(var + eps) * g[i] + b[i];
    return y;
  }
  std::vector<double> linear(const std::vector<double>& x, const std::string& name) const {
    const Matrix& m = w.at(name + ".w");
    std::vector<double> y = vec(name + ".b");
    for (size_t o = 0; o < m.size(); ++o)
      for (size_t i = 0; i < x.size(); ++i) y[o] += m[o][i] * x[i];
    return y;
  }
  Matrix forward(const std::vector<int32_t>& ids, const std::vector<int32_t>& types) const {
    Matrix x;
    size_t next = size_t(first_position);
    for (size_t t = 0; t < ids.size(); ++t) {
      std::vector<double> row = w.at("word")[size_t(ids[t])];
      const size_t place = first_position > 0 && ids[t] == first_position - 1 ? size_t(first_position) - 1 : next++;
      for (size_t c = 0; c < row.size(); ++c) {
        row[c] += w.at("pos")[place][c];
        if (w.count("type")) row[c] += w.at("type")[size_t(types[t])][c];
      }
      x.push_back(layer_norm(row, vec("ln.w"), vec("ln.b"), eps));
    }
    for (int64_t l = 0; l < layers; ++l) {
      const std::string p = std::to_string(l) + ".";
      Matrix q, k, v;
      for (const auto& row : x) {
        q.push_back(linear(row, p + "q"));
        k.push_back(linear(row, p + "k"));
        v.push_back(linear(row, p + "v"));
      }
      const size_t dim = x[0].size() / size_t(heads);
      for (size_t t = 0; t < x.size(); ++t) {
        std::vector<double> mixed(x[0].size(), 0.0);
        for (size_t h = 0; h < size_t(heads); ++h) {
          std::vector<double> e(x.size());
          double sum = 0;
          for (size_t j = 0; j < x.size(); ++j) {
            double s = 0;
            for (size_t c = h * dim; c < (h + 1) * dim; ++c) s += q[t][c] * k[j][c];
            sum += e[j] = std::exp(s / std::sqrt(double(dim)));
          }
          for (size_t j = 0; j < x.size(); ++j)
            for (size_t c = h * dim; c < (h + 1) * dim; ++c) mixed[c] += e[j] / sum * v[j][c];
        }
        std::vector<double> row = linear(mixed, p + "o");
        for (size_t c = 0; c < row.size(); ++c) row[c] += x[t][c];
        row = layer_norm(row, vec(p + "ln1.w"), vec(p + "ln1.b"), eps);
        std::vector<double> inner = linear(row, p + "up");
        for (double& u : inner) u = 0.5 * u * (1 + std::erf(u / std::sqrt(2.0)));
        std::vector<double> out = linear(inner, p + "down");
        for (size_t c = 0; c < row.size(); ++c) out[c] += row[c];
        q[t] = layer_norm(out, vec(p + "ln2.w"), vec(p + "ln2.b"), eps);  // q[t] is not needed any more
      }
      x = q;
    }
    return x;
  }
  std::vector<double> pooled(const Matrix& hidden) const {
    std::vector<double> y = linear(hidden[0], "pool");
    for (double& v : y) v = std::tanh(v);
    return y;
  }
};

}  // namespace thimble::models_test
