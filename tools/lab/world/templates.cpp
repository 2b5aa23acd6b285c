#include "tools/lab/world/templates.h"

#include "tensor/error.h"

namespace thimble::lab {
namespace {

// N and M: the nouns; A: the adjectives; P: the person; T: the town; V: the verb.
const std::vector<const char*>& shapes(Shape shape) {
  static const std::vector<const char*> paper = {"the A N and the M", "a N for the A M", "how the A N changed the M", "a A N near the M"};
  static const std::vector<const char*> abstract = {"we study the A N and its M with P of T", "the paper shows how P of T measured a A N and the M",
                                                    "a A N was tested by P of T against the M"};
  static const std::vector<const char*> movie = {"a A story about the N and the M with P from T", "P from T follows a N to the A M",
                                                 "the A N meets the M when P leaves T", "in T the N of P hides a A M",
                                                 "P of T must find the A N behind the M", "the M and the A N belong to P from T"};
  static const std::vector<const char*> review = {"the N was A", "a A N", "this N seemed A", "my N was so A"};
  static const std::vector<const char*> article = {"today in T a A N of P was seen near the M", "P of T showed a A N and the M",
                                                   "the A N reached T where P kept the M"};
  static const std::vector<const char*> email = {"dear P of T please send the A N and the M", "the A N for P in T came with a M",
                                                 "we put the M and the A N on the desk of P in T"};
  static const std::vector<const char*> tweet = {"V a A N in T with P"};
  switch (shape) {
    case Shape::paper: return paper;
    case Shape::abstract: return abstract;
    case Shape::movie: return movie;
    case Shape::review: return review;
    case Shape::article: return article;
    case Shape::email: return email;
    case Shape::tweet:
    case Shape::plain: return tweet;
  }
  return tweet;
}

std::string adjectives(const Scene& scene) {
  std::string text;
  for (const Adjective& a : scene.adjectives) text += (text.empty() ? "" : " and ") + a.word();
  return text;
}

}  // namespace

std::string render(Shape shape, const Scene& scene) {
  const auto& list = shapes(shape);
  std::string out;
  for (const char* at = list[scene.form % list.size()]; *at; ++at) {
    switch (*at) {
      case 'N': out += kTopicNouns[scene.topic][scene.noun1]; break;
      case 'M': out += kTopicNouns[scene.topic][scene.noun2]; break;
      case 'A': out += adjectives(scene); break;
      case 'P': out += name_word(scene.name); break;
      case 'T': out += town_word(scene.name); break;
      case 'V': out += kVerbWords[scene.verb]; break;
      default: out += *at;
    }
  }
  return out;
}

const std::vector<Instruction>& instructions() {
  static const std::vector<Instruction> rows = {
      {"LaMP_1", "Which reference fits the author of the paper with the title {}? Answer [1] or [2]. "},
      {"LaMP_2", "Choose one tag for the movie. tags: [{}] description: "},
      {"LaMP_3", "Rate the review from 1 to 5. review: "},
      {"LaMP_4", "Write a headline. article: "},
      {"LaMP_5", "Write a title. paper: "},
      {"LaMP_6", "Write a subject. email: "},
      {"LaMP_7", "Say it in your own words: "},
  };
  return rows;
}

std::string instruction(std::string_view task) {
  for (const Instruction& row : instructions())
    if (task == row.task) return row.text;
  throw Error(ErrorCode::usage, "the world has no task " + std::string(task), "valid: LaMP_1 to LaMP_7");
}

std::vector<std::string> template_texts() {
  std::vector<std::string> texts;
  for (const Instruction& row : instructions()) texts.push_back(row.text);
  // The words of LaMP's examples, and of the answer format.
  for (const char* text : {"the tag for the movie is", "is the score for", "is the title for", "is a title for", "Following the given patterns",
                           "are written by a person", "title and", "answer", "for", "Write an abstract for the paper with the title",
                           "Complete the following tweet", "abstract", "text"})
    texts.push_back(text);
  for (Shape shape : {Shape::paper, Shape::abstract, Shape::movie, Shape::review, Shape::article, Shape::email, Shape::tweet})
    for (const char* text : shapes(shape)) {
      std::string words;
      for (const char* at = text; *at; ++at) words += (*at >= 'A' && *at <= 'Z') ? ' ' : *at;
      texts.push_back(words);
    }
  return texts;
}

}  // namespace thimble::lab
