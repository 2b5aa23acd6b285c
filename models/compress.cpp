#include "models/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "models/kv_cache.h"
#include "models/quantize.h"
#include "models/transformer.h"
#include "models/unpack.h"
#include "quant/awq.h"
#include "quant/gptq.h"
#include "quant/prune.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/sha256.h"

namespace thimble {
namespace {

constexpr const char* kMethodNames[] = {"none", "rtn", "rtn-clip", "gptq", "awq", "magnitude", "wanda", "sparsegpt"};
constexpr int64_t kAwqTokens = 4096;  // over which the outputs of attention and mlp are compared

size_t at(int64_t i) { return static_cast<size_t>(i); }

// "*" stands for any text.
bool matches(const char* pattern, const char* text) {
  if (*pattern == '\0') return *text == '\0';
  if (*pattern == '*') {
    while (pattern[1] == '*') ++pattern;
    for (;; ++text) {
      if (matches(pattern + 1, text)) return true;
      if (*text == '\0') return false;
    }
  }
  return *pattern == *text && matches(pattern + 1, text + 1);
}

// The linears of a layer whose inputs are the same, by the input's first reader.
struct Group {
  Role input;
  const char* observed;
  std::vector<Role> roles;
  int64_t expert = 0;
  int64_t place(int64_t layer) const { return expert_place(layer, expert); }
};

std::vector<Group> groups_of(const ModelConfig& c) {
  std::vector<Group> groups = {{Role::q_w, "input.q_w", {Role::q_w, Role::k_w, Role::v_w}},
                               {Role::o_w, "input.o_w", {Role::o_w}}};
  for (int64_t e = 0; e < c.n_experts; ++e) {
    groups.push_back({Role::expert_up_w, "input.expert_up_w", {Role::expert_up_w, Role::expert_gate_w}, e});
    groups.push_back({Role::expert_down_w, "input.expert_down_w", {Role::expert_down_w}, e});
  }
  if (c.n_experts > 0) return groups;
  groups.push_back({Role::up_w, "input.up_w", {Role::up_w}});
  groups.push_back({Role::down_w, "input.down_w", {Role::down_w}});
  if (c.gated_mlp) groups[2].roles.push_back(Role::gate_w);
  return groups;
}

// What is to happen to one linear.
struct Plan {
  bool keep = false;
  WeightSpec spec;
  Sparsity sparsity;
  bool operator==(const Plan&) const = default;
};

double square_sum(const std::vector<float>& v) {
  double sum = 0;
  for (float x : v) sum += double(x) * double(x);
  return sum;
}

class Compressor {
 public:
  Compressor(Model& model, Context& ctx, const CompressOptions& options, const std::vector<std::vector<int32_t>>& calibration)
      : model_(model), ctx_(ctx), options_(options), groups_(groups_of(model.config)) {
    if (options.needs_calibration()) pack_batches(calibration);
    transformer_.emplace(model, std::max<int64_t>(1, longest_));
  }

  CompressReport run() {
    make_plans();
    report_.compression = options_.name();
    report_.bytes_before = model_.stored_bytes();
    report_.parameters = model_.parameters();
    const int64_t layers = model_.config.n_layers;
    if (options_.needs_calibration()) embed_all();
    int64_t passes = 1;
    if (options_.method == CompressMethod::gptq || options_.method == CompressMethod::sparsegpt)
      passes = static_cast<int64_t>(groups_.size()) + 1;
    if (options_.method == CompressMethod::awq || options_.method == CompressMethod::wanda) passes = 2;
    total_ = layers * passes;
    for (int64_t l = 0; l < layers; ++l) {
      switch (options_.method) {
        case CompressMethod::none: break;
        case CompressMethod::rtn:
        case CompressMethod::rtn_clip:
        case CompressMethod::magnitude: without_statistics(l); break;
        case CompressMethod::gptq:
        case CompressMethod::sparsegpt: sequentially(l); break;
        case CompressMethod::wanda: wanda(l); break;
        case CompressMethod::awq: awq(l); break;
      }
    }
    finish();
    return std::move(report_);
  }

 private:
  struct Rows {
    int64_t first = 0;  // row of hidden_
    std::vector<int32_t> ids, cu = {0};
    Batch batch() const {
      Batch b;
      b.ids = ids.data();
      b.n = static_cast<int64_t>(ids.size());
      b.cu_seqlens = cu.data();
      b.n_seqs = static_cast<int64_t>(cu.size()) - 1;
      return b;
    }
  };

  const ModelConfig& config() const { return model_.config; }
  // layer is a place (weights.h): the layer, and the expert where the role has several.
  Weight& weight(Role role, int64_t layer) { return model_.weights.at(role, layer); }
  Plan& plan(Role role, int64_t layer) { return plans_[{layer, role}]; }

  void pack_batches(const std::vector<std::vector<int32_t>>& calibration) {
    if (calibration.empty())
      throw Error(ErrorCode::input, fmt::format("{}: the method needs calibration text, but there is none", options_.name()),
                  "give a text, or sample one from the model");
    for (const auto& sequence : calibration) {
      if (sequence.empty()) throw Error(ErrorCode::input, "a calibration sequence is empty", "every sequence needs a token");
      const auto n = static_cast<int64_t>(sequence.size());
      longest_ = std::max(longest_, n);
      if (batches_.empty() || static_cast<int64_t>(batches_.back().ids.size()) + n > options_.batch_rows) {
        batches_.emplace_back();
        batches_.back().first = tokens_;
      }
      Rows& rows = batches_.back();
      rows.ids.insert(rows.ids.end(), sequence.begin(), sequence.end());
      rows.cu.push_back(static_cast<int32_t>(rows.ids.size()));
      tokens_ += n;
    }
    report_.calibration_tokens = tokens_;
    report_.calibration_sequences = static_cast<int64_t>(calibration.size());
    report_.calibration_sha256 = sha256_of_ids(calibration);
  }

  void make_plans() {
    std::vector<bool> used(options_.rules.size());
    for (int64_t l = 0; l < config().n_layers; ++l)
      for (const Group& g : groups_)
        for (Role role : g.roles) {
          Plan p;
          p.spec = options_.spec;
          p.sparsity = options_.sparsity;
          const std::string name = weight_name(role, g.place(l));
          for (size_t i = 0; i < options_.rules.size(); ++i) {
            const CompressRule& rule = options_.rules[i];
            if (!matches(rule.match.c_str(), name.c_str())) continue;
            used[i] = true;
            p.keep = rule.keep;
            p.spec = rule.spec;
            p.sparsity = rule.sparsity;
          }
          if (options_.prunes() && p.sparsity.empty()) p.keep = true;
          plan(role, g.place(l)) = p;
        }
    for (size_t i = 0; i < used.size(); ++i)
      if (!used[i])
        throw Error(ErrorCode::usage, fmt::format("policy: \"{}\" matches no linear of the model", options_.rules[i].match),
                    "names are <layer>.<role>, with * for any text: 0.q_w, *.down_w; roles: q_w k_w v_w o_w gate_w up_w down_w, and expert_gate_w.0 and so on");
    for (const TensorRule& rule : model_.family->tensors)
      for (size_t part = 1; part < rule.roles.size(); ++part)
        for (int64_t l = 0; l < config().n_layers; ++l)
          if (plans_.count({l, rule.roles[part]}) && plan(rule.roles[part], l) != plan(rule.roles[0], l))
            throw Error(ErrorCode::usage,
                        fmt::format("policy: {} and {} of layer {} lie in one tensor of a {} model and need the same setting",
                                    role_name(rule.roles[0]), role_name(rule.roles[part]), l, config().family),
                        "match them together: *.q_w, *.k_w and *.v_w");
  }

  void embed_all() {
    hidden_ = Buffer(at(tokens_ * config().hidden) * sizeof(float), ctx_.budget, "calibration activations");
    for (const Rows& rows : batches_) {
      const ArenaScope scope(ctx_.saved);
      const Var x = transformer_->embed_batch(ctx_, rows.batch());
      std::memcpy(row(rows.first), x.t.f32(), rows.ids.size() * at(config().hidden) * sizeof(float));
    }
  }

  float* row(int64_t i) { return hidden_.f32() + i * config().hidden; }

  using Seen = std::function<void(const char* name, int64_t place, const Tensor& value)>;

  // Runs a layer over the batches; keep: its outputs become the hidden states. tokens: of the first so many only.
  void pass(int64_t layer, const Seen& seen, bool keep, int64_t tokens = INT64_MAX) {
    const Observer before = ctx_.observer;
    ctx_.observer = {};
    if (seen) {
      ctx_.observer.user = const_cast<Seen*>(&seen);
      ctx_.observer.on_value = [](void* user, const char* name, int place, const Tensor& value) {
        (*static_cast<const Seen*>(user))(name, place, value);
      };
    }
    const struct Restore {
      Context& ctx;
      Observer observer;
      ~Restore() { ctx.observer = observer; }
    } restore{ctx_, before};
    for (const Rows& rows : batches_) {
      if (rows.first >= tokens) break;
      const ArenaScope scope(ctx_.saved);
      const Batch batch = rows.batch();
      Var x;
      x.t = Tensor::matrix(row(rows.first), batch.n, config().hidden);
      const Var y = transformer_->one_block(ctx_, batch, layer, x);
      if (keep) std::memcpy(row(rows.first), y.t.f32(), at(batch.n * config().hidden) * sizeof(float));
    }
  }

  // Statistics of the inputs of these groups. keep as in pass().
  std::vector<InputStatistics> collect(int64_t layer, const std::vector<const Group*>& groups, bool keep) {
    std::vector<InputStatistics> statistics;
    for (const Group* g : groups) statistics.emplace_back(weight(g->roles[0], g->place(layer)).cols);
    pass(layer, [&](const char* name, int64_t place, const Tensor& value) {
      for (size_t i = 0; i < groups.size(); ++i)
        if (value.rows() > 0 && place == groups[i]->place(layer) && std::strcmp(name, groups[i]->observed) == 0)
          statistics[i].add(ctx_.kernels, ctx_.threads, value.f32(), value.rows(), value.stride[0]);
    }, keep);
    return statistics;
  }

  std::vector<float> dense(Role role, int64_t layer) {
    const Weight& w = weight(role, layer);
    std::vector<float> values(at(w.numel()));
    dequantize(ctx_.kernels, w, values.data());
    with_context(model_.path + ": weight " + weight_name(role, layer), [&] { check_finite(values.data(), w.numel()); });
    return values;
  }

  // Replaces a weight by f32 values, rounded to the format that it is stored in.
  void put_dense(Weight& w, const std::vector<float>& values) {
    const size_t bytes = w.stored_bytes();
    void* data = model_.store.allocate(bytes);
    write_floats(ctx_.kernels, values.data(), w.numel(), dtype_of(w.format), data);
    release_weight_pages(w);
    w.data = data;
  }

  void put_quantized(Weight& w, const QuantizedMatrix& q) {
    TileStorage tiles = pack_tiles(ctx_.kernels, tile_format(q.bits), q.rows, q.cols,
                                   q.groups == 1 ? 0 : q.group, q.codes.data(), q.zeros.data(), q.scales_f16.data(), nullptr,
                                   ctx_.budget);
    if (!q.perm.empty()) {
      auto* perm = static_cast<int32_t*>(model_.store.allocate(q.perm.size() * sizeof(int32_t)));
      std::memcpy(perm, q.perm.data(), q.perm.size() * sizeof(int32_t));
      tiles.weight.perm = perm;
    }
    release_weight_pages(w);
    w = tiles.weight;
    model_.store.adopt(std::move(tiles.buffer));
  }

  TensorReport& add_report(Role role, int64_t layer, const Plan& p) {
    TensorReport r;
    r.role = role;
    r.layer = layer;
    r.name = weight_name(role, layer);
    r.spec = p.keep ? "stored" : options_.prunes() ? p.sparsity.name() : p.spec.name();
    r.method = p.keep ? "none" : compress_method_name(options_.method);
    if (!p.keep && options_.quantizes()) {
      r.bits = p.spec.bits;
      r.weight_spec = p.spec;
    }
    report_.tensors.push_back(r);
    return report_.tensors.back();
  }

  // before and after: [rows, cols] dense.
  void measure(TensorReport& r, const std::vector<float>& before, std::vector<float> after, int64_t cols,
               const std::vector<float>* gram) {
    r.zeros = double(std::count(after.begin(), after.end(), 0.0f)) / double(after.size());
    for (size_t i = 0; i < after.size(); ++i) after[i] = before[i] - after[i];
    const auto rows = static_cast<int64_t>(before.size()) / cols;
    double error, whole;
    if (gram) {
      error = gram_error(ctx_.kernels, ctx_.threads, after.data(), rows, cols, gram->data(), cols);
      whole = gram_error(ctx_.kernels, ctx_.threads, before.data(), rows, cols, gram->data(), cols);
    } else {
      error = square_sum(after);
      whole = square_sum(before);
    }
    r.of_outputs = gram != nullptr;
    r.rel_err = whole > 0 ? error / whole : 0;
  }

  void quantize_rtn_into(Role role, int64_t layer, TensorReport& r, bool clip, const std::vector<float>* gram) {
    const Plan& p = plan(role, layer);
    Weight& w = weight(role, layer);
    const std::vector<float> before = dense(role, layer);
    const int64_t cols = w.cols;
    std::vector<float> shrink;
    if (clip) shrink = clip_ranges(before.data(), w.rows, cols, p.spec, ctx_.threads);
    const QuantizedMatrix q = thimble::quantize_rtn(before.data(), w.rows, cols, p.spec, clip ? shrink.data() : nullptr, ctx_.threads);
    put_quantized(w, q);
    measure(r, before, thimble::dequantize(q), cols, gram);
  }

  void without_statistics(int64_t in_layer) {
    for (const Group& g : groups_)
      for (Role role : g.roles) {
        const int64_t layer = g.place(in_layer);
        const Plan& p = plan(role, layer);
        TensorReport& r = add_report(role, layer, p);
        if (p.keep) continue;
        if (options_.quantizes()) {
          quantize_rtn_into(role, layer, r, options_.method == CompressMethod::rtn_clip, nullptr);
          continue;
        }
        Weight& w = weight(role, layer);
        const std::vector<float> before = dense(role, layer);
        std::vector<float> after = before;
        prune_magnitude(after.data(), w.rows, w.cols, p.sparsity, options_.per_row, ctx_.threads);
        put_dense(w, after);
        measure(r, before, std::move(after), w.cols, nullptr);
      }
    step("layer");
  }

  // Group after group, each with the inputs that the groups before it, already compressed, produce.
  void sequentially(int64_t in_layer) {
    const bool quantizes = options_.quantizes();
    for (const Group& g : groups_) {
      const int64_t layer = g.place(in_layer);
      const bool all_kept = std::all_of(g.roles.begin(), g.roles.end(), [&](Role r) { return plan(r, layer).keep; });
      if (all_kept) {
        for (Role role : g.roles) add_report(role, layer, plan(role, layer));
        step("layer");
        continue;
      }
      const InputStatistics statistics = std::move(collect(in_layer, {&g}, false)[0]);
      const std::vector<float> gram = statistics.gram_f32();
      const int64_t cols = statistics.cols();
      const bool few = statistics.tokens() < cols;
      InverseFactor factor;
      if (!few) factor = factor_hessian(statistics, options_.damp, quantizes && options_.act_order, ctx_.threads);
      const std::string why =
          few ? fmt::format("{} calibration tokens are fewer than the {} inputs", statistics.tokens(), cols)
              : "the Hessian is not positive definite with any damping up to 10";
      for (Role role : g.roles) {
        const Plan& p = plan(role, layer);
        TensorReport& r = add_report(role, layer, p);
        if (p.keep) continue;
        Weight& w = weight(role, layer);
        const std::vector<float> before = dense(role, layer);
        std::vector<float> after;
        r.damp = factor.damp;
        if (quantizes && factor.ok) {
          const QuantizedMatrix q = gptq(before.data(), w.rows, factor, {p.spec, options_.static_groups, options_.clip},
                                         ctx_.kernels, ctx_.threads);
          put_quantized(w, q);
          after = thimble::dequantize(q);
        } else if (quantizes) {
          r.method = options_.clip ? "rtn-clip" : "rtn";
          r.fallback = why;
          quantize_rtn_into(role, layer, r, options_.clip, &gram);
          continue;
        } else {
          after = before;
          if (factor.ok) {
            prune_sparsegpt(after.data(), w.rows, factor, p.sparsity, ctx_.kernels, ctx_.threads);
          } else {
            r.method = "wanda";
            r.fallback = why;
            prune_wanda(after.data(), w.rows, w.cols, norms_of(statistics), p.sparsity, ctx_.threads);
          }
          put_dense(w, after);
        }
        measure(r, before, std::move(after), cols, &gram);
      }
      step("layer");
    }
    if (in_layer + 1 < config().n_layers) pass(in_layer, {}, true);
    step("layer");
  }

  std::vector<const Group*> all_groups() const {
    std::vector<const Group*> list;
    for (const Group& g : groups_) list.push_back(&g);
    return list;
  }

  // Of an expert that no token reached, ones: the weights alone decide.
  static std::vector<float> norms_of(const InputStatistics& statistics) {
    return statistics.tokens() > 0 ? statistics.norms() : std::vector<float>(at(statistics.cols()), 1.0f);
  }

  // All linears of the layer from the inputs that its uncompressed self gives them; the next layer sees its compressed outputs.
  void wanda(int64_t in_layer) {
    const std::vector<InputStatistics> statistics = collect(in_layer, all_groups(), false);
    step("layer");
    for (size_t i = 0; i < groups_.size(); ++i) {
      const std::vector<float> gram = statistics[i].gram_f32();
      const int64_t layer = groups_[i].place(in_layer);
      for (Role role : groups_[i].roles) {
        const Plan& p = plan(role, layer);
        TensorReport& r = add_report(role, layer, p);
        if (p.keep) continue;
        if (statistics[i].tokens() == 0) r.fallback = "no calibration token reaches this expert: the inputs count alike";
        Weight& w = weight(role, layer);
        const std::vector<float> before = dense(role, layer);
        std::vector<float> after = before;
        prune_wanda(after.data(), w.rows, w.cols, norms_of(statistics[i]), p.sparsity, ctx_.threads);
        put_dense(w, after);
        measure(r, before, std::move(after), w.cols, &gram);
      }
    }
    if (in_layer + 1 < config().n_layers) pass(in_layer, {}, true);
    step("layer");
  }

  // ---- AWQ ----

  // What a group's scales are taken from: the norm or the linear that makes its inputs. Empty reason: they can be.
  std::string why_not_scaled(const Group& g, int64_t in_layer, int64_t tokens) {
    const ModelConfig& c = config();
    const int64_t layer = g.place(in_layer);
    if (tokens == 0) return "not scaled: no calibration token reaches this expert; clipped only";
    for (Role role : g.roles)
      if (plan(role, layer).keep) return "not scaled: a linear with the same input is left alone; clipped only";
    switch (g.input) {
      case Role::q_w:
      case Role::up_w:
        if (c.post_norm) return "not scaled: the residual stream reads the same norm (post-norm); clipped only";
        if (!c.pre_norm) return "not scaled: it reads the residual stream, without a norm before it; clipped only";
        if (c.shared_norm) return "not scaled: attention and mlp read the same norm; clipped only";
        if (!c.norm_affine) return "not scaled: the norm before it has no weights; clipped only";
        return {};
      case Role::o_w:
        if (c.q_cols() != c.kv_cols()) return "not scaled: v and o differ in shape (grouped-query attention); clipped only";
        if (c.qkv_clip > 0) return "not scaled: v is held within bounds; clipped only";
        return plan(Role::v_w, layer).keep ? "not scaled: v is left alone; clipped only" : "";
      case Role::down_w:
        if (!c.gated_mlp && c.activation != Activation::relu)
          return fmt::format("not scaled: {} does not pass a factor on; clipped only", activation_name(c.activation));
        return plan(Role::up_w, layer).keep ? "not scaled: up is left alone; clipped only" : "";
      case Role::expert_up_w: return "not scaled: the experts of a layer and their router read the same norm; clipped only";
      case Role::expert_down_w: return plan(Role::expert_up_w, layer).keep ? "not scaled: up is left alone; clipped only" : "";
      default: return {};
    }
  }

  // The outputs of attention or mlp over the first tokens, with the group's weights replaced.
  std::vector<float> branch_output(int64_t layer, const char* observed) {
    std::vector<float> out;
    pass(layer, [&](const char* name, int64_t, const Tensor& value) {
      if (std::strcmp(name, observed) == 0) out.insert(out.end(), value.f32(), value.f32() + value.numel());
    }, false, kAwqTokens);
    return out;
  }

  using DenseWeights = std::map<std::pair<Role, int64_t>, std::vector<float>>;  // of a layer, by role and place

  AwqScales search(const Group& g, int64_t in_layer, const InputStatistics& statistics, const std::vector<float>& gram,
                   DenseWeights& dense_weights) {
    const int64_t layer = g.place(in_layer);
    std::vector<const float*> matrices;
    std::vector<int64_t> rows;
    for (Role role : g.roles) {
      matrices.push_back(dense_weights[{role, layer}].data());
      rows.push_back(weight(role, layer).rows);
    }
    const int64_t cols = statistics.cols();
    const std::vector<float> w_mean = awq_weight_means(matrices, rows, cols, plan(g.roles[0], layer).spec);
    const std::vector<float> x_mean = statistics.mean_abs();
    std::vector<std::vector<float>> rounded(g.roles.size());
    const auto round_all = [&](const std::vector<float>& scales) {
      for (size_t i = 0; i < g.roles.size(); ++i) {
        rounded[i].resize(dense_weights[{g.roles[i], layer}].size());
        round_scaled(matrices[i], rows[i], cols, plan(g.roles[i], layer).spec, scales, rounded[i].data(), ctx_.threads);
      }
    };
    if (g.roles.size() == 1 && g.input != Role::up_w) {
      return search_scales(x_mean, w_mean, [&](const std::vector<float>& scales) {
        round_all(scales);
        for (size_t i = 0; i < rounded[0].size(); ++i) rounded[0][i] = matrices[0][i] - rounded[0][i];
        return gram_error(ctx_.kernels, ctx_.threads, rounded[0].data(), rows[0], cols, gram.data(), cols);
      });
    }
    const char* observed = g.input == Role::q_w ? "attention_out" : "mlp_out";
    const std::vector<float> wanted = branch_output(in_layer, observed);
    return search_scales(x_mean, w_mean, [&](const std::vector<float>& scales) {
      round_all(scales);
      // The block computes with the rounded weights on the inputs as they are.
      std::vector<Weight> originals;
      for (size_t i = 0; i < g.roles.size(); ++i) {
        Weight& w = weight(g.roles[i], layer);
        originals.push_back(w);
        w.format = WeightFormat::f32;
        w.data = rounded[i].data();
      }
      const std::vector<float> got = branch_output(in_layer, observed);
      for (size_t i = 0; i < g.roles.size(); ++i) weight(g.roles[i], layer) = originals[i];
      double sum = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const double d = double(got[i]) - double(wanted[i]);
        sum += d * d;
      }
      return sum / double(std::max<size_t>(1, got.size()));
    });
  }

  // v /= s, for a norm's weight or a bias. What is multiplied by is v + offset.
  void divide_vector(Weight& v, const std::vector<float>& scales, double offset = 0) {
    if (!v) return;
    std::vector<float> values(v.f32(), v.f32() + v.numel());
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>((double(values[i]) + offset) / double(scales[i]) - offset);
    void* data = model_.store.allocate(values.size() * sizeof(float));
    std::memcpy(data, values.data(), values.size() * sizeof(float));
    v.data = data;
  }

  static void divide_rows(std::vector<float>& w, int64_t cols, const std::vector<float>& scales) {
    for (size_t r = 0; r < scales.size(); ++r)
      for (int64_t c = 0; c < cols; ++c) w[r * at(cols) + at(c)] /= scales[r];
  }

  void awq(int64_t layer) {
    // The statistics and the next layer's inputs come from the block as it was: errors are not passed on.
    const std::vector<InputStatistics> statistics = collect(layer, all_groups(), false);
    step("layer");
    DenseWeights w;
    for (const Group& g : groups_)
      for (Role role : g.roles) w[{role, g.place(layer)}] = dense(role, g.place(layer));
    std::vector<AwqScales> scales(groups_.size());
    std::vector<std::string> reasons(groups_.size());
    std::vector<std::vector<float>> grams;
    for (size_t i = 0; i < groups_.size(); ++i) {
      grams.push_back(statistics[i].gram_f32());
      reasons[i] = why_not_scaled(groups_[i], layer, statistics[i].tokens());
      scales[i].scales.assign(at(statistics[i].cols()), 1.0f);
      if (reasons[i].empty()) scales[i] = search(groups_[i], layer, statistics[i], grams[i], w);
    }
    if (layer + 1 < config().n_layers) pass(layer, {}, true);
    LayerWeights& lw = model_.weights.layers[at(layer)];
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (scales[i].ratio < 0) continue;
      const std::vector<float>& s = scales[i].scales;
      const auto cols = static_cast<int64_t>(s.size());
      const int64_t place = groups_[i].place(layer);
      for (Role role : groups_[i].roles) {
        std::vector<float>& values = w[{role, place}];
        for (size_t k = 0; k < values.size(); ++k) values[k] *= s[k % s.size()];
      }
      for (int64_t a = 0; a < cols; ++a)
        for (int64_t b = 0; b < cols; ++b) grams[i][at(a * cols + b)] /= s[at(a)] * s[at(b)];
      switch (groups_[i].input) {
        case Role::q_w:
          divide_vector(lw.norm1_w, s, config().norm_offset);
          divide_vector(lw.norm1_b, s);
          break;
        case Role::o_w:
          divide_rows(w[{Role::v_w, place}], lw.v_w.cols, s);
          divide_vector(lw.v_b, s);
          break;
        case Role::up_w:
          divide_vector(lw.norm2_w, s, config().norm_offset);
          divide_vector(lw.norm2_b, s);
          break;
        case Role::expert_down_w:
          divide_rows(w[{Role::expert_up_w, place}], weight(Role::expert_up_w, place).cols, s);
          break;
        default:
          divide_rows(w[{Role::up_w, place}], lw.up_w.cols, s);
          divide_vector(lw.up_b, s);
          break;
      }
    }
    for (size_t i = 0; i < groups_.size(); ++i)
      for (Role role : groups_[i].roles) {
        const int64_t place = groups_[i].place(layer);
        const Plan& p = plan(role, place);
        TensorReport& r = add_report(role, place, p);
        if (p.keep) continue;
        Weight& target = weight(role, place);
        const int64_t rows = target.rows, cols = target.cols;
        const std::vector<float>& values = w[{role, place}];
        // Scores of queries and keys multiply each other's errors: their ranges stay whole.
        const bool clips = role != Role::q_w && role != Role::k_w;
        std::vector<float> shrink;
        if (clips) shrink = awq_clip(values.data(), rows, cols, p.spec, grams[i].data(), ctx_.kernels, ctx_.threads);
        const QuantizedMatrix q = thimble::quantize_rtn(values.data(), rows, cols, p.spec, clips ? shrink.data() : nullptr, ctx_.threads);
        r.ratio = scales[i].ratio;
        r.fallback = reasons[i];
        put_quantized(target, q);
        measure(r, values, thimble::dequantize(q), cols, &grams[i]);
      }
    step("layer");
  }

  void finish() {
    report_.bytes_after = model_.stored_bytes();
    report_.bits_per_weight = 8.0 * double(report_.bytes_after) / double(report_.parameters);
    int64_t bytes = 0, count = 0;
    for (const TensorReport& r : report_.tensors) {
      const Weight& w = weight(r.role, r.layer);
      bytes += static_cast<int64_t>(w.stored_bytes());
      count += w.numel();
    }
    report_.linear_bits_per_weight = count > 0 ? 8.0 * double(bytes) / double(count) : 0;
    if (options_.quantizes()) model_.quantization = options_.name();
  }

  void step(const char* what) {
    ++done_;
    if (options_.progress) options_.progress(what, done_, total_);
  }

  Model& model_;
  Context& ctx_;
  const CompressOptions& options_;
  std::vector<Group> groups_;
  std::optional<Transformer> transformer_;
  std::vector<Rows> batches_;
  int64_t tokens_ = 0, longest_ = 0, done_ = 0, total_ = 0;
  Buffer hidden_;  // [tokens, hidden]: what enters the layer at hand
  std::map<std::pair<int64_t, Role>, Plan> plans_;
  CompressReport report_;
};

}  // namespace

const char* compress_method_name(CompressMethod method) { return kMethodNames[static_cast<int>(method)]; }

bool CompressOptions::needs_calibration() const {
  return method == CompressMethod::gptq || method == CompressMethod::awq || method == CompressMethod::wanda ||
         method == CompressMethod::sparsegpt;
}

std::string CompressOptions::name() const {
  if (method == CompressMethod::none) return "none";
  return fmt::format("{}:{}{}", compress_method_name(method), quantizes() ? spec.name() : sparsity.name(),
                     rules.empty() ? "" : "+policy");
}

CompressOptions parse_compression(const std::string& text, const std::string& where) {
  CompressOptions options;
  const size_t colon = text.find(':');
  const std::string method = text.substr(0, colon);
  for (size_t i = 0; i < std::size(kMethodNames); ++i) {
    if (method != kMethodNames[i] || (i == 0) != (colon == std::string::npos)) continue;
    options.method = static_cast<CompressMethod>(i);
    if (options.quantizes()) options.spec = parse_weight_spec(text.substr(colon + 1), where);
    if (options.prunes()) options.sparsity = parse_sparsity(text.substr(colon + 1), where);
    return options;
  }
  throw Error(ErrorCode::usage, fmt::format("{}: \"{}\" is not a compression", where, text.substr(0, 80)),
              "valid: none, {rtn|rtn-clip|gptq|awq}:int{8,4,3,2}-{g32|g64|g128|row}-{sym|asym}, "
              "{magnitude|wanda|sparsegpt}:SHARE or :n:m");
}

nlohmann::ordered_json CompressReport::tensors_json() const {
  auto list = nlohmann::ordered_json::array();
  for (const TensorReport& r : tensors)
    list.push_back({{"name", r.name},
                    {"spec", r.spec},
                    {"method", r.method},
                    {"fallback", r.fallback.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(r.fallback)},
                    {"damp", r.damp},
                    {"rel_err", r.rel_err},
                    {"rel_err_of", r.of_outputs ? "outputs" : "weights"},
                    {"zeros", r.zeros},
                    {"ratio", r.method == "awq" && r.ratio >= 0 ? nlohmann::ordered_json(r.ratio) : nlohmann::ordered_json(nullptr)}});
  return list;
}

CompressReport compress_model(Model& model, Context& ctx, const CompressOptions& options,
                              const std::vector<std::vector<int32_t>>& calibration) {
  for_each_weight(model.weights, [&](Role role, int64_t layer, const Weight& w) {
    if (options.method == CompressMethod::none || !role_is_layer(role)) return;
    const bool tiled = is_tiled(w.format);
    if (tiled || w.grad)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: {} {}", model.path, weight_name(role, layer),
                              tiled ? fmt::format("is quantized already ({})", format_name(w.format)) : "has a gradient"),
                  "compress the original model");
  });
  const Precision precision = ctx.precision;
  ctx.precision = Precision::f32;
  const struct Restore {
    Context& ctx;
    Precision precision;
    ~Restore() { ctx.precision = precision; }
  } restore{ctx, precision};
  return Compressor(model, ctx, options, calibration).run();
}

std::vector<std::vector<int32_t>> sample_calibration(Model& model, Context& ctx, int64_t count, int64_t length,
                                                     uint64_t seed,
                                                     const std::function<void(int64_t done, int64_t total)>& progress) {
  THIMBLE_CHECK(count > 0 && length > 0);
  constexpr int64_t kTogether = 64;
  constexpr uint64_t kStream = uint64_t{0x63} << 56;
  const ModelConfig& c = model.config;
  Transformer transformer(model, length);
  std::vector<std::vector<int32_t>> sequences(at(count));
  std::vector<double> weights(at(c.vocab_size));
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t n = std::min(kTogether, count - first);
    KvCache cache(c, n, length, ctx.budget);
    std::vector<Philox> draws;
    std::vector<int32_t> cu, ids(at(n));
    for (int64_t i = 0; i < n; ++i) {
      draws.emplace_back(seed, kStream + static_cast<uint64_t>(first + i));
      cu.push_back(static_cast<int32_t>(i));
      ids[at(i)] = c.bos_id >= 0 ? c.bos_id : static_cast<int32_t>(draws.back().below(static_cast<uint64_t>(c.vocab_size)));
      sequences[at(first + i)].push_back(ids[at(i)]);
    }
    cu.push_back(static_cast<int32_t>(n));
    for (int64_t t = 1; t < length; ++t) {
      const ArenaScope scope(ctx.saved);
      Batch batch;
      batch.ids = ids.data();
      batch.n = batch.n_seqs = n;
      batch.cu_seqlens = cu.data();
      batch.cache = &cache;
      const Var logits = transformer.logits(ctx, transformer.forward(ctx, batch));
      for (int64_t i = 0; i < n; ++i) {
        const float* row = logits.t.f32() + i * c.vocab_size;
        const double largest = double(*std::max_element(row, row + c.vocab_size));
        double total = 0;
        for (int64_t v = 0; v < c.vocab_size; ++v) total += weights[at(v)] = std::exp(double(row[v]) - largest);
        if (!std::isfinite(total))
          throw Error(ErrorCode::input, model.path + ": the model's predictions are not finite", "the checkpoint is damaged");
        double left = draws[at(i)].uniform() * total;
        int64_t chosen = 0;
        while (chosen + 1 < c.vocab_size && (left -= weights[at(chosen)]) >= 0) ++chosen;
        // A text that has ended is followed by a new one.
        const bool ended = std::find(c.eos_ids.begin(), c.eos_ids.end(), ids[at(i)]) != c.eos_ids.end();
        const bool restart = ended && c.bos_id >= 0 && ids[at(i)] != c.bos_id;
        ids[at(i)] = restart ? c.bos_id : static_cast<int32_t>(chosen);
        sequences[at(first + i)].push_back(ids[at(i)]);
      }
      if (progress) progress(first * (length - 1) + t * n, count * (length - 1));
    }
  }
  return sequences;
}

std::string sha256_of_ids(const std::vector<std::vector<int32_t>>& sequences) {
  std::string bytes;
  for (const auto& sequence : sequences) {
    bytes += fmt::format("{}:", sequence.size());
    for (int32_t id : sequence)
      for (int b = 0; b < 4; ++b) bytes.push_back(static_cast<char>(static_cast<uint32_t>(id) >> (8 * b) & 255u));
  }
  return sha256_hex(bytes);
}

}  // namespace thimble
