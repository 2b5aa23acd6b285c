// People are independent of one another, so a cell runs them side by side: each worker has a thread, a context and a
// transformer over the one read-only base. What a person's rows give depends neither on the worker nor on who shares
// the batch, so any number of workers gives the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "models/kv_cache.h"
#include "models/transformer.h"
#include "tools/lab/cell.h"

namespace thimble::lab {

struct Worker {
  Worker(const KernelTable& kernels, int threads, int64_t limit, Precision precision, Model& base, int64_t max_tokens);

  // A cache for n sequences of up to `tokens`, empty; the last one is used again when it is large enough.
  KvCache& cache(int64_t n_seqs, int64_t tokens);

  MemoryBudget budget;
  Context ctx;
  Transformer transformer;
  Tape tape;
  double train_s = 0, answer_s = 0;  // of this worker's time
  int64_t kv_bytes = 0;              // largest cache

 private:
  std::unique_ptr<KvCache> cache_;
};

class Workers {
 public:
  // How many workers `tasks` independent pieces of work get; fewer pieces than threads leave one worker with all
  // threads, and so does a limit of memory, since every worker holds activations of its own.
  static int64_t count(const CellEnvironment& environment, int64_t tasks, bool lean);
  // One worker per model: the shared base several times, or copies that train. What is left of the budget is shared
  // out.
  Workers(const std::vector<Model*>& models, int64_t max_tokens, const CellEnvironment& environment,
          Precision precision);

  int64_t size() const { return static_cast<int64_t>(workers_.size()); }
  Worker& at(int64_t i) { return *workers_[static_cast<size_t>(i)]; }
  // fn(worker, worker index, task) for every task in [0, tasks), in any order; then the error of the lowest task that
  // failed.
  void run(int64_t tasks, const std::function<void(Worker&, int64_t worker, int64_t task)>& fn);
  // Reports progress from any worker.
  void progress(const std::string& phase, int64_t done, int64_t total);

  double train_s() const;  // thread seconds / workers
  double answer_s() const;
  int64_t kv_bytes() const;          // of all workers
  int64_t activation_bytes() const;  // peaks of all workers' arenas

 private:
  const CellEnvironment& environment_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::mutex mutex_;
};

double cell_clock();  // seconds, monotonic

// A stream of its own for everything that is named: seeds of people, items and adapters.
uint64_t named_seed(uint64_t seed, std::string_view name);

}  // namespace thimble::lab
