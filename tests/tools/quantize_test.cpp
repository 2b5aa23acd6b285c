// Compression from the command line: what is written, measured, refused, and what the statuses say.
#include <algorithm>
#include <utility>

#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

// A model of 64 inputs everywhere but 96 in the middle, and short contexts: everything is quick.
class Quantize : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new ScratchDir;
    SmallModel m;
    m.hidden = 64;
    m.inter = 96;
    write_small_model(model(), m);
    put_file(*dir_ / "a.txt", sample_text());
    put_file(*dir_ / "b.txt", sample_text().substr(0, 900));
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }
  static std::string model() { return *dir_ / "model"; }
  static std::vector<std::string> quantize(const std::string& out, std::vector<std::string> more) {
    std::vector<std::string> args = {"quantize", "--model", model(), "--out", out, "--json"};
    const std::pair<const char*, const char*> defaults[] = {{"--calib-tokens", "1024"}, {"--eval-tokens", "512"}, {"--ctx", "32"}};
    for (const auto& [name, value] : defaults)
      if (std::find(more.begin(), more.end(), name) == more.end()) args.insert(args.end(), {name, value});
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  static ScratchDir* dir_;
};
ScratchDir* Quantize::dir_ = nullptr;

TEST_F(Quantize, WritesAModelThatEveryVerbReads) {
  for (const char* method : {"rtn", "rtn-clip", "gptq", "awq"}) {
    const std::string out = *dir_ / (std::string("out-") + method);
    const nlohmann::json j = expect_json(thimble(quantize(out, {"--method", method, "--spec", "int4-g32-asym"})), "thimble.quantize/1");
    EXPECT_EQ(j["compression"], std::string(method) + ":int4-g32-asym");
    EXPECT_GT(j["kl_mean"].get<double>(), 0);
    EXPECT_GT(j["kl_stderr"].get<double>(), 0);
    EXPECT_GE(j["kl_p99"].get<double>(), j["kl_mean"].get<double>());
    EXPECT_GT(j["same_top1"].get<double>(), 0.3);
    EXPECT_GT(j["ppl_before"].get<double>(), 1);
    EXPECT_GT(j["ppl_stderr"].get<double>(), 0);
    EXPECT_LT(j["bytes_after"].get<int64_t>(), j["bytes_before"].get<int64_t>());
    EXPECT_GT(j["bits_per_weight"].get<double>(), j["linear_bits_per_weight"].get<double>());
    EXPECT_EQ(j["tensors"].size(), 14u);
    EXPECT_EQ(j["fallbacks"], 0);
    EXPECT_EQ(j["protocol"]["ctx"], 32);
    EXPECT_EQ(j["protocol"]["tokens"], 512);
    EXPECT_EQ(j["protocol"]["text_sha256"].get<std::string>().size(), 64u);
    const bool calibrates = std::string(method) == "gptq" || std::string(method) == "awq";
    EXPECT_EQ(j["calibration"].is_null(), !calibrates);
    if (calibrates) EXPECT_NE(j["calibration"]["sha256"], j["protocol"]["text_sha256"]);
    const nlohmann::json info = expect_json(thimble({"model", "info", out, "--json"}), "thimble.model/1");
    EXPECT_EQ(info["stored_bytes"], j["bytes_after"]);
    EXPECT_NE(info["quantization"].get<std::string>().find("4-bit g32"), std::string::npos);
    const RunResult text = thimble({"generate", "--model", out, "--prompt", "Once", "--max-tokens", "4", "--ignore-eos"});
    EXPECT_EQ(text.status, 0) << text.err;
    // The same figures from outside.
    const nlohmann::json diff = expect_json(thimble({"model", "diff", model(), out, "--tokens", "512", "--ctx", "32", "--json"}), "thimble.diff/1");
    EXPECT_EQ(diff["kl_mean"], j["kl_mean"]);
    EXPECT_EQ(diff["protocol"]["text_sha256"], j["protocol"]["text_sha256"]);
  }
}

TEST_F(Quantize, LayoutsOfOtherPrograms) {
  struct Layout {
    const char *format, *spec, *quantization;
  };
  for (const Layout& l : {Layout{"awq", "int4-g32-asym", "awq 4-bit g32 asym"}, {"compressed-tensors", "int4-g32-sym", "compressed-tensors pack-quantized 4-bit g32 sym"},
                          {"int-quantized", "int8-row-sym", "compressed-tensors int-quantized 8-bit row sym"}}) {
    SCOPED_TRACE(l.format);
    const std::string out = *dir_ / (std::string("layout-") + l.format);
    const nlohmann::json j = expect_json(thimble(quantize(out, {"--method", "awq", "--spec", l.spec, "--format", l.format})), "thimble.quantize/1");
    EXPECT_EQ(j["format"], l.format);
    EXPECT_LT(j["bytes_after"].get<int64_t>(), j["bytes_before"].get<int64_t>());
    EXPECT_EQ(expect_json(thimble({"model", "info", out, "--json"}), "thimble.model/1")["quantization"], l.quantization);
    // The same codes as in the default layout: the same distance from the original.
    const nlohmann::json same = expect_json(thimble(quantize(out + "-gptq", {"--method", "awq", "--spec", l.spec})), "thimble.quantize/1");
    EXPECT_EQ(same["kl_mean"], j["kl_mean"]);
  }
  expect_failure(thimble(quantize(*dir_ / "x", {"--format", "awq", "--spec", "int3-g32-asym"})), 5, {"--format awq", "3 bits", "hint:"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--format", "awq", "--spec", "int4-g64-asym"})), 5, {"down_proj", "96 inputs"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--format", "awq", "--spec", "int4-g32-asym", "--dynamic-groups"})), 5, {"act-order"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--format", "int-quantized", "--spec", "int4-g32-asym"})), 5, {"4 bits"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--format", "marlin"})), 2, {"marlin"});
  EXPECT_FALSE(std::filesystem::exists(*dir_ / "x/model.safetensors"));
}

TEST_F(Quantize, SameSeedSameBytes) {
  for (int i = 0; i < 2; ++i)
    expect_json(thimble(quantize(*dir_ / ("same-" + std::to_string(i)), {"--spec", "int3-row-sym", "--threads", std::to_string(i + 1), "--seed", "5", "--eval", "none"})), "thimble.quantize/1");
  EXPECT_EQ(get_file(*dir_ / "same-0/model.safetensors"), get_file(*dir_ / "same-1/model.safetensors"));
  EXPECT_EQ(get_file(*dir_ / "same-0/config.json"), get_file(*dir_ / "same-1/config.json"));
  const nlohmann::json config = nlohmann::json::parse(get_file(*dir_ / "same-0/config.json"));
  const nlohmann::json& q = config["quantization_config"];
  EXPECT_EQ(q["quant_method"], "gptq");
  EXPECT_EQ(q["bits"], 3);
  EXPECT_EQ(q["group_size"], -1);
  EXPECT_EQ(q["thimble"]["calibration"]["source"], "self (temperature 1, seed 10)");
  EXPECT_EQ(q["thimble"]["tensors"].size(), 14u);
}

TEST_F(Quantize, TextsFromFilesAndOverlap) {
  const std::string a = *dir_ / "a.txt", b = *dir_ / "b.txt";
  RunResult r = thimble(quantize(*dir_ / "files", {"--calib", a, "--eval", b, "--stride", "16"}));
  nlohmann::json j = expect_json(r, "thimble.quantize/1");
  EXPECT_EQ(j["protocol"]["source"], b);
  EXPECT_EQ(j["protocol"]["stride"], 16);
  EXPECT_EQ(j["calibration"]["source"], a);
  EXPECT_EQ(r.err.find("same text"), std::string::npos) << r.err;
  r = thimble(quantize(*dir_ / "overlap", {"--calib", a, "--eval", a}));
  j = expect_json(r, "thimble.quantize/1");
  EXPECT_NE(r.err.find("warning: calibration and evaluation use the same text"), std::string::npos) << r.err;
  const nlohmann::json diff = expect_json(thimble({"model", "diff", model(), *dir_ / "overlap", "--text", a, "--tokens", "512", "--ctx", "32", "--json"}), "thimble.diff/1");
  EXPECT_EQ(diff["kl_mean"], j["kl_mean"]);
}

TEST_F(Quantize, FallbacksAreWarnings) {
  const RunResult r = thimble(quantize(*dir_ / "few", {"--calib-tokens", "64"}));
  const nlohmann::json j = expect_json(r, "thimble.quantize/1");
  EXPECT_EQ(j["fallbacks"], 2);
  EXPECT_NE(r.err.find("0.down_w: rtn instead of gptq: 64 calibration tokens are fewer than the 96 inputs"), std::string::npos) << r.err;
}

TEST_F(Quantize, PolicyFiles) {
  put_file(*dir_ / "policy.yaml", "- match: \"*.down_w\"\n  spec: int8-g64-sym\n- match: \"0.*\"\n  keep: true\n");
  const std::string out = *dir_ / "policy";
  const nlohmann::json j = expect_json(thimble(quantize(out, {"--policy", *dir_ / "policy.yaml", "--spec", "int4-g64-asym"})), "thimble.quantize/1");
  int64_t kept = 0, eight = 0;
  for (const nlohmann::json& t : j["tensors"]) {
    kept += t["spec"] == "stored" ? 1 : 0;
    eight += t["spec"] == "int8-g64-sym" ? 1 : 0;
  }
  EXPECT_EQ(kept, 7);
  EXPECT_EQ(eight, 1);
  put_file(*dir_ / "bad.yaml", "- match: \"*.down_w\"\n  spec: int8-g64-sym\n  sparsity: 0.5\n");
  expect_failure(thimble(quantize(*dir_ / "x", {"--policy", *dir_ / "bad.yaml"})), 3, {"bad.yaml:3", "sparsity", "hint:"});
  put_file(*dir_ / "bad.yaml", "match: [");
  expect_failure(thimble(quantize(*dir_ / "x", {"--policy", *dir_ / "bad.yaml"})), 3, {"bad.yaml:"});
}

TEST_F(Quantize, ThresholdsAndRefusals) {
  EXPECT_EQ(thimble(quantize(*dir_ / "loose", {"--max-kl", "100"})).status, 0);
  const RunResult strict = thimble(quantize(*dir_ / "strict", {"--max-kl", "0"}));
  EXPECT_EQ(strict.status, 7);
  EXPECT_EQ(nlohmann::json::parse(strict.out)["pass"], false);
  EXPECT_EQ(thimble({"model", "diff", model(), *dir_ / "loose", "--max-kl", "0", "--tokens", "64", "--ctx", "32"}).status, 7);
  EXPECT_EQ(thimble({"model", "diff", model(), model(), "--max-kl", "0", "--tokens", "64", "--ctx", "32"}).status, 0);
  expect_failure(thimble(quantize(*dir_ / "x", {"--spec", "int5-g64-asym"})), 2, {"int5-g64-asym", "int{8,4,3,2}"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--method", "magic"})), 2, {"magic"});
  expect_failure(thimble(quantize(model(), {})), 2, {"already holds a model"});
  expect_failure(thimble(quantize(*dir_ / "loose", {})), 2, {"already holds a model"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--ctx", "4096"})), 2, {"positions for 64"});
  expect_failure(thimble(quantize(*dir_ / "x", {"--calib", *dir_ / "absent.txt"})), 3, {"absent.txt"});
  expect_failure(thimble({"quantize", "--model", model()}), 2, {"--out"});
  expect_failure(thimble({"quantize", "--model", *dir_ / "loose", "--out", *dir_ / "x", "--method", "rtn", "--eval", "none"}), 5, {"quantized already"});
}

TEST_F(Quantize, DiffTellsWhatAPrecisionCosts) {
  const auto diff = [&](std::vector<std::string> more) {
    std::vector<std::string> args = {"model", "diff", model(), model(), "--tokens", "512", "--ctx", "32", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return expect_json(thimble(args), "thimble.diff/1");
  };
  EXPECT_EQ(diff({"--before-as", "q8-g32", "--after-as", "q8-g32"})["kl_mean"], 0);
  const nlohmann::json act = diff({"--before-as", "q8-g32", "--after-as", "q8-g32", "--after-precision", "int8_act"});
  EXPECT_EQ(act["precision"], "f32");
  EXPECT_EQ(act["precision_after"], "int8_act");
  EXPECT_EQ(act["bytes_before"], act["bytes_after"]);
  EXPECT_GT(act["kl_mean"], 0);
  EXPECT_LT(act["kl_mean"], 0.1);
  EXPECT_GT(diff({"--after-as", "q4-g32"})["kl_mean"], act["kl_mean"]);  // weights of 4 bits cost more than activations of 8
  EXPECT_EQ(thimble({"model", "diff", model(), model(), "--after-precision", "int4"}).status, 2);
}

TEST_F(Quantize, PruneKeepsItsCounts) {
  for (const char* method : {"magnitude", "wanda", "sparsegpt"})
    for (const char* sparsity : {"0.5", "2:4"}) {
      const std::string out = *dir_ / (std::string(method) + (sparsity[1] == ':' ? "24" : "50"));
      const nlohmann::json j = expect_json(thimble({"prune", "--model", model(), "--out", out, "--method", method, "--sparsity", sparsity,
                                                    "--calib-tokens", "1024", "--eval-tokens", "256", "--ctx", "32", "--json"}), "thimble.prune/1");
      EXPECT_NEAR(j["zeros"].get<double>(), 0.5, 1e-9) << method << sparsity;
      EXPECT_EQ(j["bytes_after"], j["bytes_before"]);
      EXPECT_EQ(j["bits_per_weight"], 32.0);
    }
  // A pruned model can be quantized; its zeros stay.
  const nlohmann::json j = expect_json(thimble({"quantize", "--model", *dir_ / "wanda50", "--out", *dir_ / "both", "--method", "rtn", "--spec", "int4-g32-sym",
                                                "--eval", "none", "--json"}), "thimble.quantize/1");
  EXPECT_GE(j["zeros"].get<double>(), 0.5 - 1e-9);
  EXPECT_FALSE(j.contains("kl_mean"));
}

TEST_F(Quantize, CompareWritesATableOnly) {
  const nlohmann::json j = expect_json(thimble({"quantize", "--model", model(), "--compare", "rtn:int4-g32-asym,gptq:int4-g32-asym,rtn:int3-row-sym,awq:int3-row-sym",
                                                "--calib-tokens", "1024", "--eval-tokens", "512", "--ctx", "32", "--json"}), "thimble.compare/1");
  ASSERT_EQ(j["rows"].size(), 4u);
  EXPECT_FALSE(j["rows"][0].contains("reference"));
  EXPECT_EQ(j["rows"][1]["reference"], "rtn:int4-g32-asym");
  EXPECT_EQ(j["rows"][3]["reference"], "rtn:int3-row-sym");
  EXPECT_NEAR(j["rows"][1]["kl_difference"].get<double>(), j["rows"][1]["kl_mean"].get<double>() - j["rows"][0]["kl_mean"].get<double>(), 1e-9);
  EXPECT_GT(j["rows"][1]["kl_difference_stderr"].get<double>(), 0);
  expect_failure(thimble({"quantize", "--model", model(), "--compare", "rtn:int9"}), 2, {"--compare"});
}

}  // namespace
}  // namespace thimble::tools_test
