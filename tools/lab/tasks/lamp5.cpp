// LaMP_5, scholarly title: a title for the abstract in "paper: A".
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kTitle, kAbstract };
constexpr std::string_view kMarker = "paper:";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kTitle] + " " + item.fields[kAbstract]; }

std::string example(const Item& item, const std::string& text) {
  return "\"" + item.fields[kTitle] + "\" is a title for \"" + text + "\" ";
}

std::string compose(const std::vector<std::string>& examples, const std::string& input) {
  return examples.empty() ? input : join_examples(examples) + ". Following the given patterns " + input;
}

Pair pair(const Item& item, const std::string& input, uint64_t) {
  return {ask_about(input, kMarker, item.fields[kAbstract]), item.fields[kTitle]};
}

}  // namespace

const Task kLamp5{"LaMP_5", "scholarly title", TaskKind::text, "rouge1", {"title", "abstract"}, kTitle, kAbstract, {},
                  query,    document,          example,        compose,  pair};

}  // namespace thimble::lab
