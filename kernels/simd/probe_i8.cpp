// Peak of int8 products (kernel_args.h: ProbeArgs): vpdpbusd with VNNI; otherwise maddubs, widen, add, which is exact for
// codes up to 127. The first operand passes through an empty asm statement before each product, so that equal products
// are neither merged nor moved out of the loop.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kChains = 12;

[[gnu::always_inline]] inline void dot(vi& acc, vi u, vi s) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
#elif defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "x"(s));
#elif defined(__AVX512F__)
  acc = add_i(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
#else
  acc = add_i(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
#endif
}

[[gnu::always_inline]] inline void hide(vi& v) { asm volatile("" : "+x"(v)); }

void probe_int8(const ProbeArgs& p) noexcept {
  const int8_t* src = static_cast<const int8_t*>(p.src);
  int32_t* dst = static_cast<int32_t*>(p.dst);
  for (int64_t first = 0; first < kProbeChains; first += kLanes * kChains) {
    // With 8 lanes, even and odd vectors of chains use different operands; each pass takes the even or the odd ones.
    constexpr int kOperands = 16 / kLanes;
    const int64_t parity = first / (kLanes * kChains);
    const vi s = load_i(src + 64 + parity * kLanes * 4);
    vi u = load_i(src + parity * kLanes * 4);
    vi acc[kChains];
    unroll<kChains>([&](auto c) __attribute__((always_inline)) { acc[decltype(c)::value] = set1_i(0); });
    for (int64_t i = 0; i < p.n; ++i) {
      unroll<kChains>([&](auto c) __attribute__((always_inline)) {
        hide(u);
        dot(acc[decltype(c)::value], u, s);
      });
    }
    unroll<kChains>([&](auto c) __attribute__((always_inline)) {
      int32_t* out = dst + (decltype(c)::value * kOperands + parity) * kLanes;
      __builtin_memcpy(out, &acc[decltype(c)::value], sizeof(vi));
    });
  }
}

}  // namespace

void init_probe_i8(KernelTable& t) { t.probe_int8 = probe_int8; }

}  // namespace thimble::THIMBLE_ISA
