// Scores of stored vectors against a few queries (ScanF32Args and its neighbours): inner products of floats, of int8
// codes with a scale per vector, and of signs.
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void scan_f32(const ScanF32Args& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < a.nq; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < a.dim; ++c) sum += double{a.q[j * a.dim + c]} * double{a.x[i * a.ldx + c]};
      a.out[j * a.ldo + i] = static_cast<float>(sum);
    }
}

void scan_i8(const ScanI8Args& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < a.nq; ++j) {
      int32_t sum = 0;
      for (int64_t c = 0; c < a.dim; ++c) sum += int32_t{a.q[j * a.dim + c]} * int32_t{a.x[i * a.ldx + c]};
      a.out[j * a.ldo + i] = static_cast<float>(sum) * (a.q_scale[j] * a.x_scale[i]);
    }
}

int64_t bits_set(uint64_t word) {
  int64_t n = 0;
  for (; word != 0; word &= word - 1) ++n;
  return n;
}

void scan_binary(const ScanBinaryArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < a.nq; ++j) {
      int64_t differ = 0;
      for (int64_t w = 0; w < a.words; ++w) differ += bits_set(a.x[i * a.words + w] ^ a.q[j * a.words + w]);
      a.out[j * a.ldo + i] = static_cast<float>(a.dim - 2 * differ);
    }
}

}  // namespace

void init_scan(KernelTable& t) {
  t.scan_f32 = scan_f32;
  t.scan_i8 = scan_i8;
  t.scan_binary = scan_binary;
}

}  // namespace thimble::ref
