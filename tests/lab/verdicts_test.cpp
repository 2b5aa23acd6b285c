// Verdicts on invented experiments whose truth is known.
#include "tools/lab/verdicts.h"

#include <gtest/gtest.h>

#include "tests/lab/fake_experiment.h"
#include "tests/scratch_dir.h"

namespace thimble::lab {
namespace {

using testing::fake_cell;
using testing::fake_task;
using testing::FakeOptions;
using testing::FakePlan;
using thimble::testing::ScratchDir;
using State = Verdict::State;

const std::vector<uint64_t> kSeeds = {1, 2, 3};

// Enough questions that true differences of a few points are seen.
FakeOptions exact(testing::FakeScore score) {
  FakeOptions o;
  o.score = std::move(score);
  o.questions = 400;
  o.person_sd = 0.05;
  return o;
}

Verdict verdict(const FakePlan& plan, const FakeOptions& options, size_t claim) {
  ScratchDir dir;
  testing::write_fake_experiment(dir.path(), plan, options);
  return judge(read_experiment(dir.path())).at(claim - 1);
}

FakePlan methods_plan() {
  FakePlan plan;
  plan.grids.push_back({"E1", {}});
  for (const WorldDials& t :
       {fake_task("LaMP_2", 64, 32, "name"), fake_task("LaMP_3", 1, 32), fake_task("LaMP_3", 3, 32)})
    for (const char* m : {"none", "rag", "lora"}) plan.add(fake_cell(t, m), kSeeds);
  return plan;
}

TEST(Verdicts, TheMethodDependsOnTheTaskWhenWinnersDiffer) {
  const auto crossing = [](const CellConfig& c, int64_t) {
    const bool fact = c.task.world.key == "name";
    return c.method.name == "none" ? 0.2 : (c.method.name == "rag") == fact ? 0.7 : 0.5;
  };
  const Verdict v = verdict(methods_plan(), exact(crossing), 1);
  EXPECT_EQ(v.state, State::supported);
  ASSERT_EQ(v.rows.size(), 3u);
  for (const Comparison& r : v.rows) {
    EXPECT_NEAR(std::abs(r.effect.mean), 20, 4) << r.label;
    EXPECT_LE(r.lo_family, r.effect.lo);
    EXPECT_GE(r.hi_family, r.effect.hi);
    EXPECT_NEAR(r.first_mean - r.second_mean, r.effect.mean, 1e-9);
    EXPECT_EQ(r.cells.size(), 6u);
    EXPECT_EQ(r.effect.people, 72);
    EXPECT_EQ(r.effect.seeds, 3);
  }
}

TEST(Verdicts, OneWinnerEverywhereRefutesTheDependence) {
  const Verdict v = verdict(methods_plan(),
                            exact([](const CellConfig& c, int64_t) { return c.method.name == "rag" ? 0.7 : 0.5; }), 1);
  EXPECT_EQ(v.state, State::refuted);
}

TEST(Verdicts, EqualMethodsAreInconclusive) {
  const Verdict v = verdict(methods_plan(), exact([](const CellConfig&, int64_t) { return 0.5; }), 1);
  EXPECT_EQ(v.state, State::inconclusive);
}

TEST(Verdicts, FewQuestionsAreInconclusive) {
  FakeOptions o = exact([](const CellConfig& c, int64_t) { return c.method.name == "rag" ? 0.53 : 0.5; });
  o.questions = 4;
  EXPECT_EQ(verdict(methods_plan(), o, 1).state, State::inconclusive);
}

TEST(Verdicts, LongerTuning) {
  const FakePlan plan = methods_plan();
  const auto flat = [](const CellConfig&, int64_t step) { return step >= 20 ? 0.8 : 0.5; };
  const auto falling = [](const CellConfig&, int64_t step) { return 0.8 - 0.002 * static_cast<double>(step); };
  const auto rising = [](const CellConfig&, int64_t step) { return 0.3 + 0.005 * static_cast<double>(step); };
  EXPECT_EQ(verdict(plan, exact(falling), 2).state, State::supported);
  EXPECT_EQ(verdict(plan, exact(rising), 2).state, State::refuted);
  FakeOptions many = exact(flat);
  many.questions = 5000;
  const Verdict v = verdict(plan, many, 2);
  EXPECT_EQ(v.state, State::supported);
  // budgets beyond half of the longest do not count as stopping early
  EXPECT_EQ(v.rows[0].second, "80 steps");
  EXPECT_EQ(v.rows[0].first.find("80"), std::string::npos);
}

TEST(Verdicts, CompressionAndLittleData) {
  FakePlan plan;
  plan.grids.push_back({"E6", {}});
  for (const WorldDials& t : {fake_task("LaMP_2", 16, 32), fake_task("LaMP_3", 1, 32)})
    for (const char* compression : {"none", "gptq:int4-g64-asym"})
      for (int64_t h : {4, 0}) {
        CellConfig c = fake_cell(t, "lora", "zoo:llama-0.4m", compression);
        c.history = h;
        plan.add(c, kSeeds);
      }
  const auto shifted = [](double little, double much) {
    return [=](const CellConfig& c, int64_t) {
      return 0.5 + (c.compression == "none" ? 0 : c.history == 4 ? little : much);
    };
  };
  const Verdict better = verdict(plan, exact(shifted(0.08, -0.08)), 3);
  EXPECT_EQ(better.state, State::supported);
  EXPECT_NEAR(better.rows[0].effect.mean, 8, 2);
  bool interaction = false;
  for (const Comparison& r : better.rows)
    if (r.group == "does little data favour it?") {
      interaction = true;
      EXPECT_NEAR(r.effect.mean, 16, 4);
    }
  EXPECT_TRUE(interaction);
  EXPECT_EQ(verdict(plan, exact(shifted(-0.08, 0.08)), 3).state, State::refuted);
  EXPECT_EQ(verdict(plan, exact(shifted(0, 0)), 3).state, State::inconclusive);
}

TEST(Verdicts, SmallRanks) {
  FakePlan plan;
  plan.grids.push_back({"E2", {}});
  for (int64_t r : {1, 2, 16, 32}) {
    CellConfig c = fake_cell(fake_task("LaMP_3", 1, 32), "lora");
    c.method.rank = r;
    c.method.alpha = 2.0 * static_cast<double>(r);
    plan.add(c, kSeeds);
  }
  FakeOptions equal = exact([](const CellConfig&, int64_t) { return 0.6; });
  equal.questions = 5000;
  EXPECT_EQ(verdict(plan, equal, 4).state, State::supported);
  const Verdict worse =
      verdict(plan, exact([](const CellConfig& c, int64_t) { return c.method.rank > 8 ? 0.7 : 0.55; }), 4);
  EXPECT_EQ(worse.state, State::refuted);
  EXPECT_NEAR(worse.rows[0].effect.mean, -15, 3);
}

TEST(Verdicts, LimitedHistoryForRetrieval) {
  FakePlan plan;
  plan.grids.push_back({"E4", {}});
  for (int64_t h : {8, 16, 0}) {
    CellConfig c = fake_cell(fake_task("LaMP_2", 16, 64), "rag");
    c.history = h;
    plan.add(c, kSeeds);
  }
  FakeOptions enough = exact([](const CellConfig& c, int64_t) { return c.history == 8 ? 0.4 : 0.6; });
  enough.questions = 5000;
  EXPECT_EQ(verdict(plan, enough, 5).state, State::supported);  // 16 items do as well as 64
  EXPECT_EQ(verdict(plan, exact([](const CellConfig& c, int64_t) { return c.history == 0 ? 0.7 : 0.5; }), 5).state,
            State::refuted);
  // a few examples do, but half of the history does not: the parts disagree
  for (int64_t k : {1, 16}) {
    CellConfig c = fake_cell(fake_task("LaMP_2", 16, 64), "rag");
    c.method.k = {k};
    plan.add(c, kSeeds);
  }
  const Verdict mixed = verdict(plan, exact([](const CellConfig& c, int64_t) {
                                  return c.history != 0 ? 0.5 : c.method.k[0] == 1 ? 0.8 : 0.7;
                                }),
                                5);
  EXPECT_EQ(mixed.state, State::inconclusive);
  EXPECT_NE(mixed.sentence.find("disagree"), std::string::npos);
}

TEST(Verdicts, EqualMemory) {
  FakePlan plan;
  plan.grids.push_back({"E5", {}});
  for (const char* model : {"zoo:llama-0.4m", "zoo:llama-2m"})
    for (const char* compression : {"none", "gptq:int4-g64-asym"})
      plan.add(fake_cell(fake_task("LaMP_3", 1, 32), "lora", model, compression), kSeeds);
  const auto score = [](double large) {
    return [=](const CellConfig& c, int64_t) { return c.model == "zoo:llama-2m" ? large : 0.5; };
  };
  const Verdict v = verdict(plan, exact(score(0.6)), 6);
  EXPECT_EQ(v.state, State::supported);
  EXPECT_EQ(v.rows[0].first, "llama-2m gptq int4");
  EXPECT_EQ(v.rows[0].second, "llama-0.4m");  // 1.2 MB against 1.9 MB; llama-2m uncompressed has no rival
  EXPECT_EQ(verdict(plan, exact(score(0.4)), 6).state, State::refuted);
}

TEST(Verdicts, WithoutCellsThereIsNoData) {
  FakePlan plan;
  plan.grids.push_back({"one", {}});
  plan.add(fake_cell(fake_task("LaMP_3", 1, 32), "none"), kSeeds);
  for (size_t claim = 1; claim <= 6; ++claim) EXPECT_EQ(verdict(plan, {}, claim).state, State::no_data) << claim;
}

TEST(Verdicts, CellsThatAreNotDoneAreInconclusiveNotAbsent) {
  FakeOptions o;
  o.missing = [](const CellConfig&, size_t) { return true; };
  const FakePlan plan = testing::fake_plan({1});
  for (size_t claim = 1; claim <= 6; ++claim) EXPECT_EQ(verdict(plan, o, claim).state, State::inconclusive) << claim;
}

TEST(Verdicts, ChoosingAmongVariantsDoesNotFlatter) {
  // 40 variants of pure chance: the best of them looks good on its own people, not on the others
  std::vector<Scores> variants;
  Philox random(5, 5);
  double best_naive = 0;
  for (int v = 0; v < 40; ++v) {
    Scores s;
    double mean = 0;
    for (int p = 0; p < 24; ++p) {
      s.runs["seed"].users.push_back("u" + std::to_string(p));
      s.runs["seed"].values.push_back(random.uniform());
      mean += s.runs["seed"].values.back() / 24;
    }
    best_naive = std::max(best_naive, mean);
    variants.push_back(s);
  }
  const auto fit = cross_fit(variants);
  ASSERT_TRUE(fit);
  EXPECT_GT(best_naive, 0.58);
  EXPECT_NEAR(fit->scores.sample().mean(), 0.5, 0.12);  // standard error 0.06
}

TEST(Verdicts, PairsPeopleByNameNotByPlace) {
  Scores a, b;
  a.runs["s"] = {"t", {"x", "y", "z"}, {1, 2, 3}};
  b.runs["s"] = {"t", {"z", "x", "w"}, {1, 1, 9}};
  b.runs["other"] = {"t", {"x"}, {7}};
  const auto d = difference(a, b);
  ASSERT_TRUE(d);
  ASSERT_EQ(d->runs.size(), 1u);
  EXPECT_EQ(d->runs.at("s").users, (std::vector<std::string>{"x", "z"}));
  EXPECT_EQ(d->runs.at("s").values, (std::vector<double>{0, 2}));
  Scores c;
  c.runs["third"] = {"t", {"x"}, {1}};
  EXPECT_FALSE(difference(a, c));
}

}  // namespace
}  // namespace thimble::lab
