// LoRA adapters in GGUF, as llama.cpp's converter writes them: general.type adapter, adapter.type lora, adapter.lora.alpha,
// and two tensors for each weight of the base, NAME.lora_a [rank, in] and NAME.lora_b [out, rank].
#pragma once

#include <memory>
#include <string>

#include "models/adapter.h"
#include "models/io/tensor_source.h"

namespace thimble {

// What the file means as an adapter of this base, in PEFT's terms.
struct GgufAdapter {
  AdapterConfig config;
  std::unique_ptr<TensorSource> tensors;
};
// Errors: input with file and tensor; unsupported for adapters of other kinds and for weights that LoRA cannot have here.
GgufAdapter read_gguf_adapter(const Model& model, const std::string& path);

// F32. Scales that differ between modules go into B. Throws unsupported for what the format cannot say: DoRA, IA3, prompts,
// whole modules, adapters of embeddings, families without an architecture in llama.cpp.
void write_gguf_adapter(const Model& model, const Adapter& adapter, const std::string& path);

}  // namespace thimble
