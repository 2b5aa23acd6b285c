// What the rows of tasks share: finding a prompt's payload behind its literal marker (the wording of the instruction
// before it differs between sources and is never looked at), and joining examples as LaMP does.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tools/lab/task.h"

namespace thimble::lab {

// A prompt in two: up to and including the first occurrence of the marker, and what follows without leading white space.
// Throws input when the marker is missing.
struct Payload {
  std::string head, text;
};
Payload split_at_marker(const std::string& input, std::string_view marker);

// The head of `input`, one space, and the text: the question of `input` asked about another payload.
std::string ask_about(const std::string& input, std::string_view marker, const std::string& text);

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// `text` with white space removed on both sides.
std::string strip(std::string_view text);

// "a , and b": examples with LaMP's joiner, which every example but LaMP_1's precedes with a space of its own.
std::string join_examples(const std::vector<std::string>& examples);

// Examples, ". ", input; the input alone where there are no examples.
std::string compose_sentences(const std::vector<std::string>& examples, const std::string& input);

// The rows, one per file of this folder.
extern const Task kLamp1, kLamp2, kLamp2News, kLamp3, kLamp4, kLamp5, kLamp6, kLamp7;

}  // namespace thimble::lab
