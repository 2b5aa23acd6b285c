#include "tools/lab/zoo.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"

namespace thimble::lab {
namespace {

constexpr int64_t kHeldOut = int64_t{1} << 40;  // sequence numbers from here on are never trained on

void only_keys(const JsonObject& object, const std::set<std::string>& keys) {
  for (const auto& item : object.json().items())
    if (keys.count(item.key()) == 0) {
      std::string list;
      for (const std::string& key : keys) list += (list.empty() ? "" : ", ") + key;
      object.fail(item.key(), "one of the keys " + list);
    }
}

// Right answers by the most likely first token of the labels, which differ in it.
double answer_accuracy(Transformer& transformer, Context& ctx, const Tokenizer& tokenizer, const std::vector<MixQuestion>& questions) {
  int64_t right = 0;
  constexpr size_t kRows = 4096;
  for (size_t at = 0; at < questions.size();) {
    std::vector<int32_t> ids, cu{0};
    size_t end = at;
    for (; end < questions.size() && (end == at || ids.size() < kRows); ++end) {
      ids.push_back(tokenizer.bos_id());
      for (int32_t id : tokenizer.encode(questions[end].prompt, {false, false})) ids.push_back(id);
      cu.push_back(static_cast<int32_t>(ids.size()));
    }
    const ArenaScope scope(ctx.saved);
    Batch batch;
    batch.ids = ids.data();
    batch.n = static_cast<int64_t>(ids.size());
    batch.cu_seqlens = cu.data();
    batch.n_seqs = static_cast<int64_t>(cu.size()) - 1;
    const Var logits = transformer.logits(ctx, transformer.forward(ctx, batch));
    const int64_t vocab = logits.t.shape[1];
    for (size_t q = at; q < end; ++q) {
      const float* row = logits.t.f32() + (cu[q - at + 1] - 1) * vocab;
      std::string best;
      float top = -1e30f;
      for (const std::string& label : questions[q].labels) {
        const float value = row[tokenizer.encode(label, {false, false})[0]];
        if (value > top) {
          top = value;
          best = label;
        }
      }
      right += best == questions[q].gold;
    }
    at = end;
  }
  return double(right) / double(questions.size());
}

}  // namespace

bool GateScores::passes(const GateLimits& limits) const {
  return known_rating_1 >= limits.known_rating && known_rating_3 >= limits.known_rating &&
         fact >= neighbour - limits.fact_below_neighbour && known_tag >= limits.known_tag;
}

std::string GateScores::words() const {
  return fmt::format("known people's ratings {:.3f} (1 attribute) {:.3f} (3), tags {:.3f}; copying {:.3f} of {:.3f}; citations {:.3f}; strangers' ratings {:.3f}, tags {:.3f}",
                     known_rating_1, known_rating_3, known_tag, fact, neighbour, citation, stranger_rating, stranger_tag);
}

nlohmann::ordered_json GateScores::to_json() const {
  return {{"known_rating_1", known_rating_1}, {"known_rating_3", known_rating_3}, {"known_tag", known_tag}, {"fact_k1", fact}, {"neighbour", neighbour},
          {"citation_k4", citation}, {"stranger_rating", stranger_rating}, {"stranger_tag", stranger_tag}, {"questions", questions}};
}

ZooRecipe load_recipe(const std::string& path) {
  const std::string text = read_file(path);
  const nlohmann::json json = parse_json(text, path);
  const JsonObject root(json, path);
  only_keys(root, {"schema", "name", "config", "mix", "seed", "precision", "train", "gate", "decay_gate", "gate_questions", "held_out"});
  if (root.require_string("schema") != "thimble.zoo_recipe/1") root.fail("schema", "\"thimble.zoo_recipe/1\"");
  ZooRecipe r;
  r.sha256 = sha256_hex(text);
  r.name = root.require_string("name");
  r.seed = static_cast<uint64_t>(root.get_int("seed", 1, 0, int64_t{1} << 53));
  r.precision = root.get_string("precision", r.precision);
  if (r.precision != "f32" && r.precision != "bf16") root.fail("precision", "f32 or bf16");
  r.gate_questions = root.get_int("gate_questions", r.gate_questions, 1, 1 << 20);
  r.held_out = root.get_int("held_out", r.held_out, 1, 1 << 20);
  if (!root.object("config")) root.fail("config", "an object: config.json of the model");
  // Keys keep the order of the file.
  r.config = nlohmann::ordered_json::parse(text).at("config");

  if (const auto mix = root.object("mix")) {
    only_keys(*mix, {"tasks", "known", "turns", "packed", "single", "pair", "rule_known", "rule_turns", "rule_packed", "rule_single", "names", "name_turns", "name_packed", "name_single", "text_weight", "answer_weight", "random_examples", "retriever", "ctx"});
    const auto share = [&](const char* key, double& value) { value = mix->get_double(key, value, 0, 1e6); };
    share("known", r.mix.known);
    share("turns", r.mix.turns);
    share("packed", r.mix.packed);
    share("single", r.mix.single);
    share("pair", r.mix.pair);
    share("rule_known", r.mix.rule_known);
    share("rule_turns", r.mix.rule_turns);
    share("rule_packed", r.mix.rule_packed);
    share("rule_single", r.mix.rule_single);
    share("names", r.mix.names);
    share("name_turns", r.mix.name_turns);
    share("name_packed", r.mix.name_packed);
    share("name_single", r.mix.name_single);
    share("text_weight", r.mix.text_weight);
    share("answer_weight", r.mix.answer_weight);
    share("random_examples", r.mix.random_examples);
    r.mix.retriever = mix->get_string("retriever", r.mix.retriever);
    r.mix.ctx = mix->get_int("ctx", r.mix.ctx, 64, 1 << 20);
    if (const auto tasks = mix->object("tasks")) {
      r.mix.tasks.clear();
      for (const auto& item : tasks->json().items()) r.mix.tasks[find_task(item.key()).name] = tasks->require_double(item.key(), 0, 1e6);
    }
  }
  const auto train = root.object("train");
  if (!train) root.fail("train", "an object: the training run");
  only_keys(*train, {"steps", "max_steps", "batch", "lr", "warmup", "decay_steps", "min_ratio", "weight_decay", "beta1", "beta2", "clip", "eval_every", "save_every",
                     "gate_every", "log_every"});
  TrainOptions& t = r.train;
  t.steps = train->require_int("steps", 1, int64_t{1} << 40);
  t.max_steps = train->get_int("max_steps", t.steps, t.steps, int64_t{1} << 40);
  t.batch = train->require_int("batch", 1, 1 << 20);
  t.lr = train->require_double("lr", 0, 10);
  t.schedule.kind = ScheduleKind::wsd;
  t.schedule.warmup = train->get_int("warmup", 0, 0, t.steps);
  t.schedule.min_ratio = train->get_double("min_ratio", 0.02, 0, 1);
  t.schedule.decay_from = t.steps - train->get_int("decay_steps", t.steps * 2 / 5, 0, t.steps);
  t.adamw.weight_decay = train->get_double("weight_decay", 0, 0, 10);
  t.adamw.beta1 = train->get_double("beta1", 0.9, 0, 1);
  t.adamw.beta2 = train->get_double("beta2", 0.98, 0, 1);
  t.adamw.clip_norm = train->get_double("clip", 1, 0, 1e9);
  t.adamw.decay_vectors = false;
  t.eval_every = train->get_int("eval_every", 0, 0, int64_t{1} << 40);
  t.save_every = train->get_int("save_every", 0, 0, int64_t{1} << 40);
  t.gate_every = train->get_int("gate_every", 500, 1, int64_t{1} << 40);
  t.log_every = train->get_int("log_every", 50, 1, int64_t{1} << 40);
  t.seed = r.seed;
  const auto limits = [&](const char* key, GateLimits usual) {
    const auto object = root.object(key);
    if (!object) return usual;
    only_keys(*object, {"known_rating", "known_tag", "fact_below_neighbour"});
    return GateLimits{object->get_double("known_rating", usual.known_rating, 0, 1), object->get_double("fact_below_neighbour", usual.fact_below_neighbour, 0, 1),
                      object->get_double("known_tag", usual.known_tag, 0, 1)};
  };
  r.gate = limits("gate", GateLimits{});
  r.decay_gate = limits("decay_gate", GateLimits{0.9, 0.08, 0.6});
  return r;
}

GateScores measure_gate(Transformer& transformer, Context& ctx, const PretrainMix& mix, int64_t questions) {
  GateScores scores;
  scores.questions = questions;
  std::vector<MixQuestion> one, three, tags, facts, citations, ratings, others;
  int64_t neighbours = 0;
  for (int64_t i = 0; i < questions; ++i) {
    one.push_back(mix.known_rating(1, i));
    three.push_back(mix.known_rating(3, i));
    tags.push_back(mix.known_tag(i));
    citations.push_back(mix.citation(4, i));
    ratings.push_back(mix.stranger("LaMP_3", i));
    others.push_back(mix.stranger("LaMP_2", i));
    bool right = false;
    facts.push_back(mix.fact(128, 1, i, &right));
    neighbours += right;
  }
  scores.known_rating_1 = answer_accuracy(transformer, ctx, mix.tokenizer(), one);
  scores.known_rating_3 = answer_accuracy(transformer, ctx, mix.tokenizer(), three);
  scores.known_tag = answer_accuracy(transformer, ctx, mix.tokenizer(), tags);
  scores.citation = answer_accuracy(transformer, ctx, mix.tokenizer(), citations);
  scores.stranger_rating = answer_accuracy(transformer, ctx, mix.tokenizer(), ratings);
  scores.stranger_tag = answer_accuracy(transformer, ctx, mix.tokenizer(), others);
  scores.fact = answer_accuracy(transformer, ctx, mix.tokenizer(), facts);
  scores.neighbour = double(neighbours) / double(questions);
  return scores;
}

Dataset held_out_sequences(const PretrainMix& mix, int64_t n) {
  std::vector<WeightedSequence> sequences(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) mix.make(kHeldOut + i, sequences[static_cast<size_t>(i)]);
  return Dataset::from_weighted(sequences, mix.options().ctx);
}

}  // namespace thimble::lab
