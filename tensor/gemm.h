// Matrix products over weights of every format: plans blocks and chunks, the kernels compute. Every element of a result
// is one chain over the depth (kernel_args.h), whatever the blocking: results depend neither on the number of rows in
// the call nor on the threads. Nothing is allocated; callers bring scratch of gemm_*_scratch_bytes().
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace thimble {

struct GemmExec {
  const KernelTable* kernels;
  int threads;
  void* scratch;  // any alignment
  size_t scratch_bytes;
};

// y[m, w.rows] (+)= x[m, w.cols] Wᵀ. int8_act (tiles only) quantizes x per row and weight group first.
size_t gemm_nt_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, WeightFormat format, const WeightView& w,
                             bool int8_act = false);
void gemm_nt(const GemmExec& exec, int64_t m, const float* x, int64_t ldx, WeightFormat format, const WeightView& w,
             float* y, int64_t ldy, bool accumulate, bool int8_act = false);

// Several such products over weights of one format. Those that read W as it is (few rows; any number with int8_act) are
// one loop to the threads, and inputs that follow one another unchanged are quantized once. Bits as of one after another.
constexpr int kGemmTogether = 16;  // products in a loop
struct GemmProduct {
  int64_t m;
  const float* x;
  int64_t ldx;
  WeightView w;
  float* y;
  int64_t ldy;
  bool accumulate;
};
size_t gemm_nt_scratch_bytes(const KernelTable& kernels, int threads, WeightFormat format, const GemmProduct* products, int count,
                             bool int8_act);
void gemm_nt(const GemmExec& exec, WeightFormat format, const GemmProduct* products, int count, bool int8_act);

// dx[m, w.cols] (+)= dy[m, w.rows] W.
size_t gemm_nn_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, WeightFormat format, const WeightView& w);
void gemm_nn(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, WeightFormat format, const WeightView& w,
             float* dx, int64_t ldx, bool accumulate);

// dw[n, k] (+)= dyᵀ[n, m] x[m, k].
size_t gemm_tn_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, int64_t n, int64_t k);
void gemm_tn(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx,
             int64_t k, float* dw, int64_t ldw, bool accumulate);

// The same products with operands rounded to bf16 and f32 sums (kernel_args.h), at twice the speed where the tier has
// vdpbf16ps. Any m takes the same path: W is packed for a single row too. Scratch holds the left operand in bf16, m x depth.
size_t gemm_nt_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, const WeightView& w);
void gemm_nt_bf16(const GemmExec& exec, int64_t m, const float* x, int64_t ldx, WeightFormat format, const WeightView& w,
                  float* y, int64_t ldy, bool accumulate);
size_t gemm_nn_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, const WeightView& w);
void gemm_nn_bf16(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, WeightFormat format, const WeightView& w,
                  float* dx, int64_t ldx, bool accumulate);
size_t gemm_tn_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, int64_t n, int64_t k);
void gemm_tn_bf16(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx,
                  int64_t k, float* dw, int64_t ldw, bool accumulate);

}  // namespace thimble
