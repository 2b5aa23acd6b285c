// The plan of a bf16 product C[m, n] (+)= A[m, depth] B[depth, n], in pairs of the depth (kernel_args.h). First A is
// rounded into rows of pairs in scratch, once for all threads; dy transposed, the A of dW, is turned on the way. Then
// the grid of chunks is that of the f32 products: a chunk packs its columns of B into this thread's panels once per
// slice of the depth and sweeps its rows of A. Slices continue the chains through C.
#include <algorithm>

#include "tensor/error.h"
#include "tensor/gemm.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kMinChunks = 12;          // enough for a dozen threads; more would pack more often
constexpr int64_t kMinRowBlock = 384;       // rows below which packing would show
constexpr int64_t kBlockPairs = 96 * 1024;  // of A, per sub-block: shares a cache of 1 MiB with the panels
constexpr int64_t kBlockRows = 48;          // whole register tiles, whole vectors
constexpr int64_t kPackRows = 32;           // rows that are rounded or packed at once
constexpr int64_t kAlign = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Plan {
  int64_t pairs;  // of the whole depth
  int64_t column_block, column_blocks;
  int64_t row_block, row_blocks;
  int64_t slice;                 // pairs, a multiple of 16
  int64_t sub_rows;              // rows of A per sweep
  int64_t a_stride;              // pairs between rows of A
  int64_t a_pairs, panel_pairs;  // all of A; the panels of a thread
};

Plan make_plan(const KernelTable& k, int64_t m, int64_t n, int64_t depth) {
  Plan p{};
  p.pairs = ceil_div(depth, 2);
  const int64_t nr = k.gemm_nr, nc = std::max(nr, k.gemm_nc / nr * nr);
  p.column_block = std::clamp(round_up(ceil_div(n, kMinChunks), nr), nr, nc);
  p.column_blocks = ceil_div(n, p.column_block);
  const int64_t wanted = ceil_div(kMinChunks, std::max<int64_t>(p.column_blocks, 1));
  const int64_t row_blocks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(m / kMinRowBlock, 1));
  p.row_block = std::max(kBlockRows, round_up(ceil_div(m, row_blocks), kBlockRows));  // m may be 0
  p.row_blocks = ceil_div(m, p.row_block);
  const int64_t slices = std::max<int64_t>(1, ceil_div(p.pairs, k.gemm_kc));
  p.slice = std::max<int64_t>(16, round_up(ceil_div(p.pairs, slices), 16));
  p.sub_rows = std::clamp(kBlockPairs / p.slice / kBlockRows * kBlockRows, kBlockRows, p.row_block);
  // Rows end in a line of their own, so that rows of a power of two do not fall on the same lines of the cache.
  p.a_stride = round_up(p.pairs, 16) + 16;
  p.a_pairs = m * p.a_stride;
  p.panel_pairs = p.column_block * p.slice;
  return p;
}

size_t plan_bytes(const Plan& p, int threads) {
  return static_cast<size_t>(p.a_pairs + threads * p.panel_pairs) * sizeof(uint32_t) + kAlign;
}

struct Product {
  int64_t m, n, depth;
  const float* a;
  int64_t lda;
  bool a_columns;  // A(i, p) at a[p * lda + i] instead of a[i * lda + p]
  PairPanelFn panel;
  bool transposed;  // pairs_t: the columns of B are rows of the weight
  WeightView b;
  float* c;
  int64_t ldc;
  bool accumulate;
};

// An odd depth ends with a zero.
void round_rows(const GemmExec& exec, const Product& p, const Plan& plan, uint32_t* out) {
  parallel_for(exec.threads, ceil_div(p.m, kPackRows), [&](int64_t index, int) {
    for (int64_t i = index * kPackRows; i < std::min(p.m, (index + 1) * kPackRows); ++i) {
      uint32_t* const row = out + i * plan.a_stride;
      if (p.depth % 2 != 0) row[plan.pairs - 1] = 0;
      exec.kernels->f32_to_bf16({p.depth, p.a + i * p.lda, row});
    }
  });
}

// Blocks, so that neither the rows that are read nor those that are written need too many pages at a time.
void round_columns(const GemmExec& exec, const Product& p, const Plan& plan, uint32_t* out) {
  constexpr int64_t kRows = 128, kColumns = 64;
  WeightView a{};
  a.data = p.a;
  a.rows = p.depth;
  a.cols = p.m;
  a.ld = p.lda;
  parallel_for(exec.threads, ceil_div(p.m, kColumns), [&](int64_t index, int) {
    const int64_t column = index * kColumns, columns = std::min(kColumns, p.m - column);
    for (int64_t r = 0; r < p.depth; r += kRows)
      exec.kernels->pairs_columns(
          {a, r, std::min(kRows, p.depth - r), column, columns, plan.a_stride, out + column * plan.a_stride + r / 2});
  });
}

void pack_b_columns(const Product& p, const Plan& plan, int64_t nr, int64_t column0, int64_t columns, int64_t depth0,
                    int64_t depth, uint32_t* out) {
  for (int64_t j = 0; j < columns; j += nr, out += nr * plan.slice)
    p.panel({p.b, column0 + j, std::min(nr, columns - j), depth0, depth, nr, out});
}

void pack_b_rows(const Product& p, const Plan& plan, int64_t nr, int64_t column0, int64_t columns, int64_t depth0,
                 int64_t depth, uint32_t* out) {
  for (int64_t i = 0; i < depth; i += kPackRows) {
    const int64_t rows = std::min(kPackRows, depth - i);
    for (int64_t j = 0; j < columns; j += nr)
      p.panel({p.b, depth0 + i, rows, column0 + j, std::min(nr, columns - j), nr, out + j * plan.slice + i / 2 * nr});
  }
}

void run(const GemmExec& exec, const Product& p) {
  if (p.m <= 0 || p.n <= 0) return;
  const KernelTable& k = *exec.kernels;
  const Plan plan = make_plan(k, p.m, p.n, p.depth);
  THIMBLE_CHECK(exec.scratch_bytes >= plan_bytes(plan, exec.threads));
  uint32_t* const a =
      reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(exec.scratch) + kAlign - 1) / kAlign * kAlign);
  (p.a_columns ? round_columns : round_rows)(exec, p, plan, a);
  const int64_t nr = k.gemm_nr;
  parallel_for(exec.threads, plan.row_blocks * plan.column_blocks, [&](int64_t index, int thread) {
    // Neighbouring chunks share their rows of A, the larger stream.
    const int64_t row_block = index / plan.column_blocks, column_block = index % plan.column_blocks;
    const int64_t row0 = row_block * plan.row_block, rows = std::min(plan.row_block, p.m - row0);
    const int64_t column0 = column_block * plan.column_block, columns = std::min(plan.column_block, p.n - column0);
    uint32_t* const panels = a + plan.a_pairs + thread * plan.panel_pairs;
    int64_t pair0 = 0;
    do {  // once for depth 0, which clears or keeps C
      const int64_t pairs = std::min(plan.slice, plan.pairs - pair0), depth = std::min(2 * pairs, p.depth - 2 * pair0);
      (p.transposed ? pack_b_columns : pack_b_rows)(p, plan, nr, column0, columns, 2 * pair0, depth, panels);
      for (int64_t i = 0; i < rows; i += plan.sub_rows) {
        GemmBf16Args t{};
        t.m = std::min(plan.sub_rows, rows - i);
        t.k = pairs;
        t.nr = nr;
        t.ldc = p.ldc;
        t.accumulate = p.accumulate || pair0 > 0;
        t.a = a + (row0 + i) * plan.a_stride + pair0;
        t.a_row = plan.a_stride;
        t.a_col = 1;
        for (int64_t j = 0; j < columns; j += nr) {
          t.n = std::min(nr, columns - j);
          t.b = panels + j * plan.slice;
          t.c = p.c + (row0 + i) * p.ldc + column0 + j;
          k.gemm_bf16(t);
        }
      }
      pair0 += plan.slice;
    } while (pair0 < plan.pairs);
  });
}

PairPanelFn pairs_t(const KernelTable& k, WeightFormat f) {
  switch (f) {
    case WeightFormat::f16:
      return k.pairs_t_f16;
    case WeightFormat::bf16:
      return k.pairs_t_bf16;
    case WeightFormat::q8:
      return k.pairs_t_q8;
    case WeightFormat::q4:
      return k.pairs_t_q4;
    case WeightFormat::q2:
      return k.pairs_t_q2;
    default:
      return k.pairs_t_f32;
  }
}
PairPanelFn pairs_n(const KernelTable& k, WeightFormat f) {
  switch (f) {
    case WeightFormat::f16:
      return k.pairs_n_f16;
    case WeightFormat::bf16:
      return k.pairs_n_bf16;
    case WeightFormat::q8:
      return k.pairs_n_q8;
    case WeightFormat::q4:
      return k.pairs_n_q4;
    case WeightFormat::q2:
      return k.pairs_n_q2;
    default:
      return k.pairs_n_f32;
  }
}

}  // namespace

size_t gemm_nt_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, const WeightView& w) {
  return plan_bytes(make_plan(kernels, m, w.rows, w.cols), threads);
}

void gemm_nt_bf16(const GemmExec& exec, int64_t m, const float* x, int64_t ldx, WeightFormat format,
                  const WeightView& w, float* y, int64_t ldy, bool accumulate) {
  run(exec, {m, w.rows, w.cols, x, ldx, false, pairs_t(*exec.kernels, format), true, w, y, ldy, accumulate});
}

size_t gemm_nn_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, const WeightView& w) {
  return plan_bytes(make_plan(kernels, m, w.cols, w.rows), threads);
}

void gemm_nn_bf16(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, WeightFormat format,
                  const WeightView& w, float* dx, int64_t ldx, bool accumulate) {
  run(exec, {m, w.cols, w.rows, dy, ldy, false, pairs_n(*exec.kernels, format), false, w, dx, ldx, accumulate});
}

size_t gemm_tn_bf16_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, int64_t n, int64_t k) {
  return plan_bytes(make_plan(kernels, n, k, m), threads);
}

void gemm_tn_bf16(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx,
                  int64_t k, float* dw, int64_t ldw, bool accumulate) {
  WeightView b{};
  b.data = x;
  b.rows = m;
  b.cols = k;
  b.ld = ldx;
  run(exec, {n, k, m, dy, ldy, true, exec.kernels->pairs_n_f32, false, b, dw, ldw, accumulate});
}

}  // namespace thimble
