#include "tools/lab/evaluate.h"

#include <algorithm>
#include <cstring>

#include "tensor/error.h"

namespace thimble::lab {
namespace {

// Sequences that are in the cache together, and what each of them feeds next.
class Pass {
 public:
  Pass(Worker& worker, const std::vector<Adapter*>& adapters, const Question* questions, size_t n, int64_t longest)
      : worker_(worker), adapters_(n, nullptr), rows_(n), at_(n) {
    int64_t virtuals = 0;
    for (size_t i = 0; i < n; ++i) {
      const auto person = static_cast<size_t>(questions[i].person);
      adapters_[i] = person < adapters.size() ? adapters[person] : nullptr;
      virtuals = std::max(virtuals, virtual_rows(i));
    }
    cache_ = &worker.cache(static_cast<int64_t>(n), longest + virtuals);
  }

  int64_t virtual_rows(size_t i) const {
    return adapters_[i] && adapters_[i]->kind() == AdapterKind::prompt ? adapters_[i]->n_virtual() : 0;
  }
  KvCache& cache() { return *cache_; }
  // Tokens that sequence i feeds in the next forward.
  std::vector<int32_t>& feed(size_t i) { return rows_[i]; }

  // Runs what was fed; hidden() is valid until the scope of ctx.saved ends.
  void forward() {
    ids_.clear();
    cu_.assign(1, 0);
    segments_.clear();
    for (size_t i = 0; i < rows_.size(); ++i) {
      at_[i] = static_cast<int64_t>(ids_.size());
      ids_.insert(ids_.end(), rows_[i].begin(), rows_[i].end());
      cu_.push_back(static_cast<int32_t>(ids_.size()));
      if (!adapters_[i] || rows_[i].empty()) continue;
      const auto end = static_cast<int64_t>(ids_.size());
      if (!segments_.empty() && segments_.back().adapter == adapters_[i] && segments_.back().end == at_[i])
        segments_.back().end = end;
      else
        segments_.push_back({at_[i], end, adapters_[i]});
    }
    Batch batch;
    batch.ids = ids_.data();
    batch.n = static_cast<int64_t>(ids_.size());
    batch.cu_seqlens = cu_.data();
    batch.n_seqs = static_cast<int64_t>(rows_.size());
    batch.cache = cache_;
    batch.segments = segments_.data();
    batch.n_segments = static_cast<int64_t>(segments_.size());
    hidden_ = worker_.transformer.forward(worker_.ctx, batch);
  }
  // Row r of what sequence i fed.
  const float* hidden(size_t i, size_t r) const {
    return hidden_.t.f32() + (at_[i] + static_cast<int64_t>(r)) * hidden_.t.cols();
  }
  int64_t cols() const { return hidden_.t.cols(); }

 private:
  Worker& worker_;
  KvCache* cache_;
  std::vector<Adapter*> adapters_;
  std::vector<std::vector<int32_t>> rows_;
  std::vector<int64_t> at_;
  std::vector<int32_t> ids_, cu_;
  std::vector<AdapterSegment> segments_;
  Var hidden_;
};

// Rows of hidden states that are turned into logits together.
class Head {
 public:
  explicit Head(Worker& worker)
      : worker_(worker), cols_(worker.transformer.config().embed_dim), vocab_(worker.transformer.config().vocab_size) {}
  void clear() {
    rows_.clear();
    labels_.clear();
  }
  void add(const float* hidden, int32_t label = 0) {
    rows_.insert(rows_.end(), hidden, hidden + cols_);
    labels_.push_back(label);
  }
  size_t size() const { return labels_.size(); }
  // Negative log-probability of every row's label.
  const std::vector<double>& losses() {
    losses_.resize(labels_.size());
    each_chunk([&](size_t first, int64_t n, const float* logits) {
      score(logits, n, labels_.data() + first, losses_.data() + first);
    });
    return losses_;
  }
  // All logits; only for few rows.
  std::vector<float> logits() {
    std::vector<float> all(labels_.size() * static_cast<size_t>(vocab_));
    each_chunk([&](size_t first, int64_t n, const float* logits) {
      std::memcpy(all.data() + first * static_cast<size_t>(vocab_), logits,
                  static_cast<size_t>(n * vocab_) * sizeof(float));
    });
    return all;
  }
  // The likeliest token of every row; of equals the lowest id.
  const std::vector<int32_t>& best() {
    best_.resize(labels_.size());
    each_chunk([&](size_t first, int64_t n, const float* logits) {
      for (int64_t i = 0; i < n; ++i)
        best_[first + static_cast<size_t>(i)] = static_cast<int32_t>(
            std::max_element(logits + i * vocab_, logits + (i + 1) * vocab_) - (logits + i * vocab_));
    });
    return best_;
  }
  void score(const float* logits, int64_t n, const int32_t* labels, double* losses) {
    worker_.ctx.kernels.cross_entropy({n, vocab_, logits, vocab_, labels, nullptr, 0, losses, nullptr});
  }
  int64_t vocab() const { return vocab_; }

 private:
  template <class Fn>
  void each_chunk(Fn&& fn) {
    const size_t step = std::max<size_t>(16, (size_t{1} << 21) / static_cast<size_t>(vocab_));
    for (size_t first = 0; first < labels_.size(); first += step) {
      const auto n = static_cast<int64_t>(std::min(step, labels_.size() - first));
      const ArenaScope scope(worker_.ctx.saved);
      Var rows;
      rows.t = Tensor::matrix(rows_.data() + first * static_cast<size_t>(cols_), n, cols_);
      fn(first, n, worker_.transformer.logits(worker_.ctx, rows).t.f32());
    }
  }
  Worker& worker_;
  int64_t cols_, vocab_;
  std::vector<float> rows_;
  std::vector<int32_t> labels_, best_;
  std::vector<double> losses_;
};

// Log-probabilities of the choices. The first token of each comes from the prompt's last row; the others are fed behind
// the prompt, to which the cache is rewound for the next choice.
void score_choices(Worker& worker, Pass& pass, Head& head, const Question* questions, size_t n,
                   const std::vector<float>& first, Answer* answers) {
  size_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    most = std::max(most, questions[i].choices.size());
    answers[i].logprobs.assign(questions[i].choices.size(), 0);
  }
  for (size_t c = 0; c < most; ++c) {
    bool any = false;
    for (size_t i = 0; i < n; ++i) {
      pass.feed(i).clear();
      if (c >= questions[i].choices.size()) continue;
      const std::vector<int32_t>& tokens = questions[i].choices[c];
      double loss = 0;
      head.score(first.data() + i * static_cast<size_t>(head.vocab()), 1, tokens.data(), &loss);
      answers[i].logprobs[c] = -loss;
      pass.feed(i).assign(tokens.begin(), tokens.end() - 1);
      any = any || tokens.size() > 1;
    }
    if (!any) continue;
    std::vector<int64_t> marks;
    for (size_t i = 0; i < n; ++i) marks.push_back(pass.cache().mark(static_cast<int64_t>(i)));
    head.clear();
    {
      const ArenaScope scope(worker.ctx.saved);
      pass.forward();
      for (size_t i = 0; i < n; ++i)
        for (size_t r = 0; r < pass.feed(i).size(); ++r) head.add(pass.hidden(i, r), questions[i].choices[c][r + 1]);
    }
    const double* loss = head.losses().data();
    for (size_t i = 0; i < n; ++i) {
      for (size_t r = 0; r < pass.feed(i).size(); ++r) answers[i].logprobs[c] -= *loss++;
      pass.cache().rewind(static_cast<int64_t>(i), marks[i]);
    }
  }
}

void generate(Worker& worker, Pass& pass, Head& head, const PromptCodec& codec, const Question* questions, size_t n,
              const std::vector<float>& first, int64_t max_new, Answer* answers) {
  std::vector<std::vector<int32_t>> out(n);
  std::vector<size_t> open;
  for (size_t i = 0; i < n; ++i) {
    pass.feed(i).clear();
    if (!questions[i].generate) continue;
    const float* row = first.data() + i * static_cast<size_t>(head.vocab());
    out[i].push_back(static_cast<int32_t>(std::max_element(row, row + head.vocab()) - row));
    open.push_back(i);
  }
  const std::vector<size_t> asked = open;
  for (;;) {
    std::vector<size_t> still;
    for (const size_t i : open) {
      pass.feed(i).clear();
      if (codec.ends_answer(out[i].back()) || static_cast<int64_t>(out[i].size()) >= max_new) continue;
      pass.feed(i).push_back(out[i].back());
      still.push_back(i);
    }
    open = std::move(still);
    if (open.empty()) break;
    head.clear();
    {
      const ArenaScope scope(worker.ctx.saved);
      pass.forward();
      for (const size_t i : open) head.add(pass.hidden(i, 0));
    }
    const std::vector<int32_t>& best = head.best();
    for (size_t j = 0; j < open.size(); ++j) out[open[j]].push_back(best[j]);
  }
  for (const size_t i : asked) answers[i].text = codec.answer_text(out[i]);
}

}  // namespace

void answer_questions(Worker& worker, const PromptCodec& codec, const std::vector<Question>& questions, size_t begin,
                      size_t end, const std::vector<Adapter*>& adapters, const AnswerOptions& options,
                      std::vector<Answer>& answers) {
  const double started = cell_clock();
  const ModelConfig& config = worker.transformer.config();
  const int64_t token_bytes = config.n_layers * 2 * config.kv_cols() * int64_t{sizeof(float)};
  const auto tail_of = [&](const Question& q) {  // tokens behind the prompt
    int64_t tail = q.generate ? options.max_new_tokens : 0;
    for (const auto& c : q.choices) tail = std::max(tail, static_cast<int64_t>(c.size()));
    return tail;
  };
  Head head(worker);
  for (size_t first = begin; first < end;) {
    int64_t rows = 0, longest = 0;
    size_t last = first;
    while (last < end) {
      const Question& q = questions[last];
      const int64_t more = std::max(longest, static_cast<int64_t>(q.prompt.size()) + tail_of(q));
      const auto n = static_cast<int64_t>(last - first) + 1;
      const bool fits = rows + static_cast<int64_t>(q.prompt.size()) <= options.batch_rows &&
                        n * more * token_bytes <= options.cache_bytes;
      if (last > first && !fits) break;
      rows += static_cast<int64_t>(q.prompt.size());
      longest = more;
      ++last;
    }
    const size_t n = last - first;
    const Question* group = questions.data() + first;
    Pass pass(worker, adapters, group, n, longest);
    for (size_t i = 0; i < n; ++i) {
      pass.feed(i).assign(static_cast<size_t>(pass.virtual_rows(i)), kVirtualToken);
      pass.feed(i).insert(pass.feed(i).end(), group[i].prompt.begin(), group[i].prompt.end());
    }
    head.clear();
    {
      const ArenaScope scope(worker.ctx.saved);
      pass.forward();
      for (size_t i = 0; i < n; ++i) head.add(pass.hidden(i, pass.feed(i).size() - 1));
    }
    const std::vector<float> logits = head.logits();
    score_choices(worker, pass, head, group, n, logits, answers.data() + first);
    generate(worker, pass, head, codec, group, n, logits, options.max_new_tokens, answers.data() + first);
    for (size_t i = 0; i < n; ++i) {
      if (group[i].labels.empty()) continue;
      Answer& a = answers[first + i];
      a.text = group[i].labels[static_cast<size_t>(
          std::max_element(a.logprobs.begin(),
                           a.logprobs.begin() + static_cast<std::ptrdiff_t>(group[i].labels.size())) -
          a.logprobs.begin())];
    }
    first = last;
  }
  worker.answer_s += cell_clock() - started;
}

}  // namespace thimble::lab
