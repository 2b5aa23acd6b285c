#include "models/transformer.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "tensor/error.h"
#include "tensor/trace.h"

namespace thimble {
namespace {

bool trainable(const LayerWeights& layer) {
  bool any = false;
#define LAYER_ROLE(field, kind) any = any || layer.field.grad;
#include "models/roles.def"
  for (const ExpertWeights& expert : layer.experts) {
#define EXPERT_ROLE(field, kind) any = any || expert.field.grad;
#include "models/roles.def"
  }
  return any;
}

Weight* present(Weight& w) { return w ? &w : nullptr; }

// What the observer is told about the input of a linear.
const char* input_name(Role role) {
  switch (role) {
    case Role::q_w: return "input.q_w";
    case Role::k_w: return "input.k_w";
    case Role::v_w: return "input.v_w";
    case Role::o_w: return "input.o_w";
    case Role::gate_w: return "input.gate_w";
    case Role::up_w: return "input.up_w";
    case Role::down_w: return "input.down_w";
    case Role::router_w: return "input.router_w";
    default: return "input";
  }
}

}  // namespace

Transformer::Transformer(Model& model, int64_t max_tokens, int64_t rope_tokens)
    : model_(model), weights_(&model.weights), max_tokens_(max_tokens) {
  const ModelConfig& c = model_.config;
  if (c.positions == PositionKind::learned && max_tokens > c.max_positions)
    throw Error(ErrorCode::input,
                fmt::format("{}: {} tokens are asked for, but the model has learned positions for {}", model_.path, max_tokens, c.max_positions),
                fmt::format("use a context of at most {}", c.max_positions));
  if (c.n_heads > kAttentionMaxGroup * c.n_kv_heads)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: {} query heads share {} key/value heads; at most {} may share one", model_.path, c.n_heads, c.n_kv_heads, kAttentionMaxGroup),
                "check num_attention_heads and num_key_value_heads of config.json");
  if (c.head_dim > kAttentionMaxHeadDim)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: heads of {} entries; at most {} are supported", model_.path, c.head_dim, kAttentionMaxHeadDim),
                "check head_dim of config.json");
  if (c.positions == PositionKind::rope) {
    if (rope_tokens == 0) rope_tokens = max_tokens;
    rope_.fill(c.rope, max_tokens, rope_tokens);
    if (c.local_rope) local_rope_.fill(c.rope_local, max_tokens, rope_tokens);
  }
  for (int64_t l = 0; l < c.n_layers; ++l) {
    AttentionSpec s;
    s.n_heads = c.n_heads;
    s.n_kv_heads = c.n_kv_heads;
    s.head_dim = c.head_dim;
    s.causal = !c.bidirectional;
    s.window = c.has_window(l) ? c.window : 0;
    s.softcap = static_cast<float>(c.attn_softcap);
    const double divisor = c.query_pre_attn_scalar > 0 ? c.query_pre_attn_scalar : double(c.head_dim);
    double scale = c.attn_scale_by_head_dim ? 1.0 / std::sqrt(divisor) : 1.0;
    if (c.attn_scale_by_layer) scale /= double(l + 1);
    s.scale = static_cast<float>(scale);
    if (c.positions == PositionKind::alibi && slopes_.empty()) {
      slopes_ = alibi_slopes(c.n_heads, c.alibi_bf16);
      for (float& slope : slopes_)
        if (c.alibi_scaled) slope *= s.scale;
    }
    if (!slopes_.empty()) s.alibi = slopes_.data();
    specs_.push_back(s);
    calls_.push_back({&Transformer::run_layer, this, static_cast<int>(l)});
  }
}

void Transformer::RopeTables::fill(const RopeConfig& rope, int64_t positions, int64_t tokens) {
  const RopeFrequencies f = rope_frequencies(rope, tokens);
  const size_t half = f.inv_freq.size();
  cos.resize(static_cast<size_t>(positions) * half);
  sin.resize(cos.size());
  for (size_t p = 0; p < static_cast<size_t>(positions); ++p)
    for (size_t j = 0; j < half; ++j) {
      const float angle = static_cast<float>(p) * f.inv_freq[j];  // f32, as the reference implementations do
      cos[p * half + j] = static_cast<float>(std::cos(double(angle))) * f.attention_factor;
      sin[p * half + j] = static_cast<float>(std::sin(double(angle))) * f.attention_factor;
    }
}

Var Transformer::norm(Context& ctx, Var x, Weight& w, Weight& b, bool packs) {
  const auto eps = static_cast<float>(model_.config.norm_eps);
  if (model_.config.norm == NormKind::rms) return rms_norm(ctx, x, &w, eps, static_cast<float>(model_.config.norm_offset), packs);
  return layer_norm(ctx, x, present(w), present(b), eps, packs);
}

Var Transformer::norm_heads(Context& ctx, Var x, Weight& w, Weight& b) {
  const ModelConfig& c = model_.config;
  if (c.qk_norm == QkNorm::none) return x;
  x = pack(ctx, x);  // the norm reads it again in backward
  if (c.qk_norm == QkNorm::whole) return norm(ctx, x, w, b, true);
  const int64_t rows = x.t.rows(), cols = x.t.cols();
  x.t = Tensor::matrix(x.t.f32(), rows * cols / c.head_dim, c.head_dim);
  const bool own = c.qk_norm == QkNorm::heads;  // weights of a head's own are multiplied on behind the norm
  Var y = norm(ctx, x, own ? no_weight_ : w, own ? no_weight_ : b, true);
  y.t = Tensor::matrix(y.t.f32(), rows, cols);
  return own ? col_scale(ctx, y, 0, rows, &w) : y;
}

Var Transformer::project(Context& ctx, int layer, Role role, Var x, Weight& w, Weight& b) {
  Projection one{role, &w, &b, {}, {}};
  project_all(ctx, layer, x, &one, 1);
  return one.y;
}

void Transformer::project_all(Context& ctx, int layer, Var x, Projection* projections, int count) {
  const Batch& batch = *batch_;
  THIMBLE_CHECK(count <= kLoraGroup);
  Linear all[kLoraGroup];
  for (int p = 0; p < count; ++p) {
    Projection& one = projections[p];
    Var& input = one.input = x;
    for (int64_t i = 0; i < batch.n_segments; ++i) {
      const AdapterSegment& s = batch.segments[i];
      const AdapterModule& m = s.adapter->module(layer, one.role);
      if (!m.ia3 || !m.ia3_input) continue;
      // Scaling is in place, and only the input of the down projection has no other reader.
      if (one.role != Role::down_w) input = scale(ctx, input, 1.0f);
      input = col_scale(ctx, input, s.begin, s.end, m.ia3);
    }
    ctx.observe(input_name(one.role), layer, input.t);
    // The outputs of o and down become the residual stream, and those of the router a choice: they stay in f32.
    const bool packs = one.role != Role::o_w && one.role != Role::down_w && one.role != Role::router_w;
    all[p] = {input, one.w, bias_last(batch, layer, one.role) ? nullptr : present(*one.b), packs, {}};
  }
  linears(ctx, all, count);
  for (int p = 0; p < count; ++p) {
    Projection& one = projections[p];
    one.y = all[p].y;
    // DoRA scales W x and not the bias: then each range of rows gets the bias in its turn.
    if (!bias_last(batch, layer, one.role) || !*one.b) continue;
    int64_t row = 0;
    for (int64_t i = 0; i <= batch.n_segments; ++i) {
      const bool end = i == batch.n_segments;
      if (!end && !batch.segments[i].adapter->module(layer, one.role).magnitude) continue;
      const int64_t until = end ? batch.n : batch.segments[i].begin;
      if (until > row) one.y = add_bias(ctx, one.y, row, until, one.b);
      if (!end) row = batch.segments[i].end;
    }
  }
  for (int64_t i = 0; i < batch.n_segments; ++i) adapt(ctx, layer, batch.segments[i], x, projections, count);
}

bool Transformer::bias_last(const Batch& batch, int layer, Role role) {
  for (int64_t i = 0; i < batch.n_segments; ++i)
    if (batch.segments[i].adapter->module(layer, role).magnitude) return true;
  return false;
}

Var Transformer::adapt_embedding(Context& ctx, const Batch& batch, const int32_t* ids, Var x) {
  for (int64_t i = 0; i < batch.n_segments; ++i) {
    const AdapterSegment& s = batch.segments[i];
    const AdapterModule& m = s.adapter->embedding();
    if (!m.lora_a) continue;
    const Var h = scale(ctx, embed(ctx, m.lora_a, ids + s.begin, s.end - s.begin), m.scale);
    x = lora_up(ctx, x, s.begin, s.end, h, 0, m.lora_b);
  }
  return x;
}

// What is done to a segment depends on its adapter only, so its rows get the same bits in every batch.
void Transformer::adapt(Context& ctx, int layer, const AdapterSegment& s, Var x, Projection* projections, int count) {
  const bool drops = ctx.training && s.adapter->dropout() > 0;
  Weight* a[kLoraGroup];
  float scales[kLoraGroup];
  int64_t col[kLoraGroup];
  int users = 0, distinct = 0;
  Var input = x;
  THIMBLE_CHECK(count <= kLoraGroup);
  for (int p = 0; p < count; ++p) {
    const AdapterModule& m = s.adapter->module(layer, projections[p].role);
    if (!m.lora_a) continue;
    // A single user reads what its weight reads: the gradient of that is then one chain, in every batch.
    input = ++users == 1 ? projections[p].input : x;
    int same = 0;  // the parts of a fused module share their A
    col[p] = 0;
    while (same < distinct && !(a[same] == m.lora_a && scales[same] == m.scale)) col[p] += a[same++]->rows;
    if (same < distinct) continue;
    a[distinct] = m.lora_a;
    scales[distinct++] = m.scale;
  }
  Var h;
  if (distinct > 0 && !drops) h = lora_down(ctx, input, s.begin, s.end, a, scales, distinct);
  for (int p = 0; p < count; ++p) {
    Projection& one = projections[p];
    const AdapterModule& m = s.adapter->module(layer, one.role);
    if (m.lora_a && drops) {  // masks the input of each adapter in its own way
      Dropout dropout;
      dropout.p = static_cast<float>(s.adapter->dropout());
      dropout.seed = ctx.seed;
      dropout.stream = (ctx.step << 20) ^ (uint64_t(expert_of(layer)) << 52) ^ (uint64_t(layer_of(layer)) << 8) ^ role_stream(one.role);
      Weight* own = m.lora_a;
      h = lora_down(ctx, one.input, s.begin, s.end, &own, &m.scale, 1, dropout);
      col[p] = 0;
    }
    if (m.lora_a) one.y = lora_up(ctx, one.y, s.begin, s.end, h, col[p], m.lora_b);
    if (m.magnitude) {
      one.y = dora_scale(ctx, one.y, s.begin, s.end, m.magnitude, s.adapter->norms(ctx, m, *one.w));
      if (*one.b) one.y = add_bias(ctx, one.y, s.begin, s.end, one.b);
    }
    if (m.ia3 && !m.ia3_input) one.y = col_scale(ctx, one.y, s.begin, s.end, m.ia3);
  }
}

Adapter* Transformer::adapter_of(const Batch& batch, int64_t seq) const {
  const int64_t row = batch.cu_seqlens[seq];
  for (int64_t i = 0; i < batch.n_segments; ++i)
    if (row >= batch.segments[i].begin && row < batch.segments[i].end) return batch.segments[i].adapter;
  return nullptr;
}

bool Transformer::layer_trains(const Batch& batch, int64_t layer) const {
  if (trainable(weights_->layers[static_cast<size_t>(layer)])) return true;
  for (int64_t i = 0; i < batch.n_segments; ++i) {
    Adapter& a = *batch.segments[i].adapter;
    if (a.kind() == AdapterKind::prefix && a.prompt()->grad) return true;
    for (int r = 0; r < kRoleCount; ++r)
      for (int64_t e = 0; e < std::max<int64_t>(1, model_.config.n_experts); ++e) {
        const AdapterModule& m = a.module(expert_place(layer, e), static_cast<Role>(r));
        if ((m.lora_a && (m.lora_a->grad || m.lora_b->grad)) || (m.magnitude && m.magnitude->grad) || (m.ia3 && m.ia3->grad)) return true;
      }
  }
  return false;
}

Var Transformer::place_prompts(Context& ctx, const Batch& batch, Var x) {
  for (int64_t s = 0; s < batch.n_seqs; ++s) {
    Adapter* a = adapter_of(batch, s);
    if (!a || a->kind() != AdapterKind::prompt || (batch.cache && batch.cache->length(s) > 0)) continue;
    x = replace_rows(ctx, x, batch.cu_seqlens[s], a->prompt());
  }
  return x;
}

void Transformer::place_prefixes(Context& ctx, const Batch& batch) {
  const ModelConfig& c = model_.config;
  const auto n = static_cast<size_t>(batch.n_seqs);
  bool any = false;
  for (int64_t s = 0; s < batch.n_seqs; ++s) {
    const Adapter* a = adapter_of(batch, s);
    any = any || (a && a->kind() == AdapterKind::prefix);
  }
  int32_t* lengths = nullptr;
  Weight** owners = nullptr;
  if (any && c.positions == PositionKind::alibi)
    throw Error(ErrorCode::unsupported, fmt::format("{}: prefix tuning of a model with alibi is not supported", model_.path),
                "use LoRA, or prompt tuning");
  if (any) {
    lengths = static_cast<int32_t*>(ctx.saved.allocate(n * sizeof(int32_t), "prefixes"));
    owners = static_cast<Weight**>(ctx.saved.allocate(n * sizeof(Weight*), "prefixes"));
    for (size_t s = 0; s < n; ++s) {
      Adapter* a = adapter_of(batch, static_cast<int64_t>(s));
      owners[s] = a && a->kind() == AdapterKind::prefix ? a->prompt() : nullptr;
      lengths[s] = owners[s] ? static_cast<int32_t>(owners[s]->rows) : 0;
    }
  }
  for (int64_t l = 0; l < c.n_layers; ++l) {
    AttentionSpec& spec = specs_[static_cast<size_t>(l)];
    spec.prefix_k = spec.prefix_v = nullptr;
    spec.prefix_owner = owners;
    spec.prefix_len = lengths;
    if (!any) continue;
    spec.prefix_row = 2 * c.n_layers * c.kv_cols();
    spec.prefix_k_col = 2 * l * c.kv_cols();
    spec.prefix_v_col = spec.prefix_k_col + c.kv_cols();
    auto** keys = static_cast<const float**>(ctx.saved.allocate(2 * n * sizeof(float*), "prefixes"));
    for (size_t s = 0; s < n; ++s) {
      keys[s] = owners[s] ? owners[s]->f32() + spec.prefix_k_col : nullptr;
      keys[n + s] = owners[s] ? owners[s]->f32() + spec.prefix_v_col : nullptr;
    }
    spec.prefix_k = keys;
    spec.prefix_v = keys + n;
  }
}

Var Transformer::attention_branch(Context& ctx, int layer, Var x) {
  const ModelConfig& c = model_.config;
  LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  Projection inputs[] = {{Role::q_w, &w.q_w, &w.q_b, {}, {}}, {Role::k_w, &w.k_w, &w.k_b, {}, {}}, {Role::v_w, &w.v_w, &w.v_b, {}, {}}};
  project_all(ctx, layer, x, inputs, 3);
  if (c.qkv_clip > 0)
    for (Projection& p : inputs) p.y = clip(ctx, pack(ctx, p.y), static_cast<float>(c.qkv_clip));
  Var q = norm_heads(ctx, inputs[0].y, w.q_norm_w, w.q_norm_b), k = norm_heads(ctx, inputs[1].y, w.k_norm_w, w.k_norm_b);
  Var v = inputs[2].y;
  if (c.positions == PositionKind::rope) {
    const RopeConfig& r = c.rope_of(layer);
    const RopeTables& t = &r == &c.rope_local ? local_rope_ : rope_;
    q = rope(ctx, q, c.n_heads, c.head_dim, r.dims, r.interleaved, t.cos.data(), t.sin.data(), positions_);
    k = rope(ctx, k, c.n_kv_heads, c.head_dim, r.dims, r.interleaved, t.cos.data(), t.sin.data(), positions_);
  }
  q = pack(ctx, q);
  k = pack(ctx, k);
  v = pack(ctx, v);
  ctx.observe("q", layer, q.t);
  ctx.observe("k", layer, k.t);
  ctx.observe("v", layer, v.t);
  if (KvCache* cache = batch_->cache) {
    for (int64_t s = 0; s < batch_->n_seqs; ++s) {
      const int64_t first = batch_->cu_seqlens[s], count = batch_->cu_seqlens[s + 1] - first;
      cache->store(ctx, layer, s, count, k.t.f32() + first * c.kv_cols(), v.t.f32() + first * c.kv_cols());
    }
  }
  const Var a = pack(ctx, attention(ctx, q, k, v, &specs_[static_cast<size_t>(layer)]));
  ctx.observe("attention", layer, a.t);
  const Var o = project(ctx, layer, Role::o_w, a, w.o_w, w.o_b);
  ctx.observe("attention_out", layer, o.t);
  return o;
}

// fn(segment, place) for the slots that each expert has of each adapter's rows: they lie together, since an expert's slots
// are sorted by row.
template <class Fn>
void Transformer::for_each_expert_segment(int layer, const Routing& r, Fn&& fn) {
  for (int64_t i = 0; i < batch_->n_segments; ++i)
    for (int64_t e = 0; e < r.experts; ++e) {
      AdapterSegment s = batch_->segments[i];
      const auto before = [&](int64_t row) {
        return std::lower_bound(r.pair + r.begin[e], r.pair + r.begin[e + 1], row, [&](int32_t pair, int64_t end) { return pair / r.k < end; }) - r.pair;
      };
      const int64_t first = before(s.begin), last = before(s.end);
      s.begin = first;
      s.end = last;
      if (last > first) fn(s, static_cast<int>(expert_place(layer, e)));
    }
}

// project_all() for the slots of experts: one projection per weight of theirs.
void Transformer::project_experts(Context& ctx, int layer, const Routing& r, Var x, Projection* projections, Weight* const* const* weights,
                                  int count) {
  THIMBLE_CHECK(count <= kLoraGroup);
  ExpertLinear all[kLoraGroup];
  for (int p = 0; p < count; ++p) {
    Projection& one = projections[p];
    one.input = x;
    for_each_expert_segment(layer, r, [&](const AdapterSegment& s, int place) {
      const AdapterModule& m = s.adapter->module(place, one.role);
      if (!m.ia3 || !m.ia3_input) return;
      if (one.role != Role::expert_down_w && one.input.t.data == x.t.data) one.input = scale(ctx, x, 1.0f);
      one.input = col_scale(ctx, one.input, s.begin, s.end, m.ia3);
    });
    all[p] = {one.input, weights[p], one.role != Role::expert_down_w, {}};
  }
  expert_linears(ctx, r, all, count);
  for (int p = 0; p < count; ++p) projections[p].y = all[p].y;
  for_each_expert_segment(layer, r, [&](const AdapterSegment& s, int place) {
    for (int p = 0; p < count; ++p) projections[p].w = weights[p][expert_of(place)];
    adapt(ctx, place, s, x, projections, count);
  });
}

// The slots of an expert stand behind one another from gather to combine.
Var Transformer::expert_branch(Context& ctx, int layer, Var x) {
  const ModelConfig& c = model_.config;
  LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const auto n = static_cast<size_t>(c.n_experts);
  const Var scores = project(ctx, layer, Role::router_w, x, w.router_w, no_weight_);
  const Routing r = route(ctx, scores, c.n_experts_used, choices_ ? &choices_[layer] : nullptr);
  auto** weights = static_cast<Weight**>(ctx.saved.allocate(3 * n * sizeof(Weight*), "expert choices"));
  Weight **gates = weights, **ups = weights + n, **downs = weights + 2 * n;
  for (size_t e = 0; e < n; ++e) {
    gates[e] = &w.experts[e].expert_gate_w;
    ups[e] = &w.experts[e].expert_up_w;
    downs[e] = &w.experts[e].expert_down_w;
  }
  const auto observe = [&](const char* name, const Var& v) {
    for (int64_t e = 0; e < c.n_experts && ctx.observer.on_value; ++e)
      ctx.observe(name, static_cast<int>(expert_place(layer, e)),
                  Tensor::matrix(v.t.f32() + r.begin[e] * v.t.cols(), r.begin[e + 1] - r.begin[e], v.t.cols()));
  };
  const Var rows = expert_gather(ctx, x, r);
  observe("input.expert_up_w", rows);
  Projection inputs[] = {{Role::expert_up_w, nullptr, &no_weight_, {}, {}}, {Role::expert_gate_w, nullptr, &no_weight_, {}, {}}};
  Weight* const* const both[] = {ups, gates};
  project_experts(ctx, layer, r, rows, inputs, both, 2);
  const Var up = pack(ctx, inputs[0].y), gate = pack(ctx, inputs[1].y);
  const Var inner = gated(ctx, gate, up, c.activation);
  observe("input.expert_down_w", inner);
  Projection last{Role::expert_down_w, nullptr, &no_weight_, {}, {}};
  Weight* const* const one[] = {downs};
  project_experts(ctx, layer, r, inner, &last, one, 1);
  const Var out = expert_combine(ctx, last.y, r);
  ctx.observe("mlp_out", layer, out.t);
  return out;
}

Var Transformer::mlp_branch(Context& ctx, int layer, Var x) {
  const ModelConfig& c = model_.config;
  if (c.n_experts > 0) return expert_branch(ctx, layer, x);
  LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  Projection inputs[] = {{Role::up_w, &w.up_w, &w.up_b, {}, {}}, {Role::gate_w, &w.gate_w, &w.gate_b, {}, {}}};
  project_all(ctx, layer, x, inputs, c.gated_mlp ? 2 : 1);
  const Var up = pack(ctx, inputs[0].y);
  ctx.observe("up", layer, up.t);
  const Var inner = c.gated_mlp ? gated(ctx, pack(ctx, inputs[1].y), up, c.activation) : activation(ctx, up, c.activation);
  ctx.observe("activation", layer, inner.t);
  const Var down = project(ctx, layer, Role::down_w, inner, w.down_w, w.down_b);
  ctx.observe("mlp_out", layer, down.t);
  return down;
}

// x + branch, or x + norm(branch). A norm's output may be of the memory that backward fills again, so the sum needs its own.
Var Transformer::add_branch(Context& ctx, Var x, Var branch, Weight& w, Weight& b) {
  return model_.config.branch_norm ? add(ctx, x, norm(ctx, branch, w, b)) : add_into(ctx, x, branch);
}

Var Transformer::run_layer(Context& ctx, void* self, int layer, Var x) {
  auto& t = *static_cast<Transformer*>(self);
  const ModelConfig& c = t.model_.config;
  LayerWeights& w = t.weights_->layers[static_cast<size_t>(layer)];
  if (c.post_norm) {
    Var h = t.norm(ctx, add_into(ctx, x, t.attention_branch(ctx, layer, x)), w.norm1_w, w.norm1_b);
    h = t.norm(ctx, add_into(ctx, h, t.mlp_branch(ctx, layer, h)), w.norm2_w, w.norm2_b);
    ctx.observe("block", layer, h.t);
    return h;
  }
  const Var n1 = c.pre_norm ? t.norm(ctx, x, w.norm1_w, w.norm1_b) : x;
  ctx.observe("norm1", layer, n1.t);
  const Var a = t.attention_branch(ctx, layer, n1);
  if (c.parallel_residual) {
    const Var n2 = c.shared_norm || !c.pre_norm ? n1 : t.norm(ctx, x, w.norm2_w, w.norm2_b);
    ctx.observe("norm2", layer, n2.t);
    const Var m = t.mlp_branch(ctx, layer, n2);
    const Var h = t.add_branch(ctx, t.add_branch(ctx, x, a, w.branch_norm1_w, w.branch_norm1_b), m, w.branch_norm2_w, w.branch_norm2_b);
    ctx.observe("block", layer, h.t);
    return h;
  }
  const Var h = t.add_branch(ctx, x, a, w.branch_norm1_w, w.branch_norm1_b);
  ctx.observe("attention_residual", layer, h.t);
  const Var n2 = c.pre_norm ? t.norm(ctx, h, w.norm2_w, w.norm2_b) : h;
  ctx.observe("norm2", layer, n2.t);
  const Var out = t.add_branch(ctx, h, t.mlp_branch(ctx, layer, n2), w.branch_norm2_w, w.branch_norm2_b);
  ctx.observe("block", layer, out.t);
  return out;
}

const int32_t* Transformer::prepare(Context& ctx, const Batch& batch) {
  const ModelConfig& c = model_.config;
  THIMBLE_CHECK(!(batch.cache && ctx.tape));
  if (batch.cache && c.bidirectional)
    throw Error(ErrorCode::unsupported, model_.path + ": is an encoder, which reads a text as a whole and continues none",
                "use thimble embed, or a model that generates");
  auto* positions = static_cast<int32_t*>(ctx.saved.allocate(size_t(batch.n) * sizeof(int32_t), "positions"));
  int32_t* copied = nullptr;  // with virtual tokens as token 0, whose embedding is then replaced
  for (int64_t s = 0; s < batch.n_seqs; ++s) {
    Adapter* adapter = adapter_of(batch, s);
    const int64_t virtuals = adapter && adapter->kind() == AdapterKind::prompt && !(batch.cache && batch.cache->length(s) > 0) ? adapter->n_virtual() : 0;
    const int64_t shift = adapter && adapter->kind() == AdapterKind::prefix ? adapter->n_virtual() : 0;
    const int64_t cached = batch.cache ? batch.cache->length(s) : 0, start = cached + shift;
    const int64_t first = batch.cu_seqlens[s], count = batch.cu_seqlens[s + 1] - first;
    const int64_t limit = batch.cache ? std::min(max_tokens_, batch.cache->capacity() + shift) : max_tokens_;
    THIMBLE_CHECK(virtuals <= count);
    if (start + count > limit)
      throw Error(ErrorCode::input, fmt::format("a sequence of {} tokens does not fit a context of {}", start + count, limit),
                  "shorten the text, or raise --ctx up to what the model supports");
    int64_t placeless = 0;
    for (int64_t i = 0; i < count; ++i) {
      positions[first + i] = static_cast<int32_t>(start + i - placeless);
      const int32_t id = batch.ids[first + i];
      if (c.placeless_id >= 0 && id == c.placeless_id) {
        positions[first + i] = -1;
        ++placeless;
      }
      if (batch.token_types && (batch.token_types[first + i] < 0 || batch.token_types[first + i] >= c.token_types))
        throw Error(ErrorCode::input, fmt::format("token type {} is out of range: the model has {} types", batch.token_types[first + i], c.token_types),
                    "the input and the model do not belong together");
      if (id == kVirtualToken && i < virtuals) {
        if (!copied) {
          copied = static_cast<int32_t*>(ctx.saved.allocate(size_t(batch.n) * sizeof(int32_t), "token ids"));
          std::memcpy(copied, batch.ids, size_t(batch.n) * sizeof(int32_t));
        }
        copied[first + i] = 0;
        continue;
      }
      if (id < 0 || id >= c.vocab_size)
        throw Error(ErrorCode::input, fmt::format("token id {} is out of range: the model's vocabulary has {} entries", id, c.vocab_size),
                    "the tokenizer and the model do not belong together");
    }
  }
  positions_ = positions;
  batch_ = &batch;
  choices_ = nullptr;
  if (c.n_experts > 0 && ctx.tape) {
    choices_ = static_cast<ExpertChoice*>(ctx.saved.allocate(static_cast<size_t>(c.n_layers) * sizeof(ExpertChoice), "expert choices"));
    for (int64_t l = 0; l < c.n_layers; ++l)
      choices_[l] = {static_cast<int32_t*>(ctx.saved.allocate(size_t(batch.n * c.n_experts_used) * sizeof(int32_t), "expert choices")), false};
  }
  for (int64_t l = 0; l < c.n_layers; ++l) {
    AttentionSpec& s = specs_[static_cast<size_t>(l)];
    s.n_seqs = batch.n_seqs;
    s.cu_seqlens = batch.cu_seqlens;
    s.cache = batch.cache ? &batch.cache->layout() : nullptr;
    s.cache_seqs = batch.cache ? batch.cache->sequences(l) : nullptr;
    s.cache_len = batch.cache ? batch.cache->lengths() : nullptr;
  }

  place_prefixes(ctx, batch);
  weights_ = &model_.weights;
  for (int64_t i = 0; i < batch.n_segments; ++i) {
    const AdapterSegment& s = batch.segments[i];
    if (!s.adapter->replaces()) continue;
    if (s.begin != 0 || s.end != batch.n)
      throw Error(ErrorCode::unsupported, "an adapter that replaces weights of the base (modules_to_save, bias) cannot share a batch with others",
                  "run it alone");
    weights_ = &s.adapter->weights_over(model_.weights);
  }
  return copied;
}

Var Transformer::enter(Context& ctx, const Batch& batch) {
  const ModelConfig& c = model_.config;
  const int32_t* copied = prepare(ctx, batch);
  ModelWeights& w = *weights_;
  Var x = embed(ctx, &w.token_embed, copied ? copied : batch.ids, batch.n);
  x = adapt_embedding(ctx, batch, copied ? copied : batch.ids, x);
  if (copied && c.scale_prompts) x = place_prompts(ctx, batch, x);
  if (c.embed_scale != 1) x = scale(ctx, x, static_cast<float>(c.embed_scale));
  if (copied && !c.scale_prompts) x = place_prompts(ctx, batch, x);
  if (c.projected()) x = linear(ctx, x, &w.project_in, nullptr);
  if (c.token_types > 0) {
    const int32_t* types = batch.token_types;
    if (!types) {
      auto* zeros = static_cast<int32_t*>(ctx.saved.allocate(size_t(batch.n) * sizeof(int32_t), "token types"));
      std::memset(zeros, 0, size_t(batch.n) * sizeof(int32_t));
      types = zeros;
    }
    x = add_positions(ctx, x, &w.token_type_embed, types, 0);
  }
  if (c.positions == PositionKind::learned) x = add_positions(ctx, x, &w.pos_embed, positions_, c.position_offset);
  if (c.embed_norm) x = norm(ctx, x, w.embed_norm_w, w.embed_norm_b);
  ctx.observe("embedding", -1, x.t);
  return x;
}

Var Transformer::embed_batch(Context& ctx, const Batch& batch) {
  THIMBLE_CHECK(!batch.cache && !ctx.tape);
  return enter(ctx, batch);
}

Var Transformer::one_block(Context& ctx, const Batch& batch, int64_t layer, Var x) {
  THIMBLE_CHECK(!batch.cache && !ctx.tape);
  prepare(ctx, batch);
  return run_block(ctx, &calls_[static_cast<size_t>(layer)], x, Recompute::none, false);
}

Var Transformer::forward(Context& ctx, const Batch& batch, Recompute recompute) {
  const ModelConfig& c = model_.config;
  Var x = enter(ctx, batch);
  ModelWeights& w = *weights_;
  for (int64_t l = 0; l < c.n_layers; ++l) {
    const bool needs_grad = ctx.tape && (x.id >= 0 || layer_trains(batch, l));
    x = run_block(ctx, &calls_[static_cast<size_t>(l)], x, recompute, needs_grad);
  }
  if (c.final_norm) x = norm(ctx, x, w.final_norm_w, w.final_norm_b);
  ctx.observe("final_norm", -1, x.t);
  if (c.projected()) x = linear(ctx, x, &w.project_out, nullptr);
  if (c.logit_scale != 1) x = scale(ctx, x, static_cast<float>(c.logit_scale));
  if (batch.cache)
    for (int64_t s = 0; s < batch.n_seqs; ++s) batch.cache->advance(s, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
  return x;
}

Var Transformer::pooler_output(Context& ctx, const Batch& batch, Var hidden) {
  ModelWeights& w = model_.weights;
  if (!w.pooler_w)
    throw Error(ErrorCode::unsupported, model_.path + ": has no pooler", "take the hidden states, or another model");
  const int64_t cols = hidden.t.cols();
  Var first;
  first.t = Tensor::matrix(ctx.saved.floats(batch.n_seqs * cols, "pooler"), batch.n_seqs, cols);
  for (int64_t s = 0; s < batch.n_seqs; ++s)
    std::memcpy(first.t.f32() + s * cols, hidden.t.f32() + batch.cu_seqlens[s] * cols, size_t(cols) * sizeof(float));
  Tape* const tape = ctx.tape;
  ctx.tape = nullptr;
  const Var y = linear(ctx, first, &w.pooler_w, present(w.pooler_b));
  ctx.tape = tape;
  for (int64_t i = 0; i < y.t.numel(); ++i) y.t.f32()[i] = std::tanh(y.t.f32()[i]);
  return y;
}

void Transformer::require_head() const {
  if (!model_.config.has_head)
    throw Error(ErrorCode::unsupported, model_.path + ": has no output matrix: it gives hidden states, not next tokens",
                "use thimble embed, or a model that generates");
}

Var Transformer::logits(Context& ctx, Var hidden) {
  require_head();
  const ZoneOwner owner(Zone::head);
  Var y = linear(ctx, hidden, &weights_->head(), present(weights_->lm_head_b));
  if (model_.config.logit_softcap > 0) y = softcap(ctx, y, static_cast<float>(model_.config.logit_softcap));
  ctx.observe("logits", -1, y.t);
  return y;
}

double Transformer::loss(Context& ctx, Var hidden, const int32_t* labels, double denominator, double* row_loss,
                         const float* row_weights) {
  require_head();
  return linear_cross_entropy(ctx, hidden, &weights_->head(), present(weights_->lm_head_b), labels, denominator, row_loss, row_weights,
                              static_cast<float>(model_.config.logit_softcap));
}

}  // namespace thimble
