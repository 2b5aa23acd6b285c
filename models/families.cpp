#include "models/families.h"

#include <fmt/format.h>

#include <cstring>

#include "tensor/error.h"

namespace thimble {

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> rows = {&kLlamaFamily, &kMistralFamily, &kQwen2Family,
                                                  &kNeoxFamily,  &kOptFamily,     &kGpt2Family};
  return rows;
}

const Family& find_family(const JsonObject& json) {
  const std::string type = json.get_string("model_type", "");
  std::string architecture;
  if (const nlohmann::json* list = json.find("architectures")) {
    if (!list->is_array() || list->empty() || !(*list)[0].is_string()) json.fail("architectures", "a list of names");
    architecture = (*list)[0].get<std::string>();
  }
  if (type.empty() && architecture.empty()) json.fail("model_type", "the name of a model family");
  std::string known;
  for (const Family* family : families()) {
    for (const char* name : family->model_types) {
      if (type == name) return *family;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    if (type.empty())
      for (const char* name : family->architectures)
        if (architecture == name) return *family;
  }
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: model family {} is not supported", json.file(), quote_for_message(type.empty() ? architecture : type)),
              "supported families: " + known);
}

Activation parse_activation(const JsonObject& json, const char* key, const char* fallback) {
  const std::string name = json.get_string(key, fallback);
  if (name == "gelu") return Activation::gelu_erf;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "silu" || name == "swish") return Activation::silu;
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: field \"{}\": activation {} is not supported", json.file(), key, quote_for_message(name)),
              "supported: gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu, swish");
}

namespace {

[[noreturn]] void refuse_rope(const JsonObject& scaling, const char* key, const char* why) {
  throw Error(ErrorCode::unsupported, fmt::format("{}: rotary scaling field \"{}\": {}", scaling.file(), key, why),
              "supported: default, linear, llama3, and yarn with rope factor, betas and attention_factor");
}

}  // namespace

void parse_rope(const JsonObject& json, const char* theta_key, ModelConfig* c) {
  RopeConfig& r = c->rope;
  r.theta = json.get_double(theta_key, 10000.0, 1.0 + 1e-6, 1e15);
  std::optional<JsonObject> s = json.object("rope_scaling");
  if (std::optional<JsonObject> v5 = json.object("rope_parameters")) {
    for (const auto& [key, value] : v5->json().items())
      if (value.is_object()) refuse_rope(*v5, key.c_str(), "settings per layer type are not supported");
    r.theta = v5->get_double("rope_theta", r.theta, 1.0 + 1e-6, 1e15);
    if (!s) s = std::move(v5);
  }
  if (!s) return;
  const std::string type = s->get_string("rope_type", s->get_string("type", "default"));
  if (type == "default") return;
  if (type == "linear") {
    r.scaling = RopeScaling::linear;
  } else if (type == "llama3") {
    r.scaling = RopeScaling::llama3;
    r.low_freq_factor = s->require_double("low_freq_factor", 1e-6, 1e6);
    r.high_freq_factor = s->require_double("high_freq_factor", 1e-6, 1e6);
    if (r.high_freq_factor <= r.low_freq_factor) s->fail("high_freq_factor", "a number above low_freq_factor");
    r.original_max_positions = s->require_int("original_max_position_embeddings", 1, kMaxDim);
  } else if (type == "yarn") {
    r.scaling = RopeScaling::yarn;
    r.beta_fast = s->get_double("beta_fast", 32, 1e-6, 1e6);
    r.beta_slow = s->get_double("beta_slow", 1, 1e-6, 1e6);
    r.attention_factor = s->get_double("attention_factor", 0, 0, 1e6);
    r.original_max_positions = s->get_int("original_max_position_embeddings", c->max_positions, 1, kMaxDim);
    for (const char* key : {"mscale", "mscale_all_dim"})
      if (s->get_double(key, 0) != 0) refuse_rope(*s, key, "its scale of the attention is not supported");
    if (!s->get_bool("truncate", true)) refuse_rope(*s, "truncate", "yarn without rounded bounds is not supported");
  } else {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: field \"rope_scaling.rope_type\": {} is not supported", json.file(), quote_for_message(type)),
                "supported: default, linear, llama3, yarn");
  }
  r.factor = s->require_double("factor", 1e-6, 1e6);
}

ModelConfig parse_config(const JsonObject& json, const Family& family) {
  ModelConfig c;
  c.family = family.model_types[0];
  c.bos_id = static_cast<int32_t>(json.get_int("bos_token_id", -1, -1, kMaxDim));
  if (const nlohmann::json* eos = json.find("eos_token_id")) {
    for (const nlohmann::json& id : eos->is_array() ? *eos : nlohmann::json::array({*eos})) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxDim)
        json.fail("eos_token_id", "a token id or a list of token ids");
      c.eos_ids.push_back(id.get<int32_t>());
    }
  }
  family.parse(json, &c);
  if (c.embed_dim == 0) c.embed_dim = c.hidden;
  if (c.n_kv_heads == 0) c.n_kv_heads = c.n_heads;
  if (c.head_dim == 0) {
    if (c.hidden % c.n_heads != 0)
      throw Error(ErrorCode::input,
                  fmt::format("{}: field \"{}\": {} is not a multiple of the {} attention heads", json.file(),
                              json.has("n_embd") ? "n_embd" : "hidden_size", c.hidden, c.n_heads),
                  "check the model's config.json, or give head_dim there");
    c.head_dim = c.hidden / c.n_heads;
  }
  if (c.positions == PositionKind::rope && c.rope.dims == 0) c.rope.dims = c.head_dim;
  check_config(c, json.file());
  return c;
}

}  // namespace thimble
