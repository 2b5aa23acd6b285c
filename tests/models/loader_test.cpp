// Checkpoints that are damaged, incomplete or foreign are refused by name; what is exported loads again with the same bits.
#include "models/io/half.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

const KernelTable& kernels() {
  static const KernelTable table = build_kernel_table(best_tier());
  return table;
}

std::vector<float> logits_of_dir(const std::string& dir, bool trainable = false) {
  LoadOptions options;
  options.trainable = trainable;
  Model model = load_model(dir, kernels(), options);
  Transformer transformer(model, 16);
  Context ctx(kernels(), 2, nullptr);
  Rows rows;
  rows.add(text(1, 16, model.config.vocab_size));
  return logits_of(transformer, ctx, rows);
}

// Loading what `change` makes of a case must throw `code` with all the words in its message.
void expect_refused(const char* name, ErrorCode code, const std::vector<std::string>& words,
                    const std::function<void(Checkpoint&)>& change) {
  Checkpoint c = Checkpoint::read(oracle(name));
  change(c);
  const ScratchDir dir;
  c.write(dir.path());
  try {
    load_model(dir.path(), kernels());
    ADD_FAILURE() << "loaded, though it should name " << words.front();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    for (const std::string& w : words) EXPECT_NE(std::string(e.what()).find(w), std::string::npos) << "no " << w << " in: " << e.what();
    EXPECT_FALSE(e.hint().empty()) << e.what();
  }
}

TEST(Loader, MissingUnusedAndMisshapenTensors) {
  const char* const down = "model.layers.1.mlp.down_proj.weight";
  expect_refused("llama_gqa_untied", ErrorCode::input, {down, "missing"}, [&](Checkpoint& c) { c.erase(down); });
  expect_refused("llama_gqa_untied", ErrorCode::input, {"lm_head.weight", "missing"}, [](Checkpoint& c) { c.erase("lm_head.weight"); });
  expect_refused("llama_gqa_untied", ErrorCode::input, {"model.layers.2.extra", "not used"}, [](Checkpoint& c) {
    c.tensors.push_back({"model.layers.2.extra", SafetensorsDtype::f32, {1}, std::string(4, '\0')});
  });
  // A layer more than the config says.
  expect_refused("gpt2", ErrorCode::input, {"not used"}, [](Checkpoint& c) { c.config["n_layer"] = c.config["n_layer"].get<int>() - 1; });
  expect_refused("gpt2", ErrorCode::input, {"missing"}, [](Checkpoint& c) { c.config["n_layer"] = c.config["n_layer"].get<int>() + 1; });
  expect_refused("llama_gqa_untied", ErrorCode::input, {down, "shape"}, [&](Checkpoint& c) {
    auto& shape = c.item(down).shape;
    std::swap(shape[0], shape[1]);
  });
  expect_refused("llama_gqa_untied", ErrorCode::input, {"model.norm.weight", "shape"}, [&](Checkpoint& c) {
    c.item("model.norm.weight").shape.push_back(1);
  });
  expect_refused("gpt_neox", ErrorCode::input, {"query_key_value.bias", "shape"}, [&](Checkpoint& c) {
    Checkpoint::Item& i = c.item("gpt_neox.layers.0.attention.query_key_value.bias");
    i.shape[0] -= 4;
    i.bytes.resize(i.bytes.size() - 16);
  });
  expect_refused("llama_gqa_untied", ErrorCode::unsupported, {down, "I32"}, [&](Checkpoint& c) { c.item(down).dtype = SafetensorsDtype::i32; });
}

TEST(Loader, AbsurdConfigFields) {
  const auto refused = [](const char* name, const char* field, const nlohmann::json& value, ErrorCode code = ErrorCode::input) {
    SCOPED_TRACE(std::string(field) + " = " + value.dump());
    expect_refused(name, code, {"config.json"}, [&](Checkpoint& c) { c.config[field] = value; });
  };
  for (const nlohmann::json& v : {nlohmann::json(0), nlohmann::json(-3), nlohmann::json(1.5), nlohmann::json("64"), nlohmann::json(nullptr),
                                  nlohmann::json(int64_t{1} << 60), nlohmann::json(1e300), nlohmann::json::array({64})})
    for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"})
      refused("llama_gqa_untied", field, v);
  refused("llama_gqa_untied", "num_key_value_heads", 3);
  refused("llama_gqa_untied", "num_key_value_heads", 0);
  refused("llama_gqa_untied", "rms_norm_eps", -1);
  refused("llama_gqa_untied", "rope_theta", 0);
  refused("llama_gqa_untied", "rope_theta", "many");
  refused("llama_gqa_untied", "tie_word_embeddings", "yes");
  refused("llama_gqa_untied", "eos_token_id", "end");
  refused("llama_gqa_untied", "rope_scaling", {{"rope_type", "linear"}, {"factor", 0}});
  refused("llama_gqa_untied", "rope_scaling", {{"rope_type", "spiral"}, {"factor", 2}}, ErrorCode::unsupported);
  refused("llama_gqa_untied", "hidden_act", "sine", ErrorCode::unsupported);
  refused("llama_gqa_untied", "model_type", "abacus", ErrorCode::unsupported);
  refused("gpt_neox", "rotary_pct", 2);
  refused("gpt_neox", "rotary_pct", 0.0);
  refused("mistral_sw8", "sliding_window", -1);
  refused("gpt2", "n_positions", 0);
  refused("gpt2", "add_cross_attention", true, ErrorCode::unsupported);
  // Large, though each number alone is allowed: the shape check stops it before any memory is asked for.
  expect_refused("llama_gqa_untied", ErrorCode::input, {"shape"}, [](Checkpoint& c) { c.config["intermediate_size"] = 1 << 23; });
  expect_refused("llama_gqa_untied", ErrorCode::input, {"missing"}, [](Checkpoint& c) { c.config["num_hidden_layers"] = 4096; });
}

TEST(Loader, NotAModel) {
  const auto code_of = [](const std::string& path) {
    try {
      load_model(path, kernels());
    } catch (const Error& e) {
      return e.code();
    }
    return ErrorCode::internal;
  };
  const ScratchDir dir;
  EXPECT_EQ(code_of(dir / "absent"), ErrorCode::input);
  EXPECT_EQ(code_of(dir.path()), ErrorCode::input);
  std::ofstream(dir / "config.json") << "{";
  EXPECT_EQ(code_of(dir.path()), ErrorCode::input);
  std::ofstream(dir / "config.json") << "[1]";
  EXPECT_EQ(code_of(dir.path()), ErrorCode::input);
  std::ofstream(dir / "x.txt") << "text";
  EXPECT_EQ(code_of(dir / "x.txt"), ErrorCode::input);
  std::ofstream(dir / "x.bin") << "short";
  EXPECT_EQ(code_of(dir / "x.bin"), ErrorCode::input);
  std::ofstream(dir / "x.gguf") << "GGUF";
  EXPECT_EQ(code_of(dir / "x.gguf"), ErrorCode::input);
}

TEST(Loader, TiedWithAndWithoutHead) {
  Checkpoint c = Checkpoint::read(oracle("llama_gqa_untied"));
  c.config["tie_word_embeddings"] = true;
  const ScratchDir with;
  c.write(with.path());  // some files store the tied head as well; the config decides
  Model model = load_model(with.path(), kernels());
  EXPECT_TRUE(model.config.tied);
  EXPECT_EQ(&model.weights.head(), &model.weights.token_embed);
  c.erase("lm_head.weight");
  const ScratchDir without;
  c.write(without.path());
  EXPECT_TRUE(same_bits(logits_of_dir(with.path()), logits_of_dir(without.path())));
  // An untied model whose head equals the embedding computes the same.
  c.config["tie_word_embeddings"] = false;
  Checkpoint::Item head = c.item("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  c.tensors.push_back(head);
  const ScratchDir untied;
  c.write(untied.path());
  EXPECT_TRUE(same_bits(logits_of_dir(with.path()), logits_of_dir(untied.path())));
}

TEST(Loader, BaseModelFilesLackThePrefix) {
  for (const char* name : {"gpt2", "llama_gqa_untied", "gpt_neox", "opt_prenorm", "gptq4_g32_asym"}) {
    Checkpoint c = Checkpoint::read(oracle(name));
    const Model original = load_model(oracle(name), kernels());
    const std::string prefix = original.family->optional_prefix;
    int renamed = 0;
    for (Checkpoint::Item& i : c.tensors)
      if (i.name.rfind(prefix, 0) == 0) {
        i.name = i.name.substr(prefix.size());
        ++renamed;
      }
    EXPECT_GT(renamed, 10) << name;
    const ScratchDir dir;
    c.write(dir.path());
    if (std::filesystem::exists(oracle(name) + "/quantize_config.json"))
      std::filesystem::copy_file(oracle(name) + "/quantize_config.json", dir / "quantize_config.json");
    EXPECT_TRUE(same_bits(logits_of_dir(oracle(name)), logits_of_dir(dir.path()))) << name;
  }
}

// Truncated to f16; what is below its normal range becomes 0.
uint16_t f16_truncated(float value) {
  uint32_t word = 0;
  std::memcpy(&word, &value, 4);
  const uint32_t sign = word >> 16 & 0x8000u, exponent = word >> 23 & 0xffu;
  if (exponent < 113) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | (exponent - 112) << 10 | (word >> 13 & 0x3ffu));
}

// Half-precision files: matrices stay as they are or are widened for training, vectors become f32. The logits equal those
// of an f32 file with the rounded values.
TEST(Loader, HalfPrecisionFiles) {
  for (const char* name : {"llama_gqa_untied", "gpt_neox", "gpt2"})
    for (SafetensorsDtype dtype : {SafetensorsDtype::f16, SafetensorsDtype::bf16}) {
      Checkpoint half = Checkpoint::read(oracle(name)), full = half;
      for (size_t t = 0; t < half.tensors.size(); ++t) {
        const size_t n = full.tensors[t].bytes.size() / 4;
        std::vector<float> values(n);
        std::memcpy(values.data(), full.tensors[t].bytes.data(), n * 4);
        std::vector<uint16_t> bits(n);
        for (size_t i = 0; i < n; ++i) {
          if (dtype == SafetensorsDtype::bf16) {
            uint32_t word = 0;
            std::memcpy(&word, &values[i], 4);
            bits[i] = static_cast<uint16_t>(word >> 16);
            word &= 0xffff0000u;
            std::memcpy(&values[i], &word, 4);
          } else {
            bits[i] = f16_truncated(values[i]);
            values[i] = io_detail::f16_to_f32(bits[i]);
          }
        }
        half.tensors[t].dtype = dtype;
        half.tensors[t].bytes.assign(reinterpret_cast<const char*>(bits.data()), n * 2);
        full.tensors[t].bytes.assign(reinterpret_cast<const char*>(values.data()), n * 4);
      }
      const ScratchDir a, b;
      half.write(a.path());
      full.write(b.path());
      Model model = load_model(a.path(), kernels());
      for_each_weight(model.weights, [&](Role role, int64_t, const Weight& w) {
        const bool vector = role_shape(model.config, role).vector;
        EXPECT_EQ(w.format, vector ? WeightFormat::f32 : dtype == SafetensorsDtype::f16 ? WeightFormat::f16 : WeightFormat::bf16)
            << role_name(role);
      });
      const std::vector<float> want = logits_of_dir(b.path());
      EXPECT_TRUE(same_bits(want, logits_of_dir(a.path(), true))) << name << ", widened";
      const std::vector<float> stored = logits_of_dir(a.path());
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(want[i], stored[i], 1e-4) << name;
      LoadOptions trainable;
      trainable.trainable = true;
      Model wide = load_model(a.path(), kernels(), trainable);
      for_each_weight(wide.weights, [&](Role role, int64_t, const Weight& w) { EXPECT_EQ(w.format, WeightFormat::f32) << role_name(role); });
      EXPECT_NO_THROW(enable_gradients(wide));
      EXPECT_THROW(enable_gradients(model), Error);
    }
}

// What is exported, fused and transposed as the family wants it, loads again and computes the same bits.
TEST(Loader, ExportLoadsAgain) {
  for (const std::string& from : case_dirs(oracle(""))) {
    Model model = load_model(from, kernels());
    std::vector<ExportedTensor> exported;
    export_tensors(model, kernels(), ExportWhat::weights, [&](const ExportedTensor& t) { exported.push_back(t); });
    std::vector<NamedTensor> tensors;
    for (const ExportedTensor& t : exported) {
      tensors.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
      EXPECT_EQ(export_tensor(model, kernels(), t.name).data, t.data) << t.name;
    }
    EXPECT_TRUE(export_tensor(model, kernels(), "no.such.tensor").data.empty());
    const ScratchDir dir;
    nlohmann::json config = read_json(from + "/config.json");
    config.erase("quantization_config");
    write_json(dir / "config.json", config);
    write_safetensors(dir / "model.safetensors", tensors);
    const std::vector<float> want = logits_of_dir(from), got = logits_of_dir(dir.path());
    if (model.quantization.empty()) {
      EXPECT_TRUE(same_bits(want, got)) << base_name(from);
    } else {
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(want[i], got[i], 1e-4) << base_name(from);
    }
    // And tensor by tensor what the file held, name by name.
    if (!model.quantization.empty()) continue;
    const SafetensorsSet before(from), after(dir.path());
    for (const std::string& name : after.names()) {
      const TensorView a = before.view(name), b = after.view(name);
      EXPECT_EQ(a.info->shape, b.info->shape) << name;
      EXPECT_EQ(std::memcmp(a.data, b.data, a.info->bytes), 0) << name;
    }
  }
}

TEST(Loader, CountsAndBudget) {
  MemoryBudget budget(10'000);
  LoadOptions options;
  options.trainable = true;
  options.budget = &budget;
  try {
    load_model(oracle("gpt2"), kernels(), options);
    ADD_FAILURE() << "loaded into 10 kB";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::budget) << e.what();
  }
  EXPECT_EQ(budget.used(), 0);
  const Model model = load_model(oracle("llama_gqa_untied"), kernels());
  int64_t elements = 0;
  const SafetensorsSet set(oracle("llama_gqa_untied"));
  for (const std::string& name : set.names()) elements += set.find(name)->elements();
  EXPECT_EQ(model.parameters(), elements);
  EXPECT_EQ(model.stored_bytes(), elements * 4);
}

}  // namespace
}  // namespace thimble::models_test
