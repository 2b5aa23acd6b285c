// Problems of the elementwise, conversion and row signatures. Slots whose every output is one stated
// sequence of roundings must agree bit for bit (tolerance 0). The others get a tolerance from the error of the
// approximations stated in kernels/simd/math.h and from gamma_n = n 2^-24 per chain of n roundings, evaluated in double
// on the inputs.
#pragma once

#include "tests/kernels/problems_gemm.h"

namespace thimble::testing {

constexpr double kRound = 0x1p-24;  // largest relative error of one rounding to f32
constexpr double kTiny = 2e-36;     // below this, results pass through subnormals or a bounded exponent

inline Guarded<float> normal_buffer(int64_t n, int64_t misalign, Random& random, float spread = 1.0f) {
  Guarded<float> b(n, misalign);
  for (int64_t i = 0; i < n; ++i) b[i] = random.normal() * spread;
  return b;
}

template <class T>
std::vector<T> copy_of(const Guarded<T>& b) {
  return std::vector<T>(b.data(), b.data() + b.size());
}

template <class T>
void restore(Guarded<T>& b, const std::vector<T>& from) {
  std::copy(from.begin(), from.end(), b.data());
}

inline std::vector<Shape> length_shapes() {
  std::vector<Shape> shapes;
  for (int64_t n : {0, 1, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1000}) shapes.push_back(make_shape({{"n", n}}));
  return shapes;
}

// What an activation is worth in double, and how far an evaluation in f32 may be off: `f` and `df` for its value and
// derivative at x, when exp is good to 1 ulp and its argument carries a rounding per unit of size.
struct ActivationError {
  double f, df;
};

inline ActivationError activation_error(const std::string& name, double x) {
  if (name.find("relu") == 0) return {0, 0};
  if (name.find("gelu_erf") == 0) {
    const double cdf = 0.5 * std::erfc(-x * std::sqrt(0.5)), density = std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    const double ulps = (6 + x * x) * 2 * kRound;
    return {ulps * std::abs(x) * cdf + kTiny, ulps * (cdf + std::abs(x) * density) + kTiny};
  }
  const bool tanh_form = name.find("gelu_tanh") == 0;
  const double z = tanh_form ? 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x) : x;
  const double dz = tanh_form ? 2 * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x) : 1;
  const double s = 1 / (1 + std::exp(-z)), rest = 1 / (1 + std::exp(z));
  const double ulps = (8 + (tanh_form ? 2 * std::abs(z) : 0.0)) * 2 * kRound;
  return {ulps * std::abs(x) * s + kTiny, ulps * s * (1 + std::abs(x) * dz * rest) + kTiny};
}

template <>
struct Problem<UnaryFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : name_(slot.name) {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random, 4.0f);
    y_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(UnaryFn fn) { fn({x_.size(), x_.data(), y_.data()}); }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;
    for (int64_t i = 0; i < x_.size(); ++i) tolerance.push_back(activation_error(name_, x_[i]).f);
    return {whole_buffer("y", y_, tolerance)};
  }
  bool guards_intact() const { return x_.intact() && y_.intact(); }
  double flops() const { return static_cast<double>(x_.size()); }
  double bytes() const { return 8.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  std::string name_;
  Guarded<float> x_, y_;
};

template <>
struct Problem<UnaryBwdFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const Shape& s : length_shapes()) {
      for (int64_t accumulate : {0, 1}) shapes.push_back(make_shape({{"n", s.dims[0]}, {"accumulate", accumulate}}));
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}, {"accumulate", 0}}), make_shape({{"n", 1 << 22}, {"accumulate", 0}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : name_(slot.name), accumulate_(static_cast<int32_t>(s.dims[1])) {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random, 4.0f);
    dy_ = normal_buffer(s.dims[0], misalign, random);
    dx_ = normal_buffer(s.dims[0], misalign, random);
    dx0_ = copy_of(dx_);
  }
  void refill() { restore(dx_, dx0_); }
  void call(UnaryBwdFn fn) {
    fn({x_.size(), x_.data(), dy_.data(), dx_.data(), accumulate_});
  }
  void run(UnaryBwdFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;
    for (int64_t i = 0; i < x_.size(); ++i) {
      const double step =
          accumulate_ ? 2 * kRound * (std::abs(dx_[i]) + 2 * std::abs(dy_[i])) : 2 * kRound * std::abs(dx_[i]);
      tolerance.push_back(activation_error(name_, x_[i]).df * std::abs(dy_[i]) + step + kTiny);
    }
    return {whole_buffer("dx", dx_, tolerance)};
  }
  bool guards_intact() const { return x_.intact() && dy_.intact() && dx_.intact(); }
  double flops() const { return static_cast<double>(x_.size()); }
  double bytes() const { return 12.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  std::string name_;
  int32_t accumulate_;
  Guarded<float> x_, dy_, dx_;
  std::vector<float> dx0_;
};

template <>
struct Problem<GatedFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : name_(slot.name) {
    Random random(seed);
    gate_ = normal_buffer(s.dims[0], misalign, random, 4.0f);
    up_ = normal_buffer(s.dims[0], misalign, random);
    y_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(GatedFn fn) { fn({gate_.size(), gate_.data(), up_.data(), y_.data()}); }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;
    for (int64_t i = 0; i < gate_.size(); ++i) {
      tolerance.push_back(activation_error(name_, gate_[i]).f * std::abs(up_[i]) + 2 * kRound * std::abs(y_[i]) +
                          kTiny);
    }
    return {whole_buffer("y", y_, tolerance)};
  }
  bool guards_intact() const { return gate_.intact() && up_.intact() && y_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(gate_.size()); }
  double bytes() const { return 12.0 * static_cast<double>(gate_.size()); }
  double written() const { return 4.0 * static_cast<double>(gate_.size()); }

 private:
  std::string name_;
  Guarded<float> gate_, up_, y_;
};

template <>
struct Problem<GatedBwdFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : name_(slot.name) {
    Random random(seed);
    gate_ = normal_buffer(s.dims[0], misalign, random, 4.0f);
    up_ = normal_buffer(s.dims[0], misalign, random);
    dy_ = normal_buffer(s.dims[0], misalign, random);
    d_gate_ = Guarded<float>(s.dims[0], misalign);
    d_up_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(GatedBwdFn fn) { fn({gate_.size(), gate_.data(), up_.data(), dy_.data(), d_gate_.data(), d_up_.data()}); }
  std::vector<Output> outputs() const {
    std::vector<double> gate, up;
    for (int64_t i = 0; i < gate_.size(); ++i) {
      const ActivationError e = activation_error(name_, gate_[i]);
      gate.push_back((e.df * std::abs(up_[i]) + kTiny) * std::abs(dy_[i]) + 4 * kRound * std::abs(d_gate_[i]) + kTiny);
      up.push_back(e.f * std::abs(dy_[i]) + 2 * kRound * std::abs(d_up_[i]) + kTiny);
    }
    return {whole_buffer("d_gate", d_gate_, gate), whole_buffer("d_up", d_up_, up)};
  }
  bool guards_intact() const {
    return gate_.intact() && up_.intact() && dy_.intact() && d_gate_.intact() && d_up_.intact();
  }
  double flops() const { return 4.0 * static_cast<double>(gate_.size()); }
  double bytes() const { return 20.0 * static_cast<double>(gate_.size()); }
  double written() const { return 8.0 * static_cast<double>(gate_.size()); }

 private:
  std::string name_;
  Guarded<float> gate_, up_, dy_, d_gate_, d_up_;
};

template <>
struct Problem<BinaryFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    a_ = normal_buffer(s.dims[0], misalign, random);
    b_ = normal_buffer(s.dims[0], misalign, random);
    y_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(BinaryFn fn) { fn({a_.size(), a_.data(), b_.data(), y_.data()}); }
  std::vector<Output> outputs() const { return {whole_buffer("y", y_)}; }
  bool guards_intact() const { return a_.intact() && b_.intact() && y_.intact(); }
  double flops() const { return static_cast<double>(a_.size()); }
  double bytes() const { return 12.0 * static_cast<double>(a_.size()); }
  double written() const { return 4.0 * static_cast<double>(a_.size()); }

 private:
  Guarded<float> a_, b_, y_;
};

template <>
struct Problem<AxpyFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random);
    y_ = normal_buffer(s.dims[0], misalign, random);
    y0_ = copy_of(y_);
  }
  void refill() { restore(y_, y0_); }
  void call(AxpyFn fn) {
    fn({x_.size(), 0.7f, x_.data(), y_.data()});
  }
  void run(AxpyFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const { return {whole_buffer("y", y_)}; }
  bool guards_intact() const { return x_.intact() && y_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(x_.size()); }
  double bytes() const { return 12.0 * static_cast<double>(x_.size()); }
  double updated() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  Guarded<float> x_, y_;
  std::vector<float> y0_;
};

template <>
struct Problem<ScaleFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random);
    y_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(ScaleFn fn) { fn({x_.size(), -0.3f, x_.data(), y_.data()}); }
  std::vector<Output> outputs() const { return {whole_buffer("y", y_)}; }
  bool guards_intact() const { return x_.intact() && y_.intact(); }
  double flops() const { return static_cast<double>(x_.size()); }
  double bytes() const { return 8.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  Guarded<float> x_, y_;
};

template <>
struct Problem<CapFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : soft_(slot.name[0] == 's') {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random, 2.0f);
    y_ = Guarded<float>(s.dims[0], misalign);
  }
  void run(CapFn fn) { fn({x_.size(), 1.7f, x_.data(), y_.data()}); }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;  // tanh to 2 ulp, and three roundings
    for (int64_t i = 0; i < y_.size(); ++i) tolerance.push_back(soft_ ? 8 * kRound * std::abs(y_[i]) + kTiny : 0);
    return {whole_buffer("y", y_, tolerance)};
  }
  bool guards_intact() const { return x_.intact() && y_.intact(); }
  double flops() const { return (soft_ ? 20.0 : 2.0) * static_cast<double>(x_.size()); }
  double bytes() const { return 8.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  bool soft_;
  Guarded<float> x_, y_;
};

template <>
struct Problem<CapBwdFn> {
  static constexpr float kCap = 1.7f;
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (int64_t n : {0, 1, 7, 16, 17, 33, 1000})
      for (int64_t accumulate : {0, 1}) shapes.push_back(make_shape({{"n", n}, {"acc", accumulate}}));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}, {"acc", 0}}), make_shape({{"n", 1 << 22}, {"acc", 0}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : soft_(slot.name[0] == 's'), accumulate_(static_cast<int32_t>(s.dims[1])) {
    Random random(seed);
    v_ = normal_buffer(s.dims[0], misalign, random, 2.0f);
    for (int64_t i = 0; i < v_.size(); i += 5) v_[i] = i % 2 ? kCap : -kCap;
    for (int64_t i = 0; i < v_.size() && soft_; ++i) v_[i] = std::min(kCap, std::max(-kCap, v_[i]));
    dy_ = normal_buffer(s.dims[0], misalign, random);
    dx_ = normal_buffer(s.dims[0], misalign, random);
    dx0_ = copy_of(dx_);
  }
  void run(CapBwdFn fn) {
    restore(dx_, dx0_);
    fn({v_.size(), kCap, v_.data(), dy_.data(), dx_.data(), accumulate_});
  }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;
    for (int64_t i = 0; i < dx_.size(); ++i)
      tolerance.push_back(soft_ ? 6 * kRound * std::abs(dy_[i]) + 2 * kRound * std::abs(dx_[i]) + kTiny : 0);
    return {whole_buffer("dx", dx_, tolerance)};
  }
  bool guards_intact() const { return v_.intact() && dy_.intact() && dx_.intact(); }
  double flops() const { return 4.0 * static_cast<double>(v_.size()); }
  double bytes() const { return (accumulate_ ? 16.0 : 12.0) * static_cast<double>(v_.size()); }
  double written() const { return accumulate_ ? 0.0 : 4.0 * static_cast<double>(v_.size()); }

 private:
  bool soft_;
  int32_t accumulate_;
  Guarded<float> v_, dy_, dx_;
  std::vector<float> dx0_;
};

// Strides beyond the row for the tests; the long rows of benches lie as those of the ops.
inline int64_t row_stride(int64_t cols) { return cols < 1024 ? cols + 3 : cols; }

inline std::vector<Shape> matrix_shapes() {
  std::vector<Shape> shapes;
  const int64_t sizes[][2] = {{0, 5},  {3, 0},  {1, 1},  {2, 15},  {3, 16},  {5, 17},
                              {4, 33}, {7, 64}, {9, 67}, {3, 130}, {2, 1000}};
  for (const auto& s : sizes) shapes.push_back(make_shape({{"rows", s[0]}, {"cols", s[1]}}));
  return shapes;
}
inline std::vector<Shape> matrix_bench_shapes() {
  return {make_shape({{"rows", 16}, {"cols", 2048}}), make_shape({{"rows", 4096}, {"cols", 1024}})};
}

template <>
struct Problem<BiasFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return matrix_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return matrix_bench_shapes(); }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign)
      : rows_(s.dims[0]), cols_(s.dims[1]), ld_(row_stride(s.dims[1])) {
    Random random(seed);
    x_ = normal_buffer(rows_ * ld_, misalign, random);
    bias_ = normal_buffer(cols_, misalign, random);
    x0_ = copy_of(x_);
  }
  void refill() { restore(x_, x0_); }
  void call(BiasFn fn) {
    fn({rows_, cols_, x_.data(), ld_, bias_.data()});
  }
  void run(BiasFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const { return {whole_buffer("x", x_)}; }
  bool guards_intact() const { return x_.intact() && bias_.intact(); }
  double flops() const { return static_cast<double>(rows_ * cols_); }
  double bytes() const { return 8.0 * static_cast<double>(rows_ * cols_); }
  double updated() const { return 4.0 * static_cast<double>(rows_ * cols_); }

 private:
  int64_t rows_, cols_, ld_;
  Guarded<float> x_, bias_;
  std::vector<float> x0_;
};

template <>
struct Problem<ColSumFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const Shape& s : matrix_shapes()) {
      for (int64_t accumulate : {0, 1}) {
        shapes.push_back(make_shape({{"rows", s.dims[0]}, {"cols", s.dims[1]}, {"accumulate", accumulate}}));
      }
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"rows", 16}, {"cols", 2048}, {"accumulate", 1}}),
            make_shape({{"rows", 4096}, {"cols", 1024}, {"accumulate", 1}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign)
      : rows_(s.dims[0]), cols_(s.dims[1]), ld_(row_stride(s.dims[1])), accumulate_(static_cast<int32_t>(s.dims[2])) {
    Random random(seed);
    x_ = normal_buffer(rows_ * ld_, misalign, random);
    out_ = normal_buffer(cols_, misalign, random);
    out0_ = copy_of(out_);
  }
  void refill() { restore(out_, out0_); }
  void call(ColSumFn fn) {
    fn({rows_, cols_, x_.data(), ld_, out_.data(), accumulate_});
  }
  void run(ColSumFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const { return {whole_buffer("out", out_)}; }
  bool guards_intact() const { return x_.intact() && out_.intact(); }
  double flops() const { return static_cast<double>(rows_ * cols_); }
  double bytes() const { return 4.0 * static_cast<double>(rows_ * cols_); }

 private:
  int64_t rows_, cols_, ld_;
  int32_t accumulate_;
  Guarded<float> x_, out_;
  std::vector<float> out0_;
};

template <>
struct Problem<SumSquaresFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    x_ = normal_buffer(s.dims[0], misalign, random);
    out_ = Guarded<double>(1);
  }
  void run(SumSquaresFn fn) {
    out_[0] = -1;
    fn({x_.size(), x_.data(), out_.data()});
  }
  std::vector<Output> outputs() const { return {whole_buffer("out", out_)}; }
  bool guards_intact() const { return x_.intact() && out_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(x_.size()); }
  double bytes() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  Guarded<float> x_;
  Guarded<double> out_;
};

template <>
struct Problem<ConvertFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : narrow_(std::string(slot.name).find("f32_to") == 0) {
    Random random(seed);
    const int64_t n = s.dims[0];
    wide_ = Guarded<float>(n, misalign);
    half_ = Guarded<uint16_t>(n, misalign);
    for (int64_t i = 0; i < n; ++i) {
      wide_[i] = std::ldexp(random.normal(), static_cast<int>(random.below(60)) - 30);
      half_[i] = static_cast<uint16_t>(random.next() & 0xBBFF);  // any sign, finite as f16 and as bf16
    }
  }
  void run(ConvertFn fn) {
    if (narrow_) {
      fn({wide_.size(), wide_.data(), half_.data()});
    } else {
      fn({wide_.size(), half_.data(), wide_.data()});
    }
  }
  std::vector<Output> outputs() const {
    return {narrow_ ? whole_buffer("halves", half_) : whole_buffer("floats", wide_)};
  }
  bool guards_intact() const { return wide_.intact() && half_.intact(); }
  double flops() const { return static_cast<double>(wide_.size()); }
  double bytes() const { return 6.0 * static_cast<double>(wide_.size()); }
  double written() const { return (narrow_ ? 2.0 : 4.0) * static_cast<double>(wide_.size()); }

 private:
  bool narrow_;
  Guarded<float> wide_;
  Guarded<uint16_t> half_;
};

template <>
struct Problem<NormFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const Shape& s : matrix_shapes()) {
      if (s.dims[1] == 0) continue;
      for (int64_t parameters : {0, 1}) {
        shapes.push_back(make_shape({{"rows", s.dims[0]}, {"cols", s.dims[1]}, {"parameters", parameters}}));
      }
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"rows", 16}, {"cols", 2048}, {"parameters", 1}}),
            make_shape({{"rows", 4096}, {"cols", 1024}, {"parameters", 1}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : layer_(std::string(slot.name) == "layer_norm"),
        parameters_(s.dims[2] != 0),
        rows_(s.dims[0]),
        cols_(s.dims[1]) {
    Random random(seed);
    x_ = normal_buffer(rows_ * cols_, misalign, random, 3.0f);
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] += 0.5f;
    w_ = normal_buffer(cols_, misalign, random);
    b_ = normal_buffer(cols_, misalign, random);
    y_ = Guarded<float>(rows_ * cols_, misalign);
    mean_ = Guarded<float>(rows_, misalign);
    rstd_ = Guarded<float>(rows_, misalign);
  }
  void run(NormFn fn) {
    fn({rows_, cols_, x_.data(), parameters_ ? w_.data() : nullptr, parameters_ ? b_.data() : nullptr, y_.data(),
        layer_ ? mean_.data() : nullptr, rstd_.data(), kEps, kOffset});
  }
  std::vector<Output> outputs() const {
    std::vector<double> y, mean;
    for (int64_t r = 0; r < rows_; ++r) {
      double size = 0;
      for (int64_t c = 0; c < cols_; ++c) size += std::abs(x_[r * cols_ + c]) / static_cast<double>(cols_);
      mean.push_back(2 * kRound * size);
      for (int64_t c = 0; c < cols_; ++c) {
        const double f = !parameters_ ? 1 : std::abs(w_[c]) + (layer_ ? 0 : std::abs(kOffset));
        const double span = (std::abs(x_[r * cols_ + c]) + (layer_ ? size : 0)) * rstd_[r] * f;
        y.push_back(kRound * (8 * span + (layer_ && parameters_ ? 2 * std::abs(b_[c]) : 0)));
      }
    }
    std::vector<double> rstd;
    for (int64_t r = 0; r < rows_; ++r) rstd.push_back(3 * kRound * rstd_[r]);
    return {whole_buffer("y", y_, y), whole_buffer("mean", mean_, mean), whole_buffer("rstd", rstd_, rstd)};
  }
  bool guards_intact() const {
    return x_.intact() && w_.intact() && b_.intact() && y_.intact() && mean_.intact() && rstd_.intact();
  }
  double flops() const { return 4.0 * static_cast<double>(x_.size()); }
  double bytes() const { return 8.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  static constexpr float kEps = 1e-5f, kOffset = 1.0f;
  bool layer_, parameters_;
  int64_t rows_, cols_;
  Guarded<float> x_, w_, b_, y_, mean_, rstd_;
};

template <>
struct Problem<NormBwdFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const Shape& s : matrix_shapes()) {
      if (s.dims[1] == 0) continue;
      for (int64_t accumulate : {0, 1}) {
        shapes.push_back(
            make_shape({{"rows", s.dims[0]}, {"cols", s.dims[1]}, {"accumulate", accumulate}, {"dw", 1}, {"dx", 1}}));
      }
    }
    shapes.push_back(make_shape({{"rows", 3}, {"cols", 37}, {"accumulate", 0}, {"dw", 0}, {"dx", 1}}));
    shapes.push_back(make_shape({{"rows", 3}, {"cols", 37}, {"accumulate", 0}, {"dw", 1}, {"dx", 0}}));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"rows", 16}, {"cols", 2048}, {"accumulate", 0}, {"dw", 1}, {"dx", 1}}),
            make_shape({{"rows", 4096}, {"cols", 1024}, {"accumulate", 0}, {"dw", 1}, {"dx", 1}})};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : layer_(std::string(slot.name) == "layer_norm_bwd"),
        rows_(s.dims[0]),
        cols_(s.dims[1]),
        accumulate_(static_cast<int32_t>(s.dims[2])),
        with_dw_(s.dims[3] != 0),
        with_dx_(s.dims[4] != 0) {
    Random random(seed);
    x_ = normal_buffer(rows_ * cols_, misalign, random, 3.0f);
    w_ = normal_buffer(cols_, misalign, random);
    dy_ = normal_buffer(rows_ * cols_, misalign, random);
    mean_ = normal_buffer(rows_, misalign, random);
    rstd_ = Guarded<float>(rows_, misalign);
    for (int64_t r = 0; r < rows_; ++r) rstd_[r] = 0.2f + random.uniform();
    dx_ = normal_buffer(rows_ * cols_, misalign, random);
    dw_ = normal_buffer(cols_, misalign, random);
    db_ = normal_buffer(cols_, misalign, random);
    dx0_ = copy_of(dx_);
    dw0_ = copy_of(dw_);
    db0_ = copy_of(db_);
  }
  void refill() {
    restore(dx_, dx0_);
    restore(dw_, dw0_);
    restore(db_, db0_);
  }
  void call(NormBwdFn fn) {
    fn({rows_, cols_, x_.data(), w_.data(), dy_.data(), layer_ ? mean_.data() : nullptr, rstd_.data(),
        with_dx_ ? dx_.data() : nullptr, with_dw_ ? dw_.data() : nullptr, with_dw_ && layer_ ? db_.data() : nullptr,
        kOffset, accumulate_});
  }
  void run(NormBwdFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const {
    std::vector<double> dx, dw(static_cast<size_t>(cols_)), db(static_cast<size_t>(cols_));
    const double chain = 2 * static_cast<double>(rows_ + 2) * kRound;
    for (int64_t c = 0; c < cols_; ++c) {
      dw[static_cast<size_t>(c)] = chain * std::abs(dw0_[static_cast<size_t>(c)]);
      db[static_cast<size_t>(c)] = chain * std::abs(db0_[static_cast<size_t>(c)]);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const double mean = layer_ ? std::abs(mean_[r]) : 0.0, rstd = rstd_[r];
      double g_mean = 0, gn_mean = 0;
      const auto size_n = [&](int64_t c) { return (std::abs(x_[r * cols_ + c]) + mean) * rstd; };
      const auto size_g = [&](int64_t c) {
        return std::abs(dy_[r * cols_ + c]) * (std::abs(w_[c]) + (layer_ ? 0.0 : std::abs(kOffset)));
      };
      for (int64_t c = 0; c < cols_; ++c) {
        g_mean += size_g(c) / static_cast<double>(cols_);
        gn_mean += size_g(c) * size_n(c) / static_cast<double>(cols_);
        const double dy = std::abs(dy_[r * cols_ + c]);
        dw[static_cast<size_t>(c)] += (chain + 4 * kRound) * dy * size_n(c);
        db[static_cast<size_t>(c)] += chain * dy;
      }
      // Each factor carries at most three roundings, and each product or difference adds one.
      for (int64_t c = 0; c < cols_; ++c) {
        const double size = rstd * (size_g(c) + size_n(c) * gn_mean + (layer_ ? g_mean : 0.0));
        dx.push_back(kRound *
                     (12 * size + (accumulate_ ? 2 * std::abs(dx0_[static_cast<size_t>(r * cols_ + c)]) : 0.0)));
      }
    }
    return {whole_buffer("dx", dx_, dx), whole_buffer("dw", dw_, dw), whole_buffer("db", db_, db)};
  }
  bool guards_intact() const {
    return x_.intact() && w_.intact() && dy_.intact() && mean_.intact() && rstd_.intact() && dx_.intact() &&
           dw_.intact() && db_.intact();
  }
  double flops() const { return 10.0 * static_cast<double>(x_.size()); }
  double bytes() const { return 12.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  static constexpr float kOffset = 1.0f;
  bool layer_;
  int64_t rows_, cols_;
  int32_t accumulate_;
  bool with_dw_, with_dx_;
  Guarded<float> x_, w_, dy_, mean_, rstd_, dx_, dw_, db_;
  std::vector<float> dx0_, dw0_, db0_;
};

// Per row of logits: the probabilities in double, and the relative error that exp(t - max) may have when t and max are
// rounded to f32 and exp is good to 1 ulp.
struct SoftmaxTruth {
  std::vector<double> p, error;
  double mean_error = 0;
  SoftmaxTruth(const float* x, int64_t n, double scale) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t i = 0; i < n; ++i) max = std::max(max, scale * x[i]);
    for (int64_t i = 0; i < n; ++i) {
      p.push_back(std::exp(scale * x[i] - max));
      error.push_back(kRound * (2 * (max - scale * x[i]) + 2 * std::abs(max) + 4));
      sum += p.back();
    }
    for (int64_t i = 0; i < n; ++i) {
      p[static_cast<size_t>(i)] /= sum;
      mean_error += p[static_cast<size_t>(i)] * error[static_cast<size_t>(i)];
    }
  }
};

template <>
struct Problem<SoftmaxFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return matrix_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return matrix_bench_shapes(); }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) : rows_(s.dims[0]), cols_(s.dims[1]) {
    Random random(seed);
    x_ = normal_buffer(rows_ * cols_, misalign, random, 10.0f);
    y_ = Guarded<float>(rows_ * cols_, misalign);
  }
  void run(SoftmaxFn fn) { fn({rows_, cols_, x_.data(), y_.data(), kScale}); }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance;
    for (int64_t r = 0; r < rows_; ++r) {
      const SoftmaxTruth truth(x_.data() + r * cols_, cols_, kScale);
      for (size_t c = 0; c < truth.p.size(); ++c) {
        tolerance.push_back(truth.p[c] * (truth.error[c] + truth.mean_error + 4 * kRound) + kTiny);
      }
    }
    return {whole_buffer("y", y_, tolerance)};
  }
  bool guards_intact() const { return x_.intact() && y_.intact(); }
  double flops() const { return 4.0 * static_cast<double>(x_.size()); }
  double bytes() const { return 8.0 * static_cast<double>(x_.size()); }
  double written() const { return 4.0 * static_cast<double>(x_.size()); }

 private:
  static constexpr float kScale = 0.6f;
  int64_t rows_, cols_;
  Guarded<float> x_, y_;
};

template <>
struct Problem<CrossEntropyFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const Shape& s : matrix_shapes()) {
      if (s.dims[1] == 0) continue;
      for (int64_t gradient : {0, 1}) {
        shapes.push_back(make_shape({{"rows", s.dims[0]}, {"cols", s.dims[1]}, {"gradient", gradient}}));
      }
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"rows", 8}, {"cols", 4096}, {"gradient", 1}}),
            make_shape({{"rows", 64}, {"cols", 32000}, {"gradient", 1}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign)
      : rows_(s.dims[0]), cols_(s.dims[1]), ld_(row_stride(s.dims[1])), gradient_(s.dims[2] != 0) {
    Random random(seed);
    x_ = normal_buffer(rows_ * ld_, misalign, random, 5.0f);
    dx_ = Guarded<float>(rows_ * ld_, misalign);
    labels_ = Guarded<int32_t>(rows_, misalign);
    for (int64_t r = 0; r < rows_; ++r) labels_[r] = r % 3 == 1 ? -1 : static_cast<int32_t>(random.below(cols_));
    loss_ = Guarded<double>(rows_);
    lse_ = Guarded<float>(rows_, misalign);
  }
  void run(CrossEntropyFn fn) {
    fn({rows_, cols_, x_.data(), ld_, labels_.data(), gradient_ ? dx_.data() : nullptr, kScale, loss_.data(),
        lse_.data()});
  }
  std::vector<Output> outputs() const {
    std::vector<double> dx(static_cast<size_t>(dx_.size())), loss, lse;
    for (int64_t r = 0; r < rows_; ++r) {
      const SoftmaxTruth truth(x_.data() + r * ld_, cols_, 1);
      for (int64_t c = 0; c < cols_; ++c) {
        const auto i = static_cast<size_t>(c);
        dx[static_cast<size_t>(r * ld_ + c)] =
            kScale * (truth.p[i] * (truth.error[i] + truth.mean_error + 4 * kRound) + (c == labels_[r] ? kRound : 0)) +
            kTiny;
      }
      loss.push_back(truth.mean_error);
      lse.push_back(truth.mean_error + 2 * kRound * std::abs(lse_[r]));
    }
    return {whole_buffer("d_logits", dx_, dx), whole_buffer("loss", loss_, loss), whole_buffer("lse", lse_, lse)};
  }
  bool guards_intact() const {
    return x_.intact() && dx_.intact() && labels_.intact() && loss_.intact() && lse_.intact();
  }
  double flops() const { return 5.0 * static_cast<double>(rows_ * cols_); }
  double bytes() const { return 8.0 * static_cast<double>(rows_ * cols_); }
  double written() const { return 4.0 * static_cast<double>(rows_ * cols_); }

 private:
  static constexpr float kScale = 0.125f;
  int64_t rows_, cols_, ld_;
  bool gradient_;
  Guarded<float> x_, dx_;
  Guarded<int32_t> labels_;
  Guarded<double> loss_;
  Guarded<float> lse_;
};

template <>
struct Problem<RopeFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    const int64_t dims[][2] = {{2, 2},   {6, 4},   {8, 8},    {64, 64},   {80, 32},
                               {33, 32}, {66, 66}, {100, 50}, {128, 128}, {5, 0}};
    for (const auto& d : dims) {
      for (int64_t flags = 0; flags < 4; ++flags) shapes.push_back(shape(3, 2, d[0], d[1], flags & 1, flags >> 1));
    }
    shapes.push_back(shape(0, 2, 8, 8, 0, 0));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {shape(16, 16, 64, 64, 0, 0), shape(16, 16, 64, 64, 1, 0), shape(4096, 16, 64, 64, 0, 0), shape(4096, 16, 64, 64, 1, 0)};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const auto& d = s.dims;
    const int64_t half = d[3] / 2;
    ld_ = row_stride(d[1] * d[2]);
    x_ = normal_buffer(d[0] * ld_, misalign, random);
    y_ = Guarded<float>(d[0] * ld_, misalign);
    cos_ = Guarded<float>(kPositions * half, misalign);
    sin_ = Guarded<float>(kPositions * half, misalign);
    positions_ = Guarded<int32_t>(d[0], misalign);
    for (int64_t i = 0; i < cos_.size(); ++i) {
      const double angle = static_cast<double>(random.uniform()) * 7;
      cos_[i] = static_cast<float>(std::cos(angle));
      sin_[i] = static_cast<float>(std::sin(angle));
    }
    for (int64_t i = 0; i < d[0]; ++i) positions_[i] = static_cast<int32_t>(random.below(kPositions));
    args_ = {d[0],
             d[1],
             d[2],
             d[3],
             nullptr,
             ld_,
             nullptr,
             ld_,
             nullptr,
             nullptr,
             nullptr,
             static_cast<int32_t>(d[4]),
             static_cast<int32_t>(d[5])};
  }
  void run(RopeFn fn) {
    args_.x = x_.data();
    args_.y = y_.data();
    args_.cos_table = cos_.data();
    args_.sin_table = sin_.data();
    args_.positions = positions_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const { return {whole_buffer("y", y_)}; }
  bool guards_intact() const {
    return x_.intact() && y_.intact() && cos_.intact() && sin_.intact() && positions_.intact();
  }
  double flops() const { return 3.0 * static_cast<double>(args_.rows * args_.heads * args_.rot_dim); }
  double bytes() const { return 8.0 * static_cast<double>(args_.rows * args_.heads * args_.head_dim); }
  double written() const { return 4.0 * static_cast<double>(args_.rows * args_.heads * args_.head_dim); }

 private:
  static constexpr int64_t kPositions = 11;
  static Shape shape(int64_t rows, int64_t heads, int64_t head_dim, int64_t rot_dim, int64_t interleaved,
                     int64_t inverse) {
    return make_shape({{"rows", rows},
                       {"heads", heads},
                       {"D", head_dim},
                       {"rot", rot_dim},
                       {"interleaved", interleaved},
                       {"inverse", inverse}});
  }
  int64_t ld_ = 0;
  RopeArgs args_{};
  Guarded<float> x_, y_, cos_, sin_;
  Guarded<int32_t> positions_;
};

template <>
struct Problem<AdamwFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return length_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t n = s.dims[0];
    g_ = normal_buffer(n, misalign, random);
    p_ = normal_buffer(n, misalign, random);
    m_ = normal_buffer(n, misalign, random);
    v_ = Guarded<float>(n, misalign);
    for (int64_t i = 0; i < n; ++i) v_[i] = random.uniform();
    p0_ = copy_of(p_);
    m0_ = copy_of(m_);
    v0_ = copy_of(v_);
  }
  void refill() {
    restore(p_, p0_);
    restore(m_, m0_);
    restore(v_, v0_);
  }
  void call(AdamwFn fn) {
    fn({g_.size(), p_.data(), g_.data(), m_.data(), v_.data(), 0.9f, 1e-3f, 0.9f, 0.999f, 1e-8f, 0.1f, 2e-3f, 1.5f});
  }
  void run(AdamwFn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const { return {whole_buffer("p", p_), whole_buffer("m", m_), whole_buffer("v", v_)}; }
  bool guards_intact() const { return g_.intact() && p_.intact() && m_.intact() && v_.intact(); }
  double flops() const { return 14.0 * static_cast<double>(g_.size()); }
  double bytes() const { return 28.0 * static_cast<double>(g_.size()); }
  double updated() const { return 12.0 * static_cast<double>(g_.size()); }

 private:
  Guarded<float> g_, p_, m_, v_;
  std::vector<float> p0_, m0_, v0_;
};

}  // namespace thimble::testing
