// What every op is given: kernels, threads, memory, the tape. A context is passed, never global.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/kernel_table.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace thimble {

class Tape;

// f32: exact products. int8_act: quantized weights multiply int8 activations. bf16: bf16 products, f32 sums.
enum class Precision : uint8_t { f32, bf16, int8_act };
const char* precision_name(Precision precision);
// "f32", "bf16" or "int8_act"; throws usage for anything else.
Precision precision_of(const std::string& name);

// Sees intermediate values of a forward pass by name: calibration, layer-by-layer checks.
struct Observer {
  void (*on_value)(void* user, const char* name, int layer, const Tensor& value) = nullptr;
  void* user = nullptr;
};

struct Context {
  Context(const KernelTable& table, int n_threads, MemoryBudget* memory_budget)
      : kernels(table),
        threads(n_threads),
        budget(memory_budget),
        saved("activations", memory_budget),
        grads("gradients", memory_budget),
        scratch("scratch", memory_budget),
        replayed("replayed activations", memory_budget) {}

  KernelTable kernels;
  int threads;
  Precision precision = Precision::f32;
  MemoryBudget* budget;
  Arena saved;    // values that backward needs
  Arena grads;    // gradients of activations
  Arena scratch;  // lives within one op
  // Outputs of cheap ops that a block under Recompute::cheap does not keep: every block reuses the same addresses, and
  // backward fills them again before it walks through the block.
  Arena replayed;
  bool replay_cheap = false;
  Tape* tape = nullptr;
  bool training = false;           // dropout is on, and bf16 products have what pack() keeps rounded too
  uint64_t seed = 0, step = 0;     // of everything random in a training step
  Observer observer;

  void observe(const char* name, int layer, const Tensor& value) const {
    if (observer.on_value) observer.on_value(observer.user, name, layer, value);
  }
};

}  // namespace thimble
