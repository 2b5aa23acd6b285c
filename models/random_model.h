// A model of any shape with random weights, without a file: random weights cost what trained ones cost. Tiles are
// filled where they lie, so no more memory is used than the model keeps.
#pragma once

#include <cstdint>
#include <string>

#include "models/model.h"
#include "models/shapes.h"

namespace thimble {

class FastRandom {  // splitmix64: filling a gigabyte must not take longer than measuring on it
 public:
  explicit FastRandom(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Uniform in [-1, 1).
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f; }

 private:
  uint64_t state_;
};

struct StoredFormat {
  WeightFormat format = WeightFormat::f32;
  int64_t group = 0;  // of tiles: columns per scale; 0: one per row
  GroupKind kind = GroupKind::zero_points;
};
// "f32", "f16", "bf16"; "q8_g128", "q4_g32", "q2_row", ... ("q8", "q4" and "q2" mean groups of 128), and with a kind:
// "q4_g32_sym", "q4_g32_min". Throws usage, with the list.
StoredFormat parse_stored_format(const std::string& text);
std::string stored_format_name(const StoredFormat& format);

// Bytes of the weights of a shape in that format; vectors are f32.
int64_t random_model_bytes(const ModelConfig& config, const StoredFormat& format);

// Fills a matrix whose rows, cols, format, group and kind are set, with f16 scales for tiles; `data` holds w.stored_bytes().
// Values have a deviation of about 1 / sqrt(cols), which keeps activations in range through many layers; never zeros,
// which show a wrong clock.
void fill_random(Weight& w, void* data, uint64_t seed);

// Every matrix, embeddings and head included, in `format`; norms are 1 and biases 0. The same seed
// gives the same bytes. The model's path is `name`. Errors: budget.
Model random_model(const std::string& name, const ShapeConfig& shape, const StoredFormat& format, uint64_t seed = 1,
                   MemoryBudget* budget = nullptr);

}  // namespace thimble
