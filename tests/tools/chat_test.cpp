// thimble chat as scripts see it: turns from options and from a pipe, the cache between turns, full contexts, stops.
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

using Args = std::vector<std::string>;
using Json = nlohmann::json;

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}";

class ChatTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new ScratchDir;
    SmallModel m;
    m.positions = 256;
    write_small_model(shared_->path(), m);
    put_file(*shared_ / "chat_template.jinja", kTemplate);
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  static std::string model() { return shared_->path(); }
  std::string copy() {
    std::filesystem::copy(model(), scratch_ / "model");
    return scratch_ / "model";
  }
  static Args chat(const std::string& model, const Args& more) {
    Args args = {"chat", "--model", model, "--max-tokens", "6", "--threads", "1"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  static Json run(const std::string& model, const Args& more) {
    return expect_json(thimble(chat(model, more)), "thimble.chat/1");
  }

  static ScratchDir* shared_;
  ScratchDir scratch_;
};
ScratchDir* ChatTest::shared_ = nullptr;

TEST_F(ChatTest, TurnsFromOptions) {
  const Json j = run(model(), {"--message", "a red boat", "--message", "the gull", "--system", "Be brief.", "--json"});
  ASSERT_EQ(j["turns"].size(), 2u);
  ASSERT_EQ(j["messages"].size(), 5u);
  EXPECT_EQ(j["messages"][0]["role"], "system");
  EXPECT_EQ(j["messages"][1]["content"], "a red boat");
  EXPECT_EQ(j["messages"][2]["role"], "assistant");
  EXPECT_EQ(j["messages"][2]["content"], j["turns"][0]["text"]);
  EXPECT_EQ(j["messages"][4]["content"], j["turns"][1]["text"]);
  EXPECT_EQ(j["prompt_ids"], j["turns"][1]["prompt_ids"]);
  for (const Json& t : j["turns"]) {
    EXPECT_GE(t["ttft_s"].get<double>(), 0);
    EXPECT_LE(t["ids"].size(), 6u);
    EXPECT_TRUE(t["stop_reason"] == "length" || t["stop_reason"] == "eos") << t["stop_reason"];
  }
  // The second prompt begins as the first one did: the template's text up to the answer was not run again.
  const auto first = j["turns"][0]["prompt_ids"].size();
  EXPECT_EQ(j["turns"][0]["cached_tokens"], 0);
  EXPECT_GE(j["turns"][1]["cached_tokens"].get<size_t>(), first - 1);
  EXPECT_LT(j["turns"][1]["cached_tokens"].get<size_t>(), j["turns"][1]["prompt_ids"].size());
}

// The cache must not show: each answer equals the one of a fresh process that is given the same prompt.
TEST_F(ChatTest, ACachedTurnEqualsAFreshOne) {
  const Json j = run(model(), {"--message", "a red boat", "--message", "the gull", "--message", "home", "--json"});
  ASSERT_EQ(j["turns"].size(), 3u);
  put_file(scratch_ / "t.jinja", std::string("{% set messages = history + messages %}") + kTemplate);
  for (size_t i = 0; i < 3; ++i) {
    const Json history(std::vector<Json>(j["messages"].begin(), j["messages"].begin() + static_cast<long>(2 * i)));
    const Json fresh = run(model(), {"--template", scratch_ / "t.jinja", "--template-arg", "history=" + history.dump(), "--message",
                                     j["messages"][2 * i]["content"].get<std::string>(), "--json"});
    EXPECT_EQ(fresh["turns"][0]["cached_tokens"], 0);
    EXPECT_EQ(fresh["turns"][0]["prompt_ids"], j["turns"][i]["prompt_ids"]);
    EXPECT_EQ(fresh["turns"][0]["ids"], j["turns"][i]["ids"]);
  }
}

TEST_F(ChatTest, LinesOfAPipeAreTurns) {
  RunOptions options;
  options.input = "a red boat\n\n  \nthe gull\r\nlast";
  const RunResult text = thimble(chat(model(), {}), options);
  EXPECT_EQ(text.status, 0) << text.err;
  const Json j = run(model(), {"--message", "a red boat", "--message", "the gull", "--message", "last", "--json"});
  std::string want;
  for (const Json& t : j["turns"]) want += t["text"].get<std::string>() + "\n";
  EXPECT_EQ(text.out, want);
  options.input = "";
  const RunResult nothing = thimble(chat(model(), {"--json"}), options);
  EXPECT_EQ(expect_json(nothing, "thimble.chat/1")["turns"].size(), 0u);
}

TEST_F(ChatTest, AFullContextDropsTheOldestTurns) {
  const std::string words = "Once upon a time there was a small red boat";
  Args args = {"--ctx", "64", "--system", "S.", "--json"};
  for (int i = 0; i < 6; ++i) args.insert(args.end(), {"--message", words});
  const RunResult r = thimble(chat(model(), args));
  const Json j = expect_json(r, "thimble.chat/1");
  ASSERT_EQ(j["turns"].size(), 6u);
  EXPECT_NE(r.err.find("left out"), std::string::npos) << r.err;
  int64_t dropped = 0;
  for (const Json& t : j["turns"]) {
    EXPECT_LE(t["prompt_ids"].size() + t["ids"].size(), 65u);
    EXPECT_EQ(t["dropped_messages"].get<int64_t>() % 2, 0);
    dropped += t["dropped_messages"].get<int64_t>();
  }
  EXPECT_GT(dropped, 0);
  EXPECT_EQ(j["messages"][0]["role"], "system");
  EXPECT_EQ(j["messages"][1]["role"], "user");
  EXPECT_EQ(j["messages"].size(), static_cast<size_t>(13 - dropped));
  std::string long_text;
  for (int i = 0; i < 30; ++i) long_text += words;
  expect_failure(thimble(chat(model(), {"--ctx", "64", "--message", long_text})), 3, {"context of 64"});
}

TEST_F(ChatTest, StopsAtTheIdsOfTheGenerationConfig) {
  const std::string dir = copy();
  const Json j = run(dir, {"--message", "a red boat", "--json"});
  ASSERT_GE(j["turns"][0]["ids"].size(), 2u);
  put_file(dir + "/generation_config.json", Json({{"eos_token_id", {99999, j["turns"][0]["ids"][1]}}}).dump());
  const Json stopped = run(dir, {"--message", "a red boat", "--json"});
  EXPECT_EQ(stopped["turns"][0]["stop_reason"], "eos");
  EXPECT_LE(stopped["turns"][0]["ids"].size(), 1u);
}

TEST_F(ChatTest, WithoutATemplate) {
  const std::string dir = copy();
  std::filesystem::remove(dir + "/chat_template.jinja");
  const RunResult r = thimble(chat(dir, {"--message", "a red boat", "--json"}));
  const Json j = expect_json(r, "thimble.chat/1");
  EXPECT_NE(r.err.find("no chat template"), std::string::npos) << r.err;
  const Tokenizer tokenizer = Tokenizer::load(dir);
  DecodeOptions plain;
  plain.skip_special = true;
  EXPECT_EQ(tokenizer.decode(j["prompt_ids"].get<std::vector<int32_t>>(), plain), "User: a red boat\n\nAssistant:");
}

TEST_F(ChatTest, TemplatesToolsAndArguments) {
  put_file(scratch_ / "tools.json", "[{\"z\": 1, \"a\": 2}]");
  put_file(scratch_ / "t.jinja", "{{ tools | tojson }}{{ x + 1 }}{{ y }}{{ messages | length }}");
  const Json j = run(model(), {"--template", scratch_ / "t.jinja", "--tools", scratch_ / "tools.json", "--template-arg", "x=41",
                               "--template-arg", "y=word", "--message", "m", "--json"});
  const Tokenizer tokenizer = Tokenizer::load(model());
  EXPECT_EQ(tokenizer.decode(j["prompt_ids"].get<std::vector<int32_t>>()), "[{\"z\": 1, \"a\": 2}]42word1");
}

TEST_F(ChatTest, Refusals) {
  const std::string m = model();
  expect_failure(thimble({"chat"}), 2, {"--model"});
  expect_failure(thimble(chat(m, {"--message", "a", "--template-arg", "x"})), 2, {"--template-arg", "NAME=VALUE"});
  expect_failure(thimble(chat(m, {"--message", "a", "--kv", "q9"})), 2, {"--kv"});
  expect_failure(thimble(chat(m, {"--message", "a", "--template", scratch_ / "none"})), 3, {"none"});
  put_file(scratch_ / "bad.jinja", "a\n{{ messages[0].content.nothing.here }}");
  expect_failure(thimble(chat(m, {"--message", "a", "--template", scratch_ / "bad.jinja"})), 3, {"bad.jinja:2", "nothing"});
  put_file(scratch_ / "raise.jinja", "{{ raise_exception('only poems') }}");
  expect_failure(thimble(chat(m, {"--message", "a", "--template", scratch_ / "raise.jinja"})), 3, {"only poems"});
  put_file(scratch_ / "include.jinja", "{% include 'x' %}");
  expect_failure(thimble(chat(m, {"--message", "a", "--template", scratch_ / "include.jinja"})), 5, {"include"});
  expect_failure(thimble(chat(m, {"--message", "a", "--template-name", "rag"})), 3, {"rag"});
  put_file(scratch_ / "tools.json", "[");
  expect_failure(thimble(chat(m, {"--message", "a", "--tools", scratch_ / "tools.json"})), 3, {"tools.json"});
  RunOptions full;
  full.stdout_path = "/dev/full";
  EXPECT_EQ(thimble(chat(m, {"--message", "a"}), full).status, 4);
}

TEST_F(ChatTest, GenerateCanWriteOneTurn) {
  const Json j = run(model(), {"--message", "a red boat", "--json"});
  const RunResult r = thimble({"generate", "--model", model(), "--chat", "--prompt", "a red boat", "--max-tokens", "6", "--threads", "1", "--json"});
  const Json g = expect_json(r, "thimble.generate/1");
  EXPECT_EQ(g["prompt_ids"], j["prompt_ids"]);
  EXPECT_EQ(g["ids"], j["turns"][0]["ids"]);
}

// A terminal: commands, and Ctrl-C, which ends an answer that would go on for minutes but not the conversation.
TEST_F(ChatTest, OnATerminal) {
  const std::string dir = scratch_ / "endless";
  std::filesystem::create_directory(dir);
  SmallModel m;
  m.positions = 200000;
  m.uniform = true;  // always the first token, which ends nothing
  write_small_model(dir, m);
  put_file(dir + "/chat_template.jinja", kTemplate);
  const std::string program = std::string(THIMBLE_BINARY_DIR) + "/bin/thimble";
  int fd = -1;
  const pid_t child = ::forkpty(&fd, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl(program.c_str(), "thimble", "chat", "--model", dir.c_str(), "--ctx", "150000", "--max-tokens", "140000", "--threads", "1",
            static_cast<char*>(nullptr));
    ::_exit(127);
  }
  std::string all;
  const auto comes = [&](const std::string& word, int seconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (all.find(word) == std::string::npos && std::chrono::steady_clock::now() < end) {
      pollfd p{fd, POLLIN, 0};
      if (::poll(&p, 1, 200) <= 0) continue;
      char bytes[4096];
      const ssize_t n = ::read(fd, bytes, sizeof(bytes));
      if (n <= 0) break;
      all.append(bytes, static_cast<size_t>(n));
    }
    const bool found = all.find(word) != std::string::npos;
    if (found) all.clear();
    return found;
  };
  const auto wait_for = [&](const std::string& word) {
    const bool found = comes(word, 60);
    EXPECT_TRUE(found) << "no \"" << word << "\" in: " << all.substr(0, 2000);
    return found;
  };
  const auto type = [&](const std::string& text) { EXPECT_EQ(::write(fd, text.data(), text.size()), ssize_t(text.size())); };
  bool good = wait_for("> ");
  // Ctrl-C also empties the terminal's input: on a busy machine the message may not have been read yet.
  bool stopped = false;
  for (int i = 0; i < 10 && !stopped; ++i) {
    type("go on\n");
    ::usleep(300'000);
    type("\x03");
    stopped = comes("(stopped)", 6);
  }
  EXPECT_TRUE(stopped);
  type("/system Be brief.\n");
  good = good && wait_for("new conversation");
  const std::string saved = scratch_ / "saved.json";
  type("/save " + saved + "\n");
  good = good && wait_for("written to");
  type("/exit\n");
  int status = -1;
  for (int i = 0; i < 300 && ::waitpid(child, &status, WNOHANG) == 0; ++i) ::usleep(100'000);
  if (status == -1) {
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
  }
  ::close(fd);
  EXPECT_TRUE(good);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  const Json messages = Json::parse(get_file(saved))["messages"];
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0]["content"], "Be brief.");
}

TEST_F(ChatTest, HelpAndCompletionKnowIt) {
  const RunResult help = thimble({"chat", "--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* word : {"Example", "thimble chat", "--template", "--message"}) EXPECT_NE(help.out.find(word), std::string::npos) << word;
  EXPECT_NE(thimble({"completion", "bash"}).out.find("chat) words="), std::string::npos);
}

}  // namespace
}  // namespace thimble::tools_test
