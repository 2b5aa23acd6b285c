// GGUF files as models: the reference files of llama.cpp's own quantizer, every family's tensors and settings there and
// back, row orders by hand, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "kernels/kernel_table.h"
#include "models/gguf_arch.h"
#include "models/gguf_export.h"
#include "models/gguf_model.h"
#include "models/llama2c_export.h"
#include "models/model.h"
#include "models/model_source.h"
#include "models/transformer.h"
#include "tensor/error.h"
#include "tests/io/gguf_bytes.h"
#include "tests/models/small_families.h"
#include "tests/models/support.h"
#include "tests/scratch_dir.h"

namespace thimble {
namespace {

using namespace models_test;
using io_test::GgufBytes;

std::string shared_path(const std::string& path) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + path; }

std::string zeros(size_t floats) { return std::string(4 * floats, '\0'); }

// A llama of one layer: 2 heads of 4 over hidden 8, one key/value head, vocabulary 3.
GgufBytes small_llama() {
  GgufBytes b;
  b.text("general.architecture", "llama");
  b.u32("llama.context_length", 16);
  b.u32("llama.embedding_length", 8);
  b.u32("llama.block_count", 1);
  b.u32("llama.feed_forward_length", 8);
  b.u32("llama.attention.head_count", 2);
  b.u32("llama.attention.head_count_kv", 1);
  b.u32("llama.rope.dimension_count", 4);
  b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  b.f32("llama.rope.freq_base", 500000.0f);
  b.u32("tokenizer.ggml.bos_token_id", 1);
  b.u32("tokenizer.ggml.eos_token_id", 2);
  b.tensor("token_embd.weight", {8, 3}, 0, zeros(24));
  b.tensor("blk.0.attn_norm.weight", {8}, 0, zeros(8));
  std::string q, k;
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) io_test::put(q, static_cast<float>(10 * r + c));
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 8; ++c) io_test::put(k, static_cast<float>(100 + 10 * r + c));
  b.tensor("blk.0.attn_q.weight", {8, 8}, 0, q);
  b.tensor("blk.0.attn_k.weight", {8, 4}, 0, k);
  b.tensor("blk.0.attn_v.weight", {8, 4}, 0, zeros(32));
  b.tensor("blk.0.attn_output.weight", {8, 8}, 0, zeros(64));
  b.tensor("blk.0.ffn_norm.weight", {8}, 0, zeros(8));
  b.tensor("blk.0.ffn_gate.weight", {8, 8}, 0, zeros(64));
  b.tensor("blk.0.ffn_up.weight", {8, 8}, 0, zeros(64));
  b.tensor("blk.0.ffn_down.weight", {8, 8}, 0, zeros(64));
  b.tensor("output_norm.weight", {8}, 0, zeros(8));
  return b;
}

std::string written(const ScratchDir& dir, const GgufBytes& b) {
  const std::string path = dir.path() + "/x.gguf", bytes = b.bytes();
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

TEST(GgufModel, TranslatesNamesSettingsAndRows) {
  const ScratchDir dir;
  const GgufModel m(written(dir, small_llama()));
  EXPECT_EQ(m.config()["model_type"], "llama");
  EXPECT_EQ(m.config()["vocab_size"], 3);
  EXPECT_EQ(m.config()["num_key_value_heads"], 1);
  EXPECT_EQ(m.config()["rms_norm_eps"], 1e-5);
  EXPECT_EQ(m.config()["rope_theta"], 500000.0);
  EXPECT_EQ(m.config()["tie_word_embeddings"], true);
  EXPECT_EQ(m.config()["eos_token_id"], 2);
  EXPECT_EQ(m.coded(), nullptr);
  // The pairs (0, 1), (2, 3) of a head of 4 become (0, 2), (1, 3): rows 0 2 1 3.
  const TensorView q = m.find_view("model.layers.0.self_attn.q_proj.weight");
  ASSERT_TRUE(q);
  const auto* v = reinterpret_cast<const float*>(q.data);
  const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (int r = 0; r < 8; ++r) EXPECT_EQ(v[8 * r + 1], static_cast<float>(10 * order[r] + 1));
  EXPECT_EQ(reinterpret_cast<const float*>(m.find_view("model.layers.0.self_attn.k_proj.weight").data)[8], 120.0f);
  EXPECT_TRUE(m.has("model.layers.0.post_attention_layernorm.weight"));
  EXPECT_FALSE(m.has("lm_head.weight"));
  const Model loaded = load_model(dir.path() + "/x.gguf", build_kernel_table(Tier::ref));
  EXPECT_EQ(loaded.config.rope.theta, 500000.0);
  EXPECT_TRUE(loaded.config.tied);
}

TEST(GgufModel, PutsFusedRowsWhereHuggingFaceHasThem) {
  const HeadSizes heads{4, 2, 2};
  // Two groups of two query heads: [q q k v] [q q k v] there; q q q q k k v v here.
  const std::vector<int32_t> map = gguf_row_map(GgufChange::per_head, heads, 16);
  EXPECT_EQ(map, (std::vector<int32_t>{0, 1, 2, 3, 8, 9, 12, 13, 4, 5, 6, 7, 10, 11, 14, 15}));
  EXPECT_EQ(gguf_row_map(GgufChange::only_k, heads, 4), (std::vector<int32_t>{8, 9, 10, 11}));
  EXPECT_EQ(gguf_row_map(GgufChange::only_v, heads, 4), (std::vector<int32_t>{12, 13, 14, 15}));
  EXPECT_TRUE(gguf_row_map(GgufChange::none, heads, 4).empty());
}

template <class F>
void refused(ErrorCode code, const std::vector<std::string>& parts, F change) {
  const ScratchDir dir;
  GgufBytes b = small_llama();
  change(b);
  const std::string path = written(dir, b);
  try {
    load_model(path, build_kernel_table(Tier::ref));
    ADD_FAILURE() << "accepted: " << parts[0];
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << part << "\nin: " << e.what();
  }
}

std::string& bytes_of_key(GgufBytes& b) { return b.keys; }
void replace(std::string& where, const std::string& from, const std::string& to) {
  const size_t at = where.find(from);
  ASSERT_NE(at, std::string::npos);
  where.replace(at, from.size(), to);
}

TEST(GgufModel, RefusesByName) {
  refused(ErrorCode::unsupported, {"architecture", "mamba"},
          [](GgufBytes& b) { replace(bytes_of_key(b), "llama", "mamba"); });
  refused(ErrorCode::unsupported, {"general.type", "adapter"}, [](GgufBytes& b) { b.text("general.type", "adapter"); });
  refused(ErrorCode::unsupported, {"rotary scaling", "spiral"},
          [](GgufBytes& b) { b.text("llama.rope.scaling.type", "spiral"); });
  refused(ErrorCode::unsupported, {"\"odd\"", "IQ4_XS"},
          [](GgufBytes& b) { b.tensor("odd", {256}, 23, std::string(136, '\0')); });
  refused(ErrorCode::input, {"not used", "odd"}, [](GgufBytes& b) { b.tensor("odd", {2}, 0, zeros(2)); });
  refused(ErrorCode::input, {"blk.0.attn_k.weight", "its heads imply 4"}, [](GgufBytes& b) {
    b.tensors[3].dims = {4, 8};
  });
  refused(ErrorCode::input, {"up_proj", "missing"}, [](GgufBytes& b) { b.tensors[8].name = "blk.1.ffn_up.weight"; });
  refused(ErrorCode::input, {"rope_freqs", "expected 2 numbers"},
          [](GgufBytes& b) { b.tensor("rope_freqs.weight", {3}, 0, zeros(3)); });
  refused(ErrorCode::input, {"rope_freqs", "positive"},
          [](GgufBytes& b) { b.tensor("rope_freqs.weight", {2}, 0, zeros(2)); });
}

TEST(GgufModel, FactorsOfFrequenciesAreScaling) {
  const ScratchDir dir;
  GgufBytes b = small_llama();
  std::string factors;
  io_test::put(factors, 1.0f);
  io_test::put(factors, 8.0f);
  b.tensor("rope_freqs.weight", {2}, 0, factors);
  const Model m = load_model(written(dir, b), build_kernel_table(Tier::ref));
  const RopeFrequencies f = rope_frequencies(m.config.rope, 8);
  EXPECT_FLOAT_EQ(f.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(f.inv_freq[1], static_cast<float>(1 / std::sqrt(500000.0) / 8));
  EXPECT_EQ(f.attention_factor, 1.0f);
}

// Every family with a place in GGUF goes there as f32 and comes back with the same tensors, bit for bit (GgufExport
// itself compares what the file says of the network).
void there_and_back(const std::string& original) {
  SCOPED_TRACE(original);
  const ScratchDir dir;
  const ModelSource before(original);
  const std::string path = dir.path() + "/m.gguf";
  GgufExport(before, GgmlType::f32).write(path, "", {});
  const ModelSource after(path);
  ASSERT_EQ(after.tensors().size(), before.tensors().size());
  for (size_t i = 0; i < before.tensors().size(); ++i) {
    const SourceTensor &a = before.tensors()[i], &b = after.tensors()[i];
    ASSERT_EQ(a.name, b.name);
    ASSERT_EQ(a.shape, b.shape);
    const std::vector<float> x = before.read_f32(a), y = after.read_f32(b);
    const bool offset = before.config().norm_offset != 0 && a.shape.size() == 1;
    for (size_t k = 0; k < x.size(); ++k) {
      if (offset)
        ASSERT_NEAR(x[k], y[k], 2e-7) << a.name;
      else
        ASSERT_EQ(x[k], y[k]) << a.name << " " << k;
    }
  }
}

TEST(GgufModel, FamiliesGoThereAndBack) {
  const std::string folder = shared_path("oracle/hf");
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "not here: " << folder;
  for (const char* name :
       {"llama_gqa_untied", "llama_mha_tied", "llama_attn_bias", "llama_rope_llama3", "qwen2", "gemma_mqa", "gpt2",
        "gpt_neox", "gpt_neox_sequential", "phi", "phi3", "stablelm", "falcon_mqa"})
    there_and_back(folder + "/" + name);
}

// The families and styles that no reference file shows; llama.cpp has no place for some of them.
TEST(GgufModel, SmallFamiliesGoThereAndBackOrAreRefused) {
  const std::set<std::string> refused = {"qwen2, windows in some layers",
                                         "gemma2",
                                         "gemma3",
                                         "phi, norms on queries and keys",
                                         "opt, 350M style",
                                         "gptj",
                                         "falcon, RW style"};
  Engine e;
  std::vector<SmallFamily> families = small_families();
  // As the two are published, which is all that llama.cpp knows of them.
  families.push_back({"gemma2, published scale",
                      R"({"model_type": "gemma2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
           "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6,
           "max_position_embeddings": 64, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0})"});
  families.push_back({"gemma3, published windows",
                      R"({"model_type": "gemma3_text", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
           "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 6,
           "max_position_embeddings": 64, "query_pre_attn_scalar": 16, "rope_theta": 1000000, "rope_local_base_freq": 10000,
           "rope_scaling": {"rope_type": "linear", "factor": 8.0}})"});
  for (const SmallFamily& family : families) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Model model = small_model(family, dir);
    save_weights(model, e.kernels, dir.path());
    const std::string path = dir / "m.gguf";
    const ModelSource source(dir.path());
    if (refused.count(family.name)) {
      try {
        GgufExport(source, GgmlType::f32).write(path, "", {});
        ADD_FAILURE() << "was written";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
      }
      EXPECT_FALSE(std::filesystem::exists(path));
      continue;
    }
    GgufExport(source, GgmlType::f32).write(path, "", {});
    Model back = load_model(path, e.kernels);
    Rows rows;
    rows.add(text(3, 20, 61));
    rows.add(text(4, 9, 61));
    Transformer one(model, 20), two(back, 20);
    const std::vector<float> x = logits_of(one, *e.ctx, rows), y = logits_of(two, *e.ctx, rows);
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], 2e-4);
  }
}

// llama.cpp multiplies by norms, those of heads as well, and wants them in f32 whatever the matrices are.
TEST(GgufModel, NormsStayFloats) {
  Engine e;
  for (const SmallFamily& family : small_families()) {
    if (std::string(family.name) != "cohere, large style" && std::string(family.name) != "qwen3") continue;
    const ScratchDir dir;
    Model model = small_model(family, dir);
    save_weights(model, e.kernels, dir.path());
    const ModelSource source(dir.path());
    const GgufExport out(source, GgmlType::q8_0);
    size_t norms = 0;
    for (const GgufExportTensor& t : out.tensors()) {
      const bool norm = t.name.find("_norm.") != std::string::npos;
      EXPECT_EQ(t.type == GgmlType::f32, norm) << family.name << " " << t.name;
      norms += t.name.find("attn_q_norm") != std::string::npos;
    }
    EXPECT_EQ(norms, 3u) << family.name;
  }
}

// Files from before the keys were known: what llama.cpp takes then.
TEST(GgufModel, Gemma2WithoutItsKeys) {
  const auto config = [](bool with_keys) {
    GgufBytes b;
    b.text("general.architecture", "gemma2");
    for (const auto& [key, value] : {std::pair{"context_length", 64u}, {"embedding_length", 8u}, {"block_count", 1u}, {"feed_forward_length", 8u},
                                     {"attention.head_count", 2u}, {"attention.head_count_kv", 1u}, {"attention.key_length", 4u}})
      b.u32(std::string("gemma2.") + key, value);
    b.f32("gemma2.attention.layer_norm_rms_epsilon", 1e-6f);
    if (with_keys) {
      b.u32("gemma2.attention.sliding_window", 16);
      b.f32("gemma2.attn_logit_softcapping", 5.0f);
      b.f32("gemma2.final_logit_softcapping", 3.0f);
    }
    b.tensor("token_embd.weight", {8, 3}, 0, zeros(24));
    const ScratchDir dir;
    return gguf_config(GgufFile(written(dir, b)));
  };
  const nlohmann::json old = config(false), own = config(true);
  EXPECT_EQ(old["sliding_window"], 4096);
  EXPECT_EQ(old["attn_logit_softcapping"], 50.0);
  EXPECT_EQ(old["final_logit_softcapping"], 30.0);
  EXPECT_EQ(own["sliding_window"], 16);
  EXPECT_EQ(own["attn_logit_softcapping"], 5.0);
  EXPECT_EQ(own["final_logit_softcapping"], 3.0);
}

TEST(GgufModel, ReferenceFilesGiveTheirLogits) {
  const std::string folder = shared_path("oracle/gguf");
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "not here: " << folder;
  for (const char* name : {"f16", "q4_0", "q4_k", "q5_1", "q6_k", "q8_0"}) {
    SCOPED_TRACE(name);
    Engine e;
    Model m = load_model(folder + "/" + name, e.kernels);
    EXPECT_FALSE(m.config.rope.interleaved);
    const GgufModel file(gguf_path(folder + std::string("/") + name));
    const ExportedTensor t = export_tensor(m, e.kernels, "model.layers.1.mlp.down_proj.weight");
    EXPECT_EQ(t.data, file.read_f32(*file.entry_of("blk.1.ffn_down.weight")));
    const SafetensorsFile expected(folder + std::string("/") + name + "/expected.safetensors");
    const TensorView ids = expected.view("input_ids");
    std::vector<int64_t> wide(static_cast<size_t>(ids.info->elements()));
    ids.read_i64(wide.data());
    const auto n = static_cast<size_t>(ids.info->shape[1]);
    Rows rows;
    for (size_t at = 0; at < wide.size(); at += n)
      rows.add({wide.begin() + static_cast<std::ptrdiff_t>(at), wide.begin() + static_cast<std::ptrdiff_t>(at + n)});
    Transformer transformer(m, static_cast<int64_t>(n));
    const std::vector<float> got = logits_of(transformer, *e.ctx, rows);
    std::vector<float> want(got.size());
    ASSERT_EQ(static_cast<size_t>(expected.find("logits")->elements()), want.size());
    expected.view("logits").read_f32(want.data());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4) << i;
  }
}

TEST(Llama2cExport, RoundTrip) {
  const std::string path = shared_path("data/models/stories260K/stories260K.bin");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << path;
  const ScratchDir dir;
  const std::string out = dir.path() + "/m.bin";
  write_llama2c(ModelSource(path), out, {});
  std::ifstream a(path, std::ios::binary), b(out, std::ios::binary);
  const std::string x((std::istreambuf_iterator<char>(a)), {}), y((std::istreambuf_iterator<char>(b)), {});
  ASSERT_EQ(x.size(), y.size());
  const Llama2cFile f(path);
  const auto tables =
      static_cast<size_t>(f.max_seq_len * f.head_dim()) * 4;  // computed by another program: not compared
  EXPECT_EQ(x.substr(0, x.size() - tables), y.substr(0, y.size() - tables));
  // Its GGUF of other hands has the same rows.
  const std::string gguf = shared_path("data/models/stories260K/stories260K.gguf");
  const ModelSource plain(path), other(gguf);
  for (const SourceTensor& p : plain.tensors())
    for (const SourceTensor& g : other.tensors())
      if (p.name == g.name) EXPECT_EQ(plain.read_f32(p), other.read_f32(g)) << p.name;
  EXPECT_EQ(other.tensors().size(), plain.tensors().size() + 1);  // it repeats the embeddings as the head
}

}  // namespace
}  // namespace thimble
