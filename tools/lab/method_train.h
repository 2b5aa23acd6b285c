// Learning of many people at once: a batch holds the rows of several people, each with an adapter over the shared base;
// gradients, clipping and AdamW are a person's own. What a person learns is the same, bit for bit, alone and in any
// company.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tools/lab/cell_text.h"
#include "tools/lab/cell_workers.h"
#include "tools/lab/method.h"
#include "train/dataset.h"
#include "train/optimizer.h"

namespace thimble::lab {

// What one person learns from.
struct PersonPairs {
  std::string user_id;
  uint64_t seed = 0;  // of the adapter's first values and of the draws
  Dataset data;
  int64_t truncated = 0;
};

struct LearnOptions {
  double lr = 1e-3;   // constant, after a warm-up of kWarmup steps
  int64_t batch = 8;  // pairs per step and person
  uint64_t seed = 0;  // of dropout
};
constexpr int64_t kWarmup = 2;

// The learning of a group of people, from the base to any step. `base` is what restarts weights when all of them train:
// the worker's model is then a trainable copy of it, and the group is one person.
class GroupLearner {
 public:
  GroupLearner(Worker& worker, const Method& method, const MethodSpec& spec, Model& base, const LearnOptions& options,
               std::vector<const PersonPairs*> people);

  // Optimizer steps until `step` are done. Throws input when a person's loss or gradient is not finite.
  void train_to(int64_t step);
  int64_t step() const { return step_; }
  // Of person i of the group; null: the worker's model itself has learned.
  Adapter* adapter(size_t i) { return learners_[i].adapter.get(); }
  // Mean loss in nats per learned token of every step so far.
  const std::vector<double>& losses(size_t i) const { return learners_[i].losses; }
  int64_t parameters() const { return learners_[0].optimizer->count(); }  // of one person

 private:
  struct Learner {
    const PersonPairs* pairs = nullptr;
    std::unique_ptr<Adapter> adapter;
    std::unique_ptr<Adamw> optimizer;
    std::vector<double> losses;
    int64_t begin = 0, end = 0;  // rows of the running step
  };
  void one_step();

  Worker& worker_;
  LearnOptions options_;
  std::vector<Learner> learners_;
  MicroBatch rows_;
  std::vector<AdapterSegment> segments_;
  std::vector<float> weights_;  // of the rows' losses
  std::vector<double> row_loss_;
  int64_t step_ = 0;
};

// How many people share a batch: about `rows` rows of it, and no fewer groups than workers can use.
int64_t people_per_group(const std::vector<PersonPairs>& people, int64_t batch, int64_t workers, int64_t rows = 1024);

// Trainable copies of a base whose matrices are stored as numbers. Throws unsupported for packed codes.
Model trainable_copy(const Model& base, const KernelTable& kernels, MemoryBudget* budget);

}  // namespace thimble::lab
