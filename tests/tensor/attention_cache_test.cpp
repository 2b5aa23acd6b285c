// The attention op over a key/value cache: an f32 cache has the bits of no cache; for every type they depend neither on
// threads (which decide whether keys are split), nor on chunks, nor on the sequences beside.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "tensor/error.h"
#include "tensor/ops.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

constexpr int64_t kHeads = 6, kKvHeads = 2, kDim = 20;
constexpr int64_t kCols = kHeads * kDim, kKvCols = kKvHeads * kDim;

std::vector<float> uniform(uint64_t seed, int64_t n) {
  Philox rng(seed, 1);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = static_cast<float>(rng.uniform() * 2 - 1);
  return v;
}

struct Input {
  std::vector<int64_t> lengths;
  int64_t window = 0;
  bool prefix = false;
};

struct Tokens {
  std::vector<float> q, k, v;
  Tokens(uint64_t seed, int64_t n) : q(uniform(seed, n * kCols)), k(uniform(seed + 1, n * kKvCols)), v(uniform(seed + 2, n * kKvCols)) {}
};

// Outputs of all rows of all sequences. chunks: how many rows of sequence s a call appends, by call; null: no cache.
std::vector<std::vector<float>> outputs(Context& ctx, const Input& input, const KvType* kv,
                                        const std::function<int64_t(size_t s, int call)>& chunk) {
  const size_t n_seqs = input.lengths.size();
  std::vector<Tokens> tokens;
  std::vector<std::vector<float>> out(n_seqs);
  const std::vector<float> prefix = uniform(77, 2 * 3 * kKvCols);
  std::vector<const float*> prefix_k(n_seqs, prefix.data()), prefix_v(n_seqs, prefix.data() + 3 * kKvCols);
  KvLayout layout;
  layout.type = kv ? *kv : KvType::f32;
  layout.n_kv_heads = kKvHeads;
  layout.head_dim = kDim;
  for (size_t s = 0; s < n_seqs; ++s) {
    tokens.emplace_back(10 * s + 1, input.lengths[s]);
    layout.capacity = std::max(layout.capacity, input.lengths[s]);
  }
  const Buffer store(static_cast<size_t>(layout.sequence_bytes()) * n_seqs);
  std::memset(store.data(), 0xff, store.bytes());  // what was not written must not matter
  std::vector<std::byte*> sequences;
  for (size_t s = 0; s < n_seqs; ++s)
    sequences.push_back(static_cast<std::byte*>(store.data()) + s * static_cast<size_t>(layout.sequence_bytes()));
  std::vector<int32_t> done(n_seqs, 0);
  for (int call = 0; call < 10000; ++call) {
    std::vector<int32_t> cu{0};
    std::vector<float> q, k, v;
    for (size_t s = 0; s < n_seqs; ++s) {
      const int64_t n = std::min(kv ? chunk(s, call) : input.lengths[s], input.lengths[s] - done[s]);
      const auto part = [&](const std::vector<float>& from, int64_t cols, std::vector<float>* to) {
        to->insert(to->end(), from.begin() + done[s] * cols, from.begin() + (done[s] + n) * cols);
      };
      if (kv) kv_store(ctx, layout, sequences[s], done[s], n, tokens[s].k.data() + done[s] * kKvCols, tokens[s].v.data() + done[s] * kKvCols);
      part(tokens[s].q, kCols, &q);
      part(tokens[s].k, kKvCols, &k);
      part(tokens[s].v, kKvCols, &v);
      cu.push_back(cu.back() + static_cast<int32_t>(n));
    }
    if (cu.back() == 0) {
      bool all = true;
      for (size_t s = 0; s < n_seqs; ++s) all = all && done[s] == input.lengths[s];
      if (all) break;
      continue;
    }
    AttentionSpec spec;
    spec.n_heads = kHeads;
    spec.n_kv_heads = kKvHeads;
    spec.head_dim = kDim;
    spec.n_seqs = static_cast<int64_t>(n_seqs);
    spec.cu_seqlens = cu.data();
    spec.window = input.window;
    spec.scale = 0.5f;
    if (input.prefix) {
      spec.prefix_k = prefix_k.data();
      spec.prefix_v = prefix_v.data();
      spec.n_prefix = 3;
    }
    if (kv) {
      spec.cache = &layout;
      spec.cache_seqs = sequences.data();
      spec.cache_len = done.data();
    }
    Var vars[3];
    vars[0].t = Tensor::matrix(q.data(), cu.back(), kCols);
    vars[1].t = Tensor::matrix(k.data(), cu.back(), kKvCols);
    vars[2].t = Tensor::matrix(v.data(), cu.back(), kKvCols);
    const ArenaScope scope(ctx.saved);
    const Var y = attention(ctx, vars[0], vars[1], vars[2], &spec);
    for (size_t s = 0; s < n_seqs; ++s) {
      out[s].insert(out[s].end(), y.t.f32() + cu[s] * kCols, y.t.f32() + cu[s + 1] * kCols);
      done[s] += cu[s + 1] - cu[s];
    }
    if (!kv) break;
  }
  return out;
}

bool same(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  for (size_t s = 0; s < a.size(); ++s)
    if (a[s].size() != b[s].size() || std::memcmp(a[s].data(), b[s].data(), a[s].size() * sizeof(float)) != 0) return false;
  return a.size() == b.size();
}

TEST(AttentionOp, CacheBitsDoNotDependOnChunksOrThreads) {
  const Input inputs[] = {{{1300}}, {{1100}, 600, true}, {{3, 700, 40}, 0, true}};
  // Whole, one long piece and then single tokens, uneven pieces: the last calls have few rows over many keys.
  const std::function<int64_t(size_t, int)> chunks[] = {
      [](size_t, int) { return int64_t{100000}; },
      [&](size_t, int call) { return call == 0 ? int64_t{690} : call == 1 ? int64_t{405} : int64_t{1 + call % 8}; },
      [](size_t s, int call) { return int64_t{(call + int64_t(s)) % 3 == 0 ? 0 : 30 + 17 * (call % 5)}; }};
  for (const Input& input : inputs) {
    for (Tier tier : {Tier::ref, best_tier()}) {
      if (tier == Tier::ref && input.lengths[0] > 1000) continue;  // slow
      const KernelTable kernels = build_kernel_table(tier);
      for (Precision precision : {Precision::f32, Precision::bf16}) {
        Context plain(kernels, 2, nullptr);
        plain.precision = precision;
        const auto exact = outputs(plain, input, nullptr, {});
        for (KvType kv : {KvType::f32, KvType::f16, KvType::int8}) {
          SCOPED_TRACE(std::string(kv_type_name(kv)) + ", tier " + tier_name(tier) + (precision == Precision::f32 ? "" : ", bf16"));
          std::vector<std::vector<float>> first;
          for (int threads : {1, 4}) {
            Context ctx(kernels, threads, nullptr);
            ctx.precision = precision;
            for (const auto& chunk : chunks) {
              const auto got = outputs(ctx, input, &kv, chunk);
              if (first.empty()) first = got;
              EXPECT_TRUE(same(first, got)) << threads << " threads";
            }
          }
          // What f16 rounds away, bf16 does too, but for a few ties.
          if (kv == KvType::f16 && precision == Precision::bf16) continue;
          EXPECT_EQ(same(exact, first), kv == KvType::f32) << "against no cache";
        }
      }
    }
  }
}

TEST(KvLayout, NamesAndSizes) {
  EXPECT_EQ(parse_kv_type("int8", "--kv"), KvType::int8);
  try {
    parse_kv_type("f8", "--kv");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::usage);
    EXPECT_NE(std::string(e.what()).find("--kv"), std::string::npos);
    EXPECT_NE(std::string(e.hint()).find("f16"), std::string::npos);
  }
  for (KvType type : {KvType::f32, KvType::f16, KvType::int8}) {
    const KvLayout layout{type, 3, 17, 130};
    EXPECT_EQ(layout.padded(), 256);
    EXPECT_EQ(layout.head_bytes() % 64, 0);
    EXPECT_GE(layout.scale_offset(), (256 + 130) * 17 * layout.element_bytes() + 64);
  }
}

// int8: codes of at most 127, one scale per position and head; a row that is not finite is marked.
TEST(KvLayout, Int8Rows) {
  Context ctx(build_kernel_table(best_tier()), 1, nullptr);
  const KvLayout layout{KvType::int8, 2, 5, 3};
  const Buffer store(static_cast<size_t>(layout.sequence_bytes()));
  auto* sequence = static_cast<std::byte*>(store.data());
  std::vector<float> k = uniform(1, 30), v = uniform(2, 30);
  v[12] = std::numeric_limits<float>::quiet_NaN();  // position 1, head 0
  kv_store(ctx, layout, sequence, 0, 3, k.data(), v.data());
  for (int64_t h = 0; h < 2; ++h) {
    std::byte* head = layout.head(sequence, h);
    for (int64_t j = 0; j < 3; ++j) {
      const float scale = layout.k_scale(head)[j];
      for (int64_t d = 0; d < 5; ++d) {
        const int code = reinterpret_cast<const int8_t*>(head)[d * kAttentionBlockK + j];
        EXPECT_NEAR(scale * float(code), k[size_t(j * 10 + h * 5 + d)], 0.5001 * double(scale));
      }
      EXPECT_EQ(std::isnan(layout.v_scale(head)[j]), j == 1 && h == 0);
    }
  }
}

}  // namespace
}  // namespace thimble
