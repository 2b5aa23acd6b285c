// How a cell is run: load, compress, choose on held-out history where the plan leaves a choice, learn on all history,
// answer the questions, score. People are spread over workers; a group of people learns and answers without waiting for
// the others.
#include "tools/lab/cell.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>

#include "models/embedder.h"
#include "models/generator.h"
#include "rag/packer.h"
#include "rag/retriever.h"
#include "tensor/error.h"
#include "tools/lab/compression.h"
#include "tools/lab/evaluate.h"
#include "tools/lab/identity.h"
#include "tools/lab/method.h"
#include "tools/lab/method_train.h"
#include "tools/lab/metrics.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLongestContext = 4096;  // of one prompt with its answer
constexpr int64_t kLongestAnswer = 96;     // tokens of a generated answer
// Of a cell under a limit of memory: rows of a prefill, and the share of the limit that keys and values get.
constexpr int64_t kLeanRows = 512, kLeanCacheShare = 8;
// A limit of at least so many times the model and 32 MiB never matters: activations, adapters and caches of a few
// thousand rows take less.
constexpr int64_t kAmple = 32;

int64_t peak_rss() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// A question whose answer is known, and whose it is.
struct Asked {
  std::string id, gold;
};
struct Exam {
  std::vector<Asked> asked;
  std::vector<Question> questions;  // ordered by person
  std::vector<std::string> labels;  // all candidates of any question, in order of appearance
  bool by_likelihood = false;       // the answers are none that the task scores: their likelihood is the score
  int64_t truncated = 0;
};

// What an exam says about one way of answering it.
struct Marks {
  std::map<std::string, double> metrics;
  double score = 0;                // primary metric, or the mean log-probability of a gold answer
  double unit = 0, logprob = 0;    // means over the questions
  std::vector<double> per_person;  // mean unit score; NaN: nothing was asked
};

// Answers of all questions at one step of learning.
struct Stop {
  int64_t step = 0;
  std::vector<Answer> answers;
};
struct Round {
  std::vector<Stop> stops;
  std::vector<std::vector<double>> losses;  // [people who learn][steps]
  int64_t parameters = 0;                   // of one person
  int64_t groups = 0;
  double train_s = 0, answer_s = 0;
};

struct Choice {
  int64_t k = 0, step = 0;
  double lr = 0;
};

class CellRun {
 public:
  CellRun(const CellConfig& config, const CellEnvironment& environment, bool rehearse);
  CellResult run();
  CellEstimate estimate();

 private:
  // Under a limit that could matter people come one after another, with small caches. The results are the same.
  bool lean() const {
    return config_.ram > 0 && config_.ram / kAmple < model_->file_bytes + (int64_t{32} << 20);
  }
  AnswerOptions answer_options() const {
    AnswerOptions o;
    o.max_new_tokens = max_new_;
    if (lean()) {
      o.batch_rows = kLeanRows;
      o.cache_bytes = config_.ram / kLeanCacheShare;
    }
    return o;
  }
  int64_t group_size(const std::vector<PersonPairs>& pairs, int64_t workers) const {
    return method_.full() || lean() ? 1 : people_per_group(pairs, config_.method.batch, workers);
  }
  void load_task();
  void load_base(bool rehearse);
  void open_embedder();
  void make_retrievers();

  const Item* history_begin(size_t person) const;
  int64_t history_size(size_t person) const;
  // Items that a choice is made on; the rest of the history is learned from and retrieved from meanwhile.
  int64_t held_out(size_t person) const {
    return history_size(person) < 2 ? 0 : std::max<int64_t>(1, history_size(person) / 4);
  }
  const std::string& any_input(size_t person) const { return data_.people[person].queries.front().input; }
  Pair pair_of(size_t person, const Item& item) const {
    return data_.task->pair(item, any_input(person),
                            named_seed(config_.seed, data_.people[person].user_id + "/" + item.id));
  }

  // The prompt of a question; of the history the first `limit` items may stand in it.
  std::string prompt(size_t person, const std::string& input, const std::string& query, int64_t limit, int64_t k) const;
  std::string query_text(const std::string& input, const Item* item) const;
  void add_question(Exam& exam, size_t person, const std::string& id, const std::string& text, const std::string& input,
                    const std::string& gold) const;
  Exam queries(bool with_examples, int64_t k) const;
  Exam held_out_questions(int64_t k) const;
  std::vector<PersonPairs> training_pairs(bool all_history, int64_t k) const;

  Round learn_and_answer(const std::vector<PersonPairs>& pairs, const std::vector<int64_t>& stops, double lr,
                         const Exam& exam, const std::string& phase);
  Workers& learners();
  Marks mark(const Exam& exam, const std::vector<Answer>& answers) const;
  void curve_rows(const Round& round, const Exam& exam, const Choice& choice, bool heldout);
  Choice choose();
  Json baseline_metrics() const;
  Json cost(const Exam& exam, const Round& round, double total_steps);
  double mean_loss(const Round& round, int64_t from, int64_t to) const;

  CellConfig config_;
  CellEnvironment environment_;
  const Method& method_;
  std::vector<double> rates_;
  std::vector<int64_t> steps_, ks_;
  CompressOptions compression_;
  double started_, load_s_ = 0;

  TaskData all_, data_;  // data_: whom the cell examines
  std::vector<Possible> possible_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<PromptCodec> codec_;
  int64_t max_tokens_ = 0, virtuals_ = 0, max_new_ = 32;
  Json compressed_;
  std::unique_ptr<Workers> workers_, full_workers_;
  std::vector<std::unique_ptr<Model>> copies_;
  std::unique_ptr<Embedder> embedder_;
  std::vector<std::unique_ptr<Retriever>> retrievers_;
  std::vector<Json> curve_;
};

CellRun::CellRun(const CellConfig& config, const CellEnvironment& environment, bool rehearse)
    : config_(config),
      environment_(environment),
      method_(find_method(config.method.name)),
      rates_(config.method.lr),
      steps_(config.steps),
      compression_(find_compression(config.compression)),
      started_(cell_clock()) {
  if (!method_.learns) {
    rates_.clear();
    steps_.clear();
  } else {
    if (rates_.empty()) rates_ = {method_.lr};
    if (steps_.empty())
      throw Error(ErrorCode::usage, "cell: method " + config.method.name + " learns, but names no steps",
                  "give the cell steps");
    if (config.method.batch < 1) throw Error(ErrorCode::usage, "cell: batch must be at least 1", "");
    for (const int64_t s : steps_)
      if (s < 1) throw Error(ErrorCode::usage, "cell: steps must be at least 1", "method none does not learn");
  }
  std::sort(steps_.begin(), steps_.end());
  if (method_.retrieves) ks_ = config.method.k;
  if (method_.retrieves && ks_.empty())
    throw Error(ErrorCode::usage, "cell: method " + config.method.name + " retrieves, but k is empty", "give k");
  std::sort(ks_.begin(), ks_.end());
  load_task();
  load_base(rehearse);
  if (method_.retrieves) make_retrievers();
}

void CellRun::load_task() {
  if (config_.task.is_world) {
    WorldTask world = make_world(config_.task.world, config_.history);
    all_ = std::move(world.data);
    possible_ = std::move(world.possible);
  } else {
    all_ = read_lamp_split(config_.task.lamp_dir, config_.task.lamp_task, config_.task.split, config_.task.part);
  }
  data_.task = all_.task;
  data_.sha256 = all_.sha256;
  for (const Person& p : all_.people) {
    if (config_.task.people > 0 && static_cast<int64_t>(data_.people.size()) >= config_.task.people) break;
    if (p.queries.empty()) continue;
    data_.people.push_back(p);
    std::vector<Query>& queries = data_.people.back().queries;
    if (config_.task.queries > 0 && static_cast<int64_t>(queries.size()) > config_.task.queries)
      queries.resize(static_cast<size_t>(config_.task.queries));
    for (const Query& q : queries)
      if (q.output.empty())
        throw Error(ErrorCode::input,
                    "task " + std::string(data_.task->name) + ": question " + q.id + " has no gold answer",
                    "use a part with outputs: train or dev");
  }
  if (data_.people.empty())
    throw Error(ErrorCode::input, "task " + std::string(all_.task->name) + ": nobody is asked anything",
                "check the data");
}

void CellRun::load_base(bool rehearse) {
  if (environment_.progress) environment_.progress("load", 0, 1);
  const std::string path = resolve_model(config_.model);
  model_ = std::make_unique<Model>(load_model(path, *environment_.kernels));
  tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(path));
  if (tokenizer_->vocab_size() > model_->config.vocab_size)
    throw Error(ErrorCode::input,
                fmt::format("{}: the tokenizer has {} tokens, the model {}", path, tokenizer_->vocab_size(),
                            model_->config.vocab_size),
                "they do not belong together");
  if (method_.learns && method_.adapter) {
    const AdapterKind kind = method_.adapter(config_.method).kind;
    if (kind == AdapterKind::prompt || kind == AdapterKind::prefix) virtuals_ = config_.method.n_virtual;
  }
  max_tokens_ = std::min(model_->config.max_positions, kLongestContext + virtuals_);
  if (max_tokens_ - virtuals_ < 16)
    throw Error(ErrorCode::input,
                fmt::format("{}: a context of {} tokens leaves no room for prompts", path, max_tokens_),
                "choose another model, or fewer virtual tokens");
  codec_ = std::make_unique<PromptCodec>(*tokenizer_, max_tokens_ - virtuals_);
  load_s_ = cell_clock() - started_;

  if (compression_.method != CompressMethod::none) {
    if (environment_.progress) environment_.progress("compress", 0, 1);
    CompressOptions options = compression_;
    // A rehearsal needs the sizes of the codes, not the best codes.
    if (rehearse && options.quantizes()) options.method = CompressMethod::rtn;
    if (!rehearse || options.quantizes()) {
      MemoryBudget unlimited;  // compression is not the device's work
      Context ctx(*environment_.kernels, environment_.threads, &unlimited);
      CalibrationText text;
      if (options.needs_calibration())
        text = calibration_text(config_, all_, data_.people.size(), *codec_, *model_, ctx);
      compressed_ = compress_base(*model_, ctx, options, text);
    }
  }
  if (environment_.budget && !environment_.budget->charge(model_->stored_bytes()))
    throw Error(ErrorCode::budget,
                fmt::format("{} as {} takes {} bytes: the limit is {}", config_.model, config_.compression,
                            model_->stored_bytes(), environment_.budget->limit()),
                "use a smaller model, or fewer bits");
  all_.people.clear();
  if (data_.task->kind == TaskKind::text) {
    int64_t longest = 0;
    for (size_t p = 0; p < data_.people.size(); ++p)
      for (int64_t i = 0; i < history_size(p); ++i)
        longest = std::max(longest, codec_->count(pair_of(p, history_begin(p)[i]).completion));
    max_new_ = std::clamp<int64_t>(longest + 8, 16, std::min(kLongestAnswer, codec_->context() / 2));
  }
  const auto people = static_cast<int64_t>(data_.people.size());
  workers_ = std::make_unique<Workers>(
      std::vector<Model*>(static_cast<size_t>(Workers::count(environment_, people, lean())), model_.get()), max_tokens_,
      environment_, precision_of(config_.precision));
}

Workers& CellRun::learners() {
  if (!method_.full()) return *workers_;
  if (!full_workers_) {
    std::vector<Model*> models;
    for (int64_t i = 0; i < workers_->size(); ++i) {
      copies_.push_back(std::make_unique<Model>(trainable_copy(*model_, *environment_.kernels, environment_.budget)));
      models.push_back(copies_.back().get());
    }
    full_workers_ = std::make_unique<Workers>(models, max_tokens_, environment_, precision_of(config_.precision));
  }
  return *full_workers_;
}

const Item* CellRun::history_begin(size_t person) const {
  const std::vector<Item>& h = data_.people[person].history;
  return h.data() + (static_cast<int64_t>(h.size()) - history_size(person));
}

int64_t CellRun::history_size(size_t person) const {
  const auto n = static_cast<int64_t>(data_.people[person].history.size());
  return config_.history > 0 ? std::min(config_.history, n) : n;
}

// The base itself, or the model that the plan names.
void CellRun::open_embedder() {
  Worker& worker = workers_->at(0);
  if (config_.method.embedder.empty()) {
    embedder_ = std::make_unique<Embedder>(worker.transformer, worker.ctx, codec_->tokenizer());
    return;
  }
  EmbedderOptions options;
  options.budget = environment_.budget;
  embedder_ = std::make_unique<Embedder>(Embedder::open(resolve_model(config_.method.embedder), worker.ctx, options));
}

void CellRun::make_retrievers() {
  if (config_.method.retriever == "dense") open_embedder();
  for (size_t p = 0; p < data_.people.size(); ++p) {
    RetrieverOptions o;
    o.name = config_.method.retriever;
    o.seed = named_seed(config_.seed, data_.people[p].user_id);
    o.cosine = true;
    o.embed = [this](const std::vector<std::string>& texts) { return embedder_->embed(texts, embedder_->document_prompt()); };
    o.embed_query = [this](const std::vector<std::string>& texts) { return embedder_->embed(texts, embedder_->query_prompt()); };
    std::vector<Document> documents;
    for (int64_t i = 0; i < history_size(p); ++i)
      documents.push_back({data_.task->document(history_begin(p)[i]), history_begin(p)[i].date});
    retrievers_.push_back(make_retriever(o, documents));
  }
}

// What retrieval looks for. The pair of a task whose history holds no questions (citations) is none of its questions:
// its long field stands for it.
std::string CellRun::query_text(const std::string& input, const Item* item) const {
  if (!item) return data_.task->query(input);
  try {
    return data_.task->query(input);
  } catch (const Error&) {
    return item->fields[static_cast<size_t>(data_.task->long_field)];
  }
}

std::string CellRun::prompt(size_t person, const std::string& input, const std::string& query, int64_t limit,
                            int64_t k) const {
  if (k <= 0 || limit <= 0) return input;
  const std::vector<Hit> hits = retrievers_[person]->search(query, k, limit);
  const Item* items = history_begin(person);
  std::vector<std::string> texts;
  for (const Hit& h : hits) texts.push_back(items[h.index].fields[static_cast<size_t>(data_.task->long_field)]);
  Packing packing;
  packing.count = [this](std::string_view text) { return codec_->count(std::string(text)); };
  packing.example = [&](size_t i, const std::string& text) { return data_.task->example(items[hits[i].index], text); };
  packing.compose = [&](const std::vector<std::string>& examples) { return data_.task->compose(examples, input); };
  const int64_t answer = data_.task->kind == TaskKind::text ? max_new_ : 16;
  const int64_t room = codec_->context() - answer - 16;  // the answer's prefix, BOS and EOS
  return pack_prompt(texts, std::max<int64_t>(1, std::min(config_.method.prompt_tokens, room)), packing).prompt;
}

void CellRun::add_question(Exam& exam, size_t person, const std::string& id, const std::string& text,
                           const std::string& input, const std::string& gold) const {
  const Task& task = *data_.task;
  Question q;
  q.person = static_cast<int64_t>(person);
  std::vector<std::string> answers;
  if (task.kind != TaskKind::text) {
    const std::vector<std::string> labels = task.fixed_labels.empty() ? labels_of(task, input) : task.fixed_labels;
    for (const std::string& label : labels)
      if (std::find(exam.labels.begin(), exam.labels.end(), label) == exam.labels.end()) exam.labels.push_back(label);
    const auto at = std::find(labels.begin(), labels.end(), gold);
    if (!exam.by_likelihood) {
      q.labels = labels;
      answers = labels;
      if (at != labels.end()) q.gold = at - labels.begin();
    }
  } else {
    q.generate = !exam.by_likelihood;
  }
  if (answers.empty()) {
    answers = {gold};
    q.gold = 0;
  }
  PromptCodec::Question encoded = codec_->question(text, answers, q.generate ? max_new_ : 0);
  q.prompt = std::move(encoded.prompt);
  q.choices = std::move(encoded.answers);
  q.truncated = encoded.truncated;
  exam.truncated += q.truncated ? 1 : 0;
  exam.asked.push_back({id, gold});
  exam.questions.push_back(std::move(q));
}

Exam CellRun::queries(bool with_examples, int64_t k) const {
  Exam exam;
  for (size_t p = 0; p < data_.people.size(); ++p)
    for (const Query& q : data_.people[p].queries) {
      const std::string text =
          with_examples ? prompt(p, q.input, query_text(q.input, nullptr), history_size(p), k) : q.input;
      add_question(exam, p, q.id, text, q.input, q.output);
    }
  return exam;
}

Exam CellRun::held_out_questions(int64_t k) const {
  Exam exam;
  // Histories of some tasks (citations) hold no answers of the kind that the questions ask for.
  for (size_t p = 0; p < data_.people.size() && data_.task->kind != TaskKind::text; ++p) {
    if (history_size(p) == 0) continue;
    const std::vector<std::string> labels = labels_of(*data_.task, any_input(p));
    exam.by_likelihood =
        std::find(labels.begin(), labels.end(), pair_of(p, history_begin(p)[0]).completion) == labels.end();
    break;
  }
  for (size_t p = 0; p < data_.people.size(); ++p) {
    const int64_t n = history_size(p), known = n - held_out(p);
    for (int64_t i = known; i < n; ++i) {
      const Item& item = history_begin(p)[i];
      const Pair pair = pair_of(p, item);
      const std::string text =
          method_.retrieves ? prompt(p, pair.prompt, query_text(pair.prompt, &item), known, k) : pair.prompt;
      add_question(exam, p, item.id, text, any_input(p), pair.completion);
    }
  }
  return exam;
}

// People without a history learn nothing and are left out.
std::vector<PersonPairs> CellRun::training_pairs(bool all_history, int64_t k) const {
  std::vector<PersonPairs> list(data_.people.size());
  for (size_t p = 0; p < data_.people.size(); ++p) {
    PersonPairs& person = list[p];
    person.user_id = data_.people[p].user_id;
    person.seed = named_seed(config_.seed, person.user_id);
    const int64_t n = history_size(p) - (all_history ? 0 : held_out(p));
    std::vector<std::vector<int32_t>> sequences;
    std::vector<int32_t> from;
    for (int64_t i = 0; i < n; ++i) {
      const Item& item = history_begin(p)[i];
      const Pair pair = pair_of(p, item);
      const std::string text =
          method_.retrieves ? prompt(p, pair.prompt, query_text(pair.prompt, &item), i, k) : pair.prompt;
      PromptCodec::Sequence s = codec_->pair(text, pair.completion);
      person.truncated += s.truncated ? 1 : 0;
      sequences.push_back(std::move(s.ids));
      from.push_back(s.learn_from);
    }
    if (!sequences.empty()) person.data = Dataset::from_ids(std::move(sequences), std::move(from), codec_->context());
  }
  return list;
}

// stops: ascending. Without pairs the base answers at stop 0.
Round CellRun::learn_and_answer(const std::vector<PersonPairs>& pairs, const std::vector<int64_t>& stops, double lr,
                                const Exam& exam, const std::string& phase) {
  const auto people = static_cast<int64_t>(data_.people.size());
  Workers& workers = pairs.empty() ? *workers_ : learners();
  Round round;
  for (const int64_t s : stops) round.stops.push_back({s, std::vector<Answer>(exam.questions.size())});
  // Questions of person p: [first[p], first[p + 1]).
  std::vector<size_t> first(static_cast<size_t>(people) + 1, exam.questions.size());
  for (size_t i = exam.questions.size(); i-- > 0;) first[static_cast<size_t>(exam.questions[i].person)] = i;
  for (auto p = static_cast<size_t>(people); p-- > 0;) first[p] = std::min(first[p], first[p + 1]);

  const int64_t per_group =
      pairs.empty() ? std::max<int64_t>(1, people / (4 * workers.size())) : group_size(pairs, workers.size());
  round.groups = (people + per_group - 1) / per_group;
  std::vector<std::vector<double>> losses(static_cast<size_t>(people));
  std::vector<int64_t> parameters(static_cast<size_t>(round.groups), 0);
  std::atomic<int64_t> done{0};
  const int64_t total = people * std::max<int64_t>(1, stops.empty() ? 0 : stops.back());
  const double train_before = workers.train_s(),
               answer_before = workers.answer_s() + (method_.full() ? workers_->answer_s() : 0);
  const AnswerOptions how = answer_options();
  const LearnOptions learn{lr, config_.method.batch, config_.seed};

  workers.run(round.groups, [&](Worker& worker, int64_t index, int64_t group) {
    const auto begin = static_cast<size_t>(group * per_group),
               end = static_cast<size_t>(std::min(people, (group + 1) * per_group));
    std::vector<const PersonPairs*> learning;
    std::vector<size_t> who;
    for (size_t p = begin; p < end && !pairs.empty(); ++p)
      if (pairs[p].data.size() > 0) {
        learning.push_back(&pairs[p]);
        who.push_back(p);
      }
    std::unique_ptr<GroupLearner> learner;
    std::vector<Adapter*> adapters(static_cast<size_t>(people), nullptr);
    if (!learning.empty()) {
      learner = std::make_unique<GroupLearner>(worker, method_, config_.method, *model_, learn, learning);
      for (size_t i = 0; i < who.size(); ++i) adapters[who[i]] = learner->adapter(i);
      parameters[static_cast<size_t>(group)] = learner->parameters();
    }
    // Whoever has nothing to learn from is answered by the base, also where the worker's model is somebody else's copy.
    Worker& answering = learner ? worker : workers_->at(index);
    int64_t at = 0;
    for (Stop& stop : round.stops) {
      while (learner && learner->step() < stop.step) {
        const int64_t next = std::min(stop.step, learner->step() + 16);
        learner->train_to(next);
        workers.progress(phase, done += (next - at) * static_cast<int64_t>(end - begin), total);
        at = next;
      }
      answer_questions(answering, *codec_, exam.questions, first[begin], first[end], adapters, how, stop.answers);
    }
    for (size_t i = 0; i < who.size(); ++i) losses[who[i]] = learner->losses(i);
    if (!learner) workers.progress(phase, done += static_cast<int64_t>(end - begin), total);
  });
  for (std::vector<double>& l : losses)
    if (!l.empty()) round.losses.push_back(std::move(l));
  for (const int64_t n : parameters) round.parameters = std::max(round.parameters, n);
  round.train_s = workers.train_s() - train_before;
  round.answer_s = workers.answer_s() + (method_.full() ? workers_->answer_s() : 0) - answer_before;
  return round;
}

Marks CellRun::mark(const Exam& exam, const std::vector<Answer>& answers) const {
  Marks m;
  std::vector<std::string> predictions, golds;
  std::vector<double> sums(data_.people.size(), 0), counts(data_.people.size(), 0);
  int64_t known = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const Question& q = exam.questions[i];
    predictions.push_back(answers[i].text);
    golds.push_back(exam.asked[i].gold);
    double logprob = 0;
    if (q.gold >= 0) {
      const auto gold = static_cast<size_t>(q.gold);
      logprob = answers[i].logprobs[gold] / (exam.by_likelihood ? double(q.choices[gold].size()) : 1.0);
      m.logprob += logprob;
      ++known;
    }
    const double unit = exam.by_likelihood ? logprob : unit_score(*data_.task, predictions.back(), golds.back());
    m.unit += unit;
    sums[static_cast<size_t>(q.person)] += unit;
    counts[static_cast<size_t>(q.person)] += 1;
  }
  if (!answers.empty()) m.unit /= double(answers.size());
  if (known > 0) m.logprob /= double(known);
  for (size_t p = 0; p < sums.size(); ++p) m.per_person.push_back(counts[p] > 0 ? sums[p] / counts[p] : std::nan(""));
  if (exam.by_likelihood) {
    m.score = m.unit;
  } else if (!answers.empty()) {
    m.metrics = score(*data_.task, predictions, golds, exam.labels);
    m.score = m.metrics.at(data_.task->primary);
  }
  return m;
}

// Over people and over the steps [from, to).
double CellRun::mean_loss(const Round& round, int64_t from, int64_t to) const {
  double sum = 0;
  int64_t n = 0;
  for (const std::vector<double>& l : round.losses)
    for (auto s = static_cast<size_t>(from); s < std::min(static_cast<size_t>(to), l.size()); ++s, ++n) sum += l[s];
  return n > 0 ? sum / double(n) : 0;
}

void CellRun::curve_rows(const Round& round, const Exam& exam, const Choice& choice, bool heldout) {
  int64_t before = 0;
  for (const Stop& stop : round.stops) {
    const Marks m = mark(exam, stop.answers);
    Json per_person = Json::array();
    for (const double x : m.per_person) per_person.push_back(std::isnan(x) ? Json() : Json(x));
    Json row = {{"step", stop.step},        {"samples", method_.learns ? stop.step * config_.method.batch : 0},
                {"train_loss", nullptr},    {"score", m.score},
                {"per_person", per_person}, {"heldout", heldout}};
    if (stop.step > before) row["train_loss"] = mean_loss(round, before, stop.step);
    if (exam.by_likelihood) row["score_is"] = "mean log-probability per token";
    if (heldout) row["logprob"] = m.logprob;
    if (method_.retrieves) row["k"] = choice.k;
    if (method_.learns) row["lr"] = choice.lr;
    curve_.push_back(std::move(row));
    before = stop.step;
  }
}

// On held-out history, once for all people: the best mean unit score; of equals the likelier gold answers; then the
// cheaper: fewer steps, fewer examples, the earlier rate.
Choice CellRun::choose() {
  Choice best{ks_.empty() ? 0 : ks_[0], steps_.empty() ? 0 : steps_[0], rates_.empty() ? 0 : rates_[0]};
  const std::vector<int64_t> ks = ks_.empty() ? std::vector<int64_t>{0} : ks_;
  const std::vector<double> rates = rates_.empty() ? std::vector<double>{0} : rates_;
  const std::vector<int64_t> stops = steps_.empty() ? std::vector<int64_t>{0} : steps_;
  if (ks.size() * rates.size() * stops.size() == 1) return best;
  struct Tried {
    Choice choice;
    double unit, logprob;
    size_t rate;
  };
  std::vector<Tried> tried;
  for (const int64_t k : ks) {
    const Exam exam = held_out_questions(k);
    if (exam.questions.empty())
      throw Error(ErrorCode::input, "cell: nobody has two items of history to choose k, steps or lr on",
                  "give one value of each, or a longer history");
    const std::vector<PersonPairs> pairs = method_.learns ? training_pairs(false, k) : std::vector<PersonPairs>();
    for (size_t r = 0; r < rates.size(); ++r) {
      const Round round = learn_and_answer(pairs, stops, rates[r], exam, "choose");
      curve_rows(round, exam, {k, 0, rates[r]}, true);
      for (const Stop& stop : round.stops) {
        const Marks m = mark(exam, stop.answers);
        tried.push_back({{k, stop.step, rates[r]}, m.unit, m.logprob, r});
      }
    }
  }
  const auto better = [](const Tried& a, const Tried& b) {
    if (a.unit != b.unit) return a.unit > b.unit;
    if (a.logprob != b.logprob) return a.logprob > b.logprob;
    if (a.choice.step != b.choice.step) return a.choice.step < b.choice.step;
    if (a.choice.k != b.choice.k) return a.choice.k < b.choice.k;
    return a.rate < b.rate;
  };
  return std::min_element(tried.begin(), tried.end(), better)->choice;
}

Json CellRun::baseline_metrics() const {
  Json all = Json::object();
  std::vector<std::string> golds, labels;
  for (const Person& p : data_.people)
    for (const Query& q : p.queries) {
      golds.push_back(q.output);
      for (const std::string& label : labels_of(*data_.task, q.input))
        if (std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
    }
  for (const Baseline& b : baselines(data_, config_.history)) {
    std::vector<std::string> flat;
    Json per_person = Json::array();
    for (size_t p = 0; p < data_.people.size(); ++p) {
      double sum = 0;
      for (size_t q = 0; q < data_.people[p].queries.size(); ++q) {
        flat.push_back(b.predictions[p][q]);
        sum += unit_score(*data_.task, flat.back(), data_.people[p].queries[q].output);
      }
      per_person.push_back(sum / double(data_.people[p].queries.size()));
    }
    Json j = Json::object();
    for (const auto& [name, value] : score(*data_.task, flat, golds, labels)) j[name] = value;
    j["per_person"] = per_person;
    all[b.name] = j;
  }
  return all;
}

Json CellRun::cost(const Exam& exam, const Round& round, double total_steps) {
  Worker& worker = workers_->at(0);
  Json c = Json::object();
  const std::vector<int32_t>& prompt = exam.questions.front().prompt;
  const auto n = static_cast<int64_t>(prompt.size());
  const int64_t decode = std::max<int64_t>(1, std::min<int64_t>(16, codec_->context() - n));
  double ttft = 0, step_s = 0;
  {
    // A fresh adapter costs what a trained one does.
    std::unique_ptr<Adapter> adapter;
    if (method_.learns && method_.adapter)
      adapter =
          std::make_unique<Adapter>(*model_, worker.ctx.kernels, method_.adapter(config_.method), worker.ctx.budget);
    for (int warm = 0; warm < 2; ++warm) {
      Generator generator(worker.transformer, worker.ctx, std::min(codec_->context(), n + decode), adapter.get());
      const double t0 = cell_clock();
      const float* logits = generator.feed(prompt.data(), n);
      auto next = static_cast<int32_t>(std::max_element(logits, logits + model_->config.vocab_size) - logits);
      const double t1 = cell_clock();
      for (int64_t i = 0; i < decode && n + i < codec_->context(); ++i) {
        logits = generator.feed(&next, 1);
        next = static_cast<int32_t>(std::max_element(logits, logits + model_->config.vocab_size) - logits);
      }
      ttft = t1 - t0;
      step_s = (cell_clock() - t1) / double(decode);
    }
  }
  const auto people = double(data_.people.size());
  const int64_t parameter_bytes = round.parameters * int64_t{sizeof(float)};
  c["load_s"] = load_s_;
  c["ttft_s"] = ttft;
  c["prefill_tok_s"] = double(n) / ttft;
  c["decode_tok_s"] = 1 / step_s;
  c["train_s"] = round.train_s;
  c["answer_s"] = round.answer_s;
  c["samples_per_hour"] =
      round.train_s > 0 ? people * double(config_.method.batch) * total_steps / round.train_s * 3600 : 0;
  c["step_s"] = total_steps > 0 ? round.train_s / total_steps : 0;
  c["total_s"] = cell_clock() - started_;
  c["peak_rss_bytes"] = peak_rss();
  c["model_bytes"] = model_->stored_bytes();
  c["bits_per_weight"] = double(model_->stored_bytes()) * 8 / double(model_->parameters());
  c["adapter_bytes"] = method_.full() ? 0 : parameter_bytes;  // of one person
  c["optimizer_bytes"] = 2 * parameter_bytes;
  c["gradient_bytes"] = parameter_bytes;
  c["kv_bytes"] = workers_->kv_bytes() + (full_workers_ ? full_workers_->kv_bytes() : 0);
  c["activation_bytes"] = workers_->activation_bytes() + (full_workers_ ? full_workers_->activation_bytes() : 0);
  c["threads"] = environment_.threads;
  c["isa"] = tier_name(environment_.kernels->tier);
  return c;
}

CellResult CellRun::run() {
  CellResult result;
  const Choice chosen = choose();
  const Exam exam = queries(method_.retrieves, chosen.k);
  std::vector<PersonPairs> pairs;
  if (method_.learns) pairs = training_pairs(true, chosen.k);
  std::vector<int64_t> stops{chosen.step};
  if (method_.learns)
    for (const int64_t s : config_.curve)
      if (s >= 0) stops.push_back(s);
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  const Round round = learn_and_answer(pairs, stops, chosen.lr, exam, method_.learns ? "learn" : "answer");
  curve_rows(round, exam, chosen, false);
  const Stop& final_stop =
      *std::find_if(round.stops.begin(), round.stops.end(), [&](const Stop& s) { return s.step == chosen.step; });
  const Marks marks = mark(exam, final_stop.answers);

  for (size_t i = 0; i < exam.questions.size(); ++i) {
    const Question& q = exam.questions[i];
    const Answer& a = final_stop.answers[i];
    Json scores;
    for (size_t l = 0; l < q.labels.size(); ++l) scores[q.labels[l]] = a.logprobs[l];
    result.predictions.push_back({{"id", exam.asked[i].id},
                                  {"user_id", data_.people[static_cast<size_t>(q.person)].user_id},
                                  {"gold", exam.asked[i].gold},
                                  {"pred", a.text},
                                  {"scores", scores},
                                  {"seed", config_.seed}});
  }

  // How hard the questions are for the base itself: nats of the gold answer, its closing quote included.
  double nats = 0;
  int64_t known = 0;
  {
    const bool same = !method_.learns && !method_.retrieves;
    Exam plain;
    Round base;
    if (!same) {
      plain = queries(false, 0);
      for (Question& q : plain.questions) {  // only the gold answer is of interest
        if (q.gold >= 0)
          q.choices = {q.choices[static_cast<size_t>(q.gold)]};
        else
          q.choices.clear();
        q.gold = q.gold >= 0 ? 0 : -1;
        q.labels.clear();
        q.generate = false;
      }
      base = learn_and_answer({}, {0}, 0, plain, "difficulty");
    }
    const Exam& asked = same ? exam : plain;
    const std::vector<Answer>& answers = same ? final_stop.answers : base.stops.front().answers;
    for (size_t i = 0; i < answers.size(); ++i) {
      if (asked.questions[i].gold < 0) continue;
      nats -= answers[i].logprobs[static_cast<size_t>(asked.questions[i].gold)];
      ++known;
    }
  }

  Json m = Json::object();
  m["schema"] = "thimble.cell_metrics/1";
  m["task"] = data_.task->name;
  m["primary"] = data_.task->primary;
  m["people"] = data_.people.size();
  m["n"] = exam.questions.size();
  m["metrics"] = Json::object();
  for (const std::string& name : metric_names(*data_.task)) m["metrics"][name] = marks.metrics.at(name);
  Json per_person = Json::array();
  for (size_t p = 0; p < data_.people.size(); ++p)
    per_person.push_back(
        {{"user_id", data_.people[p].user_id}, {"n", data_.people[p].queries.size()}, {"score", marks.per_person[p]}});
  m["per_person"] = per_person;
  m["baselines"] = baseline_metrics();
  const Difficulty d = difficulty(data_, config_.history);
  m["difficulty"] = {{"label_entropy_bits", d.label_entropy_bits},
                     {"classes", d.classes},
                     {"majority", d.majority},
                     {"neighbour", d.neighbour},
                     {"answer_words", d.answer_words},
                     {"base_nll", known > 0 ? Json(nats / double(known)) : Json()}};
  m["possible"] = nullptr;
  if (!possible_.empty()) {
    m["possible"] = Json::array();
    for (const Possible& p : possible_)
      m["possible"].push_back({{"metric", p.metric}, {"query", p.query}, {"history", p.history}, {"latent", p.latent}});
  }
  m["chosen"] = {{"k", method_.retrieves ? Json(chosen.k) : Json()},
                 {"steps", method_.learns ? Json(chosen.step) : Json()},
                 {"lr", method_.learns ? Json(chosen.lr) : Json()}};
  if (method_.learns) {
    int64_t total_pairs = 0, truncated = 0;
    for (const PersonPairs& p : pairs) {
      total_pairs += p.data.size();
      truncated += p.truncated;
    }
    m["train"] = {{"steps", chosen.step},
                  {"samples", chosen.step * config_.method.batch},
                  {"pairs", total_pairs},
                  {"first_loss", mean_loss(round, 0, 1)},
                  {"last_loss", mean_loss(round, chosen.step - 1, chosen.step)},
                  {"trainable", round.parameters},
                  {"truncated", truncated}};
  } else {
    m["train"] = nullptr;
  }
  m["truncated"] = exam.truncated;
  m["compression"] = compressed_;
  result.metrics = std::move(m);
  result.curve = std::move(curve_);
  result.cost = cost(exam, round, double(stops.back()));
  return result;
}

CellEstimate CellRun::estimate() {
  CellEstimate e;
  e.load_s = cell_clock() - started_;
  const auto people = static_cast<int64_t>(data_.people.size());
  const int64_t k = ks_.empty() ? 0 : ks_.back();
  for (const Person& p : data_.people) e.queries += static_cast<int64_t>(p.queries.size());
  const bool chooses =
      (ks_.empty() ? 1 : ks_.size()) * (rates_.empty() ? 1 : rates_.size()) * (steps_.empty() ? 1 : steps_.size()) > 1;
  const int64_t curve = method_.learns ? static_cast<int64_t>(config_.curve.size()) : 0;
  int64_t held = 0;
  for (size_t p = 0; p < data_.people.size(); ++p) held += held_out(p);
  const int64_t runs = static_cast<int64_t>((ks_.empty() ? 1 : ks_.size()) * (rates_.empty() ? 1 : rates_.size()));
  const int64_t exams = e.queries * (1 + curve + (method_.learns || method_.retrieves ? 1 : 0));
  const int64_t held_exams = chooses ? held * runs * std::max<int64_t>(1, static_cast<int64_t>(steps_.size())) : 0;
  if (method_.learns) {
    int64_t last = steps_.back();
    for (const int64_t s : config_.curve) last = std::max(last, s);
    e.steps = last + (chooses ? steps_.back() * runs : 0);
  }
  // Pairs and questions of a few people; every worker will hold as much as this one.
  const int64_t sample = std::min<int64_t>(people, 2);
  data_.people.resize(static_cast<size_t>(sample));
  const Exam exam = queries(method_.retrieves, k);
  Workers& workers = method_.learns ? learners() : *workers_;
  Worker& worker = workers.at(0);
  int64_t parameters = 0, per_group = 1;
  std::vector<Adapter*> adapters;
  std::unique_ptr<GroupLearner> learner;
  if (method_.learns) {
    std::vector<PersonPairs> pairs = training_pairs(true, k);
    pairs.erase(std::remove_if(pairs.begin(), pairs.end(), [](const PersonPairs& p) { return p.data.size() == 0; }),
                pairs.end());
    if (!pairs.empty()) {
      // The whole cell's groups, of which these people stand for all.
      per_group = group_size(std::vector<PersonPairs>(static_cast<size_t>(people), pairs[0]), workers.size());
      std::vector<PersonPairs> group(static_cast<size_t>(per_group), pairs[0]);
      std::vector<const PersonPairs*> pointers;
      for (size_t i = 0; i < group.size(); ++i) {
        group[i] = pairs[i % pairs.size()];
        pointers.push_back(&group[i]);
      }
      learner = std::make_unique<GroupLearner>(worker, method_, config_.method, *model_,
                                               LearnOptions{rates_[0], config_.method.batch, config_.seed}, pointers);
      parameters = learner->parameters();
      learner->train_to(1);
      const double t = cell_clock();
      int64_t steps = 0;
      while (steps < 5 && cell_clock() - t < 0.5) learner->train_to(1 + ++steps);
      const double groups = std::ceil(double(people) / double(per_group));
      e.step_s = (cell_clock() - t) / double(steps) * groups / double(workers.size());
      for (int64_t p = 0; p < sample; ++p) adapters.push_back(learner->adapter(static_cast<size_t>(p) % group.size()));
      learner->train_to(learner->step());
    }
  }
  std::vector<Answer> answers(exam.questions.size());
  const double t = cell_clock();
  const size_t asked = std::min<size_t>(exam.questions.size(), 32);
  answer_questions(worker, *codec_, exam.questions, 0, asked, adapters, answer_options(), answers);
  e.answer_s = (cell_clock() - t) / double(asked) / double(workers.size());
  e.queries = exams + held_exams;

  // Parameters, gradients and two moments; the trainable copy of full tuning stands beside the base.
  constexpr int64_t kProgram = int64_t{48} << 20;  // code, tables, the task's texts, heap
  const int64_t learned = 4 * parameters * int64_t{sizeof(float)} * per_group;
  e.budget_bytes =
      model_->stored_bytes() + workers.size() * (workers.activation_bytes() + workers.kv_bytes() + learned);
  e.peak_bytes = kProgram + e.budget_bytes + (compression_.method == CompressMethod::none ? 0 : model_->file_bytes);
  return e;
}

}  // namespace

double CellEstimate::total_s() const { return load_s + double(steps) * step_s + double(queries) * answer_s; }

CellResult run_cell(const CellConfig& config, const CellEnvironment& environment) {
  return CellRun(config, environment, false).run();
}

CellEstimate estimate_cell(const CellConfig& config, const CellEnvironment& environment) {
  return CellRun(config, environment, true).estimate();
}

}  // namespace thimble::lab
