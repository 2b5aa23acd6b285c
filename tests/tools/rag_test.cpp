// thimble rag: indexes of lines, rows and profiles, every retriever, and refusals.
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

TEST(Rag, LinesByDefault) {
  const ScratchDir dir;
  put_file(dir / "notes.txt", "The red boat sails.\r\n\n  \nA gull sat on the mast.\nSoup of the day\n");
  const nlohmann::json made = expect_json(thimble({"rag", "index", "--input", dir / "notes.txt", "--out", dir / "i", "--json"}), "thimble.rag_index/1");
  EXPECT_EQ(made.at("documents"), 3);
  EXPECT_EQ(made.at("retriever"), "bm25");
  const nlohmann::json j = expect_json(thimble({"rag", "query", "--index", dir / "i", "--query", "Boat?", "--k", "2", "--json"}), "thimble.rag_query/1");
  ASSERT_EQ(j.at("hits").size(), 2u);
  EXPECT_EQ(j["hits"][0].at("id"), "1");
  EXPECT_EQ(j["hits"][0].at("text"), "The red boat sails.");
  EXPECT_GT(j["hits"][0].at("score").get<double>(), 0);
  EXPECT_EQ(j["hits"][1].at("score"), 0);
  EXPECT_EQ(j["hits"][1].at("id"), "5");  // the newest of those that do not match
  const nlohmann::json first = expect_json(
      thimble({"rag", "query", "--index", dir / "i", "--query", "soup", "--limit", "2", "--json"}), "thimble.rag_query/1");
  EXPECT_EQ(first.at("hits").size(), 2u);
  const RunResult text = thimble({"rag", "query", "--index", dir / "i", "--query", "gull", "--k", "1"});
  EXPECT_NE(text.out.find("\t4\tA gull sat"), std::string::npos) << text.out;
  RunOptions piped;
  piped.input = "one\ntwo\n";
  EXPECT_EQ(thimble({"rag", "index", "--input", "-", "--out", dir / "p"}, piped).status, 0);
}

TEST(Rag, RowsAndProfiles) {
  const ScratchDir dir;
  put_file(dir / "rows.jsonl", "{\"text\":\"old\",\"id\":7,\"date\":\"2001\"}\n{\"text\":\"new\"}\n");
  EXPECT_EQ(thimble({"rag", "index", "--input", dir / "rows.jsonl", "--out", dir / "r", "--retriever", "bm25_okapi"}).status, 0);
  const nlohmann::json j = expect_json(thimble({"rag", "query", "--index", dir / "r", "--query", "old", "--json"}), "thimble.rag_query/1");
  EXPECT_EQ(j["hits"][0].at("id"), "7");
  EXPECT_EQ(j["hits"][0].at("date"), "2001");
  EXPECT_EQ(j["hits"][1].at("id"), "2");

  put_file(dir / "q.json", R"([{"id":"1","user_id":"u","input":"review: x","profile":[{"id":"10","text":"cold soup","score":"2"}]},)"
                           R"({"id":"2","user_id":"v","input":"review: x","profile":[{"id":"20","text":"red boat","score":"2"}]}])");
  EXPECT_EQ(thimble({"rag", "index", "--input", dir / "q.json", "--user", "v", "--out", dir / "l"}).status, 0);
  EXPECT_NE(thimble({"rag", "query", "--index", dir / "l", "--query", "boat"}).out.find("\t20\tred boat"), std::string::npos);
  expect_failure(thimble({"rag", "index", "--input", dir / "q.json", "--out", dir / "l"}), 2, {"2 people", "u, v"});
  expect_failure(thimble({"rag", "index", "--input", dir / "q.json", "--user", "w", "--out", dir / "l"}), 2, {"\"w\""});
}

TEST(Rag, DenseWithAModel) {
  const ScratchDir dir;
  std::filesystem::create_directories(dir / "m");
  write_small_model(dir / "m");
  put_file(dir / "t.txt", "the red boat\nwhat is a gull\n" + std::string(4000, 'x') + "\n");
  ASSERT_EQ(thimble({"rag", "index", "--input", dir / "t.txt", "--retriever", "dense", "--cosine", "--model", dir / "m", "--out", dir / "i"}).status, 0);
  const auto best = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args{"rag", "query", "--index", dir / "i", "--query", "what is a gull", "--k", "3", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return expect_json(thimble(args), "thimble.rag_query/1");
  };
  const nlohmann::json j = best({});
  EXPECT_EQ(j["hits"][0].at("id"), "2");
  EXPECT_NEAR(j["hits"][0].at("score").get<double>(), 1, 1e-5);
  EXPECT_LT(j["hits"][1].at("score").get<double>(), 1 - 1e-4);
  EXPECT_EQ(best({"--threads", "1"}).at("hits"), j.at("hits"));
  std::filesystem::rename(dir / "m", dir / "moved");
  EXPECT_EQ(best({"--model", dir / "moved"}).at("hits"), j.at("hits"));
  std::filesystem::create_directories(dir / "other");
  SmallModel other;
  other.hidden = 64;
  write_small_model(dir / "other", other);
  expect_failure(thimble({"rag", "query", "--index", dir / "i", "--query", "x", "--model", dir / "other"}), 3, {"another model"});
  expect_failure(thimble({"rag", "query", "--index", dir / "i", "--query", "x"}), 3, {});
}

TEST(Rag, Refusals) {
  const ScratchDir dir;
  put_file(dir / "t.txt", "a\n");
  const std::string t = dir / "t.txt", out = dir / "i";
  expect_failure(thimble({"rag"}), 2, {});
  expect_failure(thimble({"rag", "index", "--input", t, "--out", out, "--retriever", "bm42"}), 2, {"bm42", "hint: ", "bm25_okapi"});
  expect_failure(thimble({"rag", "index", "--input", t, "--out", out, "--retriever", "dense"}), 2, {"--model"});
  expect_failure(thimble({"rag", "index", "--input", t, "--out", out, "--model", "m"}), 2, {"--model"});
  expect_failure(thimble({"rag", "index", "--input", t, "--out", out, "--user", "u"}), 2, {"--user"});
  expect_failure(thimble({"rag", "index", "--input", dir / "none", "--out", out}), 3, {"none"});
  put_file(dir / "empty", "\n \n");
  expect_failure(thimble({"rag", "index", "--input", dir / "empty", "--out", out}), 3, {"no documents"});
  put_file(dir / "bad.jsonl", "{\"text\":\"a\"}\n{\"text\":3}\n");
  expect_failure(thimble({"rag", "index", "--input", dir / "bad.jsonl", "--out", out}), 3, {"line 2", "text"});
  put_file(dir / "bytes", "\xff\n");
  expect_failure(thimble({"rag", "index", "--input", dir / "bytes", "--out", out}), 3, {"UTF-8"});
  EXPECT_FALSE(std::filesystem::exists(out + "/index.json"));
  expect_failure(thimble({"rag", "query", "--index", out, "--query", "x"}), 3, {"index.json"});
  expect_failure(thimble({"rag", "query", "--index", out, "--query", "x", "--k", "0"}), 2, {});
}

}  // namespace
}  // namespace thimble::tools_test
