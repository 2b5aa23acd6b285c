// Loops that are unrolled for certain, so that arrays of vectors live in registers with every compiler.
#pragma once

namespace thimble::THIMBLE_ISA {
namespace {

template <int N>
struct Index {
  static constexpr int value = N;
};

// f(Index<0>{}), f(Index<1>{}), ... f(Index<N - 1>{}). The lambda itself must be always_inline too.
template <int N, int I = 0, class F>
[[gnu::always_inline]] inline void unroll(const F& f) {
  if constexpr (I < N) {
    f(Index<I>{});
    unroll<N, I + 1>(f);
  }
}

}  // namespace
}  // namespace thimble::THIMBLE_ISA
