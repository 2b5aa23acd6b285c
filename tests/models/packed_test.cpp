// Quantized checkpoints of whole models: every layout that is written loads again with the same codes, codes survive a
// change of layout, what a layout cannot hold is refused by name, and bitsandbytes weights run as what they stand for.
#include "models/packed.h"

#include <cmath>
#include <map>

#include "quant/rtn.h"
#include "tests/models/small_families.h"

namespace thimble::models_test {
namespace {

nlohmann::ordered_json config_of(const std::string& dir) {
  std::ifstream in(dir + "/config.json");
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(in);
  config.erase("quantization_config");
  return config;
}

void expect_same_weights(const KernelTable& kernels, const Model& a, const Model& b) {
  for_each_weight(a.weights, [&](Role role, int64_t layer, const Weight& w) {
    const Weight& v = b.weights.at(role, layer);
    std::vector<float> x(size_t(w.numel())), y(size_t(v.numel()));
    dequantize(kernels, w, x.data());
    dequantize(kernels, v, y.data());
    EXPECT_TRUE(same_bits(x, y)) << role_name(role) << " " << layer;
    EXPECT_EQ(is_tiled(w.format), is_tiled(v.format)) << role_name(role) << " " << layer;
  });
}

// Where a Conv1D is not what a layout quantizes.
bool holds(PackedFormat format, const std::string& dir) {
  return dir.find("gpt2") == std::string::npos || format == PackedFormat::gptq || format == PackedFormat::awq;
}

TEST(Packed, EveryLayoutLoadsAgainWithTheSameCodes) {
  const std::map<PackedFormat, std::vector<const char*>> specs = {
      {PackedFormat::gptq, {"int4-g32-asym", "int3-row-sym"}},
      {PackedFormat::awq, {"int4-g32-asym", "int4-g16-sym", "int4-row-asym"}},
      {PackedFormat::compressed_tensors,
       {"int4-g32-sym", "int4-g16-asym", "int3-row-asym", "int2-g32-asym", "int8-row-sym"}},
      {PackedFormat::int_quantized, {"int8-row-sym", "int8-g32-asym"}}};
  for (const std::string& dir :
       {oracle("llama_gqa_untied"), oracle("gpt_neox"), oracle("opt_prenorm"), oracle("gpt2"), case_dir("opt_350m")})
    for (const auto& entry : specs)
      for (const char* name : entry.second) {
        const PackedFormat format = entry.first;
        SCOPED_TRACE(base_name(dir) + " " + packed_format_name(format) + " " + name);
        Engine e;
        Model model = load_model(dir, e.kernels);
        WeightSpec spec;
        if (std::string(name).find("g16") != std::string::npos) {  // no name of the command line
          spec = {4, 16, std::string(name).find("-sym") != std::string::npos};
        } else {
          spec = parse_weight_spec(name);
        }
        CompressOptions compress = parse_compression("rtn:int4-g32-asym");
        compress.spec = spec;
        const CompressReport report = compress_model(model, *e.ctx, compress, {});
        const ScratchDir out;
        const auto write = [&] {
          write_compressed(out.path(), model, e.kernels, config_of(dir), report, {{"compression", report.compression}},
                           format);
        };
        if (!holds(format, dir)) {
          expect_error(ErrorCode::unsupported, {packed_format_name(format), "Conv1D"}, write);
          expect_error(ErrorCode::unsupported, {"Conv1D"}, [&] { require_packed_format(model, format, spec, false); });
          continue;
        }
        require_packed_format(model, format, spec, false);
        write();
        Model again = load_model(out.path(), e.kernels);
        const PackedFormat method = format == PackedFormat::int_quantized ? PackedFormat::compressed_tensors : format;
        EXPECT_EQ(again.quantization.rfind(packed_format_name(method), 0), 0u) << again.quantization;
        expect_same_weights(e.kernels, model, again);
        EXPECT_TRUE(same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
        EXPECT_EQ(again.warnings.size(), format == PackedFormat::int_quantized ? 1u : 0u);
        // Written once more without a report: the same files but for what is ours in the config.
        const ScratchDir second;
        PackedOptions options;
        options.format = format;
        const PackedReport kept = write_quantized(second.path(), again, e.kernels, config_of(dir), options);
        EXPECT_EQ(kept.rounded, 0);
        EXPECT_TRUE(kept.requantized.empty());
        EXPECT_GT(kept.kept, 0);
        std::ifstream a(out / "model.safetensors", std::ios::binary), b(second / "model.safetensors", std::ios::binary);
        EXPECT_TRUE(std::string(std::istreambuf_iterator<char>(a), {}) ==
                    std::string(std::istreambuf_iterator<char>(b), {}));
      }
}

TEST(Packed, CodesSurviveAChangeOfLayout) {
  struct Case {
    std::string dir;
    PackedFormat format;
    bool kept;
  };
  const std::string plain = oracle("gptq4_g32_asym"), ordered = case_dir("gptq_neox_actorder");
  for (const Case& c : {Case{plain, PackedFormat::gptq, true},
                        {plain, PackedFormat::awq, true},
                        {plain, PackedFormat::compressed_tensors, true},
                        {plain, PackedFormat::int_quantized, true},
                        {ordered, PackedFormat::gptq, true},
                        {ordered, PackedFormat::awq, false},
                        {ordered, PackedFormat::compressed_tensors, true}}) {
    SCOPED_TRACE(base_name(c.dir) + " " + packed_format_name(c.format));
    Engine e;
    Model model = load_model(c.dir, e.kernels);
    PackedOptions options;
    options.format = c.format;
    options.spec = c.format == PackedFormat::int_quantized ? WeightSpec{8, 0, true} : WeightSpec{4, 16, false};
    const ScratchDir out;
    PackedOptions dry = options;
    dry.dry_run = true;
    const PackedReport planned = write_quantized(out / "dry", model, e.kernels, config_of(c.dir), dry);
    EXPECT_FALSE(std::filesystem::exists(out / "dry"));
    const PackedReport r = write_quantized(out / "real", model, e.kernels, config_of(c.dir), options);
    EXPECT_EQ(planned.bytes, r.bytes);
    EXPECT_EQ(planned.kept, r.kept);
    EXPECT_EQ(r.rounded, 0);
    EXPECT_TRUE(r.kept > 0 || !c.kept);
    EXPECT_EQ(r.requantized.empty(), c.kept);
    Model again = load_model(out / "real", e.kernels);
    if (c.kept) {
      expect_same_weights(e.kernels, model, again);
      // The same products in tiles of 8 bits are sums in another order.
      EXPECT_TRUE(c.format == PackedFormat::int_quantized || same_bits(logits(model, *e.ctx), logits(again, *e.ctx)));
    } else {
      ASSERT_FALSE(r.requantized.empty());
      EXPECT_NE(r.requantized[0].find("act-order"), std::string::npos) << r.requantized[0];
    }
  }
}

TEST(Packed, FloatsAreRoundedToNearest) {
  Engine e;
  Model model = load_model(oracle("llama_gqa_untied"), e.kernels);
  PackedOptions options;
  options.format = PackedFormat::awq;
  options.spec = parse_weight_spec("int4-g32-asym");
  const ScratchDir out;
  const PackedReport r = write_quantized(out.path(), model, e.kernels, config_of(oracle("llama_gqa_untied")), options);
  EXPECT_EQ(r.rounded, 14);
  EXPECT_EQ(r.kept, 0);
  Model again = load_model(out.path(), e.kernels);
  for (Role role : {Role::q_w, Role::down_w}) {
    const Weight& w = model.weights.at(role, 1);
    const std::vector<float> want = dequantize(quantize_rtn(w.f32(), w.rows, w.cols, options.spec, nullptr, 1));
    std::vector<float> got(want.size());
    dequantize(e.kernels, again.weights.at(role, 1), got.data());
    EXPECT_TRUE(same_bits(want, got));
  }
  EXPECT_EQ(again.weights.lm_head.format, model.weights.lm_head.format);
  const nlohmann::json q = read_json(out / "config.json")["quantization_config"];
  EXPECT_EQ(q["version"], "gemm");
  EXPECT_EQ(q["modules_to_not_convert"], nlohmann::json::array({"lm_head"}));
}

TEST(Packed, EveryFamily) {
  for (const SmallFamily& family : small_families())
    for (const PackedFormat format :
         {PackedFormat::gptq, PackedFormat::awq, PackedFormat::compressed_tensors, PackedFormat::int_quantized}) {
      SCOPED_TRACE(std::string(family.name) + " " + packed_format_name(format));
      Engine e;
      const ScratchDir base, out;
      Model model = small_model(family, base);
      PackedOptions options;
      options.format = format;
      options.spec = {format == PackedFormat::int_quantized ? 8 : 4, 16, format == PackedFormat::compressed_tensors};
      PackedReport r;
      try {
        r = write_quantized(out.path(), model, e.kernels, nlohmann::ordered_json::parse(family.config), options);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::unsupported);
        EXPECT_NE(std::string(error.what()).find("Conv1D"), std::string::npos) << error.what();
        continue;
      }
      EXPECT_GT(r.rounded, 0);
      // What was written stands for what round to nearest makes of every linear, and nothing else changed.
      Model again = load_model(out.path(), e.kernels);
      EXPECT_FALSE(again.quantization.empty());
      for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
        const Weight& v = again.weights.at(role, place);
        ASSERT_EQ(v.numel(), w.numel()) << weight_name(role, place);
        std::vector<float> want(size_t(w.numel())), got(want.size());
        dequantize(e.kernels, w, want.data());
        dequantize(e.kernels, v, got.data());
        const bool linear = role_is_layer(role) && !role_shape(model.config, role).vector && role != Role::router_w;
        EXPECT_EQ(is_tiled(v.format), linear) << weight_name(role, place);
        if (linear) want = dequantize(quantize_rtn(want.data(), w.rows, w.cols, options.spec, nullptr, 1));
        EXPECT_TRUE(same_bits(want, got)) << weight_name(role, place);
      });
    }
}

TEST(Packed, WhatALayoutCannotHoldIsRefusedByName) {
  Engine e;
  const std::string dir = oracle("llama_gqa_untied");
  const auto write = [&](PackedFormat format, const WeightSpec& spec, const std::vector<CompressRule>& rules = {}) {
    Model model = load_model(dir, e.kernels);
    CompressOptions options = parse_compression("rtn:int4-g32-asym");
    options.spec = spec;
    options.rules = rules;
    const CompressReport report = compress_model(model, *e.ctx, options, {});
    const ScratchDir out;
    write_compressed(out.path(), model, e.kernels, config_of(dir), report, nlohmann::ordered_json::object(), format);
  };
  expect_error(ErrorCode::unsupported, {"awq", "q_proj", "3 bits"}, [&] { write(PackedFormat::awq, {3, 32, false}); });
  expect_error(ErrorCode::unsupported, {"awq", "down_proj", "160 inputs", "group size 64"}, [&] {
    write(PackedFormat::awq, {4, 64, false});
  });
  expect_error(ErrorCode::unsupported, {"compressed-tensors", "64 inputs are fewer than the group size 128"}, [&] {
    write(PackedFormat::compressed_tensors, {4, 128, false});
  });
  expect_error(ErrorCode::unsupported, {"int-quantized", "4 bits"}, [&] {
    write(PackedFormat::int_quantized, {4, 32, false});
  });
  CompressRule down;
  down.match = "*.down_w";
  down.spec = {4, 16, false};
  expect_error(ErrorCode::unsupported, {"awq", "int4-g16-asym", "one grid"}, [&] {
    write(PackedFormat::awq, {4, 32, false}, {down});
  });
  EXPECT_NO_THROW(write(PackedFormat::compressed_tensors, {4, 32, false}, {down}));
  Model model = load_model(dir, e.kernels);
  expect_error(ErrorCode::unsupported, {"act-order"}, [&] {
    require_packed_format(model, PackedFormat::awq, {4, 32, false}, true);
  });
  expect_error(ErrorCode::usage, {"marlin"}, [&] { parse_packed_format("marlin"); });
  for (const char* name : {"gptq", "awq", "compressed-tensors", "int-quantized"})
    EXPECT_STREQ(packed_format_name(parse_packed_format(name)), name);
}

TEST(Packed, SeveralGridsInCompressedTensors) {
  Engine e;
  const std::string dir = oracle("llama_gqa_untied");
  Model model = load_model(dir, e.kernels);
  CompressOptions options = parse_compression("rtn:int4-g32-asym");
  CompressRule down, kept;
  down.match = "*.down_w";
  down.spec = parse_weight_spec("int8-row-sym");
  kept.match = "0.o_w";
  kept.keep = true;
  options.rules = {down, kept};
  const CompressReport report = compress_model(model, *e.ctx, options, {});
  const ScratchDir out;
  write_compressed(out.path(), model, e.kernels, config_of(dir), report, nlohmann::ordered_json::object(),
                   PackedFormat::compressed_tensors);
  const nlohmann::json q = read_json(out / "config.json")["quantization_config"];
  EXPECT_EQ(q["config_groups"]["group_1"]["targets"].size(), 2u);
  EXPECT_EQ(q["config_groups"]["group_1"]["weights"]["strategy"], "channel");
  EXPECT_EQ(q["ignore"], nlohmann::json::array({"model.layers.0.self_attn.o_proj", "lm_head"}));
  Model again = load_model(out.path(), e.kernels);
  expect_same_weights(e.kernels, model, again);
}

// A Llama whose linears are replaced by what `change` makes of them, and the same model in floats.
struct Twin {
  Checkpoint coded, dense;
  explicit Twin(const nlohmann::json& quantization)
      : coded(Checkpoint::read(oracle("llama_gqa_untied"))), dense(coded) {
    coded.config["quantization_config"] = quantization;
  }
  std::vector<std::string> linears() const {
    std::vector<std::string> names;
    for (const Checkpoint::Item& i : dense.tensors)
      if (i.name.find("_proj.weight") != std::string::npos) names.push_back(i.name);
    return names;
  }
  void put(const std::string& name, SafetensorsDtype dtype, std::vector<int64_t> shape, std::string bytes) {
    coded.tensors.push_back({name, dtype, std::move(shape), std::move(bytes)});
  }
};

template <class T>
std::string bytes_of(const std::vector<T>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)};
}

void expect_twins(const Twin& twin, double limit) {
  for (Tier tier : tiers()) {
    Engine e(tier);
    const ScratchDir coded, dense;
    twin.coded.write(coded.path());
    twin.dense.write(dense.path());
    Model a = load_model(coded.path(), e.kernels), b = load_model(dense.path(), e.kernels);
    const std::vector<float> x = logits(a, *e.ctx), y = logits(b, *e.ctx);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::fabs(double(x[i]) - double(y[i])));
    EXPECT_LE(worst, limit) << tier_name(tier);
  }
}

TEST(Packed, Nf4ModelsRunAsWhatTheirCodesStandFor) {
  Twin twin({{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}});
  const std::vector<float> book = {-1,    -0.7f, -0.53f, -0.39f, -0.28f, -0.18f, -0.09f, 0,
                                   0.08f, 0.16f, 0.25f,  0.34f,  0.44f,  0.56f,  0.72f,  1};
  for (const std::string& name : twin.linears()) {
    Checkpoint::Item& d = twin.dense.item(name);
    std::vector<float> w(d.bytes.size() / 4), absmax;
    std::memcpy(w.data(), d.bytes.data(), d.bytes.size());
    std::vector<uint8_t> packed(w.size() / 2);
    for (size_t block = 0; block < w.size(); block += 64) {
      float top = 0;
      for (size_t i = block; i < block + 64; ++i) top = std::max(top, std::fabs(w[i]));
      absmax.push_back(top);
      for (size_t i = block; i < block + 64; ++i) {
        size_t best = 0;
        for (size_t k = 1; k < 16; ++k)
          if (std::fabs(book[k] * top - w[i]) < std::fabs(book[best] * top - w[i])) best = k;
        w[i] = book[best] * top;
        packed[i / 2] = static_cast<uint8_t>(packed[i / 2] | (i % 2 ? best : best << 4));
      }
    }
    const std::vector<int64_t> shape = d.shape;
    d.bytes = bytes_of(w);
    twin.coded.erase(name);
    const std::string state =
        nlohmann::json{{"quant_type", "nf4"}, {"blocksize", 64}, {"dtype", "float32"}, {"shape", shape}}.dump();
    twin.put(name, SafetensorsDtype::u8, {static_cast<int64_t>(packed.size()), 1}, bytes_of(packed));
    twin.put(name + ".absmax", SafetensorsDtype::f32, {static_cast<int64_t>(absmax.size())}, bytes_of(absmax));
    twin.put(name + ".quant_map", SafetensorsDtype::f32, {16}, bytes_of(book));
    twin.put(name + ".quant_state.bitsandbytes__nf4", SafetensorsDtype::u8, {static_cast<int64_t>(state.size())},
             state);
  }
  expect_twins(twin, 0);
}

TEST(Packed, Int8RowsRunAsWhatTheirCodesStandFor) {
  Twin twin({{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}});
  for (const std::string& name : twin.linears()) {
    Checkpoint::Item& d = twin.dense.item(name);
    std::vector<float> w(d.bytes.size() / 4), absmax;
    std::memcpy(w.data(), d.bytes.data(), d.bytes.size());
    std::vector<int8_t> codes;
    const auto in = static_cast<size_t>(d.shape[1]);
    for (size_t row = 0; row < w.size(); row += in) {
      float top = 0;
      for (size_t i = row; i < row + in; ++i) top = std::max(top, std::fabs(w[i]));
      absmax.push_back(top);
      for (size_t i = row; i < row + in; ++i) {
        codes.push_back(static_cast<int8_t>(std::nearbyint(w[i] / top * 127)));
        w[i] = static_cast<float>(codes.back()) * top / 127;
      }
    }
    const std::vector<int64_t> shape = d.shape;
    d.bytes = bytes_of(w);
    twin.coded.erase(name);
    const std::string module = name.substr(0, name.size() - 7);
    twin.put(name, SafetensorsDtype::i8, shape, bytes_of(codes));
    twin.put(module + ".SCB", SafetensorsDtype::f32, {shape[0]}, bytes_of(absmax));
    twin.put(module + ".weight_format", SafetensorsDtype::u8, {}, std::string(1, '\0'));
  }
  expect_twins(twin, 1e-4);
}

// A tied model may still carry a quantized head, which nobody reads.
TEST(Packed, TheHeadOfATiedModelIsIgnored) {
  Engine e;
  Checkpoint c = Checkpoint::read(oracle("gptq4_g32_asym"));
  c.config["tie_word_embeddings"] = true;
  for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
    Checkpoint::Item copy = c.item(std::string("model.layers.0.self_attn.q_proj") + part);
    copy.name = std::string("lm_head") + part;
    c.tensors.push_back(copy);
  }
  c.erase("lm_head.weight");
  const ScratchDir dir;
  c.write(dir.path());
  EXPECT_NO_THROW(load_model(dir.path(), e.kernels));
}

}  // namespace
}  // namespace thimble::models_test
