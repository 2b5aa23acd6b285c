// Rows of tasks: prompts of LaMP's and of other wordings, examples and their joiners, training pairs, labels.
#include "tools/lab/task.h"

#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "tensor/error.h"

namespace thimble::lab {
namespace {

Item item(const Task& task, std::vector<std::string> fields) {
  EXPECT_EQ(fields.size(), task.fields.size());
  return {"1", "", std::move(fields)};
}

// What a runner does with one example.
std::string prompt_with(const Task& task, const Item& it, const std::string& input) {
  return task.compose({task.example(it, it.fields[static_cast<size_t>(task.long_field)])}, input);
}

TEST(Tasks, EveryRowIsComplete) {
  ASSERT_EQ(all_tasks().size(), 7u);
  for (size_t i = 0; i < 7; ++i) {
    const Task& t = *all_tasks()[i];
    EXPECT_EQ(std::string(t.name), "LaMP_" + std::to_string(i + 1));
    ASSERT_GE(t.long_field, 0);
    ASSERT_LT(t.long_field, static_cast<int>(t.fields.size()));
    ASSERT_LT(t.answer_field, static_cast<int>(t.fields.size()));
    EXPECT_EQ(std::string(t.primary), t.kind == TaskKind::text ? "rouge1" : "accuracy");
    EXPECT_TRUE(t.query && t.document && t.example && t.compose && t.pair);
    EXPECT_EQ(t.compose({}, "as it is"), "as it is");
  }
}

TEST(Tasks, AreFoundByEitherSpelling) {
  EXPECT_STREQ(find_task("LaMP-3").name, "LaMP_3");
  EXPECT_STREQ(find_task("LaMP_2M").name, "LaMP_2");
  EXPECT_STREQ(find_task("LaMP_2N").title, "news categories");
  try {
    find_task("LaMP_8");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::usage);
    EXPECT_NE(e.hint().find("LaMP_7"), std::string::npos);
  }
}

TEST(Tasks, CitationReadsThreeQuotedTitles) {
  const Task& t = find_task("LaMP_1");
  const std::string input =
      "For an author who has written the paper with the title \"Deep \"nets\" at sea\", which reference is related? Just answer "
      "with [1] or [2] without explanation. [1]: \"On \"boats\" and wind\" [2]: \"Gulls\"";
  EXPECT_EQ(t.query(input), "On \"boats\" and wind Gulls");
  const Item it = item(t, {"Sails", "We study sails."});
  EXPECT_EQ(t.document(it), "Sails We study sails.");
  EXPECT_EQ(t.compose({t.example(it, "A"), t.example(it, "B")}, "the title \"T\" [1]: \"x\" [2]: \"y\""),
            "the title, and \"A\", and \"B\" \"T\" [1]: \"x\" [2]: \"y\"");
  // The word is sought before the quotes only.
  EXPECT_EQ(t.compose({"\"A\""}, "paper \"a title\" [1]: \"x\" [2]: \"y\""), "\"A\". paper \"a title\" [1]: \"x\" [2]: \"y\"");
  const Pair p = t.pair(it, input, 0);
  EXPECT_NE(p.prompt.find("\"Sails\""), std::string::npos);
  EXPECT_EQ(p.completion, "We study sails.");
  EXPECT_EQ(labels_of(t, input), (std::vector<std::string>{"[1]", "[2]"}));
  for (const char* bad : {"", "no marker", "[1]: \"a\"", "[1]: \"a\" [2]: b", "[2]: \"a\" [1]: \"b\"", "[1]: [2]: \"", "[1]:\"[2]:\""})
    EXPECT_THROW(t.query(bad), Error) << bad;
}

TEST(Tasks, TaggingReadsLabelsAndDescription) {
  const Task& t = find_task("LaMP_2");
  const std::string input =
      "Which tag does this movie relate to among the following tags? Just answer with the tag name without further explanation. "
      "tags: [sci-fi, based on a book, comedy] description: A robot: alone";
  EXPECT_EQ(t.query(input), "A robot: alone");
  EXPECT_EQ(labels_of(t, input), (std::vector<std::string>{"sci-fi", "based on a book", "comedy"}));
  const Item it = item(t, {"a heist", "action"});
  EXPECT_EQ(prompt_with(t, it, input), "the tag for the movie: \"a heist\" is \"action\" . " + input);
  const Pair p = t.pair(it, input, 0);
  EXPECT_EQ(p.prompt, input.substr(0, input.find("A robot")) + "a heist");
  EXPECT_EQ(p.completion, "action");
  EXPECT_EQ(labels_of(t, "tags: ['a', \"b\" , a] description: x"), (std::vector<std::string>{"a", "b"}));
  for (const char* bad : {"", "tags: description: x", "tags: [] description: x", "tags: [a, b"}) EXPECT_THROW(labels_of(t, bad), Error) << bad;
  EXPECT_THROW(t.query("tags: [a] article: x"), Error);
}

TEST(Tasks, OldNewsCategories) {
  const Task& t = find_task("LaMP_2N");
  const std::string input = "which category? categories: [sports, food & drink] article: He ran.";
  EXPECT_EQ(t.query(input), "He ran.");
  EXPECT_EQ(labels_of(t, input), (std::vector<std::string>{"sports", "food & drink"}));
  const Item it = item(t, {"text", "title", "sports"});
  EXPECT_EQ(t.document(it), "title text");
  EXPECT_EQ(prompt_with(t, it, input), "the category for the article: \"text\" is \"sports\" . " + input);
}

TEST(Tasks, RatingIgnoresTheInstruction) {
  const Task& t = find_task("LaMP_3");
  const Item it = item(t, {"too salty", "2"});
  for (const std::string instruction :
       {"What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further "
        "explanation. review:", "rate 1 to 5 . review:"}) {
    const std::string input = instruction + " fine soup, review: great";
    EXPECT_EQ(t.query(input), "fine soup, review: great");
    EXPECT_EQ(t.pair(it, input, 0).prompt, instruction + " too salty");
    EXPECT_EQ(t.pair(it, input, 0).completion, "2");
    EXPECT_EQ(t.compose({t.example(it, "a"), t.example(it, "b")}, input), "2 is the score for \"a\" , and 2 is the score for \"b\" . " + input);
  }
  EXPECT_EQ(labels_of(t, "").size(), 5u);
  EXPECT_THROW(t.query("no marker"), Error);
}

TEST(Tasks, TextsInTheirPatterns) {
  const Task& l4 = find_task("LaMP_4");
  const std::string headline = "Generate a headline for the following article: Rain fell.";
  EXPECT_EQ(l4.query(headline), "Rain fell.");
  const Item news = item(l4, {"Wet", "It rained."});
  EXPECT_EQ(l4.document(news), "Wet It rained.");
  EXPECT_EQ(prompt_with(l4, news, headline), "\"Wet\" is the title for \"It rained.\" . " + headline);
  EXPECT_EQ(l4.pair(news, headline, 0).prompt, "Generate a headline for the following article: It rained.");
  EXPECT_EQ(l4.pair(news, headline, 0).completion, "Wet");

  const Task& l5 = find_task("LaMP_5");
  const std::string title = "Generate a title for the following abstract of a paper: We sail.";
  EXPECT_EQ(l5.query(title), "We sail.");
  EXPECT_EQ(prompt_with(l5, item(l5, {"T", "A"}), title), "\"T\" is a title for \"A\" . Following the given patterns " + title);

  const Task& l6 = find_task("LaMP_6");
  const std::string mail = "Generate a subject for the following email: Meet at 10:30";
  EXPECT_EQ(l6.query(mail), "Meet at 10:30");
  const Item letter = item(l6, {"Hi", "See you"});
  EXPECT_EQ(l6.document(letter), "See you");
  EXPECT_EQ(prompt_with(l6, letter, mail), "\"Hi\" is the title for \"See you\" . " + mail);

  const Task& l7 = find_task("LaMP_7");
  const std::string tweet = "Paraphrase the following tweet without any explanation before or after it: I sail";
  EXPECT_EQ(l7.query(tweet), "I sail");
  EXPECT_EQ(l7.compose({"\"a\" ", "\"b\" "}, tweet), "\"a\" , and \"b\"  are written by a person. Following the given patterns " + tweet);
  for (const Task* t : {&l4, &l5, &l6, &l7}) {
    EXPECT_TRUE(labels_of(*t, "anything").empty());
    EXPECT_THROW(t->query("no marker"), Error);
  }
}

TEST(Tasks, ATweetIsCutWithinItsFirstQuarter) {
  const Task& t = find_task("LaMP_7");
  std::string text;
  for (int i = 0; i < 40; ++i) text += (i ? "  w" : "w") + std::to_string(i);
  const Item it = item(t, {text});
  std::set<std::string> prompts;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Pair p = t.pair(it, "paraphrase: x", seed);
    prompts.insert(p.prompt);
    std::istringstream tail(p.completion);
    int words = 0;
    for (std::string w; tail >> w;) ++words;
    EXPECT_GE(40 - words, 4);
    EXPECT_LE(40 - words, 10);
    const size_t colon = p.prompt.find(": ");
    ASSERT_NE(colon, std::string::npos);
    EXPECT_EQ(p.prompt.substr(colon + 2) + "  " + p.completion, text);
    EXPECT_EQ(p.prompt, t.pair(it, "other: y", seed).prompt);
  }
  EXPECT_GT(prompts.size(), 4u);
  EXPECT_EQ(t.pair(item(t, {" one "}), "x:", 3).completion, "one");
  EXPECT_EQ(t.pair(item(t, {"one two"}), "x:", 3).completion, "two");
}

}  // namespace
}  // namespace thimble::lab
