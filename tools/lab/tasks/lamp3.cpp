// LaMP_3, product rating: a score from 1 to 5 for "review: R".
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kText, kScore };
constexpr std::string_view kMarker = "review:";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kText]; }

std::string example(const Item& item, const std::string& text) {
  return item.fields[kScore] + " is the score for \"" + text + "\" ";
}

Pair pair(const Item& item, const std::string& input, uint64_t) {
  return {ask_about(input, kMarker, item.fields[kText]), item.fields[kScore]};
}

}  // namespace

const Task kLamp3{"LaMP_3", "product rating", TaskKind::ordinal, "accuracy", {"text", "score"}, kScore, kText, {"1", "2", "3", "4", "5"},
                  query,    document,         example,           compose_sentences,             pair};

}  // namespace thimble::lab
