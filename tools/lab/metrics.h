// Scores of answers, as LaMP defines them, and the baselines and difficulty figures that stand beside every result.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tools/lab/task.h"

namespace thimble::lab {

double rouge_n(std::string_view prediction, std::string_view gold, int n, bool stem = false);  // F1
double rouge_l(std::string_view prediction, std::string_view gold, bool stem = false);
double accuracy(const std::vector<std::string>& predictions, const std::vector<std::string>& golds);
double macro_f1(const std::vector<std::string>& predictions, const std::vector<std::string>& golds,
                const std::vector<std::string>& labels);
// |prediction - gold|; a prediction that is no number counts as whichever of 1 and 5 is farther from the gold.
double rating_error(std::string_view prediction, std::string_view gold);

// Names of the metrics of a task, the primary one first: LaMP_1, 2: accuracy, macro_f1; LaMP_3: accuracy, mae, rmse;
// the others: rouge1, rougeL.
std::vector<std::string> metric_names(const Task& task);
bool lower_is_better(std::string_view metric);  // mae, rmse

// All metrics of answers in order (both sides stripped of white space). labels empty: the task's fixed ones.
std::map<std::string, double> score(const Task& task, const std::vector<std::string>& predictions,
                                    const std::vector<std::string>& golds, const std::vector<std::string>& labels,
                                    bool stem = false);
// The primary metric's share of one answer: 0 or 1 for accuracy, ROUGE-1 for texts. Means of these are paired over people.
double unit_score(const Task& task, std::string_view prediction, std::string_view gold);

// Predictions that need no model, one per query of the person.
// majority: the most frequent answer of everyone's history; user_majority (user_mean for ratings, rounded): of this
// person's; nearest: the answer of the most similar item (BM25 over Task::document).
struct Baseline {
  std::string name;
  std::vector<std::vector<std::string>> predictions;  // [people][queries]
};
// history: the last so many items of each person; 0: all. Ratings have user_majority and user_mean. Texts have nearest
// only: the title (tweet) of the most similar item. Histories of LaMP_1 hold no answers: its majority is the first label,
// and nearest is the reference that some item resembles most. A person without history gets the majority.
std::vector<Baseline> baselines(const TaskData& data, int64_t history);

// What can be said about a task's difficulty without a model.
struct Difficulty {
  double label_entropy_bits = 0;  // of gold answers over all queries; 0 for texts
  int64_t classes = 0;            // distinct gold answers
  double majority = 0;            // primary metric of the majority answer (0 for texts)
  double neighbour = 0;           // primary metric of the nearest item's answer
  double answer_words = 0;        // mean words of a gold answer
};
Difficulty difficulty(const TaskData& data, int64_t history);

}  // namespace thimble::lab
