// LaMP_2, movie tagging: one tag of the list in the prompt, "tags: [...] description: D".
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kDescription, kTag };
constexpr std::string_view kMarker = "description:";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kDescription]; }

std::string example(const Item& item, const std::string& text) {
  return "the tag for the movie: \"" + text + "\" is \"" + item.fields[kTag] + "\" ";
}

Pair pair(const Item& item, const std::string& input, uint64_t) {
  return {ask_about(input, kMarker, item.fields[kDescription]), item.fields[kTag]};
}

}  // namespace

const Task kLamp2{"LaMP_2", "movie tagging", TaskKind::label, "accuracy",        {"description", "tag"}, kTag, kDescription, {},
                  query,    document,        example,         compose_sentences, pair};

}  // namespace thimble::lab
