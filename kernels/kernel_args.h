// The whole ABI of the kernels: plain structs in, plain data out. Kernels are noexcept, start no threads, allocate
// nothing and read no environment. All strides (ld*, *_stride) are in elements. Pointers may be misaligned to anything
// but their element size. Outputs do not overlap inputs unless a struct says so. M, rows, n >= 0; zero does nothing.
//
// Order of sums: every output of a matrix product is ONE chain acc = fma(a[k], b[k], acc) over k = 0, 1, 2, ...
// (accumulate: the chain starts at the old value), in every variant of one format: gemv, edge tile and full tile. So a
// row's bits depend neither on M nor on the thread count. The ref tier rounds product and sum separately.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weight_format.h"

namespace thimble {

// ---- matrix products -------------------------------------------------------------------------------------------

// One weight matrix W[rows, cols] in any format; what packing and gemv need to know. For rows formats: element (r, c)
// at data[r * ld + c], the rest unused. For tiles see weight_format.h (geometry of the WHOLE matrix). The kind of the groups
// is data: `mins` is set for kind minimum (zeros is null and zero 0), `zeros` for zero_points; symmetric has only `zero`.
// The value of a code, wherever one is needed in f32, is fma(scale, float(code - zero), min), rounded once (min 0 if there
// is none): the difference of the integers is exact.
struct WeightView {
  const void* data;
  const void* scales;
  const void* mins;  // of the scales' type
  const uint8_t* zeros;
  int64_t rows, cols, ld;
  int64_t group;      // columns per group (tiles); the padded column count for one group per row
  int64_t groups;     // groups per row (tiles)
  int64_t steps;      // 64-byte steps per tile (tiles)
  int32_t scale_f32;  // scales and mins are f32 instead of f16
  int32_t zero;       // of all groups, when zeros is null (tiles)
};

// panel_t: out[(c - col0) * nr + (r - row0)] = W(r, c) for the forward product y = x Wᵀ: nr output features side by
// side, depth along the columns. panel_n: out[(r - row0) * nr + (c - col0)] = W(r, c) for dx = dy W: nr columns side by
// side, depth along the rows. nr is a multiple of 16; entries beyond rows_/cols_ on the nr side are zero. For tiles
// row0 and col0 are multiples of 16.
// panel_t: 0 < rows <= nr, any cols. panel_n: 0 < cols <= nr, any rows. row0 + rows <= w.rows, col0 + cols <= w.cols.
struct PanelArgs {
  WeightView w;
  int64_t row0, rows, col0, cols;
  int64_t nr;
  float* out;  // panel_t: [cols][nr]; panel_n: [rows][nr]
};
using PanelFn = void (*)(const PanelArgs&) noexcept;

// C[m, n] (+)= A[m, k] B[k, n], B packed as one panel [k][nr], n <= nr, nr a multiple of 16 (a tile kernel with a
// narrower native width walks the panel in columns of its own width). A(i, p) at a[i * a_row + p * a_col]; any m.
struct GemmTileArgs {
  int64_t m, n, k;
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t nr;
  float* c;
  int64_t ldc;
  int32_t accumulate;
};
using GemmTileFn = void (*)(const GemmTileArgs&) noexcept;

// y[i, r] (+)= sum_c x[i, c] W(r, c) for i < m <= kGemvMaxRows and r in [row0, row0 + rows); same bits as panel_t + gemm_f32.
// For tiles row0 is a multiple of 16. y(i, r) at y[i * ldy + (r - row0)].
constexpr int64_t kGemvMaxRows = 8;
struct GemvArgs {
  WeightView w;
  int64_t row0, rows;
  const float* x;
  int64_t ldx, m;
  float* y;
  int64_t ldy;
  int32_t accumulate;
};
using GemvFn = void (*)(const GemvArgs&) noexcept;

// Activations to int8, per row and weight group: scale = absmax / 127 (0 for a zero group), code = round to nearest even
// of x / scale, clamped to [-127, 127]; sum of the codes per group. Codes beyond cols up to padded_cols are 0.
struct QuantizeI8Args {
  int64_t rows, cols, ldx;
  const float* x;
  int64_t group, groups, padded_cols;
  int8_t* codes;   // [rows][padded_cols]
  float* scales;   // [rows][groups]
  int32_t* sums;   // [rows][groups]
};
using QuantizeI8Fn = void (*)(const QuantizeI8Args&) noexcept;

// y[i, r] (+)= sum over groups g (in order) of (w_scale * x_scale) * float(sum_k code_w code_x - zero * x_sum): integer
// sums inside a group are exact, one fma per group joins them: acc = fma(w_scale * x_scale, float(isum), acc). Any m.
// Groups with a minimum have isum = sum_k code_w code_x, and a second fma per group, after the first one of that group:
// acc = fma(min, x_scale * float(x_sum), acc).
// The integer sum of one group fits in int32: |sum| <= 255 * 127 * group, so group <= 66000 columns.
struct GemmI8Args {
  WeightView w;
  int64_t row0, rows;  // multiples of 16 except at the end of the matrix
  const int8_t* x;     // [m][padded_cols]
  const float* x_scales;
  const int32_t* x_sums;
  int64_t padded_cols, m;
  float* y;            // y(i, r) at y[i * ldy + (r - row0)]
  int64_t ldy;
  int32_t accumulate;
};
using GemmI8Fn = void (*)(const GemmI8Args&) noexcept;

// ---- bf16 products with f32 sums. Operands are rounded to bf16 once (nearest even, subnormals to signed zero; bf16
// weights are taken as they are) and stored as pairs along the depth: a 32-bit lane holds depth 2 p in its low half and
// 2 p + 1 in its high half; an odd depth is filled with zero. Every output is one chain over the pairs p = 0, 1, 2, ...
// (accumulate: it starts at the old value), so a row's bits depend neither on M nor on the threads. A product of two bf16
// is exact in f32; a pair is added as fma(low), then fma(high) by ref and by the tiers without vdpbf16ps, all with the
// same bits. vdpbf16ps adds a pair in its own way and flushes subnormal sums, so avx512_bf16 agrees with the others
// within the rounding of a sum of depth terms, not in bits.

// pairs_t, pairs_n: panel_t and panel_n (same ranges) of pairs.
//   pairs_t: out[(c - col0) / 2 * nr + (r - row0)] = (W(r, c), W(r, c + 1)), c - col0 even
//   pairs_n: out[(r - row0) / 2 * nr + (c - col0)] = (W(r, c), W(r + 1, c)), r - row0 even
// pairs_columns (f32 rows only): the left operand of dW = dyᵀ x, columns of W as rows of pairs; nr is the distance of
// these rows, any number >= ceil(rows / 2), and what lies between them is left alone.
//   out[(c - col0) * nr + (r - row0) / 2] = (W(r, c), W(r + 1, c)), r - row0 even
struct PairPanelArgs {
  WeightView w;
  int64_t row0, rows, col0, cols;
  int64_t nr;
  uint32_t* out;  // pairs_t: [ceil(cols / 2)][nr]; pairs_n: [ceil(rows / 2)][nr]; pairs_columns: [cols][nr]
};
using PairPanelFn = void (*)(const PairPanelArgs&) noexcept;

// GemmTileArgs with k pairs of depth; pair p of row i of A at a[i * a_row + p * a_col].
struct GemmBf16Args {
  int64_t m, n, k;
  const uint32_t* a;
  int64_t a_row, a_col;
  const uint32_t* b;  // [k][nr]
  int64_t nr;
  float* c;
  int64_t ldc;
  int32_t accumulate;
};
using GemmBf16Fn = void (*)(const GemmBf16Args&) noexcept;

// Row-major u8 codes -> tile codes and back. zeros (tile order; null: `zero` everywhere) fill the padding columns; padding
// rows get code 0.
struct PackCodesArgs {
  int64_t rows, cols;
  const uint8_t* codes;  // [rows][cols], each < 2^bits
  const uint8_t* zeros;  // [tiles][groups][16], or null
  int64_t group, groups, steps;
  int32_t zero;
  uint8_t* out;
};
using PackCodesFn = void (*)(const PackCodesArgs&) noexcept;

struct UnpackCodesArgs {
  WeightView w;
  uint8_t* codes;  // [rows][cols]
};
using UnpackCodesFn = void (*)(const UnpackCodesArgs&) noexcept;

// out[i, :] = W(ids[i], :) as f32; ids are in range. Tiles gather from the tile.
struct EmbedArgs {
  WeightView w;
  int64_t n;
  const int32_t* ids;
  float* out;
  int64_t ldo;
};
using EmbedFn = void (*)(const EmbedArgs&) noexcept;

// ---- elementwise -----------------------------------------------------------------------------------------------

struct UnaryArgs {  // y[i] = f(x[i]); y may be x
  int64_t n;
  const float* x;
  float* y;
};
using UnaryFn = void (*)(const UnaryArgs&) noexcept;

struct UnaryBwdArgs {  // dx[i] (+)= f'(x[i]) dy[i]; dx may be dy when not accumulating
  int64_t n;
  const float* x;
  const float* dy;
  float* dx;
  int32_t accumulate;
};
using UnaryBwdFn = void (*)(const UnaryBwdArgs&) noexcept;

struct GatedArgs {  // y[i] = f(gate[i]) * up[i]
  int64_t n;
  const float* gate;
  const float* up;
  float* y;
};
using GatedFn = void (*)(const GatedArgs&) noexcept;

struct GatedBwdArgs {  // d_gate[i] = f'(gate) up dy, d_up[i] = f(gate) dy; d_gate may be gate, d_up may be up
  int64_t n;
  const float* gate;
  const float* up;
  const float* dy;
  float* d_gate;
  float* d_up;
};
using GatedBwdFn = void (*)(const GatedBwdArgs&) noexcept;

struct BinaryArgs {  // y[i] = a[i] op b[i]; y may be a or b
  int64_t n;
  const float* a;
  const float* b;
  float* y;
};
using BinaryFn = void (*)(const BinaryArgs&) noexcept;

struct AxpyArgs {  // y[i] = fma(alpha, x[i], y[i])
  int64_t n;
  float alpha;
  const float* x;
  float* y;
};
using AxpyFn = void (*)(const AxpyArgs&) noexcept;

struct ScaleArgs {  // y[i] = alpha * x[i]; y may be x
  int64_t n;
  float alpha;
  const float* x;
  float* y;
};
using ScaleFn = void (*)(const ScaleArgs&) noexcept;

struct CapArgs {  // softcap: y[i] = cap * tanh(x[i] / cap); clip: y[i] = x[i] held in [-cap, cap]. y may be x, cap > 0
  int64_t n;
  float cap;
  const float* x;
  float* y;
};
using CapFn = void (*)(const CapArgs&) noexcept;

// dx[i] (+)= f' dy[i]. softcap_bwd: v is the forward's y, f' = 1 - (v / cap)²; clip_bwd: v is its x, f' = |v| <= cap.
// dx may be dy when not accumulating.
struct CapBwdArgs {
  int64_t n;
  float cap;
  const float* v;
  const float* dy;
  float* dx;
  int32_t accumulate;
};
using CapBwdFn = void (*)(const CapBwdArgs&) noexcept;

struct BiasArgs {  // x[r, c] += bias[c]
  int64_t rows, cols;
  float* x;
  int64_t ld;
  const float* bias;
};
using BiasFn = void (*)(const BiasArgs&) noexcept;

struct ColSumArgs {  // out[c] (+)= sum over r in order of x[r, c]
  int64_t rows, cols;
  const float* x;
  int64_t ld;
  float* out;
  int32_t accumulate;
};
using ColSumFn = void (*)(const ColSumArgs&) noexcept;

struct ConvertArgs {  // round to nearest even; f32 -> bf16 flushes subnormal inputs and results to signed zero
  int64_t n;
  const void* src;
  void* dst;
};
using ConvertFn = void (*)(const ConvertArgs&) noexcept;

struct SumSquaresArgs {  // *out = sum of double(x)²; eight interleaved chains added pairwise, the same on every tier
  int64_t n;
  const float* x;
  double* out;
};
using SumSquaresFn = void (*)(const SumSquaresArgs&) noexcept;

// ---- rows ------------------------------------------------------------------------------------------------------

// RMSNorm: y = x * rstd * (w + w_offset), rstd = 1/sqrt(mean(x²) + eps). LayerNorm: y = (x - mean) * rstd * w + b with
// the biased variance; w and b may be null (1 and 0). Rows are contiguous with stride cols.
struct NormArgs {
  int64_t rows, cols;
  const float* x;
  const float* w;
  const float* b;
  float* y;     // may be x
  float* mean;  // [rows], layer_norm only; may be null
  float* rstd;  // [rows]; may be null
  float eps;
  float w_offset;
};
using NormFn = void (*)(const NormArgs&) noexcept;

struct NormBwdArgs {
  int64_t rows, cols;
  const float* x;
  const float* w;  // may be null (layer_norm)
  const float* dy;
  const float* mean;  // layer_norm only
  const float* rstd;
  float* dx;  // may be null
  float* dw;  // [cols] += sum over the rows in order; may be null
  float* db;  // layer_norm only; may be null
  float w_offset;
  int32_t accumulate;  // of dx
};
using NormBwdFn = void (*)(const NormBwdArgs&) noexcept;

struct SoftmaxArgs {  // y = softmax(scale * x) per row; y may be x
  int64_t rows, cols;
  const float* x;
  float* y;
  float scale;
};
using SoftmaxFn = void (*)(const SoftmaxArgs&) noexcept;

// Per row: lse = log sum exp(logits), loss = lse - logits[label] (natural log), d_logits = (softmax - onehot) * d_scale.
// A negative label is ignored: loss 0, d_logits 0. d_logits may be logits or null; labels are < cols.
struct CrossEntropyArgs {
  int64_t rows, cols;
  const float* logits;
  int64_t ld;  // of logits and d_logits
  const int32_t* labels;
  float* d_logits;
  float d_scale;
  double* loss;  // [rows]
  float* lse;    // [rows]; may be null
};
using CrossEntropyFn = void (*)(const CrossEntropyArgs&) noexcept;

// Rotary embedding of the first rot_dim entries of every head: with c = cos[pos, j], s = sin[pos, j], j < rot_dim / 2,
// (a, b) -> (a c - b s, b c + a s). Pairs are (j, j + rot_dim / 2), or (2j, 2j + 1) when interleaved. inverse: s := -s,
// which is also the backward. Entries beyond rot_dim are copied. y may be x.
struct RopeArgs {
  int64_t rows, heads, head_dim, rot_dim;
  const float* x;
  int64_t ldx;
  float* y;
  int64_t ldy;
  const float* cos_table;  // [positions][rot_dim / 2]
  const float* sin_table;
  const int32_t* positions;  // [rows]
  int32_t interleaved, inverse;
};
using RopeFn = void (*)(const RopeArgs&) noexcept;

// AdamW, decoupled decay: g' = g * grad_scale; p *= 1 - lr wd; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'²;
// p -= step_size * m / (sqrt(v) * v_correction + eps), step_size = lr / (1 - b1^t), v_correction = 1 / sqrt(1 - b2^t).
struct AdamwArgs {
  int64_t n;
  float* p;
  const float* g;
  float* m;
  float* v;
  float grad_scale, lr, beta1, beta2, eps, weight_decay, step_size, v_correction;
};
using AdamwFn = void (*)(const AdamwArgs&) noexcept;

// AdamW with moments of 8 bits in blocks of kAdamwBlock (the last one may be shorter), the formula of AdamwArgs with
// m and v read from their codes and written back after the step; the step itself uses the moments before they are coded.
//   m = sign (c / 127)² m_scale, c in [-127, 127]: rounded to nearest in the root, m_scale = largest |m| of the block.
//   v = v_scale (the largest v of the block) times a float of 5 exponent and 3 mantissa bits: code c in 1..255 stands for
//       the bits (c + kAdamwCodeBase) << 20, 255 for 1. Code 0 is an exact zero alone: what is smaller than code 1
//       (1.25 * 2^-32) becomes code 1, so that no step is divided by eps only. The bits below a code round up with the
//       probability that they stand for: a change by 1 - b2 per step would otherwise be lost. Their random number is a
//       hash of seed + i, the same on every tier.
// A block whose largest v lies below 2^-126 has v_scale 0 and codes 0, one whose largest |m| lies there likewise.
constexpr int64_t kAdamwBlock = 256;
constexpr uint32_t kAdamwCodeBase = (0x3F800000u >> 20) - 255;
struct AdamwQ8Args {
  int64_t n;
  float* p;
  const float* g;
  int8_t* m;       // [n]
  uint8_t* v;      // [n]
  float* m_scale;  // [ceil(n / kAdamwBlock)]
  float* v_scale;
  uint32_t seed;   // element i of the call draws from seed + i
  float grad_scale, lr, beta1, beta2, eps, weight_decay, step_size, v_correction;
};
using AdamwQ8Fn = void (*)(const AdamwQ8Args&) noexcept;

// ---- scans: a few queries against many stored vectors; out(j, i) at out[j * ldo + i] for query j < nq, vector i < n. A
// vector's score depends on itself and its query alone. Rows of x may have any stride; queries are contiguous.

// scan_f32: out = sum over c of q[j, c] x[i, c], in the tier's own order.
struct ScanF32Args {
  int64_t n, dim, nq;
  const float* x;
  int64_t ldx;
  const float* q;  // [nq][dim]
  float* out;
  int64_t ldo;
};
using ScanF32Fn = void (*)(const ScanF32Args&) noexcept;

// scan_i8: out = float(sum over c of q x) * (q_scale[j] * x_scale[i]); the integer sum is exact (dim <= 130000), so all
// tiers give the same bits. Codes lie in [-127, 127] (quantize_i8 with one group per row).
struct ScanI8Args {
  int64_t n, dim, nq;
  const int8_t* x;
  int64_t ldx;
  const float* x_scale;  // [n]
  const int8_t* q;       // [nq][dim]
  const float* q_scale;  // [nq]
  float* out;
  int64_t ldo;
};
using ScanI8Fn = void (*)(const ScanI8Args&) noexcept;

// scan_binary: bit c % 64 of word c / 64 is set where component c is below zero; bits beyond dim are equal (0) in both.
// out = dim - 2 * (number of bits that differ), the inner product of the vectors of signs. Exact (dim <= 2^23).
struct ScanBinaryArgs {
  int64_t n, dim, nq;
  const uint64_t* x;
  int64_t words;      // per vector, ceil(dim / 64)
  const uint64_t* q;  // [nq][words]
  float* out;
  int64_t ldo;
};
using ScanBinaryFn = void (*)(const ScanBinaryArgs&) noexcept;

// ---- attention -------------------------------------------------------------------------------------------------

// Block sizes are part of the result's definition (they order the sums), so all tiers share them.
constexpr int64_t kAttentionBlockQ = 64;   // query rows per task
constexpr int64_t kAttentionBlockK = 128;  // keys per block, counted from key 0 (prefix keys form blocks of their own)
constexpr int64_t kAttentionChunkK = 512;  // keys per part, counted from key 0
constexpr int64_t kAttentionTileRows = 12;   // rows whose scores a kernel keeps at a time; not part of the definition
constexpr int64_t kAttentionMaxHeadDim = 256;
constexpr int64_t kAttentionMaxGroup = 512;  // query heads per key/value head

// A row is summed in parts: all prefix keys are one, and so are the keys of each chunk. A part has a maximum, a sum and
// a value vector of its own; the parts of which the row sees something are merged in order (prefix first). Parts may
// therefore be computed anywhere, by any thread, and the bits stay the same.

// One sequence, one key/value head and the `group` query heads that share it; query rows [0, tq). Never stores tq x tk.
// 1 <= head_dim <= kAttentionMaxHeadDim, group <= kAttentionMaxGroup. Row t stands at position q_pos0 + t on the key axis. It sees all prefix keys
// (which carry no alibi), and key j if (!causal || j <= pos) and (window == 0 || j > pos - window).
// score = softcap * tanh(scale q.k / softcap) (softcap 0: none) + alibi[g] * j.
// Normaliser: sum exp(score - max), plus exp(-max) when softmax_one (merged last). A row that sees no key gives o = 0, lse = -inf.
// The bits of a row do not depend on tq, nor on keys that it does not see.
// attention_bf16, attention_cache_*_bf16: q, k, v (int8: the codes, exactly) and the exponentials (int8: times v_scale) are
// rounded to bf16 before they are multiplied, products are summed in f32 as in GemmBf16Args; everything between them, and
// the sum of the exponentials, is f32. Pairs of keys are counted from key 0. The same promises about bits.
struct AttentionArgs {
  const float* q;  // q(t, g, d) at q[t * q_row + g * q_head + d]
  int64_t q_row, q_head;
  const float* k;  // k(j, d) at k[j * k_row + d]
  const float* v;
  int64_t k_row, v_row;
  const float* prefix_k;  // [n_prefix] rows; may be null
  const float* prefix_v;
  int64_t n_prefix, prefix_row;
  float* o;  // o(t, g, d) at o[t * o_row + g * o_head + d]
  int64_t o_row, o_head;
  float* lse;  // lse(t, g) at lse[g * lse_head + t]; may be null
  int64_t lse_head;
  int64_t tq, tk, group, head_dim;
  int64_t q_pos0, window;
  int32_t causal, softmax_one;
  float scale, softcap;
  const float* alibi;  // [group] slopes; may be null
  float* scratch;      // attention_scratch_floats(head_dim)
};
using AttentionFn = void (*)(const AttentionArgs&) noexcept;

// The same over one key/value head of a cache, in f32, f16 or int8 (one slot each). The keys lie in the order that the
// products want, so that every byte is read once and in sequence:
//   k(j, d) at k[(j / B * head_dim + d) * B + j % B], B = kAttentionBlockK;  v(j, d) at v[j * head_dim + d]
// int8: the key is k_scale[j] * code, the value v_scale[j] * code; the scales go to score and probability, not to the
// elements. Whole vectors are read: 64 bytes behind row tk - 1 of v, k up to the end of its block, and k_scale and
// v_scale up to a multiple of kAttentionBlockK must be readable, but may hold anything.
// A row has the bits of slot `attention` on f32 keys of the same values; any f16 or int8 cache gives a row the same bits
// whatever tq, and whether in one call or in parts.
constexpr int64_t kAttentionAllParts = -2;  // part: everything, to f.o and f.lse
constexpr int64_t kAttentionPrefixPart = -1;
struct AttentionCacheArgs {
  AttentionArgs f;  // f.k, f.v, f.k_row, f.v_row are not read
  const void* k;
  const void* v;
  const float* k_scale;  // int8 only
  const float* v_scale;
  int64_t part;     // kAttentionAllParts, or one part to `partial`: kAttentionPrefixPart or the number of a chunk
  float* partial;   // row (t, g) at partial[(t * group + g) * (head_dim + 2)]: max, sum, head_dim unnormalised values;
                    // sum 0 if it sees nothing of the part
};
using AttentionCacheFn = void (*)(const AttentionCacheArgs&) noexcept;

// Merges parts in order and normalises: the o and lse that a call for all parts would have given, bit for bit.
struct AttentionMergeArgs {
  const float* parts;  // n_parts partials, part_stride apart
  int64_t n_parts, part_stride;
  float* o;  // o(t, g, d) at o[t * o_row + g * o_head + d]
  int64_t o_row, o_head;
  float* lse;  // may be null
  int64_t lse_head;
  int64_t tq, group, head_dim;
  int32_t softmax_one;
};
using AttentionMergeFn = void (*)(const AttentionMergeArgs&) noexcept;

// The gradient of one (sequence, kv head) by its keys [key_begin, key_end): writes dk and dv of these keys, and what they
// add to dq of all rows (all of dq when they are all keys). key_begin is a multiple of kAttentionBlockK. The prefix
// belongs to the call with key_begin 0; its gradients are ADDED (callers sum over the batch in a fixed order). f.tq may
// exceed kAttentionBlockQ here, as in the forward. attention_bwd_bf16 rounds q, k, v, dO, the probabilities and the
// gradients of q.k to bf16 wherever they are multiplied, and dO where it meets o; sums as in attention_bf16.
struct AttentionBwdArgs {
  AttentionArgs f;   // f.o and f.lse hold the forward's results; f.scratch: attention_bwd_scratch_floats(head_dim)
  const float* d_o;  // strides of f.o
  float* dq;         // strides of f.q
  float* dk;         // strides dk_row, dv_row
  float* dv;
  int64_t dk_row, dv_row;
  float* d_prefix_k;  // stride f.prefix_row; may be null
  float* d_prefix_v;
  int64_t key_begin, key_end;
};
using AttentionBwdFn = void (*)(const AttentionBwdArgs&) noexcept;

constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  const int64_t d = (head_dim + 63) / 64 * 64;
  return 2 * kAttentionBlockK * d + kAttentionTileRows * kAttentionBlockK + kAttentionMaxGroup * (d + 4) + 256;
}
constexpr int64_t attention_bwd_scratch_floats(int64_t head_dim) {
  const int64_t d = (head_dim + 63) / 64 * 64;
  return 6 * kAttentionBlockK * d + kAttentionBlockQ * (5 * kAttentionBlockK + 6 * d + 8) + 256;
}

// ---- probes ----------------------------------------------------------------------------------------------------

// Not used by any op: they measure what this machine can do, per tier, through the same table (doctor, bench).
constexpr int64_t kProbeChains = 192;  // independent accumulators: 12 vectors of 16 lanes hide the latency of two pipes

// probe_fma_f32: src: float a[16], b[16], start[192]; dst: float[192]:
//   dst[j] = start[j], then n times dst[j] = fma(a[j % 16], b[j % 16], dst[j]).           2 * 192 flops per n
// probe_int8: src: uint8 a[64] (<= 127), int8 b[64]; dst: int32[192], wrapping:
//   dst[j] = n times += sum over i < 4 of a[4 (j % 16) + i] b[4 (j % 16) + i].            8 * 192 ops per n
// probe_bf16: src: bf16 a[32], b[32]; dst: float[192]:
//   dst[j] = n times += a[2 (j % 16)] b[2 (j % 16)] + a[2 (j % 16) + 1] b[2 (j % 16) + 1]. 4 * 192 flops per n
// probe_read: src: float[n]; dst: float[1], their sum in any order.
// probe_copy: src: float[n]; dst: float[n], with plain stores (so the written lines are read first, as in the kernels).
struct ProbeArgs {
  int64_t n;
  const void* src;
  void* dst;
};
using ProbeFn = void (*)(const ProbeArgs&) noexcept;

}  // namespace thimble
