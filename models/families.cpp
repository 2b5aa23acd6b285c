#include "models/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "tensor/error.h"

namespace thimble {

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> rows = {
      &kLlamaFamily, &kMistralFamily, &kMixtralFamily,   &kQwen2Family,  &kQwen3Family, &kGemmaFamily, &kGemma2Family, &kGemma3Family,
      &kPhiFamily,   &kPhi3Family,      &kStablelmFamily, &kNeoxFamily, &kOptFamily,  &kGpt2Family,   &kGptjFamily,
      &kGptBigcodeFamily, &kFalconFamily, &kBloomFamily, &kOlmoFamily, &kOlmo2Family, &kStarcoder2Family, &kCohereFamily,
      &kBertFamily,  &kRobertaFamily,   &kDistilbertFamily};
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
  if (name == "gelu" || name == "gelu_python") return Activation::gelu_erf;
  for (const char* tanh : {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"})
    if (name == tanh) return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "silu" || name == "swish") return Activation::silu;
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: field \"{}\": activation {} is not supported", json.file(), key, quote_for_message(name)),
              "supported: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, gelu_python_tanh, relu, silu, swish");
}

void parse_sizes(const JsonObject& json, ModelConfig* c, int64_t kv_heads) {
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("hidden_size", 1, kMaxDim);
  c->intermediate = json.require_int("intermediate_size", 1, kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  const bool left_out = kv_heads > 0 && !json.json().contains("num_key_value_heads");
  c->n_kv_heads = left_out ? kv_heads : json.get_int("num_key_value_heads", c->n_heads, 1, 1 << 16);
  c->head_dim = json.get_int("head_dim", 0, 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 2048, 1, kMaxDim);
}

double get_double_or_null(const JsonObject& json, const char* key, double fallback, double min, double max) {
  if (json.json().contains(key) && !json.has(key)) return 0;
  return json.get_double(key, fallback, min, max);
}

double round_to_dtype(const JsonObject& json, double x) {
  std::string dtype = json.get_string("dtype", json.get_string("torch_dtype", "float32"));
  if (dtype.rfind("torch.", 0) == 0) dtype = dtype.substr(6);
  const auto single = static_cast<float>(x);
  if (dtype == "float32" || dtype == "float64") return double(single);
  // To the nearest of 8 or 11 significant bits; ties to even.
  const int bits = dtype == "bfloat16" ? 8 : 11;
  if (dtype != "bfloat16" && dtype != "float16") json.fail(json.has("dtype") ? "dtype" : "torch_dtype", "float32, float16 or bfloat16");
  int exponent = 0;
  const double mantissa = std::frexp(double(single), &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, bits)), exponent - bits);
}

void refuse_if_set(const JsonObject& json, const char* key, const char* what) {
  if (json.get_bool(key, false))
    throw Error(ErrorCode::unsupported, fmt::format("{}: field \"{}\": {} is not supported", json.file(), key, what),
                "use a checkpoint without it");
}

bool parse_layer_types(const JsonObject& json, ModelConfig* c) {
  const nlohmann::json* types = json.find("layer_types");
  if (!types) return false;
  const char* expected = "as many names as there are layers, each full_attention or sliding_attention";
  if (!types->is_array() || static_cast<int64_t>(types->size()) != c->n_layers) json.fail("layer_types", expected);
  c->window_layers.clear();
  for (const nlohmann::json& type : *types) {
    if (type != "sliding_attention" && type != "full_attention") json.fail("layer_types", expected);
    c->window_layers.push_back(type == "sliding_attention");
  }
  return true;
}

namespace {

std::vector<double> parse_factors(const JsonObject& s, const char* key) {
  const nlohmann::json* list = s.find(key);
  if (!list || !list->is_array() || list->size() > 1024) s.fail(key, "a list of numbers, one for each pair of rotary dimensions");
  std::vector<double> factors;
  for (const nlohmann::json& f : *list) {
    if (!f.is_number() || !(f.get<double>() >= 1e-6 && f.get<double>() <= 1e6)) s.fail(key, "a list of numbers above 0");
    factors.push_back(f.get<double>());
  }
  return factors;
}

[[noreturn]] void refuse_rope(const JsonObject& scaling, const std::string& key, const std::string& why) {
  throw Error(ErrorCode::unsupported, fmt::format("{}: rotary scaling field \"{}\": {}", scaling.file(), key, why),
              "supported: default, linear, dynamic, llama3, yarn, longrope");
}

// What rope_scaling, rope_parameters or one of its layer types says. c: max_positions is set.
void parse_scaling(const JsonObject& json, const JsonObject& s, const ModelConfig& c, RopeConfig* r) {
  std::string type = s.get_string("rope_type", s.get_string("type", "default"));
  if (type == "su" || (type == "yarn" && s.has("short_factor"))) type = "longrope";  // its names in Phi-3's first configs
  const bool yarn = type == "yarn", longrope = type == "longrope";
  for (const auto& [key, value] : s.json().items()) {
    const auto is = [&, &name = key](std::initializer_list<const char*> names) {
      return std::any_of(names.begin(), names.end(), [&](const char* n) { return name == n; });
    };
    const bool known = is({"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"}) ||
                       is({"low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "finetuned"}) ||
                       ((yarn || longrope) && key == "attention_factor") || (yarn && is({"mscale", "mscale_all_dim", "truncate"})) ||
                       (longrope && is({"short_factor", "long_factor"}));
    if (!known && !value.is_null()) refuse_rope(s, key, fmt::format("is not supported beside the type {}", quote_for_message(type)));
  }
  if (type == "default") return;
  const char* const original_key = "original_max_position_embeddings";
  const int64_t beside = json.get_int(original_key, 0, 1, kMaxDim), within = s.get_int(original_key, 0, 1, kMaxDim);
  // Phi-3 has it beside rope_scaling, and there it counts.
  const int64_t original = beside > 0 && (longrope || within == 0) ? beside : within;
  r->original_max_positions = original > 0 ? original : c.max_positions;
  const double stretched = double(c.max_positions) / double(r->original_max_positions);
  if (type == "linear") {
    r->scaling = RopeScaling::linear;
  } else if (type == "dynamic") {
    r->scaling = RopeScaling::dynamic;
    r->original_max_positions = c.max_positions;
  } else if (type == "llama3") {
    r->scaling = RopeScaling::llama3;
    r->low_freq_factor = s.require_double("low_freq_factor", 1e-6, 1e6);
    r->high_freq_factor = s.require_double("high_freq_factor", 1e-6, 1e6);
    if (r->high_freq_factor <= r->low_freq_factor) s.fail("high_freq_factor", "a number above low_freq_factor");
    s.require_int("original_max_position_embeddings", 1, kMaxDim);
  } else if (yarn) {
    r->scaling = RopeScaling::yarn;
    r->factor = original > 0 && !s.has("factor") ? stretched : s.require_double("factor", 1e-6, 1e6);
    r->beta_fast = s.get_double("beta_fast", 32, 1e-6, 1e6);
    r->beta_slow = s.get_double("beta_slow", 1, 1e-6, 1e6);
    r->truncate = s.get_bool("truncate", true);
    r->attention_factor = s.get_double("attention_factor", 0, 0, 1e6);
    const double mscale = s.get_double("mscale", 0, 0, 1e6), all = s.get_double("mscale_all_dim", 0, 0, 1e6);
    const auto growth = [&](double m) { return r->factor > 1 ? 0.1 * m * std::log(r->factor) + 1 : 1.0; };
    if (r->attention_factor == 0 && mscale > 0 && all > 0) r->attention_factor = growth(mscale) / growth(all);
    return;
  } else if (longrope) {
    r->scaling = RopeScaling::longrope;
    r->short_factors = parse_factors(s, "short_factor");
    r->long_factors = parse_factors(s, "long_factor");
    r->factor = s.get_double("factor", stretched, 1e-6, 1e6);
    if (r->factor > 1 && r->original_max_positions < 2) s.fail("original_max_position_embeddings", "at least 2");
    const double grown = r->factor > 1 ? std::sqrt(1 + std::log(r->factor) / std::log(double(r->original_max_positions))) : 1;
    r->attention_factor = s.get_double("attention_factor", grown, 1e-6, 1e6);
    return;
  } else {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: field \"rope_scaling.rope_type\": {} is not supported", json.file(), quote_for_message(type)),
                "supported: default, linear, dynamic, llama3, yarn, longrope");
  }
  r->factor = s.require_double("factor", 1e-6, 1e6);
}

// theta and the rotated share of a head, then the scaling.
void parse_rope_settings(const JsonObject& json, const JsonObject* s, const ModelConfig& c, double share, RopeConfig* r) {
  if (s) {
    r->theta = s->get_double("rope_theta", r->theta, 1.0 + 1e-6, 1e15);
    share = s->get_double("partial_rotary_factor", share, 0, 1);
  }
  const int64_t head_dim = c.head_dim > 0 ? c.head_dim : c.hidden / c.n_heads;
  r->dims = static_cast<int64_t>(double(head_dim) * share);
  if (r->dims == 0 && head_dim > 0)
    json.fail(json.has("rotary_pct") ? "rotary_pct" : "partial_rotary_factor",
              fmt::format("a share that leaves rotary dimensions of a head of {}", head_dim));
  if (s) parse_scaling(json, *s, c, r);
}

}  // namespace

void parse_rope(const JsonObject& json, const char* theta_key, ModelConfig* c, double share) {
  c->rope.theta = json.get_double(theta_key, c->rope.theta, 1.0 + 1e-6, 1e15);
  share = json.get_double("partial_rotary_factor", share, 0, 1);
  std::optional<JsonObject> s = json.object("rope_scaling");
  std::optional<JsonObject> v5 = json.object("rope_parameters");
  if (v5) {
    const std::optional<JsonObject> full = v5->object("full_attention"), sliding = v5->object("sliding_attention");
    for (const auto& [key, value] : v5->json().items())
      if (value.is_object() && key != "full_attention" && key != "sliding_attention")
        refuse_rope(*v5, key, "settings of such layers are not supported");
    if (full && sliding) {
      parse_rope_settings(json, &*full, *c, share, &c->rope);
      c->local_rope = true;
      c->rope_local.theta = c->rope.theta;
      parse_rope_settings(json, &*sliding, *c, share, &c->rope_local);
      return;
    }
    if (full || sliding) v5->fail(full ? "sliding_attention" : "full_attention", "settings for both kinds of layers");
    c->rope.theta = v5->get_double("rope_theta", c->rope.theta, 1.0 + 1e-6, 1e15);
    if (!s) s = v5;
  }
  parse_rope_settings(json, s ? &*s : nullptr, *c, share, &c->rope);
}

std::vector<TensorRule> llama_rules(std::vector<TensorRule> more, bool mlp) {
  std::vector<TensorRule> rules = {
      {"model.embed_tokens.weight", Layout::plain, {Role::token_embed}},
      {"model.layers.{}.input_layernorm.weight", Layout::plain, {Role::norm1_w}},
      {"model.layers.{}.input_layernorm.bias", Layout::plain, {Role::norm1_b}},
      {"model.layers.{}.self_attn.q_proj.weight", Layout::plain, {Role::q_w}},
      {"model.layers.{}.self_attn.q_proj.bias", Layout::plain, {Role::q_b}},
      {"model.layers.{}.self_attn.k_proj.weight", Layout::plain, {Role::k_w}},
      {"model.layers.{}.self_attn.k_proj.bias", Layout::plain, {Role::k_b}},
      {"model.layers.{}.self_attn.v_proj.weight", Layout::plain, {Role::v_w}},
      {"model.layers.{}.self_attn.v_proj.bias", Layout::plain, {Role::v_b}},
      {"model.layers.{}.self_attn.o_proj.weight", Layout::plain, {Role::o_w}},
      {"model.layers.{}.self_attn.o_proj.bias", Layout::plain, {Role::o_b}},
      {"model.norm.weight", Layout::plain, {Role::final_norm_w}},
      {"model.norm.bias", Layout::plain, {Role::final_norm_b}},
      {"lm_head.weight", Layout::plain, {Role::lm_head}},
  };
  if (mlp)
    rules.insert(rules.end(), {
          {"model.layers.{}.mlp.gate_proj.weight", Layout::plain, {Role::gate_w}},
          {"model.layers.{}.mlp.gate_proj.bias", Layout::plain, {Role::gate_b}},
          {"model.layers.{}.mlp.up_proj.weight", Layout::plain, {Role::up_w}},
          {"model.layers.{}.mlp.up_proj.bias", Layout::plain, {Role::up_b}},
          {"model.layers.{}.mlp.down_proj.weight", Layout::plain, {Role::down_w}},
          {"model.layers.{}.mlp.down_proj.bias", Layout::plain, {Role::down_b}},
    });
  rules.insert(rules.end(), more.begin(), more.end());
  return rules;
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
