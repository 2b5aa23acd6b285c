// The memory plan against the measured peak: at least the peak, and at most 1.25 times it. And a budget that is too small
// is refused with the plan's table before anything is trained.
#include "tests/tools/small_model.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define THIMBLE_TEST_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define THIMBLE_TEST_SANITIZER 1
#endif
#endif

namespace thimble::tools_test {
namespace {

using nlohmann::json;

class MemoryPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 3000; ++i) text += "abcdefghij klmnopqrst uvwxyz"[(i * 7 + i / 11) % 28];
    put_file(dir_ / "text.txt", text);
    put_file(dir_ / "config.json", json{{"model_type", "llama"}, {"hidden_size", 192}, {"intermediate_size", 512},
                                        {"num_hidden_layers", 4}, {"num_attention_heads", 4}, {"num_key_value_heads", 2},
                                        {"max_position_embeddings", 256}, {"vocab_size", 64}}.dump());
    std::string rows;
    for (int i = 0; i < 12; ++i) rows += json{{"text", text.substr(size_t(i * 200), 180)}}.dump() + "\n";
    put_file(dir_ / "rows.jsonl", rows);
    const RunResult r = thimble({"pretrain", "--config", dir_ / "config.json", "--text", dir_ / "text.txt", "--char-level",
                                 "--steps", "1", "--ctx", "32", "--out", dir_ / "model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::vector<std::string> tune(const std::string& method, const std::string& recompute, const std::string& out) {
    return {"tune", "--model", dir_ / "model", "--data", dir_ / "rows.jsonl", "--method", method, "--recompute", recompute,
            "--steps", "2", "--batch", "4", "--ctx", "200", "--out", dir_ / out, "--json"};
  }
  ScratchDir dir_;
};

TEST_F(MemoryPlanTest, PredictionCoversThePeakClosely) {
#ifdef THIMBLE_TEST_SANITIZER
  GTEST_SKIP() << "a sanitizer's shadow memory counts as resident";
#endif
  for (const char* method : {"full", "lora", "dora", "prefix"})
    for (const char* recompute : {"none", "cheap", "block"}) {
      const RunResult r = thimble(tune(method, recompute, std::string("out_") + method + recompute));
      ASSERT_EQ(r.status, 0) << r.err;
      const json j = json::parse(r.out);
      const double plan = j.at("memory").at("total"), peak = j.at("peak_rss_bytes");
      EXPECT_GE(plan, peak) << method << " " << recompute;
      EXPECT_LE(plan, 1.25 * peak) << method << " " << recompute;
    }
}

TEST_F(MemoryPlanTest, TooSmallABudgetIsRefusedWithTheTable) {
  std::vector<std::string> args = tune("lora", "none", "refused");
  args.insert(args.end(), {"--ram", "30M"});
  const RunResult r = thimble(args);
  expect_failure(r, 4, {"activations", "optimizer", "--ram"});
  EXPECT_FALSE(std::filesystem::exists(dir_ / "refused/log.jsonl"));
}

}  // namespace
}  // namespace thimble::tools_test
