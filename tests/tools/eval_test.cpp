// thimble eval end to end: figures against definitions, the result schema, and real models where the data is present.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "models/model.h"
#include "models/scoring.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

using Args = std::vector<std::string>;
using nlohmann::json;

json eval_json(Args args) {
  args.insert(args.begin(), "eval");
  args.push_back("--json");
  return expect_json(thimble(args), "thimble.eval/1");
}

std::vector<json> read_lines(const std::string& path) {
  std::istringstream in(get_file(path));
  std::vector<json> rows;
  for (std::string line; std::getline(in, line);) rows.push_back(json::parse(line));
  return rows;
}

class EvalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(dir_ / "model");
    model_ = dir_ / "model";
    text_ = dir_ / "text.txt";
    put_file(text_, sample_text());
  }
  ScratchDir dir_;
  std::string model_, text_;
};

TEST_F(EvalTest, UniformModelHasThePerplexityOfItsVocabulary) {
  SmallModel shape;
  shape.uniform = true;
  write_small_model(model_, shape);
  const Tokenizer tokenizer = sample_tokenizer();
  const auto vocab = double(tokenizer.vocab_size());
  const auto tokens = static_cast<int64_t>(tokenizer.encode(sample_text(), {false, false}).size());
  const json j = eval_json({"--model", model_, "--ppl", text_, "--ctx", "40", "--stride", "15", "--bos"});
  EXPECT_NEAR(j["ppl"], vocab, 1e-4 * vocab);
  EXPECT_NEAR(j["nll_mean"], std::log(vocab), 1e-6);
  EXPECT_NEAR(j["stderr"], 0, 1e-6);
  EXPECT_EQ(j["tokens"], tokens);
  EXPECT_EQ(j["protocol"]["scored"], tokens);
  EXPECT_EQ(j["protocol"]["ctx"], 40);
  EXPECT_EQ(j["protocol"]["stride"], 15);
  EXPECT_EQ(j["protocol"]["bos"], true);
  EXPECT_NEAR(j["bits_per_byte"], double(tokens) * std::log2(vocab) / double(sample_text().size()), 1e-6);
  // Without BOS the first token is not scored, and its bytes do not count.
  const json without = eval_json({"--model", model_, "--ppl", text_, "--ctx", "40", "--stride", "15"});
  const size_t first = tokenizer.decode({tokenizer.encode(sample_text(), {false, false})[0]}).size();
  EXPECT_EQ(without["tokens"], tokens - 1);
  EXPECT_EQ(without["scored_bytes"], sample_text().size() - first);
  EXPECT_NEAR(without["bits_per_byte"], double(tokens - 1) * std::log2(vocab) / double(sample_text().size() - first), 1e-6);
  const std::string sha256 = j["protocol"]["text_sha256"];
  EXPECT_EQ(sha256.size(), 64u);
  EXPECT_EQ(without["protocol"]["text_sha256"], sha256);
}

TEST_F(EvalTest, PerplexityOverThreadsAndTiers) {
  write_small_model(model_);
  const Args args = {"--model", model_, "--ppl", text_, "--ctx", "32", "--stride", "16"};
  const auto with = [&](const Args& more) {
    Args all = args;
    all.insert(all.end(), more.begin(), more.end());
    return eval_json(all);
  };
  const json one = with({"--threads", "1"});
  EXPECT_EQ(one["nll_mean"], with({"--threads", "2"})["nll_mean"]);
  EXPECT_EQ(one["nll_mean"], with({"--threads", "3"})["nll_mean"]);
  EXPECT_NEAR(one["nll_mean"], with({"--isa", "ref"})["nll_mean"], 1e-5);
  const std::string samples = dir_ / "windows.jsonl";
  const json limited = with({"--limit", "3", "--samples", samples});
  EXPECT_EQ(limited["windows"], 3);
  EXPECT_EQ(limited["tokens"], 31 + 16 + 16);
  double sum = 0;
  const std::vector<json> rows = read_lines(samples);
  ASSERT_EQ(rows.size(), 3u);
  for (const json& row : rows) sum += row["nll"].get<double>();
  EXPECT_NEAR(sum, limited["nll_mean"].get<double>() * 63, 1e-9);
}

TEST_F(EvalTest, ResultHasTheSchemaOfLmEval) {
  write_small_model(model_);
  const std::string path = dir_ / "boats.jsonl";
  put_file(path,
           "{\"query\": \"The boat\", \"choices\": [\"sailed home\", \"did not know the way\"], \"gold\": 1}\n\n"
           "{\"query\": \"A gull \", \"choices\": [\" sat\", \"sailed\"], \"gold\": \"sailed\", \"more\": [1]}\n"
           "{\"query\": \"\", \"choices\": [\"Once\", \"\\u00e9t\\u00e9\"], \"gold\": 0}\n");
  const std::string samples = dir_ / "samples.jsonl";
  const json j = eval_json({"--model", model_, "--choices", path, "--samples", samples});
  for (const char* key : {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config",
                          "git_hash", "upper_git_hash", "date", "pretty_env_info", "transformers_version", "lm_eval_version",
                          "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "max_length", "task_hashes",
                          "model_name", "model_name_sanitized", "chat_template", "chat_template_sha", "total_evaluation_time_seconds"})
    EXPECT_TRUE(j.contains(key)) << key;
  EXPECT_TRUE(j["total_evaluation_time_seconds"].is_string());
  EXPECT_EQ(j["n-shot"]["boats"], 0);
  EXPECT_EQ(j["n-samples"]["boats"], (json{{"original", 3}, {"effective", 3}}));
  EXPECT_EQ(j["higher_is_better"]["boats"]["acc"], true);
  const json& result = j["results"]["boats"];
  EXPECT_EQ(result["alias"], "boats");

  // The samples repeat the figures, and the log-probabilities are those of the definition.
  Model model = load_model(model_, build_kernel_table(best_tier()));
  Transformer transformer(model, 64);
  Context ctx(build_kernel_table(best_tier()), 1, nullptr);
  Scorer scorer(transformer, ctx);
  const Tokenizer tokenizer = sample_tokenizer();
  const auto logprob = [&](const std::string& context, const std::string& continuation) {
    std::vector<int32_t> head = tokenizer.encode(context, {false, false}), all = tokenizer.encode(context + continuation, {false, false});
    all.erase(all.begin(), all.begin() + static_cast<int64_t>(head.size()));
    if (head.empty()) head = {tokenizer.bos_id()};
    return scorer.loglikelihood(head, all).logprob;
  };
  const std::vector<json> rows = read_lines(samples);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0]["logprobs"][0], logprob("The boat", " sailed home"));
  EXPECT_EQ(rows[0]["logprobs"][1], logprob("The boat", " did not know the way"));
  EXPECT_EQ(rows[1]["logprobs"][0], logprob("A gull", "  sat")) << "whitespace at the end of the query moves to the choice";
  EXPECT_EQ(rows[1]["logprobs"][1], logprob("A gull", "  sailed"));
  EXPECT_EQ(rows[2]["logprobs"][1], logprob("", " \xC3\xA9t\xC3\xA9"));
  EXPECT_EQ(rows[1]["gold"], 1) << "gold as text";
  const std::vector<std::vector<double>> characters = {{11, 20}, {4, 6}, {4, 3}}, bytes = {{11, 20}, {4, 6}, {4, 5}};
  double acc = 0, norm = 0, by_bytes = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double a = rows[i]["logprobs"][0], b = rows[i]["logprobs"][1];
    EXPECT_EQ(rows[i]["doc_id"], i);
    EXPECT_EQ(rows[i]["pred"], b > a ? 1 : 0);
    EXPECT_EQ(rows[i]["pred_norm"], b / characters[i][1] > a / characters[i][0] ? 1 : 0);
    EXPECT_EQ(rows[i]["pred_bytes"], b / bytes[i][1] > a / bytes[i][0] ? 1 : 0);
    acc += rows[i]["pred"] == rows[i]["gold"];
    norm += rows[i]["pred_norm"] == rows[i]["gold"];
    by_bytes += rows[i]["pred_bytes"] == rows[i]["gold"];
  }
  EXPECT_DOUBLE_EQ(result["acc,none"], acc / 3);
  EXPECT_DOUBLE_EQ(result["acc_norm,none"], norm / 3);
  EXPECT_DOUBLE_EQ(result["acc_bytes,none"], by_bytes / 3);
  EXPECT_NEAR(result["acc_stderr,none"], std::sqrt(acc / 3 * (1 - acc / 3) / 2), 1e-12);

  const json limited = eval_json({"--model", model_, "--choices", path, "--limit", "1"});
  EXPECT_EQ(limited["n-samples"]["boats"], (json{{"original", 3}, {"effective", 1}}));
  EXPECT_EQ(limited["results"]["boats"]["acc_stderr,none"], "N/A");
  EXPECT_EQ(thimble({"eval", "--model", model_, "--choices", path}).status, 0);
}

TEST_F(EvalTest, ContinuationsReportGreedyAccuracyAndPerplexity) {
  write_small_model(model_);
  const std::string path = dir_ / "c.jsonl", samples = dir_ / "s.jsonl";
  put_file(path, json({{"context", "The boat"}, {"continuation", "sailed"}}).dump() + "\n" +
                     json({{"context", "The boat"}, {"continuation", " sailed"}}).dump() + "\n" +
                     json({{"context", "The boat "}, {"continuation", "sailed"}}).dump() + "\n" +
                     json({{"context", "The boat"}, {"continuation", "home"}}).dump() + "\n");
  const json j = eval_json({"--model", model_, "--continuation", path, "--samples", samples, "--bos"});
  const std::vector<json> rows = read_lines(samples);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0]["logprob"], rows[1]["logprob"]);
  EXPECT_EQ(rows[0]["logprob"], rows[2]["logprob"]);
  double sum = 0;
  for (const json& row : rows) sum += row["logprob"].get<double>();
  EXPECT_NEAR(j["results"]["c"]["perplexity,none"], std::exp(-sum / 4), 1e-9 * std::exp(-sum / 4));
  EXPECT_EQ(j["higher_is_better"]["c"]["perplexity"], false);
  EXPECT_TRUE(j["results"]["c"].contains("acc,none"));
}

TEST_F(EvalTest, AnInterruptedNameIsNeverLeftBehind) {
  write_small_model(model_);
  put_file(dir_ / "bad.jsonl", "{\"query\": \"a\", \"choices\": [\"b\"], \"gold\": 0}\n{}\n");
  const RunResult r = thimble({"eval", "--model", model_, "--choices", dir_ / "bad.jsonl", "--samples", dir_ / "out.jsonl"});
  EXPECT_EQ(r.status, 3);
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
    EXPECT_EQ(entry.path().filename().string().find("out.jsonl"), std::string::npos) << entry.path();
}

TEST(RealData, StoriesModelFindsStoriesProbable) {
  const std::string dir = shared("data/models/stories260K");
  SKIP_WITHOUT(dir);
  const ScratchDir scratch;
  const std::string story = scratch / "story.txt", prose = scratch / "prose.txt";
  put_file(story,
           "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
           "red ball. She wanted to play with it, but it was too high. Lily's mom said, \"Lily, let's go home.\"");
  put_file(prose, "Gross national product per capita is computed annually by dividing aggregate output through population estimates.");
  const json a = eval_json({"--model", dir + "/stories260K.bin", "--ppl", story, "--ctx", "256", "--stride", "128", "--bos"});
  const json b = eval_json({"--model", dir + "/stories260K.bin", "--ppl", prose, "--ctx", "256", "--stride", "128", "--bos"});
  EXPECT_LT(a["ppl"], 8.0);
  EXPECT_GT(b["ppl"], 20.0);
  EXPECT_GT(b["bits_per_byte"].get<double>(), 2 * a["bits_per_byte"].get<double>());
}

TEST(RealData, BabyLlama) {
  const std::string dir = shared("data/models/babyllama_tok105");
  SKIP_WITHOUT(dir);
  const ScratchDir scratch;
  put_file(scratch / "story.txt", "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.");
  const json j = eval_json({"--model", dir + "/model5000.bin", "--ppl", scratch / "story.txt", "--ctx", "128", "--stride", "64", "--bos"});
  EXPECT_LT(j["ppl"], 3.0) << "a character-level model";
}

TEST(RealData, MultipleChoice) {
  const std::string model = shared("data/models/stories260K/stories260K.bin"), file = shared("data/eval/copa.jsonl");
  SKIP_WITHOUT(model);
  SKIP_WITHOUT(file);
  const json j = eval_json({"--model", model, "--choices", file, "--limit", "40"});
  const double acc = j["results"]["copa"]["acc,none"];
  EXPECT_GT(acc, 0.2);
  EXPECT_LT(acc, 0.95);
  EXPECT_EQ(j["n-samples"]["copa"]["effective"], 40);
}

TEST(RealData, TokenizersAgreeWithRecordedCases) {
  for (const char* name : {"gpt2", "llama2", "llama3_trunc12k"}) {
    const std::string dir = shared(std::string("oracle/tok/") + name);
    SKIP_WITHOUT(dir);
    const json j = expect_json(thimble({"tokenize", "--tokenizer", dir, "--check", dir + "/cases.jsonl", "--json"}), "thimble.tokenize/1");
    EXPECT_EQ(j["lines"], 211) << name;
    EXPECT_EQ(j["failed"], 0) << name;
  }
}

TEST(RealData, DamagedHeadersNeverCrash) {
  const std::string dir = shared("data/malformed");
  SKIP_WITHOUT(dir);
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    std::string hex = get_file(entry.path()), bytes;
    hex.erase(std::remove_if(hex.begin(), hex.end(), [](unsigned char c) { return !std::isxdigit(c); }), hex.end());
    for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const ScratchDir scratch;
    SmallModel shape;
    shape.vocab = 20;
    put_file(scratch / "config.json", small_config(shape).dump());
    put_file(scratch / "model.safetensors", bytes);
    const RunResult r = thimble({"model", "info", scratch.path()});
    EXPECT_EQ(r.signal, 0) << entry.path();
    EXPECT_TRUE(r.status == 3 || r.status == 5) << entry.path() << ": " << r.status << " " << r.err;
  }
}

}  // namespace
}  // namespace thimble::tools_test
