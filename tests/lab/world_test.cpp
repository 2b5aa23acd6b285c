// The world: deterministic, its dials do what they say, and its best scores leave room for an experiment.
#include "tools/lab/world.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tests/scratch_dir.h"
#include "tools/lab/metrics.h"
#include "tools/lab/world/files.h"
#include "tools/lab/world/mix.h"
#include "tools/lab/world/population.h"

namespace thimble::lab {
namespace {

WorldDials dials(const std::string& task, int64_t history = 64) {
  WorldDials d;
  d.task = task;
  d.history = history;
  d.people = 20;
  return d;
}

const Possible& primary(const WorldTask& world) {
  for (const Possible& p : world.possible)
    if (p.metric == world.data.task->primary) return p;
  throw std::runtime_error("no primary metric");
}

const std::vector<std::string> kTasks = {"LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"};

TEST(World, IsAFunctionOfItsDials) {
  for (const std::string& task : kTasks) {
    const WorldTask a = make_world(dials(task)), b = make_world(dials(task));
    WorldDials other = dials(task);
    other.seed = 1;
    const WorldTask c = make_world(other);
    int64_t same = 0;
    for (size_t p = 0; p < a.data.people.size(); ++p)
      for (size_t q = 0; q < a.data.people[p].queries.size(); ++q) {
        EXPECT_EQ(a.data.people[p].queries[q].input, b.data.people[p].queries[q].input);
        EXPECT_EQ(a.data.people[p].queries[q].output, b.data.people[p].queries[q].output);
        same += a.data.people[p].queries[q].input == c.data.people[p].queries[q].input;
      }
    EXPECT_LT(same, 20) << task;
    EXPECT_NE(a.data.sha256, c.data.sha256);
    EXPECT_EQ(a.data.sha256, world_sha256(dials(task)));
  }
}

// A longer history has the same questions, so history sizes can be compared on them.
TEST(World, QuestionsDoNotDependOnTheHistory) {
  for (const std::string& task : kTasks) {
    const WorldTask a = make_world(dials(task, 8)), b = make_world(dials(task, 64));
    for (size_t p = 0; p < a.data.people.size(); ++p)
      for (size_t q = 0; q < a.data.people[p].queries.size(); ++q)
        ASSERT_EQ(a.data.people[p].queries[q].output, b.data.people[p].queries[q].output);
  }
}

// The conditions under which an experiment can show anything: whoever reads the history comes within 2 points of whoever
// knows the person, who is at least 20 points better than whoever reads the question alone.
TEST(World, LeavesRoomForPersonalization) {
  for (const std::string& task : kTasks) {
    const Possible p = primary(make_world(dials(task, 96)));
    EXPECT_GE(p.history, p.latent - 0.02) << task;
    EXPECT_GE(p.latent, p.query + 0.20) << task;
    EXPECT_GE(p.latent, 0.98) << task;
  }
}

TEST(World, MoreHistoryIsBetter) {
  for (const std::string task : {"LaMP_1", "LaMP_2", "LaMP_3"}) {
    double last = 0;
    for (int64_t n : {1, 8, 64}) {
      const double now = primary(make_world(dials(task, n))).history;
      EXPECT_GT(now, last) << task << " " << n;
      last = now;
    }
  }
}

// Who may look at the latest items only knows less, of the same data.
TEST(World, BestScoresFromTheLatestItems) {
  for (const std::string task : {"LaMP_1", "LaMP_2", "LaMP_3"}) {
    WorldDials d = dials(task);
    for (const double drift : {0.0, 0.5}) {
      d.drift = drift;
      const WorldTask all = make_world(d), same = make_world(d, 64), few = make_world(d, 2);
      EXPECT_EQ(primary(all).history, primary(same).history);
      EXPECT_LT(primary(few).history, primary(all).history - 0.01) << task;
      EXPECT_EQ(few.data.people[3].history.size(), 64u);
      EXPECT_EQ(few.data.people[3].history[5].fields, all.data.people[3].history[5].fields);
    }
  }
}

TEST(World, NoiseReplacesAnswers) {
  for (const std::string task : {"LaMP_2", "LaMP_3", "LaMP_1"}) {
    WorldDials d = dials(task, 96);
    d.people = 60;
    d.noise = 0.3;
    const Possible p = primary(make_world(d));
    // 960 questions: four standard errors are 0.06.
    EXPECT_NEAR(p.latent, 0.7, 0.06) << task;
  }
}

TEST(World, ImpersonalAnswersAreEverybodys) {
  WorldDials d = dials("LaMP_2");
  d.person = 0;
  const Possible p = primary(make_world(d));
  EXPECT_EQ(p.query, 1);
  EXPECT_EQ(p.latent, 1);
}

TEST(World, LatentOverlapSharesNoNouns) {
  WorldDials d = dials("LaMP_2");
  d.overlap = "latent";
  std::set<std::string> nouns, seen;
  for (const auto& topic : kTopicNouns)
    for (const char* noun : topic) nouns.insert(noun);
  const auto words = [&](const std::string& text) {
    std::set<std::string> found;
    std::string word;
    for (char c : text + " ") {
      if (c >= 'a' && c <= 'z')
        word += c;
      else {
        if (nouns.count(word)) found.insert(word);
        word.clear();
      }
    }
    return found;
  };
  for (const Person& person : make_world(d).data.people) {
    seen.clear();
    for (const Item& item : person.history)
      for (const std::string& word : words(item.fields[0])) seen.insert(word);
    for (const Query& q : person.queries)
      for (const std::string& word : words(q.input)) EXPECT_EQ(seen.count(word), 0u) << word;
  }
}

// The exact belief about ratings against brute force on a tiny case: one review, one attribute.
TEST(World, RatingBeliefIsExact) {
  WorldDials d = dials("LaMP_3", 1);
  d.keys = 1;
  d.people = 400;
  const Possible p = primary(make_world(d));
  // From the query alone: pole 0 of an attribute with consensus 0.75 gives 4 or 5 with 0.375 each.
  EXPECT_NEAR(p.query, 0.375, 4 * std::sqrt(0.375 * 0.625 / 6400));
  // One review tells the weight of one attribute of eight exactly: 1/8 + 7/8 of the above.
  EXPECT_NEAR(p.history, 0.125 + 0.875 * 0.375, 4 * std::sqrt(0.25 / 6400));
}

TEST(World, DialsOutOfRangeAreNamed) {
  const auto refuses = [](WorldDials d, const std::string& word) {
    try {
      make_world(d);
      ADD_FAILURE() << word;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::usage);
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  };
  WorldDials d = dials("LaMP_3");
  d.keys = 5;
  refuses(d, "keys");
  d = dials("LaMP_2");
  d.classes = 17;
  refuses(d, "classes");
  d = dials("LaMP_2");
  d.noise = 1.5;
  refuses(d, "noise");
  d = dials("LaMP_3");
  d.key = "name";
  refuses(d, "key");
  d = dials("LaMP_9");
  refuses(d, "LaMP_9");
}

TEST(World, FilesReadBackAndRepeat) {
  const testing::ScratchDir one, two;
  WorldDials d = dials("LaMP_3", 16);
  d.people = 5;
  d.queries = 4;
  const WorldFiles a = write_world(one.path(), d, kTasks), b = write_world(two.path(), d, kTasks);
  ASSERT_EQ(a.files.size(), 7u * 12 + 1);
  for (size_t i = 0; i < a.files.size(); ++i) EXPECT_EQ(read_file(a.files[i]), read_file(b.files[i])) << a.files[i];
  for (const std::string& task : kTasks) {
    const TaskData read = read_lamp_split(one.path(), task, "time", "test");
    d.task = task;
    const TaskData made = make_world(d).data;
    ASSERT_EQ(read.people.size(), made.people.size());
    for (size_t p = 0; p < made.people.size(); ++p) {
      ASSERT_EQ(read.people[p].history.size(), made.people[p].history.size());
      EXPECT_EQ(read.people[p].history[3].fields, made.people[p].history[3].fields);
      EXPECT_EQ(read.people[p].queries[2].output, made.people[p].queries[2].output);
    }
    EXPECT_EQ(read_lamp_split(one.path(), task, "time", "train").people[0].history.size(), 12u);
    EXPECT_EQ(read_lamp_split(one.path(), task, "user", "train").people.size(), 3u);
  }
  const auto json = nlohmann::json::parse(read_file(join_path(one.path(), "world.json")));
  EXPECT_EQ(json["tasks"]["LaMP_3"]["possible"][0]["metric"], "accuracy");
}

TEST(World, EveryWordIsOneToken) {
  const testing::ScratchDir dir;
  write_file(join_path(dir.path(), "tokenizer.json"), world_tokenizer_json());
  const Tokenizer tokenizer = Tokenizer::load(dir.path());
  const PretrainMix mix(tokenizer, MixOptions{}, 3);
  WeightedSequence s;
  for (int64_t k = 0; k < 500; ++k) {
    mix.make(k, s);
    ASSERT_EQ(s.ids.size(), s.weights.size());
    ASSERT_LE(s.ids.size(), 512u);
    for (int32_t id : s.ids) {
      const std::string& piece = tokenizer.token(id);
      // Single letters would be words that the vocabulary lacks.
      ASSERT_FALSE(piece.size() == 1 && piece[0] >= 'b' && piece[0] <= 'z') << piece << " in " << mix.show(k);
    }
  }
  WeightedSequence again;
  mix.make(17, again);
  mix.make(17, s);
  EXPECT_EQ(again.ids, s.ids);
}

}  // namespace
}  // namespace thimble::lab
