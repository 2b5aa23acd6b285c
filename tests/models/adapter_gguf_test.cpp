// LoRA adapters in GGUF: what is written reads back as the same adapter, and the rows of q and k lie as llama.cpp wants them.
#include "models/adapter_gguf.h"
#include "models/io/gguf.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

std::unique_ptr<Adapter> random_lora(const Model& model, const KernelTable& kernels, AdapterOptions o = {}) {
  o.rank = 3;
  o.alpha = 5;
  o.targets = "all-linear";
  auto adapter = std::make_unique<Adapter>(model, kernels, o);
  Philox rng(1, 99);
  adapter->for_each_parameter([&](const std::string&, Weight& w) {
    auto* data = static_cast<float*>(const_cast<void*>(w.data));
    for (int64_t i = 0; i < w.numel(); ++i) data[i] += static_cast<float>(0.1 * rng.normal());
  });
  return adapter;
}

std::vector<float> adapted_logits(Transformer& transformer, Context& ctx, Adapter& adapter, const std::vector<int32_t>& ids) {
  Rows rows;
  rows.add(ids);
  Batch batch = rows.batch();
  const AdapterSegment segment{0, batch.n, &adapter};
  batch.segments = &segment;
  batch.n_segments = 1;
  const ArenaScope scope(ctx.saved);
  const Var y = transformer.logits(ctx, transformer.forward(ctx, batch));
  return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
}

TEST(AdapterGguf, WrittenAdapterReadsBack) {
  for (const char* name : {"llama_gqa_untied", "gpt2", "gpt_neox", "qwen2", "mistral_sw8", "falcon_mqa", "gemma_mqa"}) {
    Engine e;
    Model model = load_model(oracle(name), e.kernels);
    Transformer transformer(model, 32);
    const auto adapter = random_lora(model, e.kernels);
    const ScratchDir dir;
    write_gguf_adapter(model, *adapter, dir / "adapter.gguf");
    const GgufFile file(dir / "adapter.gguf");
    EXPECT_EQ(file.get_string("general.type"), "adapter") << name;
    EXPECT_EQ(file.get_string("adapter.type"), "lora") << name;
    EXPECT_EQ(file.get_float("adapter.lora.alpha"), 5.0) << name;
    Adapter loaded(model, e.kernels, dir / "adapter.gguf");
    const std::vector<int32_t> ids = text(1, 12, model.config.vocab_size);
    EXPECT_TRUE(same_bits(adapted_logits(transformer, *e.ctx, *adapter, ids), adapted_logits(transformer, *e.ctx, loaded, ids))) << name;
  }
}

// Modules with ranks and scales of their own: the format has one alpha, so B takes up the difference.
TEST(AdapterGguf, ScalesOfModules) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  Transformer transformer(model, 32);
  const auto plain = random_lora(model, e.kernels);
  const ScratchDir dir;
  plain->save(dir.path(), "base");
  nlohmann::json config = read_json(dir / "adapter_config.json");
  config["alpha_pattern"] = {{"v_proj", 12}, {"layers.1.mlp.down_proj", 1}};
  config["use_rslora"] = true;
  write_json(dir / "adapter_config.json", config);
  Adapter adapter(model, e.kernels, dir.path());
  write_gguf_adapter(model, adapter, dir / "adapter.gguf");
  Adapter loaded(model, e.kernels, dir / "adapter.gguf");
  const std::vector<int32_t> ids = text(1, 12, model.config.vocab_size);
  const std::vector<float> want = adapted_logits(transformer, *e.ctx, adapter, ids), got = adapted_logits(transformer, *e.ctx, loaded, ids);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5);
}

TEST(AdapterGguf, QueryRowsAreRotaryPairs) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  const auto adapter = random_lora(model, e.kernels);
  const ScratchDir dir;
  write_gguf_adapter(model, *adapter, dir / "adapter.gguf");
  const GgufFile file(dir / "adapter.gguf");
  const GgufTensor* b = file.find_tensor("blk.1.attn_q.weight.lora_b");
  ASSERT_TRUE(b && file.find_tensor("blk.1.attn_q.weight.lora_a"));
  EXPECT_EQ(b->dims, (std::vector<int64_t>{3, 64}));
  std::vector<float> rows(3 * 64);
  std::memcpy(rows.data(), file.data(*b), rows.size() * sizeof(float));
  const float* mine = adapter->module(1, Role::q_w).lora_b->f32();
  // Heads of 16: row 2 j + h of the file is row j + 8 h of Hugging Face.
  for (int head = 0; head < 4; ++head)
    for (int j = 0; j < 8; ++j)
      for (int h = 0; h < 2; ++h)
        for (int k = 0; k < 3; ++k) EXPECT_EQ(rows[size_t((head * 16 + 2 * j + h) * 3 + k)], mine[(head * 16 + j + 8 * h) * 3 + k]);
  const GgufTensor* v = file.find_tensor("blk.1.attn_v.weight.lora_b");
  ASSERT_TRUE(v);
  EXPECT_EQ(std::memcmp(file.data(*v), adapter->module(1, Role::v_w).lora_b->data, v->bytes), 0);
}

TEST(AdapterGguf, WhatTheFormatCannotSayIsRefused) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels), opt = load_model(oracle("opt_prenorm"), e.kernels);
  const ScratchDir dir;
  const auto code = [&](const std::function<void()>& run) {
    try {
      run();
    } catch (const Error& error) {
      return static_cast<int>(error.code());
    }
    return 0;
  };
  for (AdapterKind kind : {AdapterKind::ia3, AdapterKind::prompt, AdapterKind::prefix}) {
    AdapterOptions o;
    o.kind = kind;
    const Adapter adapter(model, e.kernels, o);
    EXPECT_EQ(code([&] { write_gguf_adapter(model, adapter, dir / "a.gguf"); }), 5) << adapter_kind_name(kind);
  }
  AdapterOptions dora, saved;
  dora.dora = true;
  saved.modules_to_save = {"lm_head"};
  for (const AdapterOptions& o : {dora, saved}) {
    const Adapter adapter(model, e.kernels, o);
    EXPECT_EQ(code([&] { write_gguf_adapter(model, adapter, dir / "a.gguf"); }), 5);
  }
  const auto lora = random_lora(opt, e.kernels);
  EXPECT_EQ(code([&] { write_gguf_adapter(opt, *lora, dir / "a.gguf"); }), 5);  // llama.cpp has no OPT
  const auto good = random_lora(model, e.kernels);
  write_gguf_adapter(model, *good, dir / "a.gguf");
  Model neox = load_model(oracle("gpt_neox"), e.kernels);
  EXPECT_EQ(code([&] { Adapter(neox, e.kernels, dir / "a.gguf"); }), 3);
}

}  // namespace
}  // namespace thimble::models_test
