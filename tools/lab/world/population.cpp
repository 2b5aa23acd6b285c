#include "tools/lab/world/population.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace thimble::lab {
namespace {

// Streams of the world's own seed.
constexpr uint64_t kHabitSeed = 0x7468696d626c65;

uint8_t pick(Philox& rng, int n) { return static_cast<uint8_t>(rng.below(static_cast<uint64_t>(n))); }

Shape shape_of(std::string_view task) {
  if (task == "LaMP_1") return Shape::paper;
  if (task == "LaMP_2") return Shape::movie;
  if (task == "LaMP_3") return Shape::review;
  if (task == "LaMP_4") return Shape::article;
  if (task == "LaMP_5") return Shape::abstract;
  if (task == "LaMP_6") return Shape::email;
  return Shape::plain;
}

Style draw_style(Philox& rng) {
  Style s;
  s.opener = {pick(rng, kOpeners), pick(rng, kOpeners)};
  s.closer = {pick(rng, kClosers), pick(rng, kClosers)};
  s.form = pick(rng, 2);
  s.verb = pick(rng, kVerbs);
  for (auto& attribute : s.synonym)
    for (uint8_t& pole : attribute) pole = pick(rng, 2);
  return s;
}

// Titles name the first noun and either the town or the person.
std::string content(const Scene& s, int form) {
  const std::string noun = kTopicNouns[s.topic][s.noun1];
  return form == 0 ? noun + " of " + town_word(s.name) : noun + " with " + name_word(s.name);
}

}  // namespace

TextDials text_dials(const WorldDials& w) {
  const auto bad = [](const std::string& dial, const std::string& want) {
    throw Error(ErrorCode::usage, "world: " + dial + " is out of range", want);
  };
  TextDials d;
  d.task = &find_task(w.task);
  if (instruction(d.task->name).empty()) bad("task", "valid: LaMP_1 to LaMP_7");
  if (w.key != "topic" && w.key != "name") bad("key \"" + w.key + "\"", "valid: topic, name");
  if (w.overlap != "lexical" && w.overlap != "latent") bad("overlap \"" + w.overlap + "\"", "valid: lexical, latent");
  d.by_name = w.key == "name";
  d.latent = w.overlap == "latent";
  if (d.by_name && !is_task(*d.task, "LaMP_2")) bad("key: name", "only LaMP_2 can depend on names");
  if (d.by_name && d.latent) bad("overlap: latent", "names have no synonyms: use key: topic");
  int low = 1, high = 1, usual = 1;
  if (is_task(*d.task, "LaMP_1")) low = high = usual = kTopics;
  if (is_task(*d.task, "LaMP_2")) low = 2, high = usual = d.by_name ? kNames : kTopics;
  if (is_task(*d.task, "LaMP_3")) high = 4, usual = 2;
  if (d.task->kind == TaskKind::text) high = 2;
  d.keys = w.keys == 0 ? usual : static_cast<int>(std::clamp<int64_t>(w.keys, -1, 1000));
  if (d.keys < low || d.keys > high) bad("keys", "valid: " + std::to_string(low) + " to " + std::to_string(high) + " for " + d.task->name);
  if (w.classes < 2 || w.classes > kTags) bad("classes", "valid: 2 to " + std::to_string(kTags));
  d.classes = static_cast<int>(w.classes);
  const auto share = [&](const char* name, double x) {
    if (!(x >= 0 && x <= 1)) bad(name, "valid: 0 to 1");
    return x;
  };
  d.noise = share("noise", w.noise);
  d.person = share("person", w.person);
  d.drift = share("drift", w.drift);
  if (w.people < 1 || w.people > 100000) bad("people", "valid: 1 to 100000");
  if (w.queries < 1 || w.queries > 10000) bad("queries", "valid: 1 to 10000");
  if (w.history < 1 || w.history > 100000) bad("history", "valid: 1 to 100000");
  return d;
}

const Rules& habits() {
  static const Rules rules = [] {
    Philox rng(kHabitSeed, 1);
    Rules r;
    for (uint8_t& tag : r.tag_of_topic) tag = pick(rng, kTags);
    for (uint8_t& tag : r.tag_of_name) tag = pick(rng, kTags);
    for (int8_t& w : r.weight) w = rng.below(2) ? 2 : 1;
    for (int t = 0; t < kTopics; ++t) r.likes[size_t(t)] = t % 2 == 0;
    r.style = draw_style(rng);
    r.style.opener[1] = r.style.opener[0];
    r.style.closer[1] = r.style.closer[0];
    return r;
  }();
  return rules;
}

Rules draw_rules(Philox& rng, const TextDials& d) {
  Rules r = habits();
  const auto own = [&] { return rng.uniform() < d.person; };
  // People use half of the tags there are, each their own half.
  std::vector<uint8_t> tags(static_cast<size_t>(d.classes));
  for (size_t i = 0; i < tags.size(); ++i) tags[i] = static_cast<uint8_t>(i);
  for (size_t i = tags.size() - 1; i > 0; --i) std::swap(tags[i], tags[rng.below(i + 1)]);
  tags.resize(std::max<size_t>(2, tags.size() / 2));
  for (uint8_t& tag : r.tag_of_topic) tag = own() ? tags[rng.below(tags.size())] : static_cast<uint8_t>(tag % d.classes);
  for (uint8_t& tag : r.tag_of_name) tag = own() ? tags[rng.below(tags.size())] : static_cast<uint8_t>(tag % d.classes);
  // Pole 0 is liked by most: by 78 % at the usual share of personal rules.
  for (int8_t& w : r.weight) {
    const int size = rng.below(2) ? 2 : 1;
    w = static_cast<int8_t>(rng.uniform() < d.person * 0.3125 ? -size : size);
  }
  for (bool& like : r.likes)
    if (own()) like = rng.below(2) == 1;
  const Style mine = draw_style(rng);
  for (size_t i = 0; i < 2; ++i) {
    if (own()) r.style.opener[i] = mine.opener[i];
    if (own()) r.style.closer[i] = mine.closer[i];
  }
  if (d.keys < 2) {
    r.style.opener[1] = r.style.opener[0];
    r.style.closer[1] = r.style.closer[0];
  }
  if (own()) r.style.form = mine.form;
  if (own()) r.style.verb = mine.verb;
  for (size_t a = 0; a < kAttributes; ++a)
    for (size_t p = 0; p < 2; ++p)
      if (own()) r.style.synonym[a][p] = mine.synonym[a][p];
  return r;
}

Rules drifted(const Rules& rules, Philox& rng, const TextDials& d) {
  if (d.drift == 0) return rules;
  Rules r = rules;
  const Rules fresh = draw_rules(rng, d);
  const auto changes = [&] { return rng.uniform() < d.drift; };
  for (size_t i = 0; i < kTopics; ++i)
    if (changes()) r.tag_of_topic[i] = fresh.tag_of_topic[i];
  for (size_t i = 0; i < kNames; ++i)
    if (changes()) r.tag_of_name[i] = fresh.tag_of_name[i];
  for (size_t i = 0; i < kAttributes; ++i)
    if (changes()) r.weight[i] = fresh.weight[i];
  for (size_t i = 0; i < kTopics; ++i)
    if (changes()) r.likes[i] = fresh.likes[i];
  if (changes()) r.style = fresh.style;
  return r;
}

std::vector<uint8_t> draw_allowed(Philox& rng, const TextDials& d) {
  const int all = is_task(*d.task, "LaMP_1") ? kTopics : is_task(*d.task, "LaMP_2") ? (d.by_name ? kNames : kTopics) : 0;
  if (all == 0 || d.keys >= all) return {};
  std::vector<uint8_t> list(static_cast<size_t>(all));
  for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<uint8_t>(i);
  for (size_t i = list.size() - 1; i > 0; --i) std::swap(list[i], list[rng.below(i + 1)]);
  list.resize(static_cast<size_t>(d.keys));
  return list;
}

Scene draw_scene(Philox& rng, const TextDials& d, Side side, const std::vector<uint8_t>& allowed) {
  Scene s;
  const bool by_name = d.by_name && is_task(*d.task, "LaMP_2");
  s.topic = !allowed.empty() && !by_name ? allowed[rng.below(allowed.size())] : pick(rng, kTopics);
  s.name = !allowed.empty() && by_name ? allowed[rng.below(allowed.size())] : pick(rng, kNames);
  const int nouns = d.latent ? kNouns / 2 : kNouns, from = d.latent && side == Side::query ? kNouns / 2 : 0;
  s.noun1 = static_cast<uint8_t>(from + pick(rng, nouns));
  s.noun2 = static_cast<uint8_t>(from + (s.noun1 - from + 1 + pick(rng, nouns - 1)) % nouns);
  s.form = pick(rng, 12);
  s.verb = pick(rng, kVerbs);
  const int m = is_task(*d.task, "LaMP_3") ? d.keys : 1;
  std::array<uint8_t, kAttributes> order{};
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint8_t>(i);
  for (int i = 0; i < m; ++i) {
    std::swap(order[size_t(i)], order[size_t(i) + rng.below(size_t(kAttributes - i))]);
    Adjective a;
    a.attribute = order[size_t(i)];
    a.pole = pick(rng, 2);
    a.synonym = d.latent ? (side == Side::query ? 1 : 0) : pick(rng, 2);
    s.adjectives.push_back(a);
  }
  return s;
}

int rating(const std::array<int8_t, kAttributes>& weight, const Scene& scene) {
  static constexpr double kScale[] = {1, 1, 0.75, 0.4, 0.35};
  int sum = 0;
  for (const Adjective& a : scene.adjectives) sum += a.pole == 0 ? weight[a.attribute] : -weight[a.attribute];
  const long level = std::lround(sum * kScale[std::min<size_t>(scene.adjectives.size(), 4)]);
  return static_cast<int>(3 + std::clamp<long>(level, -2, 2));
}

std::string styled(const Style& style, const Scene& s, const TextDials& d) {
  const std::string opener = kOpenerWords[style.opener[s.topic >= kTopics / 2]];
  const std::string closer = kCloserWords[style.closer[s.adjectives[0].pole]];
  if (!is_task(*d.task, "LaMP_7")) return opener + " " + content(s, style.form) + " " + closer;
  Scene mine = s;
  mine.verb = style.verb;
  for (Adjective& a : mine.adjectives) a.synonym = style.synonym[a.attribute][a.pole];
  return opener + " " + render(Shape::tweet, mine) + " " + closer;
}

std::string rule_answer(const Rules& r, const Scene& s, const TextDials& d) {
  if (is_task(*d.task, "LaMP_2")) return kTagWords[d.by_name ? r.tag_of_name[s.name] : r.tag_of_topic[s.topic]];
  if (is_task(*d.task, "LaMP_3")) return std::to_string(rating(r.weight, s));
  return styled(r.style, s, d);
}

std::string noisy_answer(const Rules& r, const Scene& s, const TextDials& d, Philox& rng) {
  const std::string right = rule_answer(r, s, d);
  if (d.noise == 0 || rng.uniform() >= d.noise) return right;
  if (d.task->kind == TaskKind::text) return styled(draw_style(rng), s, d);
  for (;;) {
    const std::string other = is_task(*d.task, "LaMP_2") ? kTagWords[size_t(pick(rng, d.classes))] : std::to_string(1 + pick(rng, 5));
    if (other != right) return other;
  }
}

std::string scene_text(const Task& task, const Scene& scene) { return render(shape_of(task.name), scene); }

std::vector<std::string> item_fields(const Task& task, const Scene& scene, const std::string& answer) {
  std::vector<std::string> fields;
  for (const char* name : task.fields) {
    const std::string_view field = name;
    if (is_task(task, "LaMP_1"))
      fields.push_back(render(field == "title" ? Shape::paper : Shape::abstract, scene));
    else if (is_task(task, "LaMP_7"))
      fields.push_back(answer);
    else if (field == "tag" || field == "score" || field == "title")
      fields.push_back(answer);
    else
      fields.push_back(scene_text(task, scene));
  }
  return fields;
}

std::string question(const TextDials& d, const Scene& scene) {
  std::string text = instruction(d.task->name);
  const size_t at = text.find("{}");
  if (at != std::string::npos) {
    std::string list;
    for (int i = 0; i < d.classes; ++i) list += (i ? ", " : "") + std::string(kTagWords[size_t(i)]);
    text.replace(at, 2, list);
  }
  return text + scene_text(*d.task, scene);
}

std::vector<uint8_t> liked_topics(const Rules& r) {
  std::vector<uint8_t> liked;
  for (uint8_t t = 0; t < kTopics; ++t)
    if (r.likes[t]) liked.push_back(t);
  if (liked.size() < 2) liked = {0, 2};
  return liked;
}

Citation draw_citation(Philox& rng, const Rules& r, const TextDials& d, Side side, bool noisy) {
  const std::vector<uint8_t> liked = liked_topics(r);
  std::vector<uint8_t> others;
  for (uint8_t t = 0; t < kTopics; ++t)
    if (!r.likes[t]) others.push_back(t);
  if (others.empty()) others = {1};
  Citation c;
  const auto scene = [&](uint8_t topic) { return draw_scene(rng, d, side, {topic}); };
  c.title = scene(liked[rng.below(liked.size())]);
  uint8_t cited;
  do cited = liked[rng.below(liked.size())];
  while (cited == c.title.topic);
  c.gold = static_cast<int>(rng.below(2));
  c.reference[c.gold] = scene(cited);
  c.reference[1 - c.gold] = scene(others[rng.below(others.size())]);
  if (noisy && d.noise > 0 && rng.uniform() < d.noise) c.gold = 1 - c.gold;
  return c;
}

std::string citation_question(const Citation& c) {
  std::string text = instruction("LaMP_1");
  text.replace(text.find("{}"), 2, "\"" + render(Shape::paper, c.title) + "\"");
  return text + "[1]: \"" + render(Shape::paper, c.reference[0]) + "\" [2]: \"" + render(Shape::paper, c.reference[1]) + "\"";
}

}  // namespace thimble::lab
