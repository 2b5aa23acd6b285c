#include "models/embed_recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "models/gguf_model.h"
#include "models/io/json.h"
#include "models/io/pickle.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr Pooling kPoolings[] = {Pooling::cls, Pooling::max, Pooling::mean, Pooling::mean_sqrt_len, Pooling::weighted_mean, Pooling::last_token};

// "sentence_transformers.models.Pooling" -> "Pooling"
std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// A module's folder stays inside the model's: plain names, no "..".
std::string module_dir(const std::string& dir, const std::string& path, const JsonObject& module) {
  if (path.empty() || path == ".") return dir;
  if (path[0] == '/' || path.find("..") != std::string::npos) module.fail("path", "a folder inside the model's");
  return join_path(dir, path);
}

void read_pooling(const std::string& dir, EmbedRecipe* recipe) {
  const std::string file = join_path(dir, "config.json");
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  recipe->include_prompt = config.get_bool("include_prompt", true);
  recipe->pooling.clear();
  const std::string mode = config.get_string("pooling_mode", "");
  if (!mode.empty()) {
    try {
      recipe->pooling = parse_pooling(mode, "pooling_mode");
    } catch (const Error& e) {
      throw Error(ErrorCode::unsupported, file + ": field " + e.what(), e.hint());
    }
    return;
  }
  const struct {
    const char* key;
    Pooling pooling;
  } flags[] = {{"pooling_mode_cls_token", Pooling::cls},
               {"pooling_mode_max_tokens", Pooling::max},
               {"pooling_mode_mean_tokens", Pooling::mean},
               {"pooling_mode_mean_sqrt_len_tokens", Pooling::mean_sqrt_len},
               {"pooling_mode_weightedmean_tokens", Pooling::weighted_mean},
               {"pooling_mode_lasttoken", Pooling::last_token}};
  for (const auto& [key, value] : json.items())
    if (key.rfind("pooling_mode_", 0) == 0 && value == true &&
        std::none_of(std::begin(flags), std::end(flags), [&, name = key](const auto& f) { return name == f.key; }))
      throw Error(ErrorCode::unsupported, fmt::format("{}: field {}: this pooling is not supported", file, quote_for_message(key)),
                  "supported: cls_token, max_tokens, mean_tokens, mean_sqrt_len_tokens, weightedmean_tokens, lasttoken");
  for (const auto& f : flags)
    if (config.get_bool(f.key, f.pooling == Pooling::mean)) recipe->pooling.push_back(f.pooling);
  if (recipe->pooling.empty()) config.fail("pooling_mode_mean_tokens", "at least one pooling mode that is true");
}

DenseModule read_dense(const std::string& dir) {
  const std::string file = join_path(dir, "config.json");
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  DenseModule d;
  d.in = config.require_int("in_features", 1, kMaxWidth);
  d.out = config.require_int("out_features", 1, kMaxWidth);
  const std::string activation = last_part(config.get_string("activation_function", "Tanh"));
  if (activation != "Tanh" && activation != "Identity")
    throw Error(ErrorCode::unsupported, fmt::format("{}: field \"activation_function\": {} is not supported", file, quote_for_message(activation)),
                "supported: Tanh and Identity");
  d.tanh = activation == "Tanh";
  std::unique_ptr<TensorSource> tensors;
  if (!SafetensorsSet::present(dir) && PickleSet::present(dir))
    tensors = std::make_unique<PickleSet>(dir);
  else
    tensors = std::make_unique<SafetensorsSet>(dir);
  const auto read = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const TensorView view = tensors->view(name);
    if (view.info->shape != shape)
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} is {}: in_features and out_features of {} say otherwise", view.file, name,
                                                describe_tensor(*view.info), file),
                  "the files belong to different models");
    std::vector<float> values(static_cast<size_t>(view.info->elements()));
    view.read_f32(values.data());
    return values;
  };
  d.weight = read("linear.weight", {d.out, d.in});
  if (config.get_bool("bias", true)) d.bias = read("linear.bias", {d.out});
  return d;
}

// The file has one of several names, by the family that it was written for.
void read_length(const std::string& dir, EmbedRecipe* recipe) {
  for (const char* family : {"bert", "roberta", "distilbert", "xlm-roberta", "camembert", "albert", "xlnet"}) {
    const std::string file = join_path(dir, fmt::format("sentence_{}_config.json", family));
    if (!file_exists(file)) continue;
    const nlohmann::json json = parse_json_file(file);
    const JsonObject config(json, file);
    recipe->max_tokens = config.get_int("max_seq_length", 0, 1, int64_t{1} << 40);
    recipe->lower_case = config.get_bool("do_lower_case", false);
    break;
  }
  // Without a length there, what the tokenizer states; files without a limit state an absurd number.
  const std::string file = join_path(dir, "tokenizer_config.json");
  if (recipe->max_tokens > 0 || !file_exists(file)) return;
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  const nlohmann::json* length = config.find("model_max_length");
  if (length != nullptr && length->is_number() && length->get<double>() >= 1 && length->get<double>() < 1 << 30)
    recipe->max_tokens = static_cast<int64_t>(length->get<double>());
}

void read_prompts(const std::string& dir, EmbedRecipe* recipe) {
  const std::string file = join_path(dir, "config_sentence_transformers.json");
  if (!file_exists(file)) return;
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  recipe->default_prompt = config.get_string("default_prompt_name", "");
  if (const std::optional<JsonObject> prompts = config.object("prompts"))
    for (const auto& item : prompts->json().items())
      if (!item.value().is_null()) recipe->prompts[item.key()] = prompts->require_string(item.key());
  if (!recipe->default_prompt.empty() && !recipe->prompts.count(recipe->default_prompt))
    config.fail("default_prompt_name", "the name of one of \"prompts\"");
}

void read_modules(const std::string& dir, EmbedRecipe* recipe) {
  const std::string file = join_path(dir, "modules.json");
  const nlohmann::json json = parse_json_file(file);
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::unsupported, file + ": " + what,
                "supported: Transformer with Pooling, or StaticEmbedding; then Dense, Dropout and Normalize");
  };
  if (!json.is_array() || json.empty()) throw Error(ErrorCode::input, file + ": expected a non-empty list of modules", "the file is damaged");
  bool pooled = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const JsonObject module(json[i], file, fmt::format("[{}]", i));
    const std::string type = last_part(module.require_string("type"));
    const std::string folder = module_dir(dir, module.get_string("path", ""), module);
    if ((type == "Transformer" || type == "StaticEmbedding") != (i == 0)) refuse(fmt::format("module {} is a {}", i, quote_for_message(type)));
    if (type == "Transformer") {
      recipe->model_path = folder;
      recipe->strip = true;
      read_length(folder, recipe);
    } else if (type == "StaticEmbedding") {
      recipe->is_static = true;
      recipe->model_path = folder;
    } else if (type == "Pooling" && i == 1 && !recipe->is_static) {
      read_pooling(folder, recipe);
      pooled = true;
    } else if (type == "Dropout") {
      continue;  // of use in training only
    } else if (type == "Normalize") {
      recipe->steps.push_back({true, {}});
    } else if (type == "Dense") {
      recipe->steps.push_back({false, read_dense(folder)});
    } else {
      refuse(fmt::format("module {}, a {}, is not supported there", i, quote_for_message(type)));
    }
  }
  if (!pooled && !recipe->is_static) refuse("there is no Pooling behind the Transformer");
}

// general.architecture.pooling_type, in llama.cpp's numbers; files without it have the default.
void read_gguf_pooling(const std::string& path, EmbedRecipe* recipe) {
  const GgufFile file(path);
  const std::string key = file.get_string("general.architecture").value_or("") + ".pooling_type";
  const std::optional<int64_t> type = file.get_int(key);
  if (!type || *type == 0) return;
  recipe->source = "gguf";
  for (const Pooling p : {Pooling::mean, Pooling::cls, Pooling::last_token}) {
    recipe->pooling = {p};
    if (pooling_number(*recipe) == *type) return;
  }
  throw Error(ErrorCode::unsupported, fmt::format("{}: key {}: pooling {} is not supported", path, key, *type), "supported: 1 (mean), 2 (cls), 3 (last token)");
}

}  // namespace

const char* pooling_name(Pooling pooling) {
  switch (pooling) {
    case Pooling::cls: return "cls";
    case Pooling::max: return "max";
    case Pooling::mean_sqrt_len: return "mean_sqrt_len";
    case Pooling::weighted_mean: return "weightedmean";
    case Pooling::last_token: return "lasttoken";
    case Pooling::mean: break;
  }
  return "mean";
}

std::vector<Pooling> parse_pooling(const std::string& text, const std::string& option) {
  std::vector<Pooling> list;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('+', at), text.size());
    const std::string name = text.substr(at, end - at);
    const auto found = std::find_if(std::begin(kPoolings), std::end(kPoolings), [&](Pooling p) { return name == pooling_name(p); });
    if (found == std::end(kPoolings))
      throw Error(ErrorCode::usage, fmt::format("{}: unknown pooling {}", option, quote_for_message(name)),
                  "valid: cls, max, mean, mean_sqrt_len, weightedmean, lasttoken, or several joined by +");
    list.push_back(*found);
    at = end + 1;
  }
  return list;
}

uint32_t pooling_number(const EmbedRecipe& recipe) {
  if (recipe.pooling.size() != 1 || std::any_of(recipe.steps.begin(), recipe.steps.end(), [](const EmbedStep& s) { return !s.normalize; })) return 0;
  switch (recipe.pooling[0]) {
    case Pooling::mean: return 1;
    case Pooling::cls: return 2;
    case Pooling::last_token: return 3;
    default: return 0;
  }
}

bool EmbedRecipe::normalizes() const {
  return std::any_of(steps.begin(), steps.end(), [](const EmbedStep& s) { return s.normalize; });
}

std::string describe(const EmbedRecipe& recipe) {
  std::string text;
  for (const Pooling p : recipe.pooling) text += (text.empty() ? "" : "+") + std::string(pooling_name(p));
  for (const EmbedStep& s : recipe.steps)
    text += s.normalize ? ", normalize" : fmt::format(", dense {}{}", s.dense.out, s.dense.tanh ? " tanh" : "");
  return text;
}

EmbedRecipe read_embed_recipe(const std::string& path) {
  EmbedRecipe recipe;
  recipe.model_path = path;
  if (const std::string gguf = gguf_path(path); !gguf.empty()) {
    read_gguf_pooling(gguf, &recipe);
    return recipe;
  }
  if (!is_directory(path)) return recipe;
  const std::string config_file = join_path(path, "config.json");
  if (file_exists(join_path(path, "modules.json"))) {
    recipe.source = "sentence-transformers";
    read_modules(path, &recipe);
    read_prompts(path, &recipe);
  }
  if (!file_exists(config_file)) return recipe;
  const nlohmann::json json = parse_json_file(config_file);
  const JsonObject config(json, config_file);
  if (config.get_string("model_type", "") != "model2vec") return recipe;
  if (recipe.source == "default") recipe.source = "model2vec";
  recipe.is_static = true;
  recipe.strip = false;
  recipe.max_tokens = config.get_int("seq_length", 0, 1, int64_t{1} << 40);
  if (config.get_bool("normalize", false) && !recipe.normalizes()) recipe.steps.push_back({true, {}});
  return recipe;
}

}  // namespace thimble
