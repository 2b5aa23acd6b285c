// thimble convert: every target, what a dry run promises, what comes back, and what is refused.
#include <cmath>
#include <map>

#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

class Convert : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new ScratchDir;
    SmallModel m;
    m.hidden = 64;
    m.inter = 96;
    write_small_model(model(), m);
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }
  static std::string model() { return *dir_ / "model"; }
  static RunResult convert(const std::string& from, const std::string& to, const std::string& out, const std::vector<std::string>& more = {}) {
    std::vector<std::string> args = {"convert", "--model", from, "--to", to, "--out", out, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return thimble(args);
  }
  static std::string greedy(const std::string& path) {
    const nlohmann::json j = expect_json(thimble({"generate", "--model", path, "--tokenizer", model(), "--prompt", "Once upon", "--max-tokens", "12",
                                                  "--temperature", "0", "--ignore-eos", "--json"}),
                                         "thimble.generate/1");
    return j["ids"].dump();
  }
  static ScratchDir* dir_;
};
ScratchDir* Convert::dir_ = nullptr;

struct Target {
  const char* name;
  const char* spec;  // or nullptr
  bool exact;        // the model is the same one
  const char* back;  // what `from` says when it is read again
};
constexpr Target kTargets[] = {
    {"safetensors", nullptr, true, "safetensors"},
    {"llama2c", nullptr, true, "llama2.c"},
    {"gguf-f32", nullptr, true, "gguf"},
    {"gguf-f16", nullptr, false, "gguf"},
    {"gguf-bf16", nullptr, false, "gguf"},
    {"gguf-q8_0", nullptr, false, "gguf"},
    {"gguf-q4_0", nullptr, false, "gguf"},
    {"gguf-q4_1", nullptr, false, "gguf"},
    {"gptq", "int4-g32-asym", false, "safetensors"},
    {"awq", "int4-g32-asym", false, "safetensors"},
    {"compressed-tensors", "int8-g32-sym", false, "safetensors"},
    {"int-quantized", "int8-row-sym", false, "safetensors"},
    {"thimble", "int4-g32-asym", false, "thimble"},
    {"thimble", "stored", true, "thimble"},
};

std::string file_name(const std::string& target) {
  return target.starts_with("gguf") ? target + ".gguf" : target == "llama2c" ? "m.bin" : target;
}

TEST_F(Convert, EveryTargetIsWhatTheDryRunPromised) {
  const std::string text = greedy(model());
  for (const Target& t : kTargets) {
    SCOPED_TRACE(std::string(t.name) + " " + (t.spec ? t.spec : ""));
    const ScratchDir dir;
    const std::string out = dir / file_name(t.name);
    std::vector<std::string> spec;
    if (t.spec) spec = {"--spec", t.spec};
    std::vector<std::string> dry = spec;
    dry.push_back("--dry-run");
    const nlohmann::json planned = expect_json(convert(model(), t.name, out, dry), "thimble.convert/1");
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_EQ(planned["dry_run"], true);
    const nlohmann::json j = expect_json(convert(model(), t.name, out, spec), "thimble.convert/1");
    EXPECT_EQ(j["bytes"], planned["bytes"]);
    EXPECT_EQ(j["types"], planned["types"]);
    EXPECT_EQ(j["from"], "safetensors");
    EXPECT_EQ(j["to"], t.name);
    EXPECT_EQ(j["family"], "llama");
    // The file holds that and a header.
    const std::string weights = std::filesystem::is_directory(out) ? out + "/model.safetensors" : out;
    const auto size = static_cast<int64_t>(std::filesystem::file_size(weights));
    EXPECT_GE(size, j["bytes"].get<int64_t>());
    EXPECT_LT(size - j["bytes"].get<int64_t>(), 40000);
    EXPECT_EQ(std::filesystem::is_directory(out) && !std::filesystem::exists(out + "/tokenizer.json"), false);
    const std::string again = greedy(out);
    if (t.exact) EXPECT_EQ(again, text);
    // And back: an exact one bit by bit.
    const std::string back = dir / "back";
    const nlohmann::json b = expect_json(convert(out, "safetensors", back), "thimble.convert/1");
    EXPECT_EQ(b["from"], t.back);
    EXPECT_EQ(b["quantization"].is_null(), t.spec == nullptr && !std::string(t.name).starts_with("gguf-q"))
        << b["quantization"];
    if (t.exact) EXPECT_TRUE(get_file(back + "/model.safetensors") == get_file(model() + "/model.safetensors"));
  }
}

// Codes outlive a walk through every format that can hold them.
TEST_F(Convert, CodesSurviveAWalk) {
  const ScratchDir dir;
  std::string from = model();
  std::string text;
  int step = 0;
  for (const char* to : {"thimble", "gptq", "compressed-tensors", "awq", "thimble"}) {
    SCOPED_TRACE(to);
    const std::string out = dir / std::to_string(step++);
    const nlohmann::json j = expect_json(convert(from, to, out, {"--spec", "int4-g32-asym"}), "thimble.convert/1");
    EXPECT_EQ(j["linears"]["rounded"], from == model() ? 14 : 0);
    EXPECT_EQ(j["linears"]["kept"], from == model() ? 0 : 14);
    EXPECT_EQ(j["linears"]["requantized"], 0);
    if (text.empty()) text = greedy(out);
    EXPECT_EQ(greedy(out), text);
    from = out;
  }
  EXPECT_TRUE(get_file(dir / "0/model.safetensors") == get_file(dir / "4/model.safetensors"));
}

TEST_F(Convert, QuantizeWritesAStoreAsWell) {
  const ScratchDir dir;
  const std::vector<std::string> common = {"quantize", "--model", model(), "--method", "gptq", "--spec", "int4-g32-asym", "--calib-tokens",
                                           "1024", "--eval", "none", "--ctx", "32", "--json"};
  std::vector<std::string> gptq = common, store = common;
  gptq.insert(gptq.end(), {"--out", dir / "gptq"});
  store.insert(store.end(), {"--out", dir / "store", "--format", "thimble"});
  expect_json(thimble(gptq), "thimble.quantize/1");
  const nlohmann::json j = expect_json(thimble(store), "thimble.quantize/1");
  EXPECT_EQ(j["format"], "thimble");
  EXPECT_EQ(greedy(dir / "store"), greedy(dir / "gptq"));
  const nlohmann::json info = expect_json(thimble({"model", "info", dir / "store", "--json"}), "thimble.model/1");
  EXPECT_EQ(info["container"], "thimble store (safetensors)");
  const nlohmann::json config = nlohmann::json::parse(get_file(dir / "store/config.json"));
  EXPECT_EQ(config["quantization_config"]["thimble"]["method"], "gptq");
}

TEST_F(Convert, Refusals) {
  const ScratchDir dir;
  const auto run = [&](std::vector<std::string> args) {
    args.insert(args.begin(), "convert");
    return thimble(args);
  };
  expect_failure(run({"--model", model(), "--to", "gguf-q8_0"}), 2, {"--out"});
  expect_failure(run({"--model", model(), "--to", "onnx", "--out", dir / "x"}), 2, {"onnx", "safetensors", "thimble"});
  expect_failure(run({"--model", model(), "--to", "gguf-q9", "--out", dir / "x"}), 2, {"q9"});
  expect_failure(run({"--model", model(), "--to", "safetensors", "--out", model()}), 2, {"overwrite"});
  expect_failure(run({"--model", model(), "--to", "thimble", "--out", dir / "x", "--spec", "int5-g32-asym"}), 2, {"int5"});
  expect_failure(run({"--model", model(), "--to", "gguf-f16", "--dtype", "f16", "--out", dir / "x"}), 2, {"--dtype"});
  expect_failure(run({"--model", dir / "none", "--to", "safetensors", "--out", dir / "x"}), 3, {"none"});
  expect_failure(run({"--model", model(), "--to", "awq", "--spec", "int8-g32-asym", "--out", dir / "x"}), 5, {"awq"});
  EXPECT_FALSE(std::filesystem::exists(dir / "x"));
}

}  // namespace
}  // namespace thimble::tools_test
