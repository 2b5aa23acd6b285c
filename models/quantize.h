// Packs the linear weights of a loaded model into q8, q4 or q2 tiles, round to nearest: the quick way to a small base for
// adapters and decoding. Embeddings, head and norms stay as they are.
#pragma once

#include <cstdint>
#include <string>

#include "models/model.h"

namespace thimble {

struct LoadFormat {
  int bits = 0;       // 0: as stored; 8, 4 or 2
  int64_t group = 0;  // columns per scale; 0: one per row
  GroupKind kind = GroupKind::zero_points;
};

// "" or "stored"; "q8", "q4", "q2" (group 128), "q8-row", "q4-g32", "q4-g64", ..., and with a kind: "q4-g32-sym", "-min".
// Throws usage, listing the forms.
LoadFormat parse_load_format(const std::string& text);

// Linears of layers, which are packed; embeddings, head, routers and vectors are not.
bool is_packable(const ModelConfig& config, Role role);

// Rounds a matrix in floats to nearest. format.bits > 0, 3 too.
TileStorage round_weight(const Weight& weight, const KernelTable& kernels, const LoadFormat& format, int threads,
                         MemoryBudget* budget);

// Weights that are packed already, and trainable models, are left alone. One matrix at a time is unpacked in f32.
void quantize_model(Model& model, const KernelTable& kernels, const LoadFormat& format, MemoryBudget* budget = nullptr,
                    int threads = 1);

// Tells the system that the memory behind a weight is not needed any more: mapped pages would count as resident until
// memory runs short, and what the model allocated is freed with it only. The contents are lost.
void release_weight_pages(const Weight& weight);

}  // namespace thimble
