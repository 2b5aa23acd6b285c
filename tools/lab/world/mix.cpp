#include "tools/lab/world/mix.h"

#include <algorithm>

#include "rag/retriever.h"

namespace thimble::lab {
namespace {

constexpr uint64_t kSequenceStream = uint64_t{0x21} << 56, kPersonStream = uint64_t{0x22} << 56, kGateStream = uint64_t{0x23} << 56;
const AnswerFormat kFormat;

template <class List>
auto weighted(Philox& rng, const List& list) {
  double total = 0;
  for (const auto& [value, weight] : list) total += weight;
  double at = rng.uniform() * total;
  for (const auto& [value, weight] : list)
    if ((at -= weight) < 0) return value;
  return std::prev(list.end())->first;
}

// A question and its answer about a fresh scene.
struct Asked {
  std::string question, answer;
};
Asked ask(const TextDials& d, const Rules& r, Side side, const std::vector<uint8_t>& allowed, Philox& rng) {
  if (is_task(*d.task, "LaMP_1")) {
    const Citation c = draw_citation(rng, r, d, side, false);
    return {citation_question(c), c.gold == 0 ? "[1]" : "[2]"};
  }
  const Scene s = draw_scene(rng, d, side, allowed);
  return {question(d, s), rule_answer(r, s, d)};
}

std::vector<Item> history(const TextDials& d, const Rules& r, const std::vector<uint8_t>& allowed, int64_t n, Philox& rng) {
  std::vector<Item> items;
  const std::vector<uint8_t> topics = is_task(*d.task, "LaMP_1") ? liked_topics(r) : allowed;
  for (int64_t i = 0; i < n; ++i) {
    const Scene s = draw_scene(rng, d, Side::history, topics);
    items.push_back({"", "", item_fields(*d.task, s, is_task(*d.task, "LaMP_1") ? "" : noisy_answer(r, s, d, rng))});
  }
  return items;
}

// The examples that a retriever finds for a question, in LaMP's prompt.
std::string with_examples(const Task& task, const std::vector<Item>& items, const std::string& input, int64_t k, const std::string& retriever,
                          uint64_t seed, std::vector<int64_t>* found = nullptr) {
  std::vector<Document> documents;
  for (const Item& item : items) documents.push_back({task.document(item), item.date});
  RetrieverOptions options;
  options.name = retriever;
  options.seed = seed;
  std::vector<std::string> examples;
  for (const Hit& hit : make_retriever(options, documents)->search(task.query(input), k)) {
    const Item& item = items[static_cast<size_t>(hit.index)];
    examples.push_back(task.example(item, item.fields[static_cast<size_t>(task.long_field)]));
    if (found) found->push_back(hit.index);
  }
  return task.compose(examples, input);
}

// What later turns repeat of a question: its marker and text, without the instruction.
std::string short_form(const Task& task, const std::string& input) {
  if (is_task(task, "LaMP_1") || is_task(task, "LaMP_7")) return input;
  const std::string payload = task.query(input);
  const size_t text = input.rfind(payload), marker = input.rfind(' ', text - 2);
  return input.substr(marker + 1);
}

}  // namespace

PretrainMix::PretrainMix(Tokenizer tokenizer, MixOptions options, uint64_t seed)
    : tokenizer_(std::move(tokenizer)), options_(std::move(options)), seed_(seed) {
  for (int i = 0; i < kAuthors; ++i) {
    Philox rng(seed_, kPersonStream | static_cast<uint64_t>(i));
    WorldDials w;
    w.task = "LaMP_4";
    w.keys = 1 + i % 2;  // half of them with one fixed style
    known_.push_back(draw_rules(rng, text_dials(w)));
  }
}

std::vector<PretrainMix::Piece> PretrainMix::pieces(int64_t k) const {
  Philox rng(seed_, kSequenceStream | static_cast<uint64_t>(k));
  WorldDials w;
  w.task = weighted(rng, options_.tasks);
  const Task& task = find_task(w.task);
  if (is_task(task, "LaMP_2") && rng.uniform() < options_.names) w.key = "name";
  const bool rule = is_task(task, "LaMP_3") || (is_task(task, "LaMP_2") && w.key == "topic");
  // 64 names of 32 people are too many facts to be worth knowing: who they are said of are strangers.
  const bool known = w.key != "name" && rng.uniform() < (rule ? options_.rule_known : options_.known);
  const auto author = static_cast<size_t>(rng.below(kAuthors));
  // Dials of the text. Known people have the usual ones, so that what the weights learn of them is one set of rules.
  if (is_task(task, "LaMP_3")) w.keys = weighted(rng, std::vector<std::pair<int, double>>{{1, 0.45}, {2, 0.25}, {3, 0.2}, {4, 0.1}});
  if (task.kind == TaskKind::text) w.keys = known ? 1 + static_cast<int64_t>(author % 2) : 1 + static_cast<int64_t>(rng.below(2));
  if (!known) {
    if (is_task(task, "LaMP_2")) w.classes = weighted(rng, std::vector<std::pair<int, double>>{{4, 0.15}, {8, 0.2}, {16, 0.65}});
    if (rng.uniform() < 0.15) w.noise = 0.1 + 0.2 * rng.uniform();
    if (w.key != "name" && rng.uniform() < 0.15) w.overlap = "latent";
  }
  enum Kind { kTurns, kPacked, kSingle, kPair };
  const MixOptions& o = options_;
  // Telling from an author's titles which reference fits takes many examples of it, and nothing else teaches it.
  const bool cites = is_task(task, "LaMP_1");
  using Kinds = std::vector<std::pair<Kind, double>>;
  const Kinds kinds = cites             ? Kinds{{kTurns, 0.15}, {kPacked, 0.6}, {kSingle, 0.15}, {kPair, 0.1}}
                      : rule            ? Kinds{{kTurns, o.rule_turns}, {kPacked, o.rule_packed}, {kSingle, o.rule_single}}
                      : w.key == "name" ? Kinds{{kTurns, o.name_turns}, {kPacked, o.name_packed}, {kSingle, o.name_single}}
                                        : Kinds{{kTurns, o.turns}, {kPacked, o.packed}, {kSingle, o.single}, {kPair, o.pair}};
  const Kind kind = weighted(rng, kinds);
  // Strangers' turns are about few things, so that earlier turns say something about later ones.
  if (kind == kTurns && !known && is_task(task, "LaMP_2")) w.keys = 2 + static_cast<int64_t>(rng.below(6));
  const TextDials d = text_dials(w);
  Rules rules;
  std::vector<uint8_t> allowed;
  if (known) {
    rules = known_[author];
  } else {
    rules = draw_rules(rng, d);
    allowed = draw_allowed(rng, d);
  }
  const auto text_weight = static_cast<float>(options_.text_weight);
  const auto answer_weight = static_cast<float>(options_.answer_weight * (task.kind == TaskKind::text ? 0.5 : cites ? 2 : 1));
  std::vector<Piece> out;
  const std::string name = known ? "for " + std::string(kAuthorWords[author]) + ": " : "";
  const auto answer = [&](const std::string& text) {
    out.push_back({kFormat.prefix, text_weight});
    out.push_back({text, answer_weight});
    out.push_back({kFormat.suffix, text_weight});
  };
  if (kind == kPair && task.fields.size() > 0 && (is_task(task, "LaMP_1") || is_task(task, "LaMP_7"))) {
    const std::vector<Item> items = history(d, rules, allowed, 1, rng);
    const Pair pair = task.pair(items[0], "", rng.next_u64());
    out.push_back({name + pair.prompt, text_weight});
    answer(pair.completion);
  } else if (kind == kTurns) {
    const auto turns = rule ? 6 + rng.below(7) : 3 + rng.below(task.kind == TaskKind::text ? 3 : 6);
    for (uint64_t t = 0; t < turns; ++t) {
      const Asked a = ask(d, rules, t + 1 == turns ? Side::query : Side::history, allowed, rng);
      out.push_back({t == 0 ? name + a.question : "\n" + short_form(task, a.question), text_weight});
      answer(a.answer);
    }
  } else if (kind == kPacked) {
    static const std::vector<std::pair<int, double>> kLengths = {{8, 0.2}, {16, 0.3}, {32, 0.3}, {64, 0.2}};
    const std::vector<Item> items = history(d, rules, allowed, weighted(rng, kLengths), rng);
    Asked a = ask(d, rules, Side::query, allowed, rng);
    // A name that the history holds, most of the time: otherwise nothing could be copied.
    if (d.by_name && rng.uniform() < 0.7)
      for (int tries = 0; tries < 100; ++tries) {
        const std::string text = task.query(a.question);
        const bool shown = std::any_of(items.begin(), items.end(), [&](const Item& item) {
          for (int n = 0; n < kNames; ++n)
            if (text.find(name_word(n)) != std::string::npos) return item.fields[0].find(name_word(n)) != std::string::npos;
          return false;
        });
        if (shown) break;
        a = ask(d, rules, Side::query, allowed, rng);
      }
    const bool random = rng.uniform() < options_.random_examples;
    const auto examples = weighted(rng, options_.k);
    out.push_back({name + with_examples(task, items, a.question, examples, random ? "random" : options_.retriever, rng.next_u64()), text_weight});
    answer(a.answer);
  } else {
    const Asked a = ask(d, rules, Side::query, allowed, rng);
    out.push_back({name + a.question, text_weight});
    answer(a.answer);
  }
  return out;
}

void PretrainMix::make(int64_t k, WeightedSequence& out) const {
  out.ids.assign(1, tokenizer_.bos_id());
  out.weights.assign(1, 0.0f);
  for (const Piece& piece : pieces(k))
    for (int32_t id : tokenizer_.encode(piece.text, {false, false})) {
      out.ids.push_back(id);
      out.weights.push_back(piece.weight);
    }
  out.ids.push_back(tokenizer_.eos_id());
  out.weights.push_back(static_cast<float>(options_.text_weight));
  // What does not fit loses its beginning: the answer stands at the end.
  const auto limit = static_cast<size_t>(options_.ctx);
  if (out.ids.size() > limit) {
    const auto cut = static_cast<std::ptrdiff_t>(out.ids.size() - limit);
    out.ids.erase(out.ids.begin() + 1, out.ids.begin() + 1 + cut);
    out.weights.erase(out.weights.begin() + 1, out.weights.begin() + 1 + cut);
  }
}

std::string PretrainMix::show(int64_t k) const {
  std::string text;
  for (const Piece& piece : pieces(k)) text += piece.weight > options_.text_weight ? "{" + piece.text + "}" : piece.text;
  return text;
}

MixQuestion PretrainMix::known_rating(int attributes, int64_t i) const {
  Philox rng(seed_, kGateStream | uint64_t{1} << 48 | static_cast<uint64_t>(attributes) << 40 | static_cast<uint64_t>(i));
  WorldDials w;
  w.task = "LaMP_3";
  w.keys = attributes;
  const TextDials d = text_dials(w);
  const size_t author = static_cast<size_t>(i) % kAuthors;
  const Asked a = ask(d, known_[author], Side::query, {}, rng);
  return {"for " + std::string(kAuthorWords[author]) + ": " + a.question + kFormat.prefix, a.answer, labels_of(*d.task, a.question)};
}

MixQuestion PretrainMix::fact(int64_t n, int k, int64_t i, bool* neighbour_right) const {
  Philox rng(seed_, kGateStream | uint64_t{2} << 48 | static_cast<uint64_t>(i));
  WorldDials w;
  w.task = "LaMP_2";
  w.key = "name";
  const TextDials d = text_dials(w);
  const Rules rules = draw_rules(rng, d);
  const std::vector<Item> items = history(d, rules, {}, n, rng);
  const Asked a = ask(d, rules, Side::query, {}, rng);
  std::vector<int64_t> found;
  const std::string prompt = with_examples(*d.task, items, a.question, k, options_.retriever, 0, &found);
  *neighbour_right = !found.empty() && items[static_cast<size_t>(found[0])].fields[1] == a.answer;
  return {prompt + kFormat.prefix, a.answer, labels_of(*d.task, a.question)};
}

MixQuestion PretrainMix::known_tag(int64_t i) const {
  Philox rng(seed_, kGateStream | uint64_t{4} << 48 | static_cast<uint64_t>(i));
  WorldDials w;
  w.task = "LaMP_2";
  const TextDials d = text_dials(w);
  const size_t author = static_cast<size_t>(i) % kAuthors;
  const Asked a = ask(d, known_[author], Side::query, {}, rng);
  return {"for " + std::string(kAuthorWords[author]) + ": " + a.question + kFormat.prefix, a.answer, labels_of(*d.task, a.question)};
}

MixQuestion PretrainMix::citation(int k, int64_t i) const {
  Philox rng(seed_, kGateStream | uint64_t{5} << 48 | static_cast<uint64_t>(i));
  WorldDials w;
  w.task = "LaMP_1";
  const TextDials d = text_dials(w);
  const Rules rules = draw_rules(rng, d);
  const std::vector<Item> items = history(d, rules, {}, 64, rng);
  const Asked a = ask(d, rules, Side::query, {}, rng);
  return {with_examples(*d.task, items, a.question, k, options_.retriever, 0) + kFormat.prefix + "[", a.answer.substr(1, 1), {"1", "2"}};
}

MixQuestion PretrainMix::stranger(const std::string& task, int64_t i) const {
  Philox rng(seed_, kGateStream | uint64_t{3} << 48 | static_cast<uint64_t>(i));
  WorldDials w;
  w.task = task;
  const TextDials d = text_dials(w);
  const Rules rules = draw_rules(rng, d);
  const Asked a = ask(d, rules, Side::query, {}, rng);
  return {a.question + kFormat.prefix, a.answer, labels_of(*d.task, a.question)};
}

}  // namespace thimble::lab
