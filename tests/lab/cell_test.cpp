// Cells: people who share a batch get what they would get alone; answers do not depend on what is asked beside them;
// all that is published is a pure function of the configuration, whatever the threads.
#include <algorithm>
#include <cmath>
#include <set>

#include "models/generator.h"
#include "models/scoring.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tests/lab/cell_support.h"
#include "tools/lab/compression.h"
#include "tools/lab/evaluate.h"
#include "tools/lab/method.h"
#include "tools/lab/method_train.h"

namespace thimble::lab_test {
namespace {

using namespace lab;

// One model for all tests of this file.
const std::string& model_dir() {
  static const ScratchDir scratch;
  static const std::string dir = [] {
    write_model(scratch / "model");
    return scratch / "model";
  }();
  return dir;
}

struct Base {
  explicit Base(int threads = 1)
      : machine(threads),
        model(load_model(model_dir(), machine.kernels)),
        tokenizer(Tokenizer::load(model_dir())),
        codec(tokenizer, 480) {}
  std::unique_ptr<Worker> worker(int threads = 1) {
    return std::make_unique<Worker>(machine.kernels, threads, 0, Precision::f32, model, 512);
  }
  Machine machine;
  Model model;
  Tokenizer tokenizer;
  PromptCodec codec;
};

PersonPairs some_pairs(const Base& base, const std::string& user) {
  PersonPairs p;
  p.user_id = user;
  p.seed = named_seed(1, user);
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> from;
  for (int i = 0; i < 6; ++i) {
    const PromptCodec::Sequence s = base.codec.pair(
        "what did " + user + " say " + std::to_string(i * 7 % 5) + " times?", user + " " + std::to_string(i));
    ids.push_back(s.ids);
    from.push_back(s.learn_from);
  }
  p.data = Dataset::from_ids(std::move(ids), std::move(from), base.codec.context());
  return p;
}

std::vector<float> values_of(Adapter& adapter) {
  std::vector<float> all;
  adapter.for_each_parameter(
      [&](const std::string&, Weight& w) { all.insert(all.end(), w.f32(), w.f32() + w.numel()); });
  return all;
}

std::vector<std::string> learning_adapters() {
  std::vector<std::string> names;
  for (const Method* m : all_methods())
    if (m->learns && m->adapter) names.emplace_back(m->name);
  return names;
}

TEST(Method, RowsHaveUniqueNamesAndRates) {
  std::set<std::string> names;
  for (const Method* m : all_methods()) {
    EXPECT_TRUE(names.insert(m->name).second) << m->name;
    EXPECT_EQ(m->learns, m->lr > 0) << m->name;
    EXPECT_EQ(&find_method(m->name), m);
  }
  for (const char* name : {"none", "rag", "lora", "full", "prompt", "prefix", "ia3", "rag+lora"})
    EXPECT_EQ(names.count(name), 1u) << name;
  EXPECT_THROW(find_method("lor"), Error);
}

TEST(Codec, TrainingAndExaminationSeeTheSameTokens) {
  const Base base;
  const std::vector<std::string> labels = {"1", "sci-fi", "based on a book", "[1]"};
  for (const std::string prompt : {"review: good", "the tag is \"x\" for y", ""}) {
    const PromptCodec::Question q = base.codec.question(prompt, labels, 0);
    for (size_t i = 0; i < labels.size(); ++i) {
      std::vector<int32_t> joined = q.prompt;
      joined.insert(joined.end(), q.answers[i].begin(), q.answers[i].end());
      PromptCodec::Sequence s = base.codec.pair(prompt, labels[i]);
      ASSERT_EQ(s.ids.back(), base.tokenizer.eos_id());
      s.ids.pop_back();
      EXPECT_EQ(joined, s.ids) << prompt << " " << labels[i];
      EXPECT_EQ(base.codec.answer_text(q.answers[i]), labels[i]);
      EXPECT_TRUE(base.codec.ends_answer(q.answers[i].back()));
      EXPECT_GE(s.learn_from, static_cast<int32_t>(q.prompt.size()));
    }
  }
}

TEST(Codec, LongPromptsLoseTheirBeginning) {
  const Base base;
  const PromptCodec codec(base.tokenizer, 40);
  std::string prompt;
  for (int i = 0; i < 60; ++i) prompt += "word" + std::to_string(i) + " ";
  const PromptCodec::Sequence s = codec.pair(prompt, "4");
  EXPECT_TRUE(s.truncated);
  EXPECT_EQ(s.ids.size(), 40u);
  const PromptCodec::Sequence whole = base.codec.pair("", "4");
  EXPECT_TRUE(std::equal(whole.ids.begin() + whole.learn_from, whole.ids.end(), s.ids.begin() + s.learn_from));
  const PromptCodec::Question q = codec.question(prompt, {"4"}, 10);
  EXPECT_TRUE(q.truncated);
  EXPECT_EQ(q.prompt.size(), 30u);
  std::string completion;
  for (int i = 0; i < 60; ++i) completion += "word ";
  const PromptCodec::Sequence cut = codec.pair("short", completion);
  EXPECT_TRUE(cut.truncated);
  EXPECT_EQ(cut.ids.size(), 40u);
  EXPECT_LT(cut.learn_from, 4);
  EXPECT_FALSE(codec.pair("short", "4").truncated);
}

TEST(Learning, NobodyFeelsTheOthers) {
  Base base;
  for (const std::string& name : learning_adapters()) {
    const Method& method = find_method(name);
    MethodSpec spec;
    spec.rank = 4;
    spec.dropout = 0.1;
    spec.n_virtual = 3;
    std::vector<PersonPairs> people;
    for (const char* user : {"ann", "bob", "cleo", "dan"}) people.push_back(some_pairs(base, user));
    const LearnOptions options{method.lr, 3, 5};
    const auto together = base.worker(), alone = base.worker(2);
    GroupLearner group(*together, method, spec, base.model, options, {&people[0], &people[1], &people[2], &people[3]});
    group.train_to(2);
    group.train_to(5);
    for (size_t i = 0; i < people.size(); ++i) {
      GroupLearner single(*alone, method, spec, base.model, options, {&people[i]});
      single.train_to(5);
      const std::vector<float> a = values_of(*group.adapter(i)), b = values_of(*single.adapter(0));
      ASSERT_EQ(a.size(), b.size());
      EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << name << " person " << i;
      EXPECT_EQ(group.losses(i), single.losses(0)) << name << " person " << i;
    }
    EXPECT_NE(values_of(*group.adapter(0)), values_of(*group.adapter(1)));
  }
}

// The loss of a person's step is the mean over its own learned tokens, whatever the others have.
TEST(Learning, FirstLossIsTheBasesLoss) {
  Base base;
  std::vector<PersonPairs> people{some_pairs(base, "ann"), some_pairs(base, "bartholomew the longwinded")};
  const auto worker = base.worker();
  const Method& lora = find_method("lora");
  GroupLearner group(*worker, lora, MethodSpec{}, base.model, LearnOptions{3e-3, 4, 1}, {&people[0], &people[1]});
  group.train_to(1);
  for (size_t i = 0; i < people.size(); ++i) {
    double nll = 0;
    int64_t learned = 0;
    for (int64_t b = 0; b < 4; ++b) {
      const Dataset::Item item = people[i].data.draw(people[i].seed, b);
      Scorer scorer(worker->transformer, worker->ctx);
      const std::vector<int32_t> context(item.ids, item.ids + item.label_from),
          rest(item.ids + item.label_from, item.ids + item.n);
      nll -= scorer.loglikelihood(context, rest).logprob;
      learned += static_cast<int64_t>(rest.size());
    }
    EXPECT_NEAR(group.losses(i)[0], nll / double(learned), 1e-6);
  }
}

TEST(Learning, EveryMethodLowersTheLoss) {
  Base base;
  for (const Method* method : all_methods()) {
    if (!method->learns) continue;
    const PersonPairs person = some_pairs(base, "ann");
    Model copy = trainable_copy(base.model, base.machine.kernels, nullptr);
    Worker worker(base.machine.kernels, 1, 0, Precision::f32, method->full() ? copy : base.model, 512);
    GroupLearner learner(worker, *method, MethodSpec{}, base.model, LearnOptions{method->lr, 6, 1}, {&person});
    learner.train_to(30);
    EXPECT_LT(learner.losses(0).back(), 0.97 * learner.losses(0).front()) << method->name;
  }
}

TEST(Learning, EveryoneStartsFromTheSameBase) {
  Base base;
  const PersonPairs ann = some_pairs(base, "ann"), bob = some_pairs(base, "bob");
  Model copy = trainable_copy(base.model, base.machine.kernels, nullptr);
  Worker worker(base.machine.kernels, 1, 0, Precision::f32, copy, 512);
  const Method& full = find_method("full");
  const LearnOptions options{full.lr, 3, 1};
  const auto losses = [&](const PersonPairs& p) {
    GroupLearner learner(worker, full, MethodSpec{}, base.model, options, {&p});
    learner.train_to(4);
    return learner.losses(0);
  };
  const std::vector<double> first = losses(ann);
  losses(bob);
  EXPECT_EQ(losses(ann), first);
}

// Questions of several people with adapters of their own, together and one at a time, and against the plain scorer.
TEST(Answers, DoNotDependOnTheBatch) {
  Base base;
  for (const std::string& name : learning_adapters()) {
    const Method& method = find_method(name);
    MethodSpec spec;
    spec.n_virtual = 3;
    std::vector<PersonPairs> people{some_pairs(base, "ann"), some_pairs(base, "bob"), some_pairs(base, "cleo")};
    const auto worker = base.worker(), other = base.worker(2);
    GroupLearner group(*worker, method, spec, base.model, LearnOptions{method.lr, 3, 5},
                       {&people[0], &people[1], &people[2]});
    group.train_to(3);
    const std::vector<Adapter*> adapters{group.adapter(0), nullptr, group.adapter(2)};
    std::vector<Question> questions;
    for (int64_t p = 0; p < 3; ++p)
      for (int i = 0; i < 4; ++i) {
        Question q;
        q.person = p;
        std::string text = "what is it";
        for (int w = 0; w < i * 5; ++w) text += " so";
        q.labels = i % 2 ? std::vector<std::string>{"1", "sci-fi", "comedy"} : std::vector<std::string>{};
        q.generate = q.labels.empty();
        const PromptCodec::Question encoded =
            base.codec.question(text, q.labels.empty() ? std::vector<std::string>{"gold"} : q.labels, 12);
        q.prompt = encoded.prompt;
        q.choices = encoded.answers;
        questions.push_back(q);
      }
    AnswerOptions many, one;
    many.max_new_tokens = one.max_new_tokens = 12;
    one.batch_rows = 1;
    std::vector<Answer> a(questions.size()), b(questions.size());
    answer_questions(*worker, base.codec, questions, 0, questions.size(), adapters, many, a);
    for (size_t i = questions.size(); i-- > 0;)
      answer_questions(*other, base.codec, questions, i, i + 1, adapters, one, b);
    for (size_t i = 0; i < questions.size(); ++i) {
      EXPECT_EQ(a[i].text, b[i].text) << name << i;
      EXPECT_EQ(a[i].logprobs, b[i].logprobs) << name << i;
      Scorer scorer(worker->transformer, worker->ctx, adapters[static_cast<size_t>(questions[i].person)]);
      const std::vector<Loglikelihood> expected = scorer.choices(questions[i].prompt, questions[i].choices);
      for (size_t c = 0; c < expected.size(); ++c)
        EXPECT_NEAR(a[i].logprobs[c], expected[c].logprob, 1e-9) << name << i;
      if (questions[i].generate) continue;
      const auto best = std::max_element(expected.begin(), expected.end(),
                                         [](const auto& x, const auto& y) { return x.logprob < y.logprob; });
      EXPECT_EQ(a[i].text, questions[i].labels[static_cast<size_t>(best - expected.begin())]);
    }
  }
}

TEST(Answers, GreedyTextIsTheGeneratorsText) {
  Base base;
  const auto worker = base.worker();
  std::vector<Question> questions(3);
  for (size_t i = 0; i < questions.size(); ++i) {
    const PromptCodec::Question q = base.codec.question("tell me " + std::to_string(i), {"x"}, 10);
    questions[i].prompt = q.prompt;
    questions[i].generate = true;
  }
  AnswerOptions options;
  options.max_new_tokens = 10;
  std::vector<Answer> answers(questions.size());
  answer_questions(*worker, base.codec, questions, 0, questions.size(), {}, options, answers);
  for (size_t i = 0; i < questions.size(); ++i) {
    Generator generator(worker->transformer, worker->ctx, 200);
    const float* logits = generator.feed(questions[i].prompt.data(), static_cast<int64_t>(questions[i].prompt.size()));
    std::vector<int32_t> ids;
    do {
      ids.push_back(static_cast<int32_t>(std::max_element(logits, logits + base.model.config.vocab_size) - logits));
      logits = generator.feed(&ids.back(), 1);
    } while (!base.codec.ends_answer(ids.back()) && ids.size() < 10);
    EXPECT_EQ(answers[i].text, base.codec.answer_text(ids));
  }
}

// Every method on a label task and on a text task: threads change nothing but the costs.
TEST(Cell, IsAPureFunctionOfItsConfiguration) {
  Machine one(1), two(2);
  for (const Method* method : all_methods())
    for (const char* task : {"LaMP_2", "LaMP_5"}) {
      CellConfig c = small_cell(model_dir(), task, method->name);
      c.method.dropout = 0.05;
      if (method->learns) c.curve = {0, 2};
      const CellResult a = run_cell(c, one.environment),
                       b = run_cell(CellConfig::from_json(c.to_json()), two.environment);
      EXPECT_EQ(published(a), published(b)) << method->name << " " << task;
      EXPECT_EQ(a.predictions.size(), 20u);
      EXPECT_EQ(a.metrics["n"], 20);
      EXPECT_EQ(a.metrics["per_person"].size(), 5u);
      EXPECT_EQ(a.curve.size(), method->learns ? 3u : 1u);
      double mean = 0;
      for (const auto& p : a.metrics["per_person"]) mean += p["score"].get<double>() / 5;
      EXPECT_NEAR(mean, a.metrics["metrics"][a.metrics["primary"].get<std::string>()].get<double>(), 1e-9);
      for (const auto& row : a.predictions) EXPECT_EQ(row["scores"].is_null(), std::string(task) == "LaMP_5");
      EXPECT_GT(a.metrics["difficulty"]["base_nll"].get<double>(), 0);
      for (const char* key : {"load_s", "ttft_s", "prefill_tok_s", "decode_tok_s", "train_s", "answer_s",
                              "samples_per_hour", "step_s", "peak_rss_bytes", "model_bytes", "bits_per_weight",
                              "adapter_bytes", "optimizer_bytes", "kv_bytes", "threads", "isa"})
        EXPECT_TRUE(a.cost.contains(key)) << key;
    }
}

TEST(Cell, AnswersOfTheBaseAreAnsweredBeforeAnyStep) {
  const Machine machine;
  CellConfig none = small_cell(model_dir(), "LaMP_3", "none"), lora = small_cell(model_dir(), "LaMP_3", "lora");
  lora.curve = {0};
  const CellResult a = run_cell(none, machine.environment), b = run_cell(lora, machine.environment);
  EXPECT_EQ(a.curve.at(0)["per_person"], b.curve.at(0)["per_person"]);
  EXPECT_EQ(b.curve.at(0)["step"], 0);
  EXPECT_EQ(a.metrics["difficulty"], b.metrics["difficulty"]);
  EXPECT_EQ(a.metrics["baselines"], b.metrics["baselines"]);
  EXPECT_NE(a.predictions.at(0)["scores"], b.predictions.at(0)["scores"]);
}

TEST(Cell, ChoosesOnHeldOutHistoryAndSaysSo) {
  const Machine machine;
  CellConfig c = small_cell(model_dir(), "LaMP_3", "rag+lora");
  c.method.k = {1, 3};
  c.method.lr = {1e-3, 1e-2};
  c.steps = {2, 4};
  const CellResult r = run_cell(c, machine.environment);
  int64_t heldout = 0;
  double best = -1;
  for (const auto& row : r.curve)
    if (row["heldout"].get<bool>()) {
      ++heldout;
      best = std::max(best, row["score"].get<double>());
    }
  EXPECT_EQ(heldout, 8);
  EXPECT_EQ(static_cast<int64_t>(r.curve.size()), 9);
  bool found = false;
  for (const auto& row : r.curve)
    found = found || (row["heldout"].get<bool>() && row["score"] == best && row["k"] == r.metrics["chosen"]["k"] &&
                      row["lr"] == r.metrics["chosen"]["lr"] && row["step"] == r.metrics["chosen"]["steps"]);
  EXPECT_TRUE(found);
  // The answers are those of a cell that names the choice.
  CellConfig named = c;
  named.method.k = {r.metrics["chosen"]["k"].get<int64_t>()};
  named.method.lr = {r.metrics["chosen"]["lr"].get<double>()};
  named.steps = {r.metrics["chosen"]["steps"].get<int64_t>()};
  EXPECT_EQ(run_cell(named, machine.environment).predictions, r.predictions);
}

// History of citations holds no choices, so likelihood chooses.
TEST(Cell, EveryTaskRuns) {
  const Machine machine;
  for (const char* task : {"LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"}) {
    CellConfig c = small_cell(model_dir(), task, "rag+lora");
    c.method.k = {1, 2};
    c.steps = {2};
    const CellResult r = run_cell(c, machine.environment);
    EXPECT_EQ(r.predictions.size(), 20u) << task;
    EXPECT_EQ(r.curve.size(), 3u) << task;
    EXPECT_EQ(r.curve[0].contains("score_is"), std::string(task) == "LaMP_1");
  }
}

// What a plan names as embedder finds the examples; the base answers.
TEST(Cell, DenseRetrievalWithAnEmbedder) {
  const ScratchDir scratch;
  const std::string dir = scratch / "static";
  std::filesystem::create_directories(dir);
  std::filesystem::copy_file(model_dir() + "/tokenizer.json", dir + "/tokenizer.json");
  const int64_t tokens = Tokenizer::load(dir).vocab_size();
  std::vector<float> table(static_cast<size_t>(tokens * 4));
  Philox rng(5, 1);
  for (float& x : table) x = static_cast<float>(rng.normal());
  write_safetensors(dir + "/model.safetensors", {{"embeddings", SafetensorsDtype::f32, {tokens, 4}, table.data()}});
  std::ofstream(dir + "/config.json") << R"({"model_type": "model2vec", "normalize": true})";
  CellConfig c = small_cell(model_dir(), "LaMP_3", "rag");
  c.method.retriever = "dense";
  c.method.k = {2};
  const Machine one(1), two(2);
  const std::string base = published(run_cell(c, two.environment));
  c.method.embedder = dir;
  const CellResult r = run_cell(c, two.environment);
  EXPECT_EQ(r.predictions.size(), 20u);
  EXPECT_EQ(published(r), published(run_cell(c, one.environment)));
  EXPECT_NE(published(r), base);  // other examples
  c.method.embedder = scratch / "none";
  EXPECT_THROW(run_cell(c, one.environment), Error);
}

TEST(Cell, AHistoryOfAFewItemsCountsTheLatest) {
  const Machine machine;
  CellConfig c = small_cell(model_dir(), "LaMP_3", "lora");
  c.history = 3;
  EXPECT_EQ(run_cell(c, machine.environment).metrics["train"]["pairs"], 15);
}

TEST(Cell, CompressedBasesLearnAndFullTuningOfThemIsRefused) {
  const Machine machine;
  for (const char* compression : {"rtn:int4-g32-asym", "gptq:int4-g32-asym", "wanda:0.5"}) {
    CellConfig c = small_cell(model_dir(), "LaMP_3", "lora");
    c.compression = compression;
    const CellResult r = run_cell(c, machine.environment);
    const bool pruned = std::string(compression) == "wanda:0.5";
    EXPECT_EQ(r.cost["bits_per_weight"].get<double>() < 32, !pruned) << compression;
    EXPECT_EQ(r.metrics["compression"]["name"], compression);
    EXPECT_EQ(r.metrics["compression"]["calibration"].is_null(), std::string(compression).substr(0, 3) == "rtn");
    c.method.name = "full";
    if (pruned) {
      EXPECT_EQ(run_cell(c, machine.environment).predictions.size(), 20u);
      continue;
    }
    try {
      run_cell(c, machine.environment);
      ADD_FAILURE() << compression;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::unsupported);
      EXPECT_NE(std::string(e.what()).find("full"), std::string::npos);
    }
  }
}

TEST(Cell, CalibrationPeopleAreOthers) {
  Base base;
  const auto worker = base.worker();
  CellConfig c = small_cell(model_dir(), "LaMP_3", "none");
  const WorldTask world = make_world(c.task.world);
  const CalibrationText text =
      calibration_text(c, world.data, world.data.people.size(), base.codec, base.model, worker->ctx);
  EXPECT_EQ(text.source, "other people of the world");
  std::set<std::vector<int32_t>> asked;
  for (const Person& p : world.data.people)
    for (const Query& q : p.queries) asked.insert(base.codec.pair(q.input, q.output).ids);
  size_t same = 0;
  for (const auto& s : text.sequences) same += asked.count(s);
  EXPECT_EQ(text.sequences.size(), 20u);
  EXPECT_LT(same, 3u);  // short texts may coincide
}

// People with long histories of real texts: what does not fit is packed, cut and counted.
TEST(Cell, RunsOnLampData) {
  const std::string dir = std::string(THIMBLE_SOURCE_DIR) + "/../shared/data/lamp3_movies";
  if (!std::filesystem::exists(dir)) GTEST_SKIP() << "not here: " << dir;
  const Machine machine;
  CellConfig c = small_cell(model_dir(), "LaMP_3", "rag+lora");
  c.task.is_world = false;
  c.task.lamp_dir = dir;
  c.task.lamp_task = "LaMP_3";
  c.task.people = 3;
  c.task.queries = 4;
  c.history = 12;
  c.steps = {2};
  c.compression = "rtn:int8-row-sym";
  const CellResult r = run_cell(c, machine.environment);
  EXPECT_EQ(r.predictions.size(), 12u);
  EXPECT_EQ(r.metrics["people"], 3);
  EXPECT_EQ(r.metrics["train"]["pairs"], 36);
  EXPECT_TRUE(r.metrics["possible"].is_null());
  c.compression = "wanda:0.5";
  c.method.name = "none";
  const CellResult pruned = run_cell(c, machine.environment);
  EXPECT_EQ(pruned.metrics["compression"]["calibration"], "other people of the data");
}

TEST(Cell, BadConfigurationsAreRefused) {
  const Machine machine;
  const auto code_of = [&](const CellConfig& c) {
    try {
      run_cell(c, machine.environment);
    } catch (const Error& e) {
      return e.code();
    }
    return ErrorCode::internal;
  };
  CellConfig c = small_cell(model_dir(), "LaMP_3", "lora");
  c.steps.clear();
  EXPECT_EQ(code_of(c), ErrorCode::usage);
  c = small_cell(model_dir(), "LaMP_3", "magic");
  EXPECT_EQ(code_of(c), ErrorCode::usage);
  c = small_cell(model_dir(), "LaMP_3", "none");
  c.compression = "zip:9";
  EXPECT_EQ(code_of(c), ErrorCode::usage);
  c = small_cell(model_dir() + "/nowhere", "LaMP_3", "none");
  EXPECT_EQ(code_of(c), ErrorCode::input);
  c = small_cell(model_dir(), "LaMP_3", "lora");
  c.method.lr = {1e9};
  c.steps = {60};
  EXPECT_EQ(code_of(c), ErrorCode::input);  // diverges
}

// A limit changes how the work is cut, not its results; what does not fit is refused.
TEST(Cell, AMemoryLimitIsKept) {
  Machine machine;
  CellConfig c = small_cell(model_dir(), "LaMP_3", "lora");
  const CellResult free = run_cell(c, machine.environment);
  c.ram = int64_t{16} << 20;
  const CellEstimate estimate = estimate_cell(c, machine.environment);
  EXPECT_LT(estimate.budget_bytes, c.ram);
  MemoryBudget enough(c.ram);
  machine.environment.budget = &enough;
  EXPECT_EQ(run_cell(c, machine.environment).predictions, free.predictions);
  for (const int64_t limit : {int64_t{100000}, free.cost["model_bytes"].get<int64_t>() + 100000}) {
    MemoryBudget little(limit);
    machine.environment.budget = &little;
    c.ram = limit;
    try {
      run_cell(c, machine.environment);
      ADD_FAILURE() << limit;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::budget);
    }
  }
}

TEST(Estimate, CountsWhatTheCellWillDo) {
  const Machine machine;
  CellConfig c = small_cell(model_dir(), "LaMP_3", "lora");
  c.steps = {2, 5};
  c.curve = {3};
  const CellEstimate e = estimate_cell(c, machine.environment);
  EXPECT_EQ(e.steps, 10);                 // once to choose, once to answer
  EXPECT_EQ(e.queries, 20 * 3 + 2 * 10);  // chosen step, curve and difficulty; a quarter of 8 items of 5 people, twice
  EXPECT_GT(e.step_s, 0);
  EXPECT_GT(e.answer_s, 0);
  EXPECT_GT(e.peak_bytes, int64_t{40} << 20);
  EXPECT_GT(e.total_s(), e.load_s);
}

}  // namespace
}  // namespace thimble::lab_test
