// The problem of the probe slots. Data are small integers, so that every sum is exact in f32 and int32 whatever its
// order: all tiers must agree bit for bit, and with the closed form.
#pragma once

#include "kernels/kernel_args.h"
#include "tests/kernels/problem.h"

namespace thimble::testing {

template <>
struct Problem<ProbeFn> {
  static std::vector<Shape> test_shapes(const SlotInfo& slot) {
    std::vector<Shape> shapes;
    for (const int64_t n : {0, 1, 2, 7, 16, 100, 129, 1000}) shapes.push_back(shape(n));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo& slot) { return {shape(is_memory(slot) ? int64_t{1} << 22 : 100000)}; }

  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign) : slot_(slot), n_(s.dims[0]) {
    Random random(seed);
    const std::string name = slot.name;
    const auto small = [&] { return static_cast<int>(random.below(9)) - 4; };
    if (name == "probe_int8") {
      bytes_ = Guarded<int8_t>(128, misalign);
      for (int64_t i = 0; i < 128; ++i) bytes_[i] = static_cast<int8_t>(i < 64 ? 1 + random.below(127) : random.below(255) - 127);
      ints_ = Guarded<int32_t>(kProbeChains, misalign);
    } else if (name == "probe_bf16") {
      halves_ = Guarded<uint16_t>(64, misalign);
      for (int64_t i = 0; i < 64; ++i) halves_[i] = bf16_of(static_cast<float>(small()));
      out_ = Guarded<float>(kProbeChains, misalign);
    } else {
      floats_ = Guarded<float>(name == "probe_fma_f32" ? 32 + kProbeChains : n_, misalign);
      for (int64_t i = 0; i < floats_.size(); ++i) floats_[i] = static_cast<float>(small());
      out_ = Guarded<float>(name == "probe_fma_f32" ? kProbeChains : name == "probe_read" ? 1 : n_, misalign);
    }
  }

  void run(ProbeFn fn) {
    const std::string name = slot_.name;
    if (name == "probe_int8") {
      fn({n_, bytes_.data(), ints_.data()});
    } else if (name == "probe_bf16") {
      fn({n_, halves_.data(), out_.data()});
    } else {
      fn({n_, floats_.data(), out_.data()});
    }
  }

  std::vector<Output> outputs() const {
    Output out{"dst", {}, {0.0}};
    for (int64_t i = 0; i < ints_.size(); ++i) out.values.push_back(static_cast<double>(ints_[i]));
    for (int64_t i = 0; i < out_.size(); ++i) out.values.push_back(static_cast<double>(out_[i]));
    return {out};
  }

  // What the definition in kernel_args.h says, computed without loops over n.
  std::vector<double> closed_form() const {
    const std::string name = slot_.name;
    const double n = static_cast<double>(n_);
    std::vector<double> want;
    if (name == "probe_copy") {
      for (int64_t i = 0; i < n_; ++i) want.push_back(static_cast<double>(floats_[i]));
    } else if (name == "probe_read") {
      double sum = 0;
      for (int64_t i = 0; i < n_; ++i) sum += static_cast<double>(floats_[i]);
      want.push_back(sum);
    } else {
      for (int64_t j = 0; j < kProbeChains; ++j) {
        const int64_t lane = j % 16;
        double value = 0;
        if (name == "probe_fma_f32") {
          value = static_cast<double>(floats_[32 + j]) + n * static_cast<double>(floats_[lane]) * static_cast<double>(floats_[16 + lane]);
        } else if (name == "probe_int8") {
          for (int64_t i = lane * 4; i < lane * 4 + 4; ++i) value += n * bytes_[i] * bytes_[64 + i];
        } else {
          for (int64_t i = lane * 2; i < lane * 2 + 2; ++i) value += n * value_of(halves_[i]) * value_of(halves_[32 + i]);
        }
        want.push_back(value);
      }
    }
    return want;
  }

  bool guards_intact() const {
    return bytes_.intact() && halves_.intact() && floats_.intact() && ints_.intact() && out_.intact();
  }
  double flops() const {
    const std::string name = slot_.name;
    const double n = static_cast<double>(n_), chains = static_cast<double>(kProbeChains);
    if (name == "probe_fma_f32") return 2 * chains * n;
    if (name == "probe_int8") return 8 * chains * n;
    if (name == "probe_bf16") return 4 * chains * n;
    return name == "probe_read" ? n : 0;
  }
  double bytes() const {
    const std::string name = slot_.name;
    return name == "probe_read" ? 4.0 * static_cast<double>(n_) : name == "probe_copy" ? 8.0 * static_cast<double>(n_) : 0;
  }

 private:
  static Shape shape(int64_t n) { return {"n=" + std::to_string(n), {n}}; }
  static bool is_memory(const SlotInfo& slot) {
    return std::string(slot.name) == "probe_read" || std::string(slot.name) == "probe_copy";
  }
  static uint16_t bf16_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return static_cast<uint16_t>(u >> 16);
  }
  static double value_of(uint16_t half) {
    const uint32_t u = uint32_t{half} << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return static_cast<double>(x);
  }

  SlotInfo slot_;
  int64_t n_;
  Guarded<int8_t> bytes_;
  Guarded<uint16_t> halves_;
  Guarded<float> floats_, out_;
  Guarded<int32_t> ints_;
};

}  // namespace thimble::testing
