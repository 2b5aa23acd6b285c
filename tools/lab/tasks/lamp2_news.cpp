// LaMP_2N, news categories: LaMP_2 of the benchmark's first version, "categories: [...] article: A".
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kText, kTitle, kCategory };
constexpr std::string_view kMarker = "article:";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kTitle] + " " + item.fields[kText]; }

std::string example(const Item& item, const std::string& text) {
  return "the category for the article: \"" + text + "\" is \"" + item.fields[kCategory] + "\" ";
}

Pair pair(const Item& item, const std::string& input, uint64_t) {
  return {ask_about(input, kMarker, item.fields[kText]), item.fields[kCategory]};
}

}  // namespace

const Task kLamp2News{"LaMP_2N", "news categories", TaskKind::label, "accuracy",        {"text", "title", "category"}, kCategory, kText, {},
                      query,     document,          example,         compose_sentences, pair};

}  // namespace thimble::lab
