// Problems of the matrix product signatures: panels, tiles of f32 products, gemv, int8 activations, packing, embedding.
// Weights are built here from first principles (weight_format.h), not with the kernels under test; their dense f32 values
// serve the tolerances. Copies and dequantizations must agree bit for bit, as must everything that sums integers; float
// sums of k products may differ by the rounding of both sides, 2 (k + 2) 2^-24 sum |a| |b|.
#pragma once

#include <algorithm>
#include <set>

#include "kernels/kernel_args.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {

// The format in a slot's name: "gemv_f16", "gemm_q4_i8".
inline WeightFormat format_in_name(const char* name) {
  const std::string s = name;
  for (const WeightFormat f : {WeightFormat::bf16, WeightFormat::f16, WeightFormat::q8, WeightFormat::q4, WeightFormat::q2}) {
    if (s.find(std::string("_") + format_name(f)) != std::string::npos) return f;
  }
  return WeightFormat::f32;
}

inline uint16_t half_bits(int sign, int exponent, int mantissa) {  // value (1 + mantissa / 1024) 2^exponent
  return static_cast<uint16_t>(sign << 15 | (exponent + 15) << 10 | mantissa);
}

// A weight of any format with its dense values. Padding follows weight_format.h.
struct WeightData {
  WeightFormat format = WeightFormat::f32;
  TileGeometry geometry{};
  WeightView view{};
  std::vector<float> dense;           // [rows][cols]
  std::vector<uint8_t> row_codes;     // tiles: [rows][cols]
  Guarded<float> f32, scales_f32, mins_f32;
  Guarded<uint16_t> half, scales_f16, mins_f16;
  Guarded<uint8_t> codes, zeros;

  WeightData() = default;
  WeightData(WeightFormat f, int64_t rows, int64_t cols, int64_t group, bool scale_f32, Random& random, int64_t misalign,
             GroupKind kind = GroupKind::zero_points)
      : format(f), dense(static_cast<size_t>(rows * cols)) {
    view.rows = rows;
    view.cols = cols;
    if (is_tiled(f)) {
      make_tiles(group, scale_f32, kind, random, misalign);
    } else {
      make_rows(random, misalign);
    }
  }
  bool intact() const {
    return f32.intact() && scales_f32.intact() && mins_f32.intact() && half.intact() && scales_f16.intact() &&
           mins_f16.intact() && codes.intact() && zeros.intact();
  }

 private:
  void make_rows(Random& random, int64_t misalign) {
    view.ld = view.cols + 5;
    const int64_t n = view.rows * view.ld;
    if (format == WeightFormat::f32) {
      f32 = Guarded<float>(n, misalign);
      view.data = f32.data();
    } else {
      half = Guarded<uint16_t>(n, misalign);
      view.data = half.data();
    }
    for (int64_t i = 0; i < n; ++i) {
      float value = random.normal();
      if (format == WeightFormat::f32) {
        f32[i] = value;
      } else if (format == WeightFormat::bf16) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        half[i] = static_cast<uint16_t>(bits >> 16);
        bits = uint32_t{half[i]} << 16;
        std::memcpy(&value, &bits, 4);
      } else {
        const int sign = static_cast<int>(random.below(2)), mantissa = static_cast<int>(random.below(1024));
        if (random.below(64) == 0) {  // subnormal
          half[i] = static_cast<uint16_t>(sign << 15 | mantissa);
          value = std::ldexp(static_cast<float>(mantissa), -24);
        } else {
          const int exponent = static_cast<int>(random.below(8)) - 6;
          half[i] = half_bits(sign, exponent, mantissa);
          value = std::ldexp(1.0f + static_cast<float>(mantissa) / 1024.0f, exponent);
        }
        if (sign) value = -value;
      }
      const int64_t r = i / view.ld, c = i % view.ld;
      if (c < view.cols) dense[static_cast<size_t>(r * view.cols + c)] = value;
    }
  }

  void make_tiles(int64_t group, bool scale_f32, GroupKind kind, Random& random, int64_t misalign) {
    geometry = tile_geometry(format, view.rows, view.cols, group, scale_f32, kind);
    const TileGeometry& g = geometry;
    const int64_t levels = int64_t{1} << format_bits(format), parameters = g.tiles * g.groups * 16;
    const bool has_min = kind == GroupKind::minimum;
    codes = Guarded<uint8_t>(static_cast<int64_t>(g.code_bytes), misalign);
    if (kind == GroupKind::zero_points) {
      zeros = Guarded<uint8_t>(parameters, misalign);
      view.zeros = zeros.data();
    } else if (kind == GroupKind::symmetric) {
      view.zero = static_cast<int32_t>(levels / 2 - 1);  // as good as the middle, and not what anybody would assume
    }
    if (scale_f32) {
      scales_f32 = Guarded<float>(parameters, misalign);
      view.scales = scales_f32.data();
      if (has_min) mins_f32 = Guarded<float>(parameters, misalign);
      if (has_min) view.mins = mins_f32.data();
    } else {
      scales_f16 = Guarded<uint16_t>(parameters, misalign);
      view.scales = scales_f16.data();
      if (has_min) mins_f16 = Guarded<uint16_t>(parameters, misalign);
      if (has_min) view.mins = mins_f16.data();
    }
    view.data = codes.data();
    view.group = g.group;
    view.groups = g.groups;
    view.steps = g.steps;
    view.scale_f32 = scale_f32;
    row_codes.resize(static_cast<size_t>(view.rows * view.cols));
    for (int64_t r = 0; r < view.rows; ++r) {
      for (int64_t c = 0; c < g.padded_cols; ++c) {
        const int64_t parameter = (r / 16 * g.groups + c / g.group) * 16 + r % 16;
        if (c % g.group == 0) {
          const int exponent = -7 - static_cast<int>(random.below(3)), mantissa = static_cast<int>(random.below(1024));
          const auto zero = static_cast<uint8_t>(random.below(levels));
          if (view.zeros) zeros[parameter] = zero;
          const int sign = static_cast<int>(random.below(2)), half_exponent = -4 - static_cast<int>(random.below(3));
          if (has_min && scale_f32) mins_f32[parameter] = 0.1f * random.normal();
          if (has_min && !scale_f32) mins_f16[parameter] = half_bits(sign, half_exponent, static_cast<int>(random.below(1024)));
          if (scale_f32) {
            scales_f32[parameter] = random.uniform() * 0.01f + 0.001f;
          } else {
            scales_f16[parameter] = half_bits(0, exponent, mantissa);
          }
        }
        const int32_t offset = view.zeros ? zeros[parameter] : view.zero;
        const int64_t code = c < view.cols ? random.below(levels) : offset;
        put_code(r, c, static_cast<uint8_t>(code));
        if (c >= view.cols) continue;
        const size_t at = static_cast<size_t>(r * view.cols + c);
        row_codes[at] = static_cast<uint8_t>(code);
        dense[at] = std::fma(value(scales_f32, scales_f16, parameter), static_cast<float>(code - offset),
                             has_min ? value(mins_f32, mins_f16, parameter) : 0.0f);
      }
    }
  }
  float value(const Guarded<float>& wide, const Guarded<uint16_t>& narrow, int64_t parameter) const {
    if (view.scale_f32) return wide[parameter];
    const int bits = narrow[parameter];
    const float magnitude = std::ldexp(1.0f + static_cast<float>(bits & 1023) / 1024.0f, (bits >> 10 & 31) - 15);
    return bits >> 15 ? -magnitude : magnitude;
  }
  void put_code(int64_t r, int64_t c, uint8_t code) {
    if (format == WeightFormat::q8) {
      codes[(r / 16 * geometry.steps + c / 4) * 64 + r % 16 * 4 + c % 4] = code;
    } else if (format == WeightFormat::q2) {
      uint8_t& byte = codes[(r / 16 * geometry.steps + c / 16) * 64 + r % 16 * 4 + c % 4];
      const int64_t shift = c / 4 % 4 * 2;
      byte = static_cast<uint8_t>((byte & ~(3 << shift)) | code << shift);
    } else {
      uint8_t& byte = codes[(r / 16 * geometry.steps + c / 8) * 64 + r % 16 * 4 + c % 4];
      byte = static_cast<uint8_t>(c % 8 < 4 ? (byte & 0xF0) | code : (byte & 0x0F) | code << 4);
    }
  }
};

inline Shape make_shape(const std::vector<std::pair<const char*, int64_t>>& parts) {
  Shape s;
  for (const auto& [name, value] : parts) {
    s.label += (s.label.empty() ? "" : " ") + std::string(name) + "=" + std::to_string(value);
    s.dims.push_back(value);
  }
  return s;
}

template <class T>
Output whole_buffer(const char* name, const Guarded<T>& buffer, std::vector<double> tolerance = {0.0}) {
  Output out{name, {}, std::move(tolerance)};
  for (int64_t i = 0; i < buffer.size(); ++i) out.values.push_back(static_cast<double>(buffer[i]));
  return out;
}

inline double sum_tolerance(int64_t k, double absolute) { return 2.0 * static_cast<double>(k + 2) * 0x1p-24 * absolute; }

// Groups, and scale types with kinds of groups (parameters_type), to try for a slot: tiles have several, rows one.
constexpr int64_t parameters_type(bool scale_f32, GroupKind kind) { return (scale_f32 ? 1 : 0) + 2 * static_cast<int64_t>(kind); }
constexpr GroupKind kind_of(int64_t type) { return static_cast<GroupKind>(type / 2); }
inline std::vector<std::pair<int64_t, int64_t>> quantization_variants(const SlotInfo& slot) {
  if (!is_tiled(format_in_name(slot.name))) return {{0, 0}};
  constexpr GroupKind kSymmetric = GroupKind::symmetric, kMinimum = GroupKind::minimum;
  return {{16, 0}, {32, 1}, {64, 0}, {128, 1}, {128, 0}, {0, 0}, {0, 1},
          {16, parameters_type(true, kMinimum)}, {32, parameters_type(false, kMinimum)}, {64, parameters_type(true, kMinimum)},
          {128, parameters_type(false, kMinimum)}, {0, parameters_type(true, kMinimum)},
          {32, parameters_type(false, kSymmetric)}, {128, parameters_type(true, kSymmetric)},
          {0, parameters_type(false, kSymmetric)}};
}

template <>
struct Problem<PanelFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    const bool transposed = is_transposed(slot);
    for (const auto& variant : quantization_variants(slot)) {
      const auto add = [&](int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t nr) {
        shapes.push_back(shape(R, C, row0, rows, col0, cols, nr, variant.first, variant.second));
      };
      if (transposed) {
        add(1, 1, 0, 1, 0, 1, 16);
        add(37, 53, 0, 16, 0, 53, 16);
        add(37, 53, 32, 5, 16, 37, 64);
        add(100, 301, 16, 20, 32, 131, 48);
        add(64, 264, 0, 64, 128, 136, 64);
        add(33, 40, 0, 33, 16, 0, 64);
      } else {
        add(1, 1, 0, 1, 0, 1, 16);
        add(37, 53, 0, 37, 0, 16, 16);
        add(37, 53, 16, 21, 48, 5, 64);
        add(100, 301, 32, 50, 16, 60, 64);
        add(64, 264, 0, 64, 128, 48, 48);
        add(33, 40, 16, 0, 16, 20, 64);
      }
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) {
    const int64_t group = is_tiled(format_in_name(slot.name)) ? 128 : 0;
    return {is_transposed(slot) ? shape(64, 1024, 0, 64, 0, 1024, 64, group, 0)
                                : shape(1024, 64, 0, 1024, 0, 64, 64, group, 0)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : transposed_(is_transposed(slot)) {
    Random random(seed);
    const auto& d = s.dims;
    weight_ = WeightData(format_in_name(slot.name), d[0], d[1], d[7], d[8] % 2 != 0, random, misalign, kind_of(d[8]));
    args_ = {weight_.view, d[2], d[3], d[4], d[5], d[6], nullptr};
    out_ = Guarded<float>((transposed_ ? d[5] : d[3]) * d[6], misalign);
  }
  void run(PanelFn fn) {
    args_.out = out_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const { return {whole_buffer("panel", out_)}; }
  bool guards_intact() const { return out_.intact() && weight_.intact(); }
  double flops() const { return static_cast<double>(args_.rows * args_.cols); }
  double bytes() const {
    return static_cast<double>(args_.rows * args_.cols) * (4.0 + static_cast<double>(format_bits(weight_.format)) / 8);
  }

 private:
  static bool is_transposed(const SlotInfo& slot) { return std::string(slot.name).find("panel_t") == 0; }
  static Shape shape(int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t nr,
                     int64_t group, int64_t wide) {
    return make_shape({{"R", R}, {"C", C}, {"row0", row0}, {"rows", rows}, {"col0", col0}, {"cols", cols}, {"nr", nr},
                       {"group", group}, {"parameters", wide}});
  }
  bool transposed_;
  WeightData weight_;
  PanelArgs args_{};
  Guarded<float> out_;
};

template <>
struct Problem<GemmTileFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 13}) {
      for (int64_t n : {1, 15, 16, 17, 33, 48, 63, 64}) shapes.push_back(shape(m, n, 37, 64, m % 2, n % 2));
    }
    shapes.push_back(shape(0, 5, 7, 16, 0, 0));
    shapes.push_back(shape(3, 20, 0, 32, 0, 0));
    shapes.push_back(shape(3, 20, 0, 32, 0, 1));
    shapes.push_back(shape(25, 100, 300, 112, 0, 1));
    shapes.push_back(shape(12, 16, 1, 16, 1, 0));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return {shape(96, 64, 768, 64, 0, 0), shape(6, 64, 768, 64, 0, 0)}; }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t m = s.dims[0], n = s.dims[1], k = s.dims[2], nr = s.dims[3];
    const bool transposed = s.dims[4] != 0;
    const int64_t lda = transposed ? m + 3 : k + 3;
    a_ = Guarded<float>((transposed ? k : m) * lda, misalign);
    b_ = Guarded<float>(k * nr, misalign);
    const int64_t ldc = n + 2;
    c_ = Guarded<float>(m * ldc, misalign);
    for (int64_t i = 0; i < a_.size(); ++i) a_[i] = random.normal();
    for (int64_t i = 0; i < b_.size(); ++i) b_[i] = random.normal();
    for (int64_t i = 0; i < c_.size(); ++i) c0_.push_back(random.normal());
    args_ = {m, n, k, a_.data(), transposed ? 1 : lda, transposed ? lda : 1, b_.data(), nr, nullptr, ldc,
             static_cast<int32_t>(s.dims[5])};
  }
  void run(GemmTileFn fn) {
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
        for (int64_t p = 0; p < args_.k; ++p)
          absolute += std::fabs(static_cast<double>(a_[i * args_.a_row + p * args_.a_col]) * b_[p * args_.nr + j]);
        tolerance[at] = sum_tolerance(args_.k, absolute);
      }
    }
    return {whole_buffer("c", c_, tolerance)};
  }
  bool guards_intact() const { return a_.intact() && b_.intact() && c_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(args_.m * args_.n * args_.k); }
  double bytes() const { return 4.0 * static_cast<double>(args_.m * args_.k + args_.k * args_.nr + args_.m * args_.n); }

 private:
  static Shape shape(int64_t m, int64_t n, int64_t k, int64_t nr, int64_t transposed, int64_t accumulate) {
    return make_shape({{"m", m}, {"n", n}, {"k", k}, {"nr", nr}, {"transposed", transposed}, {"accumulate", accumulate}});
  }
  Guarded<float> a_, b_, c_;
  std::vector<float> c0_;
  GemmTileArgs args_{};
};

template <>
struct Problem<GemvFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    for (const auto& [group, wide] : quantization_variants(slot)) {
      for (int64_t m = 1; m <= kGemvMaxRows; ++m) {
        shapes.push_back(shape(m, 37, 53, 0, 37, group, wide, m % 2));
        shapes.push_back(shape(m, 150, 301, 16, 134, group, wide, m % 2 == 0));
        shapes.push_back(shape(m, 100, 264, 32, 20, group, wide, 1));
      }
      shapes.push_back(shape(1, 1, 1, 0, 1, group, wide, 0));
      shapes.push_back(shape(0, 20, 20, 0, 20, group, wide, 0));
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) {
    const int64_t group = is_tiled(format_in_name(slot.name)) ? 128 : 0;
    return {shape(1, 5632, 2048, 0, 5632, group, 0, 0), shape(4, 5632, 2048, 0, 5632, group, 0, 0),
            shape(8, 5632, 2048, 0, 5632, group, 0, 0)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const auto& d = s.dims;
    weight_ = WeightData(format_in_name(slot.name), d[1], d[2], d[5], d[6] % 2 != 0, random, misalign, kind_of(d[6]));
    const int64_t m = d[0], ldx = d[2] + 3, ldy = d[4] + 2;
    x_ = Guarded<float>(m * ldx, misalign);
    y_ = Guarded<float>(m * ldy, misalign);
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] = random.normal();
    for (int64_t i = 0; i < y_.size(); ++i) y0_.push_back(random.normal());
    args_ = {weight_.view, d[3], d[4], x_.data(), ldx, m, nullptr, ldy, static_cast<int32_t>(d[7])};
  }
  void run(GemvFn fn) {
    std::copy(y0_.begin(), y0_.end(), y_.data());
    args_.y = y_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const {
    std::vector<double> tolerance(y0_.size(), 0.0);
    const int64_t cols = args_.w.cols;
    for (int64_t i = 0; i < args_.m; ++i) {
      for (int64_t r = 0; r < args_.rows; ++r) {
        const size_t at = static_cast<size_t>(i * args_.ldy + r);
        double absolute = args_.accumulate ? std::fabs(y0_[at]) : 0.0;
        for (int64_t c = 0; c < cols; ++c)
          absolute += std::fabs(static_cast<double>(x_[i * args_.ldx + c]) *
                                weight_.dense[static_cast<size_t>((args_.row0 + r) * cols + c)]);
        tolerance[at] = sum_tolerance(cols, absolute);
      }
    }
    return {whole_buffer("y", y_, tolerance)};
  }
  bool guards_intact() const { return weight_.intact() && x_.intact() && y_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(args_.m * args_.rows * args_.w.cols); }
  double bytes() const {
    return static_cast<double>(args_.rows * args_.w.cols * format_bits(weight_.format)) / 8.0;
  }

 private:
  static Shape shape(int64_t m, int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t group, int64_t wide,
                     int64_t accumulate) {
    return make_shape({{"m", m}, {"R", R}, {"C", C}, {"row0", row0}, {"rows", rows}, {"group", group}, {"parameters", wide},
                       {"accumulate", accumulate}});
  }
  WeightData weight_;
  Guarded<float> x_, y_;
  std::vector<float> y0_;
  GemvArgs args_{};
};

template <>
struct Problem<QuantizeI8Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    return {shape(1, 1, 0), shape(3, 37, 16), shape(2, 53, 0), shape(4, 301, 128), shape(2, 264, 64), shape(2, 96, 32),
            shape(0, 8, 0)};
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {shape(32, 2048, 128), shape(32, 2048, 0), shape(4096, 2048, 128), shape(4096, 2048, 0)};
  }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t rows = s.dims[0], cols = s.dims[1];
    const TileGeometry g = tile_geometry(WeightFormat::q8, 16, cols, s.dims[2], false);
    const int64_t ldx = cols < 1024 ? cols + 3 : cols;  // benches: as in the ops
    x_ = Guarded<float>(rows * ldx, misalign);
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] = random.normal();
    for (int64_t c = 0; c < std::min(cols, g.group) && rows > 1; ++c) x_[ldx + c] = 0.0f;  // a group without scale
    codes_ = Guarded<int8_t>(rows * g.padded_cols, misalign);
    scales_ = Guarded<float>(rows * g.groups, misalign);
    sums_ = Guarded<int32_t>(rows * g.groups, misalign);
    args_ = {rows, cols, ldx, x_.data(), g.group, g.groups, g.padded_cols, codes_.data(), scales_.data(), sums_.data()};
  }
  void refill() { std::fill_n(codes_.data(), codes_.size(), int8_t{99}); }
  void run(QuantizeI8Fn fn) {
    refill();
    call(fn);
  }
  void call(QuantizeI8Fn fn) {
    args_.codes = codes_.data();
    args_.scales = scales_.data();
    args_.sums = sums_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const {
    return {whole_buffer("codes", codes_), whole_buffer("scales", scales_), whole_buffer("sums", sums_)};
  }
  bool guards_intact() const { return x_.intact() && codes_.intact() && scales_.intact() && sums_.intact(); }
  double flops() const { return 2.0 * static_cast<double>(args_.rows * args_.cols); }
  double bytes() const { return 5.0 * static_cast<double>(args_.rows * args_.cols); }
  double written() const { return static_cast<double>(args_.rows * args_.cols); }

 private:
  static Shape shape(int64_t rows, int64_t cols, int64_t group) {
    return make_shape({{"rows", rows}, {"cols", cols}, {"group", group}});
  }
  Guarded<float> x_, scales_;
  Guarded<int8_t> codes_;
  Guarded<int32_t> sums_;
  QuantizeI8Args args_{};
};

template <>
struct Problem<GemmI8Fn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    for (const auto& [group, wide] : quantization_variants(slot)) {
      for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 13}) shapes.push_back(shape(m, 37, 53, 0, 37, group, wide, m % 2));
      shapes.push_back(shape(5, 150, 301, 16, 134, group, wide, 1));
      shapes.push_back(shape(7, 100, 264, 32, 32, group, wide, 0));
      shapes.push_back(shape(9, 1, 1, 0, 1, group, wide, 0));
      shapes.push_back(shape(0, 16, 16, 0, 16, group, wide, 0));
    }
    shapes.push_back(shape(3, 20, 2600, 0, 20, 0, 1, 0));  // a long group: the sum of x's codes exceeds 16 bits
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (const GroupKind kind : {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum}) {
      for (const int64_t group : {32, 64, 128, 0})
        shapes.push_back(shape(96, 128, 2048, 0, 128, group, parameters_type(kind == GroupKind::minimum, kind), 0));
    }
    shapes.push_back(shape(1, 5632, 2048, 0, 5632, 128, 0, 0));
    return shapes;
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const auto& d = s.dims;
    weight_ = WeightData(format_in_name(slot.name), d[1], d[2], d[5], d[6] % 2 != 0, random, misalign, kind_of(d[6]));
    const TileGeometry& g = weight_.geometry;
    const int64_t m = d[0], ldy = d[4] + 2;
    x_ = Guarded<int8_t>(m * g.padded_cols, misalign);
    scales_ = Guarded<float>(m * g.groups, misalign);
    sums_ = Guarded<int32_t>(m * g.groups, misalign);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t c = 0; c < g.padded_cols; ++c) {
        // The first row holds extremes: saturation of 16-bit sums would show.
        const int64_t code = i == 0 ? 127 : random.below(255) - 127;
        x_[i * g.padded_cols + c] = static_cast<int8_t>(c < d[2] ? code : 0);
        sums_[i * g.groups + c / g.group] += x_[i * g.padded_cols + c];
      }
      for (int64_t j = 0; j < g.groups; ++j) scales_[i * g.groups + j] = random.uniform() * 0.05f + 0.001f;
    }
    y_ = Guarded<float>(m * ldy, misalign);
    for (int64_t i = 0; i < y_.size(); ++i) y0_.push_back(random.normal());
    args_ = {weight_.view, d[3], d[4], x_.data(), scales_.data(), sums_.data(), g.padded_cols, m, nullptr, ldy,
             static_cast<int32_t>(d[7])};
  }
  void run(GemmI8Fn fn) {
    std::copy(y0_.begin(), y0_.end(), y_.data());
    args_.y = y_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const { return {whole_buffer("y", y_)}; }
  bool guards_intact() const {
    return weight_.intact() && x_.intact() && scales_.intact() && sums_.intact() && y_.intact();
  }
  double flops() const { return 2.0 * static_cast<double>(args_.m * args_.rows * args_.w.cols); }
  double bytes() const { return static_cast<double>(args_.rows * args_.w.cols * format_bits(weight_.format)) / 8.0; }

 private:
  static Shape shape(int64_t m, int64_t R, int64_t C, int64_t row0, int64_t rows, int64_t group, int64_t wide,
                     int64_t accumulate) {
    return make_shape({{"m", m}, {"R", R}, {"C", C}, {"row0", row0}, {"rows", rows}, {"group", group}, {"parameters", wide},
                       {"accumulate", accumulate}});
  }
  WeightData weight_;
  Guarded<int8_t> x_;
  Guarded<float> scales_, y_;
  Guarded<int32_t> sums_;
  std::vector<float> y0_;
  GemmI8Args args_{};
};

// The tiles that WeightData builds by hand are the expected result of packing, so a run is also checked by
// pack_and_unpack in gemm_test.cpp.
template <>
struct Problem<PackCodesFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    return {shape(1, 1, 0), shape(37, 53, 16), shape(16, 264, 128), shape(33, 129, 0), shape(20, 40, 32)};
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return {shape(512, 1024, 128)}; }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    weight_ = WeightData(format_in_name(slot.name), s.dims[0], s.dims[1], s.dims[2], false, random, misalign);
    const TileGeometry& g = weight_.geometry;
    codes_ = Guarded<uint8_t>(static_cast<int64_t>(weight_.row_codes.size()), misalign);
    std::copy(weight_.row_codes.begin(), weight_.row_codes.end(), codes_.data());
    out_ = Guarded<uint8_t>(static_cast<int64_t>(g.code_bytes), misalign);
    args_ = {s.dims[0], s.dims[1], codes_.data(), weight_.zeros.data(), g.group, g.groups, g.steps, 0, nullptr};
  }
  void run(PackCodesFn fn) {
    args_.out = out_.data();
    fn(args_);
  }
  std::vector<Output> outputs() const { return {whole_buffer("tiles", out_)}; }
  bool guards_intact() const { return weight_.intact() && codes_.intact() && out_.intact(); }
  double flops() const { return static_cast<double>(args_.rows * args_.cols); }
  double bytes() const { return static_cast<double>(args_.rows * args_.cols + out_.size()); }
  const WeightData& weight() const { return weight_; }

 private:
  static Shape shape(int64_t rows, int64_t cols, int64_t group) {
    return make_shape({{"rows", rows}, {"cols", cols}, {"group", group}});
  }
  WeightData weight_;
  Guarded<uint8_t> codes_, out_;
  PackCodesArgs args_{};
};

template <>
struct Problem<UnpackCodesFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) { return Problem<PackCodesFn>::test_shapes(slot); }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) { return Problem<PackCodesFn>::bench_shapes(slot); }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    weight_ = WeightData(format_in_name(slot.name), s.dims[0], s.dims[1], s.dims[2], false, random, misalign);
    out_ = Guarded<uint8_t>(s.dims[0] * s.dims[1], misalign);
  }
  void run(UnpackCodesFn fn) { fn({weight_.view, out_.data()}); }
  std::vector<Output> outputs() const { return {whole_buffer("codes", out_)}; }
  bool guards_intact() const { return weight_.intact() && out_.intact(); }
  double flops() const { return static_cast<double>(out_.size()); }
  double bytes() const { return static_cast<double>(out_.size()) * 2; }
  const WeightData& weight() const { return weight_; }

 private:
  WeightData weight_;
  Guarded<uint8_t> out_;
};

template <>
struct Problem<EmbedFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    for (const auto& [group, wide] : quantization_variants(slot)) {
      shapes.push_back(shape(5, 37, 53, group, wide));
      shapes.push_back(shape(3, 100, 301, group, wide));
      shapes.push_back(shape(2, 1, 1, group, wide));
      shapes.push_back(shape(0, 16, 64, group, wide));
    }
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) {
    const int64_t group = is_tiled(format_in_name(slot.name)) ? 128 : 0;
    return {shape(16, 64, 1024, group, 0), shape(1024, 32000, 1024, group, 0)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    const int64_t n = s.dims[0], rows = s.dims[1], cols = s.dims[2];
    weight_ = WeightData(format_in_name(slot.name), rows, cols, s.dims[3], s.dims[4] % 2 != 0, random, misalign, kind_of(s.dims[4]));
    ids_ = Guarded<int32_t>(n, misalign);
    for (int64_t i = 0; i < n; ++i) ids_[i] = static_cast<int32_t>(random.below(rows));
    if (n > 0) ids_[0] = static_cast<int32_t>(rows - 1);
    ldo_ = cols < 512 ? cols + 2 : cols;  // benches: as in the ops
    out_ = Guarded<float>(n * ldo_, misalign);
    std::set<int32_t> tiles;
    for (int64_t i = 0; i < n; ++i) tiles.insert(is_tiled(weight_.format) ? ids_[i] / 16 : ids_[i]);
    read_rows_ = static_cast<int64_t>(tiles.size()) * (is_tiled(weight_.format) ? 16 : 1);
  }
  void run(EmbedFn fn) { fn({weight_.view, ids_.size(), ids_.data(), out_.data(), ldo_}); }
  std::vector<Output> outputs() const { return {whole_buffer("rows", out_)}; }
  bool guards_intact() const { return weight_.intact() && ids_.intact() && out_.intact(); }
  double flops() const { return static_cast<double>(ids_.size() * weight_.view.cols); }
  // A line of a tile holds four bytes of each of its 16 rows: all of them are read.
  double bytes() const {
    return written() + static_cast<double>(read_rows_ * weight_.view.cols * format_bits(weight_.format)) / 8;
  }
  double written() const { return 4.0 * flops(); }

 private:
  static Shape shape(int64_t n, int64_t rows, int64_t cols, int64_t group, int64_t wide) {
    return make_shape({{"n", n}, {"rows", rows}, {"cols", cols}, {"group", group}, {"parameters", wide}});
  }
  WeightData weight_;
  int64_t ldo_ = 0, read_rows_ = 0;
  Guarded<int32_t> ids_;
  Guarded<float> out_;
};

}  // namespace thimble::testing
