// The training loop as a library: a step allocates nothing once warm, accumulation is the sum that it stands for, and the
// schedule is the formula.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "tensor/error.h"
#include "tensor/rng.h"
#include "tests/models/heap_count.h"
#include "tests/scratch_dir.h"

namespace thimble {
namespace {

std::string case_dir(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/oracle/" + name; }

Dataset random_rows(int64_t n, int64_t vocab) {
  Philox rng(7, 7);
  std::vector<std::vector<int32_t>> rows;
  std::vector<int32_t> from;
  for (int64_t i = 0; i < n; ++i) {
    rows.emplace_back();
    for (uint64_t t = 0; t < 6 + rng.below(20); ++t) rows.back().push_back(static_cast<int32_t>(rng.below(uint64_t(vocab))));
    rows.back().resize(std::max<size_t>(rows.back().size(), 4), 1);
    from.push_back(static_cast<int32_t>(rng.below(3)));
  }
  return Dataset::from_ids(std::move(rows), std::move(from), 64);
}

struct Training {
  explicit Training(const TrainOptions& options, bool full = true, AdapterKind kind = AdapterKind::lora)
      : kernels(build_kernel_table(best_tier())), ctx(kernels, 2, nullptr) {
    LoadOptions load;
    load.trainable = full;
    model = load_model(case_dir("llama_gqa_untied"), kernels, load);
    if (full) {
      enable_gradients(model);
    } else {
      AdapterOptions o;
      o.kind = kind;
      o.dropout = kind == AdapterKind::lora ? 0.1 : 0;
      adapter = std::make_unique<Adapter>(model, kernels, o);
      adapter->enable_gradients();
    }
    data = random_rows(32, model.config.vocab_size);
    transformer = std::make_unique<Transformer>(model, 96);
    trainer = std::make_unique<Trainer>(ctx, *transformer, adapter.get(), data, nullptr, options);
  }
  KernelTable kernels;
  Context ctx;
  Model model;
  std::unique_ptr<Adapter> adapter;
  Dataset data;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<Trainer> trainer;
};

#ifdef THIMBLE_TEST_COUNTS
TEST(Trainer, AWarmStepAllocatesNothing) {
  for (Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::block})
    for (int what = 0; what < 5; ++what) {
      TrainOptions o;
      o.steps = 100;
      o.batch = 4;
      o.accum = 2;
      o.recompute = recompute;
      Training run(o, what == 0, static_cast<AdapterKind>(std::max(0, what - 1)));
      for (int i = 0; i < 12; ++i) run.trainer->step();  // more than an epoch: every buffer has its size
      EXPECT_EQ(testing::allocations([&] {
                  for (int i = 0; i < 3; ++i) run.trainer->step();
                }),
                0)
          << "recompute " << static_cast<int>(recompute) << ", case " << what;
    }
}
#endif

TEST(Trainer, AccumulationDividesByTheLabelsOfTheWholeGroup) {
  // Eight sequences in one pass, or in four of two: the same mean loss and nearly the same step.
  TrainOptions whole, parts;
  whole.steps = parts.steps = 10;
  whole.batch = 8;
  parts.batch = 2;
  parts.accum = 4;
  Training a(whole), b(parts);
  for (int i = 0; i < 3; ++i) {
    const StepReport x = a.trainer->step(), y = b.trainer->step();
    EXPECT_NEAR(x.loss, y.loss, 1e-5);
    EXPECT_NEAR(x.grad_norm, y.grad_norm, 1e-4 * x.grad_norm);
    EXPECT_EQ(x.tokens, y.tokens);
  }
}

TEST(Trainer, StepsHaveTheSameBitsForAnyThreads) {
  TrainOptions o;
  o.steps = 10;
  o.batch = 4;
  std::vector<float> results[2];
  for (int threads : {1, 3}) {
    Training run(o);
    run.ctx.threads = threads;
    for (int i = 0; i < 3; ++i) run.trainer->step();
    for_each_weight(run.model.weights, [&](Role, int64_t, const Weight& w) {
      results[threads == 3].insert(results[threads == 3].end(), w.f32(), w.f32() + w.numel());
    });
  }
  ASSERT_EQ(results[0].size(), results[1].size());
  EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)), 0);
}

std::vector<float> all_weights(Training& run) {
  std::vector<float> all;
  for_each_weight(run.model.weights, [&](Role, int64_t, const Weight& w) { all.insert(all.end(), w.f32(), w.f32() + w.numel()); });
  return all;
}

// A code of v is off by less than an eighth, so its root by less than a sixteenth, and one of m by less than 1 % of the
// largest of its block. So a step is off by about a tenth at most, without a direction of its own: what 200 of them gain
// may differ by as much.
TEST(Trainer, MomentsOfEightBitsLearnAsWell) {
  double first = 0, last[2] = {};
  for (const bool q8 : {false, true}) {
    TrainOptions o;
    o.steps = 200;
    o.batch = 4;
    o.lr = 2e-3;
    o.adamw.clip_norm = 1;
    if (q8) o.moments = Moments::q8;
    Training run(o);
    for (int i = 0; i < 200; ++i) {
      const StepReport r = run.trainer->step();
      if (i == 0) first = r.loss;
      if (i >= 180) last[q8] += r.loss / 20;
    }
  }
  std::printf("loss %.4f -> %.4f with f32 moments, %.4f with 8 bits\n", first, last[0], last[1]);
  EXPECT_LT(last[0], 0.7 * first);
  EXPECT_NEAR(last[1], last[0], 0.1 * (first - last[0]));
}

TEST(Trainer, MomentsOfEightBitsAreAQuarter) {
  EXPECT_EQ(moment_bytes(Moments::none, 1000), 0);
  EXPECT_EQ(moment_bytes(Moments::f32, 1000), 8000);
  EXPECT_EQ(moment_bytes(Moments::q8, 1000), 2000 + 8 * 4);
  EXPECT_LT(double(moment_bytes(Moments::q8, 1 << 20)), 0.26 * double(moment_bytes(Moments::f32, 1 << 20)));
}

TEST(Trainer, ACheckpointContinuesBitForBit) {
  for (const Moments moments : {Moments::none, Moments::f32, Moments::q8}) {
    const testing::ScratchDir dir;
    TrainOptions o;
    o.steps = 6;
    o.batch = 4;
    o.moments = moments;
    o.out = dir.path();
    Training whole(o);
    for (int i = 0; i < 3; ++i) whole.trainer->step();
    whole.trainer->save_checkpoint();
    Training other(o);
    other.ctx.threads = 3;
    ASSERT_TRUE(other.trainer->resume());
    for (int i = 0; i < 3; ++i) {
      whole.trainer->step();
      other.trainer->step();
    }
    const std::vector<float> a = all_weights(whole), b = all_weights(other);
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << static_cast<int>(moments);
    TrainOptions changed = o;
    changed.moments = moments == Moments::q8 ? Moments::f32 : Moments::q8;
    Training third(changed);
    EXPECT_THROW(third.trainer->resume(), Error);
  }
}

// Weights of 1 are the plain loss, bit for bit; a weight of 0 leaves a token out; and the scale of all weights cancels.
TEST(Trainer, WeightsAreSharesOfTheLoss) {
  TrainOptions o;
  o.steps = 3;
  o.batch = 4;
  Training plain(o);
  std::vector<WeightedSequence> ones, some;
  for (int64_t i = 0; i < plain.data.size(); ++i) {
    const Dataset::Item item = plain.data.item(i);
    WeightedSequence s;
    s.ids.assign(item.ids, item.ids + item.n);
    for (int64_t t = 0; t < item.n; ++t) s.weights.push_back(t >= item.label_from ? 1.0f : 0.0f);
    ones.push_back(s);
    for (float& w : s.weights) w *= 0.25f;
    some.push_back(s);
  }
  Training one(o), quarter(o);
  one.data = Dataset::from_weighted(ones, 64);
  quarter.data = Dataset::from_weighted(some, 64);
  for (int i = 0; i < 3; ++i) {
    const StepReport a = plain.trainer->step(), b = one.trainer->step(), c = quarter.trainer->step();
    EXPECT_NEAR(a.loss, b.loss, 1e-6 * a.loss);
    EXPECT_NEAR(a.loss, c.loss, 1e-6 * a.loss);
    EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-5 * a.grad_norm);
  }
  EXPECT_NEAR(plain.trainer->evaluate(plain.data), one.trainer->evaluate(one.data), 1e-6);

  // A token that counts double counts as two copies of it would: the weighted mean of the two kinds.
  Training pair(o);
  const std::vector<int32_t> ids = {3, 5, 7};
  pair.data = Dataset::from_weighted({{ids, {0, 1, 0}}, {ids, {0, 0, 1}}, {ids, {0, 1, 2}}}, 64);
  const auto loss = [&](int64_t i) {
    const Dataset::Item item = pair.data.item(i);
    return pair.trainer->evaluate(
        Dataset::from_weighted({{std::vector<int32_t>(item.ids, item.ids + item.n), std::vector<float>(item.weights, item.weights + item.n)}}, 64));
  };
  EXPECT_NEAR(loss(2), (loss(0) + 2 * loss(1)) / 3, 1e-6);
}

TEST(Trainer, GeneratedSequencesAreThoseOfTheirNumbers) {
  TrainOptions o;
  o.steps = 4;
  o.batch = 2;
  Training a(o), b(o);
  const auto make = [](int64_t k, WeightedSequence& s) {
    Philox rng(3, static_cast<uint64_t>(k));
    s.ids.clear();
    for (int i = 0; i < 9; ++i) s.ids.push_back(static_cast<int32_t>(rng.below(100)));
    s.weights.assign(9, 0.5f);
  };
  a.data = Dataset::from_generator(make, 64);
  b.data = Dataset::from_generator(make, 64);
  EXPECT_TRUE(a.data.is_generated());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(a.trainer->step().loss, b.trainer->step().loss);
}

// A gate that says no moves the decay and the end of the run; one that never says yes stops at max_steps.
TEST(Trainer, AGateMovesTheDecay) {
  for (const int64_t yes_at : {int64_t{6}, int64_t{10}, int64_t{1000}}) {
    TrainOptions o;
    o.steps = 10;
    o.max_steps = 20;
    o.lr = 1e-3;
    o.batch = 2;
    o.schedule.kind = ScheduleKind::wsd;
    o.gate_every = 4;
    std::vector<int64_t> asked;
    o.gate = [&](int64_t step) {
      asked.push_back(step);
      return step >= yes_at;
    };
    Training run(o);
    std::vector<double> rates;
    run.trainer->run([&](const StepReport& r) { rates.push_back(r.lr); });
    const std::vector<int64_t> expected = yes_at == 6 ? std::vector<int64_t>{6} : std::vector<int64_t>{6, 10};
    EXPECT_EQ(asked, expected);
    const size_t end = yes_at == 6 ? 10 : yes_at == 10 ? 14 : 18;  // a delay beyond max_steps is not asked for
    ASSERT_EQ(rates.size(), end);
    EXPECT_EQ(rates[end - 5], 1e-3);  // the last four steps decay from the peak to a quarter of it
    EXPECT_NEAR(rates[end - 1], 0.25e-3, 1e-12);
  }
}

TEST(Schedule, WarmupAndDecay) {
  Schedule s;
  s.warmup = 2;
  s.total = 6;
  const double want[] = {0, 0.5, 1, 0.5 * (1 + std::cos(M_PI / 4)), 0.5, 0.5 * (1 + std::cos(3 * M_PI / 4))};
  for (int64_t i = 0; i < 6; ++i) EXPECT_NEAR(s.factor(i), want[i], 1e-12);
  s.kind = ScheduleKind::linear;
  s.min_ratio = 0.1;
  EXPECT_NEAR(s.factor(4), 0.1 + 0.9 * 0.5, 1e-12);
  EXPECT_NEAR(s.factor(6), 0.1, 1e-12);
  s.kind = ScheduleKind::constant;
  EXPECT_EQ(s.factor(5), 1);
}

}  // namespace
}  // namespace thimble
