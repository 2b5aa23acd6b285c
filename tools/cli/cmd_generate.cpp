// thimble generate: text from a model, streamed as it is made.
#include <fmt/format.h>

#include "models/adapter.h"
#include "models/chat_template.h"
#include "models/generator.h"
#include "models/quantize.h"
#include "models/sampler.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string model, tokenizer, load_as, prompt, prompt_file, adapter, kv = "f32";
  int64_t max_tokens = 256, ctx = 0;
  SamplerOptions sampler;
  bool echo = false, ignore_eos = false, parse_special = false, chat = false;
};

int run_generate(const Options& o) {
  const double begin = seconds_now();
  const KvType kv = parse_kv_type(o.kv, "--kv");
  Session session(o.common);
  LoadOptions load;
  load.budget = &session.budget();
  Model model = load_model(o.model, session.kernels(), load);
  for (const std::string& w : model.warnings) warn(w);
  quantize_model(model, session.kernels(), parse_load_format(o.load_as), &session.budget(), session.threads());
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer);
  std::unique_ptr<Adapter> adapter;
  if (!o.adapter.empty()) adapter = std::make_unique<Adapter>(model, session.kernels(), o.adapter, &session.budget());
  if (adapter && !o.common.quiet)
    for (const std::string& w : adapter->warnings()) warn(w);
  const int64_t virtuals = adapter ? adapter->n_virtual() : 0;
  const double loaded = seconds_now();

  const std::string prompt = o.prompt_file.empty() ? o.prompt : read_file(o.prompt_file);
  std::vector<int32_t> ids, stop = model.config.eos_ids;
  if (o.chat) {
    const auto found = ChatTemplate::find(o.model);
    if (!found) warn(o.model + ": no chat template; the prompt is written as \"User: ...\" and \"Assistant:\"");
    const ChatTemplate chat = found ? *found : ChatTemplate::plain();
    ChatInputs inputs;
    inputs.special_tokens = chat_special_tokens(o.model, tokenizer);
    inputs.messages = {{{"role", "user"}, {"content", prompt}}};
    ids = chat.encode(tokenizer, chat.render(inputs).text);
    stop = chat_stop_ids(stop, o.model, tokenizer, chat.source());
  } else {
    EncodeOptions encode;
    encode.parse_special = o.parse_special;
    ids = tokenizer.encode(prompt, encode);
  }
  if (ids.empty()) {
    const int32_t bos = tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : model.config.bos_id;
    if (bos < 0)
      throw Error(ErrorCode::input, o.model + ": the prompt is empty and neither tokenizer nor config.json names a BOS token",
                  "give a prompt with --prompt");
    ids.push_back(bos);
  }
  const auto n_prompt = static_cast<int64_t>(ids.size());
  const int64_t limit = (o.ctx > 0 ? o.ctx : model.config.max_positions) - virtuals;
  if (n_prompt > limit)
    throw Error(ErrorCode::input, fmt::format("the prompt has {} tokens, more than the context of {}", n_prompt, limit),
                "shorten the prompt, or raise --ctx up to what the model supports");
  if (o.ctx > model.config.max_positions && model.config.positions == PositionKind::rope)
    warn(fmt::format("--ctx {} exceeds the {} positions of the model; quality may fall behind them", o.ctx, model.config.max_positions));
  const int64_t capacity = std::min(limit, n_prompt + o.max_tokens);

  SamplerOptions sampling = o.sampler;
  sampling.seed = o.common.seed;
  Sampler sampler(sampling, model.config.vocab_size);
  auto ctx = session.make_context();
  Transformer transformer(model, capacity + virtuals);
  Generator generator(transformer, *ctx, capacity, adapter.get(), kv);
  if (stop.empty() && tokenizer.eos_id() >= 0) stop.push_back(tokenizer.eos_id());
  if (model.llama2c) stop.push_back(model.config.bos_id);  // these models separate their texts with BOS

  DecodeOptions decode;
  decode.skip_special = true;
  DecodeStream stream(tokenizer, decode);
  std::string text;
  const auto show = [&](const std::string& piece, bool print) {
    if (!print) return;
    text += piece;
    if (!o.common.json) write_stdout(piece);
  };
  for (int32_t id : ids) show(stream.push(id), o.echo);

  const double start = seconds_now();
  double first = 0;
  const float* logits = o.max_tokens > 0 ? generator.feed(ids.data(), n_prompt) : nullptr;
  const double prefilled = seconds_now();
  std::vector<int32_t> generated;
  generated.reserve(static_cast<size_t>(std::max<int64_t>(0, capacity - n_prompt) + 1));
  std::string stop_reason = "length";
  while (static_cast<int64_t>(generated.size()) < o.max_tokens) {
    const int32_t id = sampler.next(session.kernels(), logits);
    if (generated.empty()) first = seconds_now();
    if (!o.ignore_eos && std::find(stop.begin(), stop.end(), id) != stop.end()) {
      stop_reason = "eos";
      break;
    }
    generated.push_back(id);
    show(stream.push(id), true);
    if (static_cast<int64_t>(generated.size()) == o.max_tokens) break;
    if (generator.length() == capacity) {
      stop_reason = "context";
      break;
    }
    logits = generator.feed(&id, 1);
  }
  const double end = seconds_now();
  show(stream.finish(), true);
  const auto made = static_cast<double>(generated.size());
  const double prefill_rate = logits ? double(n_prompt) / std::max(1e-9, prefilled - start) : 0;
  const double decode_rate = made > 1 ? (made - 1) / std::max(1e-9, end - first) : 0;
  if (o.common.json) {
    print_json({{"schema", "thimble.generate/1"},
                {"text", text},
                {"prompt_ids", ids},
                {"ids", generated},
                {"stop_reason", stop_reason},
                {"load_s", loaded - begin},
                {"ttft_s", first > 0 ? first - start : 0},
                {"prefill_tok_s", prefill_rate},
                {"decode_tok_s", decode_rate},
                {"kv", kv_type_name(kv)},
                {"kv_bytes", generator.cache().bytes()},
                {"peak_rss_bytes", peak_rss_bytes()}});
  } else {
    write_stdout("\n");
    if (o.common.verbose)
      say(o.common, fmt::format("{} prompt tokens at {:.0f} tok/s, {} new tokens at {:.1f} tok/s, stopped by {}", n_prompt,
                                prefill_rate, generated.size(), decode_rate, stop_reason));
  }
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("generate", "continue a prompt");
  command->footer(
      "Examples:\n"
      "  thimble generate --model models/zoo/tiny --prompt 'Once upon a time' --max-tokens 60\n"
      "  thimble generate --model DIR --prompt-file p.txt --temperature 0.8 --top-p 0.95 --seed 7 --json");
  auto o = std::make_shared<Options>();
  command->add_option("--model", o->model, "Hugging Face directory or llama2.c .bin file")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--load-as", o->load_as,
                      "pack the base while loading: q8, q4, q2; with a group q4-g32, q4-g64, q4-row; and a kind q4-g32-sym, q4-g32-min; default: as stored");
  command->add_option("--adapter", o->adapter, "PEFT adapter directory (LoRA, DoRA, IA3, prompt or prefix tuning)");
  command->add_option("--kv", o->kv, "how keys and values are kept: f32 (default), f16, int8");
  auto* prompt = command->add_option("--prompt", o->prompt, "text to continue; empty starts from BOS");
  command->add_option("--prompt-file", o->prompt_file, "file with the text to continue")->excludes(prompt);
  command->add_option("--max-tokens", o->max_tokens, "new tokens at most; default 256")->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  command->add_option("--temperature", o->sampler.temperature, "0 (default) is greedy");
  command->add_option("--top-k", o->sampler.top_k, "keep the k most likely tokens; 0: all");
  command->add_option("--top-p", o->sampler.top_p, "keep the smallest set with this probability; 1: all");
  command->add_option("--min-p", o->sampler.min_p, "drop tokens below this share of the most likely one");
  command->add_option("--ctx", o->ctx, "context in tokens; default: the model's")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_flag("--chat", o->chat, "the prompt is a user's message, in the model's chat template (see chat)");
  command->add_flag("--echo", o->echo, "print the prompt too");
  command->add_flag("--ignore-eos", o->ignore_eos, "do not stop at an end-of-text token");
  command->add_flag("--parse-special", o->parse_special, "special strings in the prompt become their token");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_generate(*o); }; });
}

}  // namespace thimble::cli
