// Vectors of texts: the mean of the hidden states that the model gives for the text alone, whatever stands beside it.
#include "rag/embedder.h"

#include <gtest/gtest.h>

#include "kernels/kernel_table.h"
#include "models/tokenizer/bpe_trainer.h"

namespace thimble {
namespace {

class EmbedderTest : public ::testing::Test {
 protected:
  KernelTable kernels = build_kernel_table(best_tier(), nullptr, 0);
  Model model = load_model(std::string(THIMBLE_SOURCE_DIR) + "/tests/data/oracle/llama_gqa_untied", kernels);
  Context ctx{kernels, 1, nullptr};
  Transformer transformer{model, 24};
  // Bytes and a few merges: ids fit the small model's vocabulary.
  Tokenizer tokenizer = [] {
    BpeTrainerOptions options;
    options.vocab_size = 280;
    return train_bpe("the red boat and the blue boat and the red gull", options);
  }();
};

TEST_F(EmbedderTest, IsTheMeanOfHiddenStates) {
  ASSERT_LE(tokenizer.vocab_size(), model.config.vocab_size);
  const std::string text = "the red gull";
  const std::vector<float> got = Embedder(transformer, ctx, tokenizer).embed({text})[0];
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const int32_t cu[] = {0, static_cast<int32_t>(ids.size())};
  Batch batch;
  batch.ids = ids.data();
  batch.n = cu[1];
  batch.cu_seqlens = cu;
  batch.n_seqs = 1;
  const ArenaScope scope(ctx.saved);
  const Var hidden = transformer.forward(ctx, batch);
  ASSERT_EQ(static_cast<int64_t>(got.size()), hidden.t.cols());
  for (int64_t c = 0; c < hidden.t.cols(); ++c) {
    double sum = 0;
    for (int64_t r = 0; r < batch.n; ++r) sum += double{hidden.t.f32()[r * hidden.t.cols() + c]};
    EXPECT_NEAR(got[static_cast<size_t>(c)], sum / double(batch.n), 1e-6);
  }
}

TEST_F(EmbedderTest, DoesNotDependOnNeighbours) {
  const std::vector<std::string> texts{"the red gull", "a", "", std::string(200, 'z'), "the blue boat and the red gull", "the red gull"};
  const auto together = Embedder(transformer, ctx, tokenizer).embed(texts);
  const auto apart = Embedder(transformer, ctx, tokenizer, 1).embed(texts);
  EXPECT_EQ(together, apart);
  EXPECT_EQ(together[0], together[5]);
  EXPECT_NE(together[0], together[4]);
  // An empty text is what the tokenizer adds to it; a long one is cut to what the model takes.
  ASSERT_EQ(tokenizer.encode("").size(), 1u);
  EXPECT_EQ(together[2].size(), together[0].size());
  const std::vector<int32_t> ids = tokenizer.encode(texts[3]);
  EXPECT_GT(static_cast<int64_t>(ids.size()), transformer.max_tokens());
  EXPECT_NE(together[3], together[2]);
  EXPECT_TRUE(Embedder(transformer, ctx, tokenizer).embed({}).empty());
}

}  // namespace
}  // namespace thimble
