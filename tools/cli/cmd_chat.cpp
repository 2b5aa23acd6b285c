// thimble chat: a conversation with a model, in its own template. The key/value cache stays between turns: of every
// prompt only what differs from the cached tokens is run.
#include <errno.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "models/adapter.h"
#include "models/chat_template.h"
#include "models/generator.h"
#include "models/io/json.h"
#include "models/quantize.h"
#include "models/sampler.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/read_input.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  CommonOptions common;
  std::string model, tokenizer, load_as, adapter, kv = "f32", system, template_file, template_name, tools;
  std::vector<std::string> messages, template_args;
  int64_t max_tokens = 1024, ctx = 0;
  SamplerOptions sampler;
};

constexpr int64_t kDefaultContext = 4096;  // models name up to millions, whose cache would not fit

volatile sig_atomic_t stop_asked = 0;
void on_interrupt(int) { stop_asked = 1; }

// While it exists, Ctrl-C sets a flag and system calls return early.
class InterruptGuard {
 public:
  InterruptGuard() {
    struct sigaction action {};
    action.sa_handler = on_interrupt;
    stop_asked = 0;
    ::sigaction(SIGINT, &action, &before_);
  }
  ~InterruptGuard() { ::sigaction(SIGINT, &before_, nullptr); }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  struct sigaction before_ {};
};

// Lines of standard input. std::cin would not say whether it was a signal that ended a read.
class LineReader {
 public:
  enum class Result { line, end, interrupted };
  Result next(std::string* line) {
    for (;;) {
      const size_t end = buffer_.find('\n');
      if (end != std::string::npos || (ended_ && !buffer_.empty())) {
        *line = buffer_.substr(0, end);
        buffer_.erase(0, end == std::string::npos ? buffer_.size() : end + 1);
        if (!line->empty() && line->back() == '\r') line->pop_back();
        return Result::line;
      }
      if (ended_) return Result::end;
      char bytes[4096];
      const ssize_t n = ::read(0, bytes, sizeof(bytes));
      if (n < 0 && errno == EINTR) {
        if (!stop_asked) continue;
        stop_asked = 0;
        buffer_.clear();
        return Result::interrupted;
      }
      if (n < 0) throw Error(ErrorCode::input, std::string("standard input: ") + std::strerror(errno), "");
      if (n == 0) ended_ = true;
      buffer_.append(bytes, static_cast<size_t>(std::max<ssize_t>(0, n)));
      if (buffer_.size() > (size_t{64} << 20)) throw Error(ErrorCode::input, "standard input: a line of more than 64 MB", "");
    }
  }

 private:
  std::string buffer_;
  bool ended_ = false;
};

// Passes text on as it comes, up to a stop string; what might be its beginning is kept back.
class StopString {
 public:
  explicit StopString(std::string stop) : stop_(std::move(stop)) {}
  std::string push(const std::string& text) {
    if (stop_.empty()) return text;
    held_ += text;
    const size_t at = held_.find(stop_);
    if (at != std::string::npos) {
      found_ = true;
      std::string out = held_.substr(0, at);
      held_.clear();
      return out;
    }
    size_t keep = std::min(held_.size(), stop_.size() - 1);
    while (keep > 0 && held_.compare(held_.size() - keep, keep, stop_, 0, keep) != 0) --keep;
    std::string out = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return out;
  }
  std::string finish() { return std::move(held_); }
  bool found() const { return found_; }

 private:
  std::string stop_, held_;
  bool found_ = false;
};

ChatTemplate choose_template(const Options& o, const std::string& tokenizer_dir) {
  if (!o.template_file.empty()) return ChatTemplate::read(o.template_file);
  for (const std::string& dir : {o.model, tokenizer_dir})
    if (auto found = ChatTemplate::find(dir, o.template_name, !o.tools.empty())) return *found;
  warn(o.model + ": no chat template; the conversation is written as \"User: ...\" and \"Assistant: ...\" (see --template)");
  return ChatTemplate::plain();
}

Json json_of(const std::string& text, const std::string& name) {
  parse_json(text, name);  // strict; ordered_json keeps the order, which templates show
  return Json::parse(text);
}

struct Turn {
  std::vector<int32_t> prompt_ids, ids;
  std::string text, stop_reason;
  int64_t cached = 0, dropped = 0;
  double ttft_s = 0, decode_tok_s = 0;
};

class Chat {
 public:
  Chat(const Options& o, Session& session)
      : o_(o),
        session_(session),
        model_(load(o, session)),
        tokenizer_(Tokenizer::load(o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer)),
        template_(choose_template(o, o.tokenizer)) {
    const std::string tokenizer_dir = is_directory(o.tokenizer) ? o.tokenizer : o.model;
    inputs_.special_tokens = chat_special_tokens(tokenizer_dir, tokenizer_);
    if (!o.tools.empty()) inputs_.tools = json_of(read_file(o.tools), o.tools);
    for (const std::string& arg : o.template_args) {
      const size_t equals = arg.find('=');
      if (equals == std::string::npos || equals == 0)
        throw Error(ErrorCode::usage, "--template-arg: \"" + arg + "\" is not NAME=VALUE", "for example --template-arg enable_thinking=false");
      const std::string value = arg.substr(equals + 1);
      const Json parsed = Json::parse(value, nullptr, false);
      inputs_.extra[arg.substr(0, equals)] = parsed.is_discarded() ? Json(value) : parsed;
    }
    if (!o.adapter.empty()) adapter_ = std::make_unique<Adapter>(model_, session.kernels(), o.adapter, &session.budget());
    virtuals_ = adapter_ ? adapter_->n_virtual() : 0;
    rows_before_ = adapter_ && adapter_->kind() == AdapterKind::prompt ? virtuals_ : 0;
    const int64_t positions = model_.config.max_positions;
    limit_ = (o.ctx > 0 ? o.ctx : std::min(positions, kDefaultContext)) - virtuals_;
    if (limit_ < 2) throw Error(ErrorCode::usage, fmt::format("--ctx: a context of {} tokens is too small", limit_), "");
    if (o.ctx > positions && model_.config.positions == PositionKind::rope)
      warn(fmt::format("--ctx {} exceeds the {} positions of the model; quality may fall behind them", o.ctx, positions));
    context_ = session.make_context();
    transformer_ = std::make_unique<Transformer>(model_, limit_ + virtuals_);
    const KvType kv = parse_kv_type(o.kv, "--kv");
    generator_ = std::make_unique<Generator>(*transformer_, *context_, limit_, adapter_.get(), kv);
    SamplerOptions sampling = o.sampler;
    sampling.seed = o.common.seed;
    sampler_ = std::make_unique<Sampler>(sampling, model_.config.vocab_size);
    stop_ids_ = chat_stop_ids(model_.config.eos_ids, o.model, tokenizer_, template_.source());
    if (model_.llama2c) stop_ids_.push_back(model_.config.bos_id);
    reset(o.system);
  }

  void reset(const std::string& system) {
    system_ = system;
    messages_ = Json::array();
    if (!system.empty()) messages_.push_back({{"role", "system"}, {"content", system}});
  }
  const std::string& system() const { return system_; }
  const Json& messages() const { return messages_; }
  const std::vector<Turn>& turns() const { return turns_; }
  const ChatTemplate& chat_template() const { return template_; }
  const Generator& generator() const { return *generator_; }
  int64_t kv_bytes() const { return generator_->cache().bytes(); }

  // Answers one user turn; `show` gets the text as it is made. When it throws, the conversation is as before.
  const Turn& answer(const std::string& text, const std::function<void(const std::string&)>& show) {
    const Json before = messages_;
    messages_.push_back({{"role", "user"}, {"content", text}});
    try {
      Turn turn;
      fit(&turn);
      generate(&turn, show);
      messages_.push_back({{"role", "assistant"}, {"content", turn.text}});
      turns_.push_back(std::move(turn));
    } catch (...) {
      messages_ = before;
      throw;
    }
    return turns_.back();
  }

 private:
  static Model load(const Options& o, Session& session) {
    LoadOptions options;
    options.budget = &session.budget();
    Model model = load_model(o.model, session.kernels(), options);
    for (const std::string& w : model.warnings) warn(w);
    quantize_model(model, session.kernels(), parse_load_format(o.load_as), &session.budget(), session.threads());
    return model;
  }

  std::vector<int32_t> prompt() {
    inputs_.messages = messages_;
    std::vector<int32_t> ids = template_.encode(tokenizer_, template_.render(inputs_).text);
    if (ids.empty()) throw Error(ErrorCode::input, template_.name() + ": the conversation renders to nothing", "give another template with --template");
    return ids;
  }

  // Drops the oldest turns until the prompt and some room for the answer fit.
  void fit(Turn* turn) {
    const int64_t room = std::max<int64_t>(1, std::min(o_.max_tokens, limit_ / 4));
    for (;;) {
      turn->prompt_ids = prompt();
      const auto n = static_cast<int64_t>(turn->prompt_ids.size());
      if (n + room <= limit_) break;
      const size_t first = system_.empty() ? 0 : 1;  // the system message stays
      if (messages_.size() <= first + 1) {
        if (n + 1 <= limit_) break;
        throw Error(ErrorCode::input, fmt::format("the message has {} tokens with its template, more than the context of {}", n, limit_),
                    "shorten it, or raise --ctx up to what the model supports");
      }
      // A user's message goes with its answer, so that the roles still alternate.
      size_t end = first + 1;
      while (end + 1 < messages_.size() && messages_[end]["role"] != "user") ++end;
      messages_.erase(messages_.begin() + static_cast<long>(first), messages_.begin() + static_cast<long>(end));
      turn->dropped += static_cast<int64_t>(end - first);
    }
    if (turn->dropped > 0)
      say(o_.common, fmt::format("(the context of {} tokens is full: the oldest {} messages are left out)", limit_, turn->dropped));
  }

  void generate(Turn* turn, const std::function<void(const std::string&)>& show) {
    const double start = seconds_now();
    const std::vector<int32_t>& ids = turn->prompt_ids;
    size_t same = 0;
    while (same + 1 < ids.size() && same < cached_.size() && cached_[same] == ids[same]) ++same;
    turn->cached = static_cast<int64_t>(same);
    // After an interruption within feed() the cache may hold less than was noted.
    KvCache& cache = generator_->cache();
    cache.rewind(0, same > 0 ? rows_before_ + turn->cached : 0);
    cached_.resize(same);
    const float* logits = generator_->feed(ids.data() + same, static_cast<int64_t>(ids.size() - same));
    cached_ = ids;

    DecodeOptions decode;
    decode.skip_special = true;
    DecodeStream stream(tokenizer_, decode);
    StopString stop(template_.is_plain() ? "\nUser:" : "");
    const auto out = [&](const std::string& piece) {
      if (piece.empty()) return;
      turn->text += piece;
      show(piece);
    };
    double first = 0;
    turn->stop_reason = "length";
    while (static_cast<int64_t>(turn->ids.size()) < o_.max_tokens) {
      const int32_t id = sampler_->next(session_.kernels(), logits);
      if (first == 0) first = seconds_now();
      if (std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end()) {
        turn->stop_reason = "eos";
        break;
      }
      turn->ids.push_back(id);
      out(stop.push(stream.push(id)));
      if (stop.found()) {
        turn->stop_reason = "stop";
        break;
      }
      if (stop_asked) {
        stop_asked = 0;
        turn->stop_reason = "interrupted";
        break;
      }
      if (static_cast<int64_t>(turn->ids.size()) == o_.max_tokens) break;
      if (generator_->length() == limit_) {
        turn->stop_reason = "context";
        break;
      }
      logits = generator_->feed(&id, 1);
      cached_.push_back(id);
    }
    const double end = seconds_now();
    if (!stop.found()) {
      out(stop.push(stream.finish()));
      out(stop.finish());
    }
    turn->ttft_s = first > 0 ? first - start : 0;
    const auto made = static_cast<double>(turn->ids.size());
    turn->decode_tok_s = made > 1 ? (made - 1) / std::max(1e-9, end - first) : 0;
  }

  const Options& o_;
  Session& session_;
  Model model_;
  Tokenizer tokenizer_;
  ChatTemplate template_;
  ChatInputs inputs_;
  std::unique_ptr<Adapter> adapter_;
  int64_t virtuals_ = 0, limit_ = 0;
  int64_t rows_before_ = 0;  // of the cache, in front of the first token: a prompt adapter's
  std::unique_ptr<Context> context_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<Sampler> sampler_;
  std::vector<int32_t> stop_ids_, cached_;  // cached_: the tokens behind the cache's rows
  std::string system_;
  Json messages_;
  std::vector<Turn> turns_;
};

constexpr const char* kHelp =
    "/reset         forget the conversation, keep the system message\n"
    "/system TEXT   set the system message and begin anew\n"
    "/save FILE     write the conversation as JSON\n"
    "/help          this list\n"
    "/exit          leave (also Ctrl-D)\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.";

// A line that begins with a slash. False when the conversation is over.
bool command(const Options& o, Chat& chat, const std::string& line) {
  const size_t space = std::min(line.find(' '), line.size());
  const std::string name = line.substr(0, space);
  const std::string rest = space < line.size() ? line.substr(space + 1) : "";
  if (name == "/exit" || name == "/quit") return false;
  if (name == "/reset") {
    chat.reset(chat.system());
    say(o.common, "(a new conversation)");
  } else if (name == "/system") {
    chat.reset(rest);
    say(o.common, rest.empty() ? "(a new conversation without a system message)" : "(a new conversation with this system message)");
  } else if (name == "/save") {
    if (rest.empty()) {
      say(o.common, "/save needs the name of a file");
    } else {
      write_file(rest, Json({{"messages", chat.messages()}}).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
      say(o.common, "(written to " + rest + ")");
    }
  } else {
    say(o.common, kHelp);
  }
  return true;
}

void talk(const Options& o, Chat& chat) {
  const InterruptGuard guard;
  LineReader reader;
  say(o.common, fmt::format("Template: {}. /help lists the commands.", chat.chat_template().name()));
  std::string message;
  for (;;) {
    say(o.common, "");
    if (!o.common.quiet) write_stdout(message.empty() ? "> " : ". ");
    std::string line;
    const LineReader::Result result = reader.next(&line);
    if (result == LineReader::Result::end) {
      write_stdout("\n");
      return;
    }
    if (result == LineReader::Result::interrupted) {
      message.clear();
      say(o.common, "\n(/exit or Ctrl-D leaves)");
      continue;
    }
    if (!line.empty() && line.back() == '\\') {
      message += line.substr(0, line.size() - 1) + "\n";
      continue;
    }
    message += line;
    const std::string text = std::move(message);
    message.clear();
    if (text.find_first_not_of(" \t\n") == std::string::npos) continue;
    try {
      if (text[0] == '/') {
        if (!command(o, chat, text)) return;
        continue;
      }
      stop_asked = 0;
      const Turn& turn = chat.answer(text, [](const std::string& piece) { write_stdout(piece); });
      write_stdout("\n");
      if (turn.stop_reason == "interrupted") say(o.common, "(stopped)");
      if (turn.stop_reason == "length") say(o.common, "(stopped after --max-tokens)");
      if (turn.stop_reason == "context") say(o.common, "(the context is full)");
      if (o.common.verbose)
        say(o.common, fmt::format("({} of {} prompt tokens cached, first token after {:.2f} s, {:.1f} tok/s)", turn.cached,
                                  turn.prompt_ids.size(), turn.ttft_s, turn.decode_tok_s));
    } catch (const Error& e) {  // a conversation survives a message that does not fit, or a name that cannot be written
      if (e.code() != ErrorCode::input && e.code() != ErrorCode::budget) throw;
      say(o.common, std::string("error: ") + e.what() + (e.hint().empty() ? "" : "\nhint: " + e.hint()));
    }
  }
}

int run_chat(const Options& o) {
  const double begin = seconds_now();
  Session session(o.common);
  Chat chat(o, session);
  const double loaded = seconds_now();
  const bool from_terminal = o.messages.empty() && ::isatty(0) == 1;
  if (from_terminal && o.common.json)
    throw Error(ErrorCode::usage, "--json: a conversation on a terminal has no single result", "give --message, or turns on standard input");
  if (from_terminal) {
    talk(o, chat);
    return 0;
  }
  const auto answer = [&](const std::string& text) {
    chat.answer(text, [&](const std::string& piece) {
      if (!o.common.json) write_stdout(piece);
    });
    if (!o.common.json) write_stdout("\n");
  };
  if (!o.messages.empty()) {
    for (const std::string& text : o.messages) answer(text);
  } else {
    LineReader reader;
    std::string line;
    while (reader.next(&line) == LineReader::Result::line)
      if (line.find_first_not_of(" \t") != std::string::npos) answer(line);
  }
  if (!o.common.json) return 0;
  Json turns = Json::array();
  for (const Turn& t : chat.turns())
    turns.push_back({{"prompt_ids", t.prompt_ids},
                     {"ids", t.ids},
                     {"text", t.text},
                     {"stop_reason", t.stop_reason},
                     {"cached_tokens", t.cached},
                     {"dropped_messages", t.dropped},
                     {"ttft_s", t.ttft_s},
                     {"decode_tok_s", t.decode_tok_s}});
  print_json({{"schema", "thimble.chat/1"},
              {"template", chat.chat_template().name()},
              {"messages", chat.messages()},
              {"prompt_ids", chat.turns().empty() ? Json::array() : Json(chat.turns().back().prompt_ids)},
              {"turns", turns},
              {"load_s", loaded - begin},
              {"kv", o.kv},
              {"kv_bytes", chat.kv_bytes()},
              {"peak_rss_bytes", peak_rss_bytes()}});
  return 0;
}

}  // namespace

void add_chat(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("chat", "talk with a model in its chat template");
  command->footer(
      "Examples:\n"
      "  thimble chat --model DIR --system 'Answer in one sentence.' --temperature 0.7\n"
      "  thimble chat --model DIR --message 'Who are you?' --message 'And who am I?' --json\n"
      "  printf 'Hello\\nAnd now?\\n' | thimble chat --model DIR     # every line is a turn");
  auto o = std::make_shared<Options>();
  command->add_option("--model", o->model, "Hugging Face directory or llama2.c .bin file")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--system", o->system, "system message; stays when old turns are dropped");
  command->add_option("--template", o->template_file, "Jinja chat template; default: the model's own");
  command->add_option("--template-name", o->template_name, "which of the model's templates; default: \"default\", or \"tool_use\" with --tools");
  command->add_option("--template-arg", o->template_args, "NAME=VALUE for the template (VALUE as JSON, else text); may be repeated")
      ->allow_extra_args(false);
  command->add_option("--tools", o->tools, "JSON file with the list of tools that the template shows");
  command->add_option("--message", o->messages, "a user turn; may be repeated; default: the terminal, or lines of standard input")
      ->allow_extra_args(false);
  command->add_option("--load-as", o->load_as, "pack the base while loading: q8, q4, q2, q4-g32 ... (see generate)");
  command->add_option("--adapter", o->adapter, "PEFT adapter directory (LoRA, IA3, prompt or prefix tuning)");
  command->add_option("--kv", o->kv, "how keys and values are kept: f32 (default), f16, int8");
  command->add_option("--max-tokens", o->max_tokens, "new tokens per answer at most; default 1024")->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_option("--temperature", o->sampler.temperature, "0 (default) is greedy");
  command->add_option("--top-k", o->sampler.top_k, "keep the k most likely tokens; 0: all");
  command->add_option("--top-p", o->sampler.top_p, "keep the smallest set with this probability; 1: all");
  command->add_option("--min-p", o->sampler.min_p, "drop tokens below this share of the most likely one");
  command->add_option("--ctx", o->ctx, "context in tokens; default: the model's, at most 4096")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_chat(*o); }; });
}

}  // namespace thimble::cli
