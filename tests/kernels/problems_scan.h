// Problems of the scans. Integers and signs agree bit for bit; a float sum of dim products may differ by the rounding of
// both sides.
#pragma once

#include "tests/kernels/problems_rows.h"

namespace thimble::testing {

inline std::vector<Shape> scan_shapes() {
  std::vector<Shape> shapes;
  const auto add = [&](int64_t n, int64_t dim, int64_t nq) { shapes.push_back(make_shape({{"n", n}, {"dim", dim}, {"nq", nq}})); };
  for (const int64_t dim : {1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 384})
    for (const int64_t n : {1, 3, 4, 5, 11}) add(n, dim, 1 + (dim + n) % 3);
  add(0, 64, 1);
  add(5, 64, 0);
  add(3, 0, 2);
  add(301, 1030, 2);  // more rows than a block
  return shapes;
}
inline std::vector<Shape> scan_bench_shapes() {
  return {make_shape({{"n", 256}, {"dim", 384}, {"nq", 1}}), make_shape({{"n", 100000}, {"dim", 384}, {"nq", 1}}), make_shape({{"n", 100000}, {"dim", 384}, {"nq", 4}})};
}

template <>
struct Problem<ScanF32Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return scan_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return scan_bench_shapes(); }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) : n_(s.dims[0]), dim_(s.dims[1]), nq_(s.dims[2]), ld_(dim_ == 384 ? dim_ : dim_ + 3) {
    Random random(seed);
    x_ = normal_buffer(n_ * ld_, misalign, random);
    q_ = normal_buffer(nq_ * dim_, misalign, random);
    out_ = Guarded<float>(nq_ * (n_ + 1), misalign);
  }
  void run(ScanF32Fn fn) { fn({n_, dim_, nq_, x_.data(), ld_, q_.data(), out_.data(), n_ + 1}); }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance(static_cast<size_t>(out_.size()));
    for (int64_t j = 0; j < nq_; ++j)
      for (int64_t i = 0; i < n_; ++i) {
        double absolute = 0;
        for (int64_t c = 0; c < dim_; ++c) absolute += std::abs(double{q_[j * dim_ + c]} * double{x_[i * ld_ + c]});
        tolerance[static_cast<size_t>(j * (n_ + 1) + i)] = sum_tolerance(dim_, absolute);
      }
    return {whole_buffer("out", out_, tolerance)};
  }
  bool guards_intact() const { return x_.intact() && q_.intact() && out_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(n_ * dim_ * nq_); }
  double bytes() const { return 4.0 * static_cast<double>(n_ * (dim_ + nq_)); }
  double written() const { return 4.0 * static_cast<double>(n_ * nq_); }

 private:
  int64_t n_, dim_, nq_, ld_;
  Guarded<float> x_, q_, out_;
};

template <>
struct Problem<ScanI8Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return scan_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return scan_bench_shapes(); }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) : n_(s.dims[0]), dim_(s.dims[1]), nq_(s.dims[2]), ld_(dim_ == 384 ? dim_ : dim_ + 3) {
    Random random(seed);
    x_ = Guarded<int8_t>(n_ * ld_, misalign);
    q_ = Guarded<int8_t>(nq_ * dim_, misalign);
    // The extremes are frequent: they are what saturates.
    const auto code = [&] { return static_cast<int8_t>(random.below(4) == 0 ? (random.below(2) ? 127 : -127) : random.below(255) - 127); };
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] = code();
    for (int64_t i = 0; i < q_.size(); ++i) q_[i] = code();
    x_scale_ = normal_buffer(n_, misalign, random, 0.01f);
    q_scale_ = normal_buffer(nq_, misalign, random, 0.01f);
    out_ = Guarded<float>(nq_ * (n_ + 1), misalign);
  }
  void run(ScanI8Fn fn) { fn({n_, dim_, nq_, x_.data(), ld_, x_scale_.data(), q_.data(), q_scale_.data(), out_.data(), n_ + 1}); }
  std::vector<Output> outputs() const { return {whole_buffer("out", out_)}; }
  bool guards_intact() const { return x_.intact() && q_.intact() && x_scale_.intact() && q_scale_.intact() && out_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(n_ * dim_ * nq_); }
  double bytes() const { return static_cast<double>(n_ * (dim_ + 4 + 4 * nq_)); }
  double written() const { return 4.0 * static_cast<double>(n_ * nq_); }

 private:
  int64_t n_, dim_, nq_, ld_;
  Guarded<int8_t> x_, q_;
  Guarded<float> x_scale_, q_scale_, out_;
};

template <>
struct Problem<ScanBinaryFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return scan_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return scan_bench_shapes(); }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) : n_(s.dims[0]), dim_(s.dims[1]), nq_(s.dims[2]), words_((dim_ + 63) / 64) {
    Random random(seed);
    x_ = Guarded<uint64_t>(n_ * words_, misalign);
    q_ = Guarded<uint64_t>(nq_ * words_, misalign);
    const uint64_t last = dim_ % 64 ? (uint64_t{1} << dim_ % 64) - 1 : ~uint64_t{0};
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] = random.next() & (i % words_ == words_ - 1 ? last : ~uint64_t{0});
    for (int64_t i = 0; i < q_.size(); ++i) q_[i] = random.next() & (i % words_ == words_ - 1 ? last : ~uint64_t{0});
    out_ = Guarded<float>(nq_ * (n_ + 1), misalign);
  }
  void run(ScanBinaryFn fn) { fn({n_, dim_, nq_, x_.data(), words_, q_.data(), out_.data(), n_ + 1}); }
  std::vector<Output> outputs() const { return {whole_buffer("out", out_)}; }
  bool guards_intact() const { return x_.intact() && q_.intact() && out_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(n_ * words_ * nq_); }  // an xor and a count per word
  double bytes() const { return static_cast<double>(n_ * (8 * words_ + 4 * nq_)); }
  double written() const { return 4.0 * static_cast<double>(n_ * nq_); }

 private:
  int64_t n_, dim_, nq_, words_;
  Guarded<uint64_t> x_, q_;
  Guarded<float> out_;
};

template <>
struct Problem<AdamwQ8Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes = length_shapes();
    for (int64_t n : {255, 256, 257, 511, 512, 1100}) shapes.push_back(make_shape({{"n", n}}));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return {make_shape({{"n", 4096}}), make_shape({{"n", 1 << 22}})}; }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t n = s.dims[0], blocks = (n + kAdamwBlock - 1) / kAdamwBlock;
    p_ = normal_buffer(n, misalign, random);
    g_ = normal_buffer(n, misalign, random);
    m_ = Guarded<int8_t>(n, misalign);
    v_ = Guarded<uint8_t>(n, misalign);
    // Gradients over many octaves, some of them zero with moments of zero; every third block knows none at all.
    for (int64_t i = 0; i < n; ++i) {
      g_[i] *= std::ldexp(1.0f, -static_cast<int>(random.below(40)));
      m_[i] = static_cast<int8_t>(random.below(255) - 127);
      v_[i] = static_cast<uint8_t>(random.below(256));
      if (random.below(8) == 0 || (i / kAdamwBlock) % 3 == 2) {
        g_[i] = 0;
        m_[i] = 0;
        v_[i] = 0;
      }
    }
    m_scale_ = Guarded<float>(blocks, misalign);
    v_scale_ = Guarded<float>(blocks, misalign);
    for (int64_t b = 0; b < blocks; ++b) {
      m_scale_[b] = b % 3 == 2 ? 0 : random.uniform();
      v_scale_[b] = b % 3 == 2 ? 0 : random.uniform();
    }
    p0_ = copy_of(p_);
    m0_ = copy_of(m_);
    v0_ = copy_of(v_);
    m_scale0_ = copy_of(m_scale_);
    v_scale0_ = copy_of(v_scale_);
  }
  void refill() {
    restore(p_, p0_);
    restore(m_, m0_);
    restore(v_, v0_);
    restore(m_scale_, m_scale0_);
    restore(v_scale_, v_scale0_);
  }
  void call(AdamwQ8Fn fn) {
    fn({g_.size(), p_.data(), g_.data(), m_.data(), v_.data(), m_scale_.data(), v_scale_.data(), 0xFFFFFF00u, 0.9f, 1e-3f, 0.9f,
        0.999f, 1e-8f, 0.1f, 2e-3f, 1.5f});
  }
  void run(AdamwQ8Fn fn) {
    refill();
    call(fn);
  }
  std::vector<Output> outputs() const {
    return {whole_buffer("p", p_), whole_buffer("m", m_), whole_buffer("v", v_), whole_buffer("m_scale", m_scale_), whole_buffer("v_scale", v_scale_)};
  }
  bool guards_intact() const {
    return p_.intact() && g_.intact() && m_.intact() && v_.intact() && m_scale_.intact() && v_scale_.intact();
  }
  double flops() const { return 30.0 * static_cast<double>(g_.size()); }
  double bytes() const { return 16.0 * static_cast<double>(g_.size()) + 16.0 * static_cast<double>(m_scale_.size()); }
  double updated() const { return 6.0 * static_cast<double>(g_.size()) + 8.0 * static_cast<double>(m_scale_.size()); }

 private:
  Guarded<float> p_, g_, m_scale_, v_scale_;
  Guarded<int8_t> m_;
  Guarded<uint8_t> v_;
  std::vector<float> p0_, m_scale0_, v_scale0_;
  std::vector<int8_t> m0_;
  std::vector<uint8_t> v0_;
};

}  // namespace thimble::testing
