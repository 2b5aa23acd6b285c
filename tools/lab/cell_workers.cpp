#include "tools/lab/cell_workers.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble::lab {

double cell_clock() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// FNV-1a of the name, mixed with the seed as splitmix64 does.
uint64_t named_seed(uint64_t seed, std::string_view name) {
  uint64_t h = 0xCBF29CE484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  uint64_t z = h + (seed + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

Worker::Worker(const KernelTable& kernels, int threads, int64_t limit, Precision precision, Model& base,
               int64_t max_tokens)
    : budget(limit), ctx(kernels, threads, &budget), transformer(base, max_tokens) {
  ctx.precision = precision;
}

KvCache& Worker::cache(int64_t n_seqs, int64_t tokens) {
  if (!cache_ || cache_->n_seqs() < n_seqs || cache_->capacity() < tokens) {
    cache_.reset();
    const int64_t capacity = std::min(transformer.max_tokens(), (tokens + 31) / 32 * 32);
    cache_ = std::make_unique<KvCache>(transformer.config(), n_seqs, capacity, &budget);
    kv_bytes = std::max(kv_bytes, cache_->bytes());
  }
  for (int64_t s = 0; s < cache_->n_seqs(); ++s) cache_->rewind(s, 0);
  return *cache_;
}

int64_t Workers::count(const CellEnvironment& environment, int64_t tasks, bool lean) {
  return !lean && tasks >= environment.threads ? environment.threads : 1;
}

Workers::Workers(const std::vector<Model*>& models, int64_t max_tokens, const CellEnvironment& environment,
                 Precision precision)
    : environment_(environment) {
  const auto n = static_cast<int64_t>(models.size());
  const int64_t limit = environment.budget ? environment.budget->limit() : 0;
  const int64_t share = limit > 0 ? std::max<int64_t>(1, (limit - environment.budget->used()) / n) : 0;
  const int threads = std::max(1, environment.threads / static_cast<int>(n));
  for (Model* model : models)
    workers_.push_back(std::make_unique<Worker>(*environment.kernels, threads, share, precision, *model, max_tokens));
}

void Workers::run(int64_t tasks, const std::function<void(Worker&, int64_t, int64_t)>& fn) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(tasks));
  if (size() == 1) {
    for (int64_t t = 0; t < tasks; ++t) fn(at(0), 0, t);
    return;
  }
  parallel_for(static_cast<int>(size()), tasks, [&](int64_t task, int thread) {
    try {
      fn(at(thread), thread, task);
    } catch (...) {
      errors[static_cast<size_t>(task)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
}

void Workers::progress(const std::string& phase, int64_t done, int64_t total) {
  if (!environment_.progress) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  environment_.progress(phase, done, total);
}

double Workers::train_s() const {
  double sum = 0;
  for (const auto& w : workers_) sum += w->train_s;
  return sum / double(workers_.size());
}

double Workers::answer_s() const {
  double sum = 0;
  for (const auto& w : workers_) sum += w->answer_s;
  return sum / double(workers_.size());
}

int64_t Workers::kv_bytes() const {
  int64_t sum = 0;
  for (const auto& w : workers_) sum += w->kv_bytes;
  return sum;
}

int64_t Workers::activation_bytes() const {
  int64_t sum = 0;
  for (const auto& w : workers_)
    sum += static_cast<int64_t>(w->ctx.saved.peak() + w->ctx.grads.peak() + w->ctx.scratch.peak() +
                                w->ctx.replayed.peak());
  return sum;
}

}  // namespace thimble::lab
