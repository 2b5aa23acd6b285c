// LaMP files: both splits' shapes, a round trip, every refusal with the name of sample and field, and a real file.
#include "tools/lab/lamp.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/rng.h"
#include "tests/scratch_dir.h"
#include "tools/lab/metrics.h"

namespace thimble::lab {
namespace {

using nlohmann::json;

class Lamp : public ::testing::Test {
 protected:
  testing::ScratchDir dir;

  std::string put(const std::string& name, const std::string& text) {
    const std::string path = dir.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  static json sample(const std::string& id, const std::string& user) {
    json profile = json::array();
    profile.push_back({{"id", id + "0"}, {"text", "cold soup"}, {"score", "2"}, {"date", "2003-01-02"}});
    profile.push_back({{"id", id + "1"}, {"text", "warm soup"}, {"score", "5"}, {"date", "2001"}});
    json s = {{"id", id}, {"input", "rate 1 to 5. review: soup"}, {"profile", profile}};
    if (!user.empty()) s["user_id"] = user;
    return s;
  }

  static json golds(const json& questions, const std::string& task = "LaMP_3") {
    json list = json::array();
    for (const json& s : questions) list.push_back({{"id", s.at("id")}, {"output", "4"}});
    return {{"task", task}, {"golds", list}};
  }

  TaskData read(const json& questions, const json& outputs) {
    return read_lamp(put("q.json", questions.dump()), put("o.json", outputs.dump()));
  }

  void expect_refused(const std::string& questions, const std::string& outputs, const std::vector<std::string>& words) {
    const std::string q = put("q.json", questions), o = outputs.empty() ? "" : put("o.json", outputs);
    try {
      read_lamp(q, o);
      ADD_FAILURE() << "accepted: " << questions.substr(0, 300);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input) << e.what();
      EXPECT_FALSE(e.hint().empty()) << e.what();
      for (const std::string& word : words) EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << word << " in: " << e.what();
    }
  }
};

TEST_F(Lamp, GroupsQuestionsByPersonAndSortsByDate) {
  json q = json::array({sample("1", "u"), sample("2", "v"), sample("3", "u")});
  q[2]["profile"] = q[0]["profile"];
  const TaskData data = read(q, golds(q));
  EXPECT_STREQ(data.task->name, "LaMP_3");
  ASSERT_EQ(data.people.size(), 2u);
  EXPECT_EQ(data.people[0].user_id, "u");
  ASSERT_EQ(data.people[0].queries.size(), 2u);
  EXPECT_EQ(data.people[0].queries[1].id, "3");
  EXPECT_EQ(data.people[0].queries[1].output, "4");
  ASSERT_EQ(data.people[0].history.size(), 2u);
  EXPECT_EQ(data.people[0].history[0].fields, (std::vector<std::string>{"warm soup", "5"}));
  EXPECT_EQ(data.people[0].history[0].date, "2001");
  // One user with another profile is examined apart.
  q[2]["profile"][0]["score"] = "1";
  EXPECT_EQ(read(q, golds(q)).people.size(), 3u);
}

TEST_F(Lamp, TheUserBasedSplitHasNoUsersOrDates) {
  json q = json::array({sample("1", ""), sample("2", "")});
  for (json& s : q)
    for (json& item : s["profile"]) item.erase("date");
  q[1]["profile"] = q[0]["profile"];
  const TaskData data = read(q, golds(q));
  ASSERT_EQ(data.people.size(), 2u);
  EXPECT_EQ(data.people[1].user_id, "2");
  EXPECT_EQ(data.people[0].history[0].fields[0], "cold soup");  // the file's order
}

TEST_F(Lamp, NumbersMergedFilesAndMissingGolds) {
  json q = json::array({sample("1", "u")});
  q[0]["id"] = 7;
  q[0]["user_id"] = 12;
  q[0]["profile"][0]["score"] = 4;
  q[0]["profile"][1]["score"] = 4.0;
  q[0]["output"] = "3";
  q[0]["profile"][0]["unknown"] = {1, 2};
  const TaskData data = read_lamp(put("q.json", q.dump()), "");
  EXPECT_EQ(data.people[0].user_id, "12");
  EXPECT_EQ(data.people[0].queries[0].id, "7");
  EXPECT_EQ(data.people[0].queries[0].output, "3");
  for (const Item& item : data.people[0].history) EXPECT_EQ(item.fields[1], "4");
  q[0].erase("output");
  EXPECT_EQ(read_lamp(put("q.json", q.dump()), "").people[0].queries[0].output, "");
  q[0]["profile"] = json::array();  // a newcomer
  EXPECT_TRUE(read_lamp(put("q.json", q.dump()), put("o.json", R"({"task":"LaMP-3","golds":[{"id":7,"output":5}]})")).people[0].history.empty());
  EXPECT_TRUE(read_lamp(put("q.json", "[]"), put("o.json", R"({"task":"LaMP_3","golds":[]})")).people.empty());
}

TEST_F(Lamp, RecognisesTasksByFieldsAndPrompt) {
  const auto task_of = [&](const json& item, const std::string& input) {
    json with_id = item;
    with_id["id"] = "0";
    const json q = json::array({{{"id", "1"}, {"input", input}, {"profile", json::array({with_id})}}});
    return std::string(read_lamp(put("q.json", q.dump()), "").task->name);
  };
  EXPECT_EQ(task_of({{"title", "t"}, {"abstract", "a"}}, "title \"x\" [1]: \"a\" [2]: \"b\""), "LaMP_1");
  EXPECT_EQ(task_of({{"title", "t"}, {"abstract", "a"}}, "abstract of a paper: x"), "LaMP_5");
  EXPECT_EQ(task_of({{"description", "t"}, {"tag", "a"}}, "tags: [a] description: x"), "LaMP_2");
  EXPECT_EQ(task_of({{"title", "t"}, {"text", "x"}, {"category", "a"}}, "categories: [a] article: x"), "LaMP_2N");
  EXPECT_EQ(task_of({{"text", "t"}, {"score", "1"}}, "review: x"), "LaMP_3");
  EXPECT_EQ(task_of({{"title", "t"}, {"text", "a"}}, "article: x"), "LaMP_4");
  EXPECT_EQ(task_of({{"title", "t"}, {"text", "a"}}, "email: x"), "LaMP_6");
  EXPECT_EQ(task_of({{"text", "t"}}, "tweet: x"), "LaMP_7");
  expect_refused(R"([{"id":"1","input":"x","profile":[{"id":"0","poem":"x"}]}])", "", {"fields belong to no task"});
  // The benchmark's first version calls news categories LaMP_2.
  const json news = json::array({{{"id", "1"}, {"input", "categories: [a, b] article: x"},
                                  {"profile", json::array({{{"id", "0"}, {"title", "t"}, {"text", "x"}, {"category", "a"}}})}}});
  json outputs = golds(news, "LaMP_2");
  outputs["golds"][0]["output"] = "b";
  EXPECT_STREQ(read(news, outputs).task->name, "LaMP_2N");
}

TEST_F(Lamp, RefusesAndNamesTheField) {
  const json good = json::array({sample("7", "u")});
  const std::string out = golds(good).dump();
  const auto with = [&](const std::function<void(json&)>& change) {
    json q = good;
    change(q);
    return q.dump();
  };
  expect_refused("", out, {"q.json"});
  expect_refused("{}", out, {"q.json", "array"});
  expect_refused(good.dump().substr(0, 80), out, {"q.json", "line 1"});
  expect_refused(good.dump() + "x", out, {"q.json"});
  expect_refused("[1]", "", {"no task"});
  expect_refused("[1]", R"({"task":"LaMP_3","golds":[]})", {"sample number 0", "object"});
  expect_refused(R"([{"id":"1","id":"2"}])", out, {"stands twice"});
  for (const char* key : {"id", "input", "profile"}) expect_refused(with([&](json& q) { q[0].erase(key); }), out, {std::string("\"") + key + "\""});
  for (const char* key : {"id", "input", "profile", "user_id"}) {
    expect_refused(with([&](json& q) { q[0][key] = ""; }), out, {key});
    expect_refused(with([&](json& q) { q[0][key] = nullptr; }), out, {key});
    expect_refused(with([&](json& q) { q[0][key] = json::object(); }), out, {key});
  }
  for (const char* key : {"id", "text", "score"}) {
    const std::string path = std::string("profile[1].") + key;
    expect_refused(with([&](json& q) { q[0]["profile"][1].erase(key); }), out, {"sample \"7\"", path});
    expect_refused(with([&](json& q) { q[0]["profile"][1][key] = "  "; }), out, {"sample \"7\"", path});
    expect_refused(with([&](json& q) { q[0]["profile"][1][key] = json::array(); }), out, {"sample \"7\"", path});
  }
  expect_refused(with([](json& q) { q[0]["profile"][1] = 3; }), out, {"sample \"7\"", "profile[1]"});
  expect_refused(with([](json& q) { q[0]["profile"][1]["id"] = "70"; }), out, {"profile[1].id", "twice"});
  for (const char* date : {"", "yesterday", "2001-13-01", "2001-02-29", "2001-2-3", "01-02-2001", "2001-01-01-01", "2001-", "20011-01-01"})
    expect_refused(with([&](json& q) { q[0]["profile"][1]["date"] = date; }), out, {"profile[1].date", "no date"});
  expect_refused(with([](json& q) { q[0]["profile"][1].erase("date"); }), out, {"sample \"7\"", "1 of 2 items have a date"});
  expect_refused(with([](json& q) { q[0]["input"] = "rate this: soup"; }), out, {"sample \"7\"", "input", "review:"});
  expect_refused(with([](json& q) { q.push_back(q[0]); }), out, {"sample \"7\"", "id", "twice"});
  expect_refused(with([](json& q) { q.push_back(sample("8", "u")); }), out, {"o.json", "sample \"8\"", "no output"});

  const auto outputs = [&](const std::function<void(json&)>& change) {
    json o = golds(good);
    change(o);
    return o.dump();
  };
  const std::string q = good.dump();
  expect_refused(q, "[]", {"o.json", "object"});
  expect_refused(q, outputs([](json& o) { o.erase("task"); }), {"o.json", "task"});
  expect_refused(q, outputs([](json& o) { o["task"] = "LaMP_9"; }), {"o.json", "task", "LaMP_9"});
  expect_refused(q, outputs([](json& o) { o["golds"] = 3; }), {"o.json", "golds"});
  expect_refused(q, outputs([](json& o) { o["golds"][0] = 3; }), {"o.json", "golds[0]"});
  expect_refused(q, outputs([](json& o) { o["golds"][0].erase("id"); }), {"o.json", "golds[0].id"});
  expect_refused(q, outputs([](json& o) { o["golds"][0]["output"] = ""; }), {"o.json", "sample \"7\"", "output"});
  expect_refused(q, outputs([](json& o) { o["golds"][0]["output"] = "6"; }), {"o.json", "sample \"7\"", "none of the answers"});
  expect_refused(q, outputs([](json& o) { o["golds"].push_back(o["golds"][0]); }), {"o.json", "sample \"7\"", "twice"});
  expect_refused(q, outputs([](json& o) { o["golds"].push_back({{"id", "99"}, {"output", "3"}}); }), {"o.json", "sample \"99\"", "no such question"});
  try {
    read_lamp(put("q.json", q), put("o.json", out), &find_task("LaMP_4"));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::input);
  }
  EXPECT_THROW(read_lamp(dir.path() + "/none.json", ""), Error);
}

TEST_F(Lamp, DamagedFilesNeverCrash) {
  const json q = json::array({sample("1", "u"), sample("2", "v")});
  const std::string good = q.dump(), out = put("o.json", golds(q).dump());
  Philox draw(1, 2);
  for (int i = 0; i < 3000; ++i) {
    std::string bad = good;
    for (uint64_t n = 1 + draw.below(3); n > 0; --n) {
      const size_t at = draw.below(bad.size());
      if (draw.below(2)) bad[at] = static_cast<char>(draw.below(256));
      else bad.erase(at, 1 + draw.below(20));
    }
    try {
      read_lamp(put("q.json", bad), out);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input) << e.what();
    }
  }
}

void expect_equal(const TaskData& a, const TaskData& b) {
  ASSERT_EQ(a.people.size(), b.people.size());
  EXPECT_EQ(a.task, b.task);
  for (size_t p = 0; p < a.people.size(); ++p) {
    const Person &x = a.people[p], &y = b.people[p];
    EXPECT_EQ(x.user_id, y.user_id);
    ASSERT_EQ(x.history.size(), y.history.size());
    ASSERT_EQ(x.queries.size(), y.queries.size());
    for (size_t i = 0; i < x.history.size(); ++i) {
      EXPECT_EQ(x.history[i].id, y.history[i].id);
      EXPECT_EQ(x.history[i].date, y.history[i].date);
      EXPECT_EQ(x.history[i].fields, y.history[i].fields);
    }
    for (size_t i = 0; i < x.queries.size(); ++i) {
      EXPECT_EQ(x.queries[i].id, y.queries[i].id);
      EXPECT_EQ(x.queries[i].input, y.queries[i].input);
      EXPECT_EQ(x.queries[i].output, y.queries[i].output);
    }
  }
}

TEST_F(Lamp, RoundTrip) {
  json q = json::array({sample("1", "u"), sample("2", "")});
  q[0]["input"] = "review: \"quotes\" \\ \n\t\u0001 na\u00efve \u2603";
  const TaskData data = read(q, golds(q));
  const std::string a = dir.path() + "/a.json", b = dir.path() + "/b.json";
  write_lamp(data, a, b);
  const TaskData again = read_lamp(a, b);
  expect_equal(data, again);
  write_lamp(again, dir.path() + "/c.json", dir.path() + "/d.json");
  EXPECT_EQ(read_file(a), read_file(dir.path() + "/c.json"));
  EXPECT_EQ(read_file(b), read_file(dir.path() + "/d.json"));
  EXPECT_EQ(again.sha256, read_lamp(dir.path() + "/c.json", dir.path() + "/d.json").sha256);
  EXPECT_NE(again.sha256, data.sha256);
  TaskData unknown = data;
  unknown.people[0].queries[0].output.clear();
  EXPECT_THROW(write_lamp(unknown, a, b), Error);
  write_lamp(unknown, a, "");
  EXPECT_EQ(read_lamp(a, "").people.size(), 2u);
}

TEST_F(Lamp, Splits) {
  const json q = json::array({sample("1", "u")});
  std::filesystem::create_directories(dir.path() + "/LaMP_3/time");
  put("LaMP_3/time/dev_questions.json", q.dump());
  put("LaMP_3/time/dev_outputs.json", golds(q).dump());
  put("LaMP_3/time/test_questions.json", q.dump());
  EXPECT_EQ(read_lamp_split(dir.path(), "LaMP-3", "time", "dev").people[0].queries[0].output, "4");
  EXPECT_EQ(read_lamp_split(dir.path(), "LaMP_3", "time", "test").people[0].queries[0].output, "");
  EXPECT_EQ(read_lamp_split(dir.path() + "/LaMP_3/time", "LaMP_3", "", "dev").people.size(), 1u);
  EXPECT_THROW(read_lamp_split(dir.path(), "LaMP_3", "time", "train"), Error);
  EXPECT_THROW(read_lamp_split(dir.path(), "LaMP_3", "time", "validation"), Error);
  EXPECT_THROW(read_lamp_split(dir.path(), "LaMP_4", "time", "dev"), Error);
}

TEST_F(Lamp, RealRatings) {
  const std::string real = std::string(THIMBLE_SOURCE_DIR) + "/../shared/data/lamp3_movies";
  if (!std::filesystem::exists(real)) GTEST_SKIP() << "not here: " << real;
  const TaskData data = read_lamp_split(real, "LaMP_3", "time", "dev");
  ASSERT_GE(data.people.size(), 10u);
  size_t queries = 0;
  for (const Person& person : data.people) {
    queries += person.queries.size();
    for (size_t i = 1; i < person.history.size(); ++i) EXPECT_LE(person.history[i - 1].date, person.history[i].date);
  }
  const std::string q = dir.path() + "/a.json", o = dir.path() + "/b.json";
  write_lamp(data, q, o);
  expect_equal(data, read_lamp(q, o));
  std::vector<std::string> golds;
  for (const Person& person : data.people)
    for (const Query& query : person.queries) golds.push_back(query.output);
  std::map<std::string, double> accuracy_of, mae_of;
  for (const Baseline& b : baselines(data, 0)) {
    std::vector<std::string> flat;
    for (const auto& p : b.predictions) flat.insert(flat.end(), p.begin(), p.end());
    const auto metrics = score(*data.task, flat, golds, {});
    accuracy_of[b.name] = metrics.at("accuracy");
    mae_of[b.name] = metrics.at("mae");
    std::printf("%s: accuracy %.4f, mae %.4f, rmse %.4f\n", b.name.c_str(), metrics.at("accuracy"), metrics.at("mae"), metrics.at("rmse"));
  }
  EXPECT_EQ(accuracy_of.size(), 4u);
  const Difficulty d = difficulty(data, 0);
  EXPECT_EQ(d.majority, accuracy_of.at("majority"));
  EXPECT_EQ(d.neighbour, accuracy_of.at("nearest"));
  EXPECT_LE(d.label_entropy_bits, std::log2(5.0));
  // People differ in how they rate, so knowing someone's mean must bring the rating closer than everybody's favourite.
  EXPECT_LT(mae_of.at("user_mean"), mae_of.at("majority"));
  std::printf("%zu people, %zu queries, entropy %.3f bits, %lld classes\n", data.people.size(), queries, d.label_entropy_bits, static_cast<long long>(d.classes));
}

}  // namespace
}  // namespace thimble::lab
