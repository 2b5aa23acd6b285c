// The command line as scripts see it: help, exit statuses, messages that name file and field, one JSON object.
#include <algorithm>
#include <filesystem>

#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

using Args = std::vector<std::string>;

// One model for all tests that only read it.
class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new ScratchDir;
    write_small_model(shared_->path());
    put_file(*shared_ / "text.txt", sample_text());
    put_file(*shared_ / "choices.jsonl", "{\"query\": \"Once upon a\", \"choices\": [\"time\", \"boat\"], \"gold\": 0}\n");
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  static std::string model() { return shared_->path(); }
  static std::string text() { return *shared_ / "text.txt"; }
  // A copy of the model in which a test may break something.
  std::string copy() {
    std::filesystem::copy(model(), scratch_ / "model");
    return scratch_ / "model";
  }
  static Args ppl(const std::string& path) { return {"eval", "--model", path, "--ppl", text(), "--ctx", "32", "--stride", "16"}; }
  static Args with(Args args, const Args& more) {
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  static ScratchDir* shared_;
  ScratchDir scratch_;
};
ScratchDir* CliTest::shared_ = nullptr;

TEST_F(CliTest, EveryVerbHasHelpWithAnExample) {
  for (const Args& verb : std::vector<Args>{{"doctor"}, {"model"}, {"model", "info"}, {"tokenize"}, {"generate"}, {"eval"}, {"parity"}, {"completion"}}) {
    const RunResult r = thimble(with(verb, {"--help"}));
    EXPECT_EQ(r.status, 0) << verb.back() << r.err;
    EXPECT_NE(r.out.find("Example"), std::string::npos) << verb.back() << " has no example:\n" << r.out;
    EXPECT_NE(r.out.find("thimble " + verb[0]), std::string::npos) << verb.back();
  }
  const RunResult top = thimble({"--help"});
  EXPECT_EQ(top.status, 0);
  for (const char* verb : {"doctor", "model", "tokenize", "generate", "eval", "parity"}) EXPECT_NE(top.out.find(verb), std::string::npos) << verb;
  EXPECT_NE(thimble({"--version"}).out.find("thimble "), std::string::npos);
}

TEST_F(CliTest, UsageErrorsEndWithTwo) {
  const std::string m = model();
  expect_failure(thimble({}), 2, {});
  expect_failure(thimble({"no-such-verb"}), 2, {});
  expect_failure(thimble({"model"}), 2, {});
  expect_failure(thimble({"eval"}), 2, {"--model"});
  expect_failure(thimble({"eval", "--model", m, "--no-such-option"}), 2, {"--no-such-option"});
  expect_failure(thimble({"eval", "--model", m}), 2, {"--ppl", "--choices", "--continuation", "exactly one"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--choices", text()}), 2, {"exactly one"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--ctx", "1", "--stride", "1"}), 2, {"--ctx"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--ctx", "65", "--stride", "1"}), 2, {"--ctx 65", "64"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--ctx", "32", "--stride", "33"}), 2, {"--stride 33", "32"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--ctx", "32", "--stride", "0"}), 2, {"--stride"});
  expect_failure(thimble({"eval", "--model", m, "--ppl", text(), "--ctx", "many"}), 2, {"--ctx"});
  expect_failure(thimble(with(ppl(m), {"--threads", "0"})), 2, {"--threads"});
  expect_failure(thimble(with(ppl(m), {"--limit", "-1"})), 2, {"--limit"});
  expect_failure(thimble(with(ppl(m), {"--precision", "f8"})), 2, {"--precision", "int8_act"});
  expect_failure(thimble(with(ppl(m), {"--ram", "lots"})), 2, {"--ram", "lots"});
  expect_failure(thimble(with(ppl(m), {"--isa", "sse9"})), 2, {"sse9", "avx2"});
  expect_failure(thimble({"tokenize", "--tokenizer", m}), 2, {"--text", "--check", "exactly one"});
  expect_failure(thimble({"tokenize", "--tokenizer", m, "--text", "a", "--ids", "1"}), 2, {"exactly one"});
  for (const char* ids : {"1,x", "-1", "1.5", "99999999999", "0x1"})
    expect_failure(thimble({"tokenize", "--tokenizer", m, std::string("--ids=") + ids}), 2, {"--ids", ids});
}

TEST_F(CliTest, EnvironmentMirrorsOptionsAndRefusesUnknownNames) {
  RunOptions options;
  options.env = {{"THIMBLE_ISA", "sse9"}};
  expect_failure(thimble(ppl(model()), options), 2, {"sse9", "THIMBLE_ISA", "avx2", "ref"});
  options.env = {{"THIMBLE_KERNEL", "no_such_slot:ref"}};
  expect_failure(thimble(ppl(model()), options), 2, {"no_such_slot", "valid slots", "softmax"});
  options.env = {{"THIMBLE_KERNEL", "softmax:no_such_tier"}};
  expect_failure(thimble(ppl(model()), options), 2, {"no_such_tier"});
  options.env = {{"THIMBLE_KERNEL", "softmax"}};
  expect_failure(thimble(ppl(model()), options), 2, {"SLOT:TIER"});
  options.env = {{"THIMBLE_CTX", "20"}, {"THIMBLE_STRIDE", "10"}, {"THIMBLE_JSON", "1"}, {"THIMBLE_ISA", "ref"}};
  const nlohmann::json j = expect_json(thimble({"eval", "--model", model(), "--ppl", text()}, options), "thimble.eval/1");
  EXPECT_EQ(j["protocol"]["ctx"], 20);
  EXPECT_EQ(j["protocol"]["stride"], 10);
  EXPECT_EQ(j["config"]["isa"], "ref");
  options.env = {{"THIMBLE_TRHEADS", "1"}};
  const RunResult misspelt = thimble({"tokenize", "--tokenizer", model(), "--text", "a"}, options);
  EXPECT_EQ(misspelt.status, 0);
  EXPECT_NE(misspelt.err.find("THIMBLE_TRHEADS"), std::string::npos) << misspelt.err;
}

TEST_F(CliTest, MissingAndDamagedFilesEndWithThree) {
  const std::string missing = scratch_ / "missing";
  expect_failure(thimble(ppl(missing)), 3, {missing});
  expect_failure(thimble({"model", "info", missing}), 3, {missing});
  expect_failure(thimble({"tokenize", "--tokenizer", missing, "--text", "a"}), 3, {missing});
  expect_failure(thimble({"tokenize", "--tokenizer", model(), "--file", missing}), 3, {missing});
  expect_failure(thimble({"tokenize", "--tokenizer", model(), "--check", missing}), 3, {missing});
  expect_failure(thimble({"eval", "--model", model(), "--ppl", missing}), 3, {missing});
  expect_failure(thimble({"eval", "--model", model(), "--tokenizer", missing, "--ppl", text()}), 3, {missing});
  expect_failure(thimble({"generate", "--model", missing, "--prompt", "a"}), 3, {missing});

  const std::string m = copy(), weights = m + "/model.safetensors", config = m + "/config.json";
  const std::string bytes = get_file(weights);
  for (const size_t keep : {size_t{0}, size_t{7}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    put_file(weights, bytes.substr(0, keep));
    expect_failure(thimble({"model", "info", m}), 3, {"model.safetensors"});
  }
  put_file(weights, bytes + "x");
  expect_failure(thimble({"model", "info", m}), 3, {"model.safetensors"});
  std::filesystem::remove(weights);
  expect_failure(thimble({"model", "info", m}), 3, {m});
  put_file(weights, bytes);

  const nlohmann::json good = nlohmann::json::parse(get_file(config));
  put_file(config, "{\"hidden_size\": 8, " + good.dump().substr(1));
  expect_failure(thimble({"model", "info", m}), 3, {"config.json", "hidden_size"});
  put_file(config, good.dump().substr(0, 40));
  expect_failure(thimble({"model", "info", m}), 3, {"config.json"});
  put_file(config, "[]");
  expect_failure(thimble({"model", "info", m}), 3, {"config.json"});
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"}) {
    nlohmann::json broken = good;
    broken.erase(key);
    put_file(config, broken.dump());
    expect_failure(thimble({"model", "info", m}), 3, {"config.json", key});
    for (const nlohmann::json& value : std::vector<nlohmann::json>{0, -1, "many", 1e30, true, int64_t{1} << 40}) {
      broken[key] = value;
      put_file(config, broken.dump());
      expect_failure(thimble({"model", "info", m}), 3, {"config.json", key});
    }
  }
  // Fields that are in range but fit neither one another nor the weights.
  for (const auto& [key, value] : std::vector<std::pair<std::string, int>>{
           {"num_key_value_heads", 3}, {"vocab_size", 5}, {"num_hidden_layers", 3}, {"num_hidden_layers", 1}, {"num_attention_heads", 5}, {"hidden_size", 64}}) {
    nlohmann::json broken = good;
    broken[key] = value;
    put_file(config, broken.dump());
    expect_failure(thimble({"model", "info", m}), 3, {m});
  }
}

TEST_F(CliTest, UnsupportedEndsWithFive) {
  const std::string m = copy(), config = m + "/config.json";
  nlohmann::json other = nlohmann::json::parse(get_file(config));
  other["model_type"] = "no_such_family";
  put_file(config, other.dump());
  expect_failure(thimble({"model", "info", m}), 5, {"no_such_family"});
  put_file(scratch_ / "vocab.txt", "[UNK]\nthe\n");
  expect_failure(thimble({"tokenize", "--tokenizer", scratch_ / "vocab.txt", "--text", "a"}), 3, {"vocab.txt", "[CLS]"});
  put_file(scratch_ / "model.gguf", std::string("GGUF\4\0\0\0", 8) + std::string(16, '\0'));
  expect_failure(thimble({"model", "info", scratch_ / "model.gguf"}), 5, {"GGUF version 4"});
}

TEST_F(CliTest, BadTextsEndWithThree) {
  put_file(scratch_ / "empty.txt", "");
  expect_failure(thimble({"eval", "--model", model(), "--ppl", scratch_ / "empty.txt"}), 3, {"empty.txt", "empty"});
  put_file(scratch_ / "one.txt", "boat");
  ASSERT_EQ(sample_tokenizer().encode("boat", {false, false}).size(), 1u);
  expect_failure(thimble({"eval", "--model", model(), "--ppl", scratch_ / "one.txt"}), 3, {"one.txt"});
  put_file(scratch_ / "latin1.txt", "caf\xE9 au lait");
  expect_failure(thimble({"eval", "--model", model(), "--ppl", scratch_ / "latin1.txt"}), 3, {"latin1.txt", "UTF-8"});
  expect_failure(thimble({"tokenize", "--tokenizer", model(), "--file", scratch_ / "latin1.txt"}), 3, {"latin1.txt", "UTF-8"});
  expect_failure(thimble({"tokenize", "--tokenizer", model(), "--ids", "1 100000"}), 3, {"100000"});
  expect_failure(thimble({"eval", "--model", model(), "--ppl", model()}), 3, {model()});

  std::string prompt;
  for (int i = 0; i < 100; ++i) prompt += "the boat sailed over the sea ";
  expect_failure(thimble({"generate", "--model", model(), "--prompt", prompt}), 3, {"context"});
}

TEST_F(CliTest, TokenizerLargerThanTheModelFailsOnlyWhenAnIdIsOutOfRange) {
  const std::string m = scratch_ / "small_vocab";
  SmallModel shape;
  shape.vocab = sample_tokenizer().vocab_size() - 100;  // the last merges have no row
  std::filesystem::create_directory(m);
  write_small_model(m, shape);
  expect_failure(thimble(ppl(m)), 3, {"vocabulary", std::to_string(shape.vocab), "text.txt"});
  put_file(scratch_ / "bytes.txt", "\x01\x02\x03\x04\x05");  // byte tokens are in range
  const RunResult r = thimble({"eval", "--model", m, "--ppl", scratch_ / "bytes.txt", "--json"});
  const nlohmann::json j = expect_json(r, "thimble.eval/1");
  EXPECT_EQ(j["tokens"].get<int64_t>(), j["text_tokens"].get<int64_t>() - 1);
}

TEST_F(CliTest, MalformedRowsNameFileLineAndField) {
  const std::string good = "{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 1}\n";
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"{\"choices\": [\"b\"], \"gold\": 0}", "query"},
      {"{\"query\": 5, \"choices\": [\"b\"], \"gold\": 0}", "query"},
      {"{\"query\": \"a\", \"gold\": 0}", "choices"},
      {"{\"query\": \"a\", \"choices\": [], \"gold\": 0}", "choices"},
      {"{\"query\": \"a\", \"choices\": [\"b\", 1], \"gold\": 0}", "choices"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"\"], \"gold\": 0}", "choices"},
      {"{\"query\": \"a\", \"choices\": {\"b\": 1}, \"gold\": 0}", "choices"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"c\"]}", "gold"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}", "gold"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": -1}", "gold"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": \"d\"}", "gold"},
      {"{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 0, \"gold\": 1}", "gold"},
      {"{\"query\": \"a\", \"choices\": [\"b\"", ""},
      {"[1]", ""},
      {"{} {}", ""},
      {"{\"query\": \"\xff\", \"choices\": [\"b\"], \"gold\": 0}", ""},
  };
  const std::string path = scratch_ / "rows.jsonl";
  for (const auto& [row, field] : rows) {
    put_file(path, good + "\n" + row + "\n" + good);
    expect_failure(thimble({"eval", "--model", model(), "--choices", path}), 3, {path + ":3", field});
  }
  put_file(path, "\n  \n");
  expect_failure(thimble({"eval", "--model", model(), "--choices", path}), 3, {path});
  for (const auto& [row, field] : std::vector<std::pair<std::string, std::string>>{
           {"{\"continuation\": \"b\"}", "context"}, {"{\"context\": \"b\"}", "continuation"}, {"{\"context\": \"b\", \"continuation\": \"\"}", "continuation"}}) {
    put_file(path, row + "\n");
    expect_failure(thimble({"eval", "--model", model(), "--continuation", path}), 3, {path + ":1", field});
  }
}

TEST_F(CliTest, BudgetsEndWithFour) {
  expect_failure(thimble(with(ppl(model()), {"--ram", "20K"})), 4, {});
  const std::string samples = "/dev/full";
  if (std::filesystem::exists(samples)) expect_failure(thimble(with(ppl(model()), {"--samples", samples})), 4, {samples});
}

TEST_F(CliTest, TypesOfCache) {
  std::string exact;
  double wide = 0;
  for (const char* kv : {"f32", "f16", "int8"}) {
    const RunResult r = thimble({"generate", "--model", model(), "--prompt", "a boat", "--max-tokens", "4", "--kv", kv, "--json"});
    ASSERT_EQ(r.status, 0) << r.err;
    const auto j = nlohmann::json::parse(r.out);
    EXPECT_EQ(j["kv"], kv);
    if (exact.empty()) {
      exact = j["text"];
      wide = j["kv_bytes"];
      const RunResult plain = thimble({"generate", "--model", model(), "--prompt", "a boat", "--max-tokens", "4", "--json"});
      EXPECT_EQ(nlohmann::json::parse(plain.out)["text"], exact);  // f32 is the default
    } else {
      EXPECT_LT(j["kv_bytes"], 0.6 * wide);
    }
    EXPECT_EQ(thimble(with(ppl(model()), {"--kv", kv})).status, 0);
  }
  expect_failure(thimble({"generate", "--model", model(), "--prompt", "a", "--kv", "q8"}), 2, {"--kv", "int8"});
  expect_failure(thimble(with(ppl(model()), {"--kv", "half"})), 2, {"--kv", "f16"});
}

TEST_F(CliTest, FullAndClosedOutputsAreErrorsNeverSignals) {
  const std::vector<Args> commands = {with(ppl(model()), {"--json"}),
                                      ppl(model()),
                                      {"eval", "--model", model(), "--choices", *shared_ / "choices.jsonl"},
                                      {"model", "info", model(), "--tensors"},
                                      {"model", "info", model(), "--json"},
                                      {"tokenize", "--tokenizer", model(), "--text", "a boat"},
                                      {"tokenize", "--tokenizer", model(), "--text", "a boat", "--json"},
                                      {"tokenize", "--tokenizer", model(), "--ids", "300"},
                                      {"generate", "--model", model(), "--prompt", "a boat", "--max-tokens", "4"},
                                      {"generate", "--model", model(), "--prompt", "a boat", "--max-tokens", "4", "--json"},
                                      {"doctor"},
                                      {"completion", "bash"},
                                      {"--help"},
                                      {"eval", "--help"},
                                      {"--version"}};
  for (const Args& args : commands) {
    SCOPED_TRACE(args[0]);
    RunOptions full;
    full.stdout_path = "/dev/full";
    if (std::filesystem::exists(full.stdout_path)) {
      const RunResult r = thimble(args, full);
      EXPECT_EQ(r.signal, 0);
      EXPECT_EQ(r.status, 4) << r.err;
      EXPECT_NE(r.err.find("standard output"), std::string::npos) << r.err;
    }
    RunOptions closed;
    closed.close_stdout_reader = true;
    const RunResult r = thimble(args, closed);
    EXPECT_EQ(r.signal, 0) << "a closed pipe killed it";
    EXPECT_NE(r.status, 0);
  }
}

TEST_F(CliTest, TokenizeRoundTrip) {
  const RunResult ids = thimble({"tokenize", "--tokenizer", model(), "--text", "a small red boat"});
  ASSERT_EQ(ids.status, 0) << ids.err;
  EXPECT_EQ(ids.err, "");
  std::string want;
  for (const int32_t id : sample_tokenizer().encode("a small red boat")) want += (want.empty() ? "" : " ") + std::to_string(id);
  EXPECT_EQ(ids.out, want + "\n");
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--ids", ids.out}).out, "<s> a small red boat\n");
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--skip-special", "--ids", ids.out}).out, "a small red boat\n");
  std::string commas = want;
  std::replace(commas.begin(), commas.end(), ' ', ',');
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--skip-special", "--ids", "[" + commas + "]"}).out, "a small red boat\n");

  RunOptions options;
  options.input = "a small red boat";
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--file", "-"}, options).out, ids.out);
  put_file(scratch_ / "t.txt", options.input);
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--file", scratch_ / "t.txt"}).out, ids.out);
  EXPECT_EQ(thimble({"tokenize", "--tokenizer", model(), "--text", "", "--no-special"}).out, "\n");

  const nlohmann::json j = expect_json(thimble({"tokenize", "--tokenizer", model(), "--text", "boat \xC3\xA9 <s>", "--no-special", "--json"}), "thimble.tokenize/1");
  EXPECT_EQ(j["count"], j["ids"].size());
  EXPECT_EQ(j["tokens"].size(), j["ids"].size());
  EXPECT_EQ(std::count(j["ids"].begin(), j["ids"].end(), 1), 0) << "special strings are plain text";
  const nlohmann::json parsed = expect_json(thimble({"tokenize", "--tokenizer", model(), "--text", "boat <s>", "--no-special", "--parse-special", "--json"}), "thimble.tokenize/1");
  EXPECT_EQ(std::count(parsed["ids"].begin(), parsed["ids"].end(), 1), 1);
}

TEST_F(CliTest, TokenizeCheckEndsWithSevenOnADifference) {
  const std::string path = scratch_ / "cases.jsonl";
  const auto line = [](const std::string& text, int32_t change) {
    std::vector<int32_t> ids = sample_tokenizer().encode(text, {false, false});
    ids.back() += change;
    return nlohmann::json({{"text", text}, {"ids_nospecial", ids}}).dump() + "\n";
  };
  put_file(path, line("a boat", 0) + line("the sea", 0));
  nlohmann::json j = expect_json(thimble({"tokenize", "--tokenizer", model(), "--check", path, "--json"}), "thimble.tokenize/1");
  EXPECT_EQ(j["lines"], 2);
  EXPECT_EQ(j["failed"], 0);
  put_file(path, line("a boat", 0) + line("the sea", 1));
  const RunResult r = thimble({"tokenize", "--tokenizer", model(), "--check", path, "--json"});
  EXPECT_EQ(r.status, 7) << r.err;
  j = nlohmann::json::parse(r.out);
  EXPECT_EQ(j["failed"], 1);
  EXPECT_EQ(j["first"][0]["line"], 2);
  EXPECT_EQ(j["first"][0]["field"], "ids_nospecial");
  put_file(path, "{\"ids\": [1]}\n");
  expect_failure(thimble({"tokenize", "--tokenizer", model(), "--check", path}), 3, {path + ":1", "text"});
}

TEST_F(CliTest, ModelInfoShowsFlagsAndTensors) {
  const nlohmann::json j = expect_json(thimble({"model", "info", model(), "--tensors", "--json"}), "thimble.model/1");
  EXPECT_EQ(j["config"]["hidden"], 32);
  EXPECT_EQ(j["config"]["n_kv_heads"], 2);
  EXPECT_EQ(j["config"]["tied"], false);
  EXPECT_EQ(j["config"]["activation"], "silu");
  EXPECT_EQ(j["bits_per_weight"], 32.0);
  int64_t parameters = 0, bytes = 0;
  for (const auto& t : j["tensors"]) {
    int64_t n = 1;
    for (const auto& d : t["shape"]) n *= d.get<int64_t>();
    parameters += n;
    bytes += t["bytes"].get<int64_t>();
    EXPECT_EQ(t["format"], "f32");
  }
  EXPECT_EQ(j["tensors"].size(), 3 + 2 * 9u);
  EXPECT_EQ(j["parameters"], parameters);
  EXPECT_EQ(j["stored_bytes"], bytes);
  EXPECT_EQ(j["tensors"][0]["name"], "model.embed_tokens.weight");
  const RunResult table = thimble({"model", "info", model(), "--tensors"});
  EXPECT_EQ(table.status, 0);
  for (const char* word : {"hidden", "n_layers", "model.layers.1.mlp.down_proj.weight", "1.down_w", "bits_per_weight"})
    EXPECT_NE(table.out.find(word), std::string::npos) << word;
  EXPECT_EQ(expect_json(thimble({"model", "info", model(), "--json"}), "thimble.model/1").contains("tensors"), false);
}

TEST_F(CliTest, QuietAndPipesKeepStderrEmpty) {
  EXPECT_EQ(thimble(with(ppl(model()), {"--json"})).err, "") << "progress belongs on a terminal";
  EXPECT_EQ(thimble(with(ppl(model()), {"--quiet"})).err, "");
}

// Words for people go to standard error. That nobody can read them must not change how a run ends.
TEST(Cli, FullStandardErrorIsNoCrash) {
  const std::string exe = std::string(THIMBLE_BINARY_DIR) + "/bin/thimble";
  for (const auto& [args, status] : std::vector<std::pair<std::string, int>>{
           {"doctor --isa foo", 2}, {"model info /nowhere", 3}, {"generate", 2}, {"--version", 0}}) {
    const RunResult r = run_command({"/bin/sh", "-c", exe + " " + args + " 2>/dev/full"});
    EXPECT_EQ(r.signal, 0) << args;
    EXPECT_EQ(r.status, status) << args;
  }
}

}  // namespace
}  // namespace thimble::tools_test
