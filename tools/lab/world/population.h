// Who lives in the world: habits that everybody shares, rules that are a person's own, and what a person writes about a
// scene. Everything is drawn from named random streams.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "tensor/rng.h"
#include "tools/lab/task.h"
#include "tools/lab/world.h"
#include "tools/lab/world/templates.h"

namespace thimble::lab {

// How a person shapes titles and tweets.
struct Style {
  std::array<uint8_t, 2> opener{};  // [topic group]: topics 0..7 and 8..15
  std::array<uint8_t, 2> closer{};  // [pole of the adjective]
  uint8_t form = 0;                 // which words of the text a title takes: 0 or 1
  uint8_t verb = 0;                 // tweets
  std::array<std::array<uint8_t, 2>, kAttributes> synonym{};  // tweets: [attribute][pole]
};

// A person's answers to everything that one task asks.
struct Rules {
  std::array<uint8_t, kTopics> tag_of_topic{};
  std::array<uint8_t, kNames> tag_of_name{};
  std::array<int8_t, kAttributes> weight{};  // -2, -1, 1, 2: how pole 0 of an attribute counts
  std::array<bool, kTopics> likes{};         // topics that the person cites
  Style style;
};

// Dials that matter to a single text, with the task's defaults filled in.
struct TextDials {
  const Task* task = nullptr;
  int keys = 0;
  bool by_name = false;
  int classes = kTags;
  double noise = 0, person = 0.7, drift = 0;
  bool latent = false;
};
TextDials text_dials(const WorldDials& dials);

// What everybody does who has no rule of their own. The same in every world, so base models know it.
const Rules& habits();

// person: the share of rules that are the person's own.
Rules draw_rules(Philox& rng, const TextDials& dials);
// Every rule is drawn anew with probability dials.drift.
Rules drifted(const Rules& rules, Philox& rng, const TextDials& dials);

// Which half of the words a text may use: with dials.latent, histories use one half and questions the other.
enum class Side : uint8_t { history, query };
// allowed: the names or topics in use by this person (empty: all).
Scene draw_scene(Philox& rng, const TextDials& dials, Side side, const std::vector<uint8_t>& allowed);
// The topics or names that a person's texts are about; empty: all.
std::vector<uint8_t> draw_allowed(Philox& rng, const TextDials& dials);

// The rating that weights give to a scene: 1..5.
int rating(const std::array<int8_t, kAttributes>& weight, const Scene& scene);
// The title or tweet of a style.
std::string styled(const Style& style, const Scene& scene, const TextDials& dials);
// The answer that the rules give, without noise; a tag, a digit, a title or a tweet. (LaMP_1 has none of its own.)
std::string rule_answer(const Rules& rules, const Scene& scene, const TextDials& dials);
// With probability dials.noise another answer: a different label, or a text in somebody else's style.
std::string noisy_answer(const Rules& rules, const Scene& scene, const TextDials& dials, Philox& rng);

// The text of a task's scene: what stands behind the marker of its question.
std::string scene_text(const Task& task, const Scene& scene);
// The fields of a profile item, in the order of Task::fields.
std::vector<std::string> item_fields(const Task& task, const Scene& scene, const std::string& answer);
// The question about a scene; labels: what the list of tags holds.
std::string question(const TextDials& dials, const Scene& scene);

// LaMP_1: the topics that a person writes about and cites. Somebody who likes fewer than two still cites something.
std::vector<uint8_t> liked_topics(const Rules& rules);
// A title by the author and two references, of which one has a topic that the author likes.
struct Citation {
  Scene title, reference[2];
  int gold = 0;  // 0 or 1
};
Citation draw_citation(Philox& rng, const Rules& rules, const TextDials& dials, Side side, bool noisy);
std::string citation_question(const Citation& citation);

}  // namespace thimble::lab
