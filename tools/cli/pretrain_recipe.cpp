#include "tools/cli/pretrain_recipe.h"

#include <fmt/format.h>

#include <cstdio>

#include "models/init.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/machine.h"
#include "tools/cli/model_output.h"
#include "tools/lab/world/lexicon.h"
#include "tools/lab/zoo.h"

namespace thimble::cli {

using Json = nlohmann::ordered_json;
using namespace thimble::lab;

int run_recipe(const CommonOptions& common, const RecipeOptions& o) {
  install_stop_handlers();
  ZooRecipe recipe = load_recipe(o.recipe);
  if (o.out.empty()) throw Error(ErrorCode::usage, "--out is missing", "give the directory of the new model");
  CommonOptions with_precision = common;
  with_precision.precision = recipe.precision;
  Session session(with_precision);

  // The tokenizer is a function of the world's words.
  make_directories(o.out);
  write_file(join_path(o.out, "tokenizer.json"), world_tokenizer_json());
  write_file(join_path(o.out, "tokenizer_config.json"),
             "{\n \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n \"bos_token\": \"<s>\",\n \"eos_token\": \"</s>\",\n \"unk_token\": \"<unk>\",\n "
             "\"add_bos_token\": true,\n \"clean_up_tokenization_spaces\": false\n}\n");
  const Tokenizer tokenizer = Tokenizer::load(o.out);
  const PretrainMix mix(tokenizer, recipe.mix, recipe.seed);
  if (o.show > 0) {
    for (int64_t k = 0; k < o.show; ++k) write_stdout(mix.show(k) + "\n\n");
    return 0;
  }
  Json config = recipe.config;
  config["vocab_size"] = tokenizer.vocab_size();
  config["bos_token_id"] = tokenizer.bos_id();
  config["eos_token_id"] = tokenizer.eos_id();
  write_file(join_path(o.out, "config.json"), config.dump(2) + "\n");
  Model model = init_model(join_path(o.out, "config.json"), recipe.seed, tokenizer.vocab_size(), &session.budget());
  enable_gradients(model);

  const Dataset data = Dataset::from_generator([&](int64_t k, WeightedSequence& s) { mix.make(k, s); }, recipe.mix.ctx);
  const Dataset held_out = held_out_sequences(mix, recipe.held_out);
  auto ctx = session.make_context();
  Transformer transformer(model, recipe.mix.ctx);
  TrainOptions train = recipe.train;
  train.out = o.out;
  train.fingerprint = sha256_hex("recipe " + recipe.sha256);
  Json gates = Json::array();
  train.gate = [&](int64_t step) {
    const GateScores scores = measure_gate(transformer, *ctx, mix, recipe.gate_questions);
    say(common, fmt::format("step {}: {}", step, scores.words()));
    return scores.passes(recipe.decay_gate);
  };
  if (o.steps > 0) {  // the beginning of the run, for a test
    train.steps = o.steps;
    train.max_steps = o.steps;
    train.gate = nullptr;
  }
  Trainer trainer(*ctx, transformer, nullptr, data, &held_out, train);
  const bool resumed = o.resume && trainer.resume();
  if (resumed) say(common, fmt::format("continuing after step {}", trainer.step_count()));
  if (!resumed)
    for (const char* stale : {"log.jsonl", "state/checkpoint.safetensors"}) std::remove(join_path(o.out, stale).c_str());
  Progress progress(common, "pretrain " + recipe.name, trainer.total_steps(), "steps");
  const TrainResult result = trainer.run([&](const StepReport& s) {
    progress.update(s.step, fmt::format("loss {:.4f}, {:.0f} tokens/s", s.loss, double(s.tokens) / std::max(1e-9, s.seconds)));
    if (common.verbose && (s.step % train.log_every == 0 || s.eval_loss >= 0))
      say(common, fmt::format("step {} of {}: loss {:.5f}, lr {:.3g}, norm {:.3f}, {:.0f} tokens/s{}", s.step, s.total, s.loss, s.lr, s.grad_norm,
                              double(s.tokens) / std::max(1e-9, s.seconds), s.eval_loss >= 0 ? fmt::format(", held-out {:.5f}", s.eval_loss) : ""));
  });
  Json report = {{"schema", "thimble.pretrain/1"},
                 {"name", recipe.name},
                 {"recipe_sha256", recipe.sha256},
                 {"commit", describe_machine().commit},
                 {"steps", result.steps},
                 {"tokens", result.tokens},
                 {"parameters", model.parameters()},
                 {"seconds", result.seconds},
                 {"held_out_loss", result.eval_loss}};
  if (o.steps == 0) {
    write_model(o.out, model, session.kernels(), config, SafetensorsDtype::bf16);
    // What ships is the rounded model: it is what must pass.
    CommonOptions exact = common;
    exact.precision = "f32";
    Session judge(exact);
    Model shipped = load_model(o.out, judge.kernels());
    auto judge_ctx = judge.make_context();
    Transformer judged(shipped, recipe.mix.ctx);
    const GateScores scores = measure_gate(judged, *judge_ctx, mix, recipe.gate_questions);
    report["held_out_loss_bf16"] = mean_loss(*judge_ctx, judged, nullptr, held_out, 16);
    report["gate"] = scores.to_json();
    report["gate_passed"] = scores.passes(recipe.gate);
    report["sha256"] = {{"model.safetensors", sha256_file(join_path(o.out, "model.safetensors"))},
                        {"tokenizer.json", sha256_file(join_path(o.out, "tokenizer.json"))},
                        {"config.json", sha256_file(join_path(o.out, "config.json"))}};
    write_file(join_path(o.out, "training.json"), report.dump(2) + "\n");
    if (!scores.passes(recipe.gate))
      warn(fmt::format("{}: the finished model does not pass its gate ({}): raise max_steps or change the mix", recipe.name, scores.words()));
  }
  if (common.json)
    print_json(report);
  else
    write_stdout(fmt::format("{}: {} steps, {} tokens in {:.0f} s, held-out loss {:.5f}\nwritten to {}\n", recipe.name, result.steps, result.tokens,
                             result.seconds, result.eval_loss, o.out));
  return 0;
}

}  // namespace thimble::cli
