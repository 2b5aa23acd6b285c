// thimble pretrain: a model from nothing but a config.json and a text. The result is a complete model directory.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "models/init.h"
#include "models/tokenizer/bpe_trainer.h"
#include "models/tokenizer/tokenizer.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/cli.h"
#include "tools/cli/model_output.h"
#include "tools/cli/pretrain_recipe.h"
#include "tools/cli/train_options.h"

namespace thimble::cli {
namespace {

struct PretrainOptions {
  CommonOptions common;
  TrainFlags train;
  std::string config, text, eval_text, tokenizer;
  double eval_fraction = 0;
  int64_t vocab_size = 0;
  bool char_level = false;
  RecipeOptions recipe;
};

// One token per character of the text: all of the vocabulary goes to characters, none to merges.
Tokenizer character_tokenizer(const std::string& text) {
  if (find_invalid_utf8(text) != std::string_view::npos)
    throw Error(ErrorCode::input, fmt::format("is not UTF-8: byte {}", find_invalid_utf8(text)),
                "convert it to UTF-8 first");
  std::set<char32_t> characters{' '};
  for (size_t at = 0; at < text.size();) characters.insert(next_code_point(text, at));
  BpeTrainerOptions options;
  options.byte_fallback = false;
  options.character_coverage = 1;
  options.vocab_size = static_cast<int32_t>(options.specials.size() + characters.size());
  return train_bpe(text, options);
}

Tokenizer make_tokenizer(const PretrainOptions& o, const std::string& text) {
  if (!o.tokenizer.empty()) return Tokenizer::load(o.tokenizer);
  try {
    if (o.vocab_size == 0) return character_tokenizer(text);
    BpeTrainerOptions options;
    options.vocab_size = static_cast<int32_t>(o.vocab_size);
    return train_bpe(text, options);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::input) throw;
    throw Error(e.code(), o.text + ": " + e.what(), e.hint());
  }
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text, const std::string& path) {
  try {
    return tokenizer.encode(text, {false, false});
  } catch (const Error& e) {
    throw Error(e.code(), path + ": " + e.what(), e.hint());
  }
}

Dataset stream(std::vector<int32_t> ids, int64_t ctx, const std::string& path) {
  try {
    return Dataset::from_stream(std::move(ids), ctx);
  } catch (const Error& e) {
    throw Error(e.code(), path + ": " + e.what(), e.hint());
  }
}

// The given config with what belongs to the tokenizer filled in.
nlohmann::ordered_json finished_config(const Model& model, const Tokenizer& tokenizer) {
  nlohmann::ordered_json config = base_config(model);
  config["vocab_size"] = model.config.vocab_size;
  if (!config.contains("architectures")) config["architectures"] = {model.family->architectures[0]};
  if (!config.contains("model_type")) config["model_type"] = model.family->model_types[0];
  const auto id = [](int32_t value) {
    return value < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(value);
  };
  config["bos_token_id"] = id(tokenizer.bos_id());
  config["eos_token_id"] = id(tokenizer.eos_id());
  return config;
}

int run_pretrain(PretrainOptions& o) {
  if (!o.recipe.recipe.empty()) {
    if (!o.config.empty() || !o.text.empty())
      throw Error(ErrorCode::usage, fmt::format("--recipe: excludes {}", o.config.empty() ? "--text" : "--config"), "the recipe says what to train on what");
    o.recipe.out = o.train.out;
    o.recipe.resume = o.train.resume;
    o.recipe.steps = o.train.loop.steps;
    return run_recipe(o.common, o.recipe);
  }
  for (const auto& [option, value] : {std::pair<const char*, const std::string*>{"--config", &o.config}, {"--text", &o.text}})
    if (value->empty()) throw Error(ErrorCode::usage, fmt::format("{} is required", option), "run with --help for more information");
  install_stop_handlers();
  prepare_train_flags(o.train, o.common, 1e-3);
  if (!o.tokenizer.empty() && (o.vocab_size > 0 || o.char_level))
    throw Error(ErrorCode::usage,
                fmt::format("--tokenizer: excludes {}", o.vocab_size > 0 ? "--vocab-size" : "--char-level"),
                "give one of them");
  if (o.char_level && o.vocab_size > 0)
    throw Error(ErrorCode::usage, "--char-level: excludes --vocab-size",
                "the vocabulary is the characters of the text");
  if (!o.eval_text.empty() && o.eval_fraction > 0)
    throw Error(ErrorCode::usage, "--eval-text: excludes --eval-fraction", "give one of them");
  Session session(o.common);
  const std::string text = read_file(o.text);
  const Tokenizer tokenizer = make_tokenizer(o, text);

  // A vocabulary that the config pads beyond its tokenizer is kept.
  int64_t vocab = tokenizer.vocab_size();
  const nlohmann::json given = parse_json_file(o.config);
  if (!o.tokenizer.empty())
    vocab = std::max(vocab, JsonObject(given, o.config).get_int("vocab_size", vocab, 1, kMaxDim));
  {
    // Counts the weights of the config before any memory is taken for them.
    nlohmann::json sized = given;
    sized["vocab_size"] = vocab;
    const JsonObject object(sized, o.config);
    const ModelConfig config = parse_config(object, find_family(object));
    double parameters = 0;
    for (int i = 0; i < kRoleCount; ++i) {
      const RoleShape s = role_shape(config, static_cast<Role>(i));
      for_each_place(config, static_cast<Role>(i), [&](int64_t) { parameters += double(s.rows) * double(s.cols); });
    }
    check_full_training(session, o.train, parameters);
    if (o.train.ctx > config.max_positions)
      throw Error(ErrorCode::usage,
                  fmt::format("--ctx {}: {} has positions for {} tokens", o.train.ctx, o.config, config.max_positions),
                  fmt::format("use --ctx {} or less", config.max_positions));
    if (o.train.ctx == 0) o.train.ctx = std::min<int64_t>(config.max_positions, 256);
  }

  std::vector<int32_t> ids = encode(tokenizer, text, o.text), eval_ids;
  if (o.eval_fraction > 0) {
    const auto cut = static_cast<std::ptrdiff_t>(double(ids.size()) * (1 - o.eval_fraction));
    eval_ids.assign(ids.begin() + cut, ids.end());
    ids.resize(static_cast<size_t>(cut));
  }
  if (!o.eval_text.empty()) eval_ids = encode(tokenizer, read_file(o.eval_text), o.eval_text);
  const Dataset data = stream(std::move(ids), o.train.ctx, o.text);
  std::optional<Dataset> eval;
  if (!o.eval_text.empty() || o.eval_fraction > 0)
    eval.emplace(
        stream(std::move(eval_ids), o.train.ctx, o.eval_text.empty() ? o.text + " (--eval-fraction)" : o.eval_text));

  Model model = init_model(o.config, o.common.seed, vocab, &session.budget());
  check_vocabulary(data, model.config, o.text);
  TrainJob job;
  job.verb = "pretrain";
  job.method = "full";
  job.model = &model;
  job.data = &data;
  job.eval = eval ? &*eval : nullptr;
  job.identity = fmt::format("config={} text={} eval={},{:a} tokenizer={},{},{}", given.dump(), sha256_hex(text),
                             o.eval_text.empty() ? "" : sha256_file(o.eval_text), o.eval_fraction, tokenizer.kind(),
                             vocab, o.char_level);
  job.save = [&] {
    tokenizer.save(o.train.out);
    write_model(o.train.out, model, session.kernels(), finished_config(model, tokenizer));
  };
  return run_training(o.common, session, o.train, job);
}

}  // namespace

void add_pretrain(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("pretrain", "train a model from nothing on a text");
  command->footer(
      "Examples:\n"
      "  thimble pretrain --config config.json --text stories.txt --vocab-size 2048 --steps 2000 --batch 8 --ctx 256 "
      "--lr 3e-3 --warmup 100 --out model\n"
      "  thimble pretrain --config config.json --text stories.txt --eval-fraction 0.1 --steps 500 --out model    (one "
      "token per character)\n"
      "  thimble pretrain --recipe models/zoo/llama-0.4m/recipe.json --out model\n"
      "The config's vocab_size is replaced by the tokenizer's. OUT becomes a complete model directory.");
  auto o = std::make_shared<PretrainOptions>();
  command->add_option("--config", o->config, "config.json of any supported family");
  command->add_option("--text", o->text, "text to learn from");
  command->add_option("--recipe", o->recipe.recipe, "make a base model of the zoo: models/zoo/NAME/recipe.json");
  command->add_option("--show", o->recipe.show, "with --recipe: print so many training sequences instead, answers in braces");
  command->add_option("--eval-text", o->eval_text, "text to evaluate on");
  command->add_option("--eval-fraction", o->eval_fraction, "evaluate on this share of the end of --text instead")
      ->check(CLI::Range(0.0, 0.9));
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory");
  command->add_option("--vocab-size", o->vocab_size, "train a BPE tokenizer of this size on the text")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_flag("--char-level", o->char_level,
                    "one token per character; the default without --tokenizer and --vocab-size");
  add_train_options(*command, o->train, "1e-3");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_pretrain(*o); }; });
}

}  // namespace thimble::cli
