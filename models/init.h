// A fresh model from a config.json: what pretraining starts from.
#pragma once

#include <cstdint>
#include <string>

#include "models/model.h"

namespace thimble {

// Matrices and embeddings are N(0, 0.02), those that write into the residual stream (o, down) are scaled by
// 1 / sqrt(2 layers); norms are 1, biases 0. Every weight draws from a stream of its own, so its values depend on seed,
// role, layer and shape only. vocab_size > 0 replaces the config's. The weights are f32 rows in the model's store.
// Errors: as load_model for config.json; budget.
Model init_model(const std::string& config_path, uint64_t seed, int64_t vocab_size = 0, MemoryBudget* budget = nullptr);

}  // namespace thimble
