// Problems of the bf16 products. Panels of pairs must agree bit for bit: they only round and move. The tiers without
// vdpbf16ps sum as the reference does; vdpbf16ps may differ by the rounding of a sum of 2 k products on both sides.
#pragma once

#include "tests/kernels/problems_gemm.h"

namespace thimble::testing {

// To nearest even, for finite numbers that are not subnormal.
inline uint16_t bf16_nearest(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}
inline float bf16_to_float(uint32_t half) {
  const uint32_t u = half << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline float bf16_rounded(float x) { return bf16_to_float(bf16_nearest(x)); }

template <>
struct Problem<PairPanelFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    const bool transposed = is_transposed(slot);
    if (is_columns(slot)) {
      shapes.push_back(shape(1, 1, 0, 1, 0, 1, 1, 0, 0));
      for (const int64_t rows : {0, 1, 15, 16, 17, 32, 33, 63})
        shapes.push_back(shape(90, 53, 5, rows, 3, 16, 33, 0, 0));
      for (const int64_t cols : {1, 7, 8, 9, 15, 17, 50}) shapes.push_back(shape(90, 53, 5, 70, 3, cols, 37, 0, 0));
      return shapes;
    }
    for (const auto& variant : quantization_variants(slot)) {
      const auto add = [&](int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t nr) {
        shapes.push_back(shape(R, C, row0, rows, col0, cols, nr, variant.first, variant.second));
      };
      if (transposed) {
        add(1, 1, 0, 1, 0, 1, 16);
        add(37, 53, 0, 16, 0, 53, 16);
        add(37, 53, 32, 5, 16, 33, 64);  // ends before the last column, at an odd depth
        add(100, 301, 16, 20, 32, 131, 48);
        add(100, 302, 16, 20, 32, 18, 48);
        add(64, 264, 0, 64, 128, 136, 64);
        add(33, 40, 0, 33, 16, 0, 64);
      } else {
        add(1, 1, 0, 1, 0, 1, 16);
        add(37, 53, 0, 37, 0, 16, 16);
        add(37, 53, 16, 21, 48, 5, 64);
        add(100, 301, 32, 50, 16, 60, 64);
        add(100, 301, 32, 17, 16, 60, 64);
        add(100, 301, 16, 49, 0, 301, 304);
        add(64, 264, 0, 64, 128, 48, 48);
        add(33, 40, 16, 0, 16, 20, 64);
      }
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) {
    const int64_t group = is_tiled(format_in_name(slot.name)) ? 128 : 0;
    if (is_columns(slot)) return {shape(1024, 64, 0, 1024, 0, 64, 528, 0, 0)};
    return {is_transposed(slot) ? shape(64, 1024, 0, 64, 0, 1024, 64, group, 0)
                                : shape(1024, 64, 0, 1024, 0, 64, 64, group, 0)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const auto& d = s.dims;
    weight_ = WeightData(format_in_name(slot.name), d[0], d[1], d[7], d[8] % 2 != 0, random, misalign, kind_of(d[8]));
    if (weight_.format == WeightFormat::f32 && d[0] > 1) {  // what rounding treats apart
      weight_.f32[0] = 1e-40f;
      weight_.f32[1] = -1e-40f;
      weight_.f32[2] = std::numeric_limits<float>::infinity();
      weight_.f32[3] = 3.4e38f;
      weight_.f32[4] = 1.0f + 0x1p-8f;  // a tie
      weight_.f32[5] = 1.0f + 0x3p-8f;
    }
    args_ = {weight_.view, d[2], d[3], d[4], d[5], d[6], nullptr};
    out_ = Guarded<uint32_t>(is_columns(slot) ? d[5] * d[6] : ((is_transposed(slot) ? d[5] : d[3]) + 1) / 2 * d[6],
                             misalign);
    for (int64_t i = 0; i < out_.size(); ++i) out_[i] = 0x40404040;  // shows what is left alone
  }
  void run(PairPanelFn fn) {
    args_.out = out_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const {  // as values: padding may be a negative zero
    Output out{"panel", {}, {0.0}};
    for (int64_t i = 0; i < out_.size(); ++i) {
      out.values.push_back(static_cast<double>(bf16_to_float(out_[i] & 0xFFFF)));
      out.values.push_back(static_cast<double>(bf16_to_float(out_[i] >> 16)));
    }
    return {out};
  }
  bool guards_intact() const { return out_.intact() && weight_.intact(); }
  double flops() const { return static_cast<double>(args_.rows * args_.cols); }
  double bytes() const {
    return static_cast<double>(args_.rows * args_.cols) * (2.0 + static_cast<double>(format_bits(weight_.format)) / 8);
  }

 private:
  static bool is_columns(const SlotInfo& slot) { return std::string(slot.name) == "pairs_columns"; }
  static bool is_transposed(const SlotInfo& slot) { return std::string(slot.name).find("pairs_t") == 0; }
  static Shape shape(int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t nr,
                     int64_t group, int64_t wide) {
    return make_shape({{"R", R},
                       {"C", C},
                       {"row0", row0},
                       {"rows", rows},
                       {"col0", col0},
                       {"cols", cols},
                       {"nr", nr},
                       {"group", group},
                       {"parameters", wide}});
  }
  WeightData weight_;
  PairPanelArgs args_{};
  Guarded<uint32_t> out_;
};

template <>
struct Problem<GemmBf16Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 13}) {
      for (int64_t n : {1, 15, 16, 17, 33, 48, 63, 64}) shapes.push_back(shape(m, n, 19, 64, m % 2, n % 2));
    }
    shapes.push_back(shape(0, 5, 7, 16, 0, 0));
    shapes.push_back(shape(3, 20, 0, 32, 0, 0));
    shapes.push_back(shape(3, 20, 0, 32, 0, 1));
    shapes.push_back(shape(25, 100, 150, 112, 0, 1));
    shapes.push_back(shape(12, 16, 1, 16, 1, 0));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {shape(96, 64, 384, 64, 0, 0), shape(6, 64, 384, 64, 0, 0)};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t m = s.dims[0], n = s.dims[1], k = s.dims[2], nr = s.dims[3];
    const bool transposed = s.dims[4] != 0;
    const int64_t lda = transposed ? m + 3 : k + 3;
    a_ = Guarded<uint32_t>((transposed ? k : m) * lda, misalign);
    b_ = Guarded<uint32_t>(k * nr, misalign);
    const int64_t ldc = n + 2;
    c_ = Guarded<float>(m * ldc, misalign);
    for (int64_t i = 0; i < a_.size(); ++i) a_[i] = pair(random);
    for (int64_t i = 0; i < b_.size(); ++i) b_[i] = pair(random);
    for (int64_t i = 0; i < c_.size(); ++i) c0_.push_back(random.normal());
    args_ = {m,         n,  k,       a_.data(), transposed ? 1 : lda,           transposed ? lda : 1,
             b_.data(), nr, nullptr, ldc,       static_cast<int32_t>(s.dims[5])};
  }
  void run(GemmBf16Fn fn) {
    std::copy(c0_.begin(), c0_.end(), c_.data());
    args_.c = c_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance(c0_.size(), 0.0);
    for (int64_t i = 0; i < args_.m; ++i) {
      for (int64_t j = 0; j < args_.n; ++j) {
        const size_t at = static_cast<size_t>(i * args_.ldc + j);
        double absolute = args_.accumulate ? std::fabs(c0_[at]) : 0.0;
        for (int64_t p = 0; p < args_.k; ++p) {
          const uint32_t a = a_[i * args_.a_row + p * args_.a_col], b = b_[p * args_.nr + j];
          for (const int shift : {0, 16}) {
            const double x = bf16_to_float(a >> shift & 0xFFFF), y = bf16_to_float(b >> shift & 0xFFFF);
            absolute += std::fabs(x * y);
          }
        }
        tolerance[at] = sum_tolerance(2 * args_.k, absolute);
      }
    }
    return {whole_buffer("c", c_, tolerance)};
  }
  bool guards_intact() const { return a_.intact() && b_.intact() && c_.intact(); }
  double flops() const { return 4.0 * static_cast<double>(args_.m * args_.n * args_.k); }
  double bytes() const { return 4.0 * static_cast<double>(args_.m * args_.k + args_.k * args_.nr + args_.m * args_.n); }

 private:
  static uint32_t pair(Random& random) {
    const uint32_t low = bf16_nearest(random.normal());
    return low | uint32_t{bf16_nearest(random.normal())} << 16;
  }
  static Shape shape(int64_t m, int64_t n, int64_t k, int64_t nr, int64_t transposed, int64_t accumulate) {
    return make_shape(
        {{"m", m}, {"n", n}, {"pairs", k}, {"nr", nr}, {"transposed", transposed}, {"accumulate", accumulate}});
  }
  Guarded<uint32_t> a_, b_;
  Guarded<float> c_;
  std::vector<float> c0_;
  GemmBf16Args args_{};
};

}  // namespace thimble::testing
