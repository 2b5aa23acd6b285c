#include "tools/lab/method_train.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace thimble::lab {

Model trainable_copy(const Model& base, const KernelTable& kernels, MemoryBudget* budget) {
  for_each_weight(base.weights, [&](Role role, int64_t layer, const Weight& w) {
    if (is_tiled(w.format))
      throw Error(ErrorCode::unsupported,
                  fmt::format("method full: {} is stored as packed codes, which cannot learn", weight_name(role, layer)),
                  "tune an adapter (lora) over a quantized base, or leave the base uncompressed or pruned");
  });
  Model copy;
  copy.config = base.config;
  copy.family = base.family;
  copy.path = base.path;
  copy.store = WeightStore(budget);
  copy.weights.resize(base.config);
  for_each_weight(base.weights, [&](Role role, int64_t layer, const Weight& w) {
    Weight& to = copy.weights.at(role, layer);
    to.rows = w.rows;
    to.cols = w.cols;
    to.data = copy.store.allocate(size_t(w.numel()) * sizeof(float));
  });
  enable_gradients(copy);
  return copy;
}

GroupLearner::GroupLearner(Worker& worker, const Method& method, const MethodSpec& spec, Model& base,
                           const LearnOptions& options, std::vector<const PersonPairs*> people)
    : worker_(worker), options_(options) {
  THIMBLE_CHECK(method.learns && !people.empty() && (!method.full() || people.size() == 1));
  for (const PersonPairs* p : people) {
    Learner l;
    l.pairs = p;
    if (method.full()) {
      Model& own = worker.transformer.model();
      for_each_weight(own.weights, [&](Role role, int64_t layer, Weight& w) {
        dequantize(worker.ctx.kernels, base.weights.at(role, layer), static_cast<float*>(const_cast<void*>(w.data)));
        w.grad_written = false;
      });
      l.optimizer = std::make_unique<Adamw>(model_parameters(own), worker.ctx.budget);
    } else {
      AdapterOptions o = method.adapter(spec);
      o.seed = p->seed;
      l.adapter = std::make_unique<Adapter>(base, worker.ctx.kernels, o, worker.ctx.budget);
      l.adapter->enable_gradients();
      l.optimizer = std::make_unique<Adamw>(adapter_parameters(*l.adapter), worker.ctx.budget);
    }
    learners_.push_back(std::move(l));
  }
}

void GroupLearner::train_to(int64_t step) {
  const double started = cell_clock();
  while (step_ < step) one_step();
  worker_.train_s += cell_clock() - started;
}

void GroupLearner::one_step() {
  Context& ctx = worker_.ctx;
  rows_.clear();
  weights_.clear();
  segments_.clear();
  for (Learner& l : learners_) {
    const int64_t virtuals = l.adapter && l.adapter->kind() == AdapterKind::prompt ? l.adapter->n_virtual() : 0;
    l.begin = static_cast<int64_t>(rows_.ids.size());
    const int64_t learned_before = rows_.learned;
    for (int64_t b = 0; b < options_.batch; ++b)
      rows_.append(l.pairs->data.draw(l.pairs->seed, step_ * options_.batch + b), virtuals);
    l.end = static_cast<int64_t>(rows_.ids.size());
    weights_.resize(static_cast<size_t>(l.end), static_cast<float>(1.0 / double(rows_.learned - learned_before)));
    if (l.adapter) segments_.push_back({l.begin, l.end, l.adapter.get()});
  }
  row_loss_.resize(rows_.ids.size());
  {
    const ArenaScope scope(ctx.saved);
    ctx.training = true;
    ctx.seed = options_.seed;
    ctx.step = static_cast<uint64_t>(step_);
    ctx.tape = &worker_.tape;
    Batch batch = rows_.batch(nullptr);
    batch.segments = segments_.data();
    batch.n_segments = static_cast<int64_t>(segments_.size());
    try {
      const Var hidden = worker_.transformer.forward(ctx, batch);
      worker_.transformer.loss(ctx, hidden, rows_.labels.data(), 1.0, row_loss_.data(), weights_.data());
      backward(ctx);
    } catch (...) {
      ctx.tape = nullptr;
      ctx.training = false;
      throw;
    }
    ctx.tape = nullptr;
    ctx.training = false;
  }
  AdamwOptions adamw;
  adamw.clip_norm = 1;
  const double lr = options_.lr * std::min(1.0, double(step_ + 1) / double(kWarmup + 1));
  for (Learner& l : learners_) {
    double loss = 0;
    int64_t learned = 0;
    for (int64_t r = l.begin; r < l.end; ++r)
      if (rows_.labels[static_cast<size_t>(r)] >= 0) {
        loss += row_loss_[static_cast<size_t>(r)];
        ++learned;
      }
    loss /= double(learned);
    const double norm = l.optimizer->gradient_norm(ctx);
    if (!std::isfinite(loss) || !std::isfinite(norm))
      throw Error(ErrorCode::input,
                  fmt::format("learning diverged at step {} of person {}: loss {}, gradient norm {}", step_ + 1,
                              l.pairs->user_id, loss, norm),
                  "lower the learning rate");
    l.losses.push_back(loss);
    l.optimizer->step(ctx, adamw, lr, norm);
  }
  ++step_;
}

int64_t people_per_group(const std::vector<PersonPairs>& people, int64_t batch, int64_t workers, int64_t rows) {
  if (people.empty()) return 1;
  double tokens = 0, items = 0;
  for (const PersonPairs& p : people) {
    tokens += double(p.data.stats().tokens);
    items += double(p.data.size());
  }
  const double per_person = std::max(1.0, tokens / std::max(1.0, items) * double(batch));
  const auto n = static_cast<int64_t>(people.size());
  const int64_t balanced = std::max<int64_t>(1, n / (2 * workers));
  return std::clamp<int64_t>(static_cast<int64_t>(double(rows) / per_person), 1, balanced);
}

}  // namespace thimble::lab
