// Probes of the machine (kernel_args.h: ProbeArgs): fused multiply-adds that never leave the registers, a plain read and
// a plain copy. Twelve accumulators per loop cover latency times pipes (4 x 2) of every CPU of these tiers, and fit
// beside the two operands in the 16 registers of avx2. Operands pass through an empty asm statement, so that no compiler
// can prove them constant and shorten the loop.
#include "kernels/simd/init.h"
#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"

namespace thimble::THIMBLE_ISA {
namespace {

constexpr int kChains = 12;

#if defined(__AVX512F__)
using Register = __m512;
#else
using Register = __m256;
#endif

void probe_fma_f32(const ProbeArgs& p) noexcept {
  const float* src = static_cast<const float*>(p.src);
  float* dst = static_cast<float*>(p.dst);
  for (int64_t first = 0; first < kProbeChains; first += kLanes * kChains) {
    // With 8 lanes, even and odd vectors of chains use different operands; each pass takes the even or the odd ones.
    constexpr int kOperands = 16 / kLanes;
    const int64_t parity = first / (kLanes * kChains);
    Register a = load(src + parity * kLanes);
    const vf b = load(src + 16 + parity * kLanes);
    vf acc[kChains];
    unroll<kChains>([&](auto c) __attribute__((always_inline)) {
      acc[decltype(c)::value] = load(src + 32 + (decltype(c)::value * kOperands + parity) * kLanes);
    });
    for (int64_t i = 0; i < p.n; ++i) {
      asm volatile("" : "+x"(a));
      unroll<kChains>([&](auto c) __attribute__((always_inline)) {
        acc[decltype(c)::value] = madd(vf(a), b, acc[decltype(c)::value]);
      });
    }
    unroll<kChains>([&](auto c) __attribute__((always_inline)) {
      store(dst + (decltype(c)::value * kOperands + parity) * kLanes, acc[decltype(c)::value]);
    });
  }
}

void probe_read(const ProbeArgs& p) noexcept {
  constexpr int kStreams = 8;
  const float* x = static_cast<const float*>(p.src);
  vf sums[kStreams];
  unroll<kStreams>([&](auto s) __attribute__((always_inline)) { sums[decltype(s)::value] = set1(0.0f); });
  int64_t i = 0;
  for (; i + kStreams * kLanes <= p.n; i += kStreams * kLanes) {
    unroll<kStreams>([&](auto s) __attribute__((always_inline)) {
      constexpr int kS = decltype(s)::value;
      if (kLanes == 16 || kS % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(x + i + kS * kLanes + 1024), _MM_HINT_T0);
      sums[kS] = sums[kS] + load(x + i + kS * kLanes);
    });
  }
  for (; i + kLanes <= p.n; i += kLanes) sums[0] = sums[0] + load(x + i);
  if (i < p.n) sums[1] = sums[1] + load_head(x + i, p.n - i);
  unroll<kStreams - 1>([&](auto s) __attribute__((always_inline)) { sums[0] = sums[0] + sums[decltype(s)::value + 1]; });
  float lanes[kLanes], total = 0;  // not reduce_add: g++ 12 warns about a read inside the intrinsic here
  store(lanes, sums[0]);
  for (int64_t j = 0; j < kLanes; ++j) total += lanes[j];
  *static_cast<float*>(p.dst) = total;
}

void probe_copy(const ProbeArgs& p) noexcept {
  const float* x = static_cast<const float*>(p.src);
  float* y = static_cast<float*>(p.dst);
  int64_t i = 0;
  for (; i + 4 * kLanes <= p.n; i += 4 * kLanes) {
    unroll<4>([&](auto s) __attribute__((always_inline)) {
      store(y + i + decltype(s)::value * kLanes, load(x + i + decltype(s)::value * kLanes));
    });
  }
  for (; i + kLanes <= p.n; i += kLanes) store(y + i, load(x + i));
  if (i < p.n) store_head(y + i, load_head(x + i, p.n - i), p.n - i);
}

}  // namespace

void init_probe(KernelTable& t) {
  t.probe_fma_f32 = probe_fma_f32;
  t.probe_read = probe_read;
  t.probe_copy = probe_copy;
}

}  // namespace thimble::THIMBLE_ISA
