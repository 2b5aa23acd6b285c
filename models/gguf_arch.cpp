#include "models/gguf_arch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "models/families.h"
#include "models/io/ggml_blocks.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using Json = nlohmann::json;
using Names = std::vector<GgufName>;

Names with(Names names, std::initializer_list<GgufName> more) {
  names.insert(names.end(), more);
  return names;
}

const Names kLlamaBase = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "model.layers.{}.input_layernorm"},
    {"blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"},
    {"blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"},
    {"blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"},
    {"blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"},
    {"blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"},
};
constexpr GgufName kNorm2 = {"blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"};
constexpr GgufName kQ = {"blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"};
constexpr GgufName kK = {"blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"};
constexpr GgufName kPairsQ = {"blk.{}.attn_q", "model.layers.{}.self_attn.q_proj", GgufChange::pairs_q};
constexpr GgufName kPairsK = {"blk.{}.attn_k", "model.layers.{}.self_attn.k_proj", GgufChange::pairs_k};
constexpr GgufName kQNorm = {"blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"};
constexpr GgufName kKNorm = {"blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"};

const Names kLlamaNames =
    with(kLlamaBase, {kNorm2,
                      kPairsQ,
                      kPairsK,
                      {"blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate"},
                      {"blk.{}.ffn_gate_exps", "model.layers.{}.block_sparse_moe.experts.{}.w1", GgufChange::experts},
                      {"blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.experts.{}.w2", GgufChange::experts},
                      {"blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.experts.{}.w3", GgufChange::experts}});
const Names kPlainNames = with(kLlamaBase, {kNorm2, kQ, kK, kQNorm, kKNorm});
const Names kOlmoNames = with(kLlamaBase, {kPairsQ, kPairsK});
const Names kOlmo2Names = with(kLlamaBase, {kQ,
                                            kK,
                                            kQNorm,
                                            kKNorm,
                                            {"blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"},
                                            {"blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"}});

Names with_offset_norms(Names names) {
  for (GgufName& n : names) {
    const std::string_view name = n.gguf;
    if (name.size() > 5 && name.substr(name.size() - 5) == "_norm") n.change = GgufChange::plus_one;
  }
  return names;
}
const Names kGemmaNames = with_offset_norms(with(kLlamaBase, {kNorm2, kQ, kK}));
const Names kGemma2Names =
    with_offset_norms(with(kLlamaBase, {kQ,
                                        kK,
                                        kQNorm,
                                        kKNorm,
                                        {"blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"},
                                        {"blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"},
                                        {"blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"}}));
const Names kStablelmNames = with(
    kLlamaBase, {kNorm2,
                 kQ,
                 kK,
                 {"blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_layernorm.norms.{}", GgufChange::head_norms},
                 {"blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_layernorm.norms.{}", GgufChange::head_norms}});
const Names kStarcoder2Names = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "model.layers.{}.input_layernorm"},
    kQ,
    kK,
    {"blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"},
    {"blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"},
    kNorm2,
    {"blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"},
    {"blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"},
};
const Names kPhi2Names = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.final_layernorm"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "model.layers.{}.input_layernorm"},
    kQ,
    kK,
    {"blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"},
    {"blk.{}.attn_qkv", "model.layers.{}.self_attn.q_proj", GgufChange::only_q},
    {"blk.{}.attn_qkv", "model.layers.{}.self_attn.k_proj", GgufChange::only_k},
    {"blk.{}.attn_qkv", "model.layers.{}.self_attn.v_proj", GgufChange::only_v},
    {"blk.{}.attn_output", "model.layers.{}.self_attn.dense"},
    {"blk.{}.ffn_up", "model.layers.{}.mlp.fc1"},
    {"blk.{}.ffn_down", "model.layers.{}.mlp.fc2"},
};
const Names kPhi3Names = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "model.layers.{}.input_layernorm"},
    {"blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"},
    {"blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"},
    kNorm2,
    {"blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"},
    {"blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"},
};
const Names kNeoxNames = {
    {"token_embd", "gpt_neox.embed_in"},
    {"output_norm", "gpt_neox.final_layer_norm"},
    {"output", "embed_out"},
    {"blk.{}.attn_norm", "gpt_neox.layers.{}.input_layernorm"},
    {"blk.{}.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value", GgufChange::per_head},
    {"blk.{}.attn_output", "gpt_neox.layers.{}.attention.dense"},
    {"blk.{}.ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"},
    {"blk.{}.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"},
    {"blk.{}.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"},
};
const Names kGpt2Names = {
    {"token_embd", "transformer.wte"},
    {"position_embd", "transformer.wpe"},
    {"output_norm", "transformer.ln_f"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "transformer.h.{}.ln_1"},
    {"blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn", GgufChange::transposed},
    {"blk.{}.attn_output", "transformer.h.{}.attn.c_proj", GgufChange::transposed},
    {"blk.{}.ffn_norm", "transformer.h.{}.ln_2"},
    {"blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc", GgufChange::transposed},
    {"blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj", GgufChange::transposed},
};
Names without_changes(Names names) {
  for (GgufName& n : names) n.change = GgufChange::none;
  return names;
}
const Names kStarcoderNames = without_changes(kGpt2Names);  // its projections are ordinary linears
const Names kGptjNames = {
    {"token_embd", "transformer.wte"},
    {"output_norm", "transformer.ln_f"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "transformer.h.{}.ln_1"},
    {"blk.{}.attn_q", "transformer.h.{}.attn.q_proj"},
    {"blk.{}.attn_k", "transformer.h.{}.attn.k_proj"},
    {"blk.{}.attn_v", "transformer.h.{}.attn.v_proj"},
    {"blk.{}.attn_output", "transformer.h.{}.attn.out_proj"},
    {"blk.{}.ffn_up", "transformer.h.{}.mlp.fc_in"},
    {"blk.{}.ffn_down", "transformer.h.{}.mlp.fc_out"},
};
const Names kBloomNames = {
    {"token_embd", "transformer.word_embeddings"},
    {"token_embd_norm", "transformer.word_embeddings_layernorm"},
    {"output_norm", "transformer.ln_f"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "transformer.h.{}.input_layernorm"},
    {"blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value", GgufChange::per_head},
    {"blk.{}.attn_output", "transformer.h.{}.self_attention.dense"},
    {"blk.{}.ffn_norm", "transformer.h.{}.post_attention_layernorm"},
    {"blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"},
    {"blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"},
};
// attn_norm is the mlp's norm in files of the new architecture, whose own attention norm is attn_norm_2.
const Names kFalconNames = {
    {"token_embd", "transformer.word_embeddings"},
    {"output_norm", "transformer.ln_f"},
    {"output", "lm_head"},
    {"blk.{}.attn_norm", "transformer.h.{}.input_layernorm"},
    {"blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value", GgufChange::per_head},
    {"blk.{}.attn_output", "transformer.h.{}.self_attention.dense"},
    {"blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"},
    {"blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"},
};
const Names kFalconTwoNorms = [] {
  Names names = kFalconNames;
  names[3].hf = "transformer.h.{}.ln_mlp";
  names.push_back({"blk.{}.attn_norm_2", "transformer.h.{}.ln_attn"});
  return names;
}();
const Names kBertNames = {
    {"token_embd", "embeddings.word_embeddings"},
    {"position_embd", "embeddings.position_embeddings"},
    {"token_types", "embeddings.token_type_embeddings"},
    {"token_embd_norm", "embeddings.LayerNorm"},
    {"blk.{}.attn_q", "encoder.layer.{}.attention.self.query"},
    {"blk.{}.attn_k", "encoder.layer.{}.attention.self.key"},
    {"blk.{}.attn_v", "encoder.layer.{}.attention.self.value"},
    {"blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"},
    {"blk.{}.attn_output_norm", "encoder.layer.{}.attention.output.LayerNorm"},
    {"blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"},
    {"blk.{}.ffn_down", "encoder.layer.{}.output.dense"},
    {"blk.{}.layer_output_norm", "encoder.layer.{}.output.LayerNorm"},
};

const GgufArch kArchs[] = {
    {"llama", "llama", &kLlamaNames},
    {"llama", "mistral", &kLlamaNames},
    {"llama", "mixtral", &kLlamaNames},
    {"qwen2", "qwen2", &kPlainNames},
    {"qwen3", "qwen3", &kPlainNames},
    {"gemma", "gemma", &kGemmaNames},
    {"gemma2", "gemma2", &kGemma2Names},
    {"gemma3", "gemma3_text", &kGemma2Names},
    {"phi2", "phi", &kPhi2Names},
    {"phi3", "phi3", &kPhi3Names},
    {"stablelm", "stablelm", &kStablelmNames},
    {"gptneox", "gpt_neox", &kNeoxNames},
    {"gpt2", "gpt2", &kGpt2Names},
    {"gptj", "gptj", &kGptjNames},
    {"starcoder", "gpt_bigcode", &kStarcoderNames},
    {"starcoder2", "starcoder2", &kStarcoder2Names},
    {"falcon", "falcon", &kFalconNames},
    {"bloom", "bloom", &kBloomNames},
    {"olmo", "olmo", &kOlmoNames},
    {"olmo2", "olmo2", &kOlmo2Names},
    {"command-r", "cohere", &kPlainNames},
    {"bert", "bert", &kBertNames},
};

// Reads one file's metadata into config.json's words.
class Translator {
 public:
  explicit Translator(const GgufFile& f) : f_(f), arch_(f.require_string("general.architecture")) {}

  Json run() {
    const GgufArch* row = find_gguf_arch(arch_);
    if (!row)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: architecture {} is not supported", f_.path(), quote_for_message(arch_)),
                  "supported: " + known_gguf_archs());
    const std::string type = f_.get_string("general.type").value_or("model");
    if (type != "model")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: general.type is {}: expected a model", f_.path(), quote_for_message(type)),
                  type == "adapter" ? "give an adapter with --adapter, and its base model here"
                                    : "give the file that holds the weights");
    c_["model_type"] = row->model_type;
    sizes();
    tokens();
    c_["tie_word_embeddings"] = tied();
    own(row->model_type);
    return std::move(c_);
  }

 private:
  std::string key(const char* name) const { return arch_ + "." + name; }
  int64_t need(const char* name) const { return f_.require_int(key(name), 1, kMaxDim); }
  std::optional<int64_t> get(const char* name) const {
    const std::optional<int64_t> v = f_.get_int(key(name));
    return v && *v > 0 ? v : std::nullopt;
  }
  // llama.cpp wants the head of some architectures even where it repeats the embeddings.
  bool tied() const {
    const GgufTensor *head = f_.find_tensor("output.weight"), *embed = f_.find_tensor("token_embd.weight");
    if (!head) return true;
    if (!is("gpt2") && !is("bloom")) return false;
    return head->type == embed->type && head->bytes == embed->bytes &&
           std::memcmp(f_.data(*head), f_.data(*embed), head->bytes) == 0;
  }
  bool has_tensor(const char* name) const { return f_.find_tensor(name) != nullptr; }
  bool is(const char* arch) const { return arch_ == arch; }

  void sizes() {
    const GgufTensor* embed = f_.find_tensor("token_embd.weight");
    if (!embed || embed->dims.size() != 2)
      throw Error(ErrorCode::input, f_.path() + ": tensor token_embd.weight: expected a matrix",
                  "the file holds no whole model");
    const int64_t heads = need("attention.head_count"), hidden = need("embedding_length");
    const int64_t kv_heads = get("attention.head_count_kv").value_or(heads);
    head_dim_ = get("attention.key_length").value_or(std::max<int64_t>(1, hidden / heads));
    heads_ = heads;
    hidden_ = hidden;
    if (const auto value = get("attention.value_length"); value && *value != head_dim_)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: heads of values have {} entries, those of keys {}", f_.path(), *value, head_dim_),
                  "supported: the same length for both");
    c_["vocab_size"] = embed->dims[1];
    const bool gpt2_words = is("gpt2") || is("gptj") || is("starcoder");
    c_[gpt2_words ? "n_embd" : "hidden_size"] = hidden;
    c_[gpt2_words ? "n_layer" : "num_hidden_layers"] = need("block_count");
    c_[gpt2_words ? "n_head" : "num_attention_heads"] = heads;
    c_[gpt2_words ? "n_inner" : is("falcon") ? "ffn_hidden_size" : "intermediate_size"] = need("feed_forward_length");
    if (const auto context = get("context_length"))
      c_[gpt2_words ? "n_positions" : "max_position_embeddings"] = *context;
    if (!gpt2_words && !is("gptneox") && !is("bloom") && !is("falcon") && !is("bert"))
      c_["num_key_value_heads"] = kv_heads;
    if (head_dim_ * heads != hidden) c_["head_dim"] = head_dim_;
    kv_heads_ = kv_heads;
    if (const auto eps = f_.get_float(key("attention.layer_norm_rms_epsilon"))) c_["rms_norm_eps"] = round_trip(*eps);
    if (const auto eps = f_.get_float(key("attention.layer_norm_epsilon")))
      c_[gpt2_words || is("falcon") || is("bloom") ? "layer_norm_epsilon"
         : is("starcoder2")                        ? "norm_epsilon"
                                                   : "layer_norm_eps"] = round_trip(*eps);
    if (const auto theta = f_.get_float(key("rope.freq_base")))
      c_[is("gptneox") ? "rotary_emb_base" : "rope_theta"] = round_trip(*theta);
    rope_scaling();
  }

  // The shortest decimal that means the same f32: 1e-5, not 9.99999974e-06.
  static double round_trip(double v) { return std::stod(fmt::format("{}", static_cast<float>(v))); }

  void tokens() {
    if (const auto bos = f_.get_int("tokenizer.ggml.bos_token_id")) c_["bos_token_id"] = *bos;
    std::vector<int64_t> ends;
    for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"})
      if (const auto id = f_.get_int(name); id && std::find(ends.begin(), ends.end(), *id) == ends.end())
        ends.push_back(*id);
    if (ends.size() == 1) c_["eos_token_id"] = ends[0];
    if (ends.size() > 1) c_["eos_token_id"] = ends;
    if (const auto pad = f_.get_int("tokenizer.ggml.padding_token_id")) c_["pad_token_id"] = *pad;
  }

  std::vector<float> factors(const char* tensor) const {
    const GgufTensor* t = f_.find_tensor(tensor);
    if (!t) return {};
    const int64_t rotated = get("rope.dimension_count").value_or(head_dim_);
    if (t->elements() != rotated / 2 || !ggml_is_plain(t->type))
      throw Error(
          ErrorCode::input,
          fmt::format("{}: tensor {}: expected {} numbers, one per rotary pair", f_.path(), tensor, rotated / 2),
          "convert the model again");
    std::vector<float> v(static_cast<size_t>(t->elements()));
    decode_ggml(t->type, f_.data(*t), t->elements(), v.data());
    for (float x : v)
      if (!(x > 0) || !std::isfinite(x))
        throw Error(ErrorCode::input,
                    fmt::format("{}: tensor {}: expected positive numbers, found {}", f_.path(), tensor, x),
                    "convert the model again");
    return v;
  }

  void rope_scaling() {
    const std::string type = f_.get_string(key("rope.scaling.type")).value_or("");
    const std::optional<double> factor = f_.get_float(key("rope.scaling.factor")),
                                old = f_.get_float(key("rope.scale_linear"));
    const std::optional<int64_t> original = get("rope.scaling.original_context_length");
    const std::vector<float> both = factors("rope_freqs.weight"), lengthy = factors("rope_factors_long.weight"),
                             brief = factors("rope_factors_short.weight");
    Json s;
    if (!lengthy.empty() && !brief.empty()) {
      s = {{"rope_type", "longrope"}, {"long_factor", lengthy}, {"short_factor", brief}};
      if (const auto a = f_.get_float(key("rope.scaling.attn_factor"))) s["attention_factor"] = *a;
      if (original) c_["original_max_position_embeddings"] = *original;
    } else if (!both.empty()) {
      s = llama3_of(both);
      // Any other list of factors: the same for short and long texts, and cos and sin left alone.
      if (s.is_null()) {
        s = {{"rope_type", "longrope"}, {"long_factor", both}, {"short_factor", both}, {"attention_factor", 1.0}};
        s["original_max_position_embeddings"] = original.value_or(get("context_length").value_or(2048));
      }
    } else if (type == "yarn") {
      s = {{"rope_type", "yarn"}, {"factor", factor.value_or(1.0)}};
      if (original) s["original_max_position_embeddings"] = *original;
      for (const auto& [name, hf] : {std::pair{"rope.scaling.yarn_beta_fast", "beta_fast"},
                                     std::pair{"rope.scaling.yarn_beta_slow", "beta_slow"}})
        if (const auto v = f_.get_float(key(name))) s[hf] = *v;
    } else if (type == "linear" || (type.empty() && (factor.value_or(old.value_or(0)) > 1))) {
      const double by = factor.value_or(old.value_or(1.0));
      if (by != 1.0) s = {{"rope_type", "linear"}, {"factor", by}};
    } else if (!type.empty() && type != "none" && type != "longrope") {
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: rotary scaling {} is not supported", f_.path(), quote_for_message(type)),
                  "supported: none, linear, yarn, longrope");
    }
    if (!s.is_null()) c_["rope_scaling"] = s;
  }

  // Llama 3's published settings, when they give exactly these factors.
  Json llama3_of(const std::vector<float>& found) const {
    const double theta = f_.get_float(key("rope.freq_base")).value_or(10000.0),
                 factor = *std::max_element(found.begin(), found.end());
    const double original = 8192, low = 1, high = 4;
    for (size_t j = 0; j < found.size(); ++j) {
      const double wavelength = 2 * M_PI * std::pow(theta, double(j) / double(found.size()));
      const double s = (original / wavelength - low) / (high - low);
      const double expected = wavelength < original / high  ? 1
                              : wavelength > original / low ? factor
                                                            : 1 / ((1 - s) / factor + s);
      if (std::fabs(found[j] - expected) > 1e-4 * expected) return nullptr;
    }
    return {{"rope_type", "llama3"},
            {"factor", factor},
            {"low_freq_factor", low},
            {"high_freq_factor", high},
            {"original_max_position_embeddings", 8192}};
  }

  void own(const std::string& type) {
    const double rotated = static_cast<double>(get("rope.dimension_count").value_or(head_dim_));
    const double share = rotated / static_cast<double>(head_dim_);
    if (type == "llama") {
      const bool q = has_tensor("blk.0.attn_q.bias"), o = has_tensor("blk.0.attn_output.bias");
      if (const auto experts = get("expert_count")) {
        c_["model_type"] = "mixtral";
        c_["num_local_experts"] = *experts;
        c_["num_experts_per_tok"] = need("expert_used_count");
        if (!c_.contains("rope_theta")) c_["rope_theta"] = 10000.0;  // config.json's default is another one
      } else if (q && !o) {
        c_["model_type"] = "qwen2";  // the same network with biases on q, k and v only
      } else {
        c_["attention_bias"] = q;
        c_["mlp_bias"] = has_tensor("blk.0.ffn_gate.bias");
      }
      if (rotated != head_dim_) unsupported_rotary(rotated);
    } else if (type == "qwen3") {
      c_["head_dim"] = head_dim_;
    } else if (type == "gemma" || type == "gemma2" || type == "gemma3_text") {
      c_["head_dim"] = head_dim_;
      gemma(type);
    } else if (type == "phi") {
      c_["partial_rotary_factor"] = share;
      if (rotated == 0) unsupported_rotary(rotated);
    } else if (type == "phi3") {
      if (rotated != head_dim_) c_["partial_rotary_factor"] = share;
      // llama.cpp wants the key: a window as long as the context is none.
      if (const auto window = get("attention.sliding_window");
          window && *window < get("context_length").value_or(kMaxDim))
        c_["sliding_window"] = *window;
    } else if (type == "stablelm") {
      c_["partial_rotary_factor"] = share;
      c_["use_qkv_bias"] = has_tensor("blk.0.attn_q.bias");
      c_["use_parallel_residual"] = !has_tensor("blk.0.ffn_norm.weight");
      c_["qk_layernorm"] = has_tensor("blk.0.attn_q_norm.weight");
    } else if (type == "gpt_neox") {
      c_["rotary_pct"] = share;
      c_["hidden_act"] = "gelu";
      c_["use_parallel_residual"] = f_.get_bool(key("use_parallel_residual")).value_or(true);
      c_["attention_bias"] = has_tensor("blk.0.attn_qkv.bias");
    } else if (type == "gptj") {
      c_["rotary_dim"] = static_cast<int64_t>(rotated);
    } else if (type == "gpt_bigcode") {
      c_["multi_query"] = kv_heads_ == 1;
    } else if (type == "starcoder2") {
      c_["use_bias"] = has_tensor("blk.0.attn_q.bias");
      if (const auto window = get("attention.sliding_window")) c_["sliding_window"] = *window;
    } else if (type == "falcon") {
      const bool grouped = has_tensor("blk.0.attn_norm_2.weight");
      c_["new_decoder_architecture"] = grouped || (kv_heads_ != 1 && kv_heads_ != heads_);
      c_["num_kv_heads"] = kv_heads_;
      c_["num_ln_in_parallel_attn"] = grouped ? 2 : 1;
      c_["multi_query"] = kv_heads_ == 1;
      c_["parallel_attn"] = true;
      c_["bias"] = has_tensor("blk.0.attn_qkv.bias");
      c_["alibi"] = false;
    } else if (type == "olmo") {
      if (const auto clip = f_.get_float(key("attention.clamp_kqv")); clip && *clip > 0)
        c_["clip_qkv"] = round_trip(*clip);
      c_.erase("layer_norm_eps");
    } else if (type == "cohere") {
      c_["logit_scale"] = round_trip(f_.get_float(key("logit_scale")).value_or(1.0));
      c_["use_qk_norm"] = has_tensor("blk.0.attn_q_norm.weight");
    } else if (type == "bert") {
      if (const GgufTensor* t = f_.find_tensor("token_types.weight"); t && t->dims.size() == 2)
        c_["type_vocab_size"] = t->dims[1];
      c_["hidden_act"] = "gelu";
    }
  }

  void gemma(const std::string& type) {
    if (type == "gemma") return;
    const int64_t layers = need("block_count");
    // The largest of each generation scales scores by the width per head instead of the head's own; no key tells.
    const bool largest = (type == "gemma2" && layers == 46) || (type == "gemma3_text" && layers == 62);
    c_["query_pre_attn_scalar"] = largest ? hidden_ / heads_ : head_dim_;
    c_["sliding_window"] = nullptr;
    c_["attn_logit_softcapping"] = nullptr;
    c_["final_logit_softcapping"] = nullptr;
    if (type == "gemma2") {  // what the model was published with; files of its first days lack the keys
      if (!f_.find(key("attention.sliding_window"))) c_["sliding_window"] = 4096;
      c_["attn_logit_softcapping"] = 50.0;
      c_["final_logit_softcapping"] = 30.0;
    }
    if (const auto window = get("attention.sliding_window")) c_["sliding_window"] = *window;
    if (const auto cap = f_.get_float(key("attn_logit_softcapping"))) c_["attn_logit_softcapping"] = *cap;
    if (const auto cap = f_.get_float(key("final_logit_softcapping"))) c_["final_logit_softcapping"] = *cap;
    if (type == "gemma3_text") {
      if (!c_.contains("rope_theta")) c_["rope_theta"] = 1e6;
      c_["rope_local_base_freq"] = round_trip(f_.get_float(key("rope.freq_base_swa")).value_or(10000.0));
    }
  }

  [[noreturn]] void unsupported_rotary(double rotated) const {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: {} rotary dimensions of a head of {}", f_.path(), rotated, head_dim_),
                "expected all of them");
  }

  const GgufFile& f_;
  std::string arch_;
  Json c_ = Json::object();
  int64_t heads_ = 0, kv_heads_ = 0, head_dim_ = 0, hidden_ = 0;
};

}  // namespace

const GgufArch* find_gguf_arch(const std::string& arch) {
  for (const GgufArch& a : kArchs)
    if (arch == a.arch) return &a;
  return nullptr;
}

const GgufArch* find_gguf_arch_of(const std::string& model_type) {
  for (const GgufArch& a : kArchs)
    if (model_type == a.model_type) return &a;
  return nullptr;
}

const std::vector<GgufName>& gguf_names(const GgufArch& arch, bool two_norms) {
  return arch.names == &kFalconNames && two_norms ? kFalconTwoNorms : *arch.names;
}

std::string known_gguf_archs() {
  std::string list;
  for (const GgufArch& a : kArchs)
    if (list.find(a.arch) == std::string::npos || std::strcmp(a.arch, "gptj") == 0)
      list += (list.empty() ? "" : ", ") + std::string(a.arch);
  return list;
}

Json gguf_config(const GgufFile& file) { return Translator(file).run(); }

std::vector<int32_t> gguf_row_map(GgufChange change, const HeadSizes& h, int64_t rows) {
  std::vector<int32_t> map;
  const int64_t d = h.head_dim, group = h.heads / std::max<int64_t>(1, h.kv_heads);
  const auto put = [&](int64_t r) { map.push_back(static_cast<int32_t>(r)); };
  switch (change) {
    case GgufChange::pairs_q:
    case GgufChange::pairs_k:
      for (int64_t r = 0; r < rows; ++r) put(r / d * d + r % (d / 2) * 2 + r % d / (d / 2));
      break;
    case GgufChange::per_head:
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t shared = r / ((group + 2) * d), place = r / d % (group + 2);
        const int64_t head =
            place < group ? shared * group + place : h.heads + (place == group ? 0 : h.kv_heads) + shared;
        put(head * d + r % d);
      }
      break;
    case GgufChange::only_q:
      for (int64_t r = 0; r < h.heads * d; ++r) put(r);
      break;
    case GgufChange::only_k:
    case GgufChange::only_v:
      for (int64_t r = 0; r < h.kv_heads * d; ++r)
        put((h.heads + (change == GgufChange::only_v ? h.kv_heads : 0)) * d + r);
      break;
    default:
      break;
  }
  return map;
}

}  // namespace thimble
