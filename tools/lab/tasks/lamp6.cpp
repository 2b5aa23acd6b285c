// LaMP_6, e-mail subject: a subject for the text behind the first colon ("... email: E").
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kTitle, kText };
constexpr std::string_view kMarker = ":";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kText]; }

std::string example(const Item& item, const std::string& text) {
  return "\"" + item.fields[kTitle] + "\" is the title for \"" + text + "\" ";
}

Pair pair(const Item& item, const std::string& input, uint64_t) {
  return {ask_about(input, kMarker, item.fields[kText]), item.fields[kTitle]};
}

}  // namespace

const Task kLamp6{"LaMP_6", "e-mail subject", TaskKind::text, "rouge1",          {"title", "text"}, kTitle, kText, {},
                  query,    document,         example,        compose_sentences, pair};

}  // namespace thimble::lab
