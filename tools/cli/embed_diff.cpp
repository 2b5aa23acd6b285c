#include "tools/cli/embed_diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "models/embedder.h"
#include "models/gguf_model.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/read_input.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Side {
  Embedder::Vectors vectors;
  int64_t dimensions = 0, stored_bytes = 0;
  std::string pooling;
};

Side embed_side(Session& session, const std::string& path, const std::vector<std::string>& texts, const char* what) {
  const auto ctx = session.make_context();
  EmbedderOptions options;
  options.budget = &session.budget();
  const Embedder embedder = Embedder::open(path, *ctx, options);
  Progress progress(session.options(), what, static_cast<int64_t>(texts.size()), "texts");
  Side side;
  side.vectors = embedder.embed(texts, embedder.document_prompt(), [&](int64_t done, int64_t) { progress.update(done); });
  side.dimensions = embedder.dimensions();
  side.stored_bytes = embedder.model() ? embedder.model()->stored_bytes() : embedder.static_table()->stored_bytes();
  side.pooling = describe(embedder.recipe());
  return side;
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * double{b[i]};
    aa += double{a[i]} * double{a[i]};
    bb += double{b[i]} * double{b[i]};
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0.0;
}

// Among the first so many texts: the search is quadratic.
constexpr size_t kNearestTexts = 2000;

size_t nearest(const Embedder::Vectors& v, size_t i) {
  size_t best = i == 0 ? 1 : 0;
  double score = -2;
  for (size_t j = 0; j < std::min(v.size(), kNearestTexts); ++j) {
    const double c = j == i ? -2 : cosine(v[i], v[j]);
    if (c > score) {
      score = c;
      best = j;
    }
  }
  return best;
}

std::optional<Tokenizer> tokenizer_of(const std::string& path) {
  try {
    return Tokenizer::load(default_tokenizer_path(path));
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

bool makes_vectors(const std::string& path) {
  if (const std::string gguf = gguf_path(path); !gguf.empty()) return GgufFile(gguf).get_string("general.architecture").value_or("") == "bert";
  if (!is_directory(path)) return false;
  const EmbedRecipe recipe = read_embed_recipe(path);
  if (recipe.is_static) return true;
  const std::string file = join_path(recipe.model_path, "config.json");
  if (!file_exists(file)) return false;
  const nlohmann::json json = parse_json_file(file);
  const JsonObject config(json, file);
  return parse_config(config, find_family(config)).bidirectional;
}

int run_embed_diff(const CommonOptions& common, const std::string& before, const std::string& after, const std::string& text_file) {
  if (text_file == "self")
    throw Error(ErrorCode::usage, "--text: models that make vectors write no text of their own", "give a file with a text per line");
  std::vector<std::string> texts;
  const std::string content = read_input(text_file);
  for (size_t at = 0; at < content.size();) {
    const size_t end = std::min(content.find('\n', at), content.size());
    if (end > at) texts.push_back(content.substr(at, end - at));
    at = end + 1;
  }
  if (texts.size() < 2) throw Error(ErrorCode::input, fmt::format("{}: holds {} texts", text_file, texts.size()), "give at least two lines");
  Session session(common);
  const Side a = embed_side(session, before, texts, "embedding, before"), b = embed_side(session, after, texts, "embedding, after");
  double same = 0, sum = 0, least = 1;
  const bool comparable = a.dimensions == b.dimensions;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i < kNearestTexts) same += nearest(a.vectors, i) == nearest(b.vectors, i);
    if (!comparable) continue;
    const double c = cosine(a.vectors[i], b.vectors[i]);
    sum += c;
    least = std::min(least, c);
  }
  const auto n = static_cast<double>(texts.size()), searched = static_cast<double>(std::min(texts.size(), kNearestTexts));
  if (common.json)
    print_json({{"schema", "thimble.diff/1"}, {"before", before}, {"after", after}, {"threads", session.threads()}, {"precision", common.precision},
                {"metric", "embeddings"}, {"texts", texts.size()}, {"cosine_mean", comparable ? Json(sum / n) : Json(nullptr)},
                {"cosine_min", comparable ? Json(least) : Json(nullptr)}, {"same_nearest", same / searched},
                {"dimensions_before", a.dimensions}, {"dimensions_after", b.dimensions}, {"pooling_before", a.pooling},
                {"pooling_after", b.pooling}, {"bytes_before", a.stored_bytes}, {"bytes_after", b.stored_bytes}});
  else
    write_stdout(fmt::format("{} against {}, {} texts\n{}  same nearest   {:.1f} %\n  stored bytes   {} -> {}\n", after, before, texts.size(),
                             comparable ? fmt::format("  cosine         {:.6f} mean, {:.6f} least\n", sum / n, least)
                                        : fmt::format("  dimensions     {} -> {}, so vectors are not compared\n", a.dimensions, b.dimensions),
                             100 * same / searched, a.stored_bytes, b.stored_bytes));
  return 0;
}

void require_same_tokens(const std::string& before, const std::string& after) {
  const std::string a_file = join_path(before, "tokenizer.json"), b_file = join_path(after, "tokenizer.json");
  if (file_exists(a_file) && file_exists(b_file) && read_file(a_file) == read_file(b_file)) return;
  const std::optional<Tokenizer> a = tokenizer_of(before), b = tokenizer_of(after);
  if (!a || !b) return;
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorCode::input, fmt::format("{} and {} have different tokenizers: {}", before, after, what),
                "predictions of the next token compare only over one vocabulary; name a tokenizer with --tokenizer if both do use it");
  };
  for (int32_t id = 0; id < std::min(a->vocab_size(), b->vocab_size()); ++id)
    if (a->token(id) != b->token(id))
      fail(fmt::format("token {} is {} in one and {} in the other", id, quote_for_message(a->token(id)), quote_for_message(b->token(id))));
  if (a->vocab_size() != b->vocab_size()) fail(fmt::format("{} and {} tokens", a->vocab_size(), b->vocab_size()));
}

}  // namespace thimble::cli
