// Perplexity and continuation scoring against plain definitions, and their independence from batching and threads.
#include "models/scoring.h"

#include <cmath>
#include <functional>

#include "models/model.h"
#include "tensor/error.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

class ScoringTest : public ::testing::Test {
 protected:
  void SetUp() override {
    write_small_model(dir_.path());
    ids_ = sample_tokenizer().encode(sample_text(), {false, false});
    ids_.resize(150);
  }

  static constexpr int kMaxTokens = 64;

  // log p of each token of `whole` behind the first, from full logits of one sequence, in double.
  std::vector<double> brute_force(const std::vector<int32_t>& whole, std::vector<bool>* greedy = nullptr) {
    Model model = load_model(dir_.path(), table_);
    Transformer transformer(model, kMaxTokens);
    Context ctx(table_, 1, nullptr);
    const int32_t cu_seqlens[2] = {0, static_cast<int32_t>(whole.size())};
    Batch batch;
    batch.ids = whole.data();
    batch.n = static_cast<int64_t>(whole.size());
    batch.cu_seqlens = cu_seqlens;
    batch.n_seqs = 1;
    const Tensor logits = transformer.logits(ctx, transformer.forward(ctx, batch)).t;
    std::vector<double> result;
    for (int64_t r = 0; r + 1 < batch.n; ++r) {
      const float* row = logits.f32() + r * logits.cols();
      double sum = 0;
      for (int64_t v = 0; v < logits.cols(); ++v) sum += std::exp(double(row[v]));
      const int32_t next = whole[static_cast<size_t>(r) + 1];
      result.push_back(double(row[next]) - std::log(sum));
      if (greedy) {
        bool best = true;
        for (int64_t v = 0; v < logits.cols(); ++v) best = best && (v < next ? row[v] < row[next] : row[v] <= row[next]);
        greedy->push_back(best);
      }
    }
    return result;
  }

  PerplexityResult run(const PerplexityOptions& options, int threads = 1) {
    Model model = load_model(dir_.path(), table_);
    Transformer transformer(model, options.ctx);
    Context ctx(table_, threads, nullptr);
    return perplexity(transformer, ctx, ids_, options);
  }

  void expect_error(ErrorCode code, const std::string& word, const std::function<void()>& f) {
    try {
      f();
      ADD_FAILURE() << "no error about " << word;
    } catch (const Error& e) {
      EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  }

  ScratchDir dir_;
  KernelTable table_ = build_kernel_table(best_tier());
  std::vector<int32_t> ids_;
};

// The protocol written down again: for every token, the window that scores it and the logits of that window alone.
TEST_F(ScoringTest, PerplexityEqualsItsDefinition) {
  for (const bool bos : {false, true})
    for (const auto& [ctx, stride] : std::vector<std::pair<int64_t, int64_t>>{{32, 16}, {32, 32}, {20, 7}, {64, 1}, {2, 1}, {40, 39}}) {
      if (ctx == kMaxTokens && bos) continue;  // brute force runs the last token too, and has no room for it
      PerplexityOptions options;
      options.ctx = ctx;
      options.stride = stride;
      options.bos_id = bos ? 1 : -1;
      const PerplexityResult got = run(options);

      const auto n = static_cast<int64_t>(ids_.size());
      std::vector<double> want(ids_.size(), std::nan(""));
      for (int64_t begin = 0; begin < n; begin += stride) {
        const int64_t end = std::min(n, begin + ctx);
        std::vector<int32_t> window(ids_.begin() + begin, ids_.begin() + end);
        if (bos) window.insert(window.begin(), 1);
        const std::vector<double> logprobs = brute_force(window);
        for (int64_t t = begin; t < end; ++t) {
          const int64_t at = t - begin - (bos ? 0 : 1);
          if (at >= 0 && std::isnan(want[static_cast<size_t>(t)])) want[static_cast<size_t>(t)] = -logprobs[static_cast<size_t>(at)];
        }
        if (end == n) break;
      }
      double sum = 0;
      int64_t scored = 0;
      for (size_t t = 0; t < ids_.size(); ++t) {
        // A token that an earlier window held first but could not score is left out, like in the definition of windows.
        const bool lost = !bos && (t == 0 || (stride == ctx && t % static_cast<size_t>(stride) == 0));
        EXPECT_EQ(std::isnan(got.nll[t]), lost) << t;
        if (lost) continue;
        EXPECT_NEAR(got.nll[t], want[t], 2e-5) << "token " << t << " ctx " << ctx << " stride " << stride << " bos " << bos;
        sum += want[t];
        ++scored;
      }
      EXPECT_EQ(got.scored, scored);
      EXPECT_NEAR(got.nll_mean, sum / double(scored), 1e-5);
      EXPECT_DOUBLE_EQ(got.ppl, std::exp(got.nll_mean));
      double squares = 0;
      for (double x : got.nll)
        if (!std::isnan(x)) squares += (x - got.nll_mean) * (x - got.nll_mean);
      EXPECT_NEAR(got.nll_stderr, std::sqrt(squares / double(scored - 1) / double(scored)), 1e-12);
    }
}

TEST_F(ScoringTest, BatchingAndThreadsGiveTheSameBits) {
  PerplexityOptions options;
  options.ctx = 24;
  options.stride = 9;
  options.batch_rows = 1;
  const PerplexityResult one = run(options);
  for (const int64_t rows : {int64_t{50}, int64_t{100000}})
    for (const int threads : {1, 2, 3}) {
      options.batch_rows = rows;
      const PerplexityResult other = run(options, threads);
      for (size_t t = 1; t < ids_.size(); ++t) EXPECT_EQ(one.nll[t], other.nll[t]) << "token " << t << " rows " << rows;
      EXPECT_EQ(one.nll_mean, other.nll_mean);
    }
}

TEST_F(ScoringTest, WindowsCoverEveryTokenOnce) {
  for (int64_t n : {2, 3, 17, 100})
    for (int64_t ctx : {2, 5, 16, 200})
      for (int64_t stride = 1; stride <= ctx; ++stride)
        for (const int32_t bos : {-1, 1}) {
          PerplexityOptions options;
          options.ctx = ctx;
          options.stride = stride;
          options.bos_id = bos;
          std::vector<int> count(static_cast<size_t>(n), 0);
          for (const PerplexityWindow& w : perplexity_windows(n, options)) {
            EXPECT_LE(w.end - w.begin, ctx);
            for (int64_t t = w.first_scored; t < w.end; ++t) ++count[static_cast<size_t>(t)];
          }
          for (int64_t t = 0; t < n; ++t) {
            const bool first_of_all = bos < 0 && (t == 0 || (stride == ctx && t % stride == 0));
            EXPECT_EQ(count[static_cast<size_t>(t)], first_of_all ? 0 : 1) << n << " " << ctx << " " << stride << " " << t;
          }
        }
}

TEST_F(ScoringTest, RefusesWhatCannotBeScored) {
  PerplexityOptions options;
  options.ctx = 1;
  options.stride = 1;
  expect_error(ErrorCode::usage, "--ctx", [&] { run(options); });
  options.ctx = 32;
  options.stride = 33;
  expect_error(ErrorCode::usage, "--stride", [&] { run(options); });
  options.stride = 0;
  expect_error(ErrorCode::usage, "--stride", [&] { run(options); });
  options.stride = 16;
  options.ctx = 65;
  expect_error(ErrorCode::usage, "--ctx 65", [&] { run(options); });
  options.ctx = 32;
  const std::vector<int32_t> ids = ids_;
  ids_ = {};
  expect_error(ErrorCode::input, "nothing can be scored", [&] { run(options); });
  ids_ = {5};
  expect_error(ErrorCode::input, "nothing can be scored", [&] { run(options); });
  ids_ = {5, 100000};  // the last token is only ever a label
  expect_error(ErrorCode::input, "100000", [&] { run(options); });
  ids_ = {5, -1};
  expect_error(ErrorCode::input, "-1", [&] { run(options); });
}

TEST_F(ScoringTest, ChoicesEqualBruteForce) {
  Model model = load_model(dir_.path(), table_);
  Transformer transformer(model, kMaxTokens);
  Context ctx(table_, 2, nullptr);
  Scorer scorer(transformer, ctx);
  const auto slice = [&](size_t begin, size_t n) { return std::vector<int32_t>(ids_.begin() + static_cast<int64_t>(begin), ids_.begin() + static_cast<int64_t>(begin + n)); };
  for (size_t context_size : {size_t{1}, size_t{7}, size_t{40}}) {
    const std::vector<int32_t> context = slice(3, context_size);
    const std::vector<std::vector<int32_t>> continuations = {slice(50, 1), slice(60, 5), slice(70, 17), slice(50, 1)};
    const std::vector<Loglikelihood> got = scorer.choices(context, continuations);
    for (size_t c = 0; c < continuations.size(); ++c) {
      std::vector<int32_t> whole = context;
      whole.insert(whole.end(), continuations[c].begin(), continuations[c].end());
      std::vector<bool> greedy;
      const std::vector<double> logprobs = brute_force(whole, &greedy);
      double want = 0;
      bool all_greedy = true;
      for (size_t i = context.size() - 1; i < logprobs.size(); ++i) {
        want += logprobs[i];
        all_greedy = all_greedy && greedy[i];
      }
      EXPECT_NEAR(got[c].logprob, want, 1e-4) << c;
      EXPECT_EQ(got[c].greedy, all_greedy) << c;
      EXPECT_FALSE(got[c].truncated);
      // The same bits alone: nothing of the other choices is left in the cache.
      EXPECT_EQ(got[c].logprob, scorer.loglikelihood(context, continuations[c]).logprob);
    }
    EXPECT_EQ(got[0].logprob, got[3].logprob);
  }
}

TEST_F(ScoringTest, GreedyContinuationIsRecognised) {
  Model model = load_model(dir_.path(), table_);
  Transformer transformer(model, kMaxTokens);
  Context ctx(table_, 1, nullptr);
  Scorer scorer(transformer, ctx);
  std::vector<int32_t> whole(ids_.begin(), ids_.begin() + 10);
  for (int step = 0; step < 4; ++step)
    for (int32_t id = 0;; ++id) {
      ASSERT_LT(id, model.config.vocab_size);
      std::vector<int32_t> continuation(whole.begin() + 10, whole.end());
      continuation.push_back(id);
      if (!scorer.loglikelihood({ids_.begin(), ids_.begin() + 10}, continuation).greedy) continue;
      whole.push_back(id);
      break;
    }
  std::vector<bool> greedy;
  brute_force(whole, &greedy);
  for (size_t i = 9; i < greedy.size(); ++i) EXPECT_TRUE(greedy[i]) << i;
}

TEST_F(ScoringTest, LongContextsAreCutFromTheLeft) {
  Model model = load_model(dir_.path(), table_);
  Transformer transformer(model, 20);
  Context ctx(table_, 1, nullptr);
  Scorer scorer(transformer, ctx);
  const std::vector<int32_t> context(ids_.begin(), ids_.begin() + 30), continuation(ids_.begin() + 30, ids_.begin() + 34);
  const Loglikelihood got = scorer.loglikelihood(context, continuation);
  EXPECT_TRUE(got.truncated);
  // 17 context tokens and 3 of the continuation are inputs.
  const std::vector<double> logprobs = brute_force({ids_.begin() + 13, ids_.begin() + 34});
  EXPECT_NEAR(got.logprob, logprobs[16] + logprobs[17] + logprobs[18] + logprobs[19], 1e-4);
  const std::vector<int32_t> exact(ids_.begin() + 13, ids_.begin() + 30);
  EXPECT_EQ(scorer.loglikelihood(exact, continuation).logprob, got.logprob);
  EXPECT_FALSE(scorer.loglikelihood(exact, continuation).truncated);
  expect_error(ErrorCode::input, "continuation", [&] { scorer.loglikelihood({1}, std::vector<int32_t>(21, 5)); });
  expect_error(ErrorCode::input, "continuation", [&] { scorer.loglikelihood({1}, {}); });
  expect_error(ErrorCode::input, "context", [&] { scorer.loglikelihood({}, {1}); });
}

}  // namespace
}  // namespace thimble::tools_test
