#include "tools/lab/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "tensor/sha256.h"
#include "tools/lab/metrics.h"
#include "tools/lab/world/population.h"

namespace thimble::lab {
namespace {

constexpr int kWorldVersion = 1;  // a change of anything below or in world/ that changes texts raises it
constexpr uint64_t kSalt = 0x6c61625f776f726c;

// Streams of a person: what a dial changes in one of them leaves the others alone.
enum class Stream : uint64_t { rules = 1, history, queries, drift, oracle };
uint64_t stream_of(Stream stream, int64_t person) { return static_cast<uint64_t>(stream) << 56 | static_cast<uint64_t>(person); }

// What is known of somebody who was made up.
struct Truth {
  Rules before, now;  // the first half of the history follows `before`
  std::vector<Scene> history, queries;
  std::vector<std::string> answers;  // of the history, noise included
  std::vector<Citation> citations;   // LaMP_1
  size_t since = 0;                  // the history from here on follows `now`, or says as much about it as all of it
};

bool is(const TextDials& d, const char* name) { return is_task(*d.task, name); }

std::string date_of(int64_t day) {
  // Days behind 2020-01-01, in months of 28 days: dates only have to be real and in order.
  return fmt::format("{:04d}-{:02d}-{:02d}", 2020 + day / 336, 1 + day % 336 / 28, 1 + day % 28);
}

Truth draw_truth(const WorldDials& w, const TextDials& d, int64_t person, Person* out) {
  const uint64_t seed = w.seed ^ kSalt;
  Philox rules(seed, stream_of(Stream::rules, person)), drift(seed, stream_of(Stream::drift, person)),
      history(seed, stream_of(Stream::history, person)), queries(seed, stream_of(Stream::queries, person));
  Truth t;
  t.now = draw_rules(rules, d);
  t.before = drifted(t.now, drift, d);
  const std::vector<uint8_t> allowed = draw_allowed(rules, d);
  out->user_id = fmt::format("p{}x{}", w.seed, person);
  for (int64_t i = 0; i < w.history; ++i) {
    const Rules& r = i < w.history / 2 ? t.before : t.now;
    Scene scene;
    std::string answer;
    if (is(d, "LaMP_1")) {
      scene = draw_scene(history, d, Side::history, liked_topics(r));
    } else {
      scene = draw_scene(history, d, Side::history, allowed);
      answer = noisy_answer(r, scene, d, history);
    }
    out->history.push_back({fmt::format("{}h{}", out->user_id, i), date_of(i), item_fields(*d.task, scene, answer)});
    t.history.push_back(std::move(scene));
    t.answers.push_back(std::move(answer));
  }
  for (int64_t i = 0; i < w.queries; ++i) {
    Query q;
    q.id = fmt::format("{}q{}", out->user_id, i);
    if (is(d, "LaMP_1")) {
      t.citations.push_back(draw_citation(queries, t.now, d, Side::query, true));
      q.input = citation_question(t.citations.back());
      q.output = t.citations.back().gold == 0 ? "[1]" : "[2]";
    } else {
      t.queries.push_back(draw_scene(queries, d, Side::query, allowed));
      q.input = question(d, t.queries.back());
      q.output = noisy_answer(t.now, t.queries.back(), d, queries);
    }
    out->queries.push_back(std::move(q));
  }
  return t;
}

// truths: what is known of each of them; null: nobody asks.
TaskData draw_people(const WorldDials& w, std::vector<Truth>* truths) {
  const TextDials d = text_dials(w);
  TaskData data;
  data.task = d.task;
  data.sha256 = world_sha256(w);
  for (int64_t i = 0; i < w.people; ++i) {
    data.people.emplace_back();
    Truth t = draw_truth(w, d, i, &data.people.back());
    if (truths) truths->push_back(std::move(t));
  }
  return data;
}

// ---- best scores -------------------------------------------------------------------------------------------------------

// A distribution over labels, indexed by label.
using Belief = std::vector<double>;

struct Scores {
  std::map<std::string, double> sum;
  int64_t n = 0;
  void add(const std::string& metric, double value) { sum[metric] += value; }
  double mean(const std::string& metric) const {
    const auto it = sum.find(metric);
    return n == 0 || it == sum.end() ? 0 : it->second / double(n);
  }
};

size_t best_of(const Belief& b) { return static_cast<size_t>(std::max_element(b.begin(), b.end()) - b.begin()); }

// Expected scores of the best answer under a belief, per metric its own best answer, against the gold.
void add_label(Scores& scores, const Belief& belief, size_t gold) {
  ++scores.n;
  scores.add("accuracy", best_of(belief) == gold ? 1 : 0);
}
void add_rating(Scores& scores, const Belief& belief, int gold) {
  add_label(scores, belief, static_cast<size_t>(gold - 1));
  double total = 0, mean = 0, half = 0;
  for (size_t i = 0; i < 5; ++i) {
    total += belief[i];
    mean += belief[i] * double(i + 1);
  }
  mean /= total;
  int median = 5;
  for (size_t i = 0; i < 5; ++i) {
    half += belief[i];
    if (half >= total / 2) {
      median = static_cast<int>(i + 1);
      break;
    }
  }
  scores.add("mae", std::abs(median - gold));
  scores.add("rmse", (mean - gold) * (mean - gold));
}

// Adds what noise does to a belief about the rule's answer.
Belief with_noise(Belief b, double noise) {
  double total = 0;
  for (double x : b) total += x;
  const double others = double(b.size() - 1);
  for (double& x : b) x = (1 - noise) * x / total + noise * (1 - x / total) / others;
  return b;
}

constexpr size_t kWeightings = size_t{1} << (2 * kAttributes);
constexpr int8_t kWeights[] = {-2, -1, 1, 2};

// The ratings of a scene under every weighting: weighting i gives attribute a the weight kWeights[i >> 2a & 3].
class RatingTable {
 public:
  explicit RatingTable(const Scene& scene) {
    for (const Adjective& a : scene.adjectives) shifts_.push_back(2 * a.attribute);
    levels_.resize(size_t{1} << (2 * shifts_.size()));
    std::array<int8_t, kAttributes> weight{};
    for (size_t i = 0; i < levels_.size(); ++i) {
      for (size_t j = 0; j < shifts_.size(); ++j) weight[scene.adjectives[j].attribute] = kWeights[i >> (2 * j) & 3];
      levels_[i] = static_cast<uint8_t>(rating(weight, scene));
    }
  }
  int operator()(size_t weighting) const {
    size_t i = 0;
    for (size_t j = 0; j < shifts_.size(); ++j) i |= (weighting >> shifts_[j] & 3) << (2 * j);
    return levels_[i];
  }

 private:
  std::vector<int> shifts_;
  std::vector<uint8_t> levels_;
};

// Ratings: exact, by enumerating the 4^8 possible weights with their prior and the likelihood of the history.
void possible_ratings(const TextDials& d, const std::vector<Truth>& truths, const std::vector<Person>& people, Scores& query,
                      Scores& history, Scores& latent) {
  std::vector<double> prior(kWeightings);
  const double negative = d.person * 0.3125;
  for (size_t i = 0; i < kWeightings; ++i) {
    double p = 1;
    for (int a = 0; a < kAttributes; ++a) p *= 0.5 * ((i >> (2 * a) & 3) < 2 ? negative : 1 - negative);
    prior[i] = p;
  }
  const double hit = 1 - d.noise, miss = d.noise / 4;
  for (size_t person = 0; person < truths.size(); ++person) {
    const Truth& t = truths[person];
    std::vector<double> posterior = prior;
    // Under drift only what was written since the rules changed is evidence.
    for (size_t h = t.since; h < t.history.size(); ++h) {
      const int seen = t.answers[h][0] - '0';
      const RatingTable table(t.history[h]);
      double top = 0;
      for (size_t i = 0; i < kWeightings; ++i) {
        if (posterior[i] == 0) continue;
        posterior[i] *= table(i) == seen ? hit : miss;
        top = std::max(top, posterior[i]);
      }
      for (double& p : posterior) p /= top;  // the true weights have a likelihood, so top > 0
    }
    for (size_t q = 0; q < t.queries.size(); ++q) {
      const int gold = people[person].queries[q].output[0] - '0';
      const RatingTable table(t.queries[q]);
      Belief from_query(5, 0), from_history(5, 0), known(5, 0);
      for (size_t i = 0; i < kWeightings; ++i) {
        const auto level = static_cast<size_t>(table(i) - 1);
        from_query[level] += prior[i];
        from_history[level] += posterior[i];
      }
      known[static_cast<size_t>(rating(t.now.weight, t.queries[q]) - 1)] = 1;
      add_rating(query, with_noise(from_query, d.noise), gold);
      add_rating(history, with_noise(from_history, d.noise), gold);
      add_rating(latent, with_noise(known, d.noise), gold);
    }
  }
}

// Tags: a key that the history shows has the label seen most often with it (the newer of equals); others have everybody's.
void possible_tags(const TextDials& d, const std::vector<Truth>& truths, const std::vector<Person>& people, Scores& query,
                   Scores& history, Scores& latent) {
  const auto label = [&](const std::string& tag) {
    for (size_t i = 0; i < kTags; ++i)
      if (tag == kTagWords[i]) return i;
    return size_t{0};
  };
  for (size_t person = 0; person < truths.size(); ++person) {
    const Truth& t = truths[person];
    for (size_t q = 0; q < t.queries.size(); ++q) {
      const size_t gold = label(people[person].queries[q].output);
      const auto key = [&](const Scene& s) { return d.by_name ? s.name : s.topic; };
      Belief seen(kTags, 0);
      for (size_t h = t.since; h < t.history.size(); ++h)
        if (key(t.history[h]) == key(t.queries[q])) seen[label(t.answers[h])] += 1 + 1e-6 * double(h);
      const size_t mine = key(t.queries[q]);
      const size_t habit = size_t{d.by_name ? habits().tag_of_name[mine] : habits().tag_of_topic[mine]} % static_cast<size_t>(d.classes);
      Belief everybody(kTags, 0);
      everybody[habit] = 1;
      // One contradicting example among noisy ones is weak evidence, but more than none: the habit only breaks ties.
      Belief from_history = seen;
      from_history[habit] += 1e-9;
      Belief known(kTags, 0);
      known[label(rule_answer(t.now, t.queries[q], d))] = 1;
      add_label(query, everybody, gold);
      add_label(history, from_history, gold);
      add_label(latent, known, gold);
    }
  }
}

// Citations: a topic of the history is liked; one that never shows is judged by its habit and by how long it was absent.
void possible_citations(const TextDials& d, const std::vector<Truth>& truths, const std::vector<Person>& people, Scores& query,
                        Scores& history, Scores& latent) {
  for (size_t person = 0; person < truths.size(); ++person) {
    const Truth& t = truths[person];
    std::array<double, kTopics> seen{};
    for (size_t h = t.since; h < t.history.size(); ++h) seen[t.history[h].topic] += 1;
    for (const Citation& c : t.citations) {
      const auto judge = [&](Scores& scores, auto&& value) {
        const double one = value(c.reference[0].topic), two = value(c.reference[1].topic);
        ++scores.n;
        scores.add("accuracy", one == two ? 0.5 : (one > two ? 0 : 1) == c.gold ? 1 : 0);
      };
      judge(query, [](uint8_t topic) { return habits().likes[topic] ? 1.0 : 0.0; });
      judge(history, [&](uint8_t topic) { return seen[topic] > 0 ? 2.0 : habits().likes[topic] ? 1.0 : 0.0; });
      judge(latent, [&](uint8_t topic) { return t.now.likes[topic] ? 1.0 : 0.0; });
    }
  }
}

// Texts. latent: two draws of the same author. history: a title in the style that the history shows. query: the best of
// all styles that do not know the person, and of the text itself; it is chosen on these questions, so it is no
// underestimate.
void possible_texts(const WorldDials& w, const TextDials& d, const std::vector<Truth>& truths, Scores& query, Scores& history,
                    Scores& latent) {
  const auto add = [](Scores& scores, const std::string& prediction, const std::string& gold) {
    ++scores.n;
    scores.add("rouge1", rouge_n(prediction, gold, 1));
    scores.add("rougeL", rouge_l(prediction, gold));
  };
  // Impersonal answers: everybody's opener and closer or none, with any choice of words from the text.
  constexpr int kPlain = 4;
  const auto plain = [&](const Scene& s, int form, bool framed) {
    Style style = habits().style;
    if (is(d, "LaMP_7")) {
      Scene own_words = s;
      if (form % 2 == 1) own_words.verb = style.verb;
      if (form >= 2)
        for (Adjective& a : own_words.adjectives) a.synonym = style.synonym[a.attribute][a.pole];
      const std::string own = render(Shape::tweet, own_words);
      return framed ? std::string(kOpenerWords[style.opener[0]]) + " " + own + " " + kCloserWords[style.closer[0]] : own;
    }
    if (form >= 2) {
      const std::string words = form == 2 ? scene_text(*d.task, s)
                                          : std::string(kTopicNouns[s.topic][s.noun1]) + " of " + town_word(s.name) + " with " + name_word(s.name);
      return framed ? std::string(kOpenerWords[style.opener[0]]) + " " + words + " " + kCloserWords[style.closer[0]] : words;
    }
    style.form = static_cast<uint8_t>(form);
    const std::string whole = styled(style, s, d);
    if (framed) return whole;
    const std::string opener = kOpenerWords[style.opener[0]], closer = kCloserWords[style.closer[0]];
    return whole.substr(opener.size() + 1, whole.size() - opener.size() - closer.size() - 2);
  };
  std::array<Scores, 2 * kPlain> impersonal;
  for (size_t person = 0; person < truths.size(); ++person) {
    const Truth& t = truths[person];
    Philox rng(w.seed ^ kSalt, stream_of(Stream::oracle, static_cast<int64_t>(person)));
    // What the history shows of the style: votes per part, everybody's where it shows nothing.
    std::array<std::map<std::string, double>, 2> opener, closer;
    std::map<int, double> form, verb;
    std::array<std::array<std::array<double, 2>, 2>, kAttributes> synonym{};
    for (size_t h = t.since; h < t.history.size(); ++h) {
      const Scene& s = t.history[h];
      const std::string& a = t.answers[h];
      const size_t group = d.keys < 2 ? 0 : s.topic >= kTopics / 2, pole = d.keys < 2 ? 0 : s.adjectives[0].pole;
      const size_t second = a.find(' ', a.find(' ') + 1), last = a.rfind(' ', a.rfind(' ') - 1);
      opener[group][a.substr(0, second)] += 1;
      closer[pole][a.substr(last + 1)] += 1;
      const std::string middle = a.substr(second + 1, last - second - 1);
      if (is(d, "LaMP_7")) {
        for (int v = 0; v < kVerbs; ++v) verb[v] += middle.rfind(kVerbWords[size_t(v)], 0) == 0;
        for (size_t i = 0; i < 2; ++i)
          synonym[s.adjectives[0].attribute][s.adjectives[0].pole][i] +=
              middle.find(std::string(" ") + kAdjectives[s.adjectives[0].attribute][s.adjectives[0].pole][i] + " ") != std::string::npos;
      } else {
        for (int f = 0; f < 2; ++f) {
          Style guess = t.now.style;
          guess.form = static_cast<uint8_t>(f);
          const std::string whole = styled(guess, s, d);
          form[f] += whole.find(" " + middle + " ") != std::string::npos;
        }
      }
    }
    const auto most = [](const auto& votes, auto fallback) {
      double top = 0;
      for (const auto& [key, count] : votes)
        if (count > top) {
          top = count;
          fallback = key;
        }
      return fallback;
    };
    Style shown = habits().style;
    for (size_t g = 0; g < 2; ++g) {
      const size_t from = d.keys < 2 ? 0 : g;
      const std::string open = most(opener[from], std::string(kOpenerWords[shown.opener[g]]));
      const std::string close = most(closer[from], std::string(kCloserWords[shown.closer[g]]));
      for (uint8_t i = 0; i < kOpeners; ++i)
        if (open == kOpenerWords[i]) shown.opener[g] = i;
      for (uint8_t i = 0; i < kClosers; ++i)
        if (close == kCloserWords[i]) shown.closer[g] = i;
    }
    shown.form = static_cast<uint8_t>(most(form, int{shown.form}));
    shown.verb = static_cast<uint8_t>(most(verb, int{shown.verb}));
    for (size_t a = 0; a < kAttributes; ++a)
      for (size_t p = 0; p < 2; ++p)
        if (synonym[a][p][0] != synonym[a][p][1]) shown.synonym[a][p] = synonym[a][p][1] > synonym[a][p][0];
    for (const Scene& s : t.queries) {
      const std::string gold = noisy_answer(t.now, s, d, rng);
      add(history, styled(shown, s, d), gold);
      for (int form_of = 0; form_of < kPlain; ++form_of)
        for (int framed = 0; framed < 2; ++framed) add(impersonal[size_t(2 * form_of + framed)], plain(s, form_of, framed == 1), gold);
    }
    for (int64_t draw = 0; draw < std::max<int64_t>(1, 1000 / w.people); ++draw) {
      const Scene s = draw_scene(rng, d, Side::query, {});
      add(latent, noisy_answer(t.now, s, d, rng), noisy_answer(t.now, s, d, rng));
    }
  }
  for (const char* metric : {"rouge1", "rougeL"}) {
    double best = 0;
    for (const Scores& s : impersonal) best = std::max(best, s.mean(metric));
    query.n = 1;
    query.sum[metric] = best;
  }
}

}  // namespace

nlohmann::ordered_json dials_json(const WorldDials& w) {
  return {{"task", w.task},       {"people", w.people},   {"queries", w.queries}, {"history", w.history},
          {"keys", w.keys},       {"key", w.key},         {"classes", w.classes}, {"noise", w.noise},
          {"person", w.person},   {"overlap", w.overlap}, {"drift", w.drift},     {"seed", w.seed}};
}

TaskData make_people(const WorldDials& dials) { return draw_people(dials, nullptr); }

WorldTask make_world(const WorldDials& w, int64_t visible) {
  const TextDials d = text_dials(w);
  WorldTask world;
  std::vector<Truth> truths;
  world.data = draw_people(w, &truths);
  for (Truth& t : truths) {
    t.since = d.drift > 0 ? t.history.size() / 2 : 0;
    if (visible <= 0 || visible >= w.history) continue;
    const auto hidden = static_cast<size_t>(w.history - visible);
    t.history.erase(t.history.begin(), t.history.begin() + static_cast<std::ptrdiff_t>(hidden));
    t.answers.erase(t.answers.begin(), t.answers.begin() + static_cast<std::ptrdiff_t>(hidden));
    t.since -= std::min(t.since, hidden);
  }
  Scores query, history, latent;
  if (is(d, "LaMP_1"))
    possible_citations(d, truths, world.data.people, query, history, latent);
  else if (is(d, "LaMP_2"))
    possible_tags(d, truths, world.data.people, query, history, latent);
  else if (is(d, "LaMP_3"))
    possible_ratings(d, truths, world.data.people, query, history, latent);
  else
    possible_texts(w, d, truths, query, history, latent);
  for (const std::string& metric : metric_names(*d.task)) {
    if (query.sum.count(metric) == 0) continue;  // macro F1 has no simple bound
    Possible p{metric, query.mean(metric), history.mean(metric), latent.mean(metric)};
    if (metric == "rmse")
      for (double* x : {&p.query, &p.history, &p.latent}) *x = std::sqrt(*x);
    world.possible.push_back(p);
  }
  return world;
}

std::string world_sha256(const WorldDials& w) {
  return sha256_hex(fmt::format("world {} {} {} {} {} {} {} {} {:a} {:a} {} {:a} {}", kWorldVersion, w.task, w.people, w.queries, w.history,
                                w.keys, w.key, w.classes, w.noise, w.person, w.overlap, w.drift, w.seed));
}

}  // namespace thimble::lab
