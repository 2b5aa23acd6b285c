// LaMP_7, tweet paraphrase: the text behind the first colon, in this person's words. History holds tweets without
// originals, so a training pair shows the beginning of a tweet, 10 to 25 % of its words, and asks for the rest.
#include <algorithm>

#include "tensor/rng.h"
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

enum Field { kText };
constexpr std::string_view kMarker = ":";

std::string query(const std::string& input) { return split_at_marker(input, kMarker).text; }

std::string document(const Item& item) { return item.fields[kText]; }

std::string example(const Item&, const std::string& text) { return "\"" + text + "\" "; }

std::string compose(const std::vector<std::string>& examples, const std::string& input) {
  if (examples.empty()) return input;
  return join_examples(examples) + " are written by a person. Following the given patterns " + input;
}

Pair pair(const Item& item, const std::string&, uint64_t seed) {
  constexpr std::string_view kInstruction = "Complete the following tweet:";
  const std::string text = strip(item.fields[kText]);
  std::vector<size_t> starts;  // of words but the first
  for (size_t i = 1; i < text.size(); ++i)
    if (is_space(text[i - 1]) && !is_space(text[i])) starts.push_back(i);
  if (starts.empty()) return {std::string(kInstruction), text};
  Philox draw(seed, 0x6c616d7037);
  const double words = (0.10 + 0.15 * draw.uniform()) * static_cast<double>(starts.size() + 1);
  const size_t head = std::clamp<size_t>(static_cast<size_t>(words + 0.5), 1, starts.size());
  const size_t cut = starts[head - 1];
  return {std::string(kInstruction) + " " + strip(text.substr(0, cut)), text.substr(cut)};
}

}  // namespace

const Task kLamp7{"LaMP_7", "tweet paraphrase", TaskKind::text, "rouge1", {"text"}, kText, kText, {},
                  query,    document,           example,        compose,  pair};

}  // namespace thimble::lab
