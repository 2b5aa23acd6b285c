// Every family and every switch of it: a small random checkpoint is written in Hugging Face's names, the engine loads it,
// and logits, loss, gradients and decoding with a cache are compared with the independent double-precision model. Both
// spellings of config.json are read where they differ.
#include <filesystem>
#include <random>

#include "tests/models/reference_model.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

using Json = nlohmann::json;

struct Row {
  std::string name;
  Json config;                // as transformers 4 writes it
  Json newer = nullptr;       // as transformers 5 writes it; null: the same
  bool one_length = false;    // frequencies follow from the length of the text
  bool fused_experts = false; // the file holds one tensor for all experts of a layer, as transformers 5 has them in memory
};

Json with(Json base, const Json& changes) {
  base.update(changes);
  return base;
}

// Every rotary setting under rope_parameters, dtype instead of torch_dtype.
Json renamed(Json c) {
  Json rope = c.contains("rope_scaling") && c["rope_scaling"].is_object() ? c["rope_scaling"] : Json{{"rope_type", "default"}};
  if (rope.contains("type")) rope["rope_type"] = rope["type"];
  rope.erase("type");
  rope["rope_theta"] = c.value(c.contains("rotary_emb_base") ? "rotary_emb_base" : "rope_theta", 10000.0);
  for (const char* key : {"partial_rotary_factor", "rotary_pct"})
    if (c.contains(key)) rope["partial_rotary_factor"] = c[key];
  for (const char* key : {"rope_scaling", "rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct", "torch_dtype"}) c.erase(key);
  c["rope_parameters"] = rope;
  c["dtype"] = "float32";
  return c;
}

std::vector<Row> rows() {
  const Json sizes = {{"vocab_size", 70},      {"hidden_size", 32},         {"intermediate_size", 44}, {"num_hidden_layers", 2},
                      {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"max_position_embeddings", 64}, {"torch_dtype", "float32"}};
  const Json llama = with(sizes, {{"model_type", "llama"}, {"rms_norm_eps", 1e-5}, {"rope_theta", 10000.0}});
  const auto scaled = [&](const Json& scaling, int64_t positions) {
    return with(llama, {{"rope_scaling", scaling}, {"max_position_embeddings", positions}});
  };
  std::vector<Row> list;
  const auto add = [&](const char* name, const Json& config) { list.push_back({name, config}); };
  const auto both = [&](const char* name, const Json& config) { list.push_back({name, config, renamed(config)}); };
  both("llama", llama);
  both("llama_mha_tied", with(llama, {{"num_key_value_heads", 4}, {"tie_word_embeddings", true}, {"rms_norm_eps", 1e-6}}));
  add("llama_biases", with(llama, {{"attention_bias", true}, {"mlp_bias", true}, {"head_dim", 12}}));
  both("llama_rope_linear", scaled({{"type", "linear"}, {"factor", 4.0}}, 64));
  both("llama_rope_dynamic", scaled({{"type", "dynamic"}, {"factor", 2.0}}, 16));
  list.back().one_length = true;
  both("llama_rope_llama3", scaled({{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
                                    {"original_max_position_embeddings", 32}}, 64));
  both("llama_rope_yarn", scaled({{"rope_type", "yarn"}, {"factor", 4.0}}, 64));
  both("llama_rope_yarn_original", scaled({{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 128},
                                           {"beta_fast", 16.0}, {"beta_slow", 2.0}}, 512));
  both("llama_rope_yarn_factor_given", scaled({{"rope_type", "yarn"}, {"factor", 8.0}, {"attention_factor", 1.3}}, 64));
  both("llama_rope_yarn_mscale", scaled({{"rope_type", "yarn"}, {"factor", 4.0}, {"mscale", 1.2}, {"mscale_all_dim", 0.5}, {"truncate", false},
                                         {"original_max_position_embeddings", 128}}, 512));

  const Json mistral = with(llama, {{"model_type", "mistral"}, {"sliding_window", 8}, {"head_dim", 12}});
  both("mistral_window", mistral);
  both("mistral_no_window", with(mistral, {{"sliding_window", nullptr}}));
  const Json mixtral = with(llama, {{"model_type", "mixtral"}, {"num_local_experts", 4}, {"num_experts_per_tok", 2}, {"sliding_window", nullptr}});
  both("mixtral", mixtral);
  both("mixtral_3_of_5_window", with(mixtral, {{"num_local_experts", 5}, {"num_experts_per_tok", 3}, {"sliding_window", 6}}));
  add("mixtral_1_of_2", with(mixtral, {{"num_local_experts", 2}, {"num_experts_per_tok", 1}}));
  both("mixtral_fused", mixtral);
  list.back().fused_experts = true;

  const Json qwen2 = with(llama, {{"model_type", "qwen2"}, {"rope_theta", 1e6}, {"use_sliding_window", false}, {"sliding_window", nullptr},
                                  {"max_window_layers", 28}});
  both("qwen2", qwen2);
  const Json qwen2_window = with(qwen2, {{"use_sliding_window", true}, {"sliding_window", 6}, {"max_window_layers", 1}});
  list.push_back({"qwen2_window", qwen2_window, with(renamed(qwen2_window), {{"layer_types", {"full_attention", "sliding_attention"}}})});
  both("qwen3", with(qwen2, {{"model_type", "qwen3"}, {"head_dim", 12}}));
  both("qwen3_biases", with(qwen2, {{"model_type", "qwen3"}, {"head_dim", 8}, {"attention_bias", true}, {"tie_word_embeddings", true}}));

  const Json gemma = with(llama, {{"model_type", "gemma"}, {"head_dim", 12}, {"num_key_value_heads", 1}, {"rms_norm_eps", 1e-6},
                                  {"hidden_act", "gelu_pytorch_tanh"}, {"hidden_activation", "gelu_pytorch_tanh"}});
  both("gemma", gemma);
  Json old_gemma = gemma;  // "gelu" alone meant tanh
  old_gemma.erase("hidden_activation");
  old_gemma["hidden_act"] = "gelu";
  add("gemma_legacy_activation", old_gemma);
  const Json gemma2 = with(gemma, {{"model_type", "gemma2"}, {"num_key_value_heads", 2}, {"query_pre_attn_scalar", 10},
                                   {"attn_logit_softcapping", 5.0}, {"final_logit_softcapping", 3.0}, {"sliding_window", 6}});
  list.push_back({"gemma2", gemma2, with(renamed(gemma2), {{"layer_types", {"sliding_attention", "full_attention"}}})});
  add("gemma2_no_softcaps", with(gemma2, {{"attn_logit_softcapping", nullptr}, {"final_logit_softcapping", nullptr}}));
  const Json gemma3 = with(gemma2, {{"model_type", "gemma3_text"}, {"num_hidden_layers", 4}, {"attn_logit_softcapping", nullptr},
                                    {"final_logit_softcapping", nullptr}, {"sliding_window_pattern", 3}, {"rope_theta", 1e4},
                                    {"rope_local_base_freq", 100.0}, {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}});
  Json gemma3_newer = with(renamed(gemma3), {{"layer_types", {"sliding_attention", "sliding_attention", "full_attention", "sliding_attention"}}});
  gemma3_newer["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e4}}},
                                     {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 100.0}}}};
  gemma3_newer.erase("sliding_window_pattern");
  gemma3_newer.erase("rope_local_base_freq");
  list.push_back({"gemma3_text", gemma3, gemma3_newer});

  both("phi", with(sizes, {{"model_type", "phi"}, {"layer_norm_eps", 1e-5}, {"hidden_act", "gelu_new"}, {"partial_rotary_factor", 0.5},
                           {"rope_theta", 10000.0}, {"num_key_value_heads", 4}}));
  both("phi_gqa", with(sizes, {{"model_type", "phi"}, {"layer_norm_eps", 1e-5}, {"hidden_act", "gelu_new"}, {"partial_rotary_factor", 0.5},
                               {"head_dim", 8}, {"rope_theta", 10000.0}, {"intermediate_size", 64}, {"hidden_size", 48},
                               {"num_attention_heads", 6}}));
  add("phi_qk_layernorm", with(sizes, {{"model_type", "phi"}, {"layer_norm_eps", 1e-5}, {"hidden_act", "gelu_new"}, {"partial_rotary_factor", 0.5},
                                       {"rope_theta", 10000.0}, {"qk_layernorm", true}}));
  const Json phi3 = with(llama, {{"model_type", "phi3"}, {"original_max_position_embeddings", 64}, {"sliding_window", nullptr}});
  both("phi3", phi3);
  both("phi3_window", with(phi3, {{"sliding_window", 7}, {"num_key_value_heads", 4}}));
  both("phi3_partial", with(phi3, {{"partial_rotary_factor", 0.5}}));
  const Json factors = {{"type", "longrope"}, {"short_factor", {1.0, 1.1, 1.3, 1.7}}, {"long_factor", {1.5, 2.5, 4.5, 9.0}}};
  both("phi3_longrope_short", with(phi3, {{"rope_scaling", factors}, {"original_max_position_embeddings", 32}}));
  list.back().one_length = true;
  both("phi3_longrope_long", with(phi3, {{"rope_scaling", factors}, {"original_max_position_embeddings", 16}}));
  list.back().one_length = true;
  add("phi3_su", with(phi3, {{"rope_scaling", with(factors, {{"type", "su"}})}, {"original_max_position_embeddings", 16}}));
  list.back().one_length = true;

  const Json stablelm = with(sizes, {{"model_type", "stablelm"}, {"layer_norm_eps", 1e-5}, {"partial_rotary_factor", 0.25},
                                     {"rope_theta", 10000}, {"use_qkv_bias", true}});
  both("stablelm", stablelm);
  add("stablelm_tied", with(stablelm, {{"use_qkv_bias", false}, {"tie_word_embeddings", true}}));
  both("stablelm_12b", with(stablelm, {{"use_parallel_residual", true}, {"qk_layernorm", true}, {"use_qkv_bias", false}, {"partial_rotary_factor", 0.5}}));

  const Json neox = with(sizes, {{"model_type", "gpt_neox"}, {"layer_norm_eps", 1e-5}, {"hidden_act", "gelu"}, {"rotary_pct", 0.25},
                                 {"rotary_emb_base", 10000}, {"use_parallel_residual", true}, {"num_key_value_heads", 4}});
  both("gpt_neox", neox);
  both("gpt_neox_sequential", with(neox, {{"use_parallel_residual", false}, {"rotary_pct", 1.0}, {"rotary_emb_base", 500}}));

  const Json gpt2 = {{"model_type", "gpt2"}, {"vocab_size", 70}, {"n_embd", 32}, {"n_layer", 2}, {"n_head", 4}, {"n_positions", 40},
                     {"n_inner", nullptr}, {"activation_function", "gelu_new"}, {"layer_norm_epsilon", 1e-5}};
  add("gpt2", gpt2);
  add("gpt2_inner", with(gpt2, {{"n_inner", 52}, {"tie_word_embeddings", false}}));
  add("gpt_bigcode", with(gpt2, {{"model_type", "gpt_bigcode"}, {"multi_query", true}, {"activation_function", "gelu_pytorch_tanh"}}));
  add("gpt2_scale_by_layer", with(gpt2, {{"scale_attn_by_inverse_layer_idx", true}}));
  add("gpt2_no_scale", with(gpt2, {{"scale_attn_weights", false}}));
  add("gpt_bigcode_multi_head", with(gpt2, {{"model_type", "gpt_bigcode"}, {"multi_query", false}, {"activation_function", "gelu_pytorch_tanh"}}));
  add("gptj", with(gpt2, {{"model_type", "gptj"}, {"rotary_dim", 4}}));
  add("gptj_full_rotary", with(gpt2, {{"model_type", "gptj"}, {"rotary_dim", 8}, {"n_inner", 40}}));

  const Json opt = with(sizes, {{"model_type", "opt"}, {"ffn_dim", 52}, {"activation_function", "relu"}, {"do_layer_norm_before", true},
                                {"word_embed_proj_dim", 32}, {"num_key_value_heads", 4}});
  add("opt", opt);
  add("opt_350m", with(opt, {{"do_layer_norm_before", false}, {"word_embed_proj_dim", 20}}));
  add("opt_no_bias", with(opt, {{"enable_bias", false}}));
  add("opt_plain_norms", with(opt, {{"layer_norm_elementwise_affine", false}}));

  const Json falcon = {{"model_type", "falcon"}, {"vocab_size", 70}, {"hidden_size", 32}, {"num_hidden_layers", 2}, {"num_attention_heads", 4},
                       {"num_kv_heads", 4}, {"ffn_hidden_size", 52}, {"activation", "gelu"}, {"layer_norm_epsilon", 1e-5}, {"multi_query", true},
                       {"parallel_attn", true}, {"new_decoder_architecture", false}, {"alibi", false}, {"bias", false}, {"rope_theta", 10000.0},
                       {"rope_scaling", nullptr}, {"max_position_embeddings", 64}, {"num_ln_in_parallel_attn", nullptr}};
  both("falcon_7b", falcon);
  both("falcon_40b", with(falcon, {{"new_decoder_architecture", true}, {"num_kv_heads", 2}}));
  both("falcon_11b", with(falcon, {{"new_decoder_architecture", true}, {"num_kv_heads", 2}, {"num_ln_in_parallel_attn", 1}}));
  add("falcon_rw", with(falcon, {{"alibi", true}, {"bias", true}, {"multi_query", false}, {"parallel_attn", false}, {"ffn_hidden_size", nullptr}}));
  add("falcon_multi_head_rope", with(falcon, {{"multi_query", false}, {"parallel_attn", false}, {"tie_word_embeddings", false}}));

  const Json bloom = {{"model_type", "bloom"}, {"vocab_size", 70}, {"hidden_size", 32}, {"n_layer", 2}, {"n_head", 4}, {"layer_norm_epsilon", 1e-5}};
  add("bloom", bloom);
  add("bloom_6_heads", with(bloom, {{"hidden_size", 48}, {"n_head", 6}}));

  const Json olmo = with(sizes, {{"model_type", "olmo"}, {"clip_qkv", 0.8}, {"rope_theta", 10000.0}});
  both("olmo", olmo);
  add("olmo_no_clip", with(olmo, {{"clip_qkv", nullptr}, {"tie_word_embeddings", true}}));
  both("olmo2", with(llama, {{"model_type", "olmo2"}, {"rope_theta", 5e5}, {"rms_norm_eps", 1e-6}}));

  const Json starcoder2 = with(sizes, {{"model_type", "starcoder2"}, {"norm_epsilon", 1e-5}, {"hidden_act", "gelu_pytorch_tanh"}, {"use_bias", true},
                                       {"sliding_window", 8}, {"rope_theta", 1e5}});
  both("starcoder2", starcoder2);
  add("starcoder2_no_bias", with(starcoder2, {{"use_bias", false}, {"sliding_window", nullptr}, {"tie_word_embeddings", false}}));

  const Json cohere = with(sizes, {{"model_type", "cohere"}, {"layer_norm_eps", 1e-5}, {"logit_scale", 0.25}, {"rope_theta", 10000.0}});
  both("cohere", cohere);
  both("cohere_qk_norm", with(cohere, {{"use_qk_norm", true}, {"logit_scale", 0.0625}}));
  return list;
}

constexpr int64_t kLongest = 21;

// What a random checkpoint of a row is, and what the double-precision model makes of it.
struct Judge {
  explicit Judge(const Row& row) : model(row.config), weights(model.random(std::hash<std::string>()(row.name) % 1000 + 1)) {
    ids = {text(1, kLongest, model.vocab()), text(2, row.one_length ? kLongest : 13, model.vocab())};
    for (const auto& sequence : ids) logits.push_back(model.logits(weights, sequence));
  }
  reference::Model model;
  reference::Tensors weights;
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<double>> logits;
};

void write(const std::string& dir, const Json& config, const reference::Tensors& weights) {
  std::filesystem::create_directories(dir);
  write_json(dir + "/config.json", config);
  reference::write_safetensors(dir + "/model.safetensors", weights);
}

// One tensor for the experts of a layer: gate_up_proj [experts, gate rows and up rows, hidden], down_proj [experts, hidden, rows].
reference::Tensors fused(const reference::Tensors& plain, const Json& config) {
  reference::Tensors all;
  for (const auto& [name, t] : plain) {
    const size_t moe = name.find("block_sparse_moe.");
    if (moe == std::string::npos) {
      all[name] = t;
    } else if (name.find(".gate.weight") != std::string::npos) {
      all[name.substr(0, moe) + "mlp.gate.weight"] = t;
    }
  }
  for (int64_t l = 0; l < config["num_hidden_layers"]; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const int64_t experts = config["num_local_experts"];
    reference::Tensor &both = all[layer + "mlp.experts.gate_up_proj"], &down = all[layer + "mlp.experts.down_proj"];
    for (int64_t e = 0; e < experts; ++e) {
      const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e) + ".";
      const reference::Tensor &w1 = plain.at(expert + "w1.weight"), &w2 = plain.at(expert + "w2.weight"), &w3 = plain.at(expert + "w3.weight");
      both.shape = {experts, 2 * w1.shape[0], w1.shape[1]};
      down.shape = {experts, w2.shape[0], w2.shape[1]};
      both.data.insert(both.data.end(), w1.data.begin(), w1.data.end());
      both.data.insert(both.data.end(), w3.data.begin(), w3.data.end());
      down.data.insert(down.data.end(), w2.data.begin(), w2.data.end());
    }
  }
  return all;
}

double worst_logit(Model& model, const Judge& judge, Tier tier, int threads) {
  Engine engine(tier, threads);
  Transformer transformer(model, kLongest);
  Rows batch;
  for (const auto& sequence : judge.ids) batch.add(sequence);
  const std::vector<float> got = logits_of(transformer, *engine.ctx, batch);
  double worst = 0;
  size_t i = 0;
  for (const auto& sequence : judge.logits)
    for (double want : sequence) worst = std::max(worst, std::fabs(double(got.at(i++)) - want));
  EXPECT_EQ(i, got.size());
  return worst;
}

// The prompt in two pieces, then token by token.
double worst_decoded(Model& model, const Judge& judge) {
  Engine engine;
  Transformer transformer(model, kLongest);
  Generator generator(transformer, *engine.ctx, kLongest);
  const std::vector<int32_t>& ids = judge.ids[0];
  double worst = 0;
  for (int64_t fed = 0; fed < kLongest;) {
    const int64_t count = fed == 0 ? 7 : fed == 7 ? 4 : 1;
    const float* got = generator.feed(&ids[static_cast<size_t>(fed)], count);
    fed += count;
    for (int64_t v = 0; v < judge.model.vocab(); ++v)
      worst = std::max(worst, std::fabs(double(got[v]) - judge.logits[0][static_cast<size_t>((fed - 1) * judge.model.vocab() + v)]));
  }
  return worst;
}

// Each tensor along random directions of entries +-1: then <g, d> is of the size of |g|, and an error e of the gradient
// shows as about |e|. The loss must be smooth on the scale of the step: the difference between a three-point and a five-point
// estimate says how far it is, and must stay small.
void check_gradients(Model& model, const Judge& judge, Recompute recompute) {
  Engine engine;
  Context& ctx = *engine.ctx;
  Transformer transformer(model, kLongest);
  Rows batch;
  std::vector<int32_t> labels;
  for (const auto& sequence : judge.ids) {
    batch.add(sequence);
    labels.insert(labels.end(), sequence.begin() + 1, sequence.end());
    labels.push_back(-1);
  }
  Tape tape;
  ctx.tape = &tape;
  const Batch b = batch.batch();
  const double loss = transformer.loss(ctx, transformer.forward(ctx, b, recompute), labels.data(), double(b.n - b.n_seqs));
  EXPECT_NEAR(loss, judge.model.loss(judge.weights, judge.ids), 1e-5);
  backward(ctx);
  std::set<std::string> seen;
  export_tensors(model, engine.kernels, ExportWhat::gradients, [&](const ExportedTensor& t) {
    seen.insert(t.name);
    const auto found = judge.weights.find(t.name);
    ASSERT_NE(found, judge.weights.end()) << t.name;
    ASSERT_EQ(found->second.data.size(), t.data.size()) << t.name;
    double norm = 0;
    for (float g : t.data) norm += double(g) * double(g);
    norm = std::sqrt(norm);
    std::mt19937_64 random(t.data.size());
    for (int n = 0; n < 2; ++n) {
      std::vector<double> direction;
      double got = 0;
      for (float g : t.data) {
        direction.push_back(random() & 1 ? 1 : -1);
        got += double(g) * direction.back();
      }
      reference::Tensors moved = judge.weights;
      const auto at = [&](double step) {
        std::vector<double>& data = moved[t.name].data;
        for (size_t i = 0; i < data.size(); ++i) data[i] = found->second.data[i] + step * direction[i];
        return judge.model.loss(moved, judge.ids);
      };
      constexpr double kStep = 2e-7;  // small, so that hardly any ReLU has its kink within
      const double near = (at(kStep) - at(-kStep)) / (2 * kStep), far = (at(2 * kStep) - at(-2 * kStep)) / (4 * kStep);
      const double want = (4 * near - far) / 3, bend = std::fabs(near - want);
      EXPECT_LE(bend, 1e-4 * norm + 1e-6) << t.name << ": the loss is not smooth enough to be a judge";
      // 4 standard deviations of a projected error of 1e-4 |g| + 1e-6.
      EXPECT_NEAR(got, want, 4 * (1e-4 * norm + 1e-6) + bend) << t.name << ", |g| " << norm;
    }
  });
  for (const auto& [name, t] : judge.weights) EXPECT_TRUE(seen.count(name)) << name << " got no gradient";
}

class Families : public ::testing::TestWithParam<Row> {};

TEST_P(Families, AgreeWithTheReference) {
  const Row& row = GetParam();
  const Judge judge(row);
  const ScratchDir scratch;
  const std::string dir = scratch.path() + "/model", newer = scratch.path() + "/newer";
  write(dir, row.config, row.fused_experts ? fused(judge.weights, row.config) : judge.weights);
  const KernelTable kernels = build_kernel_table(best_tier());
  Model mapped = load_model(dir, kernels);
  for (Tier tier : tiers()) EXPECT_LE(worst_logit(mapped, judge, tier, 2), 1e-4) << tier_name(tier);
  EXPECT_LE(worst_decoded(mapped, judge), 1e-4) << "with a cache";
  if (!row.newer.is_null()) {
    write(newer, row.newer, judge.weights);
    Model again = load_model(newer, kernels);
    EXPECT_LE(worst_logit(again, judge, best_tier(), 2), 1e-4) << "config of transformers 5";
  }
  LoadOptions trainable;
  trainable.trainable = true;
  Model model = load_model(dir, kernels, trainable);
  enable_gradients(model);
  check_gradients(model, judge, Recompute::none);
}

// What is exported is what was read: names, shapes, and every bit.
TEST_P(Families, ExportGivesTheFileBack) {
  const Row& row = GetParam();
  const Judge judge(row);
  const ScratchDir scratch;
  write(scratch.path() + "/model", row.config, judge.weights);
  const KernelTable kernels = build_kernel_table(best_tier());
  const Model model = load_model(scratch.path() + "/model", kernels);
  size_t count = 0;
  export_tensors(model, kernels, ExportWhat::weights, [&](const ExportedTensor& t) {
    const reference::Tensor& want = judge.weights.at(t.name);
    EXPECT_EQ(t.shape, want.shape) << t.name;
    ASSERT_EQ(t.data.size(), want.data.size()) << t.name;
    for (size_t i = 0; i < want.data.size(); ++i) ASSERT_EQ(double(t.data[i]), want.data[i]) << t.name;
    ++count;
  });
  EXPECT_EQ(count, judge.weights.size());
}

// A block that is run again for backward gives the same bits, in f32 and with bf16 products.
TEST_P(Families, RecomputeGivesTheSameBits) {
  const Row& row = GetParam();
  const Judge judge(row);
  const ScratchDir scratch;
  write(scratch.path() + "/model", row.config, judge.weights);
  const KernelTable kernels = build_kernel_table(best_tier());
  LoadOptions trainable;
  trainable.trainable = true;
  Model model = load_model(scratch.path() + "/model", kernels, trainable);
  enable_gradients(model);
  Transformer transformer(model, kLongest);
  Rows batch;
  for (const auto& sequence : judge.ids) batch.add(sequence);
  const std::vector<int32_t> labels = text(3, static_cast<int64_t>(batch.ids.size()), judge.model.vocab());
  const auto step = [&](Recompute recompute, int threads, Precision precision) {
    Context ctx(kernels, threads, nullptr);
    ctx.precision = precision;
    ctx.training = precision == Precision::bf16;
    Tape tape;
    ctx.tape = &tape;
    for_each_weight(model.weights, [](Role, int64_t, Weight& w) { w.grad_written = false; });
    const Batch b = batch.batch();
    std::vector<float> all = {static_cast<float>(transformer.loss(ctx, transformer.forward(ctx, b, recompute), labels.data(), double(b.n)))};
    backward(ctx);
    for_each_weight(model.weights, [&](Role, int64_t, Weight& w) { all.insert(all.end(), w.grad, w.grad + w.numel()); });
    return all;
  };
  for (Precision precision : {Precision::f32, Precision::bf16}) {
    const std::vector<float> kept = step(Recompute::none, 2, precision);
    EXPECT_TRUE(same_bits(kept, step(Recompute::none, 1, precision)));
    EXPECT_TRUE(same_bits(kept, step(Recompute::block, 2, precision)));
    EXPECT_TRUE(same_bits(kept, step(Recompute::cheap, 3, precision)));
  }
}

INSTANTIATE_TEST_SUITE_P(Reference, Families, ::testing::ValuesIn(rows()), [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace thimble::models_test
