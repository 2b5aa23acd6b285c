// The ops: each allocates its output in ctx.saved, runs kernels, and records itself when a gradient is wanted. Shapes:
// M rows (tokens of all sequences, packed without padding), C, N features, H heads, D head_dim, V vocabulary.
// Forward and backward of an op stand side by side in its file.
#pragma once

#include <cstdint>

#include "tensor/context.h"
#include "tensor/kv_layout.h"
#include "tensor/tape.h"

namespace thimble {

enum class Activation : uint8_t { gelu_erf, gelu_tanh, relu, silu };

// rows of w picked by ids: [M, C]. ids are in range and outlive backward.
Var embed(Context& ctx, Weight* w, const int32_t* ids, int64_t n);
// x + w[positions[i] + offset]: learned positions. x is [M, C].
Var add_positions(Context& ctx, Var x, Weight* w, const int32_t* positions, int64_t offset);
// x Wᵀ + b: [M, N]; b may be null. packs: pack() follows (after adapters and rope) before anything else reads it.
Var linear(Context& ctx, Var x, Weight* w, Weight* b, bool packs = false);
// Several that do not read one another; those of a token or a few run as one loop (gemm.h). The same bits and nodes as one
// linear() after another.
struct Linear {
  Var x;
  Weight* w;
  Weight* b;
  bool packs;
  Var y;  // the result
};
void linears(Context& ctx, Linear* all, int count);
// In training with bf16 products: y, just made by linear, rope, attention or an adapter, is rounded to bf16 in place;
// Recompute::cheap keeps the 16 bits alone. The gradient passes unchanged. Elsewhere: nothing.
Var pack(Context& ctx, Var y);
// w, b may be null. packs: as in linear.
Var rms_norm(Context& ctx, Var x, Weight* w, float eps, float w_offset = 0, bool packs = false);
Var layer_norm(Context& ctx, Var x, Weight* w, Weight* b, float eps, bool packs = false);
// Rotates in place: x is [M, H*D], the first rot_dim entries of each head; tables [positions][rot_dim / 2].
Var rope(Context& ctx, Var x, int64_t heads, int64_t head_dim, int64_t rot_dim, bool interleaved, const float* cos_table,
         const float* sin_table, const int32_t* positions);
Var activation(Context& ctx, Var x, Activation kind);
// f(gate) * up
Var gated(Context& ctx, Var gate, Var up, Activation kind);
Var add(Context& ctx, Var a, Var b);
// The same in the memory of b, the output of a linear or of its adapters, whose backward does not read it.
Var add_into(Context& ctx, Var a, Var b);
Var scale(Context& ctx, Var x, float alpha);
// cap tanh(x / cap), in place: x is the output of an op whose backward does not read it.
Var softcap(Context& ctx, Var x, float cap);
// x held in [-limit, limit]
Var clip(Context& ctx, Var x, float limit);

// Sequences are packed without padding: sequence s owns the rows [cu_seqlens[s], cu_seqlens[s + 1]). Must outlive backward.
struct AttentionSpec {
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t n_seqs = 0;
  const int32_t* cu_seqlens = nullptr;
  bool causal = true, softmax_one = false;
  int64_t window = 0;  // keys j with pos - window < j <= pos; 0: all
  float scale = 1, softcap = 0;
  const float* alibi = nullptr;  // [n_heads] or null
  // Prefix keys and values per sequence, visible to all queries: rows of n_kv_heads * head_dim at stride prefix_row
  // (0: contiguous). prefix_len, when given, replaces n_prefix per sequence (0: that one has none). null: no prefix.
  const float* const* prefix_k = nullptr;
  const float* const* prefix_v = nullptr;
  int64_t n_prefix = 0, prefix_row = 0;
  const int32_t* prefix_len = nullptr;
  // The parameter [prefix rows, prefix_row] that the prefix of a sequence is a part of, and the columns where its keys
  // and values start. Its gradient is summed over the sequences in order. null: frozen.
  Weight* const* prefix_owner = nullptr;
  int64_t prefix_k_col = 0, prefix_v_col = 0;
  // Decoding: keys and values come from a cache (k and v of the op are then ignored). Row r of sequence s stands at
  // position cache_len[s] + r - cu_seqlens[s]; the cache holds all rows up to the last query. No gradient. An f32 cache
  // gives the bits of the same rows without a cache; every type gives the same bits however the rows are cut into calls.
  // All this in one precision of the context: bf16 rounds the operands of products, forward, backward and over a cache.
  const KvLayout* cache = nullptr;
  std::byte* const* cache_seqs = nullptr;  // [n_seqs]: where a sequence's keys and values of this layer lie
  const int32_t* cache_len = nullptr;  // rows before this call
};
// q [M, H*D], k and v [M, Hkv*D] -> [M, H*D]
Var attention(Context& ctx, Var q, Var k, Var v, const AttentionSpec* spec);

// One vector per sequence: y[s] = sum of weights[r] x[r] over its rows [cu_seqlens[s], cu_seqlens[s + 1]): [n_seqs, C].
// cu_seqlens and weights [M] outlive backward.
Var pool_rows(Context& ctx, Var x, const int32_t* cu_seqlens, int64_t n_seqs, const float* weights);
// Every row divided by its length; rows shorter than 1e-12 by that.
Var l2_normalize(Context& ctx, Var x);

// ---- adapters: rows [begin, end) only, the others pass unchanged; y is changed in place ----

// Inverted dropout whose mask is a pure function of (seed, stream, row - begin, column); p 0: none.
struct Dropout {
  float p = 0;
  uint64_t seed = 0, stream = 0;
};
// LoRA, y += scale (dropout(x) Aᵀ) Bᵀ with A [r, C] and B [N, r], in two steps, so that several adapters of one input (q, k
// and v; gate and up) read it once: h [end - begin, ranks of a] = dropout(rows of x) times [a[0]; a[1]; ...]ᵀ, the columns
// of a[i] scaled by scales[i]; count <= kLoraGroup. They share the mask; adapters with masks of their own come one by one.
constexpr int kLoraGroup = 4;
Var lora_down(Context& ctx, Var x, int64_t begin, int64_t end, Weight* const* a, const float* scales, int count,
              Dropout dropout = {});
// y += h[:, col .. col + b->cols) Bᵀ
Var lora_up(Context& ctx, Var y, int64_t begin, int64_t end, Var h, int64_t col, Weight* b);
// y[r, c] *= l[c]
Var col_scale(Context& ctx, Var y, int64_t begin, int64_t end, Weight* l);
// DoRA is LoRA, then dora_scale by the norms of the rows of W + scale B A, then the bias: y = m / norm (W + scale B A) x + b.
// The norms are constants of backward (PEFT detaches them). In f32 whatever the context's precision; W of any format.
// squares [N] are the sums of squares of W's rows; norms [N].
void dora_norms(Context& ctx, const Weight& w, const Weight& a, const Weight& b, float scale, const double* squares, float* norms);
void row_squares(const KernelTable& kernels, int threads, const Weight& w, double* squares);
// y[r, c] *= m[c] / norms[c]; norms outlive backward.
Var dora_scale(Context& ctx, Var y, int64_t begin, int64_t end, Weight* m, const float* norms);
// y[r, c] += b[c]
Var add_bias(Context& ctx, Var y, int64_t begin, int64_t end, Weight* b);
// y[begin + i] = w[i] for the rows of w.
Var replace_rows(Context& ctx, Var y, int64_t begin, Weight* w);

// Mean-style cross entropy of logits = hidden Wᵀ + b against labels [M] (negative: ignored), divided by `denominator`
// (the number of labels of the whole accumulation group). Runs in row chunks, so logits never exist for the whole batch;
// with a tape the gradients of hidden and of the head are made in the same pass. Returns the sum of losses / denominator;
// row_loss [M] receives the losses in nats when not null. row_scale [M], when given, is the weight of a row's loss
// instead of 1 / denominator: people who share a batch keep denominators of their own. softcap: of the logits; 0: none.
double linear_cross_entropy(Context& ctx, Var hidden, Weight* head, Weight* bias, const int32_t* labels, double denominator,
                            double* row_loss = nullptr, const float* row_scale = nullptr, float softcap = 0);

// What a block keeps for backward: everything; everything but the outputs of norms, activations and gated units, which
// are made again from what is kept; or its input only, from which the whole block is run again. The gradients have the
// same bits in all three.
enum class Recompute : uint8_t { none, cheap, block };

// One block of the network: runs fn(ctx, user, index, x). Everything it allocates is freed again except its output,
// unless a tape records it. Of the values outside it, fn reads x only.
using BlockFn = Var (*)(Context& ctx, void* user, int index, Var x);
struct BlockCall {
  BlockFn fn = nullptr;
  void* user = nullptr;
  int index = 0;
};
// needs_grad: the block holds trainable parameters or its input wants a gradient. call outlives backward.
Var run_block(Context& ctx, const BlockCall* call, Var x, Recompute recompute, bool needs_grad);

}  // namespace thimble
