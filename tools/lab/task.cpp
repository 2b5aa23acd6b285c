// The list of tasks, and reading the candidate answers that a prompt lists.
#include "tools/lab/task.h"

#include <algorithm>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {

const std::vector<const Task*>& all_tasks() {
  static const std::vector<const Task*> tasks{&kLamp1, &kLamp2, &kLamp3, &kLamp4, &kLamp5, &kLamp6, &kLamp7};
  return tasks;
}

const Task& find_task(std::string_view name) {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '-', '_');
  if (wanted == "LaMP_2M") wanted = kLamp2.name;
  std::string names;
  for (const Task* task : all_tasks()) {
    if (wanted == task->name) return *task;
    names += std::string(task->name) + ", ";
  }
  if (wanted == kLamp2News.name) return kLamp2News;
  throw Error(ErrorCode::usage, "unknown task " + quote_for_message(name),
              "valid tasks: " + names + kLamp2News.name + " (news categories)");
}

std::vector<std::string> labels_of(const Task& task, const std::string& input) {
  if (task.kind == TaskKind::text) return {};
  if (!task.fixed_labels.empty()) return task.fixed_labels;
  size_t begin = std::string::npos;
  for (const std::string_view marker : {"tags:", "categories:"})
    if (const size_t at = input.find(marker); at != std::string::npos) begin = std::min(begin, at);
  const size_t open = begin == std::string::npos ? begin : input.find('[', begin);
  const size_t close = open == std::string::npos ? open : input.find(']', open);
  std::vector<std::string> labels;
  if (close != std::string::npos) {
    for (size_t at = open + 1; at <= close;) {
      const size_t end = std::min(input.find(',', at), close);
      std::string label = strip(std::string_view(input).substr(at, end - at));
      if (label.size() >= 2 && (label.front() == '\'' || label.front() == '"') && label.back() == label.front())
        label = label.substr(1, label.size() - 2);
      if (!label.empty() && std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
      at = end + 1;
    }
  }
  if (labels.empty())
    throw Error(ErrorCode::input, "the prompt " + quote_for_message(input) + " lists no answers",
                "a list is expected: tags: [a, b, c] or categories: [a, b, c]");
  return labels;
}

}  // namespace thimble::lab
