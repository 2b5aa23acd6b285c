// thimble data check: good files, notes about them, and the exit status and words for bad ones.
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

const char* kQuestions =
    R"([{"id":"1","user_id":"u","input":"review: soup","profile":[{"id":"10","text":"cold soup","score":"2","date":"2001-05-06"},)"
    R"({"id":"11","text":"soup","score":"9","date":"2000"}]},{"id":"2","input":"review: tea","profile":[]}])";
const char* kOutputs = R"({"task":"LaMP_3","golds":[{"id":"1","output":"4"},{"id":"2","output":"5"}]})";

TEST(DataCheck, SaysWhatIsInAFile) {
  const ScratchDir dir;
  put_file(dir / "dev_questions.json", kQuestions);
  put_file(dir / "dev_outputs.json", kOutputs);
  for (const std::string& path : {dir / "dev_questions.json", dir / "dev_outputs.json", dir.path()}) {
    const nlohmann::json j = expect_json(thimble({"data", "check", path, "--json"}), "thimble.data_check/1");
    ASSERT_EQ(j.at("files").size(), 1u);
    const nlohmann::json& f = j["files"][0];
    EXPECT_EQ(f.at("task"), "LaMP_3");
    EXPECT_EQ(f.at("samples"), 2);
    EXPECT_EQ(f.at("people"), 2);
    EXPECT_EQ(f.at("history").at("max"), 2);
    EXPECT_EQ(f.at("dates").at("first"), "2000");
    EXPECT_EQ(f.at("dates").at("last"), "2001-05-06");
    EXPECT_EQ(f.at("problems").size(), 3u) << f.dump(1);  // a newcomer, a label off the list, a repeated text
  }
  const RunResult text = thimble({"data", "check", dir.path()});
  EXPECT_EQ(text.status, 0);
  EXPECT_NE(text.out.find("2 samples, 2 people"), std::string::npos) << text.out;
}

TEST(DataCheck, OutputsAloneAndQuestionsAlone) {
  const ScratchDir dir;
  put_file(dir / "answers.json", kOutputs);
  EXPECT_EQ(expect_json(thimble({"data", "check", dir / "answers.json", "--json"}), "thimble.data_check/1")["files"][0].at("samples"), 2);
  put_file(dir / "any.json", kQuestions);
  const nlohmann::json j = expect_json(thimble({"data", "check", dir / "any.json", "--json"}), "thimble.data_check/1");
  EXPECT_TRUE(j["files"][0].at("outputs").is_null());
  EXPECT_FALSE(expect_json(thimble({"data", "check", dir / "any.json", "--outputs", dir / "answers.json", "--json"}), "thimble.data_check/1")["files"][0]
                   .at("outputs").is_null());
}

TEST(DataCheck, NamesWhatIsWrong) {
  const ScratchDir dir;
  std::string bad = kQuestions;
  bad.replace(bad.find("\"score\":\"2\""), 11, "\"score\":\"\" ");
  std::filesystem::create_directories(dir / "a");
  put_file(dir / "a/dev_questions.json", bad);
  put_file(dir / "a/dev_outputs.json", kOutputs);
  expect_failure(thimble({"data", "check", dir / "a/dev_questions.json"}), 3, {"dev_questions.json", "sample \"1\"", "profile[0].score", "hint: "});
  // A directory: every file is looked at, and one bad one decides.
  put_file(dir / "dev_questions.json", kQuestions);
  put_file(dir / "dev_outputs.json", kOutputs);
  const RunResult r = thimble({"data", "check", dir.path(), "--json"});
  expect_failure(r, 3, {"1 of 2", "profile[0].score"});
  const nlohmann::json j = nlohmann::json::parse(r.out);
  EXPECT_EQ(j.at("bad"), 1);
  EXPECT_EQ(j.at("files").size(), 2u);
  expect_failure(thimble({"data", "check", dir / "none.json"}), 3, {"none.json"});
  std::filesystem::create_directories(dir / "empty");
  expect_failure(thimble({"data", "check", dir / "empty"}), 3, {"empty"});
  expect_failure(thimble({"data", "check", dir / "dev_questions.json", "--task", "LaMP_9"}), 2, {"LaMP_9", "LaMP_7"});
  expect_failure(thimble({"data", "check", dir / "dev_questions.json", "--task", "LaMP_4"}), 3, {"task"});
  expect_failure(thimble({"data"}), 2, {});
  expect_failure(thimble({"data", "check"}), 2, {});
}

TEST(DataCheck, RealRatings) {
  const std::string real = shared("data/lamp3_movies");
  SKIP_WITHOUT(real);
  const nlohmann::json j = expect_json(thimble({"data", "check", real, "--json"}), "thimble.data_check/1");
  EXPECT_EQ(j["files"][0].at("task"), "LaMP_3");
  EXPECT_EQ(j["files"][0].at("people"), 10);
}

}  // namespace
}  // namespace thimble::tools_test
