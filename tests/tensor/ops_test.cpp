// The gradient of every op against differences. The test iterates op_rows.def: a row with backward but without a case
// here fails.
#include <memory>

#include "tests/tensor/expert_cases.h"
#include "tests/tensor/ops_gradient.h"

namespace thimble::ops_test {
namespace {

Var rotate(Graph& g, Var x, int64_t heads, int64_t head_dim, int64_t dims, bool interleaved) {
  static const int32_t positions[] = {0, 1, 2, 7, 30};
  static const auto table = [](bool sine) {
    std::vector<float> t(64 * 16);
    for (size_t i = 0; i < t.size(); ++i) {
      const double angle = double(i / 16) * std::pow(100.0, -double(i % 16) / 16);
      t[i] = static_cast<float>(sine ? std::sin(angle) : std::cos(angle));
    }
    return t;
  };
  // Tables are [positions][dims / 2]: re-cut for each size.
  static std::vector<std::unique_ptr<std::vector<float>>> kept;
  const auto cut = [&](bool sine) {
    const std::vector<float> all = table(sine);
    auto t = std::make_unique<std::vector<float>>();
    for (size_t p = 0; p < 64; ++p) t->insert(t->end(), &all[p * 16], &all[p * 16] + dims / 2);
    kept.push_back(std::move(t));
    return kept.back()->data();
  };
  const float* cosine = cut(false);
  const float* sine = cut(true);
  return rope(g.ctx, x, heads, head_dim, dims, interleaved, cosine, sine, positions);
}

// rope works in place, on a value of its own.
Var own(Graph& g, Var x) { return scale(g.ctx, x, 1.0f); }

struct AttentionCase {
  const char* name;
  int64_t heads, kv_heads, head_dim;
  std::vector<int32_t> cu;
  bool causal = true, softmax_one = false;
  int64_t window = 0, n_prefix = 0;
  float softcap = 0;
  bool alibi = false;
};

Case attention_case(const AttentionCase& a) {
  struct Spec {
    AttentionSpec s;
    std::vector<int32_t> cu;
    std::vector<float> alibi, prefix;
    std::vector<const float*> prefix_k, prefix_v;
  };
  auto spec = std::make_shared<Spec>();
  spec->cu = a.cu;
  AttentionSpec& s = spec->s;
  s.n_heads = a.heads;
  s.n_kv_heads = a.kv_heads;
  s.head_dim = a.head_dim;
  s.n_seqs = static_cast<int64_t>(a.cu.size()) - 1;
  s.cu_seqlens = spec->cu.data();
  s.causal = a.causal;
  s.softmax_one = a.softmax_one;
  s.window = a.window;
  s.scale = 0.7f;
  s.softcap = a.softcap;
  if (a.alibi) {
    for (int64_t h = 0; h < a.heads; ++h) spec->alibi.push_back(std::ldexp(1.0f, -static_cast<int>(h) - 1));
    s.alibi = spec->alibi.data();
  }
  if (a.n_prefix > 0) {
    const int64_t one = a.n_prefix * a.kv_heads * a.head_dim;
    spec->prefix = uniform(5, 2 * one * s.n_seqs);
    for (int64_t i = 0; i < s.n_seqs; ++i) {
      spec->prefix_k.push_back(&spec->prefix[size_t(2 * i * one)]);
      spec->prefix_v.push_back(&spec->prefix[size_t((2 * i + 1) * one)]);
    }
    s.prefix_k = spec->prefix_k.data();
    s.prefix_v = spec->prefix_v.data();
    s.n_prefix = a.n_prefix;
  }
  const int64_t rows = a.cu.back();
  return {std::string("attention ") + a.name,
          {value(rows, a.heads * a.head_dim, 11), value(rows, a.kv_heads * a.head_dim, 12), value(rows, a.kv_heads * a.head_dim, 13)},
          [spec](Graph& g) { return attention(g.ctx, g.x(0), g.x(1), g.x(2), &spec->s); }};
}

// Keys and values of a prefix as two column ranges of one trainable matrix; the second of three sequences has none.
Case prefix_case(const char* name, bool projections) {
  struct Spec {
    AttentionSpec s;
    std::vector<const float*> k, v;
    std::vector<Weight*> owner;
    std::vector<int32_t> cu = {0, 6, 9, 14}, len = {3, 0, 3};
  };
  auto spec = std::make_shared<Spec>();
  constexpr int64_t kHeads = 4, kKv = 2, kDim = 8, kRow = 3 * kKv * kDim;
  AttentionSpec& s = spec->s;
  s.n_heads = kHeads;
  s.n_kv_heads = kKv;
  s.head_dim = kDim;
  s.n_seqs = 3;
  s.cu_seqlens = spec->cu.data();
  s.n_prefix = 3;
  s.prefix_row = kRow;
  s.prefix_len = spec->len.data();
  s.prefix_k_col = kKv * kDim;
  s.prefix_v_col = 2 * kKv * kDim;
  return {name,
          {value(14, kHeads * kDim, 11, projections), value(14, kKv * kDim, 12, projections), value(14, kKv * kDim, 13, projections),
           weight(3, kRow, 14)},
          [spec](Graph& g) {
            Weight* w = g.w(3);
            AttentionSpec& a = spec->s;
            spec->k = {w->f32() + a.prefix_k_col, nullptr, w->f32() + a.prefix_k_col};
            spec->v = {w->f32() + a.prefix_v_col, nullptr, w->f32() + a.prefix_v_col};
            spec->owner = {w, nullptr, w};
            a.prefix_k = spec->k.data();
            a.prefix_v = spec->v.data();
            a.prefix_owner = spec->owner.data();
            return attention(g.ctx, g.x(0), g.x(1), g.x(2), &spec->s);
          }};
}

// A block of the network on x [rows, 8] with weights 1..4 of the graph: norm, two matrices, gate.
struct Block {
  Graph* graph = nullptr;
  bool parallel = false;
  std::vector<BlockCall> calls;
  static Var run(Context& ctx, void* user, int, Var x) {
    const auto& b = *static_cast<Block*>(user);
    Graph& g = *b.graph;
    const Var n = rms_norm(ctx, x, g.w(1), 1e-5f);
    const Var first = linear(ctx, n, g.w(2), nullptr);
    const Var h = b.parallel ? x : add(ctx, x, first);
    const Var up = linear(ctx, layer_norm(ctx, h, nullptr, nullptr, 1e-5f), g.w(3), g.w(4));
    const Var second = activation(ctx, up, Activation::gelu_tanh);
    if (b.parallel) return add(ctx, add(ctx, x, first), second);
    return add(ctx, h, second);
  }
};

// Three blocks that share their weights, so that parameter gradients add up.
Case block_case(const char* name, bool recompute, bool parallel, bool input_wanted) {
  auto block = std::make_shared<Block>();
  block->parallel = parallel;
  for (int i = 0; i < 3; ++i) block->calls.push_back({&Block::run, block.get(), i});
  return {name,
          {value(7, 8, 21, input_wanted), weight(1, 8, 22), weight(8, 8, 23), weight(8, 8, 24), weight(1, 8, 25)},
          [block, recompute](Graph& g) {
            block->graph = &g;
            Var x = g.x(0);
            for (const BlockCall& call : block->calls) x = run_block(g.ctx, &call, x, recompute ? Recompute::block : Recompute::none, true);
            return x;
          }};
}

// Values that are read again above the blocks they go through: their gradient must survive the blocks' own memory.
Case skip_case(const char* name, bool recompute) {
  auto block = std::make_shared<Block>();
  for (int i = 0; i < 4; ++i) block->calls.push_back({&Block::run, block.get(), i});
  return {name,
          {value(7, 8, 21), weight(1, 8, 22), weight(8, 8, 23), weight(8, 8, 24), weight(1, 8, 25)},
          [block, recompute](Graph& g) {
            block->graph = &g;
            const auto run = [&](size_t i, Var x) { return run_block(g.ctx, &block->calls[i], x, recompute ? Recompute::block : Recompute::none, true); };
            const Var first = run(0, g.x(0)), second = run(1, first), third = run(2, second);
            const Var skip = add(g.ctx, add(g.ctx, third, first), g.x(0));
            return add(g.ctx, run(3, skip), activation(g.ctx, second, Activation::silu));
          }};
}

// Two streams whose blocks alternate.
Case tower_case(const char* name, bool recompute) {
  Case c = skip_case(name, recompute);
  c.step = 0.01;  // the product of two streams bends more
  auto block = std::make_shared<Block>();
  for (int i = 0; i < 4; ++i) block->calls.push_back({&Block::run, block.get(), i});
  c.build = [block, recompute](Graph& g) {
    block->graph = &g;
    const auto run = [&](size_t i, Var x) { return run_block(g.ctx, &block->calls[i], x, recompute ? Recompute::block : Recompute::none, true); };
    const Var a = run(0, g.x(0)), b = run(1, scale(g.ctx, g.x(0), 0.5f));
    const Var a2 = run(2, a), b2 = run(3, b);
    return gated(g.ctx, a2, b2, Activation::silu);
  };
  return c;
}

Case loss_case(const char* name, int64_t rows, int64_t vocab, bool bias, bool hidden_wanted, bool head_wanted,
               bool row_weights = false, bool sparse = false, float softcap = 0) {
  std::vector<Leaf> leaves = {value(rows, 12, 31, hidden_wanted), weight(vocab, 12, 32, head_wanted)};
  if (bias) leaves.push_back(weight(1, vocab, 33));
  auto labels = std::make_shared<std::vector<int32_t>>();
  for (int64_t i = 0; i < rows; ++i) labels->push_back((i % 4 == 1) != sparse ? -1 : static_cast<int32_t>(i * 7 % vocab));
  auto weights = std::make_shared<std::vector<float>>(uniform(34, rows));
  return {name, leaves, [labels, weights, bias, row_weights, softcap](Graph& g) {
            g.loss = linear_cross_entropy(g.ctx, g.x(0), g.w(1), bias ? g.w(2) : nullptr, labels->data(), 5.5, nullptr,
                                          row_weights ? weights->data() : nullptr, softcap);
            return Var{};
          }};
}

// y += scale (dropout(x) Aᵀ) Bᵀ on the rows [begin, end)
Var adapted(Context& ctx, Var y, Var x, int64_t begin, int64_t end, Weight* a, Weight* b, float scale, Dropout dropout) {
  const Var h = lora_down(ctx, x, begin, end, &a, &scale, 1, dropout);
  return lora_up(ctx, y, begin, end, h, 0, b);
}

// Values that are not within 0.1 of +-limit, where clip has a kink.
std::vector<float> away_from(float limit, uint64_t seed, int64_t n) {
  std::vector<float> x = uniform(seed, n);
  for (float& v : x)
    if (std::fabs(std::fabs(v) - limit) < 0.1f) v *= 0.5f;
  return x;
}

// DoRA over a frozen linear on rows 1..4. The norms are those of the leaves as they stand, never of the moved ones: that is
// what backward sees.
Case dora_case(const char* name, bool input, bool magnitude, bool bias) {
  std::vector<Leaf> leaves = {value(6, 9, 2, input), weight(12, 9, 1, false), weight(3, 9, 3), weight(12, 3, 4), weight(1, 12, 5, magnitude)};
  auto norms = std::make_shared<std::vector<float>>();
  for (size_t n = 0; n < 12; ++n) {
    double sum = 0;
    for (size_t c = 0; c < 9; ++c) {
      double v = double(leaves[1].data[n * 9 + c]);
      for (size_t k = 0; k < 3; ++k) v += 0.7 * double(leaves[3].data[n * 3 + k]) * double(leaves[2].data[k * 9 + c]);
      sum += v * v;
    }
    norms->push_back(static_cast<float>(std::sqrt(sum)));
  }
  if (bias) leaves.push_back(weight(1, 12, 6));
  return {name, leaves, [norms, bias](Graph& g) {
            const Var y = adapted(g.ctx, linear(g.ctx, g.x(0), g.w(1), nullptr), g.x(0), 1, 4, g.w(2), g.w(3), 0.7f, {});
            const Var z = dora_scale(g.ctx, y, 1, 4, g.w(4), norms->data());
            return bias ? add_bias(g.ctx, add_bias(g.ctx, z, 0, 1, g.w(5)), 1, 6, g.w(5)) : z;
          }};
}

std::vector<Case> cases_of(Op op) {
  static const int32_t ids[] = {3, 0, 3, 6, 3};
  switch (op) {
    case Op::embed:
      return {{"embed with repeated ids", {weight(7, 300, 1)}, [](Graph& g) { return embed(g.ctx, g.w(0), ids, 5); }}};
    case Op::add_positions:
      return {{"add_positions", {value(5, 9, 1), weight(9, 9, 2)}, [](Graph& g) { return add_positions(g.ctx, g.x(0), g.w(1), ids, 2); }},
              {"add_positions, frozen table", {value(5, 9, 1), weight(9, 9, 2, false)},
               [](Graph& g) { return add_positions(g.ctx, g.x(0), g.w(1), ids, 2); }},
              {"add_positions, frozen input", {value(5, 9, 1, false), weight(9, 9, 2)},
               [](Graph& g) { return add_positions(g.ctx, g.x(0), g.w(1), ids, 2); }}};
    case Op::linear: {
      std::vector<Case> cases;
      for (int frozen = 0; frozen < 4; ++frozen)
        cases.push_back({"linear with bias, frozen leaf " + std::to_string(frozen - 1),
                         {value(5, 19, 1, frozen != 1), weight(23, 19, 2, frozen != 2), weight(1, 23, 3, frozen != 3)},
                         [](Graph& g) { return linear(g.ctx, g.x(0), g.w(1), g.w(2)); }});
      cases.push_back({"linear, 70 rows, many columns", {value(70, 40, 1), weight(300, 40, 2)},
                       [](Graph& g) { return linear(g.ctx, g.x(0), g.w(1), nullptr); }});
      cases.push_back({"linear, one weight used twice", {value(6, 10, 1), weight(10, 10, 2, true, 0.4)}, [](Graph& g) {
                         return linear(g.ctx, linear(g.ctx, g.x(0), g.w(1), nullptr), g.w(1), nullptr);
                       }});
      return cases;
    }
    case Op::rms_norm:
      return {{"rms_norm", {value(6, 40, 1), weight(1, 40, 2)}, [](Graph& g) { return rms_norm(g.ctx, g.x(0), g.w(1), 1e-5f); }},
              {"rms_norm, offset 1, several chunks", {value(1100, 64, 1), weight(1, 64, 2)},
               [](Graph& g) { return rms_norm(g.ctx, g.x(0), g.w(1), 1e-5f, 1); }},
              {"rms_norm, frozen weight", {value(6, 40, 1), weight(1, 40, 2, false)},
               [](Graph& g) { return rms_norm(g.ctx, g.x(0), g.w(1), 1e-5f); }},
              {"rms_norm, frozen input", {value(6, 40, 1, false), weight(1, 40, 2)},
               [](Graph& g) { return rms_norm(g.ctx, g.x(0), g.w(1), 1e-5f); }}};
    case Op::layer_norm:
      return {{"layer_norm", {value(6, 40, 1), weight(1, 40, 2), weight(1, 40, 3)},
               [](Graph& g) { return layer_norm(g.ctx, g.x(0), g.w(1), g.w(2), 1e-5f); }},
              {"layer_norm, several chunks, frozen bias", {value(1100, 64, 1), weight(1, 64, 2), weight(1, 64, 3, false)},
               [](Graph& g) { return layer_norm(g.ctx, g.x(0), g.w(1), g.w(2), 1e-5f); }},
              {"layer_norm without weights", {value(6, 40, 1)},
               [](Graph& g) { return layer_norm(g.ctx, g.x(0), nullptr, nullptr, 1e-5f); }}};
    case Op::rope:
      return {{"rope", {value(5, 32, 1)}, [](Graph& g) { return rotate(g, own(g, g.x(0)), 2, 16, 16, false); }},
              {"rope, interleaved", {value(5, 32, 1)}, [](Graph& g) { return rotate(g, own(g, g.x(0)), 2, 16, 16, true); }},
              {"rope, 6 of 16", {value(5, 32, 1)}, [](Graph& g) { return rotate(g, own(g, g.x(0)), 2, 16, 6, false); }},
              {"rope, interleaved, 6 of 16", {value(5, 32, 1)}, [](Graph& g) { return rotate(g, own(g, g.x(0)), 2, 16, 6, true); }},
              {"rope, two readers of its input", {value(5, 32, 1)}, [](Graph& g) {
                 return add(g.ctx, rotate(g, own(g, g.x(0)), 2, 16, 16, false), scale(g.ctx, g.x(0), 0.3f));
               }}};
    case Op::attention:
      return {attention_case({"MHA, several lengths", 2, 2, 8, {0, 5, 6, 15}}),
              attention_case({"GQA, blocks of queries and keys", 4, 2, 8, {0, 140, 147}}),
              attention_case({"MQA", 4, 1, 16, {0, 9, 20}}),
              attention_case({"keys split among tasks", 2, 1, 8, {0, 600, 640}}),
              attention_case({"keys split, prefix and window", 2, 1, 8, {0, 300}, true, false, 200, 3}),
              attention_case({"window", 2, 1, 8, {0, 70, 76}, true, false, 5}),
              attention_case({"prefix", 4, 2, 8, {0, 6, 10}, true, false, 0, 3}),
              attention_case({"prefix and window", 2, 2, 8, {0, 12}, true, false, 4, 3}),
              attention_case({"softcap", 2, 2, 8, {0, 11}, true, false, 0, 0, 1.5f}),
              attention_case({"alibi", 4, 2, 8, {0, 11, 13}, true, false, 0, 0, 0, true}),
              attention_case({"softmax_one", 2, 2, 8, {0, 11}, true, true}),
              attention_case({"bidirectional", 4, 2, 8, {0, 7, 19}, false}),
              prefix_case("trainable prefix", true), prefix_case("trainable prefix under frozen projections", false),
              {"attention of one value with itself", {value(6, 8, 1)}, [](Graph& g) {
                 static const int32_t cu[] = {0, 6};
                 static const AttentionSpec spec = [] {
                   AttentionSpec s;
                   s.n_heads = s.n_kv_heads = 2;
                   s.head_dim = 4;
                   s.n_seqs = 1;
                   s.cu_seqlens = cu;
                   return s;
                 }();
                 return attention(g.ctx, g.x(0), g.x(0), g.x(0), &spec);
               }}};
    case Op::activation: {
      std::vector<Case> cases;
      for (Activation a : {Activation::gelu_erf, Activation::gelu_tanh, Activation::relu, Activation::silu}) {
        cases.push_back({"activation " + std::to_string(int(a)), {{Kind::value, 5, 37, gapped(1, 185, 0.1f)}},
                         [a](Graph& g) { return activation(g.ctx, g.x(0), a); }});
        cases.push_back({"activation with a second reader " + std::to_string(int(a)), {{Kind::value, 5, 37, gapped(1, 185, 0.1f)}},
                         [a](Graph& g) { return add(g.ctx, activation(g.ctx, g.x(0), a), scale(g.ctx, g.x(0), -0.4f)); }});
      }
      return cases;
    }
    case Op::gated: {
      std::vector<Case> cases;
      for (Activation a : {Activation::gelu_erf, Activation::gelu_tanh, Activation::relu, Activation::silu})
        for (int frozen = 0; frozen < 3; ++frozen)
          cases.push_back({"gated " + std::to_string(int(a)) + ", frozen leaf " + std::to_string(frozen - 1),
                           {{Kind::value, 5, 37, gapped(1, 185, 0.1f), frozen != 1}, value(5, 37, 2, frozen != 2)},
                           [a](Graph& g) { return gated(g.ctx, g.x(0), g.x(1), a); }});
      cases.push_back({"gated by itself", {value(5, 37, 1)}, [](Graph& g) { return gated(g.ctx, g.x(0), g.x(0), Activation::silu); }});
      return cases;
    }
    case Op::add:
      return {{"add", {value(3, 9, 1), value(3, 9, 2)}, [](Graph& g) { return add(g.ctx, g.x(0), g.x(1)); }},
              {"add, one frozen", {value(3, 9, 1, false), value(3, 9, 2)}, [](Graph& g) { return add(g.ctx, g.x(0), g.x(1)); }},
              {"x + x", {value(3, 9, 1)}, [](Graph& g) { return add(g.ctx, g.x(0), g.x(0)); }},
              {"two branches and the residual", {value(3, 9, 1), weight(9, 9, 2), weight(9, 9, 3)}, [](Graph& g) {
                 const Var a = linear(g.ctx, g.x(0), g.w(1), nullptr), b = activation(g.ctx, g.x(0), Activation::silu);
                 return add(g.ctx, add(g.ctx, g.x(0), a), linear(g.ctx, b, g.w(2), nullptr));
               }},
              {"residual of a residual", {value(3, 9, 1), weight(9, 9, 2)}, [](Graph& g) {
                 const Var h = add(g.ctx, g.x(0), linear(g.ctx, g.x(0), g.w(1), nullptr));
                 return add(g.ctx, add(g.ctx, h, scale(g.ctx, h, 0.5f)), g.x(0));
               }}};
    case Op::scale:
      return {{"scale", {value(3, 9, 1)}, [](Graph& g) { return scale(g.ctx, g.x(0), -1.7f); }},
              {"scale with a second reader", {value(3, 9, 1)},
               [](Graph& g) { return add(g.ctx, scale(g.ctx, g.x(0), -1.7f), activation(g.ctx, g.x(0), Activation::silu)); }}};
    case Op::softcap:  // works in place, on the output of a linear; a small cap would bend more than the differences see
      return {{"softcap", {value(5, 37, 1), weight(19, 37, 2)}, [](Graph& g) {
                 return softcap(g.ctx, linear(g.ctx, g.x(0), g.w(1), nullptr), 2.0f);
               }},
              {"softcap with a second reader", {value(5, 37, 1), weight(19, 37, 2)}, [](Graph& g) {
                 const Var y = softcap(g.ctx, linear(g.ctx, g.x(0), g.w(1), nullptr), 2.0f);
                 return add(g.ctx, y, activation(g.ctx, y, Activation::silu));
               }}};
    case Op::clip:
      return {{"clip", {{Kind::value, 5, 37, away_from(0.5f, 1, 185)}}, [](Graph& g) { return clip(g.ctx, g.x(0), 0.5f); }},
              {"clip with a second reader", {{Kind::value, 5, 37, away_from(0.5f, 1, 185)}},
               [](Graph& g) { return add(g.ctx, clip(g.ctx, g.x(0), 0.5f), scale(g.ctx, g.x(0), -0.4f)); }}};
    case Op::linear_cross_entropy:
      return {loss_case("loss of capped logits", 37, 50, true, true, true, false, false, 0.6f), loss_case("loss of few rows, capped", 13, 17, false, true, true, true, true, 0.6f),
              loss_case("loss", 37, 50, false, true, true), loss_case("loss with bias", 9, 17, true, true, true),
              loss_case("loss, frozen head", 9, 17, false, true, false), loss_case("loss, frozen hidden", 9, 17, false, false, true), loss_case("loss with row weights", 9, 17, true, true, true, true),
              loss_case("loss of few rows", 13, 17, true, true, true, false, true), loss_case("loss of few rows with weights", 13, 17, false, true, true, true, true)};
    case Op::lora_down:
    case Op::lora_up: {
      // Two linears of one input with adapters on rows 1..4: each with an A of its own, or both with the same.
      std::vector<Case> cases;
      for (bool input : {true, false})
        for (bool second : {true, false})
          for (bool same : {true, false}) {
            if (same && second) continue;  // its gradient would be zero
            cases.push_back({std::string("loras side by side") + (input ? "" : ", frozen input") + (same ? ", one A for both" : second ? "" : ", one frozen A"),
                             {value(6, 9, 2, input), weight(12, 9, 1), weight(12, 9, 5), weight(3, 9, 3), weight(12, 3, 4), weight(3, 9, 6, second), weight(12, 3, 7)},
                             [same](Graph& g) {
                               const Var y = linear(g.ctx, g.x(0), g.w(1), nullptr), z = linear(g.ctx, g.x(0), g.w(2), nullptr);
                               Weight* a[] = {g.w(3), g.w(5)};
                               const float scales[] = {0.7f, 1.5f};
                               const Var h = lora_down(g.ctx, g.x(0), 1, 4, a, scales, 2);
                               const Var first = lora_up(g.ctx, y, 1, 4, h, 0, g.w(4));
                               return add(g.ctx, first, lora_up(g.ctx, z, 1, 4, h, same ? 0 : 3, g.w(6)));
                             }});
          }
      for (float p : {0.0f, 0.3f})
        for (bool input : {true, false})
          cases.push_back({"lora on rows 1..4, dropout " + std::to_string(p) + (input ? "" : ", frozen input"),
                           {value(5, 12, 1), value(5, 9, 2, input), weight(3, 9, 3), weight(12, 3, 4)}, [p](Graph& g) {
                             return adapted(g.ctx, own(g, g.x(0)), g.x(1), 1, 4, g.w(2), g.w(3), 0.7f, {p, 5, 6});
                           }});
      cases.push_back({"lora over a frozen base, all rows", {value(5, 12, 1, false), value(5, 9, 2), weight(3, 9, 3), weight(12, 3, 4)},
                       [](Graph& g) { return adapted(g.ctx, own(g, g.x(0)), g.x(1), 0, 5, g.w(2), g.w(3), 0.7f, {}); }});
      cases.push_back({"two loras over one linear, dropout", {value(5, 9, 2), weight(12, 9, 1), weight(3, 9, 3), weight(12, 3, 4), weight(2, 9, 5), weight(12, 2, 6)},
                       [](Graph& g) {
                         const Var y = linear(g.ctx, g.x(0), g.w(1), nullptr);
                         const Var z = adapted(g.ctx, y, g.x(0), 0, 2, g.w(2), g.w(3), 0.7f, {0.25f, 1, 2});
                         return adapted(g.ctx, z, g.x(0), 2, 5, g.w(4), g.w(5), 1.5f, {0.25f, 1, 3});
                       }});
      return cases;
    }
    case Op::pool_rows: {
      static const int32_t cu[] = {0, 3, 4, 7};
      static const float weights[] = {0.5f, -0.25f, 1, 1, 0, 0.3f, 0.7f};
      return {{"pool_rows", {value(7, 70, 1)}, [](Graph& g) { return pool_rows(g.ctx, g.x(0), cu, 3, weights); }},
              {"pool_rows, twice", {value(7, 12, 1)}, [](Graph& g) {
                 const Var once = pool_rows(g.ctx, g.x(0), cu, 3, weights);
                 return gated(g.ctx, once, pool_rows(g.ctx, activation(g.ctx, g.x(0), Activation::silu), cu, 3, weights), Activation::silu);
               }}};
    }
    case Op::l2_normalize:
      return {{"l2_normalize", {value(5, 12, 1)}, [](Graph& g) { return l2_normalize(g.ctx, g.x(0)); }},
              {"l2_normalize, also read elsewhere", {value(5, 12, 1)},
               [](Graph& g) { return add(g.ctx, l2_normalize(g.ctx, g.x(0)), activation(g.ctx, g.x(0), Activation::silu)); }}};
    case Op::col_scale:
      return {{"col_scale on rows 1..4", {value(5, 12, 1), weight(1, 12, 2)},
               [](Graph& g) { return col_scale(g.ctx, own(g, g.x(0)), 1, 4, g.w(1)); }},
              {"col_scale, frozen scale", {value(5, 12, 1), weight(1, 12, 2, false)},
               [](Graph& g) { return col_scale(g.ctx, own(g, g.x(0)), 1, 4, g.w(1)); }},
              {"col_scale, frozen input", {value(5, 12, 1, false), weight(1, 12, 2)},
               [](Graph& g) { return col_scale(g.ctx, own(g, g.x(0)), 1, 4, g.w(1)); }}};
    case Op::dora_scale:
      return {dora_case("dora", true, true, false), dora_case("dora, frozen input", false, true, false),
              dora_case("dora, frozen magnitude", true, false, false), dora_case("dora and a bias", true, true, true)};
    case Op::add_bias:
      return {dora_case("dora and a bias", true, true, true),
              {"add_bias on rows 1..4", {value(5, 12, 1), weight(1, 12, 2)},
               [](Graph& g) { return add_bias(g.ctx, own(g, g.x(0)), 1, 4, g.w(1)); }},
              {"add_bias, frozen input", {value(5, 12, 1, false), weight(1, 12, 2)},
               [](Graph& g) { return add_bias(g.ctx, own(g, g.x(0)), 1, 4, g.w(1)); }}};
    case Op::replace_rows:
      return {{"replace_rows", {value(5, 12, 1), weight(2, 12, 2)},
               [](Graph& g) { return replace_rows(g.ctx, own(g, g.x(0)), 2, g.w(1)); }},
              {"replace_rows twice by one weight", {value(5, 12, 1), weight(2, 12, 2)}, [](Graph& g) {
                 return replace_rows(g.ctx, replace_rows(g.ctx, own(g, g.x(0)), 0, g.w(1)), 3, g.w(1));
               }}};
    case Op::route:
    case Op::expert_gather:
    case Op::expert_linear:
    case Op::expert_combine: {
      // A case whose leaf below this op is frozen does not record it.
      std::vector<Case> cases;
      for (const Case& c : expert_cases())
        if ((op != Op::route || c.leaves[1].wanted) && (op != Op::expert_gather || c.leaves[0].wanted)) cases.push_back(c);
      return cases;
    }
    case Op::segment_begin:
    case Op::segment_end:
      return {block_case("blocks, sequential", false, false, true), block_case("blocks, parallel", false, true, true),
              block_case("blocks, frozen input", false, false, false), skip_case("blocks with skip connections", false),
              tower_case("blocks of two streams", false)};
    case Op::checkpoint:
      return {block_case("replayed blocks, sequential", true, false, true), block_case("replayed blocks, parallel", true, true, true),
              block_case("replayed blocks, frozen input", true, true, false), skip_case("replayed blocks with skip connections", true),
              tower_case("replayed blocks of two streams", true)};
    default: break;  // a row without a case: the test says so
  }
  return {};
}

class OpGradient : public ::testing::TestWithParam<int> {};

TEST_P(OpGradient, MatchesDifferences) {
  const Op op = static_cast<Op>(GetParam());
  if (!op_has_backward(op)) GTEST_SKIP() << op_name(op) << " is inference only";
  const std::vector<Case> cases = cases_of(op);
  ASSERT_FALSE(cases.empty()) << "op " << op_name(op) << " has a backward but no case in this test";
  const KernelTable best = build_kernel_table(best_tier());
  for (const Case& c : cases) {
    EXPECT_EQ(evaluate(best, 1, c, nullptr, 0, true).ops.count(op), 1u) << c.name << " does not record " << op_name(op);
    check_gradients(best, c);
    if (best.tier != Tier::ref && c.leaves[0].data.size() < 10000) check_gradients(build_kernel_table(Tier::ref), c, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, OpGradient, ::testing::Range(0, kOpCount),
                         [](const auto& row) { return std::string(op_name(static_cast<Op>(row.param))); });

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The norms of the rows of W + scale B A, over every format of W, against plain sums in double precision.
TEST(Dora, NormsOfEveryFormat) {
  const KernelTable best = build_kernel_table(best_tier());
  constexpr int64_t kOut = 37, kIn = 64, kRank = 5;
  const std::vector<float> values = uniform(1, kOut * kIn), a = uniform(2, kRank * kIn), b = uniform(3, kOut * kRank);
  std::vector<uint16_t> half(values.size()), brain(values.size());
  best.f32_to_f16({kOut * kIn, values.data(), half.data()});
  best.f32_to_bf16({kOut * kIn, values.data(), brain.data()});
  std::vector<uint8_t> codes(values.size()), zeros(kOut * 2);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 7 % 13);
  for (size_t i = 0; i < zeros.size(); ++i) zeros[i] = static_cast<uint8_t>(i % 9);
  std::vector<float> scales(zeros.size(), 0.05f);
  std::vector<TileStorage> tiles;
  for (WeightFormat f : {WeightFormat::q8, WeightFormat::q4})
    tiles.push_back(pack_tiles(best, f, kOut, kIn, 32, codes.data(), zeros.data(), nullptr, scales.data(), nullptr));
  std::vector<int32_t> perm;
  for (int32_t c = 0; c < kIn; ++c) perm.push_back((c * 5 + 3) % kIn);
  std::vector<Weight> weights(3);
  const void* const data[] = {values.data(), half.data(), brain.data()};
  for (size_t i = 0; i < 3; ++i) {
    weights[i].format = i == 0 ? WeightFormat::f32 : i == 1 ? WeightFormat::f16 : WeightFormat::bf16;
    weights[i].rows = kOut;
    weights[i].cols = kIn;
    weights[i].data = data[i];
  }
  for (const TileStorage& t : tiles) weights.push_back(t.weight);
  weights.push_back(tiles[1].weight);
  weights.back().perm = perm.data();
  Weight wa, wb;
  wa.rows = kRank;
  wa.cols = kIn;
  wa.data = a.data();
  wb.rows = kOut;
  wb.cols = kRank;
  wb.data = b.data();
  for (const Weight& w : weights) {
    std::vector<float> dense(static_cast<size_t>(kOut * kIn)), first;
    dequantize(best, w, dense.data());
    for (int threads : {1, 3})
      for (Precision precision : {Precision::f32, Precision::bf16, Precision::int8_act}) {
        Context ctx(best, threads, nullptr);
        ctx.precision = precision;
        std::vector<double> squares(kOut);
        row_squares(best, threads, w, squares.data());
        std::vector<float> norms(kOut);
        dora_norms(ctx, w, wa, wb, 0.7f, squares.data(), norms.data());
        for (int64_t n = 0; n < kOut; ++n) {
          double sum = 0;
          for (int64_t c = 0; c < kIn; ++c) {
            double v = double(dense[size_t(n * kIn + c)]);
            for (int64_t k = 0; k < kRank; ++k) v += double(0.7f) * double(b[size_t(n * kRank + k)]) * double(a[size_t(k * kIn + c)]);
            sum += v * v;
          }
          EXPECT_NEAR(norms[size_t(n)], std::sqrt(sum), 2e-6 * std::sqrt(sum)) << format_name(w.format) << " row " << n;
        }
        if (first.empty()) first = norms;
        EXPECT_TRUE(same_bits(norms, first)) << format_name(w.format) << ", " << threads << " threads";
      }
  }
}

TEST(Checkpoint, ReplayGivesTheSameBits) {
  const KernelTable best = build_kernel_table(best_tier());
  for (bool parallel : {false, true})
    for (bool input : {false, true}) {
      const Result kept = evaluate(best, 1, block_case("kept", false, parallel, input), nullptr, 0, true);
      for (int threads : {1, 2, 3}) {
        const Result replayed = evaluate(best, threads, block_case("replayed", true, parallel, input), nullptr, 0, true);
        EXPECT_EQ(kept.objective, replayed.objective);
        for (size_t i = 0; i < kept.grads.size(); ++i)
          EXPECT_TRUE(same_bits(kept.grads[i], replayed.grads[i])) << "leaf " << i << ", parallel " << parallel << ", input " << input;
      }
    }
}

TEST(Ops, GradientBitsDoNotDependOnThreads) {
  const KernelTable best = build_kernel_table(best_tier());
  for (int op = 0; op < kOpCount; ++op)
    for (const Case& c : cases_of(static_cast<Op>(op))) {
      const Result one = evaluate(best, 1, c, nullptr, 0, true);
      for (int threads : {2, 5}) {
        const Result many = evaluate(best, threads, c, nullptr, 0, true);
        EXPECT_EQ(one.objective, many.objective) << c.name;
        for (size_t i = 0; i < one.grads.size(); ++i) EXPECT_TRUE(same_bits(one.grads[i], many.grads[i])) << c.name << ", leaf " << i;
      }
    }
}

// A frozen graph records nothing; a graph with one trainable bias records what stands above it, and backward makes no
// other gradient.
TEST(Ops, NothingFrozenIsRecorded) {
  const KernelTable best = build_kernel_table(best_tier());
  for (int op = 0; op < kOpCount; ++op)
    for (Case c : cases_of(static_cast<Op>(op))) {
      if (op == int(Op::segment_begin) || op == int(Op::segment_end) || op == int(Op::checkpoint)) continue;  // the caller decides
      for (Leaf& leaf : c.leaves) leaf.wanted = false;
      EXPECT_TRUE(evaluate(best, 1, c, nullptr, 0, true).ops.empty()) << c.name;
    }
  Context ctx(best, 1, nullptr);
  Tape tape;
  ctx.tape = &tape;
  std::vector<float> x = uniform(1, 24), a = uniform(2, 64), bias(8), grad(8);
  Weight frozen, trained;
  frozen.rows = frozen.cols = 8;
  frozen.data = a.data();
  trained.rows = 1;
  trained.cols = 8;
  trained.data = bias.data();
  trained.grad = grad.data();
  Var v;
  v.t = Tensor::matrix(x.data(), 3, 8);
  const Var below = activation(ctx, linear(ctx, v, &frozen, nullptr), Activation::silu);
  EXPECT_EQ(tape.node_count(), 0u);
  EXPECT_EQ(below.id, -1);
  const Var h = linear(ctx, below, &frozen, &trained);
  const int32_t labels[] = {1, 2, 3};
  linear_cross_entropy(ctx, h, &frozen, nullptr, labels, 3);
  ASSERT_EQ(tape.node_count(), 2u);
  EXPECT_EQ(tape.node(0).op, Op::linear);
  EXPECT_EQ(tape.node(0).in[0], -1);
  backward(ctx);
  EXPECT_TRUE(trained.grad_written);
  EXPECT_FALSE(frozen.grad_written);
  EXPECT_EQ(tape.node_count(), 0u);
  EXPECT_EQ(ctx.grads.used(), 0u);
}

// Where few rows have a label, the others are skipped: the same losses and gradients as of the labelled rows alone.
TEST(LinearCrossEntropy, RowsWithoutLabelsAreSkipped) {
  const KernelTable best = build_kernel_table(best_tier());
  constexpr int64_t kRows = 50, kCols = 24, kVocab = 70;
  std::vector<float> hidden = uniform(1, kRows * kCols), head = uniform(2, kVocab * kCols), weights = uniform(3, kRows), few, few_weights;
  std::vector<int32_t> labels, few_labels;
  for (int64_t i = 0; i < kRows; ++i) {
    labels.push_back(i % 5 == 2 ? static_cast<int32_t>(i) : -1);
    if (labels.back() < 0) continue;
    few.insert(few.end(), &hidden[size_t(i * kCols)], &hidden[size_t(i * kCols)] + kCols);
    few_labels.push_back(labels.back());
    few_weights.push_back(weights[size_t(i)]);
  }
  struct Run {
    double loss;
    std::vector<double> rows;
    std::vector<float> d_hidden, d_head;
  };
  const auto run = [&](std::vector<float>& x_data, const std::vector<int32_t>& y, const std::vector<float>& row_weights) {
    Run r{0, std::vector<double>(y.size(), -1), {}, std::vector<float>(head.size())};
    Weight w;
    w.rows = kVocab;
    w.cols = kCols;
    w.data = head.data();
    w.grad = r.d_head.data();
    Context ctx(best, 2, nullptr);
    Tape tape;
    ctx.tape = &tape;
    const ArenaScope scope(ctx.saved);
    Var x;
    x.t = Tensor::matrix(x_data.data(), static_cast<int64_t>(y.size()), kCols);
    x.id = tape.add_value(x.t);
    r.loss = linear_cross_entropy(ctx, x, &w, nullptr, y.data(), 1, r.rows.data(), row_weights.data());
    run_backward(ctx, 0);
    const float* g = grad_of(ctx, x.id);
    r.d_hidden.assign(g, g + y.size() * kCols);
    return r;
  };
  const Run all = run(hidden, labels, weights), labelled = run(few, few_labels, few_weights);
  EXPECT_EQ(all.loss, labelled.loss);
  EXPECT_TRUE(same_bits(all.d_head, labelled.d_head));
  std::vector<float> zeros(kCols);
  size_t at = 0;
  for (size_t i = 0; i < kRows; ++i) {
    const std::vector<float> row(&all.d_hidden[i * kCols], &all.d_hidden[i * kCols] + kCols);
    if (labels[i] < 0) {
      EXPECT_EQ(all.rows[i], 0);
      EXPECT_EQ(row, zeros);
      continue;
    }
    EXPECT_EQ(all.rows[i], labelled.rows[at]);
    EXPECT_EQ(std::memcmp(row.data(), &labelled.d_hidden[at * kCols], kCols * sizeof(float)), 0);
    ++at;
  }
}

// 2^18 entries leave 32 rows for a chunk of logits, so 40 rows cross a boundary: the same losses and gradients as one
// call per row.
TEST(LinearCrossEntropy, ChunksDoNotShow) {
  const KernelTable best = build_kernel_table(best_tier());
  constexpr int64_t kRows = 40, kCols = 4, kVocab = int64_t{1} << 18;
  std::vector<float> hidden = uniform(1, kRows * kCols), head = uniform(2, kVocab * kCols);
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < kRows; ++i) labels.push_back(i % 7 == 3 ? -100 : static_cast<int32_t>(i * 6007 % kVocab));
  struct Run {
    double loss = 0;
    std::vector<double> rows;
    std::vector<float> d_hidden, d_head;
  };
  const auto run = [&](int64_t rows_per_call) {
    Run r;
    r.d_head.resize(head.size());
    Weight w;
    w.rows = kVocab;
    w.cols = kCols;
    w.data = head.data();
    w.grad = r.d_head.data();
    Context ctx(best, 2, nullptr);
    for (int64_t first = 0; first < kRows; first += rows_per_call) {
      Tape tape;
      ctx.tape = &tape;
      const ArenaScope scope(ctx.saved);
      Var x;
      x.t = Tensor::matrix(&hidden[size_t(first * kCols)], rows_per_call, kCols);
      x.id = tape.add_value(x.t);
      std::vector<double> losses(static_cast<size_t>(rows_per_call));
      r.loss += linear_cross_entropy(ctx, x, &w, nullptr, &labels[size_t(first)], 34, losses.data());
      run_backward(ctx, 0);
      const float* g = grad_of(ctx, x.id);
      r.d_hidden.insert(r.d_hidden.end(), g, g + rows_per_call * kCols);
      r.rows.insert(r.rows.end(), losses.begin(), losses.end());
    }
    return r;
  };
  const Run together = run(kRows), single = run(1);
  EXPECT_NEAR(together.loss, single.loss, 1e-12 * single.loss);
  EXPECT_EQ(together.rows, single.rows);
  EXPECT_TRUE(same_bits(together.d_hidden, single.d_hidden));
  double difference = 0, norm = 0;
  for (size_t i = 0; i < head.size(); ++i) {
    const double d = double(together.d_head[i]) - double(single.d_head[i]);
    difference += d * d;
    norm += double(single.d_head[i]) * double(single.d_head[i]);
  }
  EXPECT_LE(std::sqrt(difference), 1e-6 * std::sqrt(norm));
  for (size_t i = 3; i < together.rows.size(); i += 7) EXPECT_EQ(together.rows[i], 0) << "ignored row " << i;
}

// y and dx through packed codes equal those through the matrix that the codes stand for.
TEST(QuantizedLinear, EqualsTheDequantizedMatrix) {
  constexpr int64_t kRows = 37, kCols = 200, kTokens = 9;
  uint64_t seed = 50;
  for (Tier tier : {Tier::ref, best_tier()}) {
    const KernelTable kernels = build_kernel_table(tier);
    for (WeightFormat format : {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2})
      for (int64_t group : {32, 64, 128, 0})
        for (bool f32_scales : {false, true})
          for (bool act_order : {false, true}) {
            Philox rng(++seed, 0);
            const TileGeometry g = tile_geometry(format, kRows, kCols, group, f32_scales);
            const uint64_t top = uint64_t{1} << format_bits(format);
            std::vector<uint8_t> codes(size_t(kRows * kCols)), zeros(size_t(kRows * g.groups));
            std::vector<uint16_t> f16(zeros.size());
            std::vector<float> f32(zeros.size());
            for (uint8_t& c : codes) c = static_cast<uint8_t>(rng.below(top));
            for (uint8_t& z : zeros) z = static_cast<uint8_t>(rng.below(top));
            for (uint16_t& s : f16) s = static_cast<uint16_t>(0x2000 + rng.below(0x800));  // 2^-7 .. 2^-5
            for (float& s : f32) s = static_cast<float>(0.01 + 0.02 * rng.uniform());
            TileStorage packed = pack_tiles(kernels, format, kRows, kCols, group, codes.data(), zeros.data(),
                                            f32_scales ? nullptr : f16.data(), f32_scales ? f32.data() : nullptr, nullptr);
            std::vector<int32_t> perm(static_cast<size_t>(kCols));
            for (size_t i = 0; i < perm.size(); ++i) perm[i] = static_cast<int32_t>(i);
            for (size_t i = perm.size() - 1; i > 0; --i) std::swap(perm[i], perm[rng.below(i + 1)]);
            if (act_order) packed.weight.perm = perm.data();
            std::vector<float> dense(codes.size());
            dequantize(kernels, packed.weight, dense.data());
            if (f32_scales)
              for (int64_t r = 0; r < kRows; ++r)
                for (int64_t c = 0; c < kCols; ++c) {
                  const auto at = static_cast<size_t>(r * g.groups + c / g.group);
                  const float want = f32[at] * float(int(codes[size_t(r * kCols + c)]) - int(zeros[at]));
                  ASSERT_EQ(dense[size_t(r * kCols + (act_order ? perm[size_t(c)] : c))], want);
                }
            Weight plain;
            plain.rows = kRows;
            plain.cols = kCols;
            plain.data = dense.data();
            std::vector<float> x = uniform(seed, kTokens * kCols);
            // A second reader of x, so that dx is also added to what is there.
            for (bool accumulate : {false, true}) {
              const auto run = [&](Weight* w, std::vector<float>* y_out) {
                Context ctx(kernels, 2, nullptr);
                poison(ctx);
                Tape tape;
                ctx.tape = &tape;
                Var v;
                v.t = Tensor::matrix(x.data(), kTokens, kCols);
                v.id = tape.add_value(v.t);
                const Var y = linear(ctx, v, w, nullptr);
                if (accumulate) {
                  bool add_to = false;
                  float* dx = grad_target(ctx, v.id, &add_to);
                  std::copy(x.begin(), x.end(), dx);
                }
                y_out->assign(y.t.f32(), y.t.f32() + y.t.numel());
                std::vector<float> dy = uniform(3, y.t.numel());
                tape.value(y.id).grad = dy.data();
                tape.value(y.id).written = true;
                run_backward(ctx, 0);
                const float* dx = grad_of(ctx, v.id);
                return std::vector<float>(dx, dx + v.t.numel());
              };
              std::vector<float> y_packed, y_plain;
              const std::vector<float> packed_dx = run(&packed.weight, &y_packed), plain_dx = run(&plain, &y_plain);
              const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
                double d = 0, n = 0;
                for (size_t i = 0; i < a.size(); ++i) {
                  d += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
                  n += double(b[i]) * double(b[i]);
                }
                return std::sqrt(d / n);
              };
              const std::string what = std::string(format_name(format)) + " group " + std::to_string(group) + (f32_scales ? " f32" : " f16") +
                                       (act_order ? " act-order " : " ") + tier_name(tier);
              EXPECT_LE(distance(y_packed, y_plain), 1e-5) << what;
              EXPECT_LE(distance(packed_dx, plain_dx), 1e-5) << what;
            }
          }
  }
}

}  // namespace
}  // namespace thimble::ops_test
