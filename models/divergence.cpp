#include "models/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/scoring.h"
#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kRows = 1024;          // tokens that run together; at least one sequence
constexpr int64_t kLogits = 1 << 22;     // logits of one model in memory at a time

size_t at(int64_t i) { return static_cast<size_t>(i); }

// What one position contributes.
struct Point {
  double kl = 0, nll_before = 0, nll_after = 0;
  bool same = false;
};

double log_sum_exp(const float* x, int64_t n, int64_t* first_choice) {
  const float* largest = std::max_element(x, x + n);
  *first_choice = largest - x;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double(x[i]) - double(*largest));
  return std::log(sum) + double(*largest);
}

Point compare(const float* a, const float* b, int64_t n, int32_t label) {
  int64_t top_a = 0, top_b = 0;
  const double za = log_sum_exp(a, n, &top_a), zb = log_sum_exp(b, n, &top_b);
  Point p;
  for (int64_t i = 0; i < n; ++i) {
    const double log_a = double(a[i]) - za;
    p.kl += std::exp(log_a) * (log_a - (double(b[i]) - zb));
  }
  p.kl = std::max(0.0, p.kl);  // rounding
  p.nll_before = za - double(a[label]);
  p.nll_after = zb - double(b[label]);
  p.same = top_a == top_b;
  return p;
}

// Standard error of the mean of values given their sum and sum of squares.
double standard_error(double sum, double squares, int64_t n) {
  if (n < 2) return 0;
  const double count = double(n);
  return std::sqrt(std::max(0.0, squares - sum * sum / count) / (count - 1) / count);
}

}  // namespace

std::vector<ScoredSequence> scored_windows(const std::vector<int32_t>& ids, int64_t ctx, int64_t stride) {
  PerplexityOptions options;
  options.ctx = ctx;
  options.stride = stride;
  std::vector<ScoredSequence> sequences;
  for (const PerplexityWindow& w : perplexity_windows(static_cast<int64_t>(ids.size()), options)) {
    ScoredSequence s;
    s.ids.assign(ids.begin() + w.begin, ids.begin() + w.end);
    s.first_scored = std::max<int64_t>(1, w.first_scored - w.begin);
    sequences.push_back(std::move(s));
  }
  return sequences;
}

Divergence divergence(Transformer& before, Transformer& after, Context& ctx, const std::vector<ScoredSequence>& sequences,
                      const std::function<void(int64_t done, int64_t total)>& progress, std::optional<Precision> after_precision) {
  const int64_t vocab = before.config().vocab_size;
  if (after.config().vocab_size != vocab)
    throw Error(ErrorCode::input,
                fmt::format("{} has a vocabulary of {}, {} of {}", before.model().path, vocab, after.model().path, after.config().vocab_size),
                "only models of one tokenizer can be compared");
  Divergence d;
  double kl_sum = 0, kl_squares = 0, nll_before = 0, nll_after = 0, after_squares = 0, diff_squares = 0;
  int64_t same = 0;
  std::vector<Point> points;
  for (size_t first = 0; first < sequences.size();) {
    std::vector<int32_t> ids, cu = {0};
    size_t last = first;
    for (; last < sequences.size() &&
           (last == first || static_cast<int64_t>(ids.size() + sequences[last].ids.size()) <= kRows); ++last) {
      ids.insert(ids.end(), sequences[last].ids.begin(), sequences[last].ids.end());
      cu.push_back(static_cast<int32_t>(ids.size()));
    }
    const ArenaScope scope(ctx.saved);
    Batch batch;
    batch.ids = ids.data();
    batch.n = static_cast<int64_t>(ids.size());
    batch.cu_seqlens = cu.data();
    batch.n_seqs = static_cast<int64_t>(cu.size()) - 1;
    const auto as_after = [&](const auto& compute) {
      const Precision own = ctx.precision;
      ctx.precision = after_precision.value_or(own);
      const Var y = compute();
      ctx.precision = own;
      return y;
    };
    const Var hidden_before = before.forward(ctx, batch);
    const Var hidden_after = as_after([&] { return after.forward(ctx, batch); });
    // Row r predicts token r + 1 of its sequence.
    std::vector<int64_t> rows;
    std::vector<int32_t> owners;
    for (size_t s = first; s < last; ++s)
      for (auto t = std::max<int64_t>(1, sequences[s].first_scored); t < static_cast<int64_t>(sequences[s].ids.size()); ++t) {
        rows.push_back(cu[s - first] + t - 1);
        owners.push_back(static_cast<int32_t>(s));
      }
    const int64_t step = std::max<int64_t>(1, kLogits / vocab);
    for (int64_t r0 = 0; r0 < batch.n; r0 += step) {
      const int64_t r1 = std::min(batch.n, r0 + step);
      const size_t begin = at(std::lower_bound(rows.begin(), rows.end(), r0) - rows.begin());
      const size_t end = at(std::lower_bound(rows.begin(), rows.end(), r1) - rows.begin());
      if (begin == end) continue;
      const ArenaScope inner(ctx.saved);
      const auto slice = [&](const Var& x) {
        Var part;
        part.t = Tensor::matrix(x.t.f32() + r0 * x.t.cols(), r1 - r0, x.t.cols());
        return part;
      };
      const Var a = before.logits(ctx, slice(hidden_before));
      const Var b = as_after([&] { return after.logits(ctx, slice(hidden_after)); });
      points.assign(end - begin, {});
      parallel_for(ctx.threads, static_cast<int64_t>(points.size()), [&](int64_t i, int) {
        const int64_t r = rows[begin + at(i)];
        points[at(i)] = compare(a.t.f32() + (r - r0) * vocab, b.t.f32() + (r - r0) * vocab, vocab, ids[at(r + 1)]);
      });
      for (size_t i = 0; i < points.size(); ++i) {
        const Point& p = points[i];
        if (!std::isfinite(p.kl) || !std::isfinite(p.nll_after))
          throw Error(ErrorCode::input, "a model's predictions are not finite", "one of the checkpoints is damaged");
        d.kl.push_back(static_cast<float>(p.kl));
        d.sequence.push_back(owners[begin + i]);
        kl_sum += p.kl;
        kl_squares += p.kl * p.kl;
        nll_before += p.nll_before;
        nll_after += p.nll_after;
        after_squares += p.nll_after * p.nll_after;
        diff_squares += (p.nll_after - p.nll_before) * (p.nll_after - p.nll_before);
        same += p.same ? 1 : 0;
      }
    }
    first = last;
    if (progress) progress(static_cast<int64_t>(last), static_cast<int64_t>(sequences.size()));
  }
  d.tokens = static_cast<int64_t>(d.kl.size());
  if (d.tokens == 0) throw Error(ErrorCode::input, "the text has no token to score", "give a text of at least two tokens");
  const double n = double(d.tokens);
  d.kl_mean = kl_sum / n;
  d.kl_stderr = standard_error(kl_sum, kl_squares, d.tokens);
  std::vector<float> sorted = d.kl;
  std::sort(sorted.begin(), sorted.end());
  d.kl_p99 = double(sorted[at(std::min(d.tokens - 1, static_cast<int64_t>(0.99 * n)))]);
  d.kl_max = double(sorted.back());
  d.same_top1 = double(same) / n;
  d.nll_before = nll_before / n;
  d.nll_after = nll_after / n;
  d.ppl_before = std::exp(d.nll_before);
  d.ppl_after = std::exp(d.nll_after);
  d.ppl_stderr = d.ppl_after * standard_error(nll_after, after_squares, d.tokens);
  d.nll_diff_stderr = standard_error(nll_after - nll_before, diff_squares, d.tokens);
  return d;
}

PairedDifference paired_difference(const Divergence& a, const Divergence& b) {
  THIMBLE_CHECK(a.kl.size() == b.kl.size() && a.sequence == b.sequence && !a.kl.empty());
  PairedDifference p;
  for (size_t i = 0; i < a.kl.size(); ++i) p.mean += (double(a.kl[i]) - double(b.kl[i])) / double(a.kl.size());
  // The tokens of a sequence share a context, so their differences are not independent; sums of whole sequences are.
  double squares = 0;
  int64_t sequences = 0;
  for (size_t i = 0; i < a.kl.size();) {
    double sum = 0;
    const int32_t s = a.sequence[i];
    for (; i < a.kl.size() && a.sequence[i] == s; ++i) sum += double(a.kl[i]) - double(b.kl[i]) - p.mean;
    squares += sum * sum;
    ++sequences;
  }
  if (sequences > 1)
    p.stderr_mean = std::sqrt(squares * double(sequences) / double(sequences - 1)) / double(a.kl.size());
  return p;
}

}  // namespace thimble
