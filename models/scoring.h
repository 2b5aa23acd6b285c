// How probable a model finds a text: strided perplexity, and log-probabilities of continuations. Works through the one
// transformer; sums are double, and no result depends on threads, on batching or on what was scored before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/kv_cache.h"
#include "models/transformer.h"
#include "tensor/context.h"

namespace thimble {

// Windows of `ctx` tokens start at 0, stride, 2 stride, ...; the last is the first that reaches the end. A window scores
// the tokens that no earlier window held, so every token is scored once, with at least ctx - stride tokens before it.
// Without BOS the first token of a window has nothing before it: it is not scored when it would be (the first token of
// the text; with stride == ctx the first of every window). With BOS the model sees BOS and all but the last token of the
// window, so that every token of the text is scored. Either way it never reads more than ctx tokens at once.
struct PerplexityOptions {
  int64_t ctx = 0;         // 2 .. the model's positions
  int64_t stride = 0;      // 1 .. ctx
  int32_t bos_id = -1;     // >= 0: stands in front of each window
  // As llama.cpp's perplexity program: whole windows side by side (stride is not used), of which the second half is scored;
  // with BOS the text is taken as BOS and its tokens, and BOS takes the place of each window's first token.
  bool second_half = false;
  int64_t batch_rows = 1024;  // windows are evaluated together up to this many rows; at least one window
  int64_t max_windows = 0;    // 0: all
  Adapter* adapter = nullptr;  // serves every row; its virtual tokens come on top of ctx
  KvType kv = KvType::f32;     // f16, int8: keys and values pass through a cache of that type, as they do in generation
  std::function<void(int64_t done, int64_t total)> progress;  // in windows
};

struct PerplexityWindow {
  int64_t begin = 0;  // token index
  int64_t end = 0;
  int64_t first_scored = 0;  // tokens [first_scored, end) are scored here
};

// The windows of n tokens. Throws usage for options out of range, input for a text without any token to score.
std::vector<PerplexityWindow> perplexity_windows(int64_t n, const PerplexityOptions& options);

struct PerplexityResult {
  std::vector<double> nll;      // nats, of each token of the text in order; NaN: not scored
  std::vector<PerplexityWindow> windows;
  int64_t scored = 0;
  double nll_sum = 0, nll_mean = 0;
  double nll_stderr = 0;        // of the mean: sample deviation / sqrt(scored); 0 for fewer than two tokens
  double ppl = 0;               // exp(nll_mean)
  double ppl_stderr = 0;        // ppl * nll_stderr
};

// transformer.max_tokens() must be at least min(ctx, tokens) and the adapter's virtual tokens. Throws as perplexity_windows, and input for ids that the
// model does not have.
PerplexityResult perplexity(Transformer& transformer, Context& ctx, const std::vector<int32_t>& ids,
                            const PerplexityOptions& options);

// Bits per byte of a text: nats / ln 2 / bytes.
double bits_per_byte(double nll_sum, int64_t bytes);

struct Loglikelihood {
  double logprob = 0;      // of the whole continuation, in nats
  bool greedy = false;     // every token is the model's first choice (of equals, the lowest id)
  bool truncated = false;  // the context lost tokens from its left to fit the model
};

// Scores continuations of a context. The context runs once into a cache that is marked; every continuation starts from
// the mark.
class Scorer {
 public:
  // adapter: serves every row; may be null.
  Scorer(Transformer& transformer, Context& ctx, Adapter* adapter = nullptr, KvType kv = KvType::f32);

  // context: at least one token (BOS stands for an empty one). Continuations: at least one token each. What exceeds
  // transformer.max_tokens() less the adapter's virtual tokens is cut from the left of the context.
  // Errors: input for an empty list of tokens, an id that the model does not have, or a continuation that is longer than
  // the model's context.
  std::vector<Loglikelihood> choices(const std::vector<int32_t>& context, const std::vector<std::vector<int32_t>>& continuations);
  Loglikelihood loglikelihood(const std::vector<int32_t>& context, const std::vector<int32_t>& continuation);

 private:
  // An empty cache for that many tokens, with the virtual tokens of a prompt adapter at its start.
  void reserve(int64_t tokens);
  // Appends tokens to the cache; the hidden states behind them go to rows of `hidden`, from row `first` on.
  void run(const int32_t* ids, int64_t n, bool keep_last_only);
  Loglikelihood score_rows(const std::vector<int32_t>& continuation);

  Transformer& transformer_;
  Context& ctx_;
  Adapter* adapter_;
  KvType kv_;
  std::unique_ptr<KvCache> cache_;
  std::vector<float> hidden_;  // [rows, embed_dim] of the positions that predict the continuation
};

}  // namespace thimble
