#include "tools/lab/tasks/task_text.h"

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble::lab {
Payload split_at_marker(const std::string& input, std::string_view marker) {
  const size_t at = input.find(marker);
  if (at == std::string::npos)
    throw Error(ErrorCode::input, "the prompt " + quote_for_message(input) + " has no " + quote_for_message(marker),
                "the text that the question is about stands behind this marker; is this the right task?");
  size_t begin = at + marker.size();
  const std::string head = input.substr(0, begin);
  while (begin < input.size() && is_space(input[begin])) ++begin;
  return {head, input.substr(begin)};
}

std::string ask_about(const std::string& input, std::string_view marker, const std::string& text) {
  return split_at_marker(input, marker).head + " " + text;
}

std::string strip(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

std::string join_examples(const std::vector<std::string>& examples) {
  std::string out;
  for (size_t i = 0; i < examples.size(); ++i) out += (i ? ", and " : "") + examples[i];
  return out;
}

std::string compose_sentences(const std::vector<std::string>& examples, const std::string& input) {
  return examples.empty() ? input : join_examples(examples) + ". " + input;
}

}  // namespace thimble::lab
