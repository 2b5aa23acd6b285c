// What tune and pretrain share: the options of the loop, the memory plan and its table, the run and its result.
#pragma once

#include <functional>
#include <string>

#include "tools/cli/cli.h"
#include "train/trainer.h"

namespace thimble::cli {

struct TrainFlags {
  TrainOptions loop;
  std::string schedule = "cosine", optimizer = "adamw", recompute = "auto", out;
  int64_t ctx = 0;
  bool resume = false, dry_run = false, no_decay_norms = false;
};

// Adds the options of the loop; default_lr is what the help says.
void add_train_options(CLI::App& command, TrainFlags& flags, const std::string& default_lr);

// Checks what can be checked before anything is loaded, and fills in flags.loop. Throws usage.
void prepare_train_flags(TrainFlags& flags, const CommonOptions& common, double default_lr);

// One run, ready but for the memory of its gradients, optimizer and activations.
struct TrainJob {
  std::string verb;  // tune, pretrain
  std::string method;
  Model* model = nullptr;
  Adapter* adapter = nullptr;  // null: all weights train
  const Dataset* data = nullptr;
  const Dataset* eval = nullptr;
  std::string identity;        // everything of model, data and method that decides the result
  std::function<void()> save;  // writes the finished model or adapter to OUT
};

// Plans, checks --ram, then trains, saves and prints the result, or prints the plan alone with --dry-run. Throws budget
// with the plan's table, interrupted, and input when training diverges.
int run_training(const CommonOptions& common, Session& session, TrainFlags& flags, const TrainJob& job);

// Throws budget with a table when the weights, gradients and moments of full training alone exceed --ram, or the
// machine where it is not given.
void check_full_training(Session& session, const TrainFlags& flags, double parameters);

// Every id of the data must be one of the model's. Throws input.
void check_vocabulary(const Dataset& data, const ModelConfig& config, const std::string& path);

}  // namespace thimble::cli
