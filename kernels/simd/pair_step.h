// acc[r] += the pair a(r) times a row of pairs of B, R rows by V vectors: the step of every product of bf16 pairs. Both
// halves at once where the tier has vdpbf16ps; otherwise they are widened to f32, low half first.
#pragma once

#include "kernels/simd/simd.h"
#include "kernels/simd/unroll.h"
#include "kernels/simd/weights.h"

namespace thimble::THIMBLE_ISA {
namespace {

template <int R, int V, class A>
[[gnu::always_inline]] inline void pair_step(vf (&acc)[R][V], const A& a, const uint32_t* b) {
#if defined(__AVX512BF16__)
  vi w[V];
  unroll<V>([&](auto j) __attribute__((always_inline)) { w[decltype(j)::value] = load_i(b + decltype(j)::value * kLanes); });
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    constexpr int r = decltype(i)::value;
    const vi x = set1_i(static_cast<int32_t>(a(r)));
    unroll<V>([&](auto j) __attribute__((always_inline)) {
      constexpr int v = decltype(j)::value;
      acc[r][v] = _mm512_dpbf16_ps(acc[r][v], reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w[v]));
    });
  });
#else
  unroll<2>([&](auto half) __attribute__((always_inline)) {
    vf w[V];
    unroll<V>([&](auto j) __attribute__((always_inline)) {
      const vi pairs = load_i(b + decltype(j)::value * kLanes);
      w[decltype(j)::value] = decltype(half)::value == 0 ? low_bf16(pairs) : high_bf16(pairs);
    });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      constexpr int r = decltype(i)::value;
      const vi pair = set1_i(static_cast<int32_t>(a(r)));
      const vf x = decltype(half)::value == 0 ? low_bf16(pair) : high_bf16(pair);
      unroll<V>([&](auto j) __attribute__((always_inline)) {
        constexpr int v = decltype(j)::value;
        acc[r][v] = madd(x, w[v], acc[r][v]);
      });
    });
  });
#endif
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
