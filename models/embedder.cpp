#include "models/embedder.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <string_view>

#include "models/io/json.h"
#include "models/pooling.h"
#include "models/tokenizer/unicode.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kDefaultContext = 2048;    // where nothing says how long a text may be
constexpr int64_t kModel2vecTokens = 512;    // model2vec's own default, also where a file states more
constexpr size_t kPiece = 4096;              // texts that are tokenized, sorted and embedded together

// What only tokenizer.json says of how a static table's tokenizer is run.
struct StaticRules {
  int32_t unknown = -1;  // the piece that it calls unknown; a Unigram model names none but an id
  int64_t tokens = 0;    // its own truncation; 0: none
  bool keep_end = false;
};

StaticRules read_static_rules(const std::string& path, const Tokenizer& tokenizer) {
  StaticRules rules;
  const std::string file = is_directory(path) ? join_path(path, "tokenizer.json") : path;
  if (file.size() < 5 || file.compare(file.size() - 5, 5, ".json") != 0 || !file_exists(file)) return rules;
  const nlohmann::json json = parse_json_file(file);
  const JsonObject root(json, file);
  if (const std::optional<JsonObject> model = root.object("model")) {
    const std::string piece = model->get_string("unk_token", "");
    if (!piece.empty()) rules.unknown = tokenizer.find_token(piece);
  }
  if (const std::optional<JsonObject> truncation = root.object("truncation")) {
    rules.tokens = truncation->get_int("max_length", 0, 0, int64_t{1} << 40);
    rules.keep_end = truncation->get_string("direction", "Right") == "Left";
  }
  return rules;
}

// In characters, of all pieces of the vocabulary; of an even number the mean of the middle two, rounded down.
int64_t median_piece_length(const Tokenizer& tokenizer) {
  std::vector<int64_t> lengths;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string& piece = tokenizer.token(id);
    if (piece.empty()) continue;
    lengths.push_back(count_characters(piece));
  }
  if (lengths.empty()) return 1;
  std::sort(lengths.begin(), lengths.end());
  return (lengths[(lengths.size() - 1) / 2] + lengths[lengths.size() / 2]) / 2;
}

// The first `count` characters.
std::string_view first_characters(std::string_view text, int64_t count) {
  if (static_cast<int64_t>(text.size()) <= count) return text;
  size_t end = 0;
  for (int64_t i = 0; i < count && end < text.size(); ++i) next_code_point(text, end);
  return text.substr(0, end);
}

std::string stripped(const std::string& text) {
  size_t begin = text.size(), end = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t first = at;
    if (is_white_space(next_code_point(text, at))) continue;
    begin = std::min(begin, first);
    end = at;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string();
}

}  // namespace

struct Embedder::State {
  Context& ctx;
  Tokenizer tokenizer;
  EmbedRecipe recipe;
  int64_t max_tokens = 0, batch_rows = 2048, width = 0, dimensions = 0;
  std::unique_ptr<StaticEmbedding> table;
  StaticRules rules;  // rules.unknown is left out of means
  int64_t max_characters = 0;  // what model2vec reads of a text before it counts tokens; 0: all
  std::unique_ptr<Model> owned_model;
  std::unique_ptr<Transformer> owned_transformer;
  Transformer* transformer = nullptr;
  std::vector<int32_t> before, after;  // special tokens around a text
  std::unique_ptr<EmbedHead> head;

  State(Context& context, Tokenizer t, EmbedRecipe r) : ctx(context), tokenizer(std::move(t)), recipe(std::move(r)) {}

  void finish() {
    width = table ? table->dimensions() : transformer->config().embed_dim;
    head = std::make_unique<EmbedHead>(recipe, width);
    dimensions = head->dimensions();
    if (table) return;
    const std::vector<int32_t> ids = tokenizer.encode("a");
    size_t first = 0, last = ids.size();
    while (first < last && tokenizer.is_special(ids[first])) ++first;
    while (last > first && tokenizer.is_special(ids[last - 1])) --last;
    before.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(first));
    after.assign(ids.begin() + static_cast<std::ptrdiff_t>(last), ids.end());
  }

  TokenText tokenize(const std::string& text, const std::string& prompt) const {
    std::string whole = prompt + text;
    if (recipe.strip || recipe.lower_case || max_characters > 0) {
      const size_t bad = find_invalid_utf8(whole);
      if (bad != std::string::npos)
        throw Error(ErrorCode::input, fmt::format("a text is not UTF-8: byte {}", bad), "convert it to UTF-8");
    }
    if (recipe.strip) whole = stripped(whole);
    if (recipe.lower_case) whole = lowercase_utf8(whole);
    if (max_characters > 0) whole.resize(first_characters(whole, max_characters).size());
    TokenText result;
    EncodeOptions plain;
    plain.add_special = false;
    if (table) {
      result.ids = tokenizer.encode(whole, plain);
      std::vector<int32_t>& ids = result.ids;
      const int64_t surplus = rules.tokens > 0 ? static_cast<int64_t>(ids.size()) - rules.tokens : 0;
      if (surplus > 0) ids.erase(rules.keep_end ? ids.begin() : ids.end() - surplus, rules.keep_end ? ids.begin() + surplus : ids.end());
      if (rules.unknown >= 0) ids.erase(std::remove(ids.begin(), ids.end(), rules.unknown), ids.end());
      if (max_tokens > 0 && static_cast<int64_t>(result.ids.size()) > max_tokens) result.ids.resize(static_cast<size_t>(max_tokens));
      return result;
    }
    result.ids = tokenizer.encode(whole);
    const auto limit = static_cast<size_t>(max_tokens);
    if (result.ids.size() > limit) {
      if (limit > before.size() + after.size()) {
        std::vector<int32_t> content = tokenizer.encode(whole, plain);
        content.resize(std::min(content.size(), limit - before.size() - after.size()));
        result.ids = before;
        result.ids.insert(result.ids.end(), content.begin(), content.end());
        result.ids.insert(result.ids.end(), after.begin(), after.end());
      } else {
        result.ids.resize(limit);
      }
    }
    if (!recipe.include_prompt && !prompt.empty()) {
      const std::string stem = recipe.strip ? stripped(prompt) : prompt;
      const std::vector<int32_t> alone = tokenizer.encode(recipe.lower_case ? lowercase_utf8(stem) : stem);
      result.prompt = static_cast<int64_t>(alone.size());
      if (!alone.empty() && tokenizer.is_special(alone.back())) --result.prompt;
    }
    return result;
  }

  // Texts of different lengths share the threads; what one throws is thrown for the first that did.
  std::vector<TokenText> tokenize_all(const std::string* texts, size_t n, const std::string& prompt) const {
    std::vector<TokenText> tokens(n);
    std::vector<std::exception_ptr> failures(n);
    parallel_for(ctx.threads, static_cast<int64_t>(n), [&](int64_t i, int) {
      try {
        tokens[static_cast<size_t>(i)] = tokenize(texts[i], prompt);
      } catch (...) {
        failures[static_cast<size_t>(i)] = std::current_exception();
      }
    });
    for (const std::exception_ptr& failure : failures)
      if (failure) std::rethrow_exception(failure);
    return tokens;
  }

  void check_ids(const std::vector<TokenText>& texts) const {
    const int64_t count = table ? table->token_count() : transformer->config().vocab_size;
    for (const TokenText& t : texts)
      for (const int32_t id : t.ids)
        if (id < 0 || id >= count)
          throw Error(ErrorCode::input, fmt::format("{}: token id {} is out of range: the model has {} tokens", recipe.model_path, id, count),
                      "the tokenizer and the model do not belong together");
  }

  void run_static(const std::vector<TokenText>& texts, Vectors* out, const Progress& progress) const {
    parallel_for(ctx.threads, static_cast<int64_t>(texts.size()), [&](int64_t i, int) {
      const std::vector<int32_t>& ids = texts[static_cast<size_t>(i)].ids;
      table->mean(ids.data(), static_cast<int64_t>(ids.size()), (*out)[static_cast<size_t>(i)].data());
    });
    const auto n = static_cast<int64_t>(texts.size());
    if (progress) progress(n, n);
    if (recipe.steps.empty() || n == 0) return;
    const ArenaScope scope(ctx.saved);
    Var x;
    x.t = Tensor::matrix(ctx.saved.floats(n * width, "embeddings"), n, width);
    for (int64_t i = 0; i < n; ++i) std::copy_n((*out)[static_cast<size_t>(i)].data(), width, x.t.f32() + i * width);
    x = head->finish(ctx, x);
    for (int64_t i = 0; i < n; ++i) (*out)[static_cast<size_t>(i)].assign(x.t.f32() + i * dimensions, x.t.f32() + (i + 1) * dimensions);
  }

  void run_batch(const std::vector<TokenText>& texts, const size_t* order, size_t n, Vectors* out) const {
    const ArenaScope scope(ctx.saved);
    std::vector<int32_t> ids, types, cu_seqlens{0};
    std::vector<int64_t> skipped;  // of prompts that are not pooled
    const bool typed = std::any_of(order, order + n, [&](size_t i) { return !texts[i].types.empty(); });
    for (size_t i = 0; i < n; ++i) {
      const TokenText& t = texts[order[i]];
      skipped.push_back(t.prompt);
      ids.insert(ids.end(), t.ids.begin(), t.ids.end());
      types.insert(types.end(), t.types.begin(), t.types.end());
      if (typed) types.resize(ids.size(), 0);
      cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
    }
    Batch batch;
    batch.ids = ids.data();
    batch.n = static_cast<int64_t>(ids.size());
    batch.cu_seqlens = cu_seqlens.data();
    batch.n_seqs = static_cast<int64_t>(n);
    batch.token_types = typed ? types.data() : nullptr;
    const Var rows = head->run(ctx, transformer->forward(ctx, batch), batch.cu_seqlens, batch.n_seqs, skipped.data());
    for (size_t i = 0; i < n; ++i) {
      const float* row = rows.t.f32() + static_cast<int64_t>(i) * dimensions;
      (*out)[order[i]].assign(row, row + dimensions);
    }
  }

  Vectors run(const std::vector<TokenText>& texts, const Progress& progress) const {
    check_ids(texts);
    Vectors out(texts.size(), std::vector<float>(static_cast<size_t>(dimensions), 0.0f));
    if (table) {
      for (std::vector<float>& v : out) v.resize(static_cast<size_t>(width));
      run_static(texts, &out, progress);
      return out;
    }
    // The longest first: what needs the most memory fails or succeeds at once, and texts of one batch are alike.
    std::vector<size_t> order(texts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return texts[a].ids.size() > texts[b].ids.size(); });
    while (!order.empty() && texts[order.back()].ids.empty()) order.pop_back();
    for (size_t at = 0; at < order.size();) {
      size_t end = at;
      int64_t rows = 0;
      while (end < order.size()) {
        const auto n = static_cast<int64_t>(texts[order[end]].ids.size());
        if (end > at && rows + n > batch_rows) break;
        rows += n;
        ++end;
      }
      run_batch(texts, &order[at], end - at, &out);
      at = end;
      if (progress) progress(static_cast<int64_t>(at), static_cast<int64_t>(texts.size()));
    }
    return out;
  }
};

Embedder::Embedder(std::unique_ptr<State> state) : state_(std::move(state)) {}
Embedder::~Embedder() = default;
Embedder::Embedder(Embedder&&) noexcept = default;
Embedder& Embedder::operator=(Embedder&&) noexcept = default;

Embedder::Embedder(Transformer& transformer, Context& ctx, Tokenizer tokenizer, EmbedRecipe recipe, int64_t batch_rows)
    : state_(std::make_unique<State>(ctx, std::move(tokenizer), std::move(recipe))) {
  state_->transformer = &transformer;
  state_->max_tokens = transformer.max_tokens();
  state_->batch_rows = batch_rows;
  state_->finish();
}

Embedder Embedder::open(const std::string& path, Context& ctx, const EmbedderOptions& options) {
  EmbedRecipe recipe = read_embed_recipe(path);
  if (!options.pooling.empty()) {
    if (recipe.is_static)
      throw Error(ErrorCode::usage, "--pooling: a static embedder takes the mean of its tokens", "leave it out");
    recipe.pooling = parse_pooling(options.pooling, "--pooling");
  }
  if (options.normalize && *options.normalize != recipe.normalizes()) {
    if (*options.normalize)
      recipe.steps.push_back({true, {}});
    else
      recipe.steps.erase(std::remove_if(recipe.steps.begin(), recipe.steps.end(), [](const EmbedStep& s) { return s.normalize; }), recipe.steps.end());
  }
  // Beside the weights, or beside the module list.
  std::string tokenizer_path = options.tokenizer;
  if (tokenizer_path.empty()) {
    tokenizer_path = recipe.model_path;
    if (recipe.model_path != path && !file_exists(join_path(tokenizer_path, "tokenizer.json")) && file_exists(join_path(path, "tokenizer.json")))
      tokenizer_path = path;
  }
  if (recipe.is_static) {
    auto state = std::make_unique<State>(ctx, Tokenizer::load(tokenizer_path), std::move(recipe));
    state->table = std::make_unique<StaticEmbedding>(state->recipe.model_path);
    state->rules = read_static_rules(tokenizer_path, state->tokenizer);
    if (!state->table->drops_unknown()) state->rules.unknown = -1;
    state->max_tokens = options.max_tokens > 0 ? options.max_tokens : state->recipe.max_tokens;
    if (options.max_tokens == 0 && state->table->drops_unknown() && (state->max_tokens == 0 || state->max_tokens > kModel2vecTokens))
      state->max_tokens = kModel2vecTokens;
    if (state->table->drops_unknown()) state->max_characters = state->max_tokens * median_piece_length(state->tokenizer);
    state->finish();
    return Embedder(std::move(state));
  }
  LoadOptions load;
  load.budget = options.budget;
  auto model = std::make_unique<Model>(load_model(recipe.model_path, ctx.kernels, load));
  const int64_t wanted = options.max_tokens > 0 ? options.max_tokens : recipe.max_tokens > 0 ? recipe.max_tokens : kDefaultContext;
  auto transformer = std::make_unique<Transformer>(*model, std::min(wanted, model->config.max_positions));
  auto state = std::make_unique<State>(ctx, Tokenizer::load(tokenizer_path), std::move(recipe));
  state->owned_model = std::move(model);
  state->owned_transformer = std::move(transformer);
  state->transformer = state->owned_transformer.get();
  state->max_tokens = state->transformer->max_tokens();
  state->batch_rows = options.batch_rows;
  state->finish();
  return Embedder(std::move(state));
}

int64_t Embedder::dimensions() const { return state_->dimensions; }
int64_t Embedder::max_tokens() const { return state_->max_tokens; }
const EmbedRecipe& Embedder::recipe() const { return state_->recipe; }
const Model* Embedder::model() const { return state_->transformer ? &state_->transformer->model() : nullptr; }
const StaticEmbedding* Embedder::static_table() const { return state_->table.get(); }
const Tokenizer& Embedder::tokenizer() const { return state_->tokenizer; }

TokenText Embedder::tokenize(const std::string& text, const std::string& prompt) const { return state_->tokenize(text, prompt); }

Embedder::Vectors Embedder::embed(const std::vector<std::string>& texts, const std::string& prompt, const Progress& progress) const {
  Vectors all;
  all.reserve(texts.size());
  for (size_t at = 0; at < texts.size(); at += kPiece) {
    const size_t n = std::min(kPiece, texts.size() - at);
    const auto before = static_cast<int64_t>(at);
    Progress piece;
    if (progress) piece = [&](int64_t done, int64_t) { progress(before + done, static_cast<int64_t>(texts.size())); };
    for (std::vector<float>& v : state_->run(state_->tokenize_all(&texts[at], n, prompt), piece)) all.push_back(std::move(v));
  }
  return all;
}

Embedder::Vectors Embedder::embed_ids(const std::vector<TokenText>& texts, const Progress& progress) const {
  return state_->run(texts, progress);
}

namespace {

std::string first_prompt(const EmbedRecipe& recipe, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto found = recipe.prompts.find(name); found != recipe.prompts.end()) return found->second;
  const auto fallback = recipe.prompts.find(recipe.default_prompt);
  return fallback == recipe.prompts.end() ? std::string() : fallback->second;
}

}  // namespace

std::string Embedder::query_prompt() const { return first_prompt(state_->recipe, {"query"}); }
std::string Embedder::document_prompt() const { return first_prompt(state_->recipe, {"document", "passage", "corpus"}); }

std::string Embedder::prompt_text(const std::string& name) const {
  const auto found = state_->recipe.prompts.find(name);
  if (found != state_->recipe.prompts.end()) return found->second;
  std::string known;
  for (const auto& [key, text] : state_->recipe.prompts) known += (known.empty() ? "" : ", ") + quote_for_message(key);
  throw Error(ErrorCode::usage, fmt::format("{}: there is no prompt named {}", state_->recipe.model_path, quote_for_message(name)),
              known.empty() ? "config_sentence_transformers.json beside the model names none; give the text itself with --prompt" : "there are: " + known);
}

}  // namespace thimble
