// adapter_config.json over a fixed tiny model and fixed adapter tensors: targets, patterns, ranks, kinds. Behind a NUL
// byte a safetensors file may follow that replaces the fixed tensors.
#include "models/adapter.h"
#include "models/init.h"
#include "models/io/safetensors.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {
namespace {

constexpr const char* kConfig =
    R"({"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": false})";

// LoRA of rank 2 on q_proj and v_proj, as PEFT names it.
void write_tensors(const std::string& path) {
  static const std::vector<float> values(64, 0.25f);
  std::vector<NamedTensor> tensors;
  for (const char* layer : {"0", "1"})
    for (const bool q : {true, false}) {
      const std::string name =
          std::string("base_model.model.model.layers.") + layer + ".self_attn." + (q ? "q" : "v") + "_proj.";
      tensors.push_back({name + "lora_A.weight", SafetensorsDtype::f32, {2, 8}, values.data()});
      tensors.push_back({name + "lora_B.weight", SafetensorsDtype::f32, {q ? 8 : 4, 2}, values.data()});
    }
  write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace

bool fuzz_adapter_config(std::string_view bytes) {
  static const KernelTable kernels = build_kernel_table(Tier::ref, nullptr, 0);
  static const Model model = init_model(scratch_file("config.json", kConfig), 1);
  const Halves halves = split_at_nul(bytes);
  static bool fixed_tensors = false;
  if (!halves.second.empty()) {
    scratch_file("adapter_model.safetensors", halves.second);
    fixed_tensors = false;
  } else if (!fixed_tensors) {
    write_tensors(scratch_folder() + "/adapter_model.safetensors");
    fixed_tensors = true;
  }
  scratch_file("adapter_config.json", halves.first);
  MemoryBudget budget(int64_t{256} << 20);
  return accepts([&] {
    const Adapter adapter(model, kernels, scratch_folder(), &budget);
    expect(adapter.parameters() >= 0, "a count of parameters");
  });
}

}  // namespace thimble::fuzz
