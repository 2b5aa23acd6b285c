// The packed store: what was written is mapped and computes the same bits, an import that streams writes the same file, it
// converts back without loss, and a damaged one is refused by name.
#include "models/packed_store.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <map>

#include "models/gguf_export.h"
#include "models/io/ggml_encode.h"
#include "models/llama2c_export.h"
#include "models/model_source.h"
#include "models/packed.h"
#include "models/unpack.h"
#include "quant/rtn.h"
#include "tensor/env.h"
#include "tensor/rng.h"
#include "tests/models/small_families.h"

namespace thimble::models_test {
namespace {

using Json = nlohmann::ordered_json;

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The same weights bit by bit, and none of them copied.
void expect_mapped_twin(const Model& model, const Model& store) {
  int64_t weights = 0;
  for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
    SCOPED_TRACE(weight_name(role, place));
    const Weight& v = store.weights.at(role, place);
    ASSERT_TRUE(v);
    ++weights;
    EXPECT_EQ(v.format, w.format);
    EXPECT_EQ(v.rows, w.rows);
    EXPECT_EQ(v.cols, w.cols);
    ASSERT_EQ(v.stored_bytes(), w.stored_bytes());
    if (!is_tiled(w.format)) {
      EXPECT_EQ(std::memcmp(v.data, w.data, w.stored_bytes()), 0);
      return;
    }
    EXPECT_EQ(reinterpret_cast<uintptr_t>(v.data) % 64, 0u);
    EXPECT_EQ(v.kind, w.kind);
    EXPECT_EQ(v.zero, w.zero);
    EXPECT_EQ(v.scale_f32, w.scale_f32);
    const TileGeometry g = w.geometry();
    EXPECT_EQ(std::memcmp(v.data, w.data, g.code_bytes), 0);
    EXPECT_EQ(std::memcmp(v.scales, w.scales, g.scale_bytes), 0);
    if (w.zeros) EXPECT_EQ(std::memcmp(v.zeros, w.zeros, g.offset_bytes), 0);
    if (w.mins) EXPECT_EQ(std::memcmp(v.mins, w.mins, g.offset_bytes), 0);
    ASSERT_EQ(v.perm != nullptr, w.perm != nullptr);
    if (w.perm) EXPECT_EQ(std::memcmp(v.perm, w.perm, size_t(w.cols) * 4), 0);
  });
  int64_t there = 0;
  for_each_weight(store.weights, [&](Role, int64_t, const Weight&) { ++there; });
  EXPECT_EQ(there, weights);
  EXPECT_LE(store.store.bytes(), int64_t{1} << 20);  // vectors that are 16 bits in the file
}

TEST(PackedStore, EveryFamilyIsMappedWithTheSameBits) {
  for (const SmallFamily& family : small_families())
    for (const char* name : {"q4-g32", "q8-row-sym", "q2-g32-min", "stored"}) {
      SCOPED_TRACE(std::string(family.name) + " " + name);
      Engine e;
      const ScratchDir base, out, imported;
      Model model = small_model(family, base);
      save_weights(model, e.kernels, base.path());
      const LoadFormat format = parse_load_format(name);
      quantize_model(model, e.kernels, format);
      const Json config = Json::parse(family.config);
      const StoreReport r = write_packed_store(out.path(), model, e.kernels, config, {});
      EXPECT_EQ(r.bytes, model.stored_bytes());
      ASSERT_TRUE(is_packed_store(out.path()));
      Model again = load_model(out.path(), e.kernels);
      expect_mapped_twin(model, again);
      if (!model.config.bidirectional) EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
      // One tensor at a time: the same file.
      StoreImport options;
      options.linears = format;
      options.threads = 2;
      options.dry_run = true;
      const StoreReport planned = import_packed_store(imported / "dry", ModelSource(base.path()), e.kernels, options);
      EXPECT_FALSE(std::filesystem::exists(imported / "dry"));
      options.dry_run = false;
      const StoreReport s = import_packed_store(imported / "real", ModelSource(base.path()), e.kernels, options);
      EXPECT_EQ(planned.bytes, r.bytes);
      EXPECT_EQ(s.bytes, r.bytes);
      EXPECT_EQ(s.kept, 0);
      EXPECT_EQ(s.rounded, r.kept);
      EXPECT_TRUE(content(imported / "real/model.safetensors") == content(out / "model.safetensors"));
      EXPECT_EQ(read_json(imported / "real/config.json"), read_json(out / "config.json"));
    }
}

// Back to a Hugging Face directory: plain tensors bit by bit, codes as what they stand for.
void expect_same_tensors(const std::string& a, const std::string& b) {
  const ModelSource x(a), y(b);
  ASSERT_EQ(x.tensors().size(), y.tensors().size());
  for (size_t i = 0; i < x.tensors().size(); ++i) {
    const SourceTensor &s = x.tensors()[i], &t = y.tensors()[i];
    EXPECT_EQ(s.name, t.name);
    EXPECT_EQ(s.shape, t.shape);
    EXPECT_EQ(s.coded, t.coded) << s.name;
    EXPECT_TRUE(same_bits(x.read_f32(s), y.read_f32(t))) << s.name;
    if (s.coded) {
      const CodedLinear p = x.read_codes(s), q = y.read_codes(t);
      EXPECT_EQ(p.codes, q.codes) << s.name;
      EXPECT_EQ(p.perm, q.perm) << s.name;
    } else {
      EXPECT_EQ(s.dtype, t.dtype) << s.name;
    }
  }
  EXPECT_EQ(x.json(), y.json());
}

TEST(PackedStore, ImportsKeepCodes) {
  Engine e;
  const ScratchDir dir;
  // Blocks with minima, with f32 scales, with one zero point; a fused linear; act-order; AWQ.
  GgufExport(ModelSource(oracle("llama_gqa_untied")), GgmlType::q4_1).write(dir / "q4_1.gguf", "", {});
  GgufExport(ModelSource(oracle("gpt_neox")), GgmlType::q8_0).write(dir / "q8_0.gguf", "", {});
  for (const std::string& from : {oracle("gptq4_g32_asym"), oracle("awq4_gemm_g32"), case_dir("gptq_neox_actorder"), dir / "q4_1.gguf", dir / "q8_0.gguf"}) {
    SCOPED_TRACE(base_name(from));
    Model model = load_model(from, e.kernels);
    const std::string out = dir / (base_name(from) + ".store");
    const StoreReport r = import_packed_store(out, ModelSource(from), e.kernels, {});
    EXPECT_GT(r.kept, 0);
    EXPECT_EQ(r.rounded, 0);
    Model again = load_model(out, e.kernels);
    expect_mapped_twin(model, again);
    EXPECT_EQ(again.quantization.rfind("thimble q", 0), 0u) << again.quantization;
    EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
    expect_same_tensors(from, out);
    // From the store to a store.
    import_packed_store(out + "2", ModelSource(out), e.kernels, {});
    EXPECT_TRUE(content(out + "/model.safetensors") == content(out + "2/model.safetensors"));
  }
}

TEST(PackedStore, PlainTensorsComeBackBitByBit) {
  Engine e;
  const ScratchDir dir;
  for (const char* name : {"gpt2", "falcon_mqa", "opt_prenorm", "qwen2", "gemma_mqa"}) {
    SCOPED_TRACE(name);
    const std::string out = dir / name;
    import_packed_store(out, ModelSource(oracle(name)), e.kernels, {});
    expect_same_tensors(oracle(name), out);
    // In 16 bits, under the names of a base model.
    const ModelSource original(oracle(name));
    const std::string prefix = original.family().optional_prefix, base = dir / (std::string(name) + ".base");
    Checkpoint c = Checkpoint::read(oracle(name));
    for (Checkpoint::Item& i : c.tensors) {
      if (i.name.starts_with(prefix)) i.name.erase(0, prefix.size());
      ASSERT_EQ(i.dtype, SafetensorsDtype::f32);
      i.dtype = SafetensorsDtype::bf16;
      for (size_t k = 0; k < i.bytes.size() / 4; ++k) i.bytes.replace(2 * k, 2, i.bytes.substr(4 * k + 2, 2));
      i.bytes.resize(i.bytes.size() / 2);
    }
    std::filesystem::create_directories(base);
    c.write(base);
    const StoreReport r = import_packed_store(out + ".base", ModelSource(base), e.kernels, {});
    StoreImport dry;
    dry.dry_run = true;
    EXPECT_EQ(r.bytes, import_packed_store("", ModelSource(out + ".base"), e.kernels, dry).bytes);
    EXPECT_EQ(ModelSource(base).bare_names(), !prefix.empty());
    expect_same_tensors(base, out + ".base");
  }
}

// Weights of a llama2.c file are used as they lie, neighbours rotated, and so they are in the store.
TEST(PackedStore, Llama2cRowsKeepTheirOrder) {
  Engine e;
  const ScratchDir dir;
  const std::string bin = dir / "m.bin", out = dir / "store";
  write_llama2c(ModelSource(std::string(THIMBLE_SOURCE_DIR) + "/models/zoo/llama-0.4m"), bin, {});
  StoreImport options;
  options.linears = parse_load_format("q4-g32");
  import_packed_store(out, ModelSource(bin), e.kernels, options);
  Model model = load_model(bin, e.kernels);
  quantize_model(model, e.kernels, options.linears);
  Model again = load_model(out, e.kernels);
  EXPECT_TRUE(again.config.rope.interleaved);
  expect_mapped_twin(model, again);
  EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
  // Hugging Face's order for whoever reads it as such: q as round to nearest of the original's rows.
  const ModelSource original(std::string(THIMBLE_SOURCE_DIR) + "/models/zoo/llama-0.4m"), store(out);
  for (const SourceTensor& t : store.tensors()) {
    if (t.name.find("q_proj") == std::string::npos) continue;
    const auto same = std::find_if(original.tensors().begin(), original.tensors().end(), [&](const SourceTensor& o) { return o.name == t.name; });
    const std::vector<float> w = original.read_f32(*same);
    EXPECT_TRUE(same_bits(store.read_f32(t), dequantize(quantize_rtn(w.data(), t.shape[0], t.shape[1], 4, 32, false)))) << t.name;
  }
}

// Another program that writes safetensors may put tensors at odd places: they are copied.
TEST(PackedStore, TensorsAtOddPlacesAreCopied) {
  Engine e;
  const ScratchDir base, out, moved;
  Model model = small_model(small_families()[0], base);
  quantize_model(model, e.kernels, parse_load_format("q4-g32"));
  write_packed_store(out.path(), model, e.kernels, Json::parse(small_families()[0].config), {});
  Checkpoint c = Checkpoint::read(out.path());
  std::filesystem::copy(out / "config.json", moved / "config.json");
  const std::map<std::string, std::string> metadata = SafetensorsSet(out.path()).metadata();
  std::string header = "{\"__metadata__\":" + nlohmann::json(metadata).dump(), data;
  for (const Checkpoint::Item& i : c.tensors) {  // by name, so that bytes stand before floats
    header += fmt::format(",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", i.name,
                          safetensors_dtype_name(i.dtype), fmt::join(i.shape, ","), data.size(), data.size() + i.bytes.size());
    data += i.bytes;
  }
  header += "}";
  header.resize(header.size() / 8 * 8 + 8 + 1, ' ');
  const uint64_t length = header.size();
  std::ofstream file(moved / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << header << data;
  file.close();
  Model again = load_model(moved.path(), e.kernels);
  EXPECT_GT(again.store.bytes(), 0);
  EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
}

TEST(PackedStore, TrainableRowsAreCopiesWithGradients) {
  Engine e;
  const ScratchDir base, out;
  Model model = small_model(small_families()[0], base);
  write_packed_store(out.path(), model, e.kernels, Json::parse(small_families()[0].config), {});
  LoadOptions options;
  options.trainable = true;
  Model again = load_model(out.path(), e.kernels, options);
  EXPECT_NO_THROW(enable_gradients(again));
  for_each_weight(again.weights, [&](Role role, int64_t place, const Weight& w) {
    EXPECT_TRUE(w.grad) << weight_name(role, place);
    const Weight& v = model.weights.at(role, place);
    EXPECT_EQ(std::memcmp(w.data, v.data, size_t(w.numel()) * 4), 0) << weight_name(role, place);
  });
}

TEST(PackedStore, WhatFailsLeavesNoFolder) {
  Engine e;
  const ScratchDir base, dir;
  Model model = small_model(small_families()[0], base);
  auto* w = static_cast<float*>(const_cast<void*>(model.weights.layers[2].up_w.data));
  w[5] = std::nanf("");
  save_weights(model, e.kernels, base.path());
  StoreImport options;
  options.linears = parse_load_format("q4-g32");
  expect_error(ErrorCode::input, {base.path(), "2.up_w", "not a finite number"}, [&] {
    import_packed_store(dir / "store", ModelSource(base.path()), e.kernels, options);
  });
  EXPECT_FALSE(std::filesystem::exists(dir / "store"));
  std::filesystem::remove_all(dir / "store");
  std::ofstream(dir / "file") << "in the way";
  EXPECT_THROW(import_packed_store(dir / "file", ModelSource(base.path()), e.kernels, {}), Error);
}

struct Damaged {
  ScratchDir dir;
  std::map<std::string, std::string> metadata;
  Checkpoint c;
  explicit Damaged(const std::string& store) : metadata(SafetensorsSet(store).metadata()), c(Checkpoint::read(store)) {}
  void write() const {
    c.write(dir.path());
    std::vector<NamedTensor> list;
    for (const Checkpoint::Item& i : c.tensors) list.push_back({i.name, i.dtype, i.shape, i.bytes.data()});
    write_safetensors(dir / "model.safetensors", list, metadata);
  }
};

TEST(PackedStore, DamageIsRefusedByName) {
  Engine e;
  const ScratchDir dir;
  const std::string store = dir / "store";
  import_packed_store(store, ModelSource(case_dir("gptq_neox_actorder")), e.kernels, {});
  Damaged sound(store);
  sound.write();
  EXPECT_NO_THROW(load_model(sound.dir.path(), e.kernels));
  std::string ordered, tiled;  // a matrix with an order of columns, and one whose rows do not fill tiles
  for (const auto& [key, value] : sound.metadata) {
    if (key == "format") continue;
    for (const Checkpoint::Item& i : sound.c.tensors)
      if (i.name == key + ".perm") ordered = key;
    tiled = key;
  }
  ASSERT_FALSE(ordered.empty());
  const auto expect = [&](ErrorCode code, const std::vector<std::string>& words, const std::function<void(Damaged&)>& damage) {
    Damaged d(store);
    damage(d);
    d.write();
    expect_error(code, words, [&] { load_model(d.dir.path(), e.kernels); });
  };
  expect(ErrorCode::unsupported, {"version 2"}, [](Damaged& d) { d.c.config["quantization_config"]["version"] = 2; });
  expect(ErrorCode::input, {"version", "integer"}, [](Damaged& d) { d.c.config["quantization_config"]["version"] = "one"; });
  expect(ErrorCode::input, {tiled, ".scales", "missing"}, [&](Damaged& d) { d.c.erase(tiled + ".scales"); });
  expect(ErrorCode::input, {"final_norm_w", "missing"}, [&](Damaged& d) { d.c.erase("final_norm_w"); });
  expect(ErrorCode::input, {"not used", "extra"}, [](Damaged& d) { d.c.tensors.push_back({"extra", SafetensorsDtype::u8, {1}, "x"}); });
  expect(ErrorCode::input, {"metadata", "9.q_w"}, [](Damaged& d) { d.metadata["9.q_w"] = "q4 g32 zero_points"; });
  expect(ErrorCode::input, {"final_norm_w", "no layout"}, [](Damaged& d) { d.metadata["final_norm_w"] = "q4 g32 zero_points"; });
  for (const char* text : {"", "q4", "q3 g32 zero_points", "q4 g33 zero_points", "q4 g0 zero_points", "q4 g-8 zero_points", "q4 32 zero_points",
                           "q2 g8 zero_points", "q4 g32 zero_points 3", "q4 g32 symmetric", "q4 g32 symmetric 256",
                           "q4  g32 zero_points", "q4 g99999999999999999999 minimum", "f32 g32 minimum"})
    expect(ErrorCode::input, {"metadata " + tiled, "no layout"}, [&](Damaged& d) { d.metadata[tiled] = text; });
  expect(ErrorCode::input, {tiled + ".codes", "shape"}, [&](Damaged& d) { d.metadata[tiled] = "q2 g32 zero_points"; });
  expect(ErrorCode::input, {tiled + ".codes", "dtype"}, [&](Damaged& d) { d.c.item(tiled + ".codes").dtype = SafetensorsDtype::i8; });
  expect(ErrorCode::input, {ordered + ".perm", "entry 1"}, [&](Damaged& d) {
    std::string& perm = d.c.item(ordered + ".perm").bytes;
    perm.replace(4, 4, perm.substr(0, 4));
  });
  expect(ErrorCode::input, {ordered + ".perm", "-1"}, [&](Damaged& d) { d.c.item(ordered + ".perm").bytes.replace(0, 4, "\xff\xff\xff\xff"); });
}

TEST(PackedStore, PaddingRowsHoldZeros) {
  Engine e;
  const ScratchDir base, out;
  const SmallFamily odd = {"odd", R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
      "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})"};
  Model model = small_model(odd, base);
  quantize_model(model, e.kernels, parse_load_format("q8-g32-min"));
  write_packed_store(out.path(), model, e.kernels, Json::parse(odd.config), {});
  for (const char* part : {"0.up_w.scales", "0.up_w.mins"}) {
    Damaged d(out.path());
    std::string& bytes = d.c.item(part).bytes;  // [3 tiles][1 group][16], rows 40..47 are padding
    bytes[2 * (2 * 16 + 7)] ^= 1;
    d.write();
    EXPECT_NO_THROW(load_model(d.dir.path(), e.kernels)) << part;
    bytes[2 * (2 * 16 + 8)] = 1;
    d.write();
    expect_error(ErrorCode::input, {part, "padding row 8"}, [&] { load_model(d.dir.path(), e.kernels); });
  }
}

// The memory that weights take while a model is imported does not grow with the number of them.
TEST(PackedStore, ImportsHoldOneTensor) {
  Engine e;
  const ScratchDir dir;
  const std::string zoo = std::string(THIMBLE_SOURCE_DIR) + "/models/zoo/llama-8m";
  MemoryBudget tight(int64_t{3} << 19);  // the tiles are 3.5 MB together, memory comes in blocks of 1 MB
  StoreImport options;
  options.linears = parse_load_format("q4");
  options.budget = &tight;
  const StoreReport r = import_packed_store(dir / "store", ModelSource(zoo), e.kernels, options);
  EXPECT_GT(r.bytes, int64_t{4} << 20);
  EXPECT_EQ(tight.used(), 0);
  LoadOptions load;
  load.budget = &tight;
  expect_error(ErrorCode::budget, {"weight"}, [&] {
    Model model = load_model(zoo, e.kernels, load);
    quantize_model(model, e.kernels, options.linears, &tight);
  });
}

// Bytes changed at random in the header and in the config: an error or a model that runs, nothing else.
// THIMBLE_STORE_DAMAGE=N: N times as many.
TEST(PackedStore, RandomDamageIsSurvived) {
  Engine e;
  const ScratchDir base, out, bad;
  Model model = small_model(small_families()[0], base);
  quantize_model(model, e.kernels, parse_load_format("q4-g32"));
  write_packed_store(out.path(), model, e.kernels, Json::parse(small_families()[0].config), {});
  const std::string weights = content(out / "model.safetensors"), config = content(out / "config.json");
  uint64_t header = 0;
  std::memcpy(&header, weights.data(), 8);
  Philox rng(5, 1);
  int refused = 0, ran = 0;
  const int rounds = 600 * std::atoi(env_get("STORE_DAMAGE").value_or("1").c_str());
  for (int i = 0; i < rounds; ++i) {
    std::string w = weights, c = config;
    std::string& target = i % 3 == 0 ? c : w;
    const uint64_t range = i % 3 == 0 ? c.size() : i % 3 == 1 ? header + 8 : w.size();
    for (int k = 0; k < 1 + i % 4; ++k) target[rng.below(range)] = static_cast<char>(rng.below(256));
    if (i % 11 == 0) w.resize(rng.below(w.size()));
    std::ofstream(bad / "model.safetensors", std::ios::binary) << w;
    std::ofstream(bad / "config.json", std::ios::binary) << c;
    try {
      Model m = load_model(bad.path(), e.kernels);
      if (m.parameters() < 1'000'000) logits(m, *e.ctx);
      ++ran;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(ran, 100);
}

}  // namespace
}  // namespace thimble::models_test
