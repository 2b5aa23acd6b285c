// Compression of whole models: every family, every method and grid; what is written loads again with the same logits;
// adapters train over the result; nothing depends on threads; and the driver says what it did.
#include "models/compress.h"

#include "models/adapter.h"
#include "models/divergence.h"
#include "models/init.h"
#include "models/packed.h"
#include "models/quantize.h"
#include "models/scoring.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

std::string case_dir(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/cases/" + name; }

// Every family and flag: gated and plain MLPs, grouped heads, fused and transposed tensors, parallel blocks, post-norm.
std::vector<std::string> bases() {
  return {oracle("llama_gqa_untied"), oracle("gpt2"),    oracle("gpt_neox"),          oracle("opt_prenorm"),
          oracle("qwen2"),            oracle("mistral_sw8"), case_dir("opt_350m"), case_dir("llama_linear_mlp_bias"),
          case_dir("gpt2_untied_inverse_layer"), case_dir("neox_full_rotary_tied")};
}

std::vector<std::vector<int32_t>> calibration(const Model& model, int64_t count = 16, int64_t length = 24, uint64_t seed = 3) {
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t i = 0; i < count; ++i) sequences.push_back(text(seed + uint64_t(i), length, model.config.vocab_size));
  return sequences;
}

Rows some_rows(const Model& model) {
  Rows rows;
  rows.add(text(71, 20, model.config.vocab_size));
  rows.add(text(72, 9, model.config.vocab_size));
  return rows;
}

std::vector<float> logits(Model& model, Context& ctx) {
  Transformer t(model, 32);
  return logits_of(t, ctx, some_rows(model));
}

nlohmann::ordered_json config_of(const std::string& dir) {
  std::ifstream in(dir + "/config.json");
  return nlohmann::ordered_json::parse(in);
}

CompressReport compress(Model& model, Context& ctx, const CompressOptions& options) {
  return compress_model(model, ctx, options, calibration(model));
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    d += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
    n += double(a[i]) * double(a[i]);
  }
  return std::sqrt(d / n);
}

TEST(Compress, NothingToDoChangesNothing) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  const std::vector<float> before = logits(model, *e.ctx);
  const CompressReport r = compress(model, *e.ctx, parse_compression("none"));
  EXPECT_TRUE(same_bits(before, logits(model, *e.ctx)));
  EXPECT_EQ(r.bytes_before, r.bytes_after);
  EXPECT_TRUE(r.tensors.empty());
}

// The observer's inputs are the inputs: statistics of a pass over stored activations equal those of one forward.
TEST(Compress, BlocksOneByOneAreTheForward) {
  for (const std::string& dir : bases()) {
    SCOPED_TRACE(base_name(dir));
    Engine e;
    Model model = load_model(dir, e.kernels);
    Transformer t(model, 32);
    const Rows rows = some_rows(model);
    const Batch batch = rows.batch();
    std::map<std::string, std::vector<float>> whole, pieces;
    std::map<std::string, std::vector<float>>* target = &whole;
    e.ctx->observer.user = &target;
    e.ctx->observer.on_value = [](void* user, const char* name, int layer, const Tensor& v) {
      if (layer < 0) return;
      auto& map = **static_cast<std::map<std::string, std::vector<float>>**>(user);
      map[std::to_string(layer) + name].assign(v.f32(), v.f32() + v.numel());
    };
    {
      const ArenaScope scope(e.ctx->saved);
      t.forward(*e.ctx, batch);
    }
    target = &pieces;
    const ArenaScope scope(e.ctx->saved);
    Var x = t.embed_batch(*e.ctx, batch);
    std::vector<float> hidden(x.t.f32(), x.t.f32() + x.t.numel());
    for (int64_t l = 0; l < model.config.n_layers; ++l) {
      const std::vector<float> kept = hidden;
      Var in;
      in.t = Tensor::matrix(hidden.data(), batch.n, model.config.hidden);
      const Var out = t.one_block(*e.ctx, batch, l, in);
      EXPECT_TRUE(same_bits(kept, hidden)) << "a block changed its input";
      hidden.assign(out.t.f32(), out.t.f32() + out.t.numel());
    }
    EXPECT_EQ(whole.size(), pieces.size());
    for (const auto& [name, value] : whole) EXPECT_TRUE(same_bits(value, pieces[name])) << name;
    for (const char* name : {"0input.q_w", "0input.o_w", "0input.up_w", "0input.down_w"}) EXPECT_EQ(whole.count(name), 1u) << name;
  }
}

TEST(Compress, EveryMethodOnEveryFamilyWritesWhatItComputes) {
  for (const std::string& dir : bases())
    for (const char* name : {"rtn:int4-g32-asym", "rtn-clip:int3-g32-sym", "gptq:int4-g32-asym", "gptq:int3-row-sym", "awq:int4-g32-asym",
                             "magnitude:0.5", "wanda:2:4", "sparsegpt:0.5"}) {
      SCOPED_TRACE(base_name(dir) + " " + name);
      Engine e;
      Model model = load_model(dir, e.kernels);
      const std::vector<float> original = logits(model, *e.ctx);
      const CompressOptions options = parse_compression(name);
      const CompressReport report = compress(model, *e.ctx, options);
      const size_t linears = size_t(model.config.n_layers) * (model.config.gated_mlp ? 7 : 6);
      ASSERT_EQ(report.tensors.size(), linears);
      for (const TensorReport& t : report.tensors) {
        EXPECT_EQ(t.method, compress_method_name(options.method)) << t.name << " " << t.fallback;
        EXPECT_GT(t.rel_err, 0) << t.name;
        EXPECT_LT(t.rel_err, 0.9) << t.name;
        if (options.prunes()) EXPECT_NEAR(t.zeros, 0.5, 0.02) << t.name;
      }
      if (options.quantizes()) EXPECT_LT(report.bytes_after, report.bytes_before);
      if (options.prunes()) EXPECT_EQ(report.bytes_after, report.bytes_before);
      const std::vector<float> compressed = logits(model, *e.ctx);
      EXPECT_GT(relative_distance(original, compressed), 0);
      if (!options.prunes() && options.spec.bits == 4) EXPECT_LT(relative_distance(original, compressed), 0.5);

      const ScratchDir out;
      write_compressed(out.path(), model, e.kernels, config_of(dir), report, {{"compression", report.compression}});
      Model again = load_model(out.path(), e.kernels);
      EXPECT_TRUE(same_bits(compressed, logits(again, *e.ctx)));
      EXPECT_EQ(again.stored_bytes(), model.stored_bytes());
      EXPECT_EQ(read_json(out / "config.json").contains("quantization_config"), options.quantizes());
    }
}

TEST(Compress, EverySpecLoadsAgainWithTheSameLogits) {
  // 48 inputs of the mlp fill neither three-bit words nor groups of 32: padding and short groups.
  for (const std::string& dir : {case_dir("llama_linear_mlp_bias"), oracle("gpt_neox")})
    for (int bits : {8, 4, 3, 2})
      for (const char* group : {"g32", "g64", "g128", "row"})
        for (const char* kind : {"sym", "asym"})
          for (const char* method : {"rtn", "gptq"}) {
            const std::string name = std::string(method) + ":int" + std::to_string(bits) + "-" + group + "-" + kind;
            SCOPED_TRACE(base_name(dir) + " " + name);
            Engine e;
            Model model = load_model(dir, e.kernels);
            CompressOptions options = parse_compression(name);
            options.static_groups = bits % 2 == 0;  // else with act-order's permutation
            const CompressReport report = compress(model, *e.ctx, options);
            const ScratchDir out;
            write_compressed(out.path(), model, e.kernels, config_of(dir), report, nlohmann::ordered_json::object());
            Model again = load_model(out.path(), e.kernels);
            EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
            for_each_weight(model.weights, [&](Role role, int64_t layer, const Weight& w) {
              const Weight& v = again.weights.at(role, layer);
              std::vector<float> a(size_t(w.numel())), b(a.size());
              dequantize(e.kernels, w, a.data());
              dequantize(e.kernels, v, b.data());
              EXPECT_TRUE(same_bits(a, b)) << role_name(role) << " " << layer;
              EXPECT_EQ(w.perm != nullptr, v.perm != nullptr);
            });
          }
}

TEST(Compress, HalfPrecisionFilesStayHalfPrecision) {
  for (const SafetensorsDtype dtype : {SafetensorsDtype::f16, SafetensorsDtype::bf16}) {
    Engine e;
    Checkpoint c = Checkpoint::read(oracle("llama_gqa_untied"));
    for (Checkpoint::Item& item : c.tensors) {
      std::string half(item.bytes.size() / 2, '\0');
      const ConvertArgs args{int64_t(half.size() / 2), item.bytes.data(), half.data()};
      if (dtype == SafetensorsDtype::f16) e.kernels.f32_to_f16(args);
      else e.kernels.f32_to_bf16(args);
      item.bytes = half;
      item.dtype = dtype;
    }
    const ScratchDir in, out;
    c.write(in.path());
    for (const char* name : {"wanda:0.5", "sparsegpt:2:4", "awq:int4-g32-asym"}) {
      Model model = load_model(in.path(), e.kernels);
      const int64_t bytes = model.stored_bytes();
      const CompressReport report = compress(model, *e.ctx, parse_compression(name));
      if (model.quantization.empty()) EXPECT_EQ(model.stored_bytes(), bytes);
      const std::string target = out / (std::string(name).substr(0, 3) + safetensors_dtype_name(dtype));
      write_compressed(target, model, e.kernels, config_of(in.path()), report, nlohmann::ordered_json::object());
      Model again = load_model(target, e.kernels);
      EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
      EXPECT_EQ(again.weights.token_embed.format, model.weights.token_embed.format);
    }
  }
}

TEST(Compress, ThreadsDoNotMatter) {
  for (const char* name : {"gptq:int3-g32-asym", "awq:int4-g32-asym", "sparsegpt:0.5", "rtn-clip:int4-g32-asym"}) {
    std::vector<float> first;
    std::vector<std::vector<int32_t>> sampled;
    for (int threads : {1, 2, 3}) {
      Engine e(best_tier(), threads);
      Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
      const auto sequences = sample_calibration(model, *e.ctx, 5, 20, 9);
      if (sampled.empty()) sampled = sequences;
      EXPECT_EQ(sampled, sequences);
      const CompressReport r = compress_model(model, *e.ctx, parse_compression(name), calibration(model));
      EXPECT_EQ(r.calibration_tokens, parse_compression(name).needs_calibration() ? 16 * 24 : 0);
      const std::vector<float> got = logits(model, *e.ctx);
      if (first.empty()) first = got;
      EXPECT_TRUE(same_bits(first, got)) << name << " " << threads;
    }
  }
}

// Folding alone is exact: with 8-bit codes what is left is their rounding.
TEST(Compress, AwqFoldsItsScalesExactly) {
  for (const std::string& dir : bases()) {
    SCOPED_TRACE(base_name(dir));
    Engine e;
    Model model = load_model(dir, e.kernels);
    const std::vector<float> original = logits(model, *e.ctx);
    const CompressReport report = compress(model, *e.ctx, parse_compression("awq:int8-g32-asym"));
    EXPECT_LT(relative_distance(original, logits(model, *e.ctx)), 0.03);
    int64_t scaled = 0;
    for (const TensorReport& t : report.tensors) {
      EXPECT_TRUE(t.ratio < 0 || t.fallback.empty()) << t.name;
      scaled += t.ratio >= 0 ? 1 : 0;
    }
    if (model.config.post_norm) {
      // OPT-350M: only v -> o and, through ReLU, up -> down.
      for (const TensorReport& t : report.tensors)
        if (t.role == Role::q_w || t.role == Role::up_w) EXPECT_NE(t.fallback.find("post-norm"), std::string::npos);
    } else {
      EXPECT_GT(scaled, 0);
    }
    for (const TensorReport& t : report.tensors) {
      if (t.role == Role::o_w && model.config.q_cols() != model.config.kv_cols())
        EXPECT_NE(t.fallback.find("grouped-query"), std::string::npos);
      if (t.role == Role::down_w && !model.config.gated_mlp && model.config.activation != Activation::relu)
        EXPECT_NE(t.fallback.find("gelu"), std::string::npos) << t.fallback;
    }
  }
}

TEST(Compress, FallsBackAndSaysSo) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  // 100 tokens are enough for 64 inputs, but not for the 160 of the down projection.
  const auto few = std::vector<std::vector<int32_t>>(4, text(5, 25, model.config.vocab_size));
  const CompressReport r = compress_model(model, *e.ctx, parse_compression("gptq:int4-g32-asym"), few);
  for (const TensorReport& t : r.tensors) {
    EXPECT_EQ(t.method, t.role == Role::down_w ? "rtn" : "gptq") << t.name;
    EXPECT_EQ(t.fallback.empty(), t.role != Role::down_w);
    EXPECT_TRUE(t.of_outputs);
  }
  EXPECT_NE(r.tensors.back().fallback.find("100 calibration tokens are fewer than the 160 inputs"), std::string::npos);
  // Equal sequences span few directions: the factor needed damping, and the report says how much.
  EXPECT_GE(r.tensors.front().damp, 0.01);
}

TEST(Compress, PoliciesPerTensor) {
  Engine e;
  for (const std::string& dir : {oracle("llama_gqa_untied"), oracle("gpt2")}) {
    Model model = load_model(dir, e.kernels);
    CompressOptions options = parse_compression("gptq:int4-g32-asym");
    CompressRule down, first;
    down.match = "*.down_w";
    down.spec = parse_weight_spec("int8-row-sym");
    first.match = "0.*";
    first.keep = true;
    options.rules = {down, first};
    const CompressReport report = compress(model, *e.ctx, options);
    for (const TensorReport& t : report.tensors)
      EXPECT_EQ(t.spec, t.layer == 0 ? "stored" : t.role == Role::down_w ? "int8-row-sym" : "int4-g32-asym") << t.name;
    EXPECT_EQ(model.weights.layers[0].q_w.format, WeightFormat::f32);
    EXPECT_EQ(model.weights.layers[1].down_w.format, WeightFormat::q8);
    const ScratchDir out;
    write_compressed(out.path(), model, e.kernels, config_of(dir), report, nlohmann::ordered_json::object());
    Model again = load_model(out.path(), e.kernels);
    EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
  }
  const auto refuse = [&](const std::string& dir, const CompressRule& rule, const std::string& word) {
    Model model = load_model(dir, e.kernels);
    CompressOptions options = parse_compression("rtn:int4-g32-asym");
    options.rules = {rule};
    try {
      compress(model, *e.ctx, options);
      ADD_FAILURE() << "accepted " << rule.match;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::usage);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  CompressRule rule;
  rule.keep = true;
  rule.match = "9.q_w";
  refuse(oracle("llama_gqa_untied"), rule, "matches no linear");
  rule.match = "*.q_w";
  refuse(oracle("gpt2"), rule, "lie in one tensor");
}

TEST(Compress, RefusesWhatItCannotDo) {
  Engine e;
  const auto code_of = [&](const std::function<void()>& fn) {
    try {
      fn();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  const CompressOptions gptq = parse_compression("gptq:int4-g32-asym");
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  EXPECT_EQ(code_of([&] { compress_model(model, *e.ctx, gptq, {}); }), ErrorCode::input);
  EXPECT_EQ(code_of([&] { compress_model(model, *e.ctx, gptq, {{1, 2, 100000}}); }), ErrorCode::input);
  EXPECT_EQ(code_of([&] { compress_model(model, *e.ctx, gptq, {{}}); }), ErrorCode::input);
  EXPECT_EQ(code_of([&] { parse_compression("gptq"); }), ErrorCode::usage);
  EXPECT_EQ(code_of([&] { parse_compression("none:int4-g32-asym"); }), ErrorCode::usage);
  EXPECT_EQ(code_of([&] { parse_compression("wanda:int4-g32-asym"); }), ErrorCode::usage);
  EXPECT_EQ(code_of([&] { parse_compression("squeeze:0.5"); }), ErrorCode::usage);
  for (const char* name : {"none", "rtn:int4-g64-asym", "rtn-clip:int3-row-sym", "awq:int4-g128-sym", "magnitude:2:4", "wanda:0.5"})
    EXPECT_EQ(parse_compression(name).name(), name);
  compress(model, *e.ctx, parse_compression("rtn:int4-g32-asym"));
  EXPECT_EQ(code_of([&] { compress(model, *e.ctx, gptq); }), ErrorCode::unsupported);
}

// The gradient of an adapter over a compressed base is that over the matrix which the base stands for, and training
// lowers the loss.
TEST(Compress, AdaptersTrainOverTheResult) {
  for (const char* name : {"gptq:int4-g32-asym", "awq:int3-row-asym", "wanda:0.5"}) {
    Engine e;
    Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
    const CompressReport report = compress(model, *e.ctx, parse_compression(name));
    const ScratchDir out;
    write_compressed(out.path(), model, e.kernels, config_of(oracle("llama_gqa_untied")), report, nlohmann::ordered_json::object());
    Model again = load_model(out.path(), e.kernels);
    AdapterOptions o;
    o.kind = AdapterKind::lora;
    o.rank = 4;
    o.alpha = 8;
    o.targets = "all-linear";
    o.seed = 5;
    Adapter adapter(again, e.kernels, o);
    adapter.enable_gradients();
    Transformer t(again, 32);
    const std::vector<int32_t> ids = text(8, 24, again.config.vocab_size);
    std::vector<int32_t> labels(ids.begin() + 1, ids.end());
    labels.push_back(-1);
    const std::vector<int32_t> cu = {0, 24};
    Tape tape;
    double first = 0, last = 0;
    for (int step = 0; step < 12; ++step) {
      const AdapterSegment segment{0, 24, &adapter};
      Batch batch{ids.data(), 24, cu.data(), 1};
      batch.segments = &segment;
      batch.n_segments = 1;
      const ArenaScope saved(e.ctx->saved);
      e.ctx->tape = &tape;
      const Var hidden = t.forward(*e.ctx, batch);
      const double loss = t.loss(*e.ctx, hidden, labels.data(), 23);
      backward(*e.ctx);
      e.ctx->tape = nullptr;
      (step == 0 ? first : last) = loss;
      adapter.for_each_parameter([&](const std::string&, Weight& w) {
        auto* data = static_cast<float*>(const_cast<void*>(w.data));
        for (int64_t i = 0; i < w.numel(); ++i) data[i] -= 0.5f * w.grad[i];
        w.grad_written = false;
      });
    }
    EXPECT_LT(last, first * 0.98) << name;
  }
}

TEST(Compress, DivergenceIsZeroAgainstItselfAndKnowsPerplexity) {
  Engine e;
  Model a = load_model(oracle("llama_gqa_untied"), e.kernels), b = load_model(oracle("llama_gqa_untied"), e.kernels);
  const std::vector<int32_t> ids = text(4, 200, a.config.vocab_size);
  const std::vector<ScoredSequence> windows = scored_windows(ids, 32, 16);
  Transformer ta(a, 32), tb(b, 32);
  const Divergence same = divergence(ta, tb, *e.ctx, windows);
  EXPECT_EQ(same.kl_mean, 0);
  EXPECT_EQ(same.same_top1, 1);
  EXPECT_EQ(same.tokens, 199);
  PerplexityOptions options;
  options.ctx = 32;
  options.stride = 16;
  const PerplexityResult reference = perplexity(ta, *e.ctx, ids, options);
  EXPECT_NEAR(same.ppl_before, reference.ppl, 1e-4 * reference.ppl);
  compress(b, *e.ctx, parse_compression("rtn:int3-row-asym"));
  const Divergence far = divergence(ta, tb, *e.ctx, windows);
  EXPECT_NEAR(far.ppl_after, perplexity(tb, *e.ctx, ids, options).ppl, 1e-4 * far.ppl_after);
  EXPECT_GT(far.kl_mean, 0);
  EXPECT_GT(far.kl_stderr, 0);
  EXPECT_LT(far.same_top1, 1);
  // By hand for one position.
  const std::vector<float> la = logits_of(ta, *e.ctx, [&] { Rows r; r.add(windows[0].ids); return r; }());
  const std::vector<float> lb = logits_of(tb, *e.ctx, [&] { Rows r; r.add(windows[0].ids); return r; }());
  double za = 0, zb = 0, kl = 0;
  const auto v = static_cast<size_t>(a.config.vocab_size);
  for (size_t i = 0; i < v; ++i) za += std::exp(double(la[i])), zb += std::exp(double(lb[i]));
  for (size_t i = 0; i < v; ++i) kl += std::exp(double(la[i])) / za * (double(la[i]) - std::log(za) - double(lb[i]) + std::log(zb));
  EXPECT_NEAR(double(far.kl[0]), kl, 1e-6);
  const PairedDifference p = paired_difference(far, same);
  EXPECT_NEAR(p.mean, far.kl_mean, 1e-9);
  EXPECT_GT(p.stderr_mean, 0);
}

// A trained model, where it matters: what GPTQ and AWQ are for. (The table of all grids is made by quantize --compare.)
TEST(Compress, GptqAndAwqBeatRoundingOnATrainedModel) {
  const std::string path = shared("data/models/babyllama_tok105/model5000.bin");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << path;
  Engine e;
  Model base = load_model(path, e.kernels);
  const auto calib = sample_calibration(base, *e.ctx, 24, 128, 1), eval = sample_calibration(base, *e.ctx, 24, 128, 2);
  std::vector<ScoredSequence> sequences;
  for (const auto& s : eval) sequences.push_back({s, 1});
  Transformer before(base, 128);
  const auto measure = [&](const char* name) {
    Model model = load_model(path, e.kernels);
    compress_model(model, *e.ctx, parse_compression(name), calib);
    Transformer after(model, 128);
    return divergence(before, after, *e.ctx, sequences);
  };
  const Divergence rtn = measure("rtn:int3-g64-asym");
  for (const char* name : {"gptq:int3-g64-asym", "awq:int3-g64-asym"}) {
    const PairedDifference p = paired_difference(measure(name), rtn);
    EXPECT_LT(p.mean, -2 * p.stderr_mean) << name;
  }
}

}  // namespace
}  // namespace thimble::models_test
