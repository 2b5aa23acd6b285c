// Initial weights of pretraining: their distribution, and that a value depends on seed and place alone.
#include "models/init.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tensor/error.h"

namespace thimble {
namespace {

class InitTest : public ::testing::Test {
 protected:
  InitTest() {
    std::string pattern = ::testing::TempDir() + "/thimble_init_XXXXXX";
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    dir_ = pattern;
  }
  ~InitTest() override { std::filesystem::remove_all(dir_); }
  std::string config(const nlohmann::json& json) {
    const std::string path = dir_ + "/config.json";
    std::ofstream(path) << json.dump();
    return path;
  }
  static double deviation(const Weight& w) {
    double sum = 0;
    for (int64_t i = 0; i < w.numel(); ++i) sum += double(w.f32()[i]) * double(w.f32()[i]);
    return std::sqrt(sum / double(w.numel()));
  }
  std::string dir_;
};

const nlohmann::json kLlama = {{"model_type", "llama"},      {"hidden_size", 64},
                               {"intermediate_size", 96},    {"num_hidden_layers", 8},
                               {"num_attention_heads", 4},   {"max_position_embeddings", 32},
                               {"tie_word_embeddings", true}};

TEST_F(InitTest, DistributionAndStreams) {
  const Model a = init_model(config(kLlama), 1, 300), again = init_model(config(kLlama), 1, 300),
              other = init_model(config(kLlama), 2, 300);
  EXPECT_EQ(a.config.vocab_size, 300);
  EXPECT_FALSE(a.weights.lm_head);  // tied
  // The deviation of n values has a standard error of 0.02 / sqrt(2 n): five of them.
  const auto near = [&](const Weight& w, double expected) {
    EXPECT_NEAR(deviation(w), expected, 5 * expected / std::sqrt(2.0 * double(w.numel())));
  };
  near(a.weights.token_embed, 0.02);
  near(a.weights.layers[3].q_w, 0.02);
  near(a.weights.layers[3].up_w, 0.02);
  near(a.weights.layers[3].o_w, 0.02 / 4);
  near(a.weights.layers[3].down_w, 0.02 / 4);
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(a.weights.layers[7].norm2_w.f32()[i], 1.0f);
  const auto equal = [](const Weight& x, const Weight& y) {
    return std::memcmp(x.data, y.data, size_t(x.numel()) * sizeof(float)) == 0;
  };
  EXPECT_TRUE(equal(a.weights.layers[5].q_w, again.weights.layers[5].q_w));
  EXPECT_FALSE(equal(a.weights.layers[5].q_w, other.weights.layers[5].q_w));
  EXPECT_FALSE(equal(a.weights.layers[5].q_w, a.weights.layers[4].q_w));
  EXPECT_FALSE(equal(a.weights.layers[5].k_w, a.weights.layers[5].v_w));
}

TEST_F(InitTest, BiasesAreZeroAndErrorsNameTheFile) {
  const Model m = init_model(
      config({{"model_type", "gpt2"}, {"n_embd", 32}, {"n_layer", 2}, {"n_head", 2}, {"n_positions", 16}}), 0, 50);
  EXPECT_EQ(deviation(m.weights.layers[0].q_b), 0);
  EXPECT_EQ(deviation(m.weights.layers[1].norm1_b), 0);
  EXPECT_EQ(deviation(m.weights.final_norm_w), 1);
  EXPECT_GT(deviation(m.weights.pos_embed), 0.01);
  try {
    init_model(config({{"model_type", "llama"}, {"hidden_size", "many"}}), 0, 50);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::input);
    EXPECT_NE(std::string(e.what()).find("hidden_size"), std::string::npos);
  }
  MemoryBudget budget(1 << 10);
  EXPECT_THROW(init_model(config(kLlama), 0, 300, &budget), Error);
}

}  // namespace
}  // namespace thimble
