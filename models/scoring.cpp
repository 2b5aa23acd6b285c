// Strided perplexity and continuation scoring. Hidden states of unscored positions never reach the head: its product is
// the largest of a small model.
#include "models/scoring.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/error.h"

namespace thimble {
namespace {

void check_ids(const ModelConfig& config, const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= config.vocab_size)
      throw Error(ErrorCode::input,
                  fmt::format("token {} of the text has id {}: the model's vocabulary has {} entries", i, ids[i], config.vocab_size),
                  "the tokenizer and the model do not belong together");
}

// Rows that stand in front of each sequence.
int64_t virtual_rows(const Adapter* adapter) {
  return adapter && adapter->kind() == AdapterKind::prompt ? adapter->n_virtual() : 0;
}

}  // namespace

std::vector<PerplexityWindow> perplexity_windows(int64_t n, const PerplexityOptions& options) {
  if (options.ctx < 2)
    throw Error(ErrorCode::usage, fmt::format("--ctx {}: expected at least 2 tokens", options.ctx), "for example --ctx 512");
  if (!options.second_half && (options.stride < 1 || options.stride > options.ctx))
    throw Error(ErrorCode::usage, fmt::format("--stride {}: expected 1 to --ctx, which is {}", options.stride, options.ctx),
                "a stride of half the context is customary");
  const bool bos = options.bos_id >= 0;
  if (n < (bos ? 1 : 2))
    throw Error(ErrorCode::input, fmt::format("the text has {} token{}: nothing can be scored", n, n == 1 ? "" : "s"),
                bos ? "give a text that is not empty" : "give a longer text, or --bos to score its first token");
  std::vector<PerplexityWindow> windows;
  if (options.second_half) {
    const int64_t shift = bos ? 1 : 0, count = (n + shift) / options.ctx;
    if (count == 0 || options.ctx < 4)
      throw Error(ErrorCode::input, fmt::format("the text has {} tokens: no window of {} is full", n, options.ctx), "give a longer text or a smaller --ctx (at least 4)");
    for (int64_t i = 0; i < count && (options.max_windows == 0 || i < options.max_windows); ++i)
      windows.push_back({i * options.ctx, (i + 1) * options.ctx - shift, i * options.ctx + options.ctx / 2 + 1 - shift});
    return windows;
  }
  int64_t scored_to = 0;
  for (int64_t begin = 0; begin < n; begin += options.stride) {
    if (options.max_windows > 0 && static_cast<int64_t>(windows.size()) == options.max_windows) break;
    PerplexityWindow w;
    w.begin = begin;
    w.end = std::min(begin + options.ctx, n);
    w.first_scored = std::max(scored_to, bos ? begin : begin + 1);
    scored_to = w.end;
    if (w.first_scored < w.end) windows.push_back(w);
    if (w.end == n) break;
  }
  return windows;
}

PerplexityResult perplexity(Transformer& transformer, Context& ctx, const std::vector<int32_t>& ids,
                            const PerplexityOptions& options) {
  const ModelConfig& config = transformer.config();
  const auto n = static_cast<int64_t>(ids.size());
  PerplexityResult result;
  result.windows = perplexity_windows(n, options);
  const int64_t positions = config.max_positions - (options.adapter ? options.adapter->n_virtual() : 0);
  if (options.ctx > positions)
    throw Error(ErrorCode::usage, fmt::format("--ctx {}: the model has positions for {} tokens", options.ctx, positions),
                fmt::format("use --ctx {} or less", positions));
  check_ids(config, ids);
  const bool bos = options.bos_id >= 0;
  if (bos) check_ids(config, {options.bos_id});
  result.nll.assign(ids.size(), std::numeric_limits<double>::quiet_NaN());

  const int64_t virtuals = virtual_rows(options.adapter);
  const auto inputs = [&](const PerplexityWindow& w) { return virtuals + w.end - w.begin - (bos ? 0 : 1); };
  const size_t total = result.windows.size();
  std::unique_ptr<KvCache> cache;
  for (size_t first = 0; first < total;) {
    size_t last = first;
    int64_t rows = 0;
    while (last < total && (last == first || rows + inputs(result.windows[last]) <= options.batch_rows)) rows += inputs(result.windows[last++]);

    std::vector<int32_t> batch_ids, labels;
    std::vector<int32_t> cu_seqlens{0};
    batch_ids.reserve(static_cast<size_t>(rows));
    for (size_t i = first; i < last; ++i) {
      const PerplexityWindow& w = result.windows[i];
      batch_ids.insert(batch_ids.end(), static_cast<size_t>(virtuals), kVirtualToken);
      if (bos) batch_ids.push_back(options.bos_id);
      batch_ids.insert(batch_ids.end(), ids.begin() + w.begin, ids.begin() + w.end - 1);
      cu_seqlens.push_back(static_cast<int32_t>(batch_ids.size()));
      labels.insert(labels.end(), ids.begin() + w.first_scored, ids.begin() + w.end);
    }
    Batch batch;
    batch.ids = batch_ids.data();
    batch.n = static_cast<int64_t>(batch_ids.size());
    batch.cu_seqlens = cu_seqlens.data();
    batch.n_seqs = static_cast<int64_t>(last - first);
    if (options.kv != KvType::f32) {
      int64_t longest = 0;
      for (size_t i = first; i < last; ++i) longest = std::max(longest, inputs(result.windows[i]));
      if (!cache || cache->n_seqs() < batch.n_seqs || cache->capacity() < longest) {
        cache.reset();
        cache = std::make_unique<KvCache>(config, batch.n_seqs, longest, ctx.budget, options.kv);
      }
      for (int64_t s = 0; s < cache->n_seqs(); ++s) cache->rewind(s, 0);
      batch.cache = cache.get();
    }
    const AdapterSegment segment{0, batch.n, options.adapter};
    if (options.adapter) {
      batch.segments = &segment;
      batch.n_segments = 1;
    }

    const ArenaScope scope(ctx.saved);
    const Var hidden = transformer.forward(ctx, batch);
    // The scored tokens of a window are its last ones, and so are the rows that predict them.
    const int64_t cols = hidden.t.cols();
    const auto scored = static_cast<int64_t>(labels.size());
    float* compact = ctx.saved.floats(scored * cols, "hidden states to score");
    int64_t to = 0;
    for (size_t i = first; i < last; ++i) {
      const PerplexityWindow& w = result.windows[i];
      const int64_t count = w.end - w.first_scored;
      std::memcpy(compact + to * cols, hidden.t.f32() + (cu_seqlens[i - first + 1] - count) * cols, size_t(count * cols) * sizeof(float));
      to += count;
    }
    Var picked;
    picked.t = Tensor::matrix(compact, scored, cols);
    std::vector<double> losses(static_cast<size_t>(scored));
    transformer.loss(ctx, picked, labels.data(), 1.0, losses.data());
    const double* at = losses.data();
    for (size_t i = first; i < last; ++i)
      for (int64_t t = result.windows[i].first_scored; t < result.windows[i].end; ++t) result.nll[static_cast<size_t>(t)] = *at++;
    first = last;
    if (options.progress) options.progress(static_cast<int64_t>(last), static_cast<int64_t>(total));
  }

  const auto each_scored = [&](auto&& fn) {
    for (const PerplexityWindow& w : result.windows)
      for (int64_t t = w.first_scored; t < w.end; ++t) fn(result.nll[static_cast<size_t>(t)]);
  };
  each_scored([&](double x) {
    result.nll_sum += x;
    ++result.scored;
  });
  result.nll_mean = result.nll_sum / double(result.scored);
  if (result.scored > 1) {
    double squares = 0;
    each_scored([&](double x) { squares += (x - result.nll_mean) * (x - result.nll_mean); });
    result.nll_stderr = std::sqrt(squares / double(result.scored - 1) / double(result.scored));
  }
  result.ppl = std::exp(result.nll_mean);
  result.ppl_stderr = result.ppl * result.nll_stderr;
  return result;
}

double bits_per_byte(double nll_sum, int64_t bytes) { return nll_sum / std::log(2.0) / double(bytes); }

Scorer::Scorer(Transformer& transformer, Context& ctx, Adapter* adapter, KvType kv)
    : transformer_(transformer), ctx_(ctx), adapter_(adapter), kv_(kv) {}

void Scorer::reserve(int64_t tokens) {
  const int64_t virtuals = virtual_rows(adapter_);
  if (cache_ && cache_->capacity() >= tokens + virtuals) {
    cache_->rewind(0, 0);
  } else {
    cache_.reset();
    const int64_t capacity = std::min(transformer_.max_tokens(), (tokens + virtuals + 127) / 128 * 128);
    cache_ = std::make_unique<KvCache>(transformer_.config(), 1, capacity, ctx_.budget, kv_);
  }
  if (virtuals == 0) return;
  const std::vector<int32_t> ids(static_cast<size_t>(virtuals), kVirtualToken);
  run(ids.data(), virtuals, true);
  hidden_.clear();
}

void Scorer::run(const int32_t* ids, int64_t n, bool keep_last_only) {
  constexpr int64_t kStep = 512;
  for (int64_t at = 0; at < n; at += kStep) {
    const int64_t count = std::min(kStep, n - at);
    const int32_t cu_seqlens[2] = {0, static_cast<int32_t>(count)};
    Batch batch;
    batch.ids = ids + at;
    batch.n = count;
    batch.cu_seqlens = cu_seqlens;
    batch.n_seqs = 1;
    batch.cache = cache_.get();
    const AdapterSegment segment{0, count, adapter_};
    if (adapter_) {
      batch.segments = &segment;
      batch.n_segments = 1;
    }
    const ArenaScope scope(ctx_.saved);
    const Var hidden = transformer_.forward(ctx_, batch);
    const int64_t cols = hidden.t.cols(), from = keep_last_only ? count - 1 : 0;
    if (keep_last_only && at + count < n) continue;
    hidden_.insert(hidden_.end(), hidden.t.f32() + from * cols, hidden.t.f32() + count * cols);
  }
}

Loglikelihood Scorer::score_rows(const std::vector<int32_t>& continuation) {
  constexpr int64_t kRows = 64;
  Loglikelihood result;
  result.greedy = true;
  const auto n = static_cast<int64_t>(continuation.size());
  const int64_t cols = static_cast<int64_t>(hidden_.size()) / n, vocab = transformer_.config().vocab_size;
  for (int64_t r = 0; r < n; r += kRows) {
    const int64_t count = std::min(kRows, n - r);
    const ArenaScope scope(ctx_.saved);
    Var rows;
    rows.t = Tensor::matrix(hidden_.data() + r * cols, count, cols);
    const Var logits = transformer_.logits(ctx_, rows);
    double losses[kRows];
    ctx_.kernels.cross_entropy({count, vocab, logits.t.f32(), vocab, continuation.data() + r, nullptr, 0, losses, nullptr});
    for (int64_t i = 0; i < count; ++i) {
      result.logprob -= losses[i];
      const float* row = logits.t.f32() + i * vocab;
      result.greedy = result.greedy && std::max_element(row, row + vocab) - row == continuation[static_cast<size_t>(r + i)];
    }
  }
  return result;
}

std::vector<Loglikelihood> Scorer::choices(const std::vector<int32_t>& context,
                                           const std::vector<std::vector<int32_t>>& continuations) {
  if (context.empty())
    throw Error(ErrorCode::input, "the context to score from has no tokens", "put BOS in front of an empty context");
  check_ids(transformer_.config(), context);
  const auto n_context = static_cast<int64_t>(context.size());
  const int64_t limit = transformer_.max_tokens() - (adapter_ ? adapter_->n_virtual() : 0);
  int64_t longest = 0;  // input tokens of a pair whose context stays whole
  for (const auto& continuation : continuations) {
    if (continuation.empty()) throw Error(ErrorCode::input, "a continuation to score has no tokens", "give every continuation some text");
    check_ids(transformer_.config(), continuation);
    const auto n = static_cast<int64_t>(continuation.size());
    if (n > limit)
      throw Error(ErrorCode::input, fmt::format("a continuation has {} tokens: the context holds {}", n, limit), "shorten the continuation");
    if (n_context + n - 1 <= limit) longest = std::max(longest, n_context + n - 1);
  }

  std::vector<Loglikelihood> results(continuations.size());
  const auto cols = static_cast<size_t>(transformer_.config().embed_dim);
  if (longest > 0) {
    hidden_.clear();
    reserve(longest);
    run(context.data(), n_context, true);
    const int64_t mark = cache_->mark(0);
    for (size_t i = 0; i < continuations.size(); ++i) {
      const auto n = static_cast<int64_t>(continuations[i].size());
      if (n_context + n - 1 > limit) continue;
      cache_->rewind(0, mark);
      hidden_.resize(cols);
      run(continuations[i].data(), n - 1, false);
      results[i] = score_rows(continuations[i]);
    }
  }
  for (size_t i = 0; i < continuations.size(); ++i) {
    const auto n = static_cast<int64_t>(continuations[i].size());
    const int64_t keep = limit - n + 1;  // context tokens that fit
    if (n_context <= keep) continue;
    hidden_.clear();
    reserve(limit);
    run(context.data() + (n_context - keep), keep, true);
    run(continuations[i].data(), n - 1, false);
    results[i] = score_rows(continuations[i]);
    results[i].truncated = true;
  }
  return results;
}

Loglikelihood Scorer::loglikelihood(const std::vector<int32_t>& context, const std::vector<int32_t>& continuation) {
  return choices(context, {continuation})[0];
}

}  // namespace thimble
