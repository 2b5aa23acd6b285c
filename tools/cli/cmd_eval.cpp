// thimble eval: perplexity of a text, multiple choice, and continuations. The JSON has the schema of lm-eval's result
// files, so that dashboards made for those read it; the protocol of a perplexity stands beside the number.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>

#include "kernels/isa.h"
#include "models/quantize.h"
#include "models/adapter.h"
#include "models/io/json.h"
#include "models/model.h"
#include "models/scoring.h"
#include "models/tokenizer/tokenizer.h"
#include "models/tokenizer/unicode.h"
#include "models/transformer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/cli.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct EvalOptions {
  CommonOptions common;
  std::string model, tokenizer, load_as, adapter, ppl, choices, continuation, samples, kv = "f32";
  int64_t ctx = 0, stride = 0, limit = 0;
  bool bos = false, second_half = false;
};

// One question: a context and the continuations to score after it.
struct Item {
  int64_t line = 0;
  std::string context;
  std::vector<std::string> choices;        // as given
  std::vector<std::string> continuations;  // with the delimiter in front
  int64_t gold = 0;
};

struct Items {
  std::vector<Item> rows;
  int64_t original = 0;  // rows of the file, whatever the limit
};

// Texts that come from JSON are well-formed UTF-8.
bool starts_with_space(const std::string& text) {
  size_t at = 0;
  return !text.empty() && is_white_space(next_code_point(text, at));
}

// Bytes of text before its trailing whitespace.
size_t size_without_trailing_space(const std::string& text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();)
    if (!is_white_space(next_code_point(text, at))) end = at;
  return end;
}

// fn(object, line number) for the first `limit` rows (0: all); returns how many rows the file has.
template <class Fn>
int64_t for_each_row(const std::string& path, int64_t limit, Fn&& fn) {
  const std::string content = read_file(path);
  int64_t rows = 0, number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view text = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (++rows > limit && limit > 0) continue;
    const std::string name = path + ":" + std::to_string(number);
    const nlohmann::json value = parse_json(text, name);
    fn(JsonObject(value, name), number);
  }
  if (rows == 0) throw Error(ErrorCode::input, path + ": holds no rows", "expected one JSON object per line");
  return rows;
}

Items read_choices(const std::string& path, int64_t limit) {
  Items items;
  items.original = for_each_row(path, limit, [&](const JsonObject& row, int64_t number) {
    Item item;
    item.line = number;
    item.context = row.require_string("query");
    const nlohmann::json* list = row.find("choices");
    const auto is_text = [](const nlohmann::json& c) { return c.is_string() && !c.get_ref<const std::string&>().empty(); };
    if (list == nullptr || !list->is_array() || list->empty() || !std::all_of(list->begin(), list->end(), is_text))
      row.fail("choices", "a list of texts, none of them empty");
    for (const nlohmann::json& choice : *list) {
      item.choices.push_back(choice.get<std::string>());
      item.continuations.push_back(starts_with_space(item.choices.back()) ? item.choices.back() : " " + item.choices.back());
    }
    const auto n = static_cast<int64_t>(item.choices.size());
    const nlohmann::json* gold = row.find("gold");
    if (gold != nullptr && gold->is_string()) {
      item.gold = std::find(item.choices.begin(), item.choices.end(), gold->get<std::string>()) - item.choices.begin();
      if (item.gold == n) row.fail("gold", "the index or the text of one of the choices");
    } else {
      item.gold = row.require_int("gold", 0, n - 1);
    }
    items.rows.push_back(std::move(item));
  });
  return items;
}

Items read_continuations(const std::string& path, int64_t limit) {
  Items items;
  items.original = for_each_row(path, limit, [&](const JsonObject& row, int64_t number) {
    Item item;
    item.line = number;
    item.context = row.require_string("context");
    std::string continuation = row.require_string("continuation");
    if (continuation.empty()) row.fail("continuation", "a text that is not empty");
    const bool joined = size_without_trailing_space(item.context) < item.context.size() || starts_with_space(continuation);
    item.choices = {continuation};
    item.continuations = {joined ? continuation : " " + continuation};
    items.rows.push_back(std::move(item));
  });
  return items;
}

struct Loaded {
  Model model;
  Tokenizer tokenizer;
  std::string tokenizer_path;
  int32_t bos_id, prefix_id;  // prefix: stands for an empty context
  std::unique_ptr<Adapter> adapter;

  int64_t virtuals() const { return adapter ? adapter->n_virtual() : 0; }
  // Tokens of text that fit.
  int64_t positions() const { return model.config.max_positions - virtuals(); }
};

Loaded load(const EvalOptions& o, Session& session) {
  const std::string tokenizer_path = o.tokenizer.empty() ? default_tokenizer_path(o.model) : o.tokenizer;
  LoadOptions options;
  options.budget = &session.budget();
  Loaded l{load_model(o.model, session.kernels(), options), Tokenizer::load(tokenizer_path), tokenizer_path, -1, -1, nullptr};
  quantize_model(l.model, session.kernels(), parse_load_format(o.load_as), &session.budget(), session.threads());
  if (!o.adapter.empty()) l.adapter = std::make_unique<Adapter>(l.model, session.kernels(), o.adapter, &session.budget());
  if (l.adapter && !o.common.quiet)
    for (const std::string& w : l.adapter->warnings()) warn(w);
  if (!o.common.quiet)
    for (const std::string& w : l.model.warnings) warn(w);
  const ModelConfig& c = l.model.config;
  const int32_t eos = l.tokenizer.eos_id() >= 0 ? l.tokenizer.eos_id() : c.eos_ids.empty() ? -1 : c.eos_ids[0];
  l.bos_id = l.tokenizer.bos_id() >= 0 ? l.tokenizer.bos_id() : c.bos_id;
  l.prefix_id = l.bos_id >= 0 ? l.bos_id : eos;
  if (o.bos && l.bos_id < 0)
    throw Error(ErrorCode::input, fmt::format("{}: --bos: neither tokenizer nor config.json names a BOS token", tokenizer_path),
                "leave --bos away");
  return l;
}

// Ids of a text that came from `where`; errors name it.
std::vector<int32_t> encode(const Loaded& l, const std::string& text, const std::string& where) {
  std::vector<int32_t> ids;
  try {
    ids = l.tokenizer.encode(text, {false, false});
  } catch (const Error& e) {
    throw Error(e.code(), where + ": " + e.what(), e.hint());
  }
  for (int32_t id : ids)
    if (id >= l.model.config.vocab_size)
      throw Error(ErrorCode::input,
                  fmt::format("{}: {} gives token id {}: the vocabulary of {} has {} entries", where, l.tokenizer_path, id,
                              l.model.path, l.model.config.vocab_size),
                  "tokenizer and model do not belong together: name the right one with --tokenizer");
  return ids;
}

struct EncodedItem {
  std::vector<int32_t> context;
  std::vector<std::vector<int32_t>> continuations;
};

// Context and continuation are encoded as one text and split behind the context's tokens; whitespace at the end of the
// context belongs to the continuation, since most vocabularies hold it at the front of a word.
EncodedItem encode_item(const Loaded& l, const Item& item, bool bos, const std::string& path) {
  const std::string where = fmt::format("{}:{}", path, item.line);
  const size_t cut = size_without_trailing_space(item.context);
  const std::string context = item.context.substr(0, cut), spaces = item.context.substr(cut);
  EncodedItem out;
  const std::vector<int32_t> ids = encode(l, context, where);
  if (bos) out.context.push_back(l.bos_id);
  out.context.insert(out.context.end(), ids.begin(), ids.end());
  if (out.context.empty()) {
    if (l.prefix_id < 0)
      throw Error(ErrorCode::input, where + ": the context is empty, and the tokenizer has no BOS token to start from",
                  "give a context that is not empty");
    out.context.push_back(l.prefix_id);
  }
  for (const std::string& continuation : item.continuations) {
    std::vector<int32_t> whole = encode(l, context + spaces + continuation, where);
    if (whole.size() <= ids.size())
      throw Error(ErrorCode::input, where + ": a continuation has no token of its own behind the context",
                  "choices must differ from the end of the context");
    whole.erase(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(ids.size()));
    out.continuations.push_back(std::move(whole));
  }
  return out;
}

struct Mean {
  double value = 0;
  double deviation = 0;  // sample standard deviation
  int64_t n = 0;
  Json stderr_json() const { return n > 1 ? Json(deviation / std::sqrt(double(n))) : Json("N/A"); }
};

Mean mean_of(const std::vector<double>& values) {
  Mean m;
  m.n = static_cast<int64_t>(values.size());
  for (double v : values) m.value += v;
  m.value /= double(m.n);
  double squares = 0;
  for (double v : values) squares += (v - m.value) * (v - m.value);
  if (m.n > 1) m.deviation = std::sqrt(squares / double(m.n - 1));
  return m;
}

// The rows of --samples: one JSON object per line, appended as they are made.
class Samples {
 public:
  explicit Samples(const std::string& path) {
    if (!path.empty()) file_.emplace(path);
  }
  void add(const Json& row) {
    if (file_) file_->write(row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  void commit() {
    if (file_) file_->commit();
  }

 private:
  std::optional<AtomicFile> file_;
};

struct TaskResult {
  Json metrics, higher_is_better, config;
  Json top = Json::object();  // further fields at the top level
  int64_t original = 0, effective = 0;
  std::string sha256;
  int64_t max_length = 0;
};

// lm-eval's result file, with the machine that made it.
Json result_json(const EvalOptions& o, const Session& session, const Loaded& l, const std::string& task, const TaskResult& r,
                 double seconds) {
  const auto token = [&](int32_t id) {
    return id < 0 || id >= l.tokenizer.vocab_size() ? Json(nullptr) : Json::array({l.tokenizer.token(id), std::to_string(id)});
  };
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string sanitized = l.model.path;
  std::replace_if(sanitized.begin(), sanitized.end(), [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-'; }, '_');
  Json j;
  j["schema"] = "thimble.eval/1";
  j["results"][task] = r.metrics;
  j["group_subtasks"] = {{task, Json::array()}};
  j["configs"][task] = r.config;
  j["versions"][task] = 1;
  j["n-shot"][task] = 0;
  j["higher_is_better"][task] = r.higher_is_better;
  j["n-samples"][task] = {{"original", r.original}, {"effective", r.effective}};
  j["config"] = {{"model", "thimble"},
                 {"model_args", fmt::format("pretrained={},tokenizer={},{}add_bos_token={}", l.model.path, l.tokenizer_path,
                                             o.adapter.empty() ? "" : "peft=" + o.adapter + ",", o.bos)},
                 {"model_num_parameters", l.model.parameters()},
                 {"model_dtype", l.model.quantization.empty() ? Json(nullptr) : Json(l.model.quantization)},
                 {"batch_size", 1},
                 {"device", "cpu"},
                 {"limit", o.limit > 0 ? Json(o.limit) : Json(nullptr)},
                 {"bootstrap_iters", 0},
                 {"random_seed", o.common.seed},
                 {"isa", tier_name(session.kernels().tier)},
                 {"threads", session.threads()},
                 {"precision", o.common.precision}};
  j["git_hash"] = nullptr;
  j["upper_git_hash"] = nullptr;
  j["date"] = now;
  j["pretty_env_info"] = fmt::format("thimble {}, {} with {} threads, {}", THIMBLE_VERSION, tier_name(session.kernels().tier),
                                     session.threads(), o.common.precision);
  j["transformers_version"] = nullptr;
  j["lm_eval_version"] = nullptr;
  j["tokenizer_pad_token"] = nullptr;
  j["tokenizer_eos_token"] = token(l.tokenizer.eos_id());
  j["tokenizer_bos_token"] = token(l.tokenizer.bos_id());
  j["max_length"] = r.max_length;
  j["task_hashes"][task] = r.sha256;
  j["model_source"] = "thimble";
  j["model_name"] = l.model.path;
  j["model_name_sanitized"] = sanitized;
  j["chat_template"] = nullptr;
  j["chat_template_sha"] = nullptr;
  j["total_evaluation_time_seconds"] = fmt::format("{:.6f}", seconds);
  j["peak_rss_bytes"] = peak_rss_bytes();
  j["kv"] = o.kv;
  for (const auto& item : r.top.items()) j[item.key()] = item.value();
  return j;
}

// Bytes of the text that the scored tokens stand for.
int64_t scored_bytes(const Tokenizer& tokenizer, const std::string& text, const std::vector<int32_t>& ids, const PerplexityResult& r) {
  const auto decoded = [&](size_t begin, size_t end) {
    return static_cast<int64_t>(tokenizer.decode({ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(end)}).size());
  };
  const auto end = static_cast<size_t>(r.windows.back().end);
  int64_t bytes = end == ids.size() ? static_cast<int64_t>(text.size()) : decoded(0, end);
  for (size_t i = 0; i < end; ++i)
    if (std::isnan(r.nll[i])) bytes -= i == 0 ? decoded(0, 1) : decoded(i - 1, i + 1) - decoded(i - 1, i);
  return std::max<int64_t>(bytes, 1);
}

TaskResult run_ppl(const EvalOptions& o, Session& session, Loaded& l, Samples& samples) {
  const std::string text = read_file(o.ppl);
  if (text.empty()) throw Error(ErrorCode::input, o.ppl + ": the file is empty: expected text to score", "give a file with text");
  const int64_t positions = l.positions();
  PerplexityOptions p;
  p.adapter = l.adapter.get();
  p.kv = parse_kv_type(o.kv, "--kv");
  p.ctx = o.ctx > 0 ? o.ctx : std::min<int64_t>(positions, 1024);
  p.stride = o.stride > 0 ? o.stride : std::max<int64_t>(1, p.ctx / 2);
  p.bos_id = o.bos ? l.bos_id : -1;
  p.second_half = o.second_half;
  if (p.second_half) p.stride = p.ctx;
  p.max_windows = o.limit;
  if (p.ctx > positions)
    throw Error(ErrorCode::usage, fmt::format("--ctx {}: {} has positions for {} tokens", p.ctx, l.model.path, positions),
                fmt::format("use --ctx {} or less", positions));
  const std::vector<int32_t> ids = encode(l, text, o.ppl);
  std::vector<PerplexityWindow> windows;
  try {
    windows = perplexity_windows(static_cast<int64_t>(ids.size()), p);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::input) throw;
    throw Error(e.code(), o.ppl + ": " + e.what(), e.hint());
  }
  Progress progress(o.common, "perplexity", static_cast<int64_t>(windows.size()), "windows");
  p.progress = [&](int64_t done, int64_t) { progress.update(done); };
  const auto ctx = session.make_context();
  Transformer transformer(l.model, std::min<int64_t>(p.ctx, static_cast<int64_t>(ids.size())) + l.virtuals());
  const PerplexityResult result = perplexity(transformer, *ctx, ids, p);
  for (size_t i = 0; i < result.windows.size(); ++i) {
    const PerplexityWindow& w = result.windows[i];
    double nll = 0;
    for (int64_t t = w.first_scored; t < w.end; ++t) nll += result.nll[static_cast<size_t>(t)];
    samples.add({{"doc_id", i}, {"begin", w.begin}, {"end", w.end}, {"first_scored", w.first_scored}, {"nll", nll}});
  }
  const int64_t bytes = scored_bytes(l.tokenizer, text, ids, result);
  const double bits = bits_per_byte(result.nll_sum, bytes);
  const double bits_stderr = bits_per_byte(result.nll_stderr * double(result.scored), bytes);

  TaskResult r;
  r.sha256 = sha256_hex(text);
  r.max_length = p.ctx;
  r.metrics = {{"perplexity,none", result.ppl},
               {"perplexity_stderr,none", result.ppl_stderr},
               {"byte_perplexity,none", std::exp2(bits)},
               {"byte_perplexity_stderr,none", "N/A"},
               {"bits_per_byte,none", bits},
               {"bits_per_byte_stderr,none", bits_stderr}};
  r.higher_is_better = {{"perplexity", false}, {"byte_perplexity", false}, {"bits_per_byte", false}};
  r.original = r.effective = 1;
  r.config = {{"output_type", "loglikelihood_rolling"}};
  r.top = {{"nll_mean", result.nll_mean},
           {"ppl", result.ppl},
           {"bits_per_byte", bits},
           {"tokens", result.scored},
           {"stderr", result.nll_stderr},
           {"ppl_stderr", result.ppl_stderr},
           {"text_tokens", ids.size()},
           {"scored_bytes", bytes},
           {"windows", result.windows.size()},
           {"protocol",
            {{"ctx", p.ctx}, {"stride", p.stride}, {"bos", o.bos}, {"second_half", o.second_half}, {"scored", result.scored}, {"text_sha256", r.sha256}}}};
  return r;
}

TaskResult run_items(const EvalOptions& o, Session& session, Loaded& l, Samples& samples) {
  const bool multiple_choice = !o.choices.empty();
  const std::string& path = multiple_choice ? o.choices : o.continuation;
  const Items items = multiple_choice ? read_choices(path, o.limit) : read_continuations(path, o.limit);
  const int64_t positions = l.positions();
  if (o.ctx > positions)
    throw Error(ErrorCode::usage, fmt::format("--ctx {}: {} has positions for {} tokens", o.ctx, l.model.path, positions),
                fmt::format("use --ctx {} or less", positions));
  const int64_t max_length = o.ctx > 0 ? o.ctx : positions;
  std::vector<EncodedItem> encoded;
  int64_t longest = 1;
  for (const Item& item : items.rows) {
    encoded.push_back(encode_item(l, item, o.bos, path));
    for (const auto& continuation : encoded.back().continuations) {
      longest = std::max(longest, static_cast<int64_t>(encoded.back().context.size() + continuation.size()) - 1);
      if (static_cast<int64_t>(continuation.size()) > max_length)
        throw Error(ErrorCode::input,
                    fmt::format("{}:{}: a continuation has {} tokens: the context holds {}", path, item.line, continuation.size(), max_length),
                    "shorten it, or use a model with a longer context");
    }
  }
  const auto ctx = session.make_context();
  Transformer transformer(l.model, std::min(longest, max_length) + l.virtuals());
  Scorer scorer(transformer, *ctx, l.adapter.get(), parse_kv_type(o.kv, "--kv"));
  Progress progress(o.common, multiple_choice ? "choices" : "continuations", static_cast<int64_t>(items.rows.size()), "rows");

  std::vector<double> acc, acc_norm, acc_bytes, logprobs;
  int64_t truncated = 0;
  for (size_t i = 0; i < items.rows.size(); ++i) {
    const Item& item = items.rows[i];
    const std::vector<Loglikelihood> scores = scorer.choices(encoded[i].context, encoded[i].continuations);
    truncated += std::any_of(scores.begin(), scores.end(), [](const Loglikelihood& s) { return s.truncated; }) ? 1 : 0;
    Json row = {{"doc_id", i}, {"line", item.line}};
    Json list = Json::array(), greedy = Json::array();
    for (const Loglikelihood& s : scores) {
      list.push_back(s.logprob);
      greedy.push_back(s.greedy);
    }
    if (multiple_choice) {
      // The first of equal values, as elsewhere.
      const auto best = [&](auto&& length) {
        size_t at = 0;
        for (size_t c = 1; c < scores.size(); ++c)
          if (scores[c].logprob / double(length(item.choices[c])) > scores[at].logprob / double(length(item.choices[at]))) at = c;
        return static_cast<int64_t>(at);
      };
      const int64_t plain = best([](const std::string&) { return 1; });
      const int64_t by_characters = best([](const std::string& c) { return count_characters(c); });
      const int64_t by_bytes = best([](const std::string& c) { return c.size(); });
      acc.push_back(plain == item.gold);
      acc_norm.push_back(by_characters == item.gold);
      acc_bytes.push_back(by_bytes == item.gold);
      row["gold"] = item.gold;
      row["pred"] = plain;
      row["pred_norm"] = by_characters;
      row["pred_bytes"] = by_bytes;
      row["logprobs"] = list;
      row["greedy"] = greedy;
      row["acc"] = acc.back();
      row["acc_norm"] = acc_norm.back();
      row["acc_bytes"] = acc_bytes.back();
    } else {
      acc.push_back(scores[0].greedy);
      logprobs.push_back(scores[0].logprob);
      row["gold"] = item.choices[0];
      row["logprob"] = scores[0].logprob;
      row["greedy"] = scores[0].greedy;
      row["acc"] = acc.back();
    }
    samples.add(row);
    progress.update(static_cast<int64_t>(i) + 1);
  }

  TaskResult r;
  r.original = items.original;
  r.effective = static_cast<int64_t>(items.rows.size());
  r.sha256 = sha256_file(path);
  r.max_length = max_length;
  r.top = {{"truncated", truncated}};
  const auto put = [&](const char* name, const std::vector<double>& values) {
    const Mean m = mean_of(values);
    r.metrics[fmt::format("{},none", name)] = m.value;
    r.metrics[fmt::format("{}_stderr,none", name)] = m.stderr_json();
    r.higher_is_better[name] = true;
  };
  if (!multiple_choice) {
    // Per continuation, not per token; its error by the delta method.
    const Mean m = mean_of(logprobs);
    const double ppl = std::exp(-m.value);
    r.metrics["perplexity,none"] = ppl;
    r.metrics["perplexity_stderr,none"] = m.n > 1 ? Json(ppl * m.deviation / std::sqrt(double(m.n))) : Json("N/A");
    r.higher_is_better["perplexity"] = false;
  }
  put("acc", acc);
  if (multiple_choice) {
    put("acc_norm", acc_norm);
    put("acc_bytes", acc_bytes);
  }
  r.config = {{"output_type", multiple_choice ? "multiple_choice" : "loglikelihood"}, {"target_delimiter", " "}, {"num_fewshot", 0}};
  return r;
}

std::string table_text(const std::string& task, const TaskResult& r) {
  std::string text = fmt::format("{}: {} of {} sample{}\n", task, r.effective, r.original, r.original == 1 ? "" : "s");
  for (const auto& item : r.metrics.items()) {
    const std::string name = item.key().substr(0, item.key().find(','));
    if (name == "alias" || name == "name" || name == "sample_len" || name.find("_stderr") != std::string::npos) continue;
    const Json& error = r.metrics.at(name + "_stderr,none");
    text += fmt::format("  {:<16} {:>12.6g}", name, item.value().get<double>());
    text += error.is_number() ? fmt::format("  ± {:.4g}\n", error.get<double>()) : "\n";
  }
  if (r.top.contains("protocol")) {
    const Json& p = r.top["protocol"];
    text += fmt::format("  {} tokens scored, nll {:.6f} ± {:.6f} nats; windows of {} every {}, {} BOS\n", r.top["tokens"].get<int64_t>(),
                        r.top["nll_mean"].get<double>(), r.top["stderr"].get<double>(), p["ctx"].get<int64_t>(),
                        p["stride"].get<int64_t>(), p["bos"].get<bool>() ? "with" : "without");
  }
  return text;
}

int run_eval(const EvalOptions& o) {
  const int modes = int(!o.ppl.empty()) + int(!o.choices.empty()) + int(!o.continuation.empty());
  if (modes != 1)
    throw Error(ErrorCode::usage, fmt::format("eval: {} of --ppl, --choices and --continuation given: expected exactly one", modes),
                "for example --ppl FILE --ctx 512 --stride 256");
  if (o.second_half && (o.ppl.empty() || o.stride > 0)) throw Error(ErrorCode::usage, "--second-half: belongs to --ppl, without --stride", "leave one away");
  if (o.ppl.empty() && o.stride > 0) throw Error(ErrorCode::usage, "--stride: belongs to --ppl", "leave it away");
  if (!o.ppl.empty() && o.ctx == 1) throw Error(ErrorCode::usage, "--ctx 1: expected at least 2 tokens", "for example --ctx 512");
  parse_kv_type(o.kv, "--kv");
  const double start = seconds_now();
  Session session(o.common);
  const std::string& path = !o.ppl.empty() ? o.ppl : !o.choices.empty() ? o.choices : o.continuation;
  if (!file_exists(path)) throw Error(ErrorCode::input, path + ": no such file", "give an existing file");
  Loaded l = load(o, session);
  Samples samples(o.samples);
  TaskResult r = o.ppl.empty() ? run_items(o, session, l, samples) : run_ppl(o, session, l, samples);
  samples.commit();
  const std::string task = std::filesystem::path(path).stem().string();
  Json metrics = {{"alias", task}, {"name", task}, {"sample_len", r.effective}};
  for (const auto& item : r.metrics.items()) metrics[item.key()] = item.value();
  r.metrics = metrics;
  Json config = {{"task", task}, {"dataset_path", path}, {"metadata", {{"version", 1}}}};
  for (const auto& item : r.config.items()) config[item.key()] = item.value();
  r.config = config;
  if (o.common.json)
    print_json(result_json(o, session, l, task, r, seconds_now() - start));
  else
    write_stdout(table_text(task, r));
  return 0;
}

}  // namespace

void add_eval(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("eval", "perplexity of a text, accuracy on multiple choice or continuations");
  command->footer(
      "Examples:\n"
      "  thimble eval --model DIR --ppl wiki.txt --ctx 512 --stride 256 --json\n"
      "  thimble eval --model DIR --choices arc_easy.jsonl --limit 100 --samples out.jsonl\n"
      "Rows of --choices: {\"query\", \"choices\": [...], \"gold\": index or text}; a space is put before each choice. Rows of\n"
      "--continuation: {\"context\", \"continuation\"}.\n"
      "Perplexity: windows of --ctx tokens start every --stride tokens, and each token is scored once, in the first window\n"
      "that holds it. Without --bos the first token of the text is not scored.");
  auto o = std::make_shared<EvalOptions>();
  command->add_option("--model", o->model, "model directory or llama2.c .bin file")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--load-as", o->load_as,
                      "pack the base while loading: q8, q4, q2; with a group q4-g32, q4-g64, q4-row; and a kind q4-g32-sym, q4-g32-min; default: as stored");
  command->add_option("--adapter", o->adapter, "PEFT adapter directory (LoRA, DoRA, IA3, prompt or prefix tuning)");
  command->add_option("--kv", o->kv, "how keys and values are kept: f32 (default), f16, int8");
  command->add_option("--ppl", o->ppl, "text whose perplexity is measured");
  command->add_option("--choices", o->choices, "multiple-choice questions, one JSON object per line");
  command->add_option("--continuation", o->continuation, "contexts and continuations, one JSON object per line");
  command->add_option("--ctx", o->ctx, "context in tokens; default: the model's, for --ppl at most 1024")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--stride", o->stride, "tokens between the starts of windows; default: half of --ctx")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_flag("--bos", o->bos, "put BOS in front of each window or context");
  command->add_flag("--second-half", o->second_half, "windows side by side, the second half of each scored: llama.cpp's protocol");
  command->add_option("--limit", o->limit, "only the first N rows (windows for --ppl)")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_option("--samples", o->samples, "write one JSON line per row (window) to this file");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_eval(*o); }; });
}

}  // namespace thimble::cli
