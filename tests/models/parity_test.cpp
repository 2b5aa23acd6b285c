// Every stored number of every reference case, on every tier; equal bits for every number of threads.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

struct Outcome {
  std::vector<std::string> failures;
  std::set<std::string> compared;
  std::string digest;
};

class Run {
 public:
  Run(const std::string& dir, Tier tier, int threads) : engine_(tier, threads), expected_(dir + "/expected.safetensors") {
    for (const TensorInfo& t : expected_.tensors()) grads_ = grads_ || t.name.rfind("grad.", 0) == 0;
    LoadOptions options;
    options.trainable = grads_;
    model_ = load_model(dir, engine_.kernels, options);
    if (grads_) enable_gradients(model_);
    const TensorInfo* info = expected_.find("input_ids");
    std::vector<int64_t> ids(static_cast<size_t>(info->elements()));
    expected_.read_i64(*info, ids.data());
    length_ = info->shape[1];
    for (int64_t s = 0; s < info->shape[0]; ++s)
      rows_.add(std::vector<int32_t>(ids.begin() + s * length_, ids.begin() + (s + 1) * length_));
    out_.compared.insert("input_ids");
    follow_length(length_);
  }

  Outcome run() {
    logits();
    loss();
    if (expected_.find("greedy_ids")) greedy();
    dequantized();
    for (const TensorInfo& t : expected_.tensors())
      if (!out_.compared.count(t.name)) out_.failures.push_back(t.name + " was not compared");
    out_.digest = digest_.hex();
    return out_;
  }

 private:
  // The reference sets rotary scalings that follow the length anew for every text that it computes as a whole.
  void follow_length(int64_t tokens) {
    if (transformer_ && !rope_changes(model_.config, tokens, rope_tokens_)) return;
    transformer_ = std::make_unique<Transformer>(model_, std::min<int64_t>(model_.config.max_positions, 64), tokens);
    rope_tokens_ = tokens;
  }
  std::vector<float> stored(const std::string& name) {
    const TensorInfo* info = expected_.find(name);
    if (!info) return {};
    std::vector<float> v(static_cast<size_t>(info->elements()));
    expected_.read_f32(*info, v.data());
    out_.compared.insert(name);
    return v;
  }
  void check(const std::string& name, double value, double limit) {
    if (!(value <= limit)) out_.failures.push_back(fmt::format("{}: {} > {}", name, value, limit));
  }
  void keep(const void* data, size_t bytes) { digest_.update(data, bytes); }

  void logits() {
    const std::vector<float> got = logits_of(*transformer_, *engine_.ctx, rows_), want = stored("logits");
    keep(got.data(), got.size() * sizeof(float));
    double worst = got.size() == want.size() ? 0 : INFINITY;
    for (size_t i = 0; i < want.size() && i < got.size(); ++i) worst = std::max(worst, std::fabs(double(got[i]) - double(want[i])));
    check("logits", worst, 1e-4);
  }

  void loss() {
    std::vector<int32_t> labels = rows_.ids;
    labels.erase(labels.begin());
    labels.push_back(-1);
    for (size_t end = size_t(length_); end <= labels.size(); end += size_t(length_)) labels[end - 1] = -1;
    Context& ctx = *engine_.ctx;
    const ArenaScope scope(ctx.saved);
    Tape tape;
    if (grads_) ctx.tape = &tape;
    const Batch batch = rows_.batch();
    const Var hidden = transformer_->forward(ctx, batch);
    const double loss = transformer_->loss(ctx, hidden, labels.data(), double(batch.n - batch.n_seqs));
    keep(&loss, sizeof loss);
    const std::vector<float> want = stored("loss");
    if (!want.empty()) check("loss", std::fabs(loss - double(want[0])), 1e-5);
    if (!grads_) return;
    backward(ctx);
    ctx.tape = nullptr;
    export_tensors(model_, engine_.kernels, ExportWhat::gradients, [&](const ExportedTensor& t) {
      keep(t.data.data(), t.data.size() * sizeof(float));
      const std::vector<float> g = stored("grad." + t.name);
      if (g.size() != t.data.size()) return;  // shows as not compared, or is not in the file (tied head)
      double difference = 0, norm = 0;
      for (size_t i = 0; i < g.size(); ++i) {
        difference += (double(t.data[i]) - double(g[i])) * (double(t.data[i]) - double(g[i]));
        norm += double(g[i]) * double(g[i]);
      }
      check("grad." + t.name, std::sqrt(difference), 1e-4 * std::sqrt(norm) + 1e-6);
    });
  }

  void greedy() {
    const TensorInfo* info = expected_.find("greedy_ids");
    std::vector<int64_t> want(static_cast<size_t>(info->elements())), got;
    expected_.read_i64(*info, want.data());
    out_.compared.insert("greedy_ids");
    const int64_t prompt = std::min<int64_t>(8, length_), vocab = model_.config.vocab_size;
    std::optional<Generator> generator;
    std::vector<int32_t> fed(rows_.ids.begin(), rows_.ids.begin() + prompt);
    while (got.size() < want.size()) {
      const auto tokens = static_cast<int64_t>(fed.size());
      const bool anew = !generator || rope_changes(model_.config, tokens, rope_tokens_);  // the cache holds other angles
      if (anew) {
        follow_length(tokens);
        generator.emplace(*transformer_, *engine_.ctx, prompt + info->elements());
      }
      fed.push_back(argmax(anew ? generator->feed(fed.data(), tokens) : generator->feed(&fed.back(), 1), vocab));
      got.push_back(fed.back());
    }
    if (got != want) out_.failures.push_back("greedy_ids differ");
    keep(got.data(), got.size() * sizeof(int64_t));
  }

  void dequantized() {
    for (const TensorInfo& info : expected_.tensors()) {
      if (info.name.rfind("dequant.", 0) != 0) continue;
      const ExportedTensor t = export_tensor(model_, engine_.kernels, info.name.substr(8));
      const std::vector<float> want = stored(info.name);
      if (t.data.size() != want.size()) {
        out_.failures.push_back(info.name + " has another size");
        continue;
      }
      for (size_t i = 0; i < want.size(); ++i)
        if (t.data[i] != want[i] && t.data[i] != std::nextafter(want[i], t.data[i])) {
          out_.failures.push_back(info.name + " differs by more than a bit");
          break;
        }
    }
  }

  Engine engine_;
  SafetensorsFile expected_;
  Model model_;
  std::unique_ptr<Transformer> transformer_;
  Rows rows_;
  int64_t length_ = 0, rope_tokens_ = 0;
  bool grads_ = false;
  Sha256 digest_;
  Outcome out_;
};

void expect_passes(const std::string& dir, Tier tier, int threads, std::string* digest) {
  const Outcome o = Run(dir, tier, threads).run();
  for (const std::string& f : o.failures) ADD_FAILURE() << base_name(dir) << " on " << tier_name(tier) << ": " << f;
  if (digest->empty()) *digest = o.digest;
  EXPECT_EQ(o.digest, *digest) << base_name(dir) << " on " << tier_name(tier) << ": other bits with " << threads << " threads";
}

TEST(Parity, StoredCasesOnEveryTier) {
  std::vector<std::string> dirs = case_dirs(oracle(""));
  ASSERT_GE(dirs.size(), 8u);
  const std::vector<std::string> more = case_dirs(oracle("../cases"));
  ASSERT_GE(more.size(), 6u);
  dirs.insert(dirs.end(), more.begin(), more.end());
  for (const std::string& dir : dirs)
    for (Tier tier : tiers()) {
      std::string digest;
      for (int threads : {1, 2, 3}) expect_passes(dir, tier, threads, &digest);
    }
}

TEST(Parity, AllSupportedCases) {
  std::vector<std::string> dirs = case_dirs(shared("oracle/hf"));
  for (const std::string& dir : case_dirs(shared("oracle/quant"))) dirs.push_back(dir);
  if (dirs.empty()) GTEST_SKIP() << "not here: " << shared("oracle/hf");
  int passed = 0;
  for (const std::string& dir : dirs) {
    try {
      if (load_model(dir, build_kernel_table(best_tier())).config.bidirectional) continue;  // encoder_test.cpp compares it
    } catch (const Error& e) {
      // What is not offered says so, with status 5; anything else is a failure.
      EXPECT_EQ(e.code(), ErrorCode::unsupported) << base_name(dir) << ": " << e.what();
      continue;
    }
    std::string digest;
    for (int threads : {1, 3}) expect_passes(dir, best_tier(), threads, &digest);
    ++passed;
  }
  EXPECT_GE(passed, 23) << "of " << dirs.size() << " cases";
}

// Reads the model as it would be served: mapped, not trainable.
TEST(Parity, MappedWeightsGiveTheSameLogits) {
  for (const std::string& dir : case_dirs(oracle(""))) {
    Engine engine;
    LoadOptions trainable;
    trainable.trainable = true;
    Model mapped = load_model(dir, engine.kernels), copied = load_model(dir, engine.kernels, trainable);
    Transformer a(mapped, 16), b(copied, 16);
    Rows rows;
    rows.add(text(1, 16, mapped.config.vocab_size));
    EXPECT_TRUE(same_bits(logits_of(a, *engine.ctx, rows), logits_of(b, *engine.ctx, rows))) << base_name(dir);
  }
}

TEST(Parity, RecomputeGivesTheSameBits) {
  for (const std::string& dir : case_dirs(oracle(""))) {
    Engine engine;
    LoadOptions trainable;
    trainable.trainable = true;
    Model model = load_model(dir, engine.kernels, trainable);
    if (!model.quantization.empty()) continue;
    enable_gradients(model);
    Transformer transformer(model, 24);
    Rows rows;
    rows.add(text(1, 24, model.config.vocab_size));
    rows.add(text(2, 9, model.config.vocab_size));
    const std::vector<int32_t> labels = text(3, 33, model.config.vocab_size);
    const auto step = [&](Recompute recompute, int threads, size_t* peak, Precision precision = Precision::f32,
                          bool training = false) {
      Context ctx(engine.kernels, threads, nullptr);
      ctx.precision = precision;
      ctx.training = training;
      Tape tape;
      ctx.tape = &tape;
      for_each_weight(model.weights, [](Role, int64_t, Weight& w) { w.grad_written = false; });
      const Batch batch = rows.batch();
      const double loss = transformer.loss(ctx, transformer.forward(ctx, batch, recompute), labels.data(), 33);
      backward(ctx);
      std::vector<float> all = {static_cast<float>(loss)};
      for_each_weight(model.weights, [&](Role, int64_t, Weight& w) { all.insert(all.end(), w.grad, w.grad + w.numel()); });
      *peak = ctx.saved.peak();
      return all;
    };
    size_t kept_peak = 0, replayed_peak = 0;
    const std::vector<float> kept = step(Recompute::none, 2, &kept_peak);
    EXPECT_TRUE(same_bits(kept, step(Recompute::block, 2, &replayed_peak))) << base_name(dir);
    EXPECT_TRUE(same_bits(kept, step(Recompute::block, 1, &replayed_peak))) << base_name(dir);
    size_t cheap_peak = 0;
    EXPECT_TRUE(same_bits(kept, step(Recompute::cheap, 2, &cheap_peak))) << base_name(dir);
    EXPECT_LT(cheap_peak, kept_peak) << base_name(dir);
    EXPECT_LT(replayed_peak, kept_peak) << base_name(dir);
    // Training with bf16 products also rounds what `cheap` keeps in 16 bits: an error of the products' own size.
    size_t packed_peak = 0;
    const std::vector<float> products = step(Recompute::none, 2, &kept_peak, Precision::bf16);
    const std::vector<float> rounded = step(Recompute::none, 2, &kept_peak, Precision::bf16, true);
    EXPECT_TRUE(same_bits(rounded, step(Recompute::cheap, 2, &packed_peak, Precision::bf16, true))) << base_name(dir);
    EXPECT_TRUE(same_bits(rounded, step(Recompute::cheap, 1, &packed_peak, Precision::bf16, true))) << base_name(dir);
    EXPECT_TRUE(same_bits(rounded, step(Recompute::block, 2, &replayed_peak, Precision::bf16, true))) << base_name(dir);
    EXPECT_LT(packed_peak, cheap_peak) << base_name(dir);
    double of_products = 0, of_packing = 0;
    for (size_t i = 1; i < kept.size(); ++i) {
      of_products += std::pow(double(products[i]) - double(kept[i]), 2);
      of_packing += std::pow(double(rounded[i]) - double(products[i]), 2);
    }
    EXPECT_GT(of_packing, 0) << base_name(dir);
    EXPECT_LT(of_packing, 4 * of_products) << base_name(dir);
  }
}

// Only one matrix of the last layer trains: nothing below it is recorded, and nothing else gets a gradient.
TEST(Frozen, NothingBelowTheLowestTrainableLayerRuns) {
  for (Recompute recompute : {Recompute::none, Recompute::block}) {
    Engine engine;
    LoadOptions trainable;
    trainable.trainable = true;
    Model model = load_model(oracle("llama_gqa_untied"), engine.kernels, trainable);
    const auto last = static_cast<size_t>(model.config.n_layers - 1);
    ASSERT_GE(last, 1u);
    Weight& trained = model.weights.layers[last].down_w;
    std::vector<float> grad(static_cast<size_t>(trained.numel()));
    trained.grad = grad.data();
    Transformer transformer(model, 24);
    Rows rows;
    rows.add(text(1, 24, model.config.vocab_size));
    Tape tape;
    engine.ctx->tape = &tape;
    const Batch batch = rows.batch();
    const Var hidden = transformer.forward(*engine.ctx, batch, recompute);
    transformer.loss(*engine.ctx, hidden, text(2, 24, model.config.vocab_size).data(), 24);
    // block: checkpoint, final norm, loss. none: the linear, the residual's add, between the block's ends.
    std::vector<Op> ops;
    for (size_t i = 0; i < tape.node_count(); ++i) ops.push_back(tape.node(i).op);
    const std::vector<Op> want = recompute == Recompute::block
                                     ? std::vector<Op>{Op::checkpoint, Op::rms_norm, Op::linear_cross_entropy}
                                     : std::vector<Op>{Op::segment_begin, Op::linear, Op::add, Op::segment_end, Op::rms_norm,
                                                       Op::linear_cross_entropy};
    EXPECT_EQ(ops, want);
    backward(*engine.ctx);
    for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
      EXPECT_EQ(w.grad_written, &w == &trained) << role_name(role) << " " << layer;
    });
    EXPECT_TRUE(std::any_of(grad.begin(), grad.end(), [](float g) { return g != 0; }));
  }
}

}  // namespace
}  // namespace thimble::models_test
