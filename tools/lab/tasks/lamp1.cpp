// LaMP_1, citation: which of two references would this author cite in a paper with the given title? The prompt quotes
// three titles: the paper's, and behind "[1]:" and "[2]:" the candidates'. Retrieval looks for the candidates.
#include "models/io/json.h"
#include "tensor/error.h"
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kTitle, kAbstract };

// A candidate runs from the first quote behind its marker to the last one before `end`, since titles may quote.
std::string candidate(const std::string& input, size_t marker, size_t end) {
  const size_t open = marker == std::string::npos ? marker : input.find('"', marker);
  const size_t close = end == 0 ? std::string::npos : input.rfind('"', end - 1);
  if (open == std::string::npos || open >= end || close == std::string::npos || close <= open)
    throw Error(ErrorCode::input, "the prompt " + quote_for_message(input) + " has no two references: [1]: \"...\" [2]: \"...\"",
                "is this the right task?");
  return strip(std::string_view(input).substr(open + 1, close - open - 1));
}

std::string query(const std::string& input) {
  const size_t first = input.find("[1]:");
  const size_t second = first == std::string::npos ? first : input.find("[2]:", first);
  const std::string one = candidate(input, first, second == std::string::npos ? 0 : second);
  return one + " " + candidate(input, second, input.size());
}

std::string document(const Item& item) { return item.fields[kTitle] + " " + item.fields[kAbstract]; }

std::string example(const Item&, const std::string& text) { return "\"" + text + "\""; }

// The author's other titles stand beside the paper's own: title, and "A", and "B" "THE PAPER". The word is sought in the
// instruction only, before the first quote.
std::string compose(const std::vector<std::string>& examples, const std::string& input) {
  if (examples.empty()) return input;
  const std::string_view instruction = std::string_view(input).substr(0, input.find('"'));
  constexpr std::string_view kWord = "title";
  const size_t at = instruction.find(kWord);
  if (at == std::string_view::npos) return compose_sentences(examples, input);
  const size_t behind = at + kWord.size();
  return input.substr(0, behind) + ", and " + join_examples(examples) + input.substr(behind);
}

// History holds no choices, so what can be learned from it is what this author writes about.
Pair pair(const Item& item, const std::string&, uint64_t) {
  return {"Write an abstract for the paper with the title \"" + item.fields[kTitle] + "\"", item.fields[kAbstract]};
}

}  // namespace

const Task kLamp1{"LaMP_1", "citation", TaskKind::label, "accuracy", {"title", "abstract"}, kAbstract, kTitle, {"[1]", "[2]"},
                  query,    document,   example,         compose,    pair};

}  // namespace thimble::lab
