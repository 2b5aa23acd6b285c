// The plan of a product C[m, n] (+)= A[m, depth] B[depth, n]. The grid of chunks is columns of B (packed blocks) by rows of
// A, from the shape and the table's block sizes alone. A chunk goes through the depth in slices: it packs its columns of B
// into this thread's panels once per slice, then sweeps its rows in sub-blocks of A that stay in the second-level cache.
// Slices continue the chains through C. Tiles with int8 activations need no panels: the kernel reads the tiles.
#include "tensor/gemm.h"

#include <algorithm>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/trace.h"

namespace thimble {
namespace {

constexpr int64_t kMinChunks = 12;        // enough for a dozen threads; more would pack more often
constexpr int64_t kMinRowBlock = 192;     // rows below which packing would show
constexpr int64_t kBlockFloats = 96 * 1024;  // of A, per sub-block: shares a cache of 1 MiB with the panels
constexpr int64_t kPackedRows = 48;  // columns of dy that are packed at once: whole register tiles, whole vectors
constexpr int64_t kAlign = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Plan {
  int64_t column_block, column_blocks;
  int64_t row_block, row_blocks;
  int64_t slice;     // of the depth, a multiple of 16
  int64_t sub_rows;  // rows of A per sweep
  int64_t panel_floats, a_floats;  // per thread
};

Plan make_plan(const KernelTable& k, int64_t m, int64_t n, int64_t depth, bool pack_a) {
  Plan p{};
  // Packing A again for every block of columns asks for wide blocks. Its register tiles touch a line per step of the
  // depth, so shorter slices keep them in the first-level cache.
  const int64_t blocks = pack_a ? 3 : kMinChunks;
  const int64_t nr = k.gemm_nr, nc = std::max(nr, (pack_a ? 2 : 1) * k.gemm_nc / nr * nr);
  p.column_block = std::clamp(round_up(ceil_div(n, blocks), nr), nr, nc);
  p.column_blocks = ceil_div(n, p.column_block);
  const int64_t wanted = ceil_div(kMinChunks, std::max<int64_t>(p.column_blocks, 1));
  p.row_block =
      round_up(ceil_div(m, std::clamp<int64_t>(wanted, 1, std::max<int64_t>(m / kMinRowBlock, 1))), kPackedRows);
  p.row_block = std::max(p.row_block, kPackedRows);  // m may be 0
  p.row_blocks = ceil_div(m, p.row_block);
  const int64_t slices = std::max<int64_t>(1, ceil_div(depth, pack_a ? k.gemm_kc / 4 : k.gemm_kc));
  p.slice = std::max<int64_t>(16, round_up(ceil_div(depth, slices), 16));
  p.sub_rows = pack_a ? kPackedRows
                      : std::clamp(kBlockFloats / p.slice / kPackedRows * kPackedRows, kPackedRows, p.row_block);
  p.panel_floats = p.column_block * p.slice;
  p.a_floats = pack_a ? kPackedRows * p.slice : 0;
  return p;
}

size_t plan_bytes(const Plan& p, int threads) {
  return static_cast<size_t>(threads) * static_cast<size_t>(p.panel_floats + p.a_floats) * sizeof(float) + kAlign;
}

template <class T>
T* aligned(void* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + kAlign - 1) / kAlign * kAlign);
}

struct Product {
  int64_t m, n, depth;
  const float* a;
  int64_t a_row, a_col;
  PanelFn panel;
  bool transposed;  // panel_t: the columns of B are rows of the weight
  WeightView b;
  float* c;
  int64_t ldc;
  bool accumulate;
};

void pack_b_columns(const Product& p, const Plan& plan, int64_t nr, int64_t column0, int64_t columns, int64_t depth0,
                    int64_t depth, float* out) {
  for (int64_t j = 0; j < columns; j += nr, out += nr * plan.slice) {
    const int64_t width = std::min(nr, columns - j);
    p.panel({p.b, column0 + j, width, depth0, depth, nr, out});
  }
}

// Rows of B are longer than a panel is wide: some rows at a time through all panels keeps their pages at hand.
void pack_b_rows(const Product& p, const Plan& plan, int64_t nr, int64_t column0, int64_t columns, int64_t depth0,
                 int64_t depth, float* out) {
  constexpr int64_t kRows = 32;
  for (int64_t i = 0; i < depth; i += kRows) {
    const int64_t rows = std::min(kRows, depth - i);
    for (int64_t j = 0; j < columns; j += nr)
      p.panel({p.b, depth0 + i, rows, column0 + j, std::min(nr, columns - j), nr, out + j * plan.slice + i * nr});
  }
}

void run(const GemmExec& exec, const Product& p, bool pack_a) {
  if (p.m <= 0 || p.n <= 0) return;
  const KernelTable& k = *exec.kernels;
  const Plan plan = make_plan(k, p.m, p.n, p.depth, pack_a);
  THIMBLE_CHECK(exec.scratch_bytes >= plan_bytes(plan, exec.threads));
  float* const scratch = aligned<float>(exec.scratch);
  const int64_t nr = k.gemm_nr;
  const auto chunk = [&](int64_t index, int thread) {
    // Neighbouring chunks share their rows of A, the larger stream.
    const int64_t row_block = index / plan.column_blocks, column_block = index % plan.column_blocks;
    const int64_t row0 = row_block * plan.row_block, rows = std::min(plan.row_block, p.m - row0);
    const int64_t column0 = column_block * plan.column_block, columns = std::min(plan.column_block, p.n - column0);
    float* const panels = scratch + thread * (plan.panel_floats + plan.a_floats);
    float* const packed_a = panels + plan.panel_floats;
    int64_t depth0 = 0;
    do {  // once for depth 0, which clears or keeps C
      const int64_t depth = std::min(plan.slice, p.depth - depth0);
      (p.transposed ? pack_b_columns : pack_b_rows)(p, plan, nr, column0, columns, depth0, depth, panels);
      for (int64_t i = 0; i < rows; i += plan.sub_rows) {
        const int64_t sub = std::min(plan.sub_rows, rows - i);
        GemmTileArgs t{};
        t.m = sub;
        t.k = depth;
        if (pack_a) {
          WeightView source{};
          source.data = p.a;
          source.rows = p.depth;
          source.cols = p.m;
          source.ld = p.a_col;
          k.panel_n_f32({source, depth0, depth, row0 + i, sub, kPackedRows, packed_a});
          t.a = packed_a;
          t.a_row = 1;
          t.a_col = kPackedRows;
        } else {
          t.a = p.a + (row0 + i) * p.a_row + depth0 * p.a_col;
          t.a_row = p.a_row;
          t.a_col = p.a_col;
        }
        t.nr = nr;
        t.ldc = p.ldc;
        t.accumulate = p.accumulate || depth0 > 0;
        for (int64_t j = 0; j < columns; j += nr) {
          t.n = std::min(nr, columns - j);
          t.b = panels + j * plan.slice;
          t.c = p.c + (row0 + i) * p.ldc + column0 + j;
          k.gemm_f32(t);
        }
      }
      depth0 += plan.slice;
    } while (depth0 < p.depth);
  };
  parallel_for(exec.threads, plan.row_blocks * plan.column_blocks, chunk);
}

PanelFn panel_t(const KernelTable& k, WeightFormat f) {
  switch (f) {
    case WeightFormat::f16: return k.panel_t_f16;
    case WeightFormat::bf16: return k.panel_t_bf16;
    case WeightFormat::q8: return k.panel_t_q8;
    case WeightFormat::q4: return k.panel_t_q4;
    case WeightFormat::q2: return k.panel_t_q2;
    default: return k.panel_t_f32;
  }
}
PanelFn panel_n(const KernelTable& k, WeightFormat f) {
  switch (f) {
    case WeightFormat::f16: return k.panel_n_f16;
    case WeightFormat::bf16: return k.panel_n_bf16;
    case WeightFormat::q8: return k.panel_n_q8;
    case WeightFormat::q4: return k.panel_n_q4;
    case WeightFormat::q2: return k.panel_n_q2;
    default: return k.panel_n_f32;
  }
}
GemvFn gemv_of(const KernelTable& k, WeightFormat f) {
  switch (f) {
    case WeightFormat::f16: return k.gemv_f16;
    case WeightFormat::bf16: return k.gemv_bf16;
    case WeightFormat::q8: return k.gemv_q8;
    case WeightFormat::q4: return k.gemv_q4;
    case WeightFormat::q2: return k.gemv_q2;
    default: return k.gemv_f32;
  }
}

// Up to here reading W as it is, some rows of x at a time, beats packing it.
int64_t gemv_rows(const KernelTable& k, WeightFormat format) { return is_tiled(format) ? k.gemv_tile_rows : k.gemv_dense_rows; }
// Rows of x at a time. Eight rows of a power of two and the codes of q8 together need more ways than a cache has.
int64_t gemv_step(WeightFormat format) { return format == WeightFormat::q8 ? kGemvMaxRows - 1 : kGemvMaxRows; }

// Rows of W per chunk where W is read once: every chunk starts a stream anew, so there are few. A row of outputs does not
// know its chunk, so this grid may depend on the threads.
int64_t stream_block(int64_t rows, int threads) {
  return std::max<int64_t>(round_up(ceil_div(rows, 4 * int64_t{threads}), kTileRows), 2 * kTileRows);
}

// Chunks of several products in one loop: body(product, first row of W, rows).
template <class BlockOf, class Body>
void run_together(int threads, const GemmProduct* products, int count, BlockOf&& block_of, Body&& body) {
  THIMBLE_DCHECK(count <= kGemmTogether);
  int64_t blocks[kGemmTogether], ends[kGemmTogether], chunks = 0;
  for (int i = 0; i < count; ++i) {
    blocks[i] = block_of(products[i]);
    ends[i] = chunks += ceil_div(products[i].w.rows, blocks[i]);
  }
  parallel_for(threads, chunks, [&](int64_t c, int) {
    int i = 0;
    while (c >= ends[i]) ++i;
    const int64_t row0 = (c - (i > 0 ? ends[i - 1] : 0)) * blocks[i];
    body(i, row0, std::min(blocks[i], products[i].w.rows - row0));
  });
}

int64_t rows_of(const GemmProduct* products, int count) {
  int64_t rows = 0;
  for (int i = 0; i < count; ++i) rows += products[i].w.rows;
  return rows;
}

void run_gemv(const GemmExec& exec, WeightFormat format, const GemmProduct* products, int count) {
  const GemvFn gemv = gemv_of(*exec.kernels, format);
  const int64_t again = is_tiled(format) ? 256 : 32;  // rows that are still in a cache for the next rows of x
  const int64_t stream = stream_block(rows_of(products, count), exec.threads);
  const auto step_of = [&](int64_t m) { return ceil_div(m, ceil_div(m, gemv_step(format))); };
  run_together(
      exec.threads, products, count,
      [&](const GemmProduct& p) { return step_of(p.m) < p.m ? std::min(stream, again) : stream; },
      [&](int index, int64_t row0, int64_t rows) {
        const GemmProduct& p = products[index];
        const int64_t step = step_of(p.m);
        for (int64_t i = 0; i < p.m; i += step)
          gemv({p.w, row0, rows, p.x + i * p.ldx, p.ldx, std::min(step, p.m - i), p.y + i * p.ldy + row0, p.ldy, p.accumulate});
      });
}

// ---- few rows of outputs (the gradients of adapters, dx of a few tokens): packing B would cost more than the product, and
// rows of B of whole vectors serve as its panel as they lie in memory. Same chains as the packed product.

constexpr int64_t kThinRows = 64;
constexpr int64_t kThinColumns = 64;  // of B, per chunk
constexpr int64_t kThinDepth = 128;   // rows of B that stay in the first-level cache for all rows of outputs

bool is_panel(int64_t columns, int64_t ld) { return columns % 16 == 0 && ld % 16 == 0; }

// One chunk: columns [j, j + n) of C[m, :] (+)= A B with B in place.
void thin_columns(const KernelTable& k, GemmTileArgs t, int64_t depth) {
  const float *a = t.a, *b = t.b;
  const bool accumulate = t.accumulate != 0;
  int64_t at = 0;
  do {  // once for depth 0, which clears or keeps C
    t.k = std::min(kThinDepth, depth - at);
    t.a = a + at * t.a_col;
    t.b = b + at * t.nr;
    t.accumulate = accumulate || at > 0;
    k.gemm_f32(t);
    at += kThinDepth;
  } while (at < depth);
}

// dw[n, k] (+)= dyᵀ x for n <= kThinRows.
void run_thin_rows(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx, int64_t k,
                   float* dw, int64_t ldw, bool accumulate) {
  parallel_for(exec.threads, ceil_div(k, kThinColumns), [&](int64_t c, int) {
    const int64_t j = c * kThinColumns;
    thin_columns(*exec.kernels, {n, std::min(kThinColumns, k - j), 0, dy, 1, ldy, x + j, ldx, dw + j, ldw, accumulate}, m);
  });
}

// dx[m, k] (+)= dy W of f32 rows for few m.
void run_thin_dx(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, const WeightView& w, float* dx, int64_t ldx,
                 bool accumulate) {
  if (m <= 0) return;
  const float* const rows = static_cast<const float*>(w.data);
  parallel_for(exec.threads, ceil_div(w.cols, kThinColumns), [&](int64_t c, int) {
    const int64_t j = c * kThinColumns;
    thin_columns(*exec.kernels,
                 {m, std::min(kThinColumns, w.cols - j), 0, dy, ldy, 1, rows + j, w.ld, dx + j, ldx, accumulate}, w.rows);
  });
}

// dw[n, k] (+)= dyᵀ x for k <= kThinRows, as its transpose [k, n] in scratch.
void run_thin_columns(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx, int64_t k,
                      float* dw, int64_t ldw, bool accumulate) {
  THIMBLE_CHECK(exec.scratch_bytes >= static_cast<size_t>(n * k) * sizeof(float) + kAlign);
  float* const turned = aligned<float>(exec.scratch);
  parallel_for(exec.threads, ceil_div(n, kThinColumns), [&](int64_t c, int) {
    const int64_t j = c * kThinColumns, columns = std::min(kThinColumns, n - j);
    if (accumulate)
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t r = 0; r < k; ++r) turned[r * n + j + i] = dw[(j + i) * ldw + r];
    thin_columns(*exec.kernels, {k, columns, 0, x, 1, ldx, dy + j, ldy, turned + j, n, accumulate}, m);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t r = 0; r < k; ++r) dw[(j + i) * ldw + r] = turned[r * n + j + i];
  });
}

// ---- int8 activations

constexpr int64_t kQuantizeRows = 16;
constexpr int64_t kStreamRows = 4;  // up to here the kernel streams W
constexpr int64_t kCodesPerBlock = 384 * 1024;  // bytes of activation codes per sweep

int64_t padded_cols(WeightFormat format, const WeightView& w) { return w.steps * step_columns(format); }
// Activations in int8: codes [m, padded], and a scale and a sum of codes for each group.
struct Codes {
  int8_t* codes;
  float* scales;
  int32_t* sums;
};
size_t codes_bytes(WeightFormat format, const GemmProduct& p) {
  return static_cast<size_t>(round_up(p.m * padded_cols(format, p.w), kAlign));
}
size_t int8_bytes(WeightFormat format, const GemmProduct& p) {
  constexpr int64_t kPerGroup = sizeof(float) + sizeof(int32_t);
  return codes_bytes(format, p) + static_cast<size_t>(round_up(p.m * p.w.groups * kPerGroup, kAlign));
}
bool same_codes(const GemmProduct& a, const GemmProduct& b) {
  return a.x == b.x && a.m == b.m && a.ldx == b.ldx && a.w.cols == b.w.cols && a.w.group == b.w.group;
}
size_t int8_bytes(WeightFormat format, const GemmProduct* products, int count) {
  size_t bytes = kAlign;
  for (int i = 0; i < count; ++i)
    if (i == 0 || !same_codes(products[i], products[i - 1])) bytes += int8_bytes(format, products[i]);
  return bytes;
}

Codes quantize_input(const GemmExec& exec, WeightFormat format, const GemmProduct& p, std::byte* at) {
  THIMBLE_ZONE(quantize_activations);
  if (tracing()) trace_work(4.0 * double(p.m * p.w.cols), 5.0 * double(p.m * p.w.cols));
  const int64_t padded = padded_cols(format, p.w), groups = p.w.groups;
  Codes q{reinterpret_cast<int8_t*>(at), reinterpret_cast<float*>(at + codes_bytes(format, p)), nullptr};
  q.sums = reinterpret_cast<int32_t*>(q.scales + p.m * groups);
  parallel_for(exec.threads, ceil_div(p.m, kQuantizeRows), [&](int64_t c, int) {
    const int64_t i = c * kQuantizeRows;
    exec.kernels->quantize_i8({std::min(kQuantizeRows, p.m - i), p.w.cols, p.ldx, p.x + i * p.ldx, p.w.group, groups, padded,
                               q.codes + i * padded, q.scales + i * groups, q.sums + i * groups});
  });
  return q;
}

void run_int8(const GemmExec& exec, WeightFormat format, const GemmProduct* products, int count) {
  THIMBLE_CHECK(exec.scratch_bytes >= int8_bytes(format, products, count));
  const KernelTable& k = *exec.kernels;
  Codes codes[kGemmTogether];
  std::byte* at = aligned<std::byte>(exec.scratch);
  for (int i = 0; i < count; ++i) {
    if (i > 0 && same_codes(products[i], products[i - 1])) {
      codes[i] = codes[i - 1];
      continue;
    }
    codes[i] = quantize_input(exec, format, products[i], at);
    at += int8_bytes(format, products[i]);
  }
  const GemmI8Fn gemm = format == WeightFormat::q8 ? k.gemm_q8_i8 : format == WeightFormat::q4 ? k.gemm_q4_i8 : k.gemm_q2_i8;
  const int64_t stream = stream_block(rows_of(products, count), exec.threads);
  run_together(
      exec.threads, products, count,
      [&](const GemmProduct& p) {
        return p.m <= kStreamRows ? stream : std::clamp<int64_t>(round_up(ceil_div(p.w.rows, 16), 32), 32, 128);
      },
      [&](int index, int64_t row0, int64_t rows) {
        const GemmProduct& p = products[index];
        const Codes& q = codes[index];
        const int64_t padded = padded_cols(format, p.w), groups = p.w.groups;
        const int64_t sub = std::max<int64_t>(kPackedRows, kCodesPerBlock / padded / kPackedRows * kPackedRows);
        for (int64_t i = 0; i < p.m; i += sub)
          gemm({p.w, row0, rows, q.codes + i * padded, q.scales + i * groups, q.sums + i * groups, padded,
                std::min(sub, p.m - i), p.y + i * p.ldy + row0, p.ldy, p.accumulate});
      });
}

bool uses_int8(WeightFormat format, bool int8_act) { return int8_act && is_tiled(format); }

}  // namespace

size_t gemm_nt_scratch_bytes(const KernelTable& kernels, int threads, WeightFormat format, const GemmProduct* products, int count,
                             bool int8_act) {
  size_t bytes = 0;
  if (uses_int8(format, int8_act)) {
    for (int i = 0; i < count; i += kGemmTogether)
      bytes = std::max(bytes, int8_bytes(format, products + i, std::min(kGemmTogether, count - i)));
    return bytes;
  }
  for (int i = 0; i < count; ++i) {
    const GemmProduct& p = products[i];
    if (p.m > gemv_rows(kernels, format))
      bytes = std::max(bytes, plan_bytes(make_plan(kernels, p.m, p.w.rows, p.w.cols, false), threads));
  }
  return bytes;
}

void gemm_nt(const GemmExec& exec, WeightFormat format, const GemmProduct* products, int count, bool int8_act) {
  const bool int8 = uses_int8(format, int8_act);
  const auto streams = [&](const GemmProduct& p) { return int8 || (p.m > 0 && p.m <= gemv_rows(*exec.kernels, format)); };
  for (int i = 0, n = 1; i < count; i += n, n = 1) {
    const GemmProduct& p = products[i];
    if (!streams(p)) {
      run(exec, {p.m, p.w.rows, p.w.cols, p.x, p.ldx, 1, panel_t(*exec.kernels, format), true, p.w, p.y, p.ldy, p.accumulate}, false);
      continue;
    }
    while (n < kGemmTogether && i + n < count && streams(products[i + n])) ++n;
    (int8 ? run_int8 : run_gemv)(exec, format, &p, n);
  }
}

size_t gemm_nt_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, WeightFormat format, const WeightView& w,
                             bool int8_act) {
  const GemmProduct one{m, nullptr, w.cols, w, nullptr, w.rows, false};
  return gemm_nt_scratch_bytes(kernels, threads, format, &one, 1, int8_act);
}

void gemm_nt(const GemmExec& exec, int64_t m, const float* x, int64_t ldx, WeightFormat format, const WeightView& w,
             float* y, int64_t ldy, bool accumulate, bool int8_act) {
  const GemmProduct one{m, x, ldx, w, y, ldy, accumulate};
  gemm_nt(exec, format, &one, 1, int8_act);
}

size_t gemm_nn_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, WeightFormat, const WeightView& w) {
  return plan_bytes(make_plan(kernels, m, w.cols, w.rows, false), threads);
}

void gemm_nn(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, WeightFormat format, const WeightView& w,
             float* dx, int64_t ldx, bool accumulate) {
  // Narrow register tiles would read the long rows in pieces of a line or two.
  const int64_t few = exec.kernels->gemm_nr >= kThinColumns ? kThinRows : 4;
  if (m <= few && format == WeightFormat::f32 && is_panel(w.cols, w.ld))
    return run_thin_dx(exec, m, dy, ldy, w, dx, ldx, accumulate);
  run(exec, {m, w.cols, w.rows, dy, ldy, 1, panel_n(*exec.kernels, format), false, w, dx, ldx, accumulate}, false);
}

size_t gemm_tn_scratch_bytes(const KernelTable& kernels, int threads, int64_t m, int64_t n, int64_t k) {
  const size_t turned = k <= kThinRows ? static_cast<size_t>(n * k) * sizeof(float) + kAlign : 0;
  return std::max(plan_bytes(make_plan(kernels, n, k, m, true), threads), turned);
}

void gemm_tn(const GemmExec& exec, int64_t m, const float* dy, int64_t ldy, int64_t n, const float* x, int64_t ldx,
             int64_t k, float* dw, int64_t ldw, bool accumulate) {
  if (n <= kThinRows && is_panel(k, ldx)) return run_thin_rows(exec, m, dy, ldy, n, x, ldx, k, dw, ldw, accumulate);
  if (k <= kThinRows && is_panel(n, ldy)) return run_thin_columns(exec, m, dy, ldy, n, x, ldx, k, dw, ldw, accumulate);
  WeightView b{};
  b.data = x;
  b.rows = m;
  b.cols = k;
  b.ld = ldx;
  run(exec, {n, k, m, dy, 1, ldy, exec.kernels->panel_n_f32, false, b, dw, ldw, accumulate}, true);
}

}  // namespace thimble
