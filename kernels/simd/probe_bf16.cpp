// Peak of bf16 products (kernel_args.h: ProbeArgs): vdpbf16ps where the tier has it. Other tiers unpack their operands
// once and multiply in f32, as a product over an unpacked panel does, so their peak is that of f32.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kChains = 12;

#if defined(__AVX512BF16__)

[[gnu::always_inline]] inline void dot(__m512& acc, vi a, vi b) {
  asm volatile("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

void probe_bf16(const ProbeArgs& p) noexcept {
  const uint16_t* src = static_cast<const uint16_t*>(p.src);
  float* dst = static_cast<float*>(p.dst);
  const vi a = load_i(src), b = load_i(src + 32);
  __m512 acc[kChains] = {};
  for (int64_t i = 0; i < p.n; ++i) {
    unroll<kChains>([&](auto c) __attribute__((always_inline)) {
      dot(acc[decltype(c)::value], a, b);
    });
  }
  unroll<kChains>([&](auto c) __attribute__((always_inline)) { _mm512_storeu_ps(dst + decltype(c)::value * 16, acc[decltype(c)::value]); });
}

#else

#if defined(__AVX512F__)
using Register = __m512;
#else
using Register = __m256;
#endif

void probe_bf16(const ProbeArgs& p) noexcept {
  const uint16_t* src = static_cast<const uint16_t*>(p.src);
  float* dst = static_cast<float*>(p.dst);
  for (int64_t first = 0; first < kProbeChains; first += kLanes * kChains) {
    // With 8 lanes, even and odd vectors of chains use different operands; each pass takes the even or the odd ones.
    constexpr int kOperands = 16 / kLanes;
    const int64_t parity = first / (kLanes * kChains);
    const vi a = load_i(src + parity * kLanes * 2), b = load_i(src + 32 + parity * kLanes * 2);
    vf acc[kChains];
    unroll<kChains>([&](auto c) __attribute__((always_inline)) { acc[decltype(c)::value] = set1(0.0f); });
    for (int half = 0; half < 2; ++half) {  // one after the other: both pairs of operands would not fit in 16 registers
      Register x = half == 0 ? low_bf16(a) : high_bf16(a);
      const vf y = half == 0 ? low_bf16(b) : high_bf16(b);
      for (int64_t i = 0; i < p.n; ++i) {
        asm volatile("" : "+x"(x));
        unroll<kChains>([&](auto c) __attribute__((always_inline)) {
          acc[decltype(c)::value] = madd(vf(x), y, acc[decltype(c)::value]);
        });
      }
    }
    unroll<kChains>([&](auto c) __attribute__((always_inline)) {
      store(dst + (decltype(c)::value * kOperands + parity) * kLanes, acc[decltype(c)::value]);
    });
  }
}

#endif

}  // namespace

void init_probe_bf16(KernelTable& t) { t.probe_bf16 = probe_bf16; }

}  // namespace thimble::THIMBLE_ISA
