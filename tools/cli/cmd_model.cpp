// thimble model: looking at checkpoints and merging adapters into them. Each sub-command is a function below and one line in add_model.
#include <fmt/format.h>

#include "models/adapter.h"
#include "models/model.h"
#include "models/quantize.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/embed_diff.h"
#include "tools/cli/model_facts.h"
#include "tools/cli/model_output.h"
#include "tools/cli/quality.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct InfoOptions {
  CommonOptions common;
  std::string path;
  bool tensors = false;
};

Json rope_json(const RopeConfig& r) {
  Json j = {{"theta", r.theta}, {"dims", r.dims}, {"interleaved", r.interleaved}, {"scaling", rope_scaling_name(r.scaling)}};
  if (r.scaling == RopeScaling::none) return j;
  j["factor"] = r.factor;
  if (r.scaling == RopeScaling::llama3) {
    j["low_freq_factor"] = r.low_freq_factor;
    j["high_freq_factor"] = r.high_freq_factor;
  }
  if (r.scaling == RopeScaling::yarn) {
    j["beta_fast"] = r.beta_fast;
    j["beta_slow"] = r.beta_slow;
    j["truncate"] = r.truncate;
    j["attention_factor"] = r.attention_factor;
  }
  if (r.scaling == RopeScaling::longrope) {
    j["short_factor"] = r.short_factors;
    j["long_factor"] = r.long_factors;
    j["attention_factor"] = r.attention_factor;
  }
  if (r.scaling != RopeScaling::linear) j["original_max_positions"] = r.original_max_positions;
  return j;
}

// Every flag of the transformer, under its name in ModelConfig.
Json config_json(const ModelConfig& c) {
  Json j = {{"family", c.family},
            {"vocab_size", c.vocab_size},
            {"hidden", c.hidden},
            {"intermediate", c.intermediate},
            {"n_layers", c.n_layers},
            {"n_heads", c.n_heads},
            {"n_kv_heads", c.n_kv_heads},
            {"head_dim", c.head_dim},
            {"max_positions", c.max_positions},
            {"embed_dim", c.embed_dim},
            {"norm", norm_name(c.norm)},
            {"norm_eps", c.norm_eps},
            {"norm_affine", c.norm_affine},
            {"norm_bias", c.norm_bias},
            {"norm_offset", c.norm_offset},
            {"pre_norm", c.pre_norm},
            {"branch_norm", c.branch_norm},
            {"post_norm", c.post_norm},
            {"final_norm", c.final_norm},
            {"parallel_residual", c.parallel_residual},
            {"shared_norm", c.shared_norm},
            {"embed_norm", c.embed_norm},
            {"embed_scale", c.embed_scale},
            {"positions", position_name(c.positions)},
            {"position_offset", c.position_offset},
            {"placeless_id", c.placeless_id}};
  j["rope"] = c.positions == PositionKind::rope ? rope_json(c.rope) : Json(nullptr);
  j["rope_local"] = c.local_rope ? rope_json(c.rope_local) : Json(nullptr);
  j["alibi_scaled"] = c.alibi_scaled;
  j["alibi_bf16"] = c.alibi_bf16;
  j["qkv_bias"] = c.qkv_bias;
  j["o_bias"] = c.o_bias;
  j["mlp_bias"] = c.mlp_bias;
  j["head_bias"] = c.head_bias;
  j["qk_norm"] = qk_norm_name(c.qk_norm);
  j["qk_norm_bias"] = c.qk_norm_bias;
  j["qkv_clip"] = c.qkv_clip;
  j["attn_softcap"] = c.attn_softcap;
  j["query_pre_attn_scalar"] = c.query_pre_attn_scalar;
  j["logit_scale"] = c.logit_scale;
  j["logit_softcap"] = c.logit_softcap;
  j["gated_mlp"] = c.gated_mlp;
  j["n_experts"] = c.n_experts;
  j["n_experts_used"] = c.n_experts_used;
  j["activation"] = activation_name(c.activation);
  j["tied"] = c.tied;
  j["attn_scale_by_head_dim"] = c.attn_scale_by_head_dim;
  j["attn_scale_by_layer"] = c.attn_scale_by_layer;
  j["window"] = c.window;
  j["window_from_layer"] = c.window_from_layer;
  Json layers = Json::array();
  for (int64_t l = 0; l < c.n_layers; ++l)
    if (c.has_window(l)) layers.push_back(l);
  j["window_layers"] = layers;
  j["bidirectional"] = c.bidirectional;
  j["token_types"] = c.token_types;
  j["pooler"] = c.pooler;
  j["has_head"] = c.has_head;
  j["bos_id"] = c.bos_id;
  j["eos_ids"] = c.eos_ids;
  return j;
}

// The tensor of the checkpoint that a role comes from: "" for formats without names.
std::string file_name(const Model& model, Role role, int64_t layer) {
  if (model.llama2c) return "";
  for (const TensorRule& rule : model.family->tensors)
    for (Role part : rule.roles)
      if (part == role && rule_blocks(model.config, rule) > 0) return rule_name(rule, layer);
  return "";
}

// "f32", or "q4 g32" with the kind of its groups and the type of its scales.
std::string stored_as(const Weight& w) {
  if (!is_tiled(w.format)) return format_name(w.format);
  const char* const kinds[] = {"asym", "sym", "min"};
  return fmt::format("{} {} {} {} scales{}", format_name(w.format), w.group > 0 ? fmt::format("g{}", w.group) : "row",
                     kinds[static_cast<int>(w.kind)], w.scale_f32 ? "f32" : "f16", w.perm ? " permuted" : "");
}

Json tensors_json(const Model& model) {
  Json list = Json::array();
  for_each_weight(model.weights, [&](Role role, int64_t layer, const Weight& w) {
    const bool vector = role_shape(model.config, role).vector;
    const std::string name = file_name(model, role, layer);
    list.push_back({{"role", role_name(role)},
                    {"layer", layer < 0 ? Json(nullptr) : Json(layer_of(layer))},
                    {"expert", role_is_expert(role) ? Json(expert_of(layer)) : Json(nullptr)},
                    {"name", name.empty() ? Json(nullptr) : Json(name)},
                    {"shape", vector ? Json::array({w.cols}) : Json::array({w.rows, w.cols})},
                    {"format", format_name(w.format)},
                    {"stored_as", stored_as(w)},
                    {"bytes", w.stored_bytes()}});
  });
  return list;
}

std::string scalar_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (!value.is_object()) return value.dump();
  std::string text;
  for (const auto& item : value.items()) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", item.key(), scalar_text(item.value()));
  return text;
}

std::string info_text(const Json& j) {
  std::string text;
  const auto line = [&](const std::string& key, const std::string& value) { text += fmt::format("{:<24} {}\n", key, value); };
  line("path", j["path"].get<std::string>());
  for (const char* key : {"parameters", "file_bytes", "stored_bytes"}) line(key, fmt::format("{}", j[key].get<int64_t>()));
  line("bits_per_weight", fmt::format("{:.3f}", j["bits_per_weight"].get<double>()));
  line("quantization", j["quantization"].is_null() ? "none" : j["quantization"].get<std::string>());
  Json beside = Json::object();
  for (const char* key : {"kind", "container", "tokenizer", "chat_templates", "embedding"})
    if (!j[key].is_null()) beside[key] = j[key];
  text += facts_text(beside) + "\n";
  for (const auto& item : j["config"].items())
    if (!item.value().is_null()) line(item.key(), scalar_text(item.value()));
  if (!j.contains("tensors")) return text;
  text += fmt::format("\n{:<15} {:<46} {:<16} {:<16} {:>12}\n", "role", "tensor", "shape", "format", "bytes");
  for (const Json& t : j["tensors"]) {
    const std::string role = t["layer"].is_null() ? t["role"].get<std::string>()
                                                  : fmt::format("{}.{}", t["layer"].get<int64_t>(), t["role"].get<std::string>());
    text += fmt::format("{:<15} {:<46} {:<16} {:<16} {:>12}\n", role, t["name"].is_null() ? "-" : t["name"].get<std::string>(),
                        t["shape"].dump(), t["stored_as"].get<std::string>(), t["bytes"].get<int64_t>());
  }
  return text;
}

int print_facts(const InfoOptions& o, const Json& facts) {
  if (o.common.json)
    print_json(facts);
  else
    write_stdout(facts_text(facts));
  return 0;
}

// Beside the flags: how the files are packed and what stands beside the weights.
void add_facts(Json& j, const Model& model) {
  const EmbedRecipe recipe = read_embed_recipe(model.path);
  j["kind"] = model.config.bidirectional ? "encoder" : "decoder";
  j["container"] = container_name(recipe.model_path);
  j["tokenizer"] = tokenizer_json(model.path);
  j["chat_templates"] = chat_templates(model.path);
  // Any model can embed; the default is worth a line for encoders only.
  j["embedding"] = model.config.bidirectional || recipe.source != "default" ? embedding_json(recipe, model.config.embed_dim) : Json(nullptr);
}

int run_info(const InfoOptions& o) {
  if (is_adapter(o.path)) return print_facts(o, adapter_facts(o.path, o.tensors));
  const EmbedRecipe recipe = read_embed_recipe(o.path);
  if (recipe.is_static) return print_facts(o, static_facts(o.path, recipe, o.tensors));
  Session session(o.common);
  LoadOptions options;
  options.budget = &session.budget();
  Model model = load_model(recipe.model_path, session.kernels(), options);
  model.path = o.path;
  Json j = {{"schema", "thimble.model/1"},
            {"path", model.path},
            {"family", model.config.family},
            {"parameters", model.parameters()},
            {"file_bytes", model.file_bytes},
            {"stored_bytes", model.stored_bytes()},
            {"bits_per_weight", 8.0 * double(model.stored_bytes()) / double(model.parameters())},
            {"quantization", model.quantization.empty() ? Json(nullptr) : Json(model.quantization)},
            {"config", config_json(model.config)},
            {"warnings", model.warnings}};
  add_facts(j, model);
  if (o.tensors) j["tensors"] = tensors_json(model);
  if (!o.common.quiet)
    for (const std::string& w : model.warnings) warn(w);
  if (o.common.json)
    print_json(j);
  else
    write_stdout(info_text(j));
  return 0;
}

void add_info(CLI::App& model, Run* run) {
  CLI::App* command = model.add_subcommand("info", "kind, container, size, tokenizer, flags and tensors of a checkpoint or adapter");
  command->footer(
      "Examples:\n"
      "  thimble model info DIR --tensors\n"
      "  thimble model info ADAPTER --json\n"
      "Models of every container, sentence encoders and static embedders (their pooling too), and PEFT adapters without their base.");
  auto o = std::make_shared<InfoOptions>();
  command->add_option("PATH", o->path, "model or adapter directory, or a file that holds a model")->required();
  command->add_flag("--tensors", o->tensors, "list every weight: role, name in the file, shape, format, bytes");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_info(*o); }; });
}

struct MergeOptions {
  CommonOptions common;
  std::string model, adapter, out, tokenizer, dtype = "f32";
};

int run_merge(const MergeOptions& o) {
  Session session(o.common);
  if (same_path(o.model, o.out) || file_exists(join_path(o.out, "model.safetensors")))
    throw Error(ErrorCode::usage, "--out " + o.out + ": already holds a model", "choose a new directory");
  LoadOptions options;
  options.budget = &session.budget();
  Model model = load_model(o.model, session.kernels(), options);
  if (!o.common.quiet)
    for (const std::string& w : model.warnings) warn(w);
  const Adapter adapter(model, session.kernels(), o.adapter, &session.budget());
  if (!o.common.quiet)
    for (const std::string& w : adapter.warnings()) warn(w);
  // An adapter that adds tokens is refused before anything is written.
  if (adapter.kind() == AdapterKind::prompt || adapter.kind() == AdapterKind::prefix)
    adapter.merged(model, session.kernels(), [](const ExportedTensor&) {});
  const SafetensorsDtype dtype =
      o.dtype == "f16" ? SafetensorsDtype::f16 : o.dtype == "bf16" ? SafetensorsDtype::bf16 : SafetensorsDtype::f32;
  try {
    Tokenizer::load(o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer).save(o.out);
  } catch (const Error& e) {
    // A model alone is worth merging too.
    if (!o.tokenizer.empty()) throw;
    warn(std::string("no tokenizer is written: ") + e.what());
  }
  Json config = base_config(model);
  if (adapter.unties()) {
    untie(model, session.kernels());
    config["tie_word_embeddings"] = false;
  }
  const int64_t changed = write_model(o.out, model, session.kernels(), config, dtype, &adapter);
  if (o.common.json)
    print_json({{"schema", "thimble.model/1"}, {"model", o.model}, {"adapter", o.adapter}, {"dtype", o.dtype},
                {"tensors_changed", changed}, {"out", o.out}});
  else
    write_stdout(fmt::format("{}: {} with {} folded into {} tensors, {}\n", o.out, o.model, o.adapter, changed, o.dtype));
  return 0;
}

void add_merge(CLI::App& model, Run* run) {
  CLI::App* command = model.add_subcommand("merge", "fold an adapter into the weights of its base");
  command->footer(
      "Example: thimble model merge --model DIR --adapter ADAPTER --out MERGED --dtype bf16\n"
      "The result is a Hugging Face directory. LoRA, DoRA and IA3 can be merged; prompts and prefixes cannot, they add tokens.\n"
      "A packed base is decoded first: the result is dense, and can be packed again with thimble quantize.");
  auto o = std::make_shared<MergeOptions>();
  command->add_option("--model", o->model, "base model: directory or llama2.c .bin file")->required();
  command->add_option("--adapter", o->adapter, "PEFT adapter directory")->required();
  command->add_option("--out", o->out, "directory to write")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--dtype", o->dtype, "f32 (default), bf16 or f16")->check(CLI::IsMember({"f32", "bf16", "f16"}));
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_merge(*o); }; });
}

struct DiffOptions {
  CommonOptions common;
  std::string a, b, text = "self", tokenizer, before_as, after_as, after_precision;
  int64_t tokens = 16384, ctx = 0, stride = 0;
  double max_kl = -1;
};

int run_diff(const DiffOptions& o) {
  for (const std::string& path : {o.a, o.b})
    if (is_adapter(path))
      throw Error(ErrorCode::unsupported, path + ": is an adapter, not a model", "fold it into its base first: thimble model merge");
  const bool vectors = makes_vectors(o.a);
  if (vectors != makes_vectors(o.b))
    throw Error(ErrorCode::input, fmt::format("{} makes vectors, {} predicts tokens: there is nothing to compare", vectors ? o.a : o.b, vectors ? o.b : o.a),
                "give two models of one kind");
  if (vectors) {
    if (o.max_kl >= 0 || !o.before_as.empty() || !o.after_as.empty() || !o.after_precision.empty())
      throw Error(ErrorCode::usage, "model diff: --max-kl, --before-as, --after-as and --after-precision are for models that predict tokens", "leave them out");
    return run_embed_diff(o.common, o.a, o.b, o.text);
  }
  if (o.tokenizer.empty()) require_same_tokens(o.a, o.b);
  Session session(o.common);
  const auto ctx = session.make_context();
  LoadOptions options;
  options.budget = &session.budget();
  Model a = load_model(o.a, session.kernels(), options), b = load_model(o.b, session.kernels(), options);
  quantize_model(a, session.kernels(), parse_load_format(o.before_as), &session.budget(), session.threads());
  quantize_model(b, session.kernels(), parse_load_format(o.after_as), &session.budget(), session.threads());
  const std::string after_precision = o.after_precision.empty() ? o.common.precision : o.after_precision;
  if (!o.common.quiet)
    for (const Model* m : {&a, &b})
      for (const std::string& w : m->warnings) warn(w);
  const int64_t length = std::min(sequence_length(o.ctx, a), sequence_length(o.ctx, b));
  const int64_t stride = o.stride > 0 ? o.stride : o.text == "self" ? length : std::max<int64_t>(1, length / 2);
  const TextSource source{o.text, o.tokens, length, stride, 2 * o.common.seed + 1};
  const Text text = evaluation_text(source, a, o.tokenizer, *ctx, o.common);
  const Divergence d = measure_quality(a, b, text, *ctx, o.common, "comparison", precision_of(after_precision));
  const bool beyond = o.max_kl >= 0 && !(d.kl_mean <= o.max_kl);
  if (o.common.json) {
    Json j = {{"schema", "thimble.diff/1"}, {"before", o.a}, {"after", o.b}, {"threads", session.threads()}, {"precision", o.common.precision}, {"precision_after", after_precision}};
    put_quality(j, d);
    j["bytes_before"] = a.stored_bytes();
    j["bytes_after"] = b.stored_bytes();
    j["bits_per_weight"] = 8.0 * double(b.stored_bytes()) / double(b.parameters());
    j["protocol"] = protocol_json(source, text, d);
    if (o.max_kl >= 0) j["pass"] = !beyond;
    print_json(j);
  } else {
    write_stdout(fmt::format("{} against {}\n{}  stored bytes   {} -> {}\n", o.b, o.a, quality_text(d, text), a.stored_bytes(), b.stored_bytes()));
  }
  if (beyond) say(o.common, fmt::format("KL divergence {:.6f} exceeds --max-kl {}", d.kl_mean, o.max_kl));
  return beyond ? static_cast<int>(ErrorCode::mismatch) : 0;
}

void add_diff(CLI::App& model, Run* run) {
  CLI::App* command = model.add_subcommand("diff", "how far one model's predictions are from another's");
  command->footer(
      "Example: thimble model diff DIR DIR4 --text wiki.txt --ctx 512 --max-kl 0.05\n"
      "KL divergence of the next-token distributions, and the share of positions with the same first choice. Encoders and static\n"
      "embedders: --text is a file with a text per line; the cosine of each text's two vectors, and the share of texts whose\n"
      "nearest other text is the same.\n"
      "What int8 activations cost: thimble model diff DIR DIR --before-as q4 --after-as q4 --after-precision int8_act");
  auto o = std::make_shared<DiffOptions>();
  command->add_option("BEFORE", o->a, "the original: directory or llama2.c .bin file")->required();
  command->add_option("AFTER", o->b, "the model that is compared with it")->required();
  command->add_option("--text", o->text, "text file; default self: sampled from BEFORE at temperature 1 (models that predict tokens)");
  command->add_option("--tokens", o->tokens, "tokens of the text; default 16384; 0: all of a file")->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside BEFORE");
  command->add_option("--ctx", o->ctx, "tokens per window; default: the models' positions, at most 512")->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  command->add_option("--stride", o->stride, "tokens between windows; default: half of --ctx")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--before-as", o->before_as, "pack BEFORE while loading: q8, q4, q2, q4-g32, ...; default: as stored");
  command->add_option("--after-as", o->after_as, "pack AFTER while loading; default: as stored");
  command->add_option("--after-precision", o->after_precision, "products of AFTER; default: those of --precision")->check(CLI::IsMember({"f32", "bf16", "int8_act"}));
  command->add_option("--max-kl", o->max_kl, "end with status 7 when the mean KL divergence is larger")->check(CLI::Range(0.0, 1e9));
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_diff(*o); }; });
}

}  // namespace

void add_model(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("model", "look at checkpoints, merge adapters, compare models");
  command->footer(
      "Examples:\n"
      "  thimble model info DIR --tensors\n"
      "  thimble model merge --model DIR --adapter ADAPTER --out MERGED\n"
      "  thimble model diff BEFORE AFTER --text F");
  command->require_subcommand(1);
  add_info(*command, run);
  add_merge(*command, run);
  add_diff(*command, run);
  add_model_adapter(*command, run);
}

}  // namespace thimble::cli
