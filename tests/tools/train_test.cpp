// Training from the command line: pretrain and tune to outputs that the other verbs load, budgets, refusals, and runs
// that are stopped or killed and continue to the same bytes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <functional>
#include <thread>

#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

using Args = std::vector<std::string>;
using nlohmann::json;
namespace fs = std::filesystem;

// Starts a program, sends it a signal as soon as `ready` says so, and returns how it ended. err gets its stderr.
int signal_when(const Args& arguments, int signal, const std::function<bool()>& ready, const std::string& err) {
  Args args = arguments;
  args.insert(args.begin(), std::string(THIMBLE_BINARY_DIR) + "/bin/thimble");
  const std::vector<std::string> env = plain_environment();
  const std::vector<char*> argv = pointers(args), envp = pointers(env);
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(fd, 2);
    ::dup2(fd, 1);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  int status = 0;
  const auto start = std::chrono::steady_clock::now();
  bool sent = false;
  for (;;) {
    if (::waitpid(child, &status, WNOHANG) == child) return status;
    const bool late = std::chrono::steady_clock::now() - start > std::chrono::seconds(60);
    if (!sent && (late || ready())) {
      ::kill(child, late ? SIGKILL : signal);
      sent = !late;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

int64_t count_lines(const std::string& path) {
  const std::string text = get_file(path);
  return std::count(text.begin(), text.end(), '\n');
}

class TrainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = dir_ / "model";
    data_ = dir_ / "rows.jsonl";
    text_ = dir_ / "text.txt";
    put_file(text_, sample_text());
    std::string rows;
    const char* things[] = {"boat", "gull", "sea", "mast"};
    for (int i = 0; i < 12; ++i)
      rows += json({{"prompt", std::string("the ") + things[i % 4]},
                    {"completion", std::string(" sailed over the ") + things[(i + 1) % 4]}})
                  .dump() +
              "\n";
    put_file(data_, rows);
  }
  void make_model() {
    fs::create_directory(model_);
    write_small_model(model_);
  }
  Args tune(const std::string& method, const std::string& out, const Args& more = {}) const {
    Args args = {"tune", "--model", model_, "--data",    data_, "--method", method,    "--steps",
                 "8",    "--batch", "3",    "--threads", "1",   "--out",    dir_ / out};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  json run_json(Args args, const std::string& schema) {
    args.push_back("--json");
    return expect_json(thimble(args), schema);
  }
  double ppl(const std::string& model, const Args& more = {}) {
    Args args = {"eval", "--model", model, "--ppl", text_, "--ctx", "32", "--limit", "6"};
    args.insert(args.end(), more.begin(), more.end());
    return run_json(args, "thimble.eval/1").value("nll_mean", -1.0);
  }

  ScratchDir dir_;
  std::string model_, data_, text_;
};

TEST_F(TrainTest, PretrainMakesAModelThatTheOtherVerbsLoad) {
  const std::string config = dir_ / "config.json";
  SmallModel shape;
  shape.vocab = 1;  // the tokenizer decides
  json c = small_config(shape);
  c.erase("vocab_size");
  put_file(config, c.dump());
  const std::string out = dir_ / "out";
  const json j = run_json({"pretrain", "--config", config, "--text",  text_, "--eval-fraction", "0.2", "--vocab-size",
                           "320",      "--steps",  "60",   "--batch", "4",   "--ctx",           "32",  "--lr",
                           "5e-3",     "--warmup", "5",    "--out",   out},
                          "thimble.pretrain/1");
  EXPECT_EQ(j["steps"], 60);
  EXPECT_EQ(j["tokens"], 60 * 4 * 32);
  EXPECT_NEAR(double(j["first_loss"]), std::log(320.0), 0.3);
  EXPECT_LT(double(j["last_loss"]), double(j["first_loss"]) - 1.5);
  EXPECT_LT(double(j["eval_loss"]), double(j["eval_loss_before"]) - 1.5);
  EXPECT_LE(double(j["peak_rss_bytes"]), 1.6 * double(j["memory"]["total"]));
  EXPECT_EQ(count_lines(out + "/log.jsonl"), 60);
  const json line = json::parse(get_file(out + "/log.jsonl").substr(0, get_file(out + "/log.jsonl").find('\n')));
  for (const char* key : {"step", "tokens", "loss", "lr", "grad_norm", "eval_loss", "seconds", "rss"})
    EXPECT_TRUE(line.contains(key)) << key;
  const json written = json::parse(get_file(out + "/config.json"));
  EXPECT_EQ(written["vocab_size"], 320);
  EXPECT_EQ(written["torch_dtype"], "float32");
  EXPECT_EQ(written["architectures"][0], "LlamaForCausalLM");
  EXPECT_LT(ppl(out), double(j["first_loss"]) - 1.5);
  EXPECT_EQ(thimble({"generate", "--model", out, "--prompt", "Once upon", "--max-tokens", "5"}).status, 0);

  // One token per character, another family.
  json gpt2 = {{"model_type", "gpt2"}, {"n_embd", 32}, {"n_layer", 2}, {"n_head", 2}, {"n_positions", 64}};
  put_file(config, gpt2.dump());
  const std::string chars = dir_ / "chars";
  const json k = run_json({"pretrain", "--config", config, "--text", text_, "--steps", "10", "--batch", "2", "--ctx",
                           "24", "--lr", "5e-3", "--out", chars},
                          "thimble.pretrain/1");
  EXPECT_LT(double(k["last_loss"]), double(k["first_loss"]));
  const json echo =
      run_json({"generate", "--model", chars, "--prompt", "boat", "--max-tokens", "1"}, "thimble.generate/1");
  EXPECT_EQ(echo["prompt_ids"].size(), 1u + 1u + 4u);  // BOS, the space in front, four characters
}

TEST_F(TrainTest, EveryMethodLearnsAndItsOutputLoads) {
  make_model();
  const std::string before = get_file(model_ + "/model.safetensors");
  const double base = ppl(model_);
  for (const std::string method : {"lora", "dora", "ia3", "prompt", "prefix", "full"}) {
    SCOPED_TRACE(method);
    const std::string out = dir_ / method;
    const std::string lr = method == "full" ? "1e-3" : method == "lora" || method == "dora" ? "1e-2" : "3e-2";
    const json j = run_json(
        tune(method, method, {"--eval-data", data_, "--lr", lr, "--schedule", "constant", "--virtual-tokens", "4"}),
        "thimble.tune/1");
    EXPECT_LT(double(j["eval_loss"]), double(j["eval_loss_before"]) - 0.02);
    EXPECT_EQ(j["method"], method);
    for (const char* key : {"weights", "adapters", "grads", "optimizer", "activations", "kv", "base", "total"})
      EXPECT_TRUE(j["memory"].contains(key)) << key;
    if (method == "full") {
      EXPECT_NE(ppl(out), base);
      EXPECT_EQ(thimble({"generate", "--model", out, "--prompt", "the boat", "--max-tokens", "4"}).status, 0);
      continue;
    }
    EXPECT_NE(ppl(model_, {"--adapter", out}), base);
    EXPECT_EQ(
        thimble({"generate", "--model", model_, "--adapter", out, "--prompt", "the boat", "--max-tokens", "4"}).status,
        0);
    const std::string merged = dir_ / (method + "_merged");
    const Args merge = {"model", "merge", "--model", model_, "--adapter", out, "--out", merged};
    if (method == "lora" || method == "dora" || method == "ia3") {
      EXPECT_EQ(thimble(merge).status, 0);
      EXPECT_NEAR(ppl(merged), ppl(model_, {"--adapter", out}), 1e-4);
      expect_failure(thimble(merge), 2, {"--out"});
    } else {
      expect_failure(thimble(merge), 5, {"cannot be merged"});
      EXPECT_FALSE(fs::exists(merged));
    }
  }
  EXPECT_EQ(get_file(model_ + "/model.safetensors"), before);
}

// Virtual tokens, cached contexts and recomputed ones agree: the same items through the cache and in one pass.
TEST_F(TrainTest, AdaptersScoreTheSameThroughCacheAndWindows) {
  make_model();
  const std::string line = "the gull sailed over the small red sea";
  put_file(text_, " " + line);  // as eval joins a continuation to its context
  const Tokenizer tokenizer = sample_tokenizer();
  for (const std::string method : {"lora", "dora", "prompt", "prefix"}) {
    SCOPED_TRACE(method);
    ASSERT_EQ(thimble(tune(method, method, {"--lr", "3e-2"})).status, 0);
    const json whole = run_json({"eval", "--model", model_, "--adapter", dir_ / method, "--ppl", text_, "--ctx", "40",
                                 "--stride", "40", "--bos"},
                                "thimble.eval/1");
    put_file(dir_ / "c.jsonl", json({{"context", ""}, {"continuation", line}}).dump());
    const json split = run_json({"eval", "--model", model_, "--adapter", dir_ / method, "--continuation",
                                 dir_ / "c.jsonl", "--bos", "--samples", dir_ / "s.jsonl"},
                                "thimble.eval/1");
    const json sample = json::parse(get_file(dir_ / "s.jsonl"));
    const auto tokens = static_cast<int64_t>(tokenizer.encode(" " + line, {false, false}).size());
    EXPECT_EQ(int64_t(whole["tokens"]), tokens);
    EXPECT_NEAR(-double(sample["logprob"]) / double(tokens), double(whole["nll_mean"]), 1e-5);
    EXPECT_NE(double(whole["nll_mean"]), ppl(model_));
  }
}

TEST_F(TrainTest, MergeWritesTheDtypeThatIsAskedFor) {
  make_model();
  ASSERT_EQ(thimble(tune("lora", "a", {"--targets", "all-linear", "--rslora", "--lr", "1e-2"})).status, 0);
  const double exact = ppl(model_, {"--adapter", dir_ / "a"});
  for (const std::string dtype : {"bf16", "f16"}) {
    const std::string out = dir_ / dtype;
    ASSERT_EQ(
        thimble({"model", "merge", "--model", model_, "--adapter", dir_ / "a", "--out", out, "--dtype", dtype}).status,
        0);
    EXPECT_NEAR(ppl(out), exact, 0.05);
    EXPECT_LT(fs::file_size(out + "/model.safetensors"), fs::file_size(model_ + "/model.safetensors") * 6 / 10);
    EXPECT_EQ(json::parse(get_file(out + "/config.json"))["torch_dtype"], dtype == "bf16" ? "bfloat16" : "float16");
  }
}

// Over a packed base, with biases and the output matrix learning too: the folded model is dense.
TEST_F(TrainTest, DoraWithWholeModulesOverAPackedBase) {
  make_model();
  const Args more = {"--load-as", "q8", "--modules-to-save", "lm_head", "--lr", "1e-2"};
  ASSERT_EQ(thimble(tune("dora", "a", more)).status, 0);
  const json config = json::parse(get_file(dir_ / "a/adapter_config.json"));
  EXPECT_EQ(config["use_dora"], true);
  EXPECT_EQ(config["modules_to_save"], json::array({"lm_head"}));
  const double adapted = ppl(model_, {"--adapter", dir_ / "a", "--load-as", "q8"});
  EXPECT_NE(adapted, ppl(model_, {"--load-as", "q8"}));
  ASSERT_EQ(thimble({"model", "merge", "--model", model_, "--adapter", dir_ / "a", "--out", dir_ / "m"}).status, 0);
  EXPECT_NEAR(ppl(dir_ / "m"), adapted, 0.05);
  expect_failure(thimble(tune("ia3", "b", {"--bias", "all"})), 2, {"--bias"});
  expect_failure(thimble(tune("prompt", "b", {"--modules-to-save", "lm_head"})), 2, {"--modules-to-save"});
  expect_failure(thimble(tune("lora", "b", {"--modules-to-save", "no_such_module"})), 3, {"no_such_module"});
}

TEST_F(TrainTest, AdapterTravelsThroughGguf) {
  make_model();
  ASSERT_EQ(thimble(tune("lora", "a", {"--targets", "all-linear", "--lr", "1e-2"})).status, 0);
  const json j = run_json({"model", "adapter", dir_ / "a", "--model", model_, "--out", dir_ / "a.gguf"}, "thimble.adapter/1");
  EXPECT_EQ(j["kind"], "lora");
  EXPECT_GT(int64_t(j["parameters"]), 0);
  const double want = ppl(model_, {"--adapter", dir_ / "a"});
  EXPECT_EQ(ppl(model_, {"--adapter", dir_ / "a.gguf"}), want);
  ASSERT_EQ(thimble({"model", "adapter", dir_ / "a.gguf", "--model", model_, "--out", dir_ / "b"}).status, 0);
  EXPECT_EQ(ppl(model_, {"--adapter", dir_ / "b"}), want);
  expect_failure(thimble({"model", "adapter", dir_ / "a", "--model", model_, "--out", dir_ / "b"}), 2, {"--out"});
}

TEST_F(TrainTest, DryRunPredictsAndWritesNothing) {
  make_model();
  const auto plan = [&](const Args& more) {
    Args args = {"tune", "--model", model_, "--data", data_, "--dry-run"};
    args.insert(args.end(), more.begin(), more.end());
    return run_json(args, "thimble.tune/1");
  };
  const json full = plan({"--method", "full", "--batch", "4"}), lora = plan({"--method", "lora", "--batch", "4"});
  for (const json& j : {full, lora}) {
    int64_t sum = 0;
    for (const char* key : {"weights", "adapters", "grads", "optimizer", "activations", "kv", "base"})
      sum += j["memory"][key].get<int64_t>();
    EXPECT_EQ(sum, j["memory"]["total"]);
    EXPECT_GT(double(j["step_s"]), 0);
  }
  EXPECT_GT(int64_t(full["trainable"]), 4 * int64_t(lora["trainable"]));
  EXPECT_GE(int64_t(full["memory"]["optimizer"]), 8 * int64_t(full["trainable"]));
  const json sgd = plan({"--method", "full", "--batch", "4", "--optimizer", "sgd"});
  EXPECT_EQ(sgd["memory"]["optimizer"], 0);
  const json eight = plan({"--method", "full", "--batch", "4", "--optimizer", "adamw8bit"});
  EXPECT_LE(eight["memory"]["optimizer"].get<double>(), 0.3 * full["memory"]["optimizer"].get<double>());
  const RunResult words =
      thimble({"tune", "--model", model_, "--data", data_, "--method", "lora", "--dry-run", "--out", dir_ / "none"});
  EXPECT_EQ(words.status, 0);
  EXPECT_NE(words.out.find("activations"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir_ / "none"));
}

TEST_F(TrainTest, TooLittleMemoryEndsBeforeAnythingIsWritten) {
  make_model();
  for (const std::string method : {"full", "lora"}) {
    const RunResult r = thimble(tune(method, "out", {"--ram", "6M"}));
    expect_failure(r, 4, {"--ram", "weights", "optimizer", "activations", "total"});
    EXPECT_FALSE(fs::exists(dir_ / "out"));
  }
}

TEST_F(TrainTest, AbsurdConfigsAndTextsAreRefused) {
  const auto pretrain = [&](const json& config, const std::string& text, const Args& more = {}) {
    put_file(dir_ / "config.json", config.dump());
    put_file(text_, text);
    Args args = {"pretrain", "--config", dir_ / "config.json", "--text", text_, "--steps", "2", "--out", dir_ / "out"};
    args.insert(args.end(), more.begin(), more.end());
    return thimble(args);
  };
  const json small = small_config({}), huge = {{"model_type", "llama"},
                                               {"hidden_size", 1 << 24},
                                               {"intermediate_size", 1 << 24},
                                               {"num_hidden_layers", 4096},
                                               {"num_attention_heads", 1 << 16}};
  expect_failure(pretrain(huge, sample_text()), 4, {"weights", "this machine"});
  expect_failure(pretrain(huge, sample_text(), {"--dry-run"}), 4, {"weights"});
  expect_failure(pretrain({{"model_type", "mamba"}}, sample_text()), 5, {"mamba", "llama"});
  expect_failure(pretrain(small, ""), 3, {"text.txt"});
  expect_failure(pretrain(small, "ab\xff"), 3, {"text.txt", "UTF-8"});
  expect_failure(pretrain(small, "too short"), 3, {"text.txt", "--ctx"});
  expect_failure(pretrain(small, sample_text(), {"--vocab-size", "100"}), 2, {"vocab"});
  expect_failure(pretrain(small, sample_text(), {"--ctx", "65"}), 2, {"--ctx", "64"});
  expect_failure(pretrain(small, sample_text(), {"--eval-fraction", "0.01"}), 3, {"--eval-fraction"});
  EXPECT_FALSE(fs::exists(dir_ / "out"));
}

TEST_F(TrainTest, RefusalsNameLineFieldAndValidValues) {
  make_model();
  expect_failure(thimble(tune("lorra", "out")), 2, {"lorra", "lora, dora, full, prompt, prefix, ia3"});
  expect_failure(thimble(tune("lora", "out", {"--schedule", "sawtooth"})), 2, {"sawtooth", "cosine"});
  expect_failure(thimble(tune("lora", "out", {"--targets", "nothing_like_it"})), 2, {"nothing_like_it", "q_proj"});
  expect_failure(thimble(tune("lora", "out", {"--epochs", "2"})), 2, {"--steps", "--epochs"});
  expect_failure(thimble(tune("lora", "out", {"--ctx", "4000"})), 2, {"--ctx", "64"});
  expect_failure(thimble(tune("lora", "out", {"--patience", "2"})), 2, {"--patience", "--eval-data"});
  expect_failure(thimble({"tune", "--model", model_, "--data", data_, "--method", "lora", "--steps", "3"}), 2,
                 {"--out"});
  expect_failure(
      thimble({"tune", "--model", model_, "--data", data_, "--method", "full", "--steps", "3", "--out", model_}), 2,
      {"--out"});
  EXPECT_FALSE(fs::exists(dir_ / "out"));

  const std::string good = get_file(data_);
  const auto with = [&](const std::string& row, const Args& more = {}) {
    put_file(data_, good + row + "\n");
    return thimble(tune("lora", "out", more));
  };
  expect_failure(with("{\"prompt\": \"a\", \"completion\": "), 3, {"rows.jsonl:13"});
  expect_failure(with("{\"prompt\": \"a\", \"completion\": \"\"}"), 3, {"rows.jsonl:13", "completion"});
  expect_failure(with("{\"prompt\": \"a\"}"), 3, {"rows.jsonl:13", "completion"});
  const std::string overlong = json({{"text", sample_text().substr(0, 600)}}).dump();
  expect_failure(with(overlong), 3, {"rows.jsonl:13", "tokens", "--overlong"});
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  EXPECT_EQ(with(overlong, {"--overlong", "skip", "--dry-run"}).status, 0);
  const RunResult cut = with(overlong, {"--overlong", "truncate", "--dry-run", "--json"});
  EXPECT_EQ(json::parse(cut.out)["data"]["truncated"], 1);
}

TEST_F(TrainTest, DivergenceIsNamedAndLeavesACheckpoint) {
  make_model();
  const Args wild = {"--lr", "1e6", "--schedule", "constant"};
  expect_failure(thimble(tune("full", "out", wild)), 3, {"diverged at step", "--lr"});
  EXPECT_FALSE(fs::exists(dir_ / "out/model.safetensors"));
  // Nothing better was there, so the checkpoint is the state before that step: it loads, and fails in the same way.
  Args again = wild;
  again.insert(again.end(), {"--resume", "--quiet"});
  expect_failure(thimble(tune("full", "out", again)), 3, {"diverged at step"});

  // A good checkpoint survives a divergence, and a lower rate continues from it.
  const auto args = [&](const std::string& out, const std::string& lr) {
    return Args{"tune",     "--model",   model_,    "--data",     data_,     "--method", "full",
                "--steps",  "200",       "--batch", "3",          "--lr",    lr,         "--out",
                dir_ / out, "--threads", "1",       "--schedule", "constant"};
  };
  ASSERT_EQ(thimble(args("whole", "1e-3")).status, 0);
  const int status = signal_when(
      args("saved", "1e-3"), SIGTERM, [&] { return count_lines(dir_ / "saved/log.jsonl") >= 5; }, dir_ / "err.txt");
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 6) << get_file(dir_ / "err.txt");
  const std::string checkpoint = get_file(dir_ / "saved/state/checkpoint.safetensors");
  Args hot = args("saved", "1e6"), cool = args("saved", "1e-3");
  hot.insert(hot.end(), {"--resume", "--quiet"});
  cool.push_back("--resume");
  expect_failure(thimble(hot), 3, {"diverged at step"});
  EXPECT_TRUE(get_file(dir_ / "saved/state/checkpoint.safetensors") == checkpoint);
  ASSERT_EQ(thimble(cool).status, 0);
  EXPECT_TRUE(get_file(dir_ / "saved/model.safetensors") == get_file(dir_ / "whole/model.safetensors"));
}

// A damaged checkpoint is refused before anything is overwritten.
TEST_F(TrainTest, DamagedCheckpointsAreRefused) {
  make_model();
  ASSERT_EQ(thimble(tune("lora", "out")).status, 0);
  const std::string path = dir_ / "out/state/checkpoint.safetensors", good = get_file(path),
                    adapter = get_file(dir_ / "out/adapter_model.safetensors");
  std::string flipped = good;
  flipped[flipped.size() - 5] = static_cast<char>(flipped[flipped.size() - 5] ^ 1);
  for (const std::string& bytes :
       {flipped, good.substr(0, good.size() / 2), std::string("not a checkpoint"), std::string()}) {
    put_file(path, bytes);
    expect_failure(thimble(tune("lora", "out", {"--resume"})), 3, {"checkpoint.safetensors"});
  }
  EXPECT_TRUE(get_file(dir_ / "out/adapter_model.safetensors") == adapter);
}

TEST_F(TrainTest, FinishedRunsAreNotOverwritten) {
  make_model();
  ASSERT_EQ(thimble(tune("lora", "out")).status, 0);
  const std::string bytes = get_file(dir_ / "out/adapter_model.safetensors");
  expect_failure(thimble(tune("lora", "out")), 2, {"--out", "--resume"});
  const json again = run_json(tune("lora", "out", {"--resume"}), "thimble.tune/1");
  EXPECT_EQ(again["resumed"], true);
  EXPECT_EQ(get_file(dir_ / "out/adapter_model.safetensors"), bytes);
  // Another run's checkpoint is not mistaken for this one's.
  expect_failure(thimble(tune("lora", "out", {"--resume", "--rank", "4"})), 3, {"fingerprint"});
}

TEST_F(TrainTest, StoppedKilledAndThreadedRunsEndInTheSameBytes) {
  make_model();
  const auto args = [&](const std::string& method, const std::string& out, const Args& more,
                        const std::string& seed = "3") {
    Args a = {"tune",    "--model",      model_,    "--data", data_,     "--method", method,
              "--steps", "80",           "--batch", "3",      "--accum", "2",        "--seed",
              seed,      "--save-every", "5",       "--lr",   "2e-3",    "--out",    dir_ / out};
    if (method == "lora") a.insert(a.end(), {"--dropout", "0.2"});
    a.insert(a.end(), more.begin(), more.end());
    return a;
  };
  for (const std::string method : {"lora", "full"}) {
    SCOPED_TRACE(method);
    const std::string file = method == "lora" ? "/adapter_model.safetensors" : "/model.safetensors";
    ASSERT_EQ(thimble(args(method, method + "_whole", {"--threads", "1"})).status, 0);
    const std::string whole = get_file(dir_ / (method + "_whole") + file);
    ASSERT_FALSE(whole.empty());

    const std::string stopped = method + "_stopped", log = dir_ / stopped + "/log.jsonl", err = dir_ / "err.txt";
    const int status = signal_when(
        args(method, stopped, {"--threads", "1"}), SIGTERM, [&] { return count_lines(log) >= 7; }, err);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 6) << get_file(err);
    EXPECT_NE(get_file(err).find("--resume"), std::string::npos);
    EXPECT_FALSE(fs::exists(dir_ / stopped + file));
    ASSERT_EQ(thimble(args(method, stopped, {"--threads", "2", "--resume"})).status, 0);
    EXPECT_TRUE(get_file(dir_ / stopped + file) == whole);
    EXPECT_EQ(count_lines(log), 80);

    const std::string killed = method + "_killed", killed_log = dir_ / killed + "/log.jsonl";
    int kills = 0;
    for (int64_t lines : {3, 17, 41}) {  // before the first checkpoint, and twice between two
      const int end = signal_when(
          args(method, killed, {"--threads", "1", "--resume"}), SIGKILL,
          [&] { return count_lines(killed_log) >= lines; }, err);
      kills += WIFSIGNALED(end) ? 1 : 0;
    }
    EXPECT_GE(kills, 2);
    ASSERT_EQ(thimble(args(method, killed, {"--threads", "1", "--resume"})).status, 0);
    EXPECT_TRUE(get_file(dir_ / killed + file) == whole);
    EXPECT_EQ(count_lines(killed_log), 80);

    ASSERT_EQ(thimble(args(method, method + "_threads", {"--threads", "3"})).status, 0);
    EXPECT_TRUE(get_file(dir_ / (method + "_threads") + file) == whole);
    ASSERT_EQ(thimble(args(method, method + "_block", {"--threads", "1", "--recompute", "block"})).status, 0);
    EXPECT_TRUE(get_file(dir_ / (method + "_block") + file) == whole);
    ASSERT_EQ(thimble(args(method, method + "_seed", {"--threads", "1"}, "4")).status, 0);
    EXPECT_FALSE(get_file(dir_ / (method + "_seed") + file) == whole);
  }
}

TEST_F(TrainTest, PatienceStopsAndKeepsTheBest) {
  make_model();
  const json j = run_json(
      {"tune",    "--model",    model_,    "--data",    data_,  "--eval-data", data_,        "--method", "full",
       "--steps", "200",        "--batch", "2",         "--lr", "0.3",         "--schedule", "constant", "--eval-every",
       "2",       "--patience", "2",       "--threads", "1",    "--out",       dir_ / "out"},
      "thimble.tune/1");
  EXPECT_EQ(j["early_stopped"], true);
  EXPECT_LT(int64_t(j["steps"]), 200);
  EXPECT_EQ(j["eval_loss"], j["best_eval"]);
}

}  // namespace
}  // namespace thimble::tools_test
