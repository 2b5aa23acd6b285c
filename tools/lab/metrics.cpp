// Metrics by their definitions, and predictions that need no model. Retrieval is the default `bm25` of rag/.
#include "tools/lab/metrics.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <memory>
#include <optional>

#include "rag/retriever.h"
#include "tensor/error.h"
#include "tools/lab/porter.h"
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

// Lower-cased runs of a-z and 0-9. Stems only words of more than three letters, as the usual implementation of ROUGE.
std::vector<std::string> rouge_words(std::string_view text, bool stem) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if ((lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9')) words.back() += lower;
    else if (!words.back().empty()) words.emplace_back();
  }
  if (words.back().empty()) words.pop_back();
  if (stem)
    for (std::string& word : words)
      if (word.size() > 3) word = porter_stem(std::move(word));
  return words;
}

double f1(double matches, double predicted, double gold) {
  return matches > 0 ? 2 * matches / (predicted + gold) : 0;
}

std::optional<double> number(std::string_view text) {
  const std::string s = strip(text);
  const size_t sign = !s.empty() && s[0] == '+' ? 1 : 0;
  double value = 0;
  const auto [end, failed] = std::from_chars(s.data() + sign, s.data() + s.size(), value);
  if (failed != std::errc() || end != s.data() + s.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

// What each label stands for where the prompt says so ([1]: "..." [2]: "..."): one text per label, or nothing.
std::vector<std::string> choices_of(const Task& task, const std::string& input) {
  if (task.kind != TaskKind::label || task.fixed_labels.empty()) return {};
  std::vector<size_t> at;
  for (const std::string& label : task.fixed_labels) {
    const size_t found = input.find(label + ":", at.empty() ? 0 : at.back());
    if (found == std::string::npos) return {};
    at.push_back(found);
  }
  std::vector<std::string> choices;
  for (size_t i = 0; i < at.size(); ++i) {
    const size_t begin = at[i] + task.fixed_labels[i].size() + 1;
    choices.push_back(input.substr(begin, i + 1 < at.size() ? at[i + 1] - begin : std::string::npos));
  }
  return choices;
}

using Counts = std::map<std::string, int64_t>;

// The smallest among equals.
std::string most_frequent(const Counts& counts) {
  std::string best;
  int64_t most = 0;
  for (const auto& [answer, n] : counts)
    if (n > most) most = n, best = answer;
  return best;
}

// The part of a person's history that counts.
struct Recent {
  const Item* begin;
  const Item* end;
  Recent(const Person& person, int64_t history)
      : begin(person.history.data()), end(begin + person.history.size()) {
    if (history > 0 && end - begin > history) begin = end - history;
  }
};

Counts answers_of(const Task& task, const Recent& recent) {
  Counts counts;
  if (task.answer_field < 0) return counts;
  for (const Item* item = recent.begin; item != recent.end; ++item) ++counts[strip(item->fields[size_t(task.answer_field)])];
  return counts;
}

std::string rounded_mean(const Counts& counts, const std::string& fallback) {
  double sum = 0;
  int64_t n = 0;
  for (const auto& [answer, times] : counts)
    if (const std::optional<double> value = number(answer)) {
      sum += *value * static_cast<double>(times);
      n += times;
    }
  if (n == 0) return fallback;
  return std::to_string(static_cast<int>(std::floor(std::clamp(sum / static_cast<double>(n), 1.0, 5.0) + 0.5)));
}

double mean_unit_score(const Task& task, const TaskData& data, const std::vector<std::vector<std::string>>& predictions) {
  double sum = 0;
  int64_t n = 0;
  for (size_t p = 0; p < data.people.size(); ++p)
    for (size_t q = 0; q < data.people[p].queries.size(); ++q, ++n) sum += unit_score(task, predictions[p][q], data.people[p].queries[q].output);
  return n ? sum / static_cast<double>(n) : 0;
}

// The answer of the most similar item; where the prompt's labels stand for texts, the label whose text some item resembles most.
std::string nearest(const Task& task, const Recent& recent, const Retriever& index, const Query& query, const std::string& fallback) {
  const std::vector<std::string> choices = choices_of(task, query.input);
  if (!choices.empty()) {
    size_t best = 0;
    double most = 0;
    for (size_t c = 0; c < choices.size(); ++c) {
      const std::vector<Hit> hits = index.search(choices[c], 1);
      if (!hits.empty() && hits[0].score > most) most = hits[0].score, best = c;
    }
    return task.fixed_labels[best];
  }
  const std::vector<Hit> hits = index.search(task.query(query.input), 1);
  if (hits.empty() || task.answer_field < 0) return fallback;
  return strip(recent.begin[hits[0].index].fields[static_cast<size_t>(task.answer_field)]);
}

}  // namespace

double rouge_n(std::string_view prediction, std::string_view gold, int n, bool stem) {
  THIMBLE_CHECK(n > 0);
  const auto grams = [n, stem](std::string_view text, double* total) {
    const std::vector<std::string> words = rouge_words(text, stem);
    std::map<std::vector<std::string>, int64_t> counts;
    const auto width = static_cast<size_t>(n);
    for (size_t i = 0; i + width <= words.size(); ++i, ++*total)
      ++counts[std::vector<std::string>(words.begin() + static_cast<std::ptrdiff_t>(i), words.begin() + static_cast<std::ptrdiff_t>(i + width))];
    return counts;
  };
  double predicted = 0, wanted = 0, matches = 0;
  const auto p = grams(prediction, &predicted), g = grams(gold, &wanted);
  for (const auto& [gram, count] : p)
    if (const auto found = g.find(gram); found != g.end()) matches += static_cast<double>(std::min(count, found->second));
  return f1(matches, predicted, wanted);
}

double rouge_l(std::string_view prediction, std::string_view gold, bool stem) {
  const std::vector<std::string> p = rouge_words(prediction, stem), g = rouge_words(gold, stem);
  std::vector<int64_t> row(g.size() + 1, 0);  // longest common subsequence of p[0..i) and g[0..j)
  for (const std::string& word : p) {
    int64_t diagonal = 0;
    for (size_t j = 1; j <= g.size(); ++j) {
      const int64_t above = row[j];
      row[j] = word == g[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
      diagonal = above;
    }
  }
  return f1(static_cast<double>(row.back()), static_cast<double>(p.size()), static_cast<double>(g.size()));
}

double accuracy(const std::vector<std::string>& predictions, const std::vector<std::string>& golds) {
  THIMBLE_CHECK(predictions.size() == golds.size());
  double right = 0;
  for (size_t i = 0; i < golds.size(); ++i) right += strip(predictions[i]) == strip(golds[i]);
  return golds.empty() ? 0 : right / static_cast<double>(golds.size());
}

double macro_f1(const std::vector<std::string>& predictions, const std::vector<std::string>& golds,
                const std::vector<std::string>& labels) {
  THIMBLE_CHECK(predictions.size() == golds.size());
  std::map<std::string, std::array<double, 3>> counts;  // of a label: both, predicted, gold
  for (size_t i = 0; i < golds.size(); ++i) {
    const std::string p = strip(predictions[i]), g = strip(golds[i]);
    counts[p][1] += 1;
    counts[g][2] += 1;
    if (p == g) counts[g][0] += 1;
  }
  double sum = 0;
  for (const std::string& label : labels) {
    const std::array<double, 3>& c = counts[strip(label)];
    sum += f1(c[0], c[1], c[2]);
  }
  return labels.empty() ? 0 : sum / static_cast<double>(labels.size());
}

double rating_error(std::string_view prediction, std::string_view gold) {
  const std::optional<double> g = number(gold);
  if (!g) throw Error(ErrorCode::input, "the gold rating \"" + strip(gold) + "\" is no number", "ratings are 1, 2, 3, 4 or 5");
  const std::optional<double> p = number(prediction);
  return p ? std::abs(*p - *g) : std::max(std::abs(1 - *g), std::abs(5 - *g));
}

std::vector<std::string> metric_names(const Task& task) {
  switch (task.kind) {
    case TaskKind::label:
      return {"accuracy", "macro_f1"};
    case TaskKind::ordinal:
      return {"accuracy", "mae", "rmse"};
    case TaskKind::text:
      break;
  }
  return {"rouge1", "rougeL"};
}

bool lower_is_better(std::string_view metric) { return metric == "mae" || metric == "rmse"; }

std::map<std::string, double> score(const Task& task, const std::vector<std::string>& predictions,
                                    const std::vector<std::string>& golds, const std::vector<std::string>& labels, bool stem) {
  THIMBLE_CHECK(predictions.size() == golds.size());
  const double n = std::max<double>(1, static_cast<double>(golds.size()));
  if (task.kind == TaskKind::text) {
    double one = 0, longest = 0;
    for (size_t i = 0; i < golds.size(); ++i) {
      one += rouge_n(predictions[i], golds[i], 1, stem);
      longest += rouge_l(predictions[i], golds[i], stem);
    }
    return {{"rouge1", one / n}, {"rougeL", longest / n}};
  }
  if (task.kind == TaskKind::ordinal) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < golds.size(); ++i) {
      const double error = rating_error(predictions[i], golds[i]);
      sum += error;
      squares += error * error;
    }
    return {{"accuracy", accuracy(predictions, golds)}, {"mae", sum / n}, {"rmse", std::sqrt(squares / n)}};
  }
  return {{"accuracy", accuracy(predictions, golds)}, {"macro_f1", macro_f1(predictions, golds, labels.empty() ? task.fixed_labels : labels)}};
}

double unit_score(const Task& task, std::string_view prediction, std::string_view gold) {
  if (task.kind == TaskKind::text) return rouge_n(prediction, gold, 1);
  return strip(prediction) == strip(gold) ? 1 : 0;
}

std::vector<Baseline> baselines(const TaskData& data, int64_t history) {
  THIMBLE_CHECK(data.task);
  const Task& task = *data.task;
  const bool text = task.kind == TaskKind::text;
  // A task whose prompts say what its labels stand for has no labels in its histories.
  bool choice = false;
  for (const Person& person : data.people)
    for (const Query& query : person.queries) choice = choice || !choices_of(task, query.input).empty();

  Counts all;
  if (!text && !choice)
    for (const Person& person : data.people)
      for (const auto& [answer, n] : answers_of(task, Recent(person, history))) all[answer] += n;
  std::string majority = most_frequent(all);
  if (majority.empty() && !text && !task.fixed_labels.empty()) majority = task.fixed_labels[0];

  Baseline everyone{"majority", {}}, user{"user_majority", {}}, mean{"user_mean", {}}, neighbour{"nearest", {}};
  for (const Person& person : data.people) {
    const Recent recent(person, history);
    const size_t n = person.queries.size();
    const Counts own = text || choice ? Counts() : answers_of(task, recent);
    everyone.predictions.emplace_back(n, majority);
    user.predictions.emplace_back(n, own.empty() ? majority : most_frequent(own));
    mean.predictions.emplace_back(n, rounded_mean(own, majority));
    std::vector<Document> documents;
    for (const Item* item = recent.begin; item != recent.end; ++item) documents.push_back({task.document(*item), item->date});
    const std::unique_ptr<Retriever> index = make_retriever({}, documents);
    neighbour.predictions.emplace_back();
    for (const Query& query : person.queries) neighbour.predictions.back().push_back(nearest(task, recent, *index, query, majority));
  }
  std::vector<Baseline> result;
  if (!text) result.push_back(std::move(everyone));
  if (!text && !choice) result.push_back(std::move(user));
  if (task.kind == TaskKind::ordinal) result.push_back(std::move(mean));
  result.push_back(std::move(neighbour));
  return result;
}

Difficulty difficulty(const TaskData& data, int64_t history) {
  THIMBLE_CHECK(data.task);
  const Task& task = *data.task;
  Difficulty d;
  Counts golds;
  double words = 0, n = 0;
  for (const Person& person : data.people)
    for (const Query& query : person.queries) {
      ++golds[strip(query.output)];
      n += 1;
      bool inside = false;
      for (const char c : query.output) {
        if (!is_space(c) && !inside) words += 1;
        inside = !is_space(c);
      }
    }
  if (n == 0) return d;
  d.classes = static_cast<int64_t>(golds.size());
  d.answer_words = words / n;
  if (task.kind != TaskKind::text)
    for (const auto& [gold, count] : golds) {
      const double p = static_cast<double>(count) / n;
      d.label_entropy_bits -= p * std::log2(p);
    }
  for (const Baseline& b : baselines(data, history)) {
    if (b.name == "majority") d.majority = mean_unit_score(task, data, b.predictions);
    if (b.name == "nearest") d.neighbour = mean_unit_score(task, data, b.predictions);
  }
  return d;
}

}  // namespace thimble::lab
