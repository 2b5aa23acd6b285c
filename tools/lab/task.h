// A task is one row: how its prompt is read, what retrieval compares, how examples and training pairs are written, how
// answers are scored. To add one, write tools/lab/tasks/<name>.cpp with its row and list it in tools/lab/task.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tools/lab/lamp.h"

namespace thimble::lab {

enum class TaskKind : uint8_t {
  label,    // one of a list, scored by likelihood
  ordinal,  // a label that is a number
  text,     // generated freely
};

// One training example: the loss falls on the completion only.
struct Pair {
  std::string prompt, completion;
};

struct Task {
  const char* name;                 // "LaMP_3", as the outputs file says
  const char* title;                // "product rating"
  TaskKind kind;
  const char* primary;              // the metric that stands first: accuracy, rouge1
  std::vector<const char*> fields;  // of a profile item, in file order, without id and date
  int answer_field;                 // the field that a training pair learns; -1: none is
  int long_field;                   // the field that is cut when a prompt must fit its token budget
  std::vector<std::string> fixed_labels;  // empty: the prompt lists them (labels_of)

  // The text that retrieval looks for, from a question's input.
  std::string (*query)(const std::string& input);
  // The text of an item that retrieval indexes; never its answer.
  std::string (*document)(const Item& item);
  // An item as an example in a prompt; text replaces the long field (possibly cut).
  std::string (*example)(const Item& item, const std::string& text);
  // Examples, best first, and the input, joined as LaMP does.
  std::string (*compose)(const std::vector<std::string>& examples, const std::string& input);
  // A question as it would be asked about this item; input: any question of the task, for its instruction. seed: of what
  // the recipe draws at random (where a text is cut).
  Pair (*pair)(const Item& item, const std::string& input, uint64_t seed);
};

// The seven rows in LaMP's order.
const std::vector<const Task*>& all_tasks();
// "LaMP_3" or "LaMP-3"; also LaMP_2M (LaMP_2) and LaMP_2N (news categories, LaMP_2 of the first version). Throws usage, listing the names.
const Task& find_task(std::string_view name);

inline bool is_task(const Task& task, std::string_view name) { return name == task.name; }

// Candidate answers: fixed_labels, or the list between brackets in the prompt. Empty for tasks of kind text.
std::vector<std::string> labels_of(const Task& task, const std::string& input);

// What separates question and answer in a decoder's prompt. The quotes make an answer look as it does in the examples.
struct AnswerFormat {
  std::string prefix = "\nanswer: \"";
  std::string suffix = "\"";
};

}  // namespace thimble::lab
