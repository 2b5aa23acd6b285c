// Every family as a small random model: the checkpoint it writes loads again with the same bits, the cache and chunks give
// the bits of one pass, gradients follow the loss, and every policy of recomputing makes the same ones.
#include "models/families.h"

#include <cmath>
#include <map>

#include "models/model.h"
#include "tensor/error.h"
#include "tests/models/small_families.h"

namespace thimble::models_test {
namespace {

void write_checkpoint(const Model& model, const KernelTable& kernels, const std::string& dir) {
  std::vector<ExportedTensor> tensors;
  export_tensors(model, kernels, ExportWhat::weights, [&](const ExportedTensor& t) { tensors.push_back(t); });
  std::vector<NamedTensor> list;
  for (const ExportedTensor& t : tensors) list.push_back({t.name, SafetensorsDtype::f32, t.shape, t.data.data()});
  write_safetensors(dir + "/model.safetensors", list);
}

TEST(SmallFamilies, WhatIsWrittenLoadsAgainWithTheSameBits) {
  for (const SmallFamily& family : small_families()) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Engine engine;
    Model model = small_model(family, dir);
    write_checkpoint(model, engine.kernels, dir.path());
    LoadOptions options;
    options.trainable = true;
    Model mapped = load_model(dir.path(), engine.kernels), copied = load_model(dir.path(), engine.kernels, options);
    EXPECT_EQ(mapped.config, model.config);
    Rows rows;
    rows.add(text(1, 20, 61));
    Transformer a(model, 20), b(mapped, 20), c(copied, 20);
    const std::vector<float> logits = logits_of(a, *engine.ctx, rows);
    EXPECT_TRUE(same_bits(logits, logits_of(b, *engine.ctx, rows)));
    EXPECT_TRUE(same_bits(logits, logits_of(c, *engine.ctx, rows)));
    double squares = 0;
    for (float x : logits) squares += double(x) * double(x);
    EXPECT_TRUE(squares > 1 && std::isfinite(squares)) << squares;
    // Nothing is left out, nothing is invented: a file with a tensor less, or one more, is refused.
    Checkpoint less = Checkpoint::read(dir.path()), more = less;
    less.tensors.erase(less.tensors.begin() + static_cast<int64_t>(less.tensors.size() / 2));
    less.write(dir.path());
    EXPECT_THROW(load_model(dir.path(), engine.kernels), Error);
    more.tensors.push_back(more.tensors.back());
    more.tensors.back().name += ".other";
    more.write(dir.path());
    EXPECT_THROW(load_model(dir.path(), engine.kernels), Error);
  }
}

TEST(SmallFamilies, ChunksThroughTheCacheGiveTheBitsOfOnePass) {
  for (const SmallFamily& family : small_families()) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Engine engine;
    Model model = small_model(family, dir);
    Transformer transformer(model, 20);
    Rows rows;
    rows.add(text(1, 20, 61));
    const std::vector<float> whole = logits_of(transformer, *engine.ctx, rows);
    for (const int64_t chunk : {int64_t{1}, int64_t{7}}) {
      KvCache cache(model.config, 1, 20);
      std::vector<float> parts;
      for (int64_t at = 0; at < 20; at += chunk) {
        Rows part;
        part.add({rows.ids.begin() + at, rows.ids.begin() + std::min<int64_t>(20, at + chunk)});
        const std::vector<float> logits = logits_of(transformer, *engine.ctx, part, &cache);
        parts.insert(parts.end(), logits.begin(), logits.end());
      }
      EXPECT_TRUE(same_bits(whole, parts)) << "chunks of " << chunk;
    }
  }
}

struct Step {
  double loss = 0;
  std::vector<float> gradients;
};

Step step(Transformer& transformer, const KernelTable& kernels, Recompute recompute, int threads = 2,
          Precision precision = Precision::f32, bool training = false) {
  Model& model = transformer.model();
  Context ctx(kernels, threads, nullptr);
  ctx.precision = precision;
  ctx.training = training;
  Tape tape;
  ctx.tape = &tape;
  for_each_weight(model.weights, [](Role, int64_t, Weight& w) { w.grad_written = false; });
  Rows rows;
  rows.add(text(1, 14, 61));
  rows.add(text(2, 9, 61));
  const std::vector<int32_t> labels = text(3, 23, 61);
  const Batch batch = rows.batch();
  Step s;
  s.loss = transformer.loss(ctx, transformer.forward(ctx, batch, recompute), labels.data(), 23);
  backward(ctx);
  for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
    EXPECT_TRUE(w.grad_written) << role_name(role) << " " << layer;
    s.gradients.insert(s.gradients.end(), w.grad, w.grad + w.numel());
  });
  return s;
}

double loss_at(Transformer& transformer, const KernelTable& kernels) {
  Context ctx(kernels, 2, nullptr);
  Rows rows;
  rows.add(text(1, 14, 61));
  rows.add(text(2, 9, 61));
  const std::vector<int32_t> labels = text(3, 23, 61);
  const Batch batch = rows.batch();
  return transformer.loss(ctx, transformer.forward(ctx, batch), labels.data(), 23);
}

// Along its gradient, a weight changes the loss by the gradient's length; a gradient with a wrong direction or size fails.
// Models with experts take no part: another choice of experts is a jump (reference_families_test.cpp has them, with steps
// that keep the choice).
TEST(SmallFamilies, GradientsFollowTheLoss) {
  for (const SmallFamily& family : small_families()) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Engine engine;
    Model model = small_model(family, dir, true);
    if (model.config.n_experts > 0) continue;
    Transformer transformer(model, 20);
    step(transformer, engine.kernels, Recompute::none);
    for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
      if (layer == 1) return;  // the first and the last layer, and what belongs to no layer
      auto* data = static_cast<float*>(const_cast<void*>(w.data));
      const std::vector<float> before(data, data + w.numel()), g(w.grad, w.grad + w.numel());
      double norm = 0;
      for (float x : g) norm += double(x) * double(x);
      norm = std::sqrt(norm);
      // The bias of keys cancels in the softmax, where nothing comes between.
      if (norm < 1e-6) {
        EXPECT_TRUE(role == Role::k_b) << role_name(role) << " " << layer << ": " << norm;
        return;
      }
      const double h = 0.004 / std::max(1.0, norm);  // small beside kinks and curvature, large beside f32 noise
      double side[4];
      const double at[4] = {2 * h, h, -h, -2 * h};
      for (int i = 0; i < 4; ++i) {
        for (size_t j = 0; j < g.size(); ++j) data[j] = static_cast<float>(double(before[j]) + at[i] * double(g[j]) / norm);
        side[i] = loss_at(transformer, engine.kernels);
      }
      std::copy(before.begin(), before.end(), data);
      const double measured = (-side[0] + 8 * side[1] - 8 * side[2] + side[3]) / (12 * h);
      EXPECT_NEAR(measured, norm, 0.02 * norm + 3e-4) << role_name(role) << " " << layer;
    });
  }
}

TEST(SmallFamilies, RecomputeGivesTheSameBits) {
  for (const SmallFamily& family : small_families()) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Engine engine;
    Model model = small_model(family, dir, true);
    Transformer transformer(model, 20);
    const std::vector<float> kept = step(transformer, engine.kernels, Recompute::none).gradients;
    for (const Recompute recompute : {Recompute::block, Recompute::cheap})
      for (const int threads : {1, 3})
        EXPECT_TRUE(same_bits(kept, step(transformer, engine.kernels, recompute, threads).gradients));
    const std::vector<float> rounded = step(transformer, engine.kernels, Recompute::none, 2, Precision::bf16, true).gradients;
    for (const Recompute recompute : {Recompute::block, Recompute::cheap})
      EXPECT_TRUE(same_bits(rounded, step(transformer, engine.kernels, recompute, 2, Precision::bf16, true).gradients));
  }
}

ModelConfig parsed(nlohmann::json json) {
  const JsonObject object(json, "config.json");
  return parse_config(object, find_family(object));
}

nlohmann::json with(const char* name, const nlohmann::json& changes) {
  for (const SmallFamily& family : small_families())
    if (std::string(family.name) == name) {
      nlohmann::json json = nlohmann::json::parse(family.config);
      if (!changes.is_null()) json.update(changes);
      return json;
    }
  throw std::runtime_error(name);
}

// What transformers 5 writes for what transformers 4 wrote.
TEST(SmallFamilies, BothSpellingsOfAConfigSayTheSame) {
  const auto same = [](const char* name, const nlohmann::json& old, const nlohmann::json& fresh, const std::vector<const char*>& gone) {
    nlohmann::json a = with(name, old), b = with(name, fresh);
    for (const char* key : gone) b.erase(key);
    EXPECT_EQ(parsed(a), parsed(b)) << name;
  };
  same("llama", {{"rope_theta", 5e5}, {"torch_dtype", "bfloat16"}},
       {{"rope_parameters", {{"rope_theta", 5e5}, {"rope_type", "default"}}}, {"dtype", "bfloat16"}}, {"rope_theta"});
  const nlohmann::json llama3 = {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
                                 {"original_max_position_embeddings", 16}};
  nlohmann::json llama3_v5 = llama3;
  llama3_v5["rope_theta"] = 5e5;
  same("llama", {{"rope_theta", 5e5}, {"rope_scaling", llama3}}, {{"rope_parameters", llama3_v5}}, {"rope_theta"});
  same("stablelm", {{"partial_rotary_factor", 0.5}, {"rope_theta", 10000.0}},
       {{"rope_parameters", {{"rope_theta", 10000.0}, {"partial_rotary_factor", 0.5}, {"rope_type", "default"}}}}, {});
  same("gpt_neox", {{"rotary_pct", 0.25}, {"rotary_emb_base", 10000}},
       {{"rope_parameters", {{"rope_theta", 10000.0}, {"partial_rotary_factor", 0.25}}}}, {"rotary_pct"});
  same("gemma", {{"torch_dtype", "bfloat16"}}, {{"dtype", "bfloat16"}}, {});
  same("gemma2", {}, {{"layer_types", {"sliding_attention", "full_attention", "sliding_attention"}}}, {});
  same("gemma3", {},
       {{"layer_types", {"sliding_attention", "full_attention", "sliding_attention"}},
        {"rope_parameters",
         {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
          {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}}}},
       {"rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"});
  nlohmann::json long_v5 = with("phi3, longrope", {})["rope_scaling"];
  long_v5.erase("type");
  long_v5["rope_type"] = "longrope";
  long_v5["rope_theta"] = 10000.0;
  long_v5["original_max_position_embeddings"] = 12;
  same("phi3, longrope", {}, {{"rope_parameters", long_v5}}, {"rope_scaling", "original_max_position_embeddings"});
  for (const char* type : {"su", "yarn"})
    same("phi3, longrope", {}, {{"rope_scaling", {{"type", type},
                                                  {"short_factor", {1.0, 1.1, 1.3, 1.5}},
                                                  {"long_factor", {1.5, 2.0, 4.0, 6.0}}}}}, {});
}

TEST(SmallFamilies, FieldsThatChangeAResultAreReadOrRefusedByName) {
  const auto refused = [](const char* name, const nlohmann::json& change, ErrorCode code, const char* named) {
    try {
      parsed(with(name, change));
      ADD_FAILURE() << name << ": " << change;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code) << e.what();
      EXPECT_NE(std::string(e.what()).find(named), std::string::npos) << e.what();
    }
  };
  const auto scaling = [](nlohmann::json s) { return nlohmann::json{{"rope_scaling", std::move(s)}}; };
  refused("llama", scaling({{"rope_type", "proportional"}, {"factor", 2}}), ErrorCode::unsupported, "proportional");
  refused("llama", scaling({{"rope_type", "dynamic"}, {"factor", 2}, {"alpha", 1000}}), ErrorCode::unsupported, "alpha");
  refused("llama", scaling({{"rope_type", "default"}, {"mrope_section", {1, 1}}}), ErrorCode::unsupported, "mrope_section");
  refused("llama", scaling({{"rope_type", "linear"}}), ErrorCode::input, "factor");
  refused("llama", scaling({{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}}), ErrorCode::input,
          "original_max_position_embeddings");
  refused("phi3, longrope", scaling({{"type", "longrope"}, {"short_factor", {1, 2}}, {"long_factor", {1, 2}}}), ErrorCode::input, "short_factor");
  refused("phi3, longrope", scaling({{"type", "longrope"}, {"short_factor", {1, 2, 3, 4}}, {"long_factor", {1, 2, 3, 0}}}), ErrorCode::input,
          "long_factor");
  refused("llama", {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}}, ErrorCode::input, "sliding_attention");
  refused("llama", {{"rope_parameters", {{"linear_attention", {{"rope_theta", 1e4}}}}}}, ErrorCode::unsupported, "linear_attention");
  refused("gemma2", {{"layer_types", {"full_attention"}}}, ErrorCode::input, "layer_types");
  refused("gemma2", {{"layer_types", {"full_attention", "chunked_attention", "full_attention"}}}, ErrorCode::input, "layer_types");
  refused("gemma3", {{"use_bidirectional_attention", true}}, ErrorCode::unsupported, "use_bidirectional_attention");
  refused("bloom", {{"apply_residual_connection_post_layernorm", true}}, ErrorCode::unsupported, "apply_residual_connection_post_layernorm");
  refused("falcon, 40B style", {{"parallel_attn", false}}, ErrorCode::unsupported, "parallel_attn");
  refused("gptj", {{"rotary_dim", nullptr}}, ErrorCode::input, "rotary_dim");
  refused("gptj", {{"rotary_dim", 64}}, ErrorCode::input, "rotary dimensions");
  refused("gemma", {{"torch_dtype", "int8"}}, ErrorCode::input, "torch_dtype");
  refused("llama", {{"hidden_act", "quick_gelu"}}, ErrorCode::unsupported, "quick_gelu");
}

TEST(SmallFamilies, FlagsOfRealConfigs) {
  // Gemma's factor in bf16: sqrt(3072) = 55.4256 becomes 55.5.
  nlohmann::json gemma = with("gemma", {{"hidden_size", 3072}, {"torch_dtype", "bfloat16"}});
  EXPECT_EQ(parsed(gemma).embed_scale, 55.5);
  gemma["torch_dtype"] = "float32";
  EXPECT_EQ(parsed(gemma).embed_scale, double(std::sqrt(3072.0f)));
  const ModelConfig gemma2 = parsed(with("gemma2", {}));
  EXPECT_TRUE(gemma2.has_window(0) && !gemma2.has_window(1) && gemma2.has_window(2));
  nlohmann::json none = with("gemma2", {{"attn_logit_softcapping", nullptr}});
  none.erase("final_logit_softcapping");
  EXPECT_EQ(parsed(none).attn_softcap, 0);
  EXPECT_EQ(parsed(none).logit_softcap, 30);
  const ModelConfig gemma3 = parsed(with("gemma3", {{"num_hidden_layers", 12}, {"sliding_window_pattern", 6}}));
  for (int64_t l = 0; l < 12; ++l) {
    EXPECT_EQ(gemma3.has_window(l), l != 5 && l != 11) << l;
    EXPECT_EQ(gemma3.rope_of(l).theta, gemma3.has_window(l) ? 1e4 : 1e6);
    EXPECT_EQ(gemma3.rope_of(l).scaling, gemma3.has_window(l) ? RopeScaling::none : RopeScaling::linear);
  }
  EXPECT_EQ(parsed(with("falcon, 7B style", {{"num_kv_heads", 4}})).n_kv_heads, 1);
  EXPECT_EQ(parsed(with("falcon, 40B style", {})).n_kv_heads, 2);
  EXPECT_EQ(parsed(with("falcon, RW style", {})).n_kv_heads, 4);
  EXPECT_EQ(parsed(with("phi", {})).rope.dims, 4);
  EXPECT_EQ(parsed(with("stablelm", {})).rope.dims, 2);
}

// What a config leaves out has the default of its class, which differs from family to family.
TEST(SmallFamilies, FieldsThatAreLeftOut) {
  const auto without = [](const char* name, const char* key, const nlohmann::json& changes = {}) {
    nlohmann::json json = with(name, changes);
    json.erase(key);
    return json;
  };
  const char* const kv = "num_key_value_heads";
  EXPECT_EQ(parsed(without("llama", kv)).n_kv_heads, 4);
  EXPECT_EQ(parsed(without("mixtral", kv, {{"num_attention_heads", 16}})).n_kv_heads, 8);
  EXPECT_EQ(parsed(with("mixtral", {{"num_attention_heads", 16}, {kv, nullptr}})).n_kv_heads, 16);
  EXPECT_EQ(parsed(without("mixtral", kv, {{"model_type", "mistral"}, {"num_attention_heads", 16}})).n_kv_heads, 8);
  EXPECT_EQ(parsed(without("qwen3", kv, {{"num_attention_heads", 64}})).n_kv_heads, 32);
  EXPECT_EQ(parsed(without("gemma", kv, {{"num_attention_heads", 16}})).n_kv_heads, 16);
  EXPECT_EQ(parsed(without("gemma2", kv)).n_kv_heads, 4);
  EXPECT_EQ(parsed(without("starcoder2", kv)).n_kv_heads, 2);
  EXPECT_EQ(parsed(without("mixtral", "rope_theta")).rope.theta, 1e6);
  EXPECT_EQ(parsed(without("gemma3", "rope_theta")).rope.theta, 1e6);
  EXPECT_EQ(parsed(without("qwen3", "rope_theta")).rope.theta, 1e4);
  // Without a window in a config that does not speak of one, Mistral has that of its first model; null means none.
  EXPECT_EQ(parsed(without("mixtral", "sliding_window", {{"model_type", "mistral"}})).window, 4096);
  EXPECT_EQ(parsed(with("mixtral", {{"model_type", "mistral"}})).window, 0);
  EXPECT_EQ(parsed(without("mixtral", "sliding_window")).window, 0);
}

TEST(SmallFamilies, OtherNamesOfFields) {
  EXPECT_EQ(parsed(with("bloom", {{"n_embed", 64}})).hidden, 64);
  EXPECT_EQ(parsed(with("falcon, 7B style", {{"n_embed", 64}})).hidden, 64);
  for (const char* name : {"gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"})
    EXPECT_EQ(parsed(with("gpt2", {{"activation_function", name}})).activation, Activation::gelu_tanh) << name;
  for (const char* name : {"gelu", "gelu_python"})
    EXPECT_EQ(parsed(with("gpt2", {{"activation_function", name}})).activation, Activation::gelu_erf) << name;
  // Gemma's activation: hidden_act counts only where transformers 5 has written the config.
  EXPECT_EQ(parsed(with("gemma", {{"hidden_act", "gelu"}})).activation, Activation::gelu_tanh);
  EXPECT_EQ(parsed(with("gemma", {{"hidden_act", "gelu"}, {"hidden_activation", nullptr}})).activation, Activation::gelu_tanh);
  EXPECT_EQ(parsed(with("gemma", {{"hidden_act", "gelu"}, {"hidden_activation", "relu"}})).activation, Activation::relu);
  const nlohmann::json v5 = {{"rope_theta", 10000.0}, {"rope_type", "default"}};
  EXPECT_EQ(parsed(with("gemma", {{"hidden_act", "gelu"}, {"rope_parameters", v5}})).activation, Activation::gelu_erf);
  // Where both places have the length that Phi-3 was trained with, the one beside the scaling counts.
  nlohmann::json phi3 = with("phi3, longrope", {});
  phi3["rope_scaling"]["original_max_position_embeddings"] = 20;
  EXPECT_EQ(parsed(phi3).rope.original_max_positions, 12);
}

TEST(SmallFamilies, ARoleHasOneRule) {
  for (const SmallFamily& family : small_families()) {
    nlohmann::json json = nlohmann::json::parse(family.config);
    const JsonObject object(json, "config.json");
    const Family& row = find_family(object);
    const ModelConfig config = parse_config(object, row);
    std::map<Role, int> count;
    for_each_tensor(config, row.tensors, [&](const TensorRule& rule, int64_t layer, int64_t block) {
      for (Role role : rule.roles) count[role] += layer == 0 && block == 0 ? 1 : 0;
    });
    for (int r = 0; r < kRoleCount; ++r) {
      const auto role = static_cast<Role>(r);
      EXPECT_EQ(count[role], role_shape(config, role).rows > 0 ? 1 : 0) << family.name << ": " << role_name(role);
    }
  }
}

// Which row of the fused tensor belongs to which head, written out by hand.
TEST(SmallFamilies, FusedTensorsAreTakenApartHeadByHead) {
  ModelConfig c;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 2;
  c.intermediate = 5;
  const auto rows = [&](Layout layout, int part, int64_t n) {
    std::vector<int64_t> list;
    for (int64_t r = 0; r < n; ++r) list.push_back(source_row(c, layout, part, r));
    return list;
  };
  using List = std::vector<int64_t>;
  // Falcon 40B: q0 q1 k0 v0 q2 q3 k1 v1, two rows each.
  EXPECT_EQ(rows(Layout::per_head, 0, 8), (List{0, 1, 2, 3, 8, 9, 10, 11}));
  EXPECT_EQ(rows(Layout::per_head, 1, 4), (List{4, 5, 12, 13}));
  EXPECT_EQ(rows(Layout::per_head, 2, 4), (List{6, 7, 14, 15}));
  // Phi-3: q, then the narrower k and v.
  EXPECT_EQ(rows(Layout::thirds, 0, 8), (List{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(rows(Layout::thirds, 1, 4), (List{8, 9, 10, 11}));
  EXPECT_EQ(rows(Layout::thirds, 2, 4), (List{12, 13, 14, 15}));
  EXPECT_EQ(rows(Layout::halves, 1, 5), (List{5, 6, 7, 8, 9}));
  c.n_kv_heads = 1;  // Falcon 7B, GPT-BigCode: all heads, k, v
  EXPECT_EQ(rows(Layout::per_head, 0, 8), (List{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(rows(Layout::per_head, 2, 2), (List{10, 11}));
  c.n_kv_heads = 4;  // NeoX, Bloom: q k v of each head
  EXPECT_EQ(rows(Layout::per_head, 0, 4), (List{0, 1, 6, 7}));
  EXPECT_EQ(rows(Layout::per_head, 1, 4), (List{2, 3, 8, 9}));
}

TEST(Rope, ScalingsByHand) {
  RopeConfig r;
  r.theta = 100;
  r.dims = 4;  // inverse frequencies 1 and 0.1
  r.factor = 4;
  r.scaling = RopeScaling::linear;
  EXPECT_EQ(rope_frequencies(r, 1).inv_freq, (std::vector<float>{0.25f, 0.025f}));
  // dynamic: 32 tokens of 16 known: theta (4 * 2 - 3)^2 = 2500.
  r.scaling = RopeScaling::dynamic;
  r.original_max_positions = 16;
  EXPECT_EQ(rope_frequencies(r, 16).inv_freq, (std::vector<float>{1.0f, 0.1f}));
  EXPECT_EQ(rope_frequencies(r, 32).inv_freq, (std::vector<float>{1.0f, 0.02f}));
  r.scaling = RopeScaling::longrope;
  r.short_factors = {1, 2};
  r.long_factors = {4, 8};
  r.attention_factor = 1.25;
  EXPECT_EQ(rope_frequencies(r, 16).inv_freq, (std::vector<float>{1.0f, 0.05f}));
  EXPECT_EQ(rope_frequencies(r, 17).inv_freq, (std::vector<float>{0.25f, 0.0125f}));
  EXPECT_EQ(rope_frequencies(r, 17).attention_factor, 1.25f);
  ModelConfig c;
  c.rope = r;
  EXPECT_FALSE(rope_changes(c, 3, 16));
  EXPECT_TRUE(rope_changes(c, 16, 17));
  // yarn: over 200 positions, the dimension that turns n times is 4 ln(200 / (2 pi n)) / (2 ln 100): 0.20182 for n = 20 and
  // 1.50285 for n = 1. The ramp from the one to the other is 1 / 2 at dimension 1 when they are rounded to 0 and 2, and
  // 0.61350 when they are not; so much of the frequency is stretched.
  r.scaling = RopeScaling::yarn;
  r.attention_factor = 0;
  r.original_max_positions = 200;
  r.beta_fast = 20;
  r.beta_slow = 1;
  const RopeFrequencies rounded = rope_frequencies(r, 1);
  EXPECT_EQ(rounded.inv_freq, (std::vector<float>{1.0f, 0.0625f}));
  EXPECT_FLOAT_EQ(rounded.attention_factor, 1.1386294f);
  r.truncate = false;
  EXPECT_NEAR(rope_frequencies(r, 1).inv_freq[1], 0.1 * (0.61350 / 4 + 0.38650), 1e-6);
  EXPECT_EQ(rope_frequencies(r, 1).inv_freq[0], 1.0f);
}

// mscale over mscale_all_dim: (0.1 * 0.7 ln 4 + 1) / (0.1 * 0.5 ln 4 + 1).
TEST(Rope, YarnScalesOfTheAttention) {
  nlohmann::json s = {{"rope_type", "yarn"}, {"factor", 4.0}, {"mscale", 0.7}, {"mscale_all_dim", 0.5}};
  EXPECT_NEAR(parsed(with("llama", {{"rope_scaling", s}})).rope.attention_factor, 1.0259287, 1e-6);
  s["attention_factor"] = 1.5;
  EXPECT_EQ(parsed(with("llama", {{"rope_scaling", s}})).rope.attention_factor, 1.5);
  // Phi-3: sqrt(1 + ln(64 / 12) / ln 12)
  EXPECT_NEAR(parsed(with("phi3, longrope", {})).rope.attention_factor, 1.2936992, 1e-6);
}

TEST(Alibi, SlopesOfThePaper) {
  EXPECT_EQ(alibi_slopes(4, false), (std::vector<float>{0.25f, 0.0625f, 0.015625f, 0.00390625f}));
  // Six heads: those of four, then the first and third of eight.
  const std::vector<float> six = alibi_slopes(6, false);
  EXPECT_EQ(std::vector<float>(six.begin(), six.begin() + 4), alibi_slopes(4, false));
  EXPECT_EQ(six[4], 0.5f);
  EXPECT_EQ(six[5], 0.125f);
  EXPECT_EQ(alibi_slopes(32, true)[0], 0.83984375f);  // 2^(-1/4) = 0.84090 in bf16
}

}  // namespace
}  // namespace thimble::models_test
