// Metrics against recorded figures and by hand, stems of known words, baselines and difficulty on people made by hand.
#include "tools/lab/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tools/lab/porter.h"

namespace thimble::lab {
namespace {

const nlohmann::json& oracle() {
  static const nlohmann::json json =
      nlohmann::json::parse(std::ifstream(std::string(THIMBLE_SOURCE_DIR) + "/tests/data/lab/metrics.json"));
  return json;
}

TEST(Metrics, RougeMeetsTheRecordedFigures) {
  int compared = 0;
  for (const auto& row : oracle().at("rouge")) {
    const auto pred = row.at("pred").get<std::string>(), gold = row.at("gold").get<std::string>();
    EXPECT_NEAR(rouge_n(pred, gold, 1), row.at("rouge1").get<double>(), 1e-9) << pred << " | " << gold;
    EXPECT_NEAR(rouge_l(pred, gold), row.at("rougeL").get<double>(), 1e-9) << pred << " | " << gold;
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

TEST(Metrics, MacroF1AndRatingsMeetTheRecordedFigures) {
  const auto& f = oracle().at("macro_f1");
  EXPECT_NEAR(macro_f1(f.at("pred"), f.at("gold"), f.at("labels")), f.at("macro").get<double>(), 1e-9);
  const auto& r = oracle().at("rating");
  const auto metrics = score(find_task("LaMP_3"), r.at("pred"), r.at("gold"), {});
  EXPECT_NEAR(metrics.at("mae"), r.at("mae").get<double>(), 1e-9);
  EXPECT_NEAR(metrics.at("rmse"), r.at("rmse").get<double>(), 1e-9);
  EXPECT_NEAR(metrics.at("accuracy"), 3.0 / 7, 1e-12);
}

TEST(Metrics, ByHand) {
  EXPECT_NEAR(rouge_n("a b c", "a b d", 2), 0.5, 1e-12);
  EXPECT_EQ(rouge_n("a", "a", 2), 0);
  EXPECT_EQ(rouge_l("", "a"), 0);
  EXPECT_EQ(accuracy({" x\n", "X"}, {"x", "x"}), 0.5);
  EXPECT_EQ(accuracy({}, {}), 0);
  EXPECT_EQ(macro_f1({"z"}, {"a"}, {"a", "b"}), 0);
  EXPECT_EQ(rating_error("nan", "2"), 3);
  EXPECT_EQ(rating_error("1e999", "4"), 3);
  EXPECT_EQ(rating_error("3 stars", "3"), 2);
  EXPECT_EQ(rating_error("+3", "3"), 0);
  EXPECT_THROW(rating_error("3", "three"), Error);
  EXPECT_EQ(unit_score(find_task("LaMP_3"), " 4", "4"), 1);
  EXPECT_EQ(unit_score(find_task("LaMP_3"), "4.0", "4"), 0);
  EXPECT_NEAR(unit_score(find_task("LaMP_4"), "red boat", "red"), 2.0 / 3, 1e-12);
  for (const Task* task : all_tasks()) EXPECT_EQ(metric_names(*task)[0], task->primary);
  EXPECT_TRUE(lower_is_better("mae"));
  EXPECT_FALSE(lower_is_better("rougeL"));
}

TEST(Metrics, StemsOfKnownWords) {
  const std::pair<const char*, const char*> known[] = {
      {"caresses", "caress"}, {"ponies", "poni"}, {"ties", "ti"}, {"cats", "cat"}, {"feed", "feed"}, {"agreed", "agre"},
      {"plastered", "plaster"}, {"bled", "bled"}, {"motoring", "motor"}, {"sing", "sing"}, {"conflated", "conflat"},
      {"troubled", "troubl"}, {"sized", "size"}, {"hopping", "hop"}, {"tanned", "tan"}, {"falling", "fall"}, {"hissing", "hiss"},
      {"fizzed", "fizz"}, {"failing", "fail"}, {"filing", "file"}, {"happy", "happi"}, {"sky", "sky"}, {"relational", "relat"},
      {"conditional", "condit"}, {"rational", "ration"}, {"valenci", "valenc"}, {"digitizer", "digit"}, {"radicalli", "radic"},
      {"vietnamization", "vietnam"}, {"operator", "oper"}, {"feudalism", "feudal"}, {"decisiveness", "decis"},
      {"hopefulness", "hope"}, {"callousness", "callous"}, {"formaliti", "formal"}, {"sensitiviti", "sensit"},
      {"sensibiliti", "sensibl"}, {"triplicate", "triplic"}, {"formative", "form"}, {"formalize", "formal"},
      {"electriciti", "electr"}, {"electrical", "electr"}, {"hopeful", "hope"}, {"goodness", "good"}, {"revival", "reviv"},
      {"allowance", "allow"}, {"inference", "infer"}, {"airliner", "airlin"}, {"gyroscopic", "gyroscop"},
      {"adjustable", "adjust"}, {"defensible", "defens"}, {"irritant", "irrit"}, {"replacement", "replac"},
      {"adjustment", "adjust"}, {"dependent", "depend"}, {"adoption", "adopt"}, {"communism", "commun"}, {"activate", "activ"},
      {"effective", "effect"}, {"bowdlerize", "bowdler"}, {"probate", "probat"}, {"rate", "rate"}, {"cease", "ceas"},
      {"controll", "control"}, {"roll", "roll"}, {"generalizations", "gener"}, {"oscillators", "oscil"}, {"is", "is"}, {"ion", "ion"}};
  for (const auto& [word, stem] : known) EXPECT_EQ(porter_stem(word), stem) << word;
  EXPECT_EQ(rouge_n("sailing boats", "sailed boat", 1), 0);
  EXPECT_EQ(rouge_n("sailing boats", "sailed boat", 1, true), 1);
  EXPECT_EQ(rouge_l("sailing boats", "sailed boat", true), 1);
}

TaskData ratings() {
  TaskData data;
  data.task = &find_task("LaMP_3");
  Person one{"a", {}, {{"q0", "review: salty soup", "5"}, {"q1", "review: cold bread", "1"}}};
  one.history = {{"0", "", {"salty soup", "5"}}, {"1", "", {"cold bread", "1"}}, {"2", "", {"warm bread", "5"}}};
  Person two{"b", {}, {{"q2", "review: cold soup", "3"}}};  // no history
  data.people = {one, two};
  return data;
}

const Baseline& named(const std::vector<Baseline>& all, const std::string& name) {
  for (const Baseline& b : all)
    if (b.name == name) return b;
  throw std::runtime_error("no baseline " + name);
}

TEST(Baselines, OfRatings) {
  const TaskData data = ratings();
  const std::vector<Baseline> all = baselines(data, 0);
  ASSERT_EQ(all.size(), 4u);
  using Predictions = std::vector<std::vector<std::string>>;
  EXPECT_EQ(named(all, "majority").predictions, (Predictions{{"5", "5"}, {"5"}}));
  EXPECT_EQ(named(all, "user_majority").predictions, (Predictions{{"5", "5"}, {"5"}}));
  EXPECT_EQ(named(all, "user_mean").predictions, (Predictions{{"4", "4"}, {"5"}}));  // 11 / 3
  EXPECT_EQ(named(all, "nearest").predictions, (Predictions{{"5", "1"}, {"5"}}));
  // Of the latest two items: 1 and 5, mean 3; the equally frequent answers' smallest.
  const std::vector<Baseline> two = baselines(data, 2);
  EXPECT_EQ(named(two, "user_mean").predictions[0][0], "3");
  EXPECT_EQ(named(two, "user_majority").predictions[0][0], "1");
  const Difficulty d = difficulty(data, 0);
  EXPECT_EQ(d.classes, 3);
  EXPECT_NEAR(d.label_entropy_bits, std::log2(3.0), 1e-12);
  EXPECT_NEAR(d.majority, 1.0 / 3, 1e-12);
  EXPECT_NEAR(d.neighbour, 2.0 / 3, 1e-12);
  EXPECT_EQ(d.answer_words, 1);
}

TEST(Baselines, OfChoicesAndTexts) {
  TaskData data;
  data.task = &find_task("LaMP_1");
  const std::string head = "the title \"x\" ";
  data.people = {{"a",
                  {{"0", "", {"sails", "wind and sails"}}, {"1", "", {"gulls", "birds"}}},
                  {{"q", head + "[1]: \"zebra\" [2]: \"wind tunnels\"", "[2]"}, {"r", head + "[1]: \"gulls\" [2]: \"zebra\"", "[1]"}}}};
  const std::vector<Baseline> choice = baselines(data, 0);
  ASSERT_EQ(choice.size(), 2u);
  EXPECT_EQ(named(choice, "majority").predictions[0], (std::vector<std::string>{"[1]", "[1]"}));
  EXPECT_EQ(named(choice, "nearest").predictions[0], (std::vector<std::string>{"[2]", "[1]"}));
  EXPECT_EQ(difficulty(data, 0).neighbour, 1);

  data.task = &find_task("LaMP_4");
  data.people = {{"a", {{"0", "", {"Wet day", "rain fell"}}, {"1", "", {"Dry", "sun shone"}}}, {{"q", "article: the rain", "Wet"}}}};
  const std::vector<Baseline> text = baselines(data, 0);
  ASSERT_EQ(text.size(), 1u);
  EXPECT_EQ(text[0].predictions[0][0], "Wet day");
  const Difficulty d = difficulty(data, 0);
  EXPECT_EQ(d.label_entropy_bits, 0);
  EXPECT_EQ(d.majority, 0);
  EXPECT_NEAR(d.neighbour, 2.0 / 3, 1e-12);
}

TEST(Baselines, OfNobody) {
  TaskData data;
  data.task = &find_task("LaMP_2");
  EXPECT_EQ(difficulty(data, 0).classes, 0);
  for (const Baseline& b : baselines(data, 0)) EXPECT_TRUE(b.predictions.empty());
}

}  // namespace
}  // namespace thimble::lab
