// What the world's texts look like: a scene is what a text is about, a template is how it says so.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tools/lab/world/lexicon.h"

namespace thimble::lab {

struct Adjective {
  uint8_t attribute = 0, pole = 0, synonym = 0;
  std::string word() const { return kAdjectives[attribute][pole][synonym]; }
};

// Two different nouns of one topic, a person with a town, some adjectives of different attributes.
struct Scene {
  uint8_t topic = 0, noun1 = 0, noun2 = 1, name = 0, form = 0, verb = 0;
  std::vector<Adjective> adjectives;
};

enum class Shape : uint8_t { paper, abstract, movie, review, article, email, tweet, plain };

// The text of a scene in one of the shape's templates (scene.form modulo their number).
std::string render(Shape shape, const Scene& scene);

// The instruction of a task's question with everything up to the payload; {} stands for the list of labels.
struct Instruction {
  const char* task;
  const char* text;
};
const std::vector<Instruction>& instructions();
std::string instruction(std::string_view task);

// Every string that a template or an instruction holds, for the vocabulary.
std::vector<std::string> template_texts();

}  // namespace thimble::lab
